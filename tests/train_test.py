import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gac_jax import cli, distributed
from gac_jax.errors import UserError
from gac_jax.training import stages
from gac_jax.training.stop import Interrupted
from tests.commands import load

train = load("gac_jax.train")[0]
ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 200  # seconds for a process to get anywhere; it needs ten on an idle machine

Process = subprocess.Popen[str]
SAID = "cached\njoined (0, 1, 2)\n"  # before it trains


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gac_jax.train", *arguments]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--workdir=w"], "--config"),
        (["--config=tests/config.py"], "--workdir"),
        (["--config=nowhere.py", "--workdir=w"], "nowhere.py"),
        (["--config=tests/config.py", "--workdir=w", "--config.encoder.widht=3"], "widht"),
        (["--config=tests/config.py", "--workdir=w", "--config.seed=x"], "config.seed"),
        (["--config=tests/config.py", "--workdir=w", "--coordinator=host"], "HOST:PORT"),
        (["--config=tests/config.py", "--workdir=w", "--process_id=-1"], "--process_id"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(arguments: list[str], told: str) -> None:
    result = subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert told in result.stderr
    assert not (ROOT / "w").exists()


@pytest.fixture
def run_main(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[Callable], tuple[object, str, str]]:
    """Runs the command with a stand-in for `stages.run`: exit code, stdout and stderr."""
    monkeypatch.setattr(train, "_CONFIG", types.SimpleNamespace(value="the config"))
    monkeypatch.setattr(train, "_WORKDIR", types.SimpleNamespace(value=str(tmp_path)))
    for place, flag in enumerate(("_COORDINATOR", "_NUM_PROCESSES", "_PROCESS_ID")):
        monkeypatch.setattr(train, flag, types.SimpleNamespace(value=place))
    monkeypatch.setattr(distributed, "join", lambda place: print(f"joined {tuple(place)}"))
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: print("cached"))

    def run_main(run: Callable) -> tuple[object, str, str]:
        monkeypatch.setattr(stages, "run", run)
        code: object = 0
        try:
            cli._guard(train.main)
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run_main


def test_it_ends_with_the_model_and_how_to_try_it(run_main: Callable, tmp_path: Path) -> None:
    def run(config: object, workdir: Path) -> Path:
        assert (config, workdir) == ("the config", tmp_path)
        return workdir / "model"

    code, out, err = run_main(run)
    model = tmp_path / "model"
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "cached",
        "joined (0, 1, 2)",
        f"model: {model}",
        f"try:   python -m gac_jax.sample --model={model}",
    ]


def test_a_model_without_a_decoder_makes_tokens(run_main: Callable, tmp_path: Path) -> None:
    code, out, err = run_main(lambda _, workdir: workdir / stages.TOKENIZER)
    assert (code, err) == (0, "")
    assert out.splitlines()[2:] == [
        f"tokenizer: {tmp_path}/tokenizer",
        f"try:   python -m gac_jax.tokenize --out=TOKENS --model={tmp_path}/tokenizer",
    ]


def test_a_process_that_is_not_the_first_does_not_tell_how_it_ends(
    run_main: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    assert run_main(lambda *_: Path("model")) == (0, SAID, "")


def test_a_process_that_is_not_the_first_does_not_tell_that_it_stopped(
    run_main: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise Interrupted("toy: stopped at step 3; run again to go on", signal.SIGTERM)

    monkeypatch.setattr(distributed, "is_first", lambda: False)
    assert run_main(run) == (143, SAID, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_ends_as_its_signal_would(run_main: Callable, number: int) -> None:
    def run(*_: object) -> None:
        raise Interrupted("toy: stopped at step 3; run again to go on", number)

    text = "toy: stopped at step 3; run again to go on\n"
    assert run_main(run) == (128 + number, SAID, text)


def test_a_users_mistake_is_told_in_one_line(run_main: Callable) -> None:
    def run(*_: object) -> None:
        raise UserError("a.wav: broken")

    assert run_main(run) == (2, SAID, "error: a.wav: broken\n")


@pytest.fixture
def start(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[[str], Process]]:
    """Starts training a decoder in a folder, with a checkpoint after every step."""
    processes = []
    # Small programs run in no time however they are compiled; unoptimised they compile in half.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    options = (
        *("--config=tests/config.py", f"--config.init_from={tiny_model}"),
        *("--config.stages=('generation',)", "--config.generation.steps=14"),
        *("--config.generation.save_every=1", "--config.generation.eval_every=1000"),
    )

    def start(name: str) -> Process:
        line = command(*options, f"--workdir={tmp_path / name}")
        processes.append(
            subprocess.Popen(
                line,
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_step(process: Process, workdir: Path, step: int) -> None:
    """Waits until that step or a later one has been saved."""
    deadline = time.monotonic() + PATIENCE
    folder = workdir / "generation" / "checkpoints"
    while not any(p.name.isdigit() and int(p.name) >= step for p in folder.glob("*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE)
def test_a_run_that_is_stopped_and_then_killed_ends_as_an_unbroken_one(
    tmp_path: Path, start: Callable[[str], Process]
) -> None:
    workdir = tmp_path / "broken"
    process = start("broken")
    wait_for_step(process, workdir, 2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    stopped = re.fullmatch(r"generation: stopped at step (\d+); run again to go on\n", err)
    assert stopped and "; starts at step 0 of 14\n" in out

    process = start("broken")
    wait_for_step(process, workdir, int(stopped[1]) + 3)
    process.kill()
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert f"; resumes at step {stopped[1]} of 14\n" in out

    for name in ("broken", "unbroken"):
        process = start(name)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        resumed = re.search(r"; resumes at step (\d+) of 14\n", out)
        assert (int(resumed[1]) >= int(stopped[1]) + 3) if resumed else name == "unbroken"
    models = [tmp_path / name / "model" / "weights.safetensors" for name in ("broken", "unbroken")]
    assert models[0].read_bytes() == models[1].read_bytes()
