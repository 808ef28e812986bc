"""Generative audio compression: 32 kHz audio to tokens at 0.175 to 0.975 kbps, and back.

    import gac_jax

    codec = gac_jax.load("mini")
    tokens = codec.encode(wave, sample_rate=44_100, kbps=0.275)
    audio = codec.decode(tokens)  # 32 kHz, float32

Importing the package is cheap: a public name imports its module, and with it JAX where that module
needs JAX, at first use. `UserError` is what every function raises for input a user can mend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gac_jax.bitstream import Tokens
    from gac_jax.codec import Codec, load
    from gac_jax.errors import UserError

__all__ = ["Codec", "Tokens", "UserError", "__version__", "load"]

__version__ = "0.1.0"

_HOMES = {
    "Codec": "gac_jax.codec",
    "Tokens": "gac_jax.bitstream",
    "UserError": "gac_jax.errors",
    "load": "gac_jax.codec",
}


def __getattr__(name: str) -> Any:
    """Imports a public name from its module at first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    """Lists the public names too, whether or not they have been used."""
    return sorted({*globals(), *_HOMES})
