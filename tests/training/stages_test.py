import itertools
import shutil
import signal
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

import gac_jax
from gac_jax import model_folder
from gac_jax.data.summary import Summary
from gac_jax.errors import UserError
from gac_jax.sharding import AXES, make_mesh
from gac_jax.stages.task import Params
from gac_jax.training import loop, stages
from gac_jax.training.loop import StageRun
from gac_jax.training.origin import Origin
from gac_jax.training.stages import run
from gac_jax.training.stop import Interrupted
from tests import listening, tiny
from tests.config import get_config

Logged = dict[tuple[str, str, int], dict[str, float]]


@pytest.fixture(scope="module", autouse=True)
def quick_runs() -> Iterator[None]:
    """Runs on one device, unoptimised, which are compiled in half the time.

    That the loop resumes on many devices, loop_test.py shows.
    """

    def one_device(**sizes: int) -> Mesh:
        kinds = (AxisType.Auto,) * len(AXES)
        return jax.make_mesh((1, 1, 1), AXES, kinds, devices=jax.devices()[:1])

    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", tiny.jit)
        patch.setattr(stages, "make_mesh", one_device)
        yield


@pytest.fixture
def config() -> ConfigDict:
    return get_config()


def all_stages() -> ConfigDict:
    config = get_config()
    config.stages = stages.STAGES
    return config


def record(logged: Logged, patch: pytest.MonkeyPatch) -> None:
    """Lets runs log to `logged`, every line once."""

    class Recorder(loop.Log):
        def __init__(self, folder: str, name: str, *rest: Any) -> None:
            super().__init__(folder, name, *rest)
            self.stage = name

        def write(self, step: int, group: str, values: dict[str, float]) -> None:
            assert (self.stage, group, step) not in logged
            known = {k: v for k, v in values.items() if np.isfinite(v)}
            logged[self.stage, group, step] = known | {"seconds_per_step": 0.0}

    patch.setattr(loop, "Log", Recorder)


def stop_after(batches: int, patch: pytest.MonkeyPatch) -> None:
    """Lets a run be asked to stop while it takes its n-th batch, of whichever stage."""
    real, taken = stages.train_batches, itertools.count(1)

    class Stream:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.batches = real(*arguments, **options)

        def __next__(self) -> Any:
            if next(taken) == batches:
                signal.raise_signal(signal.SIGTERM)
            return next(self.batches)

        def close(self) -> None:
            self.batches.close()

    patch.setattr(stages, "train_batches", Stream)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Logged]:
    """The workdir of a whole run, and what it logged."""
    workdir, logged = tmp_path_factory.mktemp("unbroken"), {}
    with pytest.MonkeyPatch.context() as patch:
        record(logged, patch)
        assert run(all_stages(), workdir) == workdir / "model"
    return workdir, logged


def test_all_stages_log_what_they_should(unbroken: tuple[Path, Logged]) -> None:
    steps = {"train": [1, 2, 3, 4], "validation": [2, 4]}
    for name in stages.STAGES:
        for group, expected in steps.items():
            assert [key[2] for key in unbroken[1] if key[:2] == (name, group)] == expected


def test_stopped_and_resumed_is_unbroken_in_every_stage(
    tmp_path: Path, unbroken: tuple[Path, Logged], monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, expected = unbroken
    logged: Logged = {}
    record(logged, monkeypatch)
    stops = (("understanding", 3), ("generation", 2), ("meanflow", 1), ("meanflow", 4))
    for stage, step in (*stops, ("adversarial", 3)):
        with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
            stop_after(3, patch)
            run(all_stages(), tmp_path)
        assert str(stop.value).startswith(f"{stage}: stopped at step {step};")
    folder = run(all_stages(), tmp_path)
    assert logged == expected
    for name in ("weights.safetensors", "config.json", "README.md"):
        assert (folder / name).read_bytes() == (workdir / "model" / name).read_bytes()


def wave() -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(20_000).astype(np.float32)


def test_the_model_takes_a_clip_there_and_back(unbroken: tuple[Path, Logged]) -> None:
    codec = gac_jax.load(unbroken[0] / "model")
    audio = codec.decode(codec.encode(wave()))
    assert audio.shape == (20_000,) and np.isfinite(audio).all() and audio.std() > 0
    assert codec.config["name"] == "smallest"


def test_the_last_stages_make_a_decoder_of_few_steps(unbroken: tuple[Path, Logged]) -> None:
    codec = gac_jax.load(unbroken[0] / "model")
    few = {"solver": "meanflow", "steps": 2, "guidance": 1.0, "temperature": 1.0, "contrast": 1.0}
    assert codec.config["sampling"] == few and codec.config["decoder"]["interval"]
    tokens = codec.encode(wave())
    at_once = codec.decode(tokens, steps=1)
    assert (at_once != codec.decode(tokens)).any()
    assert (at_once != codec.decode(tokens, steps=1, solver="euler")).any()
    with pytest.raises(UserError, match="guidance is part of what this model has learnt"):
        codec.decode(tokens, guidance=2.0)


def test_a_decoder_is_trained_on_the_encoder_of_an_int8_model(
    tmp_path: Path, unbroken: tuple[Path, Logged], config: ConfigDict
) -> None:
    shutil.copytree(unbroken[0], tmp_path / "first")
    config.sampling.storage = "int8"
    origin = run(config, tmp_path / "first")
    assert origin is not None
    config.update(init_from=str(origin), stages=("generation",))
    config.sampling.storage = "float32"
    config.encoder.width = 32  # the model's own is taken
    folder = run(config, tmp_path / "second")
    assert folder is not None and not (tmp_path / "second" / "understanding").exists()
    codecs = [gac_jax.load(path) for path in (origin, folder)]
    assert codecs[0].fingerprint == codecs[1].fingerprint
    tokens = [codec.encode(wave()) for codec in codecs]
    assert tokens[0] == tokens[1]
    assert (codecs[0].decode(tokens[0]) != codecs[1].decode(tokens[0])).any()


class Plan:
    """Runs that stop short of training.

    Attributes:
      runs: what `run_stage` was asked to do.
      exports: arguments of `export`.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.runs: list[StageRun] = []
        self.exports: list[tuple] = []
        patch.setattr(stages, "make_mesh", make_mesh)
        patch.setattr(stages, "run_stage", self._run_stage)
        patch.setattr(stages, "export", lambda *arguments: self.exports.append(arguments))

    def _run_stage(self, run: StageRun) -> Any:
        self.runs.append(run)
        parts = ("encoder", "quantizer", "mel_head", "feature_head", "decoder")
        ema = {part: f"{part} of {run.task.name}" for part in parts}
        ema = {k: v for k, v in ema.items() if (k == "decoder") == (run.task.name == "generation")}
        if run.task.name == "meanflow":
            ema = {"decoder": {"output": "that of meanflow"}}
        if run.task.name == "adversarial":
            ema = {"decoder": "that of adversarial", "critic": "not shipped"}
        return types.SimpleNamespace(
            ema=ema, memory=dict.fromkeys(("mean", "power"), np.ones(640, np.float32))
        )


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    return Plan(monkeypatch)


def names(plan: Plan) -> list[str]:
    return [run.task.name for run in plan.runs]


def assert_same(a: Params, b: Params) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_stage_gets_what_the_config_says(tmp_path: Path, plan: Plan, config: ConfigDict) -> None:
    config.generation.update(keep=7, batch_size=16)
    run(config, tmp_path)
    first, second = plan.runs
    assert names(plan) == ["understanding", "generation"]
    assert (first.loop.keep, second.loop.keep, second.loop.seed) == (2, 7, 0)
    assert (first.folder, second.folder) == tuple(str(tmp_path / name) for name in names(plan))
    assert first.optimizer.scales == config.understanding.optimizer.scales
    assert second.config == config.to_dict()
    assert (first.start, first.frozen, second.start) == ({}, {}, {})
    assert second.frozen == {k: f"{k} of understanding" for k in ("encoder", "quantizer")}
    assert first.data == "2 clips, 9.28 s (1 sound, 1 speech)"
    batches = first.train_batches(0)
    assert next(batches)["wave"].shape == (8, 4 * 2560)
    batches.close()
    (held_out,) = second.validation_batches()
    assert held_out["wave"].shape == (16, 16 * 2560) and (held_out["domain"] == 2).all()


def test_understanding_listens_with_a_language_model(tmp_path: Path, plan: Plan) -> None:
    listening.write_corpus(tmp_path / "corpus")
    listening.write_language_model(tmp_path / "language_model")
    config = listening.get_config(tmp_path)
    config.stages = ("understanding", "generation")
    run(config, tmp_path / "work")
    first, second = plan.runs
    assert set(first.frozen) == {"language_model"} and first.task.reader
    assert "language_model" not in second.frozen
    batches = first.train_batches(0)
    batch = next(batches)
    batches.close()
    assert batch["text"].shape == (8, 48) and (batch["text_length"] > 0).any()
    assert "text" not in next(iter(second.validation_batches()), {})


@pytest.mark.parametrize("silenced", ["path", "weight"])
def test_without_a_language_model_understanding_reads_no_texts(
    tmp_path: Path,
    plan: Plan,
    config: ConfigDict,
    silenced: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config.understanding.objective.weights.update(text=1.0, alignment=1.0)
    if silenced == "weight":
        config.understanding.objective.weights.update(text=0.0, alignment=0.0)
        config.language_model.path = "/nowhere"  # not even opened
    run(config, tmp_path)
    assert plan.runs[0].frozen == {} and plan.runs[0].task.reader is None
    said = "config.language_model.path names no model" in capsys.readouterr().out
    assert said == (silenced == "path")


def test_a_frozen_semantic_tower_does_not_decay_either(
    tmp_path: Path, plan: Plan, config: ConfigDict
) -> None:
    config.understanding.objective.train_semantic_tower = False
    run(config, tmp_path)
    assert plan.runs[0].optimizer.scales[0] == ("encoder/semantic", 0.0)
    assert plan.runs[1].optimizer.scales == ()


def test_the_model_is_made_of_both_stages(tmp_path: Path, plan: Plan, config: ConfigDict) -> None:
    run(config, tmp_path)
    ((given, names, params, corpus, folder, origin),) = plan.exports
    assert (given, names, folder) == (config, config.stages, tmp_path / "model")
    assert params.keys() == {"encoder", "quantizer", "decoder", "spectrum"}
    assert isinstance(corpus, Summary) and origin is None


def test_understanding_alone_makes_a_tokenizer(
    tmp_path: Path, plan: Plan, config: ConfigDict
) -> None:
    config.stages = ("understanding",)
    assert run(config, tmp_path) == tmp_path / "tokenizer"
    ((_, names, params, _, folder, _),) = plan.exports
    assert (names, folder) == (("understanding",), tmp_path / "tokenizer")
    assert params.keys() == {"encoder", "quantizer"}
    config.generation.update(batch_size=12, crop_frames=24)  # its windows matter, its batch not
    with pytest.raises(UserError, match="generation.crop_frames 24 is no multiple of 16"):
        run(config, tmp_path)
    assert len(plan.runs) == 1


@pytest.mark.parametrize("done", [None, 2])
def test_generation_alone_needs_an_encoder(
    tmp_path: Path, plan: Plan, config: ConfigDict, done: int | None
) -> None:
    if done:
        (tmp_path / "understanding" / "checkpoints" / str(done)).mkdir(parents=True)
    config.stages = ("generation",)
    told = f"needs a finished understanding, which is at step {done or 0} of 4"
    with pytest.raises(UserError, match=told) as error:
        run(config, tmp_path)
    assert "config.stages" in str(error.value) and "config.init_from" in str(error.value)
    assert plan.runs == []


def test_generation_alone_takes_the_finished_encoder_of_its_workdir(
    tmp_path: Path, unbroken: tuple[Path, Logged], plan: Plan, config: ConfigDict
) -> None:
    shutil.copytree(unbroken[0] / "understanding", tmp_path / "understanding")
    config.update(stages=("generation",))
    config.decoder.width = 64
    run(config, tmp_path)
    assert names(plan) == ["understanding", "generation"]
    state = loop.run_stage(plan.runs[0])
    model = model_folder.load(unbroken[0] / "model")[1]
    for part in ("encoder", "quantizer"):
        assert_same(state.ema[part], model[part])
    assert plan.exports[0][1] == ("understanding", "generation")


def test_generation_alone_takes_the_encoder_of_another_model(
    tmp_path: Path, tiny_model: Path, plan: Plan, config: ConfigDict
) -> None:
    config.update(stages=("generation",), init_from=str(tiny_model))
    run(config, tmp_path)
    assert names(plan) == ["generation"]
    params = model_folder.load(tiny_model)[1]
    assert_same(plan.runs[0].frozen, {part: params[part] for part in ("encoder", "quantizer")})
    assert plan.exports[0][1] == ("generation",) and isinstance(plan.exports[0][-1], Origin)


def test_meanflow_alone_takes_another_model(
    tmp_path: Path, tiny_model: Path, plan: Plan, config: ConfigDict
) -> None:
    config.update(stages=("meanflow",), init_from=str(tiny_model))
    config.decoder.width = 64  # the model's own is taken
    run(config, tmp_path)
    assert names(plan) == ["meanflow"]
    params = model_folder.load(tiny_model)[1]
    assert_same(plan.runs[0].frozen, params)
    rest = {k: v for k, v in params["decoder"].items() if k != "condition_net"}
    assert_same(plan.runs[0].start, {"decoder": rest})
    shipped = plan.exports[0][2]
    assert shipped["decoder"].pop("output") == "that of meanflow"
    del params["decoder"]["output"]
    assert_same(shipped, params)


def test_adversarial_alone_goes_on_from_a_decoder_of_few_steps(
    tmp_path: Path, unbroken: tuple[Path, Logged], plan: Plan, config: ConfigDict
) -> None:
    config.update(stages=("adversarial",), init_from=str(unbroken[0] / "model"))
    config.meanflow.sampling_steps, config.sampling.temperature = 3, 0.5
    run(config, tmp_path)
    assert names(plan) == ["adversarial"]
    params = model_folder.load(unbroken[0] / "model")[1]
    assert_same(plan.runs[0].frozen, params)
    assert_same(plan.runs[0].start, {"decoder": params["decoder"]})
    settings = plan.runs[0].task.config
    assert (settings.steps, settings.temperature) == (3, 0.5)  # as the model will be sampled
    assert plan.exports[0][2] == {**plan.runs[0].frozen, "decoder": "that of adversarial"}


def test_meanflow_alone_needs_a_decoder(tmp_path: Path, plan: Plan, config: ConfigDict) -> None:
    (tmp_path / "understanding" / "checkpoints" / "4").mkdir(parents=True)
    config.stages = ("meanflow",)
    with pytest.raises(UserError, match="meanflow needs a finished generation, which is at step 0"):
        run(config, tmp_path)


def test_generation_reads_codes_from_disk(
    tmp_path: Path,
    tiny_model: Path,
    plan: Plan,
    config: ConfigDict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    monkeypatch.setattr(stages, "TokenSource", lambda *given: opened.append(given) or "tokens")
    config.update(stages=("generation",), init_from=str(tiny_model))
    config.data.tokens = "codes"
    run(config, tmp_path)
    assert opened == [("codes", gac_jax.load(tiny_model).fingerprint)]
    for batches in (plan.runs[0].train_batches, plan.runs[0].validation_batches):
        assert batches.keywords["tokens"] == "tokens"


def test_understanding_starts_from_another_model(
    tmp_path: Path, tiny_model: Path, plan: Plan, config: ConfigDict
) -> None:
    config.init_from = str(tiny_model)
    run(config, tmp_path)
    params = model_folder.load(tiny_model)[1]
    assert_same(plan.runs[0].start, {part: params[part] for part in ("encoder", "quantizer")})
    assert plan.runs[0].frozen == {} and plan.runs[1].start == {}
    assert plan.runs[1].frozen["encoder"] == "encoder of understanding"


def test_understanding_starts_from_whisper(
    tmp_path: Path, plan: Plan, config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"width": 16, "depth": 2, "num_heads": 2, "num_mels": 80}
    whisper = {"norm": {"scale": np.ones(16)}}
    monkeypatch.setattr(stages, "load_whisper_encoder", lambda folder: (sizes, whisper))
    config.whisper = "whisper"
    run(config, tmp_path)
    assert plan.runs[0].start == {"encoder": {"semantic": whisper}} and plan.runs[1].start == {}
    config.encoder.depth = 3
    with pytest.raises(UserError, match="^whisper: Whisper has .*'depth': 2.* config.encoder is"):
        run(config, tmp_path)


def test_generation_goes_on_from_the_decoder_of_another_model_where_it_fits(
    tmp_path: Path, tiny_model: Path, plan: Plan, config: ConfigDict
) -> None:
    config.decoder_from = str(tiny_model)
    config.decoder.band_groups = 5  # the filters of ten have no place
    run(config, tmp_path)
    decoder = model_folder.load(tiny_model)[1]["decoder"]
    del decoder["neighbours"]
    assert_same(plan.runs[1].start, {"decoder": decoder})
    assert plan.runs[0].start == {}
    config.decoder.update(width=48, head_dim=12)  # nothing fits any more
    config.decoder.bins = 320
    with pytest.raises(UserError, match="^config.decoder_from: nothing of the decoder of"):
        run(config, tmp_path)


def put(path: str, value: Any) -> Callable[[ConfigDict], None]:
    """Sets a field, new or not."""

    def put_there(config: ConfigDict) -> None:
        *sections, name = path.split(".")
        for section in sections:
            config = config[section]
        config[name] = value

    return put_there


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages", ("understnding",), "config.stages is .*understnding"),
        ("stages", ("generation", "understanding"), "config.stages is"),
        ("stages", ("understanding", "meanflow"), "config.stages is"),
        ("stages", ("distillation",), "config.stages is"),
        ("stages", (), "config.stages is"),
        ("encoder.widht", 3, "widht"),
        ("quantizer.widht", 3, "widht"),
        ("decoder.widht", 3, "widht"),
        ("mesh.widht", 3, "widht"),
        ("understanding.stepz", 3, "stepz"),
        ("matmul_precision", "float16", "'float16' is none of default, bfloat16, float32"),
        ("understanding.optimizer.b3", 0.1, "b3"),
        ("generation.optimizer.name", "sgd", "optimizer.name must be adamw or muon, not 'sgd'"),
        ("data.tokens", "codes", "config.data.tokens has codes of a finished encoder: name its"),
        ("understanding.objective.wieghts", 0.1, "wieghts"),
        ("understanding.objective.weights.mell", 0.1, "unknown loss terms .'mell'."),
        ("generation.objective.widht", 0.1, "widht"),
        ("adversarial.objective.weights.mell", 0.1, "unknown loss terms .'mell'."),
        ("generation.steps", 0, "steps must be at least 1"),
        ("generation.crop_frames", 24, "generation.crop_frames 24 is no multiple of 16"),
        ("generation.batch_size", 12, "8 devices cannot share generation.batch_size 12"),
        ("mesh.data", 3, "does not use 8 devices"),
        ("data.domain_weights.spech", 1.0, "config.data.domain_weights: 'spech' is none of speech"),
        ("sampling.storage", "int4", "config.sampling.storage: 'int4' is none of float32"),
        ("sampling.solver", "rk4", "config.sampling.solver: 'rk4' is none of euler"),
        ("decoder_from", "/nowhere", "/nowhere: no such model"),
        ("data.root", "/nowhere", "/nowhere: no such folder or manifest"),
        ("init_from", "/nowhere", "/nowhere: no such model"),
        ("whisper", "/nowhere", "/nowhere/config.json: no such file"),
    ],
)
def test_a_mistake_in_the_config_is_told_before_any_work(
    tmp_path: Path, plan: Plan, config: ConfigDict, path: str, value: Any, message: str
) -> None:
    config.stages = stages.STAGES
    put(path, value)(config)
    with pytest.raises(UserError, match=message) as error:
        run(config, tmp_path)
    assert "\n" not in str(error.value) and plan.runs == []


@pytest.mark.parametrize("place", ["file", "file/below", "/proc"])
def test_a_workdir_that_cannot_be_written_is_refused(
    tmp_path: Path, plan: Plan, config: ConfigDict, place: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=f"{place}: not a folder to write to .* another workdir"):
        run(config, tmp_path / place)
    assert plan.runs == []
