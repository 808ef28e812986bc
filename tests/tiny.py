"""Both stages at a size that compiles in seconds; every dimension that is split divides by four."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gac_jax.model_folder import with_entropy_model
from gac_jax.models import entropy_model
from gac_jax.models.encoder import EncoderConfig
from gac_jax.models.entropy_model import EntropyModelConfig
from gac_jax.models.flow_decoder import DecoderConfig, FlowDecoder
from gac_jax.models.language_model import LanguageModel, LanguageModelConfig
from gac_jax.models.quantizer import QuantizerConfig
from gac_jax.rates import FRAME_SAMPLES
from gac_jax.stages.adversarial import Adversarial, AdversarialConfig
from gac_jax.stages.generation import Generation, GenerationConfig
from gac_jax.stages.meanflow import MeanFlow, MeanFlowConfig
from gac_jax.stages.reading import Reader
from gac_jax.stages.understanding import Understanding, UnderstandingConfig

ENCODER = EncoderConfig(
    width=16,
    depth=2,
    num_heads=2,
    acoustic_width=16,
    acoustic_depth=1,
    acoustic_mels=16,
    acoustic_features=16,
    ripple_features=8,
)
QUANTIZER = QuantizerConfig(
    width=16,
    semantic_size=64,
    semantic_dim=8,
    num_residual=8,
    residual_size=16,
    residual_dim=40,
    partials_dim=24,
)
DECODER = DecoderConfig(width=32, depth=2, head_dim=16)
LANGUAGE_MODEL = LanguageModelConfig(
    vocab_size=48,
    width=16,
    depth=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_width=32,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    tied=True,
    qkv_bias=False,
)
WEIGHTS = dict(text=0.5, alignment=0.5, mel=1.0, feature=1.0, codes=1.0, info=0.1, confidence=0.01)
RATES = (0.2, 0.2, 0.2, 0.2, 0.2)


def add_entropy_model(source: Path, target: Path) -> None:
    """Gives a model that was made of `QUANTIZER` an entropy model that has learnt nothing."""
    config = EntropyModelConfig(
        width=8,
        code_dim=8,
        query_dim=8,
        feature_width=8,
        semantic_dim=QUANTIZER.semantic_dim,
        residual_size=QUANTIZER.residual_size,
    )
    drawn = entropy_model.rounded(entropy_model.init(config, jax.random.key(0)))
    weights = {name: np.asarray(x, np.int8) for name, x in drawn.items()}
    with_entropy_model(source, target, dataclasses.asdict(config), weights)


# Programs of this size run in no time however they are compiled; unoptimised they compile in half.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def understanding(
    weights: dict[str, float] | None = None, listens: bool = False, **changes: Any
) -> Understanding:
    """Stage 1; with a language model if it `listens`."""
    options = {
        "rate_weights": RATES,
        "warmup_steps": 0,
        "text_after": 0,
        "usage_decay": 0.9,
        "hits_decay": 0.9,
        "codebook_decay": 0.9,
        "train_semantic_tower": True,
        "domains": ("speech", "sound"),
        **changes,
    }
    terms = tuple((WEIGHTS if weights is None else weights).items())
    settings = UnderstandingConfig(weights=terms, **options)
    return Understanding(settings, ENCODER, QUANTIZER, reader() if listens else None)


def reader() -> Reader:
    """A random language model's."""
    return Reader(LANGUAGE_MODEL, loudness=0.7, prefix=(1, 2, 3), stop_tokens=(0,))


def generation(decoder: DecoderConfig = DECODER, **changes: Any) -> Generation:
    options = {
        "rate_weights": RATES,
        "drop_codes": 0.1,
        "time_mean": -0.4,
        "time_std": 1.0,
        "lose_frames": 0.0,
        "scale_steps": 3,
        **changes,
    }
    return Generation(GenerationConfig(**options), ENCODER, QUANTIZER, decoder)


def meanflow(decoder: DecoderConfig = DECODER, **changes: Any) -> MeanFlow:
    options = {
        "rate_weights": RATES,
        "lose_frames": 0.0,
        "instants": 0.25,
        "path_steps": 2,
        "lowest_temperature": 0.5,
        "guidance": (1.0,) * 9,
        **changes,
    }
    return MeanFlow(MeanFlowConfig(**options), generation(decoder))


def adversarial(decoder: DecoderConfig = DECODER, **changes: Any) -> Adversarial:
    options = {
        "rate_weights": RATES,
        "lose_frames": 0.0,
        "weights": (("adversarial", 1.0), ("matching", 2.0), ("hearing", 4.0), ("acoustic", 1.0)),
        "steps": 2,
        "temperature": 0.36,
        "critic_widths": (8, 16),
        **changes,
    }
    return Adversarial(AdversarialConfig(**options), generation(decoder))


def predict(
    decoder: FlowDecoder,
    params: Any,
    x_t: jax.Array,
    t: jax.Array,
    embedding: jax.Array,
    rate: jax.Array,
    keep: jax.Array,
    lost: jax.Array,
    frames: jax.Array,
) -> jax.Array:
    """X_1 predicted from the codes in one call; shapes as in `FlowDecoder`."""

    def both(module: FlowDecoder) -> jax.Array:
        return module(x_t, t, module.condition(embedding, rate, keep, lost, frames), frames)

    return decoder.apply({"params": params}, method=both)


def drawn(init: Callable[..., Any], *arguments: Any) -> Any:
    """Random parameters of the shapes that `init(key, *arguments)` makes, none of them zero.

    Compiling an initialiser takes longer than most tests, and layers that start at zero hide
    what they do.
    """
    rng = np.random.default_rng(1)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, noise = str(path[-1].key), rng.standard_normal(leaf.shape)
        if name == "kernel":
            fan_in = leaf.shape[-2] * (leaf.shape[0] if "conv" in str(path) else 1)
            noise = noise / np.sqrt(fan_in)
        elif name in ("bias", "scale"):
            noise = 0.1 * noise + (name == "scale")
        return jnp.asarray(noise, leaf.dtype)

    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def frozen_parts() -> Any:
    """A random encoder, quantiser, language model and decoder, and statistics of spectra."""
    params = {**drawn(understanding().init), **drawn(generation().init)}
    words = jnp.ones((1, 1), jnp.int32)
    language = drawn(LanguageModel(LANGUAGE_MODEL).init, words, words > 0)["params"]
    parts = {part: params[part] for part in ("encoder", "quantizer", "decoder")}
    bands = jnp.ones((DECODER.bins,))
    return {**parts, "language_model": language, "spectrum": {"mean": -3.0 * bands, "scale": bands}}


def batch(rows: int = 8, frames: int = 4) -> dict[str, jax.Array]:
    """Tones in noise of unit RMS, with texts; every second row ends early, zeros follow."""
    rng, samples = np.random.default_rng(3), frames * FRAME_SAMPLES
    pitch = rng.uniform(0.01, 0.3, (rows, 1))
    wave = np.sin(pitch * np.arange(samples)) + 0.3 * rng.standard_normal((rows, samples))
    wave /= np.sqrt(np.mean(np.square(wave), axis=1, keepdims=True))
    text_lengths = np.arange(rows) % 4 + 5 * (np.arange(rows) % 3 > 0)
    lengths = np.where(np.arange(rows) % 2, samples - FRAME_SAMPLES - 700, samples)
    wave *= np.arange(samples) < lengths[:, None]
    return {
        "wave": jnp.asarray(wave, jnp.float32),
        "num_samples": jnp.asarray(lengths, jnp.int32),
        "domain": jnp.arange(rows, dtype=jnp.int32) % 2,
        "text": jnp.asarray(rng.integers(4, 48, (rows, 9)), jnp.int32),
        "text_length": jnp.asarray(text_lengths, jnp.int32),  # 0 in some rows: no text
        "answer_start": jnp.full((rows,), 3, jnp.int32),
    }
