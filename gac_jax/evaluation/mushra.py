"""A listening test by ITU-R BS.1534-3 (MUSHRA) of what an evaluation decoded, for webMUSHRA.

configs/NAME.yaml            the test: a training page, then a page for each clip
configs/NAME/CLIP/STIMULUS.wav

Laid over a copy of webMUSHRA (audiolabs/webMUSHRA on GitHub, which has a licence of its own), that
is a test to be opened with ?config=NAME.yaml. Assessors rate, blindly and against the open
reference, every system, the reference itself, and the reference without what lies above 3.5 and
7 kHz. Domains come in random order, and so do the clips of a domain and the stimuli of a page.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import fftconvolve, firwin, kaiserord
from tqdm import tqdm

from gac_jax import atomic
from gac_jax.errors import UserError
from gac_jax.evaluation.assessors import TRAINING
from gac_jax.evaluation.clips import Reference, read_references
from gac_jax.evaluation.folder import Folder
from gac_jax.evaluation.systems import REFERENCE
from gac_jax.metrics.signal import QUIETEST_LUFS, loudness
from gac_jax.rates import SAMPLE_RATE
from gac_jax.signal.audio_io import AudioWriter, read_audio

NAME = "gac"
ANCHORS = {"anchor35": 3500.0, "anchor70": 7000.0}  # Hz; the names that webMUSHRA has for them
MAX_SYSTEMS = 12 - 1 - len(ANCHORS)  # BS.1534-3: at most 12 stimuli, hidden ones included
MAX_SECONDS = 12.0  # likewise, and webMUSHRA refuses more
LOUDNESS = -23.0  # LUFS
PEAK = 0.9  # of full scale; a page that would exceed it is made softer as a whole

_TRANSITION = 500.0  # Hz, and 60 dB; the standard asks for 25 dB at 4 kHz, 50 dB at 4.5 kHz
_ATTENUATION = 60.0
_FADE = SAMPLE_RATE // 100  # samples, at the end of a clip that is cut
_WELCOME = (
    "<p>You will hear short clips of speech, sounds and music. On each page, compare every item "
    "with the reference and rate its basic audio quality: any difference from the reference "
    "counts. 100 means no difference at all. One of the items is the reference itself; rate at "
    "least one item 100.</p><p>Use headphones in a quiet room.</p>"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is put into a listening test.

    Attributes:
      folder: of the evaluation.
      clips: by domain.
      systems: names.
    """

    folder: Folder
    clips: list[Reference]
    systems: list[str]


def plan(systems_dir: Path, systems: Sequence[str], limit: int) -> Plan:
    """Chooses clips and systems, and checks that all of the audio is there.

    Args:
      systems_dir: output folder of an evaluation.
      systems: names; none takes all that there are.
      limit: most clips of each domain; 0 is all.

    Raises:
      UserError: no evaluation, no systems, more than a page may have, or audio that is missing.
    """
    folder = Folder(systems_dir)
    if not folder.clips.is_file():
        raise UserError(f"{folder.clips}: does not exist; give the --output of gac_jax.evaluate")
    by_domain = groupby(
        sorted(read_references(folder).values(), key=lambda c: (c.clip.domain, c.id)),
        key=lambda c: c.clip.domain,
    )
    clips = [clip for _, members in by_domain for clip in list(members)[: limit or None]]
    found = {path.stem for clip in clips for path in folder.wave(clip.id).parent.glob("*.wav")}
    names = list(systems) or sorted(found - {REFERENCE})
    if not names or len(names) > MAX_SYSTEMS:
        raise UserError(
            f"{systems_dir}: {len(names)} systems, and a page has 1 to {MAX_SYSTEMS} beside "
            "reference and anchors; choose some with --systems"
        )
    for clip in clips:
        for path in (folder.wave(clip.id, name) for name in (REFERENCE, *names)):
            if not path.is_file():
                raise UserError(
                    f"{path}: does not exist; run gac_jax.evaluate to its end, or "
                    "leave the system out with --systems"
                )
    return Plan(folder, clips, names)


def export(chosen: Plan, output: Path, seconds: float) -> Path:
    """Writes a listening test; the configuration comes last, when all of its audio is there.

    Args:
      chosen: clips and systems.
      output: folder to lay over webMUSHRA.
      seconds: most of a clip to play, up to `MAX_SECONDS`.

    Returns:
      The configuration file.

    Raises:
      UserError: audio that cannot be read, or that is not as long as its reference.
    """
    pages: dict[str, list[dict[str, Any]]] = {}
    for clip in tqdm(chosen.clips, leave=False, disable=None):
        waves = _read(chosen, clip, round(seconds * SAMPLE_RATE))
        paths = {}
        for name, wave in stimuli(waves).items():
            paths[name] = f"configs/{NAME}/{clip.id}/{name}.wav"
            _write(output / paths[name], wave)
        page = _page(f"{clip.clip.domain}:{clip.id}", "Rate the items", paths)
        pages.setdefault(clip.clip.domain, []).append(page)
    path = output / "configs" / f"{NAME}.yaml"
    atomic.write(path, "".join(line + "\n" for line in _yaml(_test(pages))).encode())
    return path


def stimuli(waves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Brings all to one loudness and adds the anchors.

    Args:
      waves: (S,) float32 at 32 kHz of one clip, `REFERENCE` among them.

    Returns:
      (S,) float32 each, within `PEAK`. What is silent stays so. Anchors are the reference at its
      new level, with nothing changed but its band.
    """
    levelled = {name: _level(wave) for name, wave in waves.items()}
    for name, edge in ANCHORS.items():
        levelled[name] = low_pass(levelled[REFERENCE], edge)
    loudest = max(float(np.max(np.abs(wave))) for wave in levelled.values())
    gain = np.float32(min(1.0, PEAK / loudest)) if loudest else np.float32(1)
    return {name: gain * wave for name, wave in levelled.items()}


def low_pass(wave: np.ndarray, edge: float) -> np.ndarray:
    """Leaves out what lies above a frequency, without delay.

    Flat within 0.02 dB up to `edge`, 60 dB down from 500 Hz above it.

    Args:
      wave: (S,) float32 at 32 kHz.
      edge: Hz.

    Returns:
      (S,) float32.
    """
    count, beta = kaiserord(_ATTENUATION, _TRANSITION / (SAMPLE_RATE / 2))
    taps = firwin(count | 1, edge + _TRANSITION / 2, window=("kaiser", beta), fs=SAMPLE_RATE)
    padded = np.pad(wave.astype(np.float64), len(taps) // 2)
    return fftconvolve(padded, taps, mode="valid").astype(np.float32)


def _read(chosen: Plan, clip: Reference, limit: int) -> dict[str, np.ndarray]:
    """The start of a clip, by system."""
    waves: dict[str, np.ndarray] = {}
    for name in (REFERENCE, *chosen.systems):
        path = chosen.folder.wave(clip.id, name)
        wave = read_audio(path)
        if len(wave) != len(waves.get(REFERENCE, wave)):
            raise UserError(f"{path}: is not as long as its reference; decode it again")
        waves[name] = wave
    return {name: _cut(wave, limit) for name, wave in waves.items()}


def _cut(wave: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` samples, faded out where something was cut off."""
    if len(wave) <= limit:
        return wave
    fade = np.linspace(1, 0, min(_FADE, limit), dtype=np.float32)
    start, end = np.split(wave[:limit], [limit - len(fade)])
    return np.concatenate([start, end * fade])


def _level(wave: np.ndarray) -> np.ndarray:
    found = loudness(wave)
    return wave if found <= QUIETEST_LUFS else wave * np.float32(10 ** ((LOUDNESS - found) / 20))


def _write(path: Path, wave: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with AudioWriter(path) as writer:
        writer.write(wave)


def _test(pages: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """A configuration, as doc/experimenter.md of webMUSHRA describes it."""
    first = next(iter(pages.values()))[0]
    sample, training = first["reference"], {**first, "id": TRAINING, "name": "Training"}
    return {
        "testname": "Listening test",
        "testId": NAME,
        "bufferSize": 2048,
        "stopOnErrors": True,
        "showButtonPreviousPage": True,
        "remoteService": "service/write.php",
        "pages": [
            {"type": "generic", "id": "welcome", "name": "Welcome", "content": _WELCOME},
            {"type": "volume", "id": "volume", "name": "Volume", "stimulus": sample}
            | {"content": "Set a comfortable volume and keep it.", "defaultVolume": 0.5},
            training | {"content": "Get to know the items; these ratings do not count."},
            ["random", *(["random", *members] for members in pages.values())],
            {"type": "finish", "name": "Thank you", "content": "Your name or a number, please."}
            | {"showResults": False, "writeResults": True}
            | {"questionnaire": [{"type": "text", "label": "Name", "name": "assessor"}]},
        ],
    }


def _page(id_: str, name: str, paths: Mapping[str, str]) -> dict[str, Any]:
    """A page; webMUSHRA adds the hidden reference, and shuffles."""
    systems = {name: path for name, path in paths.items() if name != REFERENCE}
    return {
        "type": "mushra",
        "id": id_,
        "name": name,
        "content": "",
        "showWaveform": True,
        "enableLooping": True,
        "randomize": True,
        "showConditionNames": False,
        "reference": paths[REFERENCE],
        "createAnchor35": False,
        "createAnchor70": False,
        "stimuli": systems,
    }


def _yaml(test: Mapping[str, Any]) -> Iterator[str]:
    """Lines of YAML, a page each: JSON, which YAML includes, in block lists.

    The parser in webMUSHRA (yamljs) takes neither lists that begin on their parent's line, as
    PyYAML writes them, nor JSON that is broken into lines.
    """
    for key, value in test.items():
        if key == "pages":
            yield "pages:"
            yield from _yaml_list(value, "  ")
        else:
            yield f"{key}: {json.dumps(value)}"


def _yaml_list(items: Sequence[Any], indent: str) -> Iterator[str]:
    for item in items:
        if isinstance(item, list):
            yield f"{indent}-"
            yield from _yaml_list(item, indent + "  ")
        else:
            yield f"{indent}- {json.dumps(item)}"
