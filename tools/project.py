"""What build.toml says, in the terms this builder works in.
The parser of the `kernels` package reads the file first, so nothing passes here that the Hub's tools refuse."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels._rust import Build

BACKENDS = ("cpu", "cuda")

# The keys that take effect here. kernel-builder knows more; one of those must not be ignored in silence.
_GENERAL = {"name", "version", "edition", "license", "upstream", "source", "backends", "hub"}
_TORCH = {"src", "include", "cxx-flags", "pyext", "stable-abi"}
_KERNEL = {"backend", "depends", "src", "include", "cxx-flags", "cuda-flags", "cuda-capabilities"}


class BuildError(Exception):
    """A build that cannot go on; the message is one line for the user."""


@dataclass(frozen=True)
class Section:
    """Sources that share their flags: `[torch]`, or one `[kernel.<name>]`."""

    name: str
    sources: tuple[str, ...]
    include: tuple[str, ...]
    cxx_flags: tuple[str, ...]
    cuda_flags: tuple[str, ...] = ()
    capabilities: tuple[str, ...] | None = None

    def compiled(self) -> list[str]:
        """The sources that are translation units; the headers are listed for kernel-builder's sandbox."""
        return [source for source in self.sources if Path(source).suffix in (".cpp", ".cu")]


@dataclass(frozen=True)
class Project:
    """A kernel's build.toml and where it lies."""

    root: Path
    general: dict[str, Any]
    binding: Section
    kernels: dict[str, tuple[Section, ...]]  # by backend
    stable_abi: dict[str, tuple[int, int]]  # by backend
    python_extensions: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.general["name"]

    @property
    def python_source(self) -> Path:
        return self.root / "torch-ext" / self.name.replace("-", "_")

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends of build.toml that can be built here."""
        return tuple(backend for backend in self.general["backends"] if backend in BACKENDS)

    def sections(self, backend: str) -> tuple[Section, ...]:
        return (self.binding, *self.kernels[backend])


def load(root: Path) -> Project:
    """Read and check `root`/build.toml; raises BuildError with the parser's or this builder's complaint."""
    try:
        Build.open(root)
    except ValueError as error:
        raise BuildError(" ".join(str(error).split())) from None
    table = tomllib.loads((root / "build.toml").read_text())
    general = table["general"]
    _reject_unknown("general", general, _GENERAL)
    if "torch" not in table:
        raise BuildError("build.toml: only [torch] kernels with compiled code can be built here")
    torch = table["torch"]
    _reject_unknown("torch", torch, _TORCH)
    sections: dict[str, list[Section]] = {backend: [] for backend in BACKENDS}
    for name, kernel in table.get("kernel", {}).items():
        if kernel["backend"] in sections:
            _reject_unknown(f"kernel.{name}", kernel, _KERNEL)
            if set(kernel["depends"]) - {"torch"}:
                raise BuildError(f"build.toml: [kernel.{name}] depends may only list torch, not {kernel['depends']}")
            sections[kernel["backend"]].append(_section(f"kernel.{name}", kernel))
    project = Project(
        root=root,
        general=general,
        binding=_section("torch", torch),
        kernels={backend: tuple(found) for backend, found in sections.items()},
        stable_abi={backend: _stable_abi(torch, backend) for backend in BACKENDS if backend in general["backends"]},
        python_extensions=tuple(torch.get("pyext", ("py", "pyi"))),
    )
    _check_files(project)
    return project


def _section(name: str, table: dict[str, Any]) -> Section:
    capabilities = table.get("cuda-capabilities")
    return Section(
        name=name,
        sources=tuple(table["src"]),
        include=tuple(table.get("include", ())),
        cxx_flags=tuple(table.get("cxx-flags", ())),
        cuda_flags=tuple(table.get("cuda-flags", ())),
        capabilities=None if capabilities is None else tuple(capabilities),
    )


def _stable_abi(torch: dict[str, Any], backend: str) -> tuple[int, int]:
    declared = torch.get("stable-abi")
    version = declared.get(backend) if isinstance(declared, dict) else declared
    if version is None:
        raise BuildError(f"build.toml: [torch] has no stable-abi for {backend}; other builds are not made here")
    major, minor = version.split(".")
    return int(major), int(minor)


def _reject_unknown(section: str, table: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise BuildError(f"build.toml: [{section}] uses {', '.join(unknown)}, which this builder does not support")


def _check_files(project: Project) -> None:
    if not (project.python_source / "__init__.py").is_file():
        raise BuildError(f"{project.python_source.relative_to(project.root)}/__init__.py does not exist")
    for backend in project.backends:
        seen: dict[str, str] = {}
        for section in project.sections(backend):
            for source in section.sources:
                if not (project.root / source).is_file():
                    raise BuildError(f"build.toml: [{section.name}] lists {source}, which does not exist")
            for source in section.compiled():
                if seen.setdefault(source, section.name) != section.name:
                    raise BuildError(f"build.toml: {source} is in both [{seen[source]}] and [{section.name}]")
