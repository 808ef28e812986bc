"""Makes utterances with texts that a crop of stage 1 can hold, as docs/training.md measures them.

    python benchmarks/text_corpus.py --manifest=MANIFEST --recogniser=FOLDER \
        --transcribe=librispeech,ljspeech --sentences=FILE --output=DIR

Writes DIR/manifest.csv with

- pieces of at most --seconds of the clips whose source begins with a word of --transcribe, cut
  between words and with texts by the recogniser (a Whisper model for CTranslate2; needs the package
  faster-whisper);
- clips whose source begins with a word of --keep, without the silence around them;
- each line of --sentences, spoken by flite or espeak-ng (Debian packages of these names) in a
  voice, speed and pitch drawn for it;
- all clips of the manifest, without their texts; labels stay for sources in --labels.
"""

from __future__ import annotations

import csv
import dataclasses
import random
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
from absl import app, flags
from tqdm import tqdm

from gac_jax.data.sources import CLIP_FIELDS, Clip, open_source
from gac_jax.rates import SAMPLE_RATE
from gac_jax.signal.audio_io import to_mono_32k

_MANIFEST = flags.DEFINE_string("manifest", None, "Clips to begin with.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the corpus.", required=True)
_RECOGNISER = flags.DEFINE_string("recogniser", "", "Folder of a Whisper model for CTranslate2.")
_TRANSCRIBE = flags.DEFINE_list("transcribe", [], "Sources to transcribe.")
_KEEP = flags.DEFINE_list("keep", [], "Sources whose texts are right.")
_LABELS = flags.DEFINE_list("labels", [], "Sources whose labels are heard.")
_SENTENCES = flags.DEFINE_string("sentences", "", "File of sentences to speak, one a line.")
_SECONDS = flags.DEFINE_float("seconds", 2.85, "Most of an utterance.", 0.5)

MARGIN = 0.08  # seconds around words
SURE = 0.5  # least probability of each word of a piece
VOICES = [
    *(("flite", voice) for voice in ("slt", "rms", "awb") for _ in range(4)),
    *(("espeak-ng", voice) for voice in ("en-us", "en-gb", "en-us+f2", "en-us+f4", "en-us+m3")),
    *(("espeak-ng", voice) for voice in ("en-us+m7", "en-gb-x-rp", "en-gb-scotland", "en-gb+m2")),
]

Utterance = tuple[Clip, np.ndarray]


def main(_: list[str]) -> None:
    """Makes the corpus."""
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    # A recording without a speaker is one of its own: all its pieces are held out, or none.
    clips = [
        dataclasses.replace(clip, speaker=clip.speaker or clip.path)
        for clip in open_source(_MANIFEST.value).clips
    ]
    with (output / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CLIP_FIELDS)
        writer.writeheader()
        for clip, wave in (*pieces(clips), *trimmed(clips), *spoken()):
            if len(wave) <= _SECONDS.value * SAMPLE_RATE:
                target = output / clip.path
                target.parent.mkdir(exist_ok=True)
                soundfile.write(target, wave, SAMPLE_RATE, subtype="PCM_16")
                writer.writerow(_row(dataclasses.replace(clip, dur_s=len(wave) / SAMPLE_RATE)))
        for clip in clips:
            label = clip.label if _is_of(clip, _LABELS.value) else ""
            path = str(Path(str(clip.audio)).resolve())
            writer.writerow(_row(dataclasses.replace(clip, path=path, text="", label=label)))


def pieces(clips: Sequence[Clip]) -> Iterator[Utterance]:
    """Cuts clips between words, at lengths drawn evenly up to the longest."""
    wanted = [clip for clip in clips if _is_of(clip, _TRANSCRIBE.value)]
    if not wanted:
        return
    from faster_whisper import WhisperModel  # the extra "eval"

    model, rng = WhisperModel(_RECOGNISER.value, device="cpu"), random.Random(1)
    for clip in tqdm(wanted, desc="transcribing"):
        wave = _read(clip)
        segments, _ = model.transcribe(
            str(clip.audio), language="en", beam_size=1, word_timestamps=True
        )
        words = [word for segment in segments for word in segment.words]
        while words:
            longest = rng.uniform(0.5, 1.0) * _SECONDS.value - 2 * MARGIN
            count = sum(word.end - words[0].start < longest for word in words) or 1
            some, words = words[:count], words[count:]
            text = _plain("".join(word.word for word in some))
            if text and min(word.probability for word in some) > SURE:
                start, end = some[0].start - MARGIN, some[-1].end + MARGIN
                part = wave[max(0, int(start * SAMPLE_RATE)) : int(end * SAMPLE_RATE)]
                name = f"pieces/{Path(clip.path).stem}-{round(start * 1000):06d}.wav"
                yield dataclasses.replace(clip, path=name, text=text, label=""), part


def trimmed(clips: Sequence[Clip]) -> Iterator[Utterance]:
    """Takes the silence off clips with texts."""
    for clip in tqdm([c for c in clips if c.text and _is_of(c, _KEEP.value)], desc="trimming"):
        name = f"trimmed/{clip.source}-{Path(clip.path).stem}.wav"
        yield dataclasses.replace(clip, path=name, text=_plain(clip.text)), _trim(_read(clip))


def spoken() -> Iterator[Utterance]:
    """Has sentences spoken."""
    if not _SENTENCES.value:
        return
    lines = Path(_SENTENCES.value).read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        for i, text in enumerate(tqdm(lines, desc="speaking")):
            speaker, wave = _speak(text, random.Random(i), Path(folder, "spoken.wav"))
            clip = Clip(f"spoken/{i:06d}.wav", "speech", _plain(text), "", speaker, "en")
            yield dataclasses.replace(clip, licence="synthetic", source="spoken"), _trim(wave)


def _speak(text: str, rng: random.Random, file: Path) -> tuple[str, np.ndarray]:
    program, voice = rng.choice(VOICES)
    if program == "flite":
        how = ["--setf", f"duration_stretch={rng.uniform(0.75, 1.15):.2f}", "-t", text, "-o", file]
        command = [program, "-voice", voice, *how]
    else:
        how = ["-s", str(rng.randint(150, 220)), "-p", str(rng.randint(30, 70)), "-w", file, text]
        command = [program, "-v", voice, *how]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    wave, rate = soundfile.read(file, dtype="float32")
    return f"{program} {voice}", to_mono_32k(wave, rate)


def _read(clip: Clip) -> np.ndarray:
    with clip.open() as file:
        samples = file.read(dtype="float32", always_2d=True).mean(axis=1)
        return to_mono_32k(samples, file.samplerate)


def _trim(wave: np.ndarray) -> np.ndarray:
    """Cuts off what is 30 dB below the loudest 20 ms, but for 50 ms before and 100 ms after."""
    level = np.sqrt(np.convolve(np.square(wave), np.ones(640) / 640, "same"))
    loud = np.flatnonzero(level > 0.03 * level.max(initial=0.0))
    return wave[max(0, loud[0] - 1600) : loud[-1] + 3200] if len(loud) else wave


def _plain(text: str) -> str:
    """Lower-case letters and apostrophes; digits, which can be spoken in several ways, end all."""
    return (
        "" if re.search(r"\d", text) else " ".join(re.sub(r"[^a-z']+", " ", text.lower()).split())
    )


def _is_of(clip: Clip, sources: Sequence[str]) -> bool:
    return clip.source.startswith(tuple(sources)) if sources else False


def _row(clip: Clip) -> dict[str, object]:
    return {name: getattr(clip, name) for name in CLIP_FIELDS}


if __name__ == "__main__":
    app.run(main)
