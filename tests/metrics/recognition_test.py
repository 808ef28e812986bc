import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from gac_jax.errors import UserError
from gac_jax.metrics.metric import SPEECH, Unavailable
from gac_jax.metrics.recognition import FasterWhisper, Recognition, standardiser
from tests.metrics.excerpts import excerpt

EXTRA = 'needs {}: pip install "gac_jax[eval]"'


class Parrot:
    """Says what it was told to hear in a wave of some length at 16 kHz."""

    def __init__(self, texts: Mapping[int, str], languages: str = "en de zh") -> None:
        self.texts, self.languages = texts, languages.split()
        self.calls: list[tuple[int, str]] = []

    def knows(self, language: str) -> bool:
        return language in self.languages

    def __call__(self, wave: np.ndarray, language: str) -> str:
        self.calls.append((len(wave), language))
        return self.texts[len(wave)]


def lower(text: str, language: str) -> str:
    return f" {text.lower()} "


def heard(answer: str, text: str = "", lang: str = "en", original: str = "") -> dict[str, float]:
    """Rates where the decoded clip is heard as one text and the original as another."""
    parrot = Parrot({100: answer, 200: original})
    clip = excerpt(np.ones(400), np.ones(200), text=text, lang=lang)
    return Recognition(parrot, lower, jiwer).measure(clip)


def test_word_errors_by_hand() -> None:
    assert heard("ONE too three", "One two three") == {
        "wer": pytest.approx(100 / 3),
        "wer_corpus": pytest.approx(100 / 3),
        "words": 3,
    }
    assert heard("one two three", "One two three")["wer"] == 0
    assert heard("", "one two")["wer"] == 100
    assert heard("so many more words", "one")["wer"] == 400


def test_languages_without_spaces_have_character_errors() -> None:
    assert heard("你 号", "你好", lang="zh-CN") == {"cer": 50, "cer_corpus": 50, "characters": 2}
    assert set(heard("gut", "Gut", lang="de_AT")) == {"wer", "wer_corpus", "words"}


def test_without_a_transcript_the_original_is_heard() -> None:
    assert heard("one two", original="one three") == {"dwer": 50, "dwer_corpus": 50, "words": 2}
    assert heard("你", lang="zh", original="你好")["dcer"] == 50


def test_the_original_is_heard_once() -> None:
    parrot = Parrot({100: "b", 200: "a", 300: "a"})
    judge = Recognition(parrot, lower, jiwer)
    for decoded in (200, 200, 600):
        judge.measure(excerpt(np.ones(400), np.ones(decoded)))
    judge.measure(excerpt(np.zeros(400), np.ones(200)))  # another one
    assert [size for size, _ in parrot.calls] == [200, 100, 100, 300, 200, 100]
    assert {language for _, language in parrot.calls} == {"en"}


def test_a_clip_without_words_or_in_another_language_has_none() -> None:
    assert heard("noise", "   ") == {}
    assert heard("noise", original="") == {}
    assert heard("text", "text", lang="mul") == {}


def test_weighted_means_are_the_corpus_rates_of_jiwer() -> None:
    """The table weighs `wer_corpus` by `words`; jiwer counts errors and words of all clips."""
    truths = ["one two three", "go", "a b c d e", "yes no"]
    answers = ["one too three", "go on then", "b c e", "yes no"]
    rows = [heard(answer, truth) for truth, answer in zip(truths, answers, strict=True)]
    rates, words = ([row[name] for row in rows] for name in ("wer_corpus", "words"))
    assert np.average(rates, weights=words) == pytest.approx(100 * jiwer.wer(truths, answers))
    mean = np.mean([jiwer.wer(t, a) for t, a in zip(truths, answers, strict=True)])
    assert np.mean([row["wer"] for row in rows]) == pytest.approx(100 * mean)


def test_columns_name_their_weights() -> None:
    columns = {column.name: column for column in Recognition.columns}
    rows = [heard("a", "b"), heard("a", "b", "zh"), heard("a", original="b")]
    rows.append(heard("a", lang="zh", original="b"))
    weights = {"words", "characters"}
    assert {name for row in rows for name in row} - weights == set(columns)
    assert columns["wer"].title == "WER / %" and columns["wer"].weight == ""
    assert columns["dcer_corpus"].title == "dCER (corpus) / %"
    for row in rows:
        (corpus,) = (name for name in row if name.endswith("_corpus"))
        assert columns[corpus].weight in row
    assert Recognition.domains == SPEECH


def model_folder(root: Path) -> Path:
    for name in ("model.bin", "tokenizer.json"):
        (root / name).write_bytes(b"")
    return root


def fake_whisper(monkeypatch: pytest.MonkeyPatch, languages: list[str]) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    class WhisperModel:
        supported_languages = languages

        def __init__(self, path: str, device: str, compute_type: str) -> None:
            if "broken" in path:
                raise RuntimeError("unsupported model")
            asked["model"] = Path(path), compute_type

        def transcribe(self, wave: np.ndarray, **options: Any) -> tuple[Any, None]:
            asked.update(options, samples=len(wave))
            return (types.SimpleNamespace(text=text) for text in (" one ", " two")), None

    module = types.SimpleNamespace(WhisperModel=WhisperModel)
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    return asked


def test_whisper_is_asked_for_the_same_text_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = fake_whisper(monkeypatch, ["en", "zh"])
    whisper = FasterWhisper(str(model_folder(tmp_path)))
    assert asked["model"] == (tmp_path, "float32")
    assert whisper(np.zeros(160, np.float32), "en") == "one two"
    assert (asked["samples"], asked["language"], asked["temperature"]) == (160, "en", 0.0)
    whisper(np.zeros(160, np.float32), "")
    assert asked["language"] is None
    assert whisper.knows("zh") and whisper.knows("") and not whisper.knows("mul")


def test_what_is_missing_for_whisper_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_whisper(monkeypatch, ["en"])
    with pytest.raises(Unavailable, match=r"^needs a folder with .* Systran .*--recogniser$"):
        FasterWhisper("")
    with pytest.raises(UserError, match=r"model\.bin: does not exist; needed is a folder"):
        FasterWhisper(str(tmp_path))
    (model_folder(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: does not exist"):
        FasterWhisper(str(tmp_path))
    broken = tmp_path / "broken"
    broken.mkdir()
    with pytest.raises(UserError, match=r"broken: unsupported model; needed is a folder"):
        FasterWhisper(str(model_folder(broken)))
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(Unavailable, match="needs the package faster_whisper; pip install"):
        FasterWhisper("")


def test_texts_are_standardised_as_whisper_does() -> None:
    for name in ("whisper_normalizer", "opencc"):
        pytest.importorskip(name, reason=EXTRA.format(name))
    standardise = standardiser()
    said = "Mr. Two-Five nine, uh, won't (laughs) like the colour!"
    assert standardise(said, "en") == "mister 259 will not like the color"
    assert standardise("Schöne [Musik] Größe!", "de").strip() == "schöne größe"
    assert standardise("漢語，很難。", "zh").strip() == "汉语 很难"
