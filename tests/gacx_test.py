from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gac_jax import gacx
from gac_jax.errors import UserError
from tests import echo


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return echo.write(tmp_path_factory.mktemp("gacx") / "echo.gacx")


@pytest.fixture(scope="module")
def decoder(path: Path) -> gacx.Decoder:
    return gacx.Decoder(path)


def copy(path: Path, folder: Path) -> Path:
    (folder / "copy.gacx").write_bytes(path.read_bytes())
    return folder / "copy.gacx"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, record = tmp_path / "a.gacx", {"name": "one", "window": 32}
    path.write_bytes(gacx.to_bytes(record, b"\x00program", echo.WEIGHTS))
    told, program, weights = gacx.read(path)
    assert (told, program) == ({"format": 1, **record}, b"\x00program")
    assert {k: v.dtype for k, v in weights.items()} == {k: v.dtype for k, v in echo.WEIGHTS.items()}
    for name, array in echo.WEIGHTS.items():
        np.testing.assert_array_equal(weights[name], array)


@pytest.mark.parametrize(("frames", "residuals"), [(5, 8), (12, 0), (32, 3), (61, 8), (100, 1)])
def test_every_frame_is_decoded_from_its_codes(
    decoder: gacx.Decoder, frames: int, residuals: int
) -> None:
    tokens = echo.tokens(frames, residuals)
    wave = decoder.decode(tokens, seed=7)
    assert wave.dtype == np.float32
    np.testing.assert_allclose(wave, echo.expected(tokens, 7), rtol=1e-6)


def test_audio_has_the_level_of_its_tokens(decoder: gacx.Decoder) -> None:
    whole = echo.tokens(9)
    quiet = type(whole)(whole.codes, whole.num_samples, whole.levels - 40, whole.fingerprint)
    np.testing.assert_allclose(decoder.decode(quiet), echo.expected(whole) / 10, rtol=1e-6)


def test_tokens_of_another_model_and_seeds_out_of_range_are_refused(decoder: gacx.Decoder) -> None:
    foreign = echo.tokens(3, fingerprint=bytes(range(8)))
    with pytest.raises(UserError, match="made by model 0001020304050607, but 'echo' is 0000"):
        decoder.decode(foreign)
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match="seed must be"):
            decoder.decode(echo.tokens(3), seed)


def test_a_file_for_other_platforms_is_refused(tmp_path: Path) -> None:
    path = echo.write(tmp_path / "a.gacx", platforms=["tpu", "cuda"])
    with pytest.raises(UserError, match=r"a\.gacx: is for tpu, cuda, .* on cpu here"):
        gacx.Decoder(path)


def test_a_file_of_a_later_jax_is_refused(tmp_path: Path) -> None:
    path = echo.write(tmp_path / "a.gacx", jax="99.0.1")
    with pytest.raises(UserError, match=r"made with JAX 99\.0\.1, this is .*; update JAX"):
        gacx.Decoder(path)


def test_a_file_of_a_later_format_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="format 2, this program reads 1"):
        gacx.read(echo.rewritten(copy(path, tmp_path), format=2))


def test_a_changed_record_is_noticed(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="damaged"):
        gacx.read(echo.rewritten(copy(path, tmp_path), window=16))


def test_no_damaged_byte_goes_unnoticed(path: Path, tmp_path: Path) -> None:
    data, target = path.read_bytes(), tmp_path / "a.gacx"
    for place in [*range(0, 900, 9), *range(900, len(data), 200)]:
        damaged = bytearray(data)
        damaged[place] ^= 0x11
        target.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.gacx: "):
            gacx.read(target)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(path: Path, tmp_path: Path, share: float) -> None:
    data = path.read_bytes()
    (tmp_path / "a.gacx").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="no .gacx file, or a damaged one"):
        gacx.read(tmp_path / "a.gacx")


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("decoder")
    save_file({"a": np.zeros(3)}, tmp_path / "weights.safetensors")
    for name, told in {
        "text": "no .gacx file",
        "weights.safetensors": "holds no exported decoder",
        "missing": "cannot be read",
        ".": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=told):
            gacx.read(tmp_path / name)
