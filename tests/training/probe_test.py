import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from gac_jax.data.sources import open_source
from gac_jax.errors import UserError
from gac_jax.metrics.findings import Findings
from gac_jax.metrics.reading import Reading
from gac_jax.sharding import AXES
from gac_jax.stages.reading import Reader
from gac_jax.stages.understanding import Understanding
from gac_jax.training import probe as module
from gac_jax.training.checkpoints import Checkpoints
from gac_jax.training.probe import Selection, ask, differences, encode, probe
from gac_jax.training.reader import open_reader
from gac_jax.training.stages import build_task
from gac_jax.training.state import TrainState
from tests import listening, tiny

ALL = Selection("train", rates=(0, 8))
CROP = 4 * 2560
SILENCED = [f"understanding.objective.weights.{term}" for term in ("text", "alignment")]


@pytest.fixture(scope="module", autouse=True)
def quick_programs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", tiny.jit)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, a language model, and a run whose averaged weights alone are not zero."""
    folder = tmp_path_factory.mktemp("probe")
    listening.write_corpus(folder / "corpus")
    listening.write_language_model(folder / "language_model")
    ema = weights(get_config(folder))
    zero = jax.tree.map(jnp.zeros_like, ema)
    state = TrainState(jnp.int32(7), zero, ema, {}, {"seen": jnp.zeros(3)}, jnp.int32(0))
    with Checkpoints(str(folder / "run" / "understanding"), every=1, keep=1) as store:
        store.save(7, state, get_config(folder).to_dict(), force=True)
    return folder


def get_config(folder: Path) -> ConfigDict:
    config = listening.get_config(folder)
    config.matmul_precision = "float32"
    return config


@pytest.fixture
def config(folder: Path) -> ConfigDict:
    return get_config(folder)


def made_task(config: ConfigDict) -> Understanding:
    task = build_task("understanding", config, open_reader(config.language_model))
    assert isinstance(task, Understanding)
    return task


def weights(config: ConfigDict) -> Any:
    """Random, and so that no frame is blank: otherwise some clips would not be heard at all."""
    params = tiny.drawn(made_task(config).init)
    if "adapter" in params:
        params["adapter"]["blank"]["bias"] = jnp.asarray([-9.0], jnp.float32)
    return params


def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh that any batch can be shared by, and for which programs compile sooner."""

    def make_mesh(**sizes: int) -> Mesh:
        kinds = (AxisType.Auto,) * len(AXES)
        return jax.make_mesh((1, 1, 1), AXES, kinds, devices=jax.devices()[:1])

    monkeypatch.setattr(module, "make_mesh", make_mesh)


@pytest.fixture(scope="module")
def found(folder: Path) -> Findings:
    """All clips, on eight devices."""
    return probe(get_config(folder), folder / "run", ALL)


def by_question(findings: Findings, rate: int) -> dict[tuple[str, str], Reading]:
    return {(r.path, r.task): r for r in findings.readings if r.rate == rate}


def test_it_says_what_was_measured(found: Findings, folder: Path) -> None:
    assert found.facts == {
        "config": "smallest",
        "workdir": str(folder / "run"),
        "data": str(folder / "corpus" / "manifest.csv"),
        "step": 7,
        "split": "train",
        "clips": {"speech": 5, "sound": 3, "music": 1},
        "crop_frames": 4,
        "not_as_in_training": [],
    }
    assert found.note == ""


def test_every_frame_of_every_clip_is_counted(found: Findings) -> None:
    """A clip's last piece counts too, unless it is shorter than a frame."""
    frames = {(u.domain, u.codebook): u.frames for u in found.usage}
    assert len(frames) == 4 * 9
    for domain, expected in {"all": 45, "speech": 21, "sound": 19, "music": 5}.items():
        assert {n for (name, _), n in frames.items() if name == domain} == {expected}
    assert all(1 <= u.used <= u.frames for u in found.usage)
    # The codebooks are untrained: five alike frames of music may share a residual code, and none of
    # these clips has a voice for the one of partials.
    told = [u for u in found.usage if u.codebook == "semantic" or u.domain != "music"]
    assert all(u.used > 1 for u in told if u.codebook != "residual 3")


def test_every_text_is_asked_for_that_the_first_piece_holds(found: Findings) -> None:
    for rate in ALL.rates:
        assert {key: r.truth for key, r in by_question(found, rate).items()} == {
            ("speech/0.wav", "transcribe"): "the rain, in the street",
            ("speech/1.wav", "transcribe"): "a dog barks",
            ("speech/2.wav", "transcribe"): "es regnet",
            ("sound/0.wav", "describe"): "dog bark",
            ("sound/1.wav", "describe"): "rain",
            ("sound/2.wav", "transcribe"): "it stops",
            ("sound/2.wav", "describe"): "door",
            ("music/0.wav", "describe"): "slow piano",
        }
    assert by_question(found, 0)["speech/2.wav", "transcribe"].lang == "de"


def test_a_text_that_is_alone_in_its_group_is_not_compared(found: Findings) -> None:
    alone = {key for key, r in by_question(found, 8).items() if math.isnan(r.wrong)}
    assert alone == {("sound/2.wav", "transcribe"), ("music/0.wav", "describe")}


def test_the_others_are_compared_with_the_codes_of_another_clip(found: Findings) -> None:
    compared = [r for r in found.readings if not math.isnan(r.wrong)]
    assert len(compared) == 2 * 6
    assert all(abs(r.wrong - r.right) > 1e-3 * r.right for r in compared)


@pytest.mark.parametrize("rate", ALL.rates)
def test_nats_are_those_of_validation(found: Findings, config: ConfigDict, rate: int) -> None:
    """Of the same clips, in a batch of whole clips as training makes it."""
    questions = [(f"speech/{i}.wav", "transcribe") for i in range(3)]
    questions.append(("sound/0.wav", "describe"))
    opened, task = open_reader(config.language_model), made_task(config)
    assert opened
    source, rows = open_source(config.data.root), []
    for path, _ in questions:
        clip = next(clip for clip in source.clips if clip.path == path)
        wave, _ = soundfile.read(str(clip.audio), dtype="float32")
        wave = wave / np.sqrt(np.mean(np.square(wave)))
        rows.append(
            {
                "wave": np.pad(wave, (0, CROP - len(wave))),
                "num_samples": np.int32(len(wave)),
                "domain": np.int32(path.startswith("sound")),
                **opened.targets.of(clip, True, np.random.default_rng(0)),
            }
        )
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
    params = weights(config)
    memory = task.init_memory(params)
    metrics = jax.jit(task.evaluate)(params, opened.frozen, memory, batch, jax.random.key(0))
    readings = [by_question(found, rate)[key] for key in questions]
    mean = sum(r.right for r in readings) / sum(r.tokens for r in readings)
    assert float(metrics[f"text_right_k{rate}"]) == pytest.approx(mean, rel=1e-4)


def test_an_empty_row_changes_nothing(
    found: Findings, config: ConfigDict, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of three, where the last is filled up."""
    one_device(monkeypatch)
    config.understanding.batch_size = 3
    other = probe(config, folder / "run", ALL)
    assert other.usage == found.usage
    for a, b in zip(other.readings, found.readings, strict=True):
        assert (a.path, a.task, a.rate, a.tokens) == (b.path, b.task, b.rate, b.tokens)
        assert a.right == pytest.approx(b.right, rel=1e-4)
        assert a.wrong == pytest.approx(b.wrong, rel=1e-4, nan_ok=True)


@pytest.fixture(scope="module")
def asked(folder: Path) -> Any:
    """asked(codes, frames, other codes, other frames, rate): what `ask` gives for two rows."""
    config = get_config(folder)
    opened, task, params = open_reader(config.language_model), made_task(config), weights(config)
    assert opened
    clips = [dataclasses.replace(c, label="") for c in open_source(config.data.root).clips[:2]]
    texts = [opened.targets.of(clip, True, np.random.default_rng(0)) for clip in clips]
    batch = {name: np.stack([text[name] for text in texts]) for name in texts[0]}
    program = jax.jit(lambda batch, rate: ask(task, params, opened.frozen, batch, rate, 5))

    def asked(*codes: np.ndarray, rate: int = 8) -> tuple[np.ndarray, ...]:
        names = ("codes", "frames", "other_codes", "other_frames")
        heard = {name: np.asarray(x, np.int32) for name, x in zip(names, codes, strict=True)}
        return jax.device_get(program({**batch, **heard}, np.int32(rate)))

    return asked


def test_wrong_is_what_right_would_be_with_the_other_s_codes(
    asked: Any, rng: np.random.Generator
) -> None:
    codes, frames = rng.integers(16, size=(2, 9, 4)), np.array([4, 2])
    right, wrong, tokens, answer = asked(codes, frames, codes[::-1], frames[::-1])
    swapped, back, _, _ = asked(codes[::-1], frames[::-1], codes, frames)
    np.testing.assert_allclose([wrong, back], [swapped, right], rtol=1e-5)
    assert (abs(right - wrong) > 0.01).all() and (tokens > 3).all() and answer.shape == (2, 5)


def test_a_rate_is_the_residual_codes_that_are_heard(asked: Any, rng: np.random.Generator) -> None:
    codes, frames = rng.integers(16, size=(2, 9, 4)), np.array([4, 2])
    for rate in (0, 2, 8):
        given = codes.copy()
        given[:, 1 + rate :] = 0
        right = asked(codes, frames, given, frames, rate=rate)
        np.testing.assert_allclose(right[0], right[1], rtol=1e-6)
    low, high = (asked(codes, frames, codes, frames, rate=rate)[0] for rate in (0, 8))
    assert (abs(low - high) > 0.01).all()


def test_an_answer_is_what_is_said_before_the_end(
    config: ConfigDict, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_reader(config.language_model)
    assert opened
    words = opened.targets.tokenizer.encode
    ids = jnp.asarray([*words("dog bark"), opened.targets.end, *words("door")], jnp.int32)
    room: list[int] = []

    def answer(self: Reader, *arguments: Any) -> jax.Array:
        room.append(arguments[-1])
        return jnp.tile(ids[None], (arguments[-2]["text"].shape[0], 1))

    one_device(monkeypatch)
    monkeypatch.setattr(Reader, "answer", answer)
    findings = probe(config, folder / "run", Selection("train", rates=(2,)))
    assert {r.answer for r in findings.readings} == {"dog bark"}
    assert {(domain, hits.exact) for _, domain, hits in findings.labels} == {
        ("all", 1 / 4),
        ("sound", 1 / 3),
        ("music", 0.0),
    }
    longest = max(48 - len(opened.targets.suffix(task)) for task in ("transcribe", "describe"))
    assert set(room) == {longest}  # no more than training could teach


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"language_model.path": ""}, "config.language_model.path names no language model"),
        (dict.fromkeys(SILENCED, 0.0), "text and alignment are 0"),
        ({"data.root": ""}, "no clip has a label, or a text"),  # the bundled clips
    ],
)
def test_without_texts_the_codebooks_are_measured_all_the_same(
    config: ConfigDict,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    note: str,
) -> None:
    one_device(monkeypatch)
    config.update_from_flattened_dict(changes)
    findings = probe(config, folder / "run", ALL)
    assert note in findings.note and findings.readings == []
    told = findings.facts["not_as_in_training"]
    fields = [field for field in changes if "weights" not in field]
    assert len(told) == len(fields)
    assert all(f"config.{a} is" in b for a, b in zip(fields, told, strict=True))
    assert {u.codebook for u in findings.usage} >= {"semantic", "residual 8"}
    assert findings.note in findings.report()


def test_what_is_not_as_in_training_is_found(config: ConfigDict) -> None:
    trained = config.to_dict()
    config.understanding.update(crop_frames=8, batch_size=1, steps=9)
    config.language_model.update(prompt="plain", remat=True)
    config.encoder.num_heads = 4  # no shape tells of it
    del trained["matmul_precision"]
    assert differences(config.to_dict(), trained) == [
        "config.encoder.num_heads is 4, was 2",
        "config.language_model.prompt is 'plain', was 'chatml'",
        "config.matmul_precision is 'float32', was None",
        "config.understanding.crop_frames is 8, was 4",
    ]


def test_few_clips(config: ConfigDict, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_device(monkeypatch)
    config.language_model.path = ""
    findings = probe(config, folder / "run", Selection("train", clips=4))
    assert sum(findings.facts["clips"].values()) == 4
    assert len(findings.facts["clips"]) == 3


def test_a_clip_that_cannot_be_read_is_left_out(
    config: ConfigDict, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_device(monkeypatch)
    shutil.copytree(folder / "corpus", tmp_path / "corpus")
    (tmp_path / "corpus" / "speech" / "0.wav").write_bytes(b"no audio")
    config.data.root = str(tmp_path / "corpus" / "manifest.csv")
    config.language_model.path = ""
    findings = probe(config, folder / "run", ALL)
    assert findings.facts["clips"] == {"speech": 4, "sound": 3, "music": 1}
    for path in (tmp_path / "corpus").rglob("*.wav"):
        path.write_bytes(b"no audio")
    with pytest.raises(UserError, match="manifest.csv: none of the clips can be read"):
        probe(config, folder / "run", ALL)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.root", "/nowhere", "/nowhere: no such folder or manifest"),
        ("data.validation_percent", 100.0, "no clip in the split train"),
        ("data.domain_weights.spech", 1.0, "'spech' is none of speech"),
        ("language_model.path", "/nowhere", "/nowhere"),
        ("language_model.prompt", "poem", "poem"),
        ("encoder.widht", 3, "configuration: .*widht"),
        ("mesh.data", 3, "configuration: .*does not use 8 devices"),
        ("understanding.batch_size", 12, "8 devices cannot share understanding.batch_size 12"),
        ("encoder.depth", 3, "checkpoints/7: made by another config: ema/encoder/.*should be"),
        ("init_from", "/nowhere", "/nowhere: no such model"),
    ],
)
def test_a_mistake_in_the_config_is_told_in_one_line(
    config: ConfigDict, folder: Path, field: str, value: Any, message: str
) -> None:
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message) as error:
        probe(config, folder / "run", ALL)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_run_is_told(config: ConfigDict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="understanding: no checkpoint here; name the workdir"):
        probe(config, tmp_path, ALL)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_told_before_the_work(
    config: ConfigDict, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UserError("no jiwer")

    monkeypatch.setattr(module, "error_counter", missing)
    monkeypatch.setattr(module, "load_averages", lambda *_: pytest.fail("worked first"))
    with pytest.raises(UserError, match="no jiwer"):
        probe(config, folder / "run", ALL)


def test_codes_are_those_of_a_sender_whatever_products_training_used() -> None:
    task, rows = tiny.understanding(), tiny.batch()
    params = tiny.drawn(task.init)
    found = []
    for precision in ("float32", "bfloat16"):
        with jax.default_matmul_precision(precision):
            found.append(tiny.jit(lambda p, b: encode(task, p, b)[0])(params, rows))
    np.testing.assert_array_equal(*found)
