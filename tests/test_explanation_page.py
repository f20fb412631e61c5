"""The heat map, pixel by pixel, and the page: its words and numbers, then what a real browser makes of it.
A browser on PATH is used, else the one that `make test` unpacks into .venv/browser."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from PIL import Image

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, (*NAMES, str(ROOT / ".venv/browser/chromium")))), None)
ORANGE, BLUE = (217, 95, 2), (8, 48, 107)

QUERY = ["[CLS]", "join", "two", "path", "##s"]
DOCUMENT = ["[CLS]", "join", "one", "or", "more", "path", "segments", "<b>"]
EYE = torch.eye(8)
# "join" and "two" match "join" (1.0 and 0.5), "path" and "##s" match "path"; [CLS] is masked.
Q = torch.stack([EYE[0], EYE[1], 0.5 * EYE[1], EYE[5], 0.25 * EYE[5]])
Q_MASK = torch.tensor([False, True, True, True, True])


def page(maxsim) -> str:
    return maxsim.explain_page(QUERY, DOCUMENT, Q, EYE, Q_MASK, title="Why <this>?")


class Reader(HTMLParser):
    """Every element with its attributes and the text directly inside, and that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict, list[str]]] = []
        self.elements: list[tuple[str, dict, list[str]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in ("meta", "img"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.open[-1][2].append(data)

    def all(self, tag: str) -> list[tuple[dict, str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]


def test_the_heat_map_is_one_cell_for_each_pair(maxsim):
    similarities = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.0, 1.0]])
    png = maxsim.heat_map(similarities, torch.tensor([1, -1]), cell=3)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.size == (9, 6)
    assert [image.getpixel((x, 1)) for x in (1, 4, 7)] == [(255, 255, 255), ORANGE, (132, 152, 181)]
    assert [image.getpixel((x, 4)) for x in (1, 4, 7)][1:] == [(255, 255, 255), BLUE]
    assert len(image.getcolors()) == 5


def test_a_flat_heat_map(maxsim):
    image = Image.open(io.BytesIO(maxsim.heat_map(torch.full((2, 2), 0.3), cell=1)))
    assert image.size == (2, 2) and len(image.getcolors()) == 1


def test_the_page_says_what_matched(maxsim):
    text = page(maxsim)
    read = Reader(text)
    assert read.all("title")[0][1] == "Why <this>?" and "<this>" not in text
    assert ("Score ", "2.7500") == (read.all("p")[0][1], read.all("strong")[0][1])
    spans = read.all("span")
    assert [(a["data-winner"], t) for a, t in spans if "data-winner" in a] == [
        ("-1", "[CLS]"), ("1", "join"), ("1", "two"), ("5", "path"), ("5", "s")
    ]  # fmt: skip
    highlighted = {a["id"]: a["title"] for a, _ in spans if "style" in a}
    assert highlighted == {"d1": "1.0000", "d5": "1.0000"}
    assert ">path</span><span" in text and "&lt;b&gt;" in text
    cells = [t for _, t in read.all("td")]
    assert cells[:8] == ["[CLS]", "–", "–", "0.0000", "join", "join", "1", "1.0000"]
    assert cells[-4:] == ["##s", "path", "5", "0.2500"]
    assert read.all("img")[0][0]["src"].startswith("data:image/png;base64,")
    assert "http" not in text, "the page loads nothing"


def test_pieces_of_a_word_are_written_together(maxsim):
    tokens = ["▁Par", "is", "▁is", "▁big", "."]
    text = maxsim.explain_page(["big"], tokens, EYE[:1], EYE[:5])
    document = text.split("<h2>Document</h2>")[1].split("</p>")[0]
    assert re.sub("<[^>]*>", "", document).strip() == "Paris is big."


def test_a_page_without_a_match(maxsim):
    read = Reader(maxsim.explain_page(["a"], [], EYE[:1], EYE[:0]))
    assert not read.all("img") and [t for _, t in read.all("td")] == ["a", "–", "–", "0.0000"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.explain_page(QUERY[:2], DOCUMENT, Q, EYE), "query_tokens must be one text for each of 5"),
        (lambda m: m.explain_page(QUERY, DOCUMENT, Q[None], EYE), r"Q must be \[Lq, d\]"),
        (lambda m: m.heat_map(EYE[0]), r"similarities must be a tensor \[Lq, Ld\]; got \(8,\)"),
        (lambda m: m.heat_map(EYE[:0]), "similarities must have at least one cell"),
        (lambda m: m.heat_map(EYE, EYE), r"winners must be a tensor \[8\]; got \(8, 8\)"),
        (lambda m: m.heat_map(EYE, cell=0), "cell must be an int of at least 1; got 0"),
    ],
)
def test_errors_name_the_argument(maxsim, call, message):
    with pytest.raises(ValueError, match=message):
        call(maxsim)


def browse(path: Path, *options: str) -> str:
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1000,1400",
        *options,
        path.as_uri(),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.skipif(BROWSER is None, reason="no browser on PATH or in .venv/browser")
def test_a_browser_shows_the_page(maxsim, tmp_path):
    """The script points at "two" as a reader would, and the screenshot has what should be there, where it should be."""
    point = """<script>
    const places = [...document.querySelectorAll("#d1, #d2, #d5, img")].map(e => e.getBoundingClientRect());
    document.querySelectorAll(".q")[2].dispatchEvent(new Event("mouseenter"));
    document.body.dataset.places = places.map(p => [p.left, p.top, p.right, p.bottom].map(Math.round)).join(";");
    </script></body>"""
    path = tmp_path / "page.html"
    path.write_text(page(maxsim).replace("</body>", point), encoding="utf-8")
    loaded = Reader(browse(path, "--dump-dom"))
    (shown,) = (a["id"] for a, _ in loaded.all("span") if a.get("class") == "shown")
    assert shown == "d1"
    places = [tuple(map(int, p.split(","))) for p in loaded.all("body")[0][0]["data-places"].split(";")]
    browse(path, f"--screenshot={tmp_path / 'page.png'}", "--hide-scrollbars")
    screenshot = Image.open(tmp_path / "page.png").convert("RGB")

    def colors(place: tuple[int, ...], around: int = 0) -> set[tuple[int, ...]]:
        left, top, right, bottom = place
        box = (left - around, top - around, right + around, bottom + around)
        return {color for _, color in screenshot.crop(box).getcolors(1 << 20)}

    joined, unmatched, path_word, image = places
    assert ORANGE in colors(joined) and ORANGE in colors(path_word) and ORANGE not in colors(unmatched)
    assert BLUE in colors(joined, around=4) and BLUE not in colors(path_word, around=2)
    assert {ORANGE, (255, 255, 255)} <= colors(image)
