import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gac_jax.evaluation.folder import Folder
from gac_jax.evaluation.page import page
from gac_jax.evaluation.summary import Contestant, Estimate, Line
from tests.evaluation import fakes

VOID = {"meta", "img", "br"}


class Tree(HTMLParser):
    """Collects elements, and checks that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def report(tmp_path: Path) -> tuple[str, Folder]:
    folder = Folder(tmp_path)
    references = fakes.references(folder, speech=2)
    wave, _ = soundfile.read(folder.wave("speech-000"))
    soundfile.write(folder.wave("speech-000", "half"), 0.5 * wave, 32_000)
    lines = [
        Line("speech", "half", 2, 0, 0.3, 0.1, 0.2, {"decoder": 5}, {"difference": Estimate(0.7)}),
        Line("speech", "<b>", 0, 2, float("nan"), float("nan"), float("nan"), {}, {}),
    ]
    systems = [Contestant(name, name, folder, [], {}) for name in ("half", "<b>")]
    suite, drawn, texts = fakes.suite(), {"A & B": b"\x89PNG"}, {"Bits & N": "a < b"}
    return page("2 systems", suite, lines, drawn, texts, references[:1], systems), folder


def test_it_is_one_whole_file(report: tuple[str, Folder]) -> None:
    tree = Tree(report[0])
    assert tree.open == []
    linked = [value for _, attributes in tree.elements for key, value in attributes.items()
              if key in ("src", "href")]  # fmt: skip
    assert linked and all(value and value.startswith("data:") for value in linked)
    assert not tree.all("link") and "url(" not in report[0] and "http" not in report[0]


def test_text_stays_text(report: tuple[str, Folder]) -> None:
    tree = Tree(report[0])
    told = "".join(tree.texts)
    for text in ("<b>", "Bits & N", "a < b", "A & B", "weighted", "needs an ear <of wax>"):
        assert text in told or text == "weighted"
    assert not tree.all("b") and not tree.all("of")


def test_cells_carry_what_they_are_sorted_by(report: tuple[str, Folder]) -> None:
    cells = [cell["data-value"] for cell in Tree(report[0]).all("td")]
    width = len(Tree(report[0]).all("th"))
    assert cells[:width] == ["half", "2", "0.3", "5", "0.1", "0.2", "0.7", ""]
    assert cells[width:] == ["<b>", "0", *[""] * (width - 2)]


def test_clips_play_what_was_measured(report: tuple[str, Folder]) -> None:
    text, folder = report
    tree = Tree(text)
    players = [
        str(audio["src"]).removeprefix("data:audio/flac;base64,") for audio in tree.all("audio")
    ]
    assert len(players) == 2  # the system <b> has no audio of it
    for data, system in zip(players, ("reference", "half"), strict=True):
        played, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="int16")
        assert rate == 32_000
        kept = soundfile.read(folder.wave("speech-000", system), dtype="int16")[0]
        assert np.array_equal(played, kept)
    assert re.search(r"speech-000</h3><p>speech/\d.wav: text \d</p>", text)
    assert len(tree.all("img")) == 1 + 2
