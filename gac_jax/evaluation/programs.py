"""Codecs that are programs of their own, run on files in a folder that is theirs alone."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from gac_jax.errors import UserError
from gac_jax.rates import SAMPLE_RATE
from gac_jax.signal.audio_io import resample

# Coded bits of a frame of Codec 2, and samples at 8 kHz that it covers and comes late by. The
# delays were measured: the shift at which the log spectra of 20 clips of speech differ least.
CODEC2 = {
    "3200": (64, 160, 160),
    "2400": (48, 160, 160),
    "1600": (64, 320, 160),
    "1400": (56, 320, 160),
    "1300": (52, 320, 160),
    "1200": (48, 320, 160),
    "700C": (28, 320, 240),
    "450": (18, 320, 240),
}
CODEC2_RATE = 8_000
AAC_DELAY = 1_024  # samples that its first frame holds before the first of the recording


@dataclasses.dataclass(frozen=True)
class Program:
    """A pair of commands; see `gac_jax.evaluation.systems.System`.

    Times are those of whole processes, reading and writing files included.

    Attributes:
      name: of the system.
      encoding: command with {in} and {bits} for files.
      decoding: command with {bits} and {out}.
      package: of Debian, that has the programs; "" if unknown.
      rate: of {in} in hertz, and of {out} where that is raw.
      delay: samples at `rate` by which the output comes late, and which are cut off.
      raw: files hold 16-bit samples and no header, not WAV.
    """

    name: str
    encoding: str
    decoding: str
    package: str = ""
    rate: int = SAMPLE_RATE
    delay: int = 0
    raw: bool = False

    concurrent = True

    def __post_init__(self) -> None:
        """Looks for the programs.

        Raises:
          UserError: one is not installed, or a quotation does not end.
        """
        for command in (self.encoding, self.decoding):
            try:
                program = shlex.split(command)[0]
            except ValueError as error:
                raise UserError(f"{self.name}: {command}: {error}") from error
            if shutil.which(program) is None:
                package = f"the Debian package {self.package}" if self.package else "it"
                raise UserError(f"{self.name}: the program {program} is missing: install {package}")

    @property
    def parameters(self) -> Mapping[str, int]:
        """None: see `System`."""
        return {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """The commands."""
        return {"encoding": self.encoding, "decoding": self.decoding}

    def encode(self, wave: np.ndarray) -> bytes:
        """The coded file.

        Raises:
          UserError: the program failed.
        """
        samples = np.clip(resample(wave, SAMPLE_RATE, self.rate), -1, 1)
        with tempfile.TemporaryDirectory() as folder:
            paths = _paths(folder)
            kind = "RAW" if self.raw else "WAV"
            soundfile.write(paths["in"], samples, self.rate, "PCM_16", format=kind)
            _run(self.encoding, paths)
            return paths["bits"].read_bytes()

    def decode(self, data: bytes, num_samples: int) -> np.ndarray:
        """What the program makes of the file, in step with the original.

        Raises:
          UserError: the program failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            paths = _paths(folder)
            paths["bits"].write_bytes(data)
            _run(self.decoding, paths)
            samples, rate = self._read(paths["out"])
        wave = resample(samples.mean(axis=1), rate, SAMPLE_RATE)
        wave = wave[self.delay * SAMPLE_RATE // self.rate :][:num_samples]
        return np.pad(wave, (0, num_samples - len(wave)))

    def _read(self, path: Path) -> tuple[np.ndarray, int]:
        header: dict[str, Any] = {}
        if self.raw:
            header = dict(samplerate=self.rate, channels=1, format="RAW", subtype="PCM_16")
        try:
            return soundfile.read(path, dtype="float32", always_2d=True, **header)
        except soundfile.SoundFileError as error:
            raise UserError(f"{shlex.split(self.decoding)[0]} wrote no audio") from error


@dataclasses.dataclass(frozen=True)
class Codec2(Program):
    """Codec 2, its bits packed without gaps: its own files round each frame up to whole bytes.

    Attributes:
      frame_bits: bits of a frame.
      frame_samples: at 8 kHz.
    """

    frame_bits: int = 0
    frame_samples: int = 0

    def encode(self, wave: np.ndarray) -> bytes:
        """Frames enough for the last sample to come out in spite of the delay."""
        padding = (self.delay + self.frame_samples - 1) * SAMPLE_RATE // self.rate
        bits = np.frombuffer(super().encode(np.pad(wave, (0, padding))), np.uint8)
        return np.packbits(bits).tobytes()

    def decode(self, data: bytes, num_samples: int) -> np.ndarray:
        """See `Program.decode`."""
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        whole = len(bits) // self.frame_bits * self.frame_bits
        return super().decode(bits[:whole].tobytes(), num_samples)


def opus(rate: str) -> Program:
    """Opus in frames of 60 ms: for files, where delay does not count and headers do."""
    kbps = _kbps("opus", rate, 6, 256)
    options = "--quiet --discard-comments --padding 0 --framesize 60"
    return Program(
        f"opus@{kbps:g}",
        f"opusenc {options} --bitrate {kbps:g} {{in}} {{bits}}",
        "opusdec --quiet --rate 48000 {bits} {out}",
        "opus-tools",
    )


def codec2(mode: str) -> Codec2:
    """Codec 2 in one of its modes, named after bits per second."""
    if mode not in CODEC2:
        raise UserError(f"codec2@{mode}: the modes are {', '.join(CODEC2)}")
    frame_bits, frame_samples, delay = CODEC2[mode]
    return Codec2(
        f"codec2@{mode}",
        f"c2enc {mode} {{in}} {{bits}} --bitperchar",
        f"c2dec {mode} {{bits}} {{out}} --bitperchar",
        "codec2",
        CODEC2_RATE,
        delay,
        raw=True,
        frame_bits=frame_bits,
        frame_samples=frame_samples,
    )


def mp3(rate: str) -> Program:
    """MP3 by LAME; its decoder takes off the delay that the file states."""
    return _ffmpeg("mp3", rate, "libmp3lame", "mp3", 0)


def aac(rate: str) -> Program:
    """AAC-LC by ffmpeg's own encoder, in ADTS."""
    return _ffmpeg("aac", rate, "aac", "adts", AAC_DELAY)


def _ffmpeg(kind: str, rate: str, encoder: str, container: str, delay: int) -> Program:
    kbps = _kbps(kind, rate, 8, 160)
    return Program(
        f"{kind}@{kbps:g}",
        f"ffmpeg -v error -i {{in}} -c:a {encoder} -b:a {kbps:g}k -f {container} {{bits}}",
        "ffmpeg -v error -i {bits} {out}",
        "ffmpeg",
        16_000 if kbps < 32 else SAMPLE_RATE,  # MPEG-1 has no lower rate than 32 kbit/s
        delay,
    )


PROGRAMS: Mapping[str, Callable[[str], Program]] = {
    "opus": opus,
    "codec2": codec2,
    "mp3": mp3,
    "aac": aac,
}


def external(text: str) -> Program:
    """Any program, from cmd:NAME:ENCODE {in} {bits}:DECODE {bits} {out}.

    {in} is a 16-bit WAV, mono at 32 kHz; {out} is to be audio of any rate and number of channels.

    Raises:
      UserError: a part or a file is not named, or a program is missing.
    """
    parts = text.split(":", 3)
    if len(parts) == 4 and parts[1]:
        _, name, encoding, decoding = parts
        if all(file in encoding for file in ("{in}", "{bits}")) and all(
            file in decoding for file in ("{bits}", "{out}")
        ):
            return Program(name, encoding, decoding)
    raise UserError(
        f"{text}: not of the form cmd:NAME:ENCODE {{in}} {{bits}}:DECODE {{bits}} {{out}}"
    )


def _kbps(kind: str, rate: str, low: float, high: float) -> float:
    try:
        kbps = float(rate)
    except ValueError:
        kbps = 0.0
    if not low <= kbps <= high:
        raise UserError(f"{kind}@{rate}: give a rate of {low} .. {high} kbit/s")
    return kbps


def _paths(folder: str) -> dict[str, Path]:
    # opusdec writes a header only to names in .wav, and c2enc one only to names in .c2.
    return {
        "in": Path(folder, "in.wav"),
        "bits": Path(folder, "bits"),
        "out": Path(folder, "out.wav"),
    }


def _run(command: str, paths: Mapping[str, Path]) -> None:
    words = shlex.split(command)
    for name, path in paths.items():
        words = [word.replace(f"{{{name}}}", str(path)) for word in words]
    result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(": ".join([f"{words[0]} ended with code {result.returncode}", *said]))
