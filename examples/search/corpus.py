"""The documents: one for each public function, class and method of Python's own standard library.
A document is a qualified name and its docstring; nothing is read from outside this Python installation."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import io
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

# Importing these acts (a browser, a poem, a window), or they are programs and tests rather than a library.
NOT_A_LIBRARY = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "test", "ensurepip", "pydoc_data"}
# Leaving Python; setuptools replaces the one, and the other writes grammar files when it is imported.
LEAVING = {"distutils", "lib2to3"}
# The platform modules behind `os` and `os.path`, which is where their functions are documented.
BEHIND_OS = {"genericpath", "nt", "ntpath", "posix", "posixpath"}
SKIPPED_PACKAGES = NOT_A_LIBRARY | LEAVING | BEHIND_OS


@dataclass(frozen=True)
class Document:
    """One documented object. `names` are all the qualified names that reach it, the preferred one first."""

    names: tuple[str, ...]
    docstring: str

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def text(self) -> str:
        """What is encoded: the preferred name, then the docstring."""
        return f"{self.name}: {self.docstring}"


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their preferred names, and the modules that this installation cannot import."""

    documents: tuple[Document, ...]
    unavailable: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of every encoded text, in order."""
        joined = "\0".join(document.text for document in self.documents)
        return hashlib.sha256(joined.encode()).hexdigest()

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Qualified name → index of the document that it reaches."""
        return {name: index for index, document in enumerate(self.documents) for name in document.names}


def collect() -> Corpus:
    """Collect the corpus in an isolated interpreter.

    Isolated (no site packages, no environment), so that the same Python always gives the same documents, and a child
    process, so that importing some three hundred modules leaves nothing behind in this one.
    """
    command = [sys.executable, "-I", "-S", "-W", "ignore", str(Path(__file__).resolve())]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout)
    documents = tuple(Document(tuple(entry["names"]), entry["docstring"]) for entry in answer["documents"])
    return Corpus(documents, tuple(answer["unavailable"]))


def _module_names() -> Iterator[str]:
    """Dotted names of every public module and submodule of the standard library, and `os.path`."""
    yield "os.path"
    for top in sorted(sys.stdlib_module_names):
        if top.startswith("_") or top in SKIPPED_PACKAGES:
            continue
        yield top
        spec = importlib.util.find_spec(top)
        if spec is None or spec.submodule_search_locations is None:
            continue
        for info in pkgutil.walk_packages(spec.submodule_search_locations, f"{top}.", onerror=lambda name: None):
            parts = info.name.split(".")
            if not any(part.startswith("_") or part in {"test", "tests", "idle_test"} for part in parts):
                yield info.name


def _public_members(module: ModuleType) -> Iterator[tuple[str, object]]:
    """What a module offers: its `__all__`, or else the public names that its package or its C twin defines."""
    exported = getattr(module, "__all__", None)
    package = module.__name__.partition(".")[0]
    for name in sorted(vars(module) if exported is None else set(exported)):
        member = getattr(module, name, None)
        defined_in = (getattr(member, "__module__", None) or "").partition(".")[0]
        if not name.startswith("_") and (exported is not None or defined_in.lstrip("_") == package):
            yield name, member


def _public_attributes(cls: type) -> dict[str, object]:
    """What a class defines under public names, itself or in a private base class (such as `argparse`'s)."""
    attributes: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        path = f"{base.__module__}.{base.__qualname__}".split(".")
        if base is cls or any(part.startswith("_") for part in path):
            attributes.update((name, value) for name, value in vars(base).items() if not name.startswith("_"))
    return attributes


def _documented(name: str, member: object) -> Iterator[tuple[str, str, str]]:
    """(qualified name, own name, docstring) of a function, or of a class, its methods and its nested classes."""
    docstring = getattr(member, "__doc__", None)
    if (inspect.isclass(member) or inspect.isroutine(member)) and isinstance(docstring, str) and docstring.strip():
        own_name = getattr(member, "__name__", name.rpartition(".")[2])
        yield name, own_name, inspect.cleandoc(docstring).strip()
    if inspect.isclass(member):
        for attribute, value in _public_attributes(member).items():
            nested = not inspect.isclass(value) or value.__qualname__ == f"{member.__qualname__}.{attribute}"
            if nested:
                yield from _documented(f"{name}.{attribute}", value)


def _collect_here() -> Corpus:
    names_of: dict[tuple[str, str], set[str]] = {}
    unavailable = []
    for module_name in _module_names():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            unavailable.append(module_name)
            continue
        prefix = "" if module_name == "builtins" else f"{module_name}."
        for name, member in _public_members(module):
            for qualified, own_name, docstring in _documented(prefix + name, member):
                # One object under several names, and one method repeated along a class hierarchy, is one document.
                names_of.setdefault((own_name, docstring), set()).add(qualified)
    documents = []
    for (own_name, docstring), names in names_of.items():
        # The object's own name before an alias, then the shortest way to it.
        ranked = sorted(
            names, key=lambda name: (not f".{name}".endswith(f".{own_name}"), name.count("."), len(name), name)
        )
        documents.append(Document(tuple(ranked), docstring))
    return Corpus(tuple(sorted(documents, key=lambda document: document.names)), tuple(sorted(unavailable)))


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        collected = _collect_here()
    json.dump(asdict(collected), sys.stdout)
