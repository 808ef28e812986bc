"""Every field of a training configuration, with its unit; the other configs change a few.

Sizes here are those of `small`: a Whisper-base encoder and the report's 40.7 M decoder (S).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The base configuration; fields may be overridden on the command line."""
    config = ConfigDict()
    config.name = "base"  # name of the model folder's card
    config.seed = 0  # of initialisation, noise and the data order
    # Or one of them. A third, "meanflow", makes a decoder of few steps of that of "generation", and
    # a fourth, "adversarial", trains it on what it makes.
    config.stages = ("understanding", "generation")
    # Bundled model or model folder ("" is none) that stands in for config.encoder and
    # config.quantizer, sizes included. The stage understanding goes on training its weights;
    # without that stage they stay as they are, and the new model reads the old one's files.
    config.init_from = ""
    # Bundled model or model folder ("" is none) whose decoder the stage generation goes on
    # training, as far as its parts have a place in the new one: codes may be others.
    config.decoder_from = ""

    config.data = data = ConfigDict()
    # Folder, manifest (.csv, .jsonl), tfds:NAME:SPLIT or array_record:GLOB, or several of these
    # joined by commas; "" is the bundled clips.
    data.root = ""
    data.tokens = ""  # folder of gac_jax.tokenize, whose codes the stage generation reads; or ""
    data.domain_weights = dict(speech=0.4, sound=0.3, music=0.3, other=0.3)  # share of the crops
    data.validation_percent = 3.0  # of speakers (clips where the speaker is unknown) held out
    data.validation_batches = 8  # batches in one validation
    data.gain_jitter_db = 6.0  # crops are scaled to unit RMS, plus or minus this
    data.num_threads = 8  # readers

    # Of dense layers: "bfloat16" multiplies in bfloat16 and sums in float32, "float32" multiplies
    # exactly, "default" is the platform's own choice.
    config.matmul_precision = "default"

    config.mesh = mesh = ConfigDict()  # devices along each axis; -1 is "the rest"
    mesh.data = -1  # copies of the parameters
    mesh.fsdp = 1  # parameters split, gathered when used
    mesh.tensor = 1  # matrices split within a layer

    config.encoder = encoder = ConfigDict()  # see gac_jax.models.encoder.EncoderConfig
    encoder.width = 512  # channels of the Whisper tower
    encoder.depth = 6  # Transformer blocks
    encoder.num_heads = 8
    encoder.num_mels = 80  # Whisper mel bands
    encoder.acoustic_width = 256  # channels of the acoustic tower
    encoder.acoustic_depth = 4  # ConvNeXt blocks; 0 leaves the cepstrum as it is
    encoder.acoustic_mels = 128  # mel bands up to 16 kHz
    encoder.acoustic_features = 64  # cepstral coefficients that the residual codebooks describe
    encoder.ripple_features = 64  # further ones, of the partials of voices
    encoder.remat = False  # recompute activations in the backward pass
    encoder.dtype = "float32"  # of matmuls; "bfloat16" on accelerators
    config.whisper = ""  # folder with pretrained Whisper weights (Hugging Face layout); "" is none

    config.language_model = _language_model()  # frozen; reads the codes in stage 1

    config.quantizer = quantizer = ConfigDict()  # see gac_jax.models.quantizer.QuantizerConfig
    quantizer.width = 256  # channels of a code embedding
    quantizer.semantic_dim = 12  # channels in which semantic codes are compared
    quantizer.residual_dim = 144  # channels that residual codes approximate, those of the feature
    quantizer.temperature = 0.25  # softness of assignments in L_info, standard deviations
    quantizer.commitment = 0.25  # pull of semantic features towards codes

    config.decoder = decoder = ConfigDict()  # see gac_jax.models.flow_decoder.DecoderConfig
    decoder.width = 384  # channels, a multiple of 64
    decoder.depth = 14  # Transformer blocks
    decoder.condition_depth = 1  # ConvNeXt blocks at 12.5 Hz, and as many at 50 Hz
    decoder.remat = False  # recompute activations in the backward pass
    decoder.dtype = "float32"  # of matmuls; "bfloat16" on accelerators

    config.understanding = _understanding()
    config.generation = _generation()
    config.meanflow = _meanflow()
    config.adversarial = _adversarial()

    config.sampling = sampling = ConfigDict()  # defaults written into the model folder
    sampling.steps = 16  # network evaluations of the Euler solver
    sampling.solver = "euler"  # or "heun"
    sampling.guidance = 1.5  # classifier-free guidance weight; 1 is none; meanflow learns it
    sampling.temperature = 1.0  # deviation of the noise; below 1 is plainer and safer
    sampling.contrast = 1.0  # of spectra above 4 kHz; more gives back what small decoders average
    sampling.storage = "float32"  # of shipped weights: float32, bfloat16 or int8
    return config


def _language_model() -> ConfigDict:
    language = ConfigDict()
    language.path = ""  # Hugging Face folder or .gguf of a Llama, SmolLM2 or Qwen2; "" is none
    language.tokenizer = ""  # file or folder, if it is not in the same place
    language.prompt = "chatml"  # for instruction-tuned models; "plain" for base models
    language.max_tokens = 64  # of a question with its answer; longer answers are cut
    language.remat = False  # recompute activations in the backward pass
    language.dtype = "float32"  # of weights and activations; "bfloat16" on accelerators
    return language


def _understanding() -> ConfigDict:
    stage = _stage()
    stage.objective = ConfigDict()
    stage.objective.weights = dict(  # of the loss terms; 0 leaves a term out
        text=1.0, alignment=1.0, mel=1.0, feature=1.0, codes=1.0, info=0.05, confidence=0.0
    )
    stage.objective.rate_weights = (0.25, 0.25, 0.15, 0.15, 0.2)  # of k = 0, 1, 2, 4, 8
    stage.objective.warmup_steps = 1_000  # at the start, in which features pass unquantised
    stage.objective.text_after = 5_000  # steps at the start without the language model
    stage.objective.usage_decay = 0.9  # memory of code usage, per step
    stage.objective.hits_decay = 0.998  # memory of the codes in use, for metrics, per step
    stage.objective.codebook_decay = 0.98  # memory of the residual codebooks, per step
    stage.objective.train_semantic_tower = True  # False keeps pretrained Whisper as it is
    stage.optimizer.scales = (("encoder/semantic", 0.1),)  # (path, factor on its updates)
    return stage


def _generation() -> ConfigDict:
    stage = _stage()
    stage.objective = ConfigDict()
    stage.objective.rate_weights = (0.25, 0.25, 0.15, 0.15, 0.2)  # of k = 0, 1, 2, 4, 8
    stage.objective.drop_codes = 0.1  # share of crops without condition, for guidance
    stage.objective.time_mean = -0.4  # of logit t; below 0 leans to the noise end
    stage.objective.time_std = 1.0  # of logit t
    stage.objective.lose_frames = 0.1  # share of crops that lose a fifth of their code frames
    stage.objective.scale_steps = 200  # steps that measure each band's mean and deviation
    return stage


def _meanflow() -> ConfigDict:
    stage = _stage()
    stage.steps = 30_000
    stage.sampling_steps = 2  # of the solver meanflow, in the model folder
    stage.objective = ConfigDict()
    stage.objective.rate_weights = (0.25, 0.25, 0.15, 0.15, 0.2)  # of k = 0, 1, 2, 4, 8
    stage.objective.lose_frames = 0.1  # share of crops that lose a fifth of their code frames
    stage.objective.instants = 0.25  # share of crops that keep the velocity at t, as euler takes it
    stage.objective.path_steps = 4  # of the old decoder, for the mean velocity over an interval
    stage.objective.lowest_temperature = 0.5  # of noise, from here to 1
    stage.optimizer.update(learning_rate=1e-4)
    return stage


def _adversarial() -> ConfigDict:
    stage = _stage()
    stage.steps = 30_000
    stage.objective = ConfigDict()
    stage.objective.rate_weights = (0.25, 0.25, 0.15, 0.15, 0.2)  # of k = 0, 1, 2, 4, 8
    stage.objective.lose_frames = 0.1  # share of crops that lose a fifth of their code frames
    stage.objective.critic_widths = (32, 64, 128, 256)  # channels of its convolutions
    stage.objective.weights = dict(  # of the loss terms, see gac_jax.stages.adversarial
        adversarial=1.0, matching=1.0, hearing=6.0, acoustic=8.0
    )
    stage.optimizer.update(learning_rate=1e-4)
    return stage


def _stage() -> ConfigDict:
    stage = ConfigDict()
    stage.steps = 300_000  # updates
    stage.batch_size = 64  # crops over all devices
    stage.crop_frames = 128  # code frames in a crop, 80 ms each
    stage.ema_decay = 0.9999  # of the shipped weights, per step
    stage.log_every = 100  # steps
    stage.eval_every = 5_000  # steps
    stage.save_every = 2_000  # steps
    stage.keep = 2  # checkpoints
    stage.max_skipped = 10  # non-finite updates in a row before the run stops
    stage.optimizer = optimizer = ConfigDict()  # see gac_jax.training.optimizer.OptimizerConfig
    optimizer.name = "adamw"  # or "muon", for the matrices of layers
    optimizer.learning_rate = 3e-4  # peak
    optimizer.warmup_steps = 1_000
    optimizer.final_fraction = 0.1  # of the peak, at the last step
    optimizer.b2 = 0.99
    optimizer.weight_decay = 0.01
    optimizer.clip_norm = 1.0
    optimizer.scales = ()
    return stage
