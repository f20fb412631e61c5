"""What the documentation says, held against the package: every Python snippet runs and prints what its comments say.
The snippets of a page share their names. A fence marked `python cuda` runs where there is a GPU, and one that names a
library where that library is."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import torchvision_ops
from helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CARD.md", *sorted((ROOT / "docs").rglob("*.md"))]
LIBRARIES = ("colpali_engine", "pylate", "sentence_transformers")
FENCES = {"", "python", "python cuda", "sh", "text", "toml", *(f"python {library}" for library in LIBRARIES)}


class Snippet(NamedTuple):
    """A fenced block: what its fence says, the line before its first one, its text."""

    info: str
    line: int
    text: str


def snippets(page: Path) -> list[Snippet]:
    found: list[Snippet] = []
    opened: Snippet | None = None
    for number, line in enumerate(page.read_text().splitlines(keepends=True), start=1):
        if not line.startswith("```"):
            opened = opened and opened._replace(text=opened.text + line)
        elif opened is None:
            opened = Snippet(line[3:].strip(), number, "")
        else:
            found.append(opened)
            opened = None
    assert opened is None, f"{page.name}:{opened.line} opens a fence that nothing closes"
    return found


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def having(info: str) -> list[Path]:
    return [page for page in PAGES if any(snippet.info == info for snippet in snippets(page))]


def run(page: Path, infos: set[str], repo_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the page's snippets in order; each `print(…)  # text` must have printed text."""
    names: dict[str, object] = {"__name__": "__main__"}
    for snippet in snippets(page):
        if snippet.info not in infos:
            continue
        code = snippet.text.replace("<org>/maxsim", repo_id).replace("{{ repo_id }}", repo_id)
        code = code.replace("{{version}}", "1")
        capsys.readouterr()
        exec(compile("\n" * snippet.line + code, str(page), "exec"), names)
        printed = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == printed


@pytest.fixture
def repo_id(maxsim: ModuleType) -> str:
    """The id that LOCAL_KERNELS resolves to the build under test, once `maxsim` is loaded."""
    return tomllib.loads((ROOT / "build.toml").read_text())["general"]["hub"]["repo-id"]


@pytest.mark.parametrize("page", having("python"), ids=page_id)
def test_snippets_run_and_print_what_they_say(page, repo_id, capsys):
    run(page, {"python"}, repo_id, capsys)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("page", having("python cuda"), ids=page_id)
def test_snippets_for_cuda(page, repo_id, capsys):
    run(page, {"python", "python cuda"}, repo_id, capsys)


@pytest.mark.parametrize("library", LIBRARIES)
def test_snippets_for_libraries(library, repo_id, capsys):
    """Each where its library is, as `make test` arranges; PyLate comes with an older sentence-transformers."""
    if find_spec(library) is None or (library == "sentence_transformers" and find_spec("pylate") is not None):
        pytest.skip(f"{library} is not on the path, or not in the version that the page is about")
    if library == "colpali_engine":
        torchvision_ops.declare()
    pages = having(f"python {library}")
    assert pages
    for page in pages:
        run(page, {"python", f"python {library}"}, repo_id, capsys)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_fences_say_what_is_in_them(page):
    """A fence that no test knows would not be run."""
    assert {snippet.info for snippet in snippets(page)} <= FENCES
    assert not re.search(r"^[ >]+```", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in re.findall(rf"`((?:{folders})/[\w./-]*\w)`", text):
        assert (ROOT / path).exists(), path


def test_every_public_name_is_documented(maxsim):
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in maxsim.__all__ if not re.search(rf"`(?:maxsim\.)?{name}\b", text)] == []


def test_the_schemas_are_those_of_the_ops(maxsim):
    (written,) = (s.text for s in snippets(ROOT / "docs/ops.md") if s.info == "text" and s.text.startswith("problem"))
    problem, *ops = (" ".join(part.split()) for part in written.split("\n\n"))
    namespace = getattr(torch.ops, maxsim.__name__)
    for op in ops:
        name, _ = op.split("(", 1)
        schema = str(getattr(namespace, name).default._schema).removeprefix(f"{maxsim.__name__}::")
        # forward has a default wherever it can: what a call leaves out costs it nothing
        assert op.replace("<problem>", problem.removeprefix("problem: ")) == schema.replace("=None", "")


def test_the_paths_are_numbered_as_written(maxsim):
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "docs/ops.md").read_text(), re.MULTILINE)
    assert {name: int(number) for number, name in rows} == sys.modules[f"{maxsim.__name__}.paths"]._NUMBERS
