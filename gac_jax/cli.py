"""How every command line starts and ends: one clear line for a user's mistake, exit code 2."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from gac_jax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a share of it, a file


def run(main: Callable[[], None]) -> None:
    """Parses flags and runs `main`.

    Exit codes: 0 done; 2 a mistake in flags, files or audio, told in one line on stderr;
    130 and 143 stopped by Ctrl-C or SIGTERM.
    """
    signal.signal(signal.SIGTERM, _terminate)
    # JAX and Orbax tell every step otherwise; --verbosity changes it.
    logging.set_verbosity(logging.WARNING)
    app.run(lambda _: _guard(main), flags_parser=_parse)


def use_compilation_cache() -> None:
    """Keeps compiled programs for the next run; a run that finds its own starts in seconds.

    They lie in the user's cache folder, by version of JAX. One that JAX_COMPILATION_CACHE_DIR
    names is used instead. Call this before anything is compiled.
    """
    import jax  # late: flags and --help work without it

    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(home, "gac_jax", f"jax-{jax.__version__}")
    # The XDG specification ignores relative paths; ~ is left where there is no home.
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or not folder.is_absolute():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a cache only saves time: without one, say on a read-only disk, all works
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def fail(*messages: str) -> None:
    """Prints messages to stderr, one line each, and exits with code 2."""
    for message in messages:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if _in_group():
        _leave(2)
    sys.exit(2)


class _Terminated(BaseException):
    """SIGTERM, as an exception: it lets `with` statements remove what is half written."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _leave(code: int) -> NoReturn:
    """Exits at once: XLA may still be computing, and would crash in an interpreter that ends."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _in_group() -> bool:
    """Whether other processes compute with this one.

    One that ends by itself, on an error, must then end at once: JAX would wait at the exit for the
    others, and they for it.
    """
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        for name in flags.FLAGS:
            # A configuration file that is missing fails only where it is used. Use it.
            hasattr(flags.FLAGS[name].value, "lock")
    except flags.Error as error:
        fail(f"{error} (--help lists the flags)")
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # config_flags lets errors of a configuration file and of its fields through as they are.
        fail(f"--config: {_innermost(error)}")
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r} (--help lists the flags)")
    return rest


def _innermost(error: BaseException) -> object:
    """What an error says; ml_collections wraps the KeyError of an unknown field in another."""
    inner = error.args[0] if error.args else None
    if isinstance(inner, BaseException):
        return _innermost(inner)
    return f"no such field: {inner}" if isinstance(error, KeyError) else error


def _guard(main: Callable[[], None]) -> None:
    try:
        main()
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        _leave(130)
    except _Terminated:
        _leave(143)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            fail(f"{error.filename or 'output'}: {error.strerror}; make room, then run again")
        if not _in_group():
            raise
        traceback.print_exc()
        _leave(1)
