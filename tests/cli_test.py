import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from gac_jax import cli
from gac_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

# ml_collections loads a configuration file by a method that Python is going to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Parses a command line of --size (1 to 9) and --config."""
    values = flags.FlagValues()
    flags.DEFINE_integer("size", 1, "A size.", 1, 9, flag_values=values)
    config_flags.DEFINE_config_file("config", None, "A config.", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)

    def parse(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])  # config_flags looks there
        return cli._parse(sys.argv)

    return parse


def python(*lines: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "\n".join(["from gac_jax import cli", *lines])]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_good_flags_parse(parse: Callable[..., list[str]]) -> None:
    parse("--size=3", "--config=configs/tiny.py", "--config.decoder.depth=2")
    assert flags.FLAGS.size == 3 and flags.FLAGS.config.decoder.depth == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sise=2"], "Unknown command line flag 'sise'"),
        (["--size=0"], "--size=0"),
        (["--size=x"], "--size=x"),
        (["--size"], "Missing value for flag --size"),
        (["file.wav"], "unexpected argument 'file.wav'"),
        (["--config=configs/nowhere.py"], "configs/nowhere.py"),
        (
            ["--config=configs/tiny.py", "--config.decoder.dpeth=2"],
            "error: --config: no such field: 'dpeth'",
        ),
        (["--config=configs/tiny.py", "--config.decoder.depth=x"], "config.decoder.depth"),
        (["--config=configs/tiny.py", "--config.decoder=1"], "decoder"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(
    parse: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(*arguments)
    out, err = capfd.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and told in err


def test_a_users_mistake_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("a.wav: \n broken")

    with pytest.raises(SystemExit) as exit_:
        cli._guard(main)
    assert exit_.value.code == 2
    assert capsys.readouterr() == ("", "error: a.wav: broken\n")


def test_several_mistakes_are_told_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.fail("first", "second")
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: first\nerror: second\n"


def test_a_programmers_mistake_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli._guard(lambda: 1 / 0)  # type: ignore[arg-type]  # only its exception matters


def raising(error: Exception) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "w/a.txt"), "w/a.txt: No space left on"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "output: Disk quota exceeded;"),
    ],
)
def test_a_full_disk_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], error: OSError, told: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli._guard(raising(error))
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert err.startswith(f"error: {told}") and err.count("\n") == 1


def test_other_errors_of_files_keep_their_traceback() -> None:
    with pytest.raises(IsADirectoryError):
        cli._guard(raising(IsADirectoryError()))


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("a.wav: broken"), 2, "error: a.wav: broken\n"),
        (ZeroDivisionError("by hand"), 1, "ZeroDivisionError: by hand\n"),
    ],
)
def test_one_of_a_group_does_not_wait_for_the_others_when_it_fails(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    told: str,
) -> None:
    class Left(BaseException):
        pass

    def leave(number: int) -> None:
        raise Left(number)

    assert not cli._in_group()
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Left) as left:
        cli._guard(raising(error))
    assert left.value.args == (code,)
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_lets_with_statements_clean_up_and_is_quiet(name: str, code: int) -> None:
    result = python(
        "import os, signal",
        # A shell's background jobs, such as a CI run may be, start with Ctrl-C ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "def main():",
        f"    try: os.kill(os.getpid(), signal.{name}); signal.pause()",
        "    finally: print('clean')",
        "cli.run(main)",
    )
    assert (result.returncode, result.stdout, result.stderr) == (code, "clean\n", "")


def test_a_closed_pipe_is_quiet() -> None:
    result = python(
        "import os",
        "def main():",
        "    read, write = os.pipe(); os.dup2(write, 1); os.close(write); os.close(read)",
        "    print('nobody hears this', flush=True)",
        "cli.run(main)",
    )
    assert (result.returncode, result.stderr) == (141, "")


def test_programs_are_kept_by_version_of_jax(tmp_path: Path) -> None:
    result = python(
        "import jax",
        "cli.use_compilation_cache()",
        "jax.jit(lambda x: x + 1)(1.0)",
        JAX_COMPILATION_CACHE_DIR="",
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert list((tmp_path / "gac_jax" / f"jax-{jax.__version__}").iterdir())


@pytest.mark.parametrize("home", ["chosen elsewhere", "relative", "/dev/null"])
def test_no_cache_where_none_can_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path) if home == "chosen elsewhere" else home)
    if home != "chosen elsewhere":
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    before = jax.config.values["jax_compilation_cache_dir"]
    cli.use_compilation_cache()
    assert jax.config.values["jax_compilation_cache_dir"] == before
    assert not list(tmp_path.iterdir())
