"""Writes the tiny Whisper encoder beside this file, and what transformers computes with Whisper.

Run by hand, with PyTorch (CPU), transformers and soundfile installed; the tests read only its
output:

    python tests/golden/make_whisper.py WHISPER_TINY_FOLDER

whisper/ holds the encoder of a random model as `save_pretrained` writes it, in float16 and in
shards; the weights of norms and the biases are random too. whisper/expected.safetensors holds a
mel (80, 32) float16 and the features (16, 24) float32 of the weights as stored.

whisper_tiny.safetensors is from the pretrained encoder in the folder named and from the bundled
speech: of its first 4.8 s, all but the last half second speech, every 16th frame of the log-mel
(80, 30), and every 4th of the features, of which every 24th channel (60, 16).
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.numpy import save_file
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids

HERE = Path(__file__).parent
SPEECH = HERE.parents[1] / "gac_jax" / "examples" / "speech.flac"
CONFIG = WhisperConfig(
    d_model=24,
    encoder_layers=2,
    encoder_attention_heads=4,
    encoder_ffn_dim=96,
    max_source_positions=16,
    decoder_layers=1,
    decoder_attention_heads=4,
    decoder_ffn_dim=96,
    vocab_size=16,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=0,
    decoder_start_token_id=0,
)


def randomise(encoder: WhisperEncoder) -> None:
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            noise = torch.randn(value.shape)
            if "positions" in name:
                continue
            if value.ndim > 1:
                noise *= 1.5 * value[0].numel() ** -0.5
            elif name.endswith("bias"):
                noise *= 0.5
            else:
                noise = 1.0 + 0.3 * noise
            value.copy_(noise)


def write_random() -> None:
    torch.manual_seed(0)
    folder = HERE / "whisper"
    shutil.rmtree(folder, ignore_errors=True)
    model = WhisperForConditionalGeneration(CONFIG)
    randomise(model.model.encoder)
    model = model.half()
    encoder = {k: v for k, v in model.state_dict().items() if ".encoder." in k}
    model.save_pretrained(folder, state_dict=encoder, max_shard_size="25KB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    mel = np.random.default_rng(0).standard_normal((80, 32)).astype(np.float16)
    # Halved and doubled again, the positions are rounded; ours are computed.
    stored = with_exact_positions(model.model.encoder.float())
    with torch.no_grad():
        features = stored(torch.from_numpy(mel).float()[None]).last_hidden_state[0].numpy()
    save_file({"mel": mel, "features": features}, folder / "expected.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size} bytes, features of rms {np.sqrt(np.mean(features**2)):.2f}")


def with_exact_positions(encoder: WhisperEncoder) -> WhisperEncoder:
    with torch.no_grad():
        encoder.embed_positions.weight.copy_(sinusoids(*encoder.embed_positions.weight.shape))
    return encoder.eval()


def write_tiny(weights: Path) -> None:
    wave, rate = soundfile.read(SPEECH, dtype="float32")
    assert rate == 32_000
    # Every second sample: aliased, but no resampler is involved that could differ.
    extract = WhisperFeatureExtractor()
    mel = extract(wave[::2], sampling_rate=16_000, return_tensors="pt").input_features
    model = WhisperForConditionalGeneration.from_pretrained(weights, dtype=torch.float32)
    encoder = with_exact_positions(model.model.encoder)
    with torch.no_grad():
        features = encoder(mel).last_hidden_state[0].numpy()
    kept = {
        "mel": np.ascontiguousarray(mel[0, :, :480:16].numpy()),
        "features": np.ascontiguousarray(features[:240:4, ::24]),
    }
    path = HERE / "whisper_tiny.safetensors"
    save_file(kept, path)
    shapes = json.dumps({name: value.shape for name, value in kept.items()})
    print(f"{path}: {path.stat().st_size} bytes, {shapes}")


if __name__ == "__main__":
    write_random()
    write_tiny(Path(sys.argv[1]))
