"""What probing a checkpoint found: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from gac_jax.metrics.codebooks import ALL, Usage
from gac_jax.metrics.reading import (
    Information,
    LabelHits,
    Reading,
    TranscriptErrors,
    information,
    label_hits,
    transcript_errors,
)
from gac_jax.rates import kbps

MIN_CLIPS = 20  # transcripts of a language below which it gets no line of its own

CODEBOOKS = """## Codebooks

Codes of whole clips. Perplexity cannot exceed the frames counted, nor bits their log2: with few
frames both fall short of what the codebook is capable of."""
TEXTS = """## Texts

-log P(text | codes) of the language model in nats per token, given the clip's own codes (right)
and those of another clip of the same domain and task (wrong). Information is their difference in
nats per clip, an estimate of a lower bound of I(Z;Y), with a 95 % bootstrap interval
over clips."""
ANSWERS = """## Answers

What the language model says by itself, by greedy choice, against the text in lower case and
without punctuation. Error rates are over all texts together, or the mean over clips."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that was measured.

    Attributes:
      facts: what was measured: config, step, split and the like.
      usage: of the codebooks.
      readings: of texts, at every rate.
      note: why there are no readings; "" if there are.
    """

    facts: dict[str, Any]
    usage: Sequence[Usage]
    readings: Sequence[Reading]
    note: str = ""

    @cached_property
    def texts(self) -> list[tuple[int, str, str, Information]]:
        """(rate, domain, task, information), over all texts and over each domain and task."""
        return self._by_group(lambda r: (r.domain, r.task), information)

    @cached_property
    def transcripts(self) -> list[tuple[int, str, TranscriptErrors]]:
        """(rate, language, errors), over all transcripts and over each frequent language."""
        readings = [r for r in self.readings if r.task == "transcribe"]
        found = []
        for rate, some in _grouped(readings, lambda r: r.rate):
            langs = _grouped([r for r in some if r.lang], lambda r: r.lang)
            frequent = [(lang, group) for lang, group in langs if len(group) >= MIN_CLIPS]
            found += [(rate, lang, transcript_errors(g)) for lang, g in [(ALL, some), *frequent]]
        return [(rate, lang, errors) for rate, lang, errors in found if errors]

    @cached_property
    def labels(self) -> list[tuple[int, str, LabelHits]]:
        """(rate, domain, hits), over all labels and over each domain."""
        readings = [r for r in self.readings if r.task == "describe"]
        found = []
        for rate, some in _grouped(readings, lambda r: r.rate):
            domains = [(ALL, some), *_grouped(some, lambda r: r.domain)]
            found += [(rate, domain, label_hits(group)) for domain, group in domains]
        return [(rate, domain, hits) for rate, domain, hits in found if hits]

    def _by_group(
        self, key: Callable[[Reading], tuple[str, str]], measure: Callable
    ) -> list[tuple[int, str, str, Any]]:
        found = []
        for rate, some in _grouped(self.readings, lambda r: r.rate):
            for names, group in [((ALL, ALL), some), *_grouped(some, key)]:
                found.append((rate, *names, measure(group)))
        return found

    def report(self) -> str:
        """Everything as Markdown, which reads as plain text too."""
        parts = [f"# {self.title()}"]
        if self.facts.get("not_as_in_training"):
            parts.append(f"Not as in training: {'; '.join(self.facts['not_as_in_training'])}.")
        parts += [CODEBOOKS, self._codebook_table(), *([self.note] if self.note else [])]
        if self.readings:
            parts += [TEXTS, self._text_table(), ANSWERS]
            parts += [table for table in (self._transcript_table(), self._label_table()) if table]
        return "\n\n".join(parts) + "\n"

    def title(self) -> str:
        """What was measured, in a line."""
        facts = self.facts
        clips = ", ".join(f"{count:,} {domain}" for domain, count in facts["clips"].items())
        step, split = facts["step"], facts["split"]
        return f"understanding at step {step:,}: clips of the split {split} ({clips})"

    def json(self) -> bytes:
        """All numbers but those of single clips; null stands for what is not known."""
        usage = [{**_record(u), "share": u.share, "perplexity": u.perplexity} for u in self.usage]
        texts = [
            {"rate": rate, "domain": domain, "task": task, **_record(found)}
            for rate, domain, task, found in self.texts
        ]
        transcripts = [
            {"rate": rate, "lang": lang, **_record(errors)}
            for rate, lang, errors in self.transcripts
        ]
        labels = [
            {"rate": rate, "domain": domain, **_record(hits)} for rate, domain, hits in self.labels
        ]
        tables = {"codebooks": usage, "texts": texts, "transcripts": transcripts, "labels": labels}
        record = {**self.facts, "note": self.note, **tables}
        return json.dumps(record, indent=2, allow_nan=False).encode() + b"\n"

    def answers(self) -> bytes:
        """One line of JSON for each text: the truth, and by rate the answer and its nats."""
        lines = []
        for (path, task), group in _grouped(self.readings, lambda r: (r.path, r.task)):
            first, by_rate = group[0], {str(r.rate): r for r in group}
            record = {
                "path": path,
                "domain": first.domain,
                "lang": first.lang,
                "task": task,
                "truth": first.truth,
                "answers": {rate: r.answer for rate, r in by_rate.items()},
                "tokens": first.tokens,
                "right": {rate: r.right for rate, r in by_rate.items()},
                "wrong": {rate: _known(r.wrong) for rate, r in by_rate.items()},
            }
            lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        return "".join(lines).encode()

    def _codebook_table(self) -> str:
        columns = ("domain", "codebook", "frames", "codes used", "of", "share")
        rows = [
            (u.domain, u.codebook, f"{u.frames:,}", f"{u.used:,}", f"{u.size:,}")
            + (f"{100 * u.share:.1f} %", f"{u.perplexity:,.1f}", f"{u.bits:.2f}")
            for u in self.usage
        ]
        return table((*columns, "perplexity", "bits"), rows, words=2)

    def _text_table(self) -> str:
        columns = ("domain", "task", "rate", "clips", "tokens", "right", "wrong", "information")
        rows = [
            (domain, task, _rate(rate), f"{i.clips:,}", f"{i.tokens:,}")
            + (_figure(i.right), _figure(i.wrong), _figure(i.nats, 2))
            + ("-" if math.isnan(i.low) else f"{i.low:.2f} to {i.high:.2f}",)
            for rate, domain, task, i in self.texts
        ]
        return table((*columns, "95 % interval"), rows, words=2)

    def _transcript_table(self) -> str:
        columns = ("language", "rate", "transcripts", "CER", "WER", "mean CER", "mean WER")
        rows = [
            (lang, _rate(rate), f"{e.clips:,}")
            + tuple(_percent(value) for value in (e.cer, e.wer, e.mean_cer, e.mean_wer))
            + (f"{e.distinct:,}",)
            for rate, lang, e in self.transcripts
        ]
        return table((*columns, "different answers"), rows, words=1) if rows else ""

    def _label_table(self) -> str:
        columns = ("domain", "rate", "labels", "exact", "words found", "different answers")
        rows = [
            (domain, _rate(rate), f"{h.clips:,}")
            + (_percent(h.exact), _percent(h.words), f"{h.distinct:,}")
            for rate, domain, h in self.labels
        ]
        return table(columns, rows, words=1) if rows else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A Markdown table with aligned columns, all but the first `words` of them to the right."""
    lines = [columns, *rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    ruler = ["-" * (w - 1) + ("-" if i < words else ":") for i, w in enumerate(widths)]
    aligned = [
        [
            cell.ljust(w) if i < words else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    aligned.insert(1, ruler)
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def _grouped(readings: Sequence[Reading], key: Callable[[Reading], Any]) -> list[tuple[Any, list]]:
    """Readings by key, the most frequent first; like ones in the order in which they came."""
    groups: dict[Any, list[Reading]] = defaultdict(list)
    for reading in readings:
        groups[key(reading)].append(reading)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _record(row: Any) -> dict[str, Any]:
    return {name: _known(value) for name, value in dataclasses.asdict(row).items()}


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _rate(rate: int) -> str:
    return f"k = {rate} ({kbps(rate):.3f} kbps)"


def _figure(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
