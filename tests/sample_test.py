import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import gac_jax
from gac_jax import codec
from gac_jax.bitstream import Tokens
from tests.commands import Result, Run, load, runner

sample, FLAGS = load("gac_jax.sample")
ROOT = Path(__file__).resolve().parents[1]


LOAD_ONCE = functools.cache(codec.load)  # spares the tests tracing the same programs again


@pytest.fixture
def run(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    """Runs the command in this process, in tmp_path, with the tiny model unless told otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(codec, "load", LOAD_ONCE)
    command = sample, FLAGS
    with runner(
        command, monkeypatch, capsys, lambda *a: ["sample", f"--model={tiny_model}", *a]
    ) as call:
        yield call


@pytest.fixture
def clips(tmp_path: Path, rng: np.random.Generator) -> Path:
    """in/talk.wav, 1.3 s of mono, and in/songs/tune.flac, 0.7 s of stereo at 44.1 kHz."""
    folder = tmp_path / "in"
    (folder / "songs").mkdir(parents=True)
    soundfile.write(folder / "talk.wav", 0.1 * rng.standard_normal(41_600), 32_000)
    soundfile.write(folder / "songs" / "tune.flac", 0.1 * rng.standard_normal((30_870, 2)), 44_100)
    return folder


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def assert_refused(result: Result, told: str) -> None:
    """One line that says it, and exit code 2."""
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert told in result.err


def test_roundtrip_of_a_tree(run: Run, clips: Path, tmp_path: Path) -> None:
    result = run("--input=in")
    assert (result.code, result.err) == (0, "")
    assert tree(tmp_path / "gac_out") == {
        *("talk.gac", "talk.wav", "talk.png"),
        *("songs/tune.gac", "songs/tune.wav", "songs/tune.png"),
    }
    lines = [line.split() for line in result.out.splitlines()]
    assert [line[0] for line in lines[:4]] == ["file", "songs/tune.flac", "talk.wav", "total"]
    size = (tmp_path / "gac_out" / "talk.gac").stat().st_size
    assert lines[2][1:4] == ["1.30", str(size), f"{size * 8 / 1300:.3f}"]
    assert soundfile.info(tmp_path / "gac_out" / "songs" / "tune.wav").frames == 22_400
    assert Tokens.from_bytes((tmp_path / "gac_out" / "talk.gac").read_bytes()).kbps == 0.275


def test_encoding_then_decoding_is_the_roundtrip(run: Run, clips: Path, tmp_path: Path) -> None:
    options = ("--seed=3", "--steps=3", "--solver=heun", "--guidance=1.5", "--temperature=0.7")
    assert run("--input=in/talk.wav", "--output=both", "--kbps=0.475", *options).code == 0
    encode = run("--mode=encode", "--input=in/*.wav", "--output=code", "--kbps=0.475")
    decode = run("--mode=decode", "--input=code", "--output=audio", *options)
    assert (encode.code, decode.code) == (0, 0)
    assert (tree(tmp_path / "code"), tree(tmp_path / "audio")) == ({"talk.gac"}, {"talk.wav"})
    for part in ("code/talk.gac", "audio/talk.wav"):
        again = tmp_path / "both" / Path(part).name
        assert (tmp_path / part).read_bytes() == again.read_bytes()
    assert encode.out.splitlines()[1].split()[-1] == "-"  # no decode RTF
    assert decode.out.splitlines()[1].split()[-2] == "-"


@pytest.mark.parametrize(
    "option", ["--seed=1", "--steps=4", "--solver=heun", "--guidance=3", "--temperature=0"]
)
def test_every_sampling_flag_is_heard(run: Run, clips: Path, tmp_path: Path, option: str) -> None:
    run("--mode=encode", "--input=in/talk.wav", "--output=code")
    for output, options in (("plain", ()), ("changed", (option,))):
        assert run("--mode=decode", "--input=code", f"--output={output}", *options).code == 0
    waves = [(tmp_path / output / "talk.wav").read_bytes() for output in ("plain", "changed")]
    assert waves[0] != waves[1]


def test_json_has_the_figures_of_the_table(run: Run, clips: Path, tmp_path: Path) -> None:
    result = run("--mode=encode", "--input=in", "--json=figures/run.json")
    record = json.loads((tmp_path / "figures" / "run.json").read_text())
    for row, line in zip(
        [*record["files"], record["total"]], result.out.splitlines()[1:4], strict=True
    ):
        cells = [row["file"], f"{row['seconds']:.2f}", str(row["bytes"]), f"{row['kbps']:.3f}"]
        assert line.split() == [*cells, f"{row['encode_rtf']:.3f}", "-"]
    assert (record["model"], record["mode"], record["failed"]) == ("random", "encode", {})
    assert record["loading"] > 0 and record["compiling"] >= 0


def test_existing_results_are_replaced_only_on_demand(
    run: Run, clips: Path, tmp_path: Path
) -> None:
    encode = ("--mode=encode", "--input=in")
    assert run(*encode, "--json=a.json").code == 0
    old = (tmp_path / "gac_out" / "talk.gac").read_bytes()
    assert_refused(run(*encode, "--kbps=0.975"), "gac_out/songs/tune.gac: exists; pass --overwrite")
    assert_refused(run(*encode, "--output=b", "--json=a.json"), "a.json: exists")
    assert (tmp_path / "gac_out" / "talk.gac").read_bytes() == old
    assert not (tmp_path / "b").exists()
    assert run(*encode, "--kbps=0.975", "--json=a.json", "--overwrite").code == 0
    assert len((tmp_path / "gac_out" / "talk.gac").read_bytes()) > len(old)


def broken_wave(path: Path, kind: str) -> None:
    tone = np.sin(np.arange(40_000)).astype(np.float32)
    if kind == "nan":
        tone[9_000] = np.nan
    soundfile.write(path, tone[: 0 if kind == "empty" else None], 32_000, subtype="FLOAT")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:50_000])
    if kind == "text":
        path.write_text("Dear Sir or Madam,")


@pytest.mark.parametrize("kind", ["nan", "empty", "truncated", "text"])
@pytest.mark.parametrize("mode", ["roundtrip", "encode"])
def test_bad_audio_is_refused(run: Run, tmp_path: Path, kind: str, mode: str) -> None:
    broken_wave(tmp_path / "bad.wav", kind)
    assert_refused(run(f"--mode={mode}", "--input=bad.wav"), "bad.wav")
    assert tree(tmp_path) == {"bad.wav"}


@pytest.mark.parametrize("kind", ["cut", "flipped", "longer", "text", "empty", "stranger"])
def test_bad_gac_files_are_refused(run: Run, clips: Path, tmp_path: Path, kind: str) -> None:
    run("--mode=encode", "--input=in/talk.wav", "--output=.")
    good = (tmp_path / "talk.gac").read_bytes()
    tokens = Tokens.from_bytes(good)
    other = Tokens(tokens.codes, tokens.num_samples, tokens.levels, b"stranger").to_bytes()
    flipped = good[:-9] + bytes([good[-9] ^ 4]) + good[-8:]
    contents = {"cut": good[:-1], "flipped": flipped, "longer": good + b"\0", "stranger": other}
    (tmp_path / "talk.gac").write_bytes({**contents, "text": b"Dear Sir", "empty": b""}[kind])
    told = "another" if kind == "text" else "talk.gac: "
    assert_refused(run("--mode=decode", "--input=talk.gac", "--output=wav"), told)
    assert not tree(tmp_path / "wav")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--input=nowhere.wav"], "nowhere.wav: no such file or folder"),
        (["--input=empty"], "empty: no audio files in this folder"),
        (["--input=in/*.mp3"], "in/*.mp3: no audio files match"),
        (["--input=in", "--mode=decode"], "in: no .gac files"),
        (["--input=in", "--output=in/talk.wav"], "talk.wav: --output must be a folder"),
        (["--input=in", "--output=in", "--overwrite"], "talk.wav: is an input too"),
        (["--input=in", "--model=nobody"], "nobody: no such model"),
        (["--input=in", "--model=empty"], "empty: no model here"),
        (["--input=in", "--kbps=0.3"], "choose one of 0.175, 0.275, 0.375"),
        (["--input=in", "--kbps=nan"], "choose one of 0.175, 0.275, 0.375"),
        (["--input=in", "--seed=-1"], "--seed=-1"),
        (["--input=in", "--seed=4294967296"], "--seed=4294967296"),
        (["--input=in", "--steps=0"], "--steps=0"),
        (["--input=in", "--guidance=nan"], "--guidance=nan: must be 0 .. 20"),
        (["--input=in", "--guidance=-1"], "--guidance=-1"),
        (["--input=in", "--temperature=nan"], "--temperature=nan: must be 0 .. 2"),
        (["--input=in", "--batch_size=0"], "--batch_size=0"),
        (["--input=in", "--solver=rk4"], "<euler|heun|meanflow>"),
        (["--input=in", "--mode=play"], "<roundtrip|encode|decode>"),
        (["--input=in", "--json=empty"], "empty: is a folder"),
        (["in"], "unexpected argument 'in'"),
    ],
)
def test_mistakes_are_refused_before_work_starts(
    run: Run, clips: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    assert_refused(run(*arguments), told)
    assert tree(tmp_path) == before and not (tmp_path / "gac_out").exists()


def test_the_good_files_are_done_and_each_bad_one_is_told(
    run: Run, clips: Path, tmp_path: Path
) -> None:
    broken_wave(clips / "a.wav", "text")
    broken_wave(clips / "songs" / "b.wav", "nan")
    result = run("--mode=encode", "--input=in", "--json=run.json", "--batch_size=3")
    assert result.code == 2
    assert [line.split()[0] for line in result.out.splitlines()[1:3]] == [
        "songs/tune.flac",
        "talk.wav",
    ]
    told = result.err.splitlines()
    assert len(told) == 2 and "in/a.wav" in told[0] and "in/songs/b.wav" in told[1]
    assert tree(tmp_path / "gac_out") == {"talk.gac", "songs/tune.gac"}
    failed = json.loads((tmp_path / "run.json").read_text())["failed"]
    assert list(failed) == ["in/a.wav", "in/songs/b.wav"]


def test_names_are_taken_as_they_are(run: Run, clips: Path, tmp_path: Path) -> None:
    name = "élan $x^2$ 100% [1.5] 音"
    os.rename(clips / "talk.wav", clips / f"{name}.wav")
    assert run(f"--input=in/{name}.wav").code == 0
    assert tree(tmp_path / "gac_out") == {f"{name}.gac", f"{name}.wav", f"{name}.png"}


def test_the_bundled_clips_are_the_default() -> None:
    default = FLAGS["__flags"]["input"].default
    assert default == str(Path(gac_jax.__file__).parent / "examples")


def test_as_a_command(tiny_model: Path, clips: Path, tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "gac_jax.sample", "--input=in/talk.wav", *arguments]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            line, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    refused = command("--kpbs=0.275")
    assert_refused(Result(refused.returncode, refused.stdout, refused.stderr), "'kpbs'")
    done = command(f"--model={tiny_model}")
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(tmp_path / "gac_out") == {"talk.gac", "talk.wav", "talk.png"}


def test_compressed_files_hold_the_same(
    run: Run, compressing_model: Path, clips: Path, tmp_path: Path
) -> None:
    model = f"--model={compressing_model}"
    encode = (model, "--mode=encode", "--input=in", "--kbps=0.475")
    assert run(*encode, "--output=plain").code == 0
    result = run(*encode, "--output=small", "--compress")
    assert (result.code, result.err) == (0, "")
    sizes = [(tmp_path / "small" / n).stat().st_size for n in ("songs/tune.gac", "talk.gac")]
    assert [int(line.split()[2]) for line in result.out.splitlines()[1:3]] == sizes
    decode = (model, "--mode=decode", "--batch_size=2")
    told = [run(*decode, f"--input={f}", f"--output={f}") for f in ("plain", "small")]
    assert [result.code for result in told] == [0, 0]
    assert [int(line.split()[2]) for line in told[1].out.splitlines()[1:3]] == sizes
    for name in ("songs/tune.wav", "talk.wav"):
        plain, small = (tmp_path / folder / name for folder in ("plain", "small"))
        assert plain.read_bytes() == small.read_bytes()
    less = run(*decode, "--input=small", "--output=less", "--kbps=0.175")
    assert less.code == 0 and (tmp_path / "less" / "talk.wav").stat().st_size > 80_000


def test_compression_takes_a_model_that_can(
    run: Run, compressing_model: Path, clips: Path, tmp_path: Path
) -> None:
    assert_refused(run("--input=in", "--compress"), "'random' has no entropy model to compress")
    assert not list(tmp_path.glob("gac_out/*"))
    model = f"--model={compressing_model}"
    assert run(model, "--mode=encode", "--input=in", "--output=small", "--compress").code == 0
    talk = tmp_path / "small" / "talk.gac"
    refused = run("--mode=decode", f"--input={talk}")
    assert_refused(refused, "has no entropy model to compress with, or to read what is compressed")
    data = talk.read_bytes()
    talk.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    refused = run(model, "--mode=decode", f"--input={talk}", "--output=out")
    assert_refused(refused, "damaged: checksum mismatch")
    assert not list(tmp_path.glob("out/*"))
