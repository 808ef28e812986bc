"""What a language model reads and must answer about a clip, as token ids.

The language model reads one row for each example, in which loss counts the answer and the end only:

    prefix | audio, one embedding for each code frame | suffix, answer, end | padding

The prefix is the same for every clip; the suffix names the task.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from gac_jax.data.sources import Clip
from gac_jax.errors import UserError
from gac_jax.pretrained.gguf_file import GgufFile

TASKS = ("transcribe", "describe")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How a kind of language model is asked.

    Attributes:
      prefix: stands before the audio.
      suffixes: what stands after the audio, by task. Each ends in a line break, so that an answer
        is split into the same tokens after it as alone.
      begin: tokens that begin a row; the first that the tokenizer has, if any, is used.
      end: tokens that end an answer; the first that the tokenizer has is used.
    """

    prefix: str
    suffixes: Mapping[str, str]
    begin: tuple[str, ...]
    end: tuple[str, ...]


INSTRUCTIONS = {"transcribe": "Transcribe the speech.", "describe": "Describe the sound."}
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = {
    # For base models. Those trained with a token at the start of each text expect it, and all end
    # a text with the token named here.
    "plain": Prompt(
        prefix="",
        suffixes={task: f"\n{words}\n" for task, words in INSTRUCTIONS.items()},
        begin=("<|begin_of_text|>", "<s>"),
        end=("<|endoftext|>", "<|end_of_text|>", "</s>"),
    ),
    # For instruction-tuned models. Without a system message of ours, the templates of SmolLM2 and
    # Qwen2 would put one in that names the model.
    "chatml": Prompt(
        prefix="<|im_start|>system\nYou put into words what you hear.<|im_end|>\n"
        "<|im_start|>user\n",
        suffixes={task: f"\n{words}{ASSISTANT}" for task, words in INSTRUCTIONS.items()},
        begin=(),
        end=("<|im_end|>",),
    ),
}

# How text is cut into words before byte pairs are merged, by the name that GGUF files give it.
# Published with the tokenizers of GPT-2, Qwen2 and Llama 3, which differ in their numbers.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "gpt-2": "",  # the expression built into `ByteLevel`
    "smollm": r"\p{N}",
    "qwen2": WORDS.replace("NUMBER", r"\p{N}"),
    "llama-bpe": WORDS.replace("NUMBER", r"\p{N}{1,3}"),
}
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # token types of GGUF that are no pieces of plain text
ROUNDING = 0.01  # seconds by which a manifest may be off; too much here is only a late finding

_cut: set[str] = set()
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """Text to token ids and back.

    Attributes:
      path: the file it was read from.
      model: a `tokenizers.Tokenizer` that reads the names of special tokens as plain text, so that
        a transcript cannot end an answer or open another turn.
    """

    path: Path
    model: Any = dataclasses.field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # tokenizers forgets on the way how to read the names of special tokens.
        return load_tokenizer, (self.path,)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, with nothing added."""
        return self.model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self.model.decode([int(i) for i in ids], skip_special_tokens=True)

    def special(self, *names: str) -> int | None:
        """Id of the first of these tokens that there is."""
        ids = (self.model.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)

    def max_id(self) -> int:
        """Largest id of all tokens."""
        return max(self.model.get_vocab(with_added_tokens=True).values())


def load_tokenizer(path: Path) -> TextTokenizer:
    """Reads the tokenizer of a language model.

    Args:
      path: a tokenizer.json, a folder that holds one, or a GGUF file with a byte-level BPE.

    Raises:
      UserError: if there is no such file, it holds no tokenizer that is known, or a package that
        reads it is not installed.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; name a tokenizer.json, a folder that holds one, or a .gguf file"
        )
    model = _read_gguf(file) if file.suffix == ".gguf" else _read_json(file)
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True
    return TextTokenizer(file, model)


def check_vocabulary(tokenizer: TextTokenizer, vocab_size: int, path: Path) -> None:
    """Makes sure that a language model has an embedding for every token.

    Args:
      tokenizer: may know fewer tokens, since models round their vocabulary up.
      vocab_size: number of embeddings.
      path: where the language model is.

    Raises:
      UserError: if the tokenizer is of another model.
    """
    if tokenizer.max_id() >= vocab_size:
        raise UserError(
            f"{tokenizer.path}: has token {tokenizer.max_id()}, but {path} ends at token "
            f"{vocab_size - 1}; use the tokenizer that came with this language model"
        )


def _tokenizers(file: Path) -> Any:
    try:
        import tokenizers  # optional
    except ImportError as error:
        raise UserError(f'{file}: tokenizers need: pip install "gac_jax[text]"') from error
    return tokenizers


def _read_json(file: Path) -> Any:
    tokenizers = _tokenizers(file)
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the class that tokenizers raises
        cause = " ".join(str(error).split())
        raise UserError(
            f"{file}: not a tokenizer.json ({cause}); get it from where the language model is from"
        ) from error


def _read_gguf(file: Path) -> Any:
    tokenizers = _tokenizers(file)
    content = GgufFile(file)
    kind = _gguf_kind(content)
    names = _gguf_list(content, "tokens")
    token_type, pairs = _gguf_list(content, "token_type"), _gguf_list(content, "merges")
    try:
        types = dict(zip(names, token_type, strict=True))
        ids = {name: i for i, name in enumerate(names) if types[name] != UNUSED}
        merges = [tuple(pair.split(" ")) for pair in pairs]
        # Llama 3 takes a word that is a token whole, whatever its merges say.
        bpe = tokenizers.models.BPE(ids, merges, ignore_merges=kind == "llama-bpe")
    except Exception as error:  # the class that tokenizers raises
        raise UserError(f"{file}: damaged tokenizer ({error}); get the file again") from error
    model = tokenizers.Tokenizer(bpe)
    if kind == "qwen2":
        model.normalizer = tokenizers.normalizers.NFC()
    model.pre_tokenizer = _pre_tokenizer(tokenizers, kind)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens([name for name in ids if types[name] == CONTROL])
    model.add_tokens([name for name in ids if types[name] == USER_DEFINED])
    return model


def _gguf_kind(content: GgufFile) -> str:
    """Names the pre-tokenizer of a byte-level BPE."""
    model = content.get("tokenizer.ggml.model")  # gpt2 is any byte-level BPE
    kind = content.get("tokenizer.ggml.pre") if model == "gpt2" else model
    if kind not in PRE_TOKENIZERS:
        raise UserError(
            f"{content.path}: tokenizer of the kind {kind or 'unknown'}, of which "
            f"{', '.join(PRE_TOKENIZERS)} are known; use the tokenizer.json of the model"
        )
    return kind


def _gguf_list(content: GgufFile, name: str) -> list[Any]:
    values = content.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list):
        raise UserError(
            f"{content.path}: has no tokenizer.ggml.{name}; use the tokenizer.json of the model"
        )
    return values


def _pre_tokenizer(tokenizers: Any, kind: str) -> Any:
    parts = tokenizers.pre_tokenizers
    expression = PRE_TOKENIZERS[kind]
    in_bytes = parts.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt-2", "smollm"))
    if not expression:
        return in_bytes
    return parts.Sequence([parts.Split(tokenizers.Regex(expression), "isolated"), in_bytes])


def answer_of(clip: Clip, whole: bool, rng: np.random.Generator) -> tuple[str, str] | None:
    """Chooses what to ask about a clip, and the answer.

    Transcripts are lower-cased: case cannot be heard, and where some collections shout and others
    do not, it would have the codes tell which collection a clip is from.

    Args:
      clip: with a transcript, a label, both or neither.
      whole: whether all of the clip is heard; a piece of it does not say all of its transcript.
      rng: draws one task if there are two.

    Returns:
      One of `TASKS` and what the clip answers to it; None if it has nothing to say.
    """
    transcript = " ".join(clip.text.split()).lower() if whole else ""
    answers = {"transcribe": transcript, "describe": " ".join(clip.label.split())}
    tasks = [task for task in TASKS if answers[task]]
    if not tasks:
        return None
    task = tasks[0] if len(tasks) == 1 else tasks[rng.integers(len(tasks))]
    return task, answers[task]


def check_answers(clips: Iterable[Clip], max_seconds: float, root: str) -> None:
    """Makes sure that there is something to learn from.

    Args:
      clips: looked at until one has a label, or a transcript that a crop can hold.
      max_seconds: length of a crop.
      root: names the clips in the message.

    Raises:
      UserError: if none has.
    """
    for clip in clips:
        whole = clip.dur_s <= max_seconds + ROUNDING
        if answer_of(clip, whole, np.random.default_rng(0)):
            return
    raise UserError(
        f"{root or 'bundled clips'}: no clip has a label, or a text and at most {max_seconds:g} s, "
        "for the language model to learn from; fill these columns of a manifest, raise crop_frames,"
        " or train without the language model"
    )


@dataclasses.dataclass(frozen=True)
class TextTargets:
    """Makes the text of an example.

    Attributes:
      tokenizer: of the language model.
      style: one of `PROMPTS`.
      max_tokens: L, tokens of a text, which holds suffix, answer and end.

    Raises:
      UserError: if the tokenizer has no special token that the prompts need, or `max_tokens`
        leaves no room for an answer.
    """

    tokenizer: TextTokenizer
    style: str
    max_tokens: int

    def __post_init__(self) -> None:
        if self.style not in PROMPTS:
            raise UserError(f"prompt style {self.style!r} is none of {', '.join(PROMPTS)}")
        longest = max(len(self.suffix(task)) for task in TASKS)
        if longest + len((self.end,)) >= self.max_tokens:
            raise UserError(
                f"{self.tokenizer.path}: max_tokens is {self.max_tokens}, but a prompt alone takes "
                f"{longest + 1} of them; raise it"
            )

    @property
    def prefix(self) -> np.ndarray:
        """Ids that stand before the audio, (P,) int32; P may be zero."""
        begin = self.tokenizer.special(*PROMPTS[self.style].begin)
        ids = self._prompt_ids(PROMPTS[self.style].prefix)
        return np.asarray(ids if begin is None else [begin, *ids], np.int32)

    @property
    def end(self) -> int:
        """Id that ends an answer and pads a text."""
        return self._special(*PROMPTS[self.style].end)

    def suffix(self, task: str) -> np.ndarray:
        """Ids that ask for one of `TASKS`, after the audio and before the answer, int32."""
        return np.asarray(self._prompt_ids(PROMPTS[self.style].suffixes[task]), np.int32)

    def _prompt_ids(self, prompt: str) -> list[int]:
        ids: list[int] = []
        for part in re.split(r"(<\|\w+\|>)", prompt):
            ids += [self._special(part)] if part.startswith("<|") else self.tokenizer.encode(part)
        return ids

    def _special(self, *names: str) -> int:
        found = self.tokenizer.special(*names)
        if found is None:
            raise UserError(
                f"{self.tokenizer.path}: no token {' or '.join(names)}, which prompts in the style "
                f"{self.style} need; choose another style of {', '.join(PROMPTS)}"
            )
        return found

    def of(self, clip: Clip, whole: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Makes the text for a clip; see `answer_of` for the arguments.

        An answer that does not fit is cut between two tokens, gets no end and is named once in the
        log.

        Returns:
          text (L,) int32: suffix, answer and end, padded with the end; text_length () int32, how
          many of them count, 0 if the clip has nothing to say; answer_start () int32, place of the
          first token of the answer.
        """
        answer = answer_of(clip, whole, rng)
        if answer is None:
            return self.none()
        task, words = answer
        suffix, ids = self.suffix(task), self.tokenizer.encode(words)
        room = self.max_tokens - len(suffix)
        if len(ids) >= room:
            _report_once(clip.path, len(ids) + 1 - room)
        return self._example([*suffix, *ids, self.end][: self.max_tokens], len(suffix))

    def none(self) -> dict[str, np.ndarray]:
        """Makes the text of a clip that has nothing to say: none of it counts."""
        return self._example([], 0)

    def _example(self, ids: Sequence[int], answer_start: int) -> dict[str, np.ndarray]:
        text = np.full(self.max_tokens, self.end, np.int32)
        text[: len(ids)] = ids
        return {
            "text": text,
            "text_length": np.asarray(len(ids), np.int32),
            "answer_start": np.asarray(answer_start, np.int32),
        }


def _report_once(path: str, excess: int) -> None:
    with _lock:
        if path in _cut:
            return
        _cut.add(path)
        count = len(_cut)
    logging.warning(
        "cut answer %d: %s: %d tokens too long; raise max_tokens to learn all of it",
        count,
        path,
        excess,
    )
