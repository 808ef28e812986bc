"""How fast models of this package run here, against the machine's best matrix product.

    python benchmarks/speed.py --what=decode,encode,train --sizes=tiny,mini,small > ours.jsonl

Builds the models of configs/SIZE.py with random weights, on which speed does not depend. Prints a
JSON line for each measurement, first the ceilings, and a table of each kind on stderr. README.md
beside this says what the columns are.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile
from absl import app, flags
from ml_collections import ConfigDict

import gac_jax
from benchmarks import ceiling
from gac_jax import model_folder, rates
from gac_jax.bitstream import Tokens
from gac_jax.codec import Codec
from gac_jax.flow import GUIDANCE_INTERVAL, time_grid
from gac_jax.models.flow_decoder import Condition, DecoderConfig, FlowDecoder
from gac_jax.rates import FRAME_SAMPLES, SAMPLE_RATE, SPECTRA_PER_FRAME
from gac_jax.sharding import make_mesh, shard_batch, shardings
from gac_jax.training.optimizer import OptimizerConfig, make_optimizer
from gac_jax.training.stages import build_task
from gac_jax.training.state import init_state, make_train_step

KINDS = ("decode", "encode", "train", "cold", "memory")
_WHAT = flags.DEFINE_list("what", ["decode", "encode"], f"Of {', '.join(KINDS)}.")
flags.register_validator("what", lambda names: set(names) <= set(KINDS), f"must be {KINDS}")
_SIZES = flags.DEFINE_list("sizes", ["tiny", "mini", "small"], "Names of files in configs/.")
_PRECISIONS = flags.DEFINE_list("precisions", ["float32", "bfloat16"], "Of matrix products.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Clips that are coded at once.")
_STEPS = flags.DEFINE_list("steps", ["8"], "Euler steps of decoding.")
_GUIDANCE = flags.DEFINE_list("guidance", ["1"], "Weights; all but 1 evaluate the network twice.")
_SECONDS = flags.DEFINE_float("seconds", 10.24, "Of audio in a clip.", 0.1)
_CROPS = flags.DEFINE_integer("crops", 0, "In a training batch; 0 takes the configuration's.", 0)
_CODES = flags.DEFINE_boolean(
    "codes", False, "Train on codes once computed, as config.data.tokens does, without the encoder."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs, of which the fastest counts.", 1)

# Linux counts a process's peak from what its parent held when it began: a small one must begin it.
LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
spent = time.perf_counter() - start
print(json.dumps([spent, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""

Row = dict[str, Any]
Peaks = dict[str, float]  # operations a second by precision


def main(_: list[str]) -> None:
    """Measures and prints."""
    peaks: Peaks = {}
    for precision in _PRECISIONS.value:
        found = ceiling.measure(precision, _REPEATS.value)
        peaks[precision] = found.flops
        print(json.dumps(_ceiling_row(precision, found)), flush=True)
    for what in _WHAT.value:
        rows = []
        for size in _SIZES.value:
            for row in MEASURES[what](_config(size), peaks):
                rows.append({"what": what, "size": size, **row})
                print(json.dumps(rows[-1]), flush=True)
        print(table(rows), file=sys.stderr)


def decode(config: ConfigDict, peaks: Peaks) -> Iterator[Row]:
    """Tokens to waveforms."""
    record, params = _random_model(config)
    for batch, steps, guidance in product(_BATCHES.value, _STEPS.value, _GUIDANCE.value):
        how: Row = {"steps": int(steps), "guidance": float(guidance)}
        codec = Codec(record, params, int(batch))
        clips = [_tokens(codec, _SECONDS.value)] * codec.batch_size
        flops = len(clips) * _decode_flops(codec, clips[0].num_frames, **how)
        run = partial(codec.decode_batch, clips, solver="euler", **how)
        for precision, spent in _timed(run, peaks):
            yield {
                "batch": codec.batch_size,
                **how,
                "precision": precision,
                "rtf": spent / len(clips) / _SECONDS.value,
                "gflop": flops / 1e9,
                "of_peak": flops / spent / peaks[precision],
            }


def encode(config: ConfigDict, peaks: Peaks) -> Iterator[Row]:
    """Waveforms to tokens."""
    record, params = _random_model(config)
    for batch in map(int, _BATCHES.value):
        run = partial(Codec(record, params, batch).encode_batch, [_clip(_SECONDS.value)] * batch)
        for precision, spent in _timed(run, peaks):
            rtf = spent / batch / _SECONDS.value
            yield {"batch": batch, "precision": precision, "rtf": rtf}


def train(config: ConfigDict, peaks: Peaks) -> Iterator[Row]:
    """Updates of the flow decoder, with the encoder that makes its codes or with --codes."""
    stage, mesh = config.generation, make_mesh(**config.mesh)
    crops = _CROPS.value or stage.batch_size
    batch = _training_batch(crops, stage.crop_frames)
    record, params = _random_model(config)
    if _CODES.value:
        codes = _tokens(Codec(record, params), stage.crop_frames / rates.FRAME_RATE).codes
        batch["codes"] = np.repeat(codes[None], crops, axis=0)
    size = sum(x.size for x in jax.tree.leaves(params["decoder"]))
    rule = 6.0 * size * crops * stage.crop_frames * SPECTRA_PER_FRAME
    for precision, peak in peaks.items():
        with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
            counted, spent, held = _time_updates(config, params, batch, mesh)
        reach = spent * peak * mesh.size
        yield {
            "crops": crops,
            "seconds": crops * stage.crop_frames / rates.FRAME_RATE,
            "encoder": not _CODES.value,
            "precision": precision,
            "step_s": spent,
            "mfu_6N": rule / reach,
            "mfu_counted": counted / reach,
            "held_mib": held / 2**20,
        }


def cold(config: ConfigDict, peaks: Peaks) -> Iterator[Row]:
    """A process that decodes a second of audio, without and with compiled programs to find."""
    del peaks
    with tempfile.TemporaryDirectory() as folder:
        source = _model_and_tokens(config, Path(folder), 1.0)
        spent = [_sample(Path(folder), source, "decode")[0] for _ in range(2)]
    yield {"first_s": spent[0], "again_s": spent[1]}


def memory(config: ConfigDict, peaks: Peaks) -> Iterator[Row]:
    """The most that a process holds that encodes and that decodes; memory.py has long files."""
    del peaks
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = _model_and_tokens(config, folder, _SECONDS.value)
        audio = folder / "clip.wav"
        soundfile.write(audio, _clip(_SECONDS.value), SAMPLE_RATE)
        peaks_mib = [_sample(folder, *job)[1] for job in ((audio, "encode"), (source, "decode"))]
    yield {"encode_mib": peaks_mib[0], "decode_mib": peaks_mib[1]}


MEASURES = {"decode": decode, "encode": encode, "train": train, "cold": cold, "memory": memory}


def _timed(run: Callable[[], Any], precisions: Iterable[str]) -> Iterator[tuple[str, float]]:
    for precision in precisions:
        with jax.default_matmul_precision(precision):
            spent = ceiling.best(run, _REPEATS.value)
        yield precision, spent


def table(rows: list[Row]) -> str:
    """Rows of one kind as a Markdown table."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _ceiling_row(precision: str, found: ceiling.Ceiling) -> Row:
    return {
        "what": "ceiling",
        "precision": precision,
        "gflop_per_s": found.flops / 1e9,
        "size": found.size,
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
    }


def _config(size: str) -> ConfigDict:
    config = importlib.import_module(f"configs.{size}").get_config()
    if jax.default_backend() == "cpu":  # activations in bfloat16 are for accelerators
        config.encoder.dtype = config.decoder.dtype = "float32"
    return config


def _random_model(config: ConfigDict) -> tuple[Row, Any]:
    """What a model folder would hold: config.json and weights."""
    record = {
        "name": config.name,
        "encoder": config.encoder.to_dict(),
        "quantizer": config.quantizer.to_dict(),
        "decoder": config.decoder.to_dict(),
        "window": config.generation.crop_frames,
        "sampling": {k: config.sampling[k] for k in model_folder.SAMPLING},
        "fingerprint": bytes(8).hex(),
    }
    rng = np.random.default_rng(0)
    shapes = Codec(record, {}).abstract_params()
    return record, jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), shapes)


def _clip(seconds: float) -> np.ndarray:
    source = Path(gac_jax.__file__).parent / "examples" / "speech.flac"
    wave, _ = soundfile.read(source, dtype="float32")
    return np.resize(wave, round(seconds * SAMPLE_RATE))  # repeated, or its start


def _tokens(codec: Codec, seconds: float) -> Tokens:
    rng, samples = np.random.default_rng(0), round(seconds * SAMPLE_RATE)
    frames = rates.num_frames(samples)
    codes = rng.integers(0, 256, (codec.num_codebooks, frames), np.int32)
    return Tokens(codes, samples, np.full(-(-frames // 128), 200), codec.fingerprint)


def _decode_flops(codec: Codec, frames: int, steps: int, guidance: float) -> float:
    """Products of the network in a clip's windows; padding, code embedding and phases left out."""
    times = np.asarray(time_grid(steps))[:-1]
    first, last = GUIDANCE_INTERVAL
    twice = np.sum((times >= first) & (times <= last)) if guidance != 1.0 else 0
    buckets = [window.bucket for window in codec.plan(frames)]
    once = {bucket: _evaluation_flops(codec, bucket) for bucket in set(buckets)}
    return float(steps + twice) * sum(once[bucket] for bucket in buckets)


def _evaluation_flops(codec: Codec, frames: int) -> float:
    config = DecoderConfig(**codec.config["decoder"])
    spectrum = jax.ShapeDtypeStruct((1, frames * SPECTRA_PER_FRAME, config.bins), np.float32)
    signal = jax.ShapeDtypeStruct((1, frames, config.width), np.float32)
    detail = jax.ShapeDtypeStruct((1, frames * SPECTRA_PER_FRAME, config.width), np.float32)
    condition = Condition(signal, detail, spectrum, spectrum)
    params = {"params": codec.abstract_params()["decoder"]}
    arguments = (spectrum, np.zeros(1, np.float32), condition, np.full(1, frames, np.int32))
    return ceiling.matmul_flops(FlowDecoder(config).apply, params, *arguments)


def _training_batch(crops: int, frames: int) -> dict[str, np.ndarray]:
    samples = frames * FRAME_SAMPLES
    wave = np.random.default_rng(0).standard_normal((crops, samples), np.float32)
    return {
        "wave": wave,
        "num_samples": np.full(crops, samples, np.int32),
        "domain": np.zeros(crops, np.int32),
    }


def _time_updates(
    config: ConfigDict, params: Any, batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh
) -> tuple[float, float, float]:
    """Operations counted in an update, its seconds, and bytes that it holds on a device."""
    task = build_task("generation", config)
    optimizer = make_optimizer(OptimizerConfig(**config.generation.optimizer), 1_000)
    frozen = {part: params[part] for part in ("encoder", "quantizer")}

    def init() -> Any:
        return init_state(task, optimizer, 0, {})

    shapes = jax.eval_shape(init)
    layout, frozen_layout = shardings(mesh, shapes), shardings(mesh, frozen)
    step = make_train_step(task, optimizer, 0, 0.999)
    state = jax.jit(init, out_shardings=layout)()
    inputs = (jax.device_put(frozen, frozen_layout), shard_batch(mesh, batch))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, None))
    compiled = jitted.lower(state, *inputs).compile()

    def update() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, *inputs)
        return metrics["loss"]

    spent = ceiling.best(update, _REPEATS.value)
    sizes: Any = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    return _update_flops(config, optimizer, shapes, inputs), spent, held


def _update_flops(config: ConfigDict, optimizer: Any, state: Any, inputs: tuple) -> float:
    """Without what `remat` computes twice: that is the price of memory, not work of the model."""
    config = config.copy_and_resolve_references()
    config.encoder.remat = config.decoder.remat = False
    step = make_train_step(build_task("generation", config), optimizer, 0, 0.999)
    return ceiling.matmul_flops(step, state, *inputs)


def _model_and_tokens(config: ConfigDict, folder: Path, seconds: float) -> Path:
    """Writes a model and a .gac file of its own."""
    record, params = _random_model(config)
    model_folder.save(folder / "model", record, params, "# random\n", config.sampling.storage)
    codec = gac_jax.load(folder / "model")
    source = folder / "clip.gac"
    source.write_bytes(_tokens(codec, seconds).to_bytes())
    return source


def _sample(folder: Path, source: Path, mode: str) -> tuple[float, float]:
    """Runs the command line with a compilation cache in `folder`: seconds, and MiB at the most."""
    command = [sys.executable, "-m", "gac_jax.sample", f"--mode={mode}", "--overwrite"]
    paths = [f"--model={folder / 'model'}", f"--input={source}", f"--output={folder / 'out'}"]
    # Not XDG_CACHE_HOME, or Matplotlib would look for fonts in the first process.
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    launch = [sys.executable, "-c", LAUNCHER, *command, *paths]
    result = subprocess.run(launch, env=environment, stdout=subprocess.PIPE, check=True)
    spent, kilobytes = json.loads(result.stdout.splitlines()[-1])
    return spent, kilobytes / 1024


if __name__ == "__main__":
    app.run(main)
