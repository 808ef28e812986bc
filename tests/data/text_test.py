import json
import logging
import pickle
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers

from gac_jax.data.sources import Clip
from gac_jax.data.text import (
    PRE_TOKENIZERS,
    PROMPTS,
    TASKS,
    TextTargets,
    answer_of,
    check_answers,
    check_vocabulary,
    load_tokenizer,
)
from gac_jax.errors import UserError
from tests import assets

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SENTENCES = (
    "The rain in the street.",
    "it doesn't STOP, it'll 12345 times  \n\n a\tdog ",
    "Ünïcode 雨 🙂 e\u0301",
    "<|im_end|>\n<|im_start|>user",
)


def gguf_fields(source: Path, pre: str = "smollm") -> dict:
    """What a GGUF file keeps of a tokenizer.json."""
    content = json.loads(source.read_text())
    ids = content["model"]["vocab"]
    names = sorted(ids, key=ids.__getitem__)
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": names,
        "token_type": [3 if name in SPECIAL else 1 for name in names],
        "merges": [" ".join(pair) for pair in content["model"]["merges"]],
    }


def write_gguf(path: Path, fields: dict) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        add = writer.add_string if isinstance(value, str) else writer.add_array
        add(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain_text(ids: np.ndarray, path: Path) -> str:
    """Decodes with special tokens, by the library itself."""
    model = tokenizers.Tokenizer.from_file(str(path))
    return model.decode(ids.tolist(), skip_special_tokens=False)


def rng_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def targets_of(path: Path, style: str = "chatml", max_tokens: int = 64) -> TextTargets:
    return TextTargets(load_tokenizer(path), style, max_tokens)


def counted(example: dict) -> np.ndarray:
    """The tokens of an example that the loss counts."""
    start, stop = int(example["answer_start"]), int(example["text_length"])
    return example["text"][start:stop]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_text_comes_back(tokenizer_json: Path, sentence: str) -> None:
    tokenizer = load_tokenizer(tokenizer_json)
    assert tokenizer.decode(tokenizer.encode(sentence)) == sentence


@pytest.mark.parametrize("sentence", SENTENCES)
def test_gguf_file_encodes_as_tokenizer_json(
    tmp_path: Path, tokenizer_json: Path, sentence: str
) -> None:
    ours = load_tokenizer(write_gguf(tmp_path / "model.gguf", gguf_fields(tokenizer_json)))
    theirs = load_tokenizer(tokenizer_json.parent)
    assert ours.encode(sentence) == theirs.encode(sentence)
    assert ours.decode([1, *theirs.encode(sentence), 2]) == sentence
    assert [ours.special(name) for name in SPECIAL] == [0, 1, 2]
    assert ours.max_id() == theirs.max_id() == 319


# The published expressions, applied by hand to don't-I'LL 12345  x and a line.
PIECES = {
    "gpt-2": ["don", "'t", "-", "I", "'", "LL", " 12345", " ", " x", "\n", "\n", "y"],
    "smollm": ["don", "'t", "-", "I", "'", "LL", " ", *"12345", " ", " x", "\n", "\n", "y"],
    "qwen2": ["don", "'t", "-I", "'LL", " ", *"12345", " ", " x", "\n\n", "y"],
    "llama-bpe": ["don", "'t", "-I", "'LL", " ", "123", "45", " ", " x", "\n\n", "y"],
}


def pieces_of(path: Path, text: str) -> list[str]:
    split = load_tokenizer(path).model.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:stop] for _, (start, stop) in split]


def test_every_kind_of_gguf_tokenizer_is_tested() -> None:
    assert PIECES.keys() == PRE_TOKENIZERS.keys()


@pytest.mark.parametrize("kind", PIECES)
def test_text_is_cut_into_words_as_published(
    tmp_path: Path, tokenizer_json: Path, kind: str
) -> None:
    path = write_gguf(tmp_path / "model.gguf", gguf_fields(tokenizer_json, kind))
    assert pieces_of(path, "don't-I'LL 12345  x\n\ny") == PIECES[kind]


def test_llama_takes_known_words_whole(tmp_path: Path, tokenizer_json: Path) -> None:
    fields = gguf_fields(tokenizer_json, "llama-bpe")
    fields["tokens"].append("qzx")  # no merges lead to it
    fields["token_type"].append(1)
    path = write_gguf(tmp_path / "llama.gguf", fields)
    assert load_tokenizer(path).encode("qzx") == [320]
    path = write_gguf(tmp_path / "qwen.gguf", fields | {"pre": "qwen2"})
    assert len(load_tokenizer(path).encode("qzx")) == 3


def test_qwen_composes_letters(tmp_path: Path, tokenizer_json: Path) -> None:
    path = write_gguf(tmp_path / "qwen.gguf", gguf_fields(tokenizer_json, "qwen2"))
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_added_and_unused_tokens_of_gguf(tmp_path: Path, tokenizer_json: Path) -> None:
    fields = gguf_fields(tokenizer_json)
    fields["tokens"] += ["<tool_call>", "[PAD321]"]
    fields["token_type"] += [4, 5]
    tokenizer = load_tokenizer(write_gguf(tmp_path / "model.gguf", fields))
    assert tokenizer.encode("<tool_call>") == [320]  # a user's token is plain text to itself
    assert tokenizer.max_id() == 320


def test_truncation_and_padding_of_the_file_are_left_out(
    tmp_path: Path, tokenizer_json: Path
) -> None:
    model = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    model.enable_truncation(4)
    model.enable_padding(length=30)
    model.save(str(tmp_path / "tokenizer.json"))
    ours, theirs = load_tokenizer(tmp_path), load_tokenizer(tokenizer_json)
    assert ours.encode("The rain") == theirs.encode("The rain")
    assert ours.encode(SENTENCES[1]) == theirs.encode(SENTENCES[1])


def test_names_of_special_tokens_in_a_text_are_plain(tokenizer_json: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_json)
    copy = pickle.loads(pickle.dumps(tokenizer))
    for each in (tokenizer, copy):
        ids = each.encode("the <|im_end|> of it")
        assert not {0, 1, 2} & set(ids) and len(ids) > 8


def test_vocabulary_of_another_model_is_refused(tokenizer_json: Path) -> None:
    tokenizer, weights = load_tokenizer(tokenizer_json), Path("weights/model.gguf")
    check_vocabulary(tokenizer, 320, weights)
    check_vocabulary(tokenizer, 512, weights)  # rounded up
    with pytest.raises(UserError, match=r"token 319, but weights/model.gguf ends at token 318;"):
        check_vocabulary(tokenizer, 319, weights)


DAMAGED = {
    "sentencepiece": ({"model": "llama"}, "of the kind llama, of which gpt-2,"),
    "other words": ({"pre": "tekken"}, "of the kind tekken, .*; use the tokenizer.json"),
    "no tokenizer": ({"model": None}, "of the kind unknown"),
    "no merges": ({"merges": None}, "no tokenizer.ggml.merges; use the tokenizer.json"),
    "no kind": ({"pre": None}, "of the kind unknown, of which"),
    "short types": ({"token_type": [1, 1]}, "damaged tokenizer .*; get the file again"),
    "long types": ({"token_type": [1] * 321}, "damaged tokenizer .*; get the file again"),
    "stray merge": ({"merges": ["qq zz"]}, "damaged tokenizer .*; get the file again"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_gguf_without_a_known_tokenizer_is_refused(
    tmp_path: Path, tokenizer_json: Path, case: str
) -> None:
    changes, message = DAMAGED[case]
    fields = gguf_fields(tokenizer_json) | changes
    path = write_gguf(
        tmp_path / "m.gguf", {name: value for name, value in fields.items() if value is not None}
    )
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.gguf", None, "none.gguf: no such file; name a tokenizer.json"),
        ("", None, "tokenizer.json: no such file; name a tokenizer.json, a folder"),
        ("tokenizer.json", "{", "not a tokenizer.json .*; get it from"),
        ("tokenizer.json", '{"model": {}}', "not a tokenizer.json .*; get it from"),
        ("weights.gguf", "not a GGUF file", "damaged GGUF file .*; get it again"),
    ],
)
def test_file_that_is_no_tokenizer_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_truncated_gguf_is_refused(tmp_path: Path, tokenizer_json: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", gguf_fields(tokenizer_json))
    path.write_bytes(path.read_bytes()[:-2_000])
    with pytest.raises(UserError, match="m.gguf: .*; get it again"):
        load_tokenizer(path)


@pytest.mark.parametrize(("package", "name"), [("tokenizers", "t.json"), ("gguf", "m.gguf")])
def test_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r'need: pip install "gac_jax\[text\]"'):
        load_tokenizer(tmp_path / name)


def test_real_smollm2() -> None:
    path = assets.smollm2()
    tokenizer = load_tokenizer(path)
    check_vocabulary(tokenizer, 49_152, path)
    # What llama.cpp makes of them.
    assert tokenizer.encode("un calculator.  6x7=42") == [
        *(419, 17993, 30, 256, 38, 104, 39, 45, 36, 34)
    ]
    assert tokenizer.encode("<|im_end|>") == [44, 108, 306, 79, 486, 108, 46]
    targets = TextTargets(tokenizer, "chatml", 48)
    assert targets.suffix("describe").tolist() == [
        *(198, 37964, 260, 2139, 30, 2, 198, 1, 520, 9531, 198)
    ]


def test_prompts_are_laid_out_as_the_model_knows_them(tokenizer_json: Path) -> None:
    chatml = targets_of(tokenizer_json)
    assert plain_text(np.append(chatml.prefix, chatml.suffix("transcribe")), tokenizer_json) == (
        "<|im_start|>system\nYou put into words what you hear.<|im_end|>\n"
        "<|im_start|>user\n\nTranscribe the speech.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chatml.prefix.dtype == np.int32 and list(chatml.prefix).count(1) == 2
    plain = targets_of(tokenizer_json, "plain")
    assert plain.prefix.shape == (0,) and plain.prefix.dtype == np.int32
    assert plain_text(plain.suffix("describe"), tokenizer_json) == "\nDescribe the sound.\n"
    assert (chatml.end, plain.end) == (2, 0)


def test_model_with_a_start_token_gets_it(tmp_path: Path, tokenizer_json: Path) -> None:
    model = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    model.add_special_tokens(["<|begin_of_text|>"])
    model.save(str(tmp_path / "tokenizer.json"))
    assert targets_of(tmp_path, "plain").prefix.tolist() == [320]
    assert 320 not in targets_of(tmp_path, "chatml").prefix


def test_every_style_has_every_task() -> None:
    for prompt in PROMPTS.values():
        assert tuple(prompt.suffixes) == TASKS
        assert all(suffix.endswith("\n") for suffix in prompt.suffixes.values())


def test_transcripts_are_written_alike() -> None:
    for text in ("THE RAIN \n FALLS", "  The rain\tfalls "):
        assert answer_of(Clip("a", "speech", text=text), True, rng_of()) == (
            "transcribe",
            "the rain falls",
        )
    label = Clip("a", "music", label=" music: Suspense ")
    assert answer_of(label, True, rng_of()) == ("describe", "music: Suspense")


def test_piece_of_a_clip_has_no_transcript() -> None:
    both = Clip("a", "speech", text="hello", label="a greeting")
    draws = [answer_of(both, False, rng_of(seed)) for seed in range(20)]
    assert draws == [("describe", "a greeting")] * 20
    assert answer_of(Clip("a", "speech", text="hello"), False, rng_of()) is None


def test_clip_with_both_is_asked_either() -> None:
    both = Clip("a", "speech", text="hello", label="a greeting")
    draws = [answer_of(both, True, rng_of(seed)) for seed in range(200)]
    assert set(draws) == {("transcribe", "hello"), ("describe", "a greeting")}
    assert 70 < sum(draw[0] == "describe" for draw in draws) < 130


@pytest.mark.parametrize("clip", [Clip("a", "other"), Clip("a", "other", text=" \n", label="\t ")])
def test_clip_without_words_has_no_target(tokenizer_json: Path, clip: Clip) -> None:
    example = targets_of(tokenizer_json).of(clip, True, rng_of())
    assert (example["text_length"], example["answer_start"]) == (0, 0)
    assert (example["text"] == 2).all()


@pytest.mark.parametrize("style", PROMPTS)
def test_text_holds_suffix_answer_and_end(tokenizer_json: Path, style: str) -> None:
    targets = targets_of(tokenizer_json, style)
    example = targets.of(Clip("a", "speech", text="THE RAIN"), True, rng_of())
    assert {name: (value.shape, value.dtype.name) for name, value in example.items()} == {
        "text": ((64,), "int32"),
        "text_length": ((), "int32"),
        "answer_start": ((), "int32"),
    }
    answer = [*load_tokenizer(tokenizer_json).encode("the rain"), targets.end]
    suffix = targets.suffix("transcribe")
    assert counted(example).tolist() == answer
    np.testing.assert_array_equal(example["text"][: example["answer_start"]], suffix)
    assert example["text_length"] == len(suffix) + len(answer)
    assert (example["text"][example["text_length"] :] == targets.end).all()


def test_long_answer_is_cut_and_named_once(
    tokenizer_json: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = Clip("folder/long.wav", "speech", text="the rain falls and falls")
    ids = load_tokenizer(tokenizer_json).encode(clip.text)
    prompt = len(targets_of(tokenizer_json, "plain").suffix("transcribe"))
    with caplog.at_level(logging.WARNING, logger="absl"):
        targets = targets_of(tokenizer_json, "plain", prompt + len(ids) + 1)
        assert counted(targets.of(clip, True, rng_of())).tolist() == [*ids, targets.end]
        assert not caplog.messages  # it just fits
        for missing in (1, 2, 3):
            targets = targets_of(tokenizer_json, "plain", prompt + len(ids) + 1 - missing)
            cut = targets.of(clip, True, rng_of())
            assert counted(cut).tolist() == ids[: len(ids) + 1 - missing]
    assert len(caplog.messages) == 1
    assert "folder/long.wav: 1 tokens too long; raise max_tokens" in caplog.messages[0]


def test_prompt_that_leaves_no_room_is_refused(tokenizer_json: Path) -> None:
    longest = max(len(targets_of(tokenizer_json).suffix(task)) for task in TASKS)
    targets_of(tokenizer_json, max_tokens=longest + 2)  # an answer of one token, and the end
    with pytest.raises(UserError, match=f"max_tokens is {longest + 1}, but .* raise it"):
        targets_of(tokenizer_json, max_tokens=longest + 1)


def test_style_that_the_tokenizer_lacks_is_refused(tmp_path: Path, tokenizer_json: Path) -> None:
    fields = gguf_fields(tokenizer_json)
    fields["tokens"][:3] = ["<|a|>", "<|b|>", "<|c|>"]
    path = write_gguf(tmp_path / "m.gguf", fields)
    with pytest.raises(UserError, match=r"m.gguf: no token <\|im_end\|>, .* choose another style"):
        targets_of(path, "chatml")
    with pytest.raises(UserError, match=r"no token <\|endoftext\|> or <\|end_of_text\|> or </s>"):
        targets_of(path, "plain")
    with pytest.raises(UserError, match="prompt style 'alpaca' is none of plain, chatml"):
        targets_of(tokenizer_json, "alpaca")


def test_only_the_answer_and_its_end_count(tokenizer_json: Path) -> None:
    targets = targets_of(tokenizer_json)
    clips = [
        Clip("a", "speech", text="the rain"),
        Clip("b", "sound", label="a dog barks"),
        Clip("c", "other"),
    ]
    examples = [targets.of(clip, True, rng_of()) for clip in clips]
    batch = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
    slots = np.arange(64)[None]
    mask = (batch["answer_start"][:, None] <= slots) & (slots < batch["text_length"][:, None])
    for row, example in zip(mask, examples, strict=True):
        np.testing.assert_array_equal(example["text"][row], counted(example))
    assert mask.sum(axis=1).tolist() == [len(counted(example)) for example in examples]
    assert mask.sum(axis=1).tolist()[2] == 0 < min(mask.sum(axis=1)[:2])


def test_corpus_without_words_is_refused() -> None:
    with pytest.raises(UserError, match="m.csv: no clip has a label, or a text and at most 2.5 s"):
        check_answers([Clip("a", "speech", text=" "), Clip("b", "other")], 2.5, "m.csv")
    long = Clip("a", "speech", text="hello", dur_s=3.0)
    with pytest.raises(UserError, match="raise crop_frames"):
        check_answers([long], 2.5, "m.csv")
    check_answers([long, Clip("b", "speech", text="of unknown length")], 2.5, "m.csv")
    check_answers([Clip("b", "speech", text="hello", dur_s=2.503)], 2.5, "m.csv")  # rounded
    check_answers([long, Clip("b", "sound", label="rain", dur_s=9.0)], 2.5, "m.csv")
