"""Token sets: the codes of a corpus on disk, as `python -m gac_jax.tokenize` writes them.

A set is a folder with `tokens.json`, which says what it was made of, and two files a shard:

    tokens-00000-of-00009.array_record    a record for each clip, in the order of the corpus
    tokens-00000-of-00009.jsonl           a line for each clip: its length, or why it was dropped

A record is a line of JSON with what is known of the clip, then the bytes of its .gac file
(docs/bitstream.md). To feed a language model of audio, with a vocabulary of all codebooks:

    source = TokenSource("OUT")
    offsets = np.cumsum([0, *source.about.codebook_sizes[:-1]])
    for clip, tokens in (source[i] for i in range(len(source))):
        words = (tokens.codes + offsets[:, None]).T.ravel()  # 9 of each frame, coarse to fine
        print(clip.text, words)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
from array_record.python.array_record_module import ArrayRecordWriter

from gac_jax import atomic
from gac_jax.bitstream import Tokens
from gac_jax.data.sources import CLIP_FIELDS, Clip, clip_from
from gac_jax.errors import UserError

FORMAT = 1
_OPTIONS = "group_size:1"  # records are read one at a time, in any order


@dataclasses.dataclass(frozen=True)
class About:
    """What a token set is made of; kept in tokens.json.

    Attributes:
      fingerprint: of encoder and quantiser, in hexadecimal.
      batch_size: windows computed at once, which decides between codes that are equally near.
      corpus: digest of the names of all clips, in order.
      clips: how many there are.
      shards: in how many files.
      model: name of the model.
      codebook_sizes: codes of each codebook, semantic first.
      format: version of this layout.
    """

    fingerprint: str
    batch_size: int
    corpus: str
    clips: int
    shards: int
    model: str = dataclasses.field(compare=False)
    codebook_sizes: tuple[int, ...] = dataclasses.field(compare=False)
    format: int = FORMAT

    def part(self, shard: int) -> range:
        """Places, in the corpus, of the clips of a shard."""
        start, end = (self.clips * i // self.shards for i in (shard, shard + 1))
        return range(start, end)

    def stem(self, shard: int) -> str:
        """Name of the files of a shard, without suffix."""
        return f"tokens-{shard:05d}-of-{self.shards:05d}"


class Outcome(NamedTuple):
    """What became of a clip.

    Attributes:
      clip: what is known of it.
      tokens: its codes; None if it was dropped.
      problem: why it was dropped; "" if it was not.
    """

    clip: Clip
    tokens: Tokens | None
    problem: str


class TokenClip(NamedTuple):
    """A record of a token set.

    Attributes:
      clip: what is known of the recording, without its audio; `clip.path` names it.
      tokens: codes (1 + k, N) int32, num_samples, loudness levels and fingerprint.
    """

    clip: Clip
    tokens: Tokens


def begin(folder: Path, about: About) -> None:
    """Writes tokens.json, or checks that the set there is the same.

    Raises:
      UserError: it is another, or the folder cannot be written.
    """
    path = folder / "tokens.json"
    if not path.exists():
        text = json.dumps(dataclasses.asdict(about), indent=2) + "\n"
        atomic.write(path, text.encode())
    found = read_about(folder)
    for field in dataclasses.fields(About):
        ours, theirs = getattr(about, field.name), getattr(found, field.name)
        if field.compare and ours != theirs:
            raise UserError(
                f"{folder}: holds tokens with {field.name} {theirs}, not {ours}; go on with the "
                "model, corpus, --shards and --batch_size it was begun with, or write elsewhere"
            )


def read_about(folder: Path) -> About:
    """Reads tokens.json.

    Raises:
      UserError: there is none, it is damaged, or of another format.
    """
    path = folder / "tokens.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        found = fields.get("format")
        if found != FORMAT:
            raise UserError(f"{path}: format {found}, this program reads {FORMAT}; update gac_jax")
        return About(**{**fields, "codebook_sizes": tuple(fields["codebook_sizes"])})
    except OSError as error:
        raise UserError(f"{folder}: no tokens here; write some with gac_jax.tokenize") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged; tokenise into another folder") from error


def missing_shards(folder: Path, about: About) -> list[int]:
    """Shards that are not there yet."""
    return [i for i in range(about.shards) if not _records_of(folder, about, i).exists()]


def write_shard(folder: Path, about: About, shard: int, outcomes: Sequence[Outcome]) -> None:
    """Writes the two files of a shard; it is finished once its records are there.

    Raises:
      UserError: the folder cannot be written.
    """
    lines = [json.dumps(_index_line(each)) + "\n" for each in outcomes]
    atomic.write(folder / f"{about.stem(shard)}.jsonl", "".join(lines).encode())
    path = _records_of(folder, about, shard)
    with atomic.replacing(path) as draft:
        try:
            writer = ArrayRecordWriter(str(draft), _OPTIONS)
            for clip, tokens, _ in outcomes:
                if tokens is not None:
                    writer.write(to_record(clip, tokens))
            writer.close()
        except RuntimeError as error:  # what it says of a full disk, among more
            raise UserError(f"{path}: cannot be written ({error})") from error


def to_record(clip: Clip, tokens: Tokens) -> bytes:
    """A line of JSON with what is known of the clip, then the .gac file."""
    known = {name: value for name in CLIP_FIELDS if (value := getattr(clip, name))}
    return json.dumps(known).encode() + b"\n" + tokens.to_bytes()


def from_record(record: bytes) -> TokenClip:
    """Inverse of `to_record`.

    Raises:
      UserError: see `Tokens.from_bytes`.
      ValueError: if the line is not what `to_record` writes.
    """
    line, _, gac = record.partition(b"\n")
    return TokenClip(clip_from(json.loads(line)), Tokens.from_bytes(gac))


class TokenSource:
    """A finished token set: its records by place and by the name of their clip.

    Attributes:
      about: what it is made of.
      dropped: why clips of the corpus are not in it, by their paths.
    """

    def __init__(self, folder: str | Path, fingerprint: bytes | None = None) -> None:
        """Opens a set; reads its index, but no records.

        Args:
          folder: what `gac_jax.tokenize` wrote.
          fingerprint: of the encoder and quantiser that the codes must come from; None is any.

        Raises:
          UserError: no such set, one that is unfinished or damaged, or codes of another encoder.
        """
        self._folder = Path(folder)
        self.about = read_about(self._folder)
        if fingerprint is not None and self.about.fingerprint != fingerprint.hex():
            raise UserError(
                f"{folder}: codes of the encoder {self.about.fingerprint} ({self.about.model}), "
                f"but the one in use is {fingerprint.hex()}; tokenise the corpus with that"
            )
        if missing := missing_shards(self._folder, self.about):
            raise UserError(
                f"{folder}: {len(missing)} of {self.about.shards} shards are missing, the first "
                f"{self.about.stem(missing[0])}; run gac_jax.tokenize again, it goes on"
            )
        self._places: dict[str, int] = {}
        self.dropped: dict[str, str] = {}
        count = self._read_index()
        self._records = grain.sources.ArrayRecordDataSource(
            [str(_records_of(self._folder, self.about, i)) for i in range(self.about.shards)]
        )
        if count != len(self._records):
            raise UserError(f"{folder}: index and records do not agree; tokenise elsewhere")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> TokenClip:
        """Reads a record.

        Raises:
          IndexError: if there is no such place.
          UserError: if the record is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return from_record(self._records[index])
        except (RuntimeError, UserError, ValueError) as error:
            raise UserError(f"{self._folder}: record {index} is damaged ({error})") from error

    def of(self, path: str) -> Tokens:
        """The codes of the clip with this path.

        Raises:
          UserError: if it was dropped, there is none, or its record is damaged.
        """
        if path not in self._places:
            reason = self.dropped.get(path, "not among the clips that were tokenised")
            raise UserError(f"{path}: no codes in {self._folder}: {reason}")
        return self[self._places[path]].tokens

    def check(self, paths: Iterable[str]) -> None:
        """Checks that all clips with these paths were tokenised, or could not be read then.

        Raises:
          UserError: names some that were not.
        """
        strange = [p for p in paths if not (p in self._places or p in self.dropped)]
        if strange:
            raise UserError(
                f"{self._folder}: {len(strange)} clips have no codes, such as "
                f"{', '.join(strange[:3])}; tokenise the corpus that is trained on"
            )

    def _read_index(self) -> int:
        """Fills `_places` and `dropped`; returns the number of records there should be."""
        count = 0
        for shard in range(self.about.shards):
            path = self._folder / f"{self.about.stem(shard)}.jsonl"
            try:
                for line in path.read_text(encoding="utf-8").splitlines():
                    row = json.loads(line)
                    if "dropped" in row:
                        self.dropped[row["path"]] = row["dropped"]
                    else:
                        self._places[row["path"]] = count
                        count += 1
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}: missing or damaged; tokenise elsewhere") from error
        return count


def _records_of(folder: Path, about: About, shard: int) -> Path:
    return folder / f"{about.stem(shard)}.array_record"


def _index_line(outcome: Outcome) -> dict[str, Any]:
    path = outcome.clip.path
    if outcome.tokens is None:
        return {"path": path, "dropped": outcome.problem}
    return {"path": path, "num_samples": outcome.tokens.num_samples}
