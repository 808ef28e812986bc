"""How many words of decoded speech a recogniser still gets right: WER and CER.

| column | of clips | definition |
|---|---|---|
| wer | with a transcript | word errors over words of the transcript, mean of the clips' rates |
| wer_corpus | | all errors over all words |
| cer, cer_corpus | | likewise of characters, without spaces |
| dwer, dcer, ..._corpus | without one | against what the recogniser hears in the original |

Languages written without spaces (Chinese, Japanese, Thai ...) have CER, all others WER. Rates are
in per cent and pass 100 where a recogniser hears more than was said, as it does in noise. The
recogniser's own errors are in them: show the originals' row (the system `identity`) beside them.

Both texts are standardised as in the Whisper paper (Radford et al., 2022, appendix C; package
whisper-normalizer): its English rules for English, its basic rules for all else. Chinese is
brought to simplified characters first (OpenCC, t2s); figures written as digits and as characters
stay different. A clip in a language that the recogniser does not know, or without a word, has none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np

from gac_jax.errors import UserError
from gac_jax.metrics.judges import at_rate, package, weights
from gac_jax.metrics.metric import SPEECH, Column, Excerpt

RATE = 16_000
WITHOUT_SPACES = frozenset({"zh", "yue", "ja", "th", "lo", "km", "my"})
PUBLISHED = (
    "a folder with a Whisper model for CTranslate2 (model.bin, config.json, tokenizer.json), as "
    "Systran publishes them under the name faster-whisper, in --recogniser"
)


class Recogniser(Protocol):
    """Speech to text."""

    def knows(self, language: str) -> bool:
        """Whether it reads a language, a code such as "en"; "" asks it to find out by itself."""
        ...

    def __call__(self, wave: np.ndarray, language: str) -> str:
        """What is said in (S,) float32 at 16 kHz."""
        ...


class Recognition:
    """Error rates of a recogniser on decoded speech."""

    columns = tuple(
        Column(f"{prefix}{rate}{suffix}", f"{prefix}{rate.upper()}{title} / %", False, 1, weight)
        for prefix in ("", "d")
        for rate, unit in (("wer", "words"), ("cer", "characters"))
        for suffix, title, weight in (("", "", ""), ("_corpus", " (corpus)", unit))
    )
    domains = SPEECH

    def __init__(
        self, recogniser: Recogniser, standardise: Callable[[str, str], str], jiwer: Any
    ) -> None:
        self._recogniser, self._standardise, self._jiwer = recogniser, standardise, jiwer
        self._heard: dict[bytes, str] = {}  # in originals, by their samples

    @classmethod
    def load(cls, folder: str) -> Self:
        """Loads a Whisper model for faster-whisper.

        Args:
          folder: of the model; "" if there is none.

        Raises:
          Unavailable: a package or the folder is missing.
          UserError: `folder` holds no such model.
        """
        jiwer, standardise = package("jiwer"), standardiser()
        return cls(FasterWhisper(folder), standardise, jiwer)

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        """The rates of one clip, and of how many words or characters they are."""
        language = re.split("[-_]", excerpt.clip.lang.lower())[0]
        if not self._recogniser.knows(language):
            return {}
        truth = excerpt.clip.text or self._in_original(excerpt.reference, language)
        answer = self._recogniser(at_rate(excerpt.decoded, RATE), language)
        truth, answer = (self._standardise(text, language).strip() for text in (truth, answer))
        name = "" if excerpt.clip.text else "d"
        if language in WITHOUT_SPACES:
            truth, answer = ("".join(text.split()) for text in (truth, answer))
            name, unit, count, rate = f"{name}cer", "characters", len(truth), self._jiwer.cer
        else:
            name, unit, count, rate = f"{name}wer", "words", len(truth.split()), self._jiwer.wer
        if not count:
            return {}
        percent = 100 * float(rate(truth, answer))
        return {name: percent, f"{name}_corpus": percent, unit: count}

    def _in_original(self, wave: np.ndarray, language: str) -> str:
        key = hashlib.sha256(wave.tobytes()).digest()
        if key not in self._heard:
            self._heard[key] = self._recogniser(at_rate(wave, RATE), language)
        return self._heard[key]


class FasterWhisper:
    """Whisper by the package faster-whisper: beams of 5, temperature 0, each 30 s by themselves.

    Its usual second tries at higher temperatures are drawn at random and left out, so that the same
    audio always gives the same text.
    """

    def __init__(self, folder: str) -> None:
        """Loads a model for CTranslate2, in float32.

        Args:
          folder: of the model; "" if there is none.

        Raises:
          Unavailable: the package or the folder is missing.
          UserError: `folder` holds no such model.
        """
        faster_whisper = package("faster_whisper")
        path = weights(folder, PUBLISHED)
        for name in ("model.bin", "tokenizer.json"):  # it would download a missing tokenizer
            weights(str(path / name), PUBLISHED)
        try:
            self._model = faster_whisper.WhisperModel(str(path), "auto", compute_type="float32")
        except RuntimeError as error:
            raise UserError(f"{folder}: {error}; needed is {PUBLISHED}") from error
        self._languages = {"", *self._model.supported_languages}

    def knows(self, language: str) -> bool:
        """Whether the model was trained on it; models of English alone know only English."""
        return language in self._languages

    def __call__(self, wave: np.ndarray, language: str) -> str:
        """What is said in (S,) float32 at 16 kHz."""
        segments, _ = self._model.transcribe(
            wave,
            language=language or None,
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


def standardiser() -> Callable[[str, str], str]:
    """Standardises a text in a language, as the module's head says.

    Raises:
      Unavailable: whisper-normalizer or opencc is not installed.
    """
    english = package("whisper_normalizer.english").EnglishTextNormalizer()
    basic = package("whisper_normalizer.basic").BasicTextNormalizer()
    simplified = package("opencc").OpenCC("t2s").convert

    def standardise(text: str, language: str) -> str:
        if language == "en":
            return str(english(text))
        return str(basic(simplified(text) if language in ("zh", "yue") else text))

    return standardise
