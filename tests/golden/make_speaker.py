"""Writes a speaker model of no talent, and the mel features that torchaudio computes for one.

Run by hand, with PyTorch, torchaudio and onnx installed; the tests read only its output:

    python tests/golden/make_speaker.py

speaker.onnx takes "feats" (1, T, 80) and gives "embs" (1, 80), the mean magnitude of each band.
speaker.safetensors holds 0.1 s of the bundled speech at 16 kHz, `wave` (1600,), and its features as
WeSpeaker computes them, `features` (8, 80), both float32.
"""

from pathlib import Path

import numpy as np
import onnx
import soundfile
import soxr
import torch
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from torchaudio.compliance import kaldi

HERE = Path(__file__).parent
SPEECH = HERE.parents[1] / "gac_jax" / "examples" / "speech.flac"


def main() -> None:
    save_model(HERE / "speaker.onnx")
    speech, rate = soundfile.read(SPEECH, dtype="float32")
    wave = soxr.resample(speech, rate, 16_000)[16_000:17_600]
    features = kaldi.fbank(
        torch.from_numpy(wave)[None] * 2**15,
        num_mel_bins=80,
        sample_frequency=16_000,
        window_type="hamming",
        energy_floor=0.0,
        htk_compat=True,
    )
    features = (features - features.mean(0)).numpy()
    save_file({"wave": wave, "features": features}, HERE / "speaker.safetensors")
    print(features.shape, np.abs(features).max())


def save_model(path: Path) -> None:
    nodes = [
        helper.make_node("Abs", ["feats"], ["magnitude"]),
        helper.make_node("ReduceMean", ["magnitude"], ["embs"], axes=[1], keepdims=0),
    ]
    feats = helper.make_tensor_value_info("feats", TensorProto.FLOAT, [1, "T", 80])
    embs = helper.make_tensor_value_info("embs", TensorProto.FLOAT, [1, 80])
    graph = helper.make_graph(nodes, "speaker", [feats], [embs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
