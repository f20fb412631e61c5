"""Which CUDA capabilities a section is compiled for.
The rules are kernel-builder's (`cuda_archs_loose_intersection` in its utils.cmake), so both builders agree."""

from __future__ import annotations

import re
from dataclasses import dataclass

from project import BuildError

# What kernel-builder compiles for when a section asks for nothing else, by nvcc version.
_DEFAULTS = (
    ((13, 0), ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "11.0", "12.0+PTX")),
    ((12, 8), ("7.0", "7.2", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.1", "12.0+PTX")),
    ((0, 0), ("7.0", "7.2", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0+PTX")),
)


@dataclass(frozen=True, order=True)
class Arch:
    """A compute capability: `9.0`, architecture-specific `9.0a`, family-specific `10.0f`, with or without `+PTX`."""

    major: int
    minor: int
    suffix: str = ""
    ptx: bool = False

    @staticmethod
    def parse(text: str) -> Arch:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", text.strip())
        if match is None:
            raise BuildError(f"{text!r} is not a CUDA capability such as 8.0, 9.0a or 12.0+PTX")
        return Arch(int(match[1]), int(match[2]), match[3], match[4] is not None)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}" + ("+PTX" if self.ptx else "")

    @property
    def base(self) -> Arch:
        return Arch(self.major, self.minor)

    def flags(self) -> list[str]:
        number = f"{self.major}{self.minor}{self.suffix}"
        flags = [f"-gencode=arch=compute_{number},code=sm_{number}"]
        return flags + [f"-gencode=arch=compute_{number},code=compute_{number}"] if self.ptx else flags


def default_archs(nvcc: tuple[int, int]) -> list[Arch]:
    return [Arch.parse(text) for text in next(archs for version, archs in _DEFAULTS if nvcc >= version)]


def loose_intersection(wanted: list[Arch], targets: list[Arch]) -> list[Arch]:
    """The members of `wanted` that serve `targets`: the exact one for `9.0a` and `10.0f`, else for each target the
    highest that is not newer and of the same generation, or of an older one where PTX is asked for."""
    bases = {target.base for target in targets}
    chosen = {arch for arch in wanted if arch.suffix and arch.base in bases}
    plain = sorted(arch for arch in wanted if not arch.suffix)
    for target in bases - {arch.base for arch in chosen}:
        serving = [a for a in plain if a.base <= target and (a.ptx or a.major == target.major)]
        chosen.update(serving[-1:])
    return sorted(chosen)


def section_archs(capabilities: tuple[str, ...] | None, nvcc: tuple[int, int], narrow: list[Arch]) -> list[Arch]:
    """The capabilities of one section.

    `narrow` keeps only what devices of those capabilities run, and adds PTX where it says so. A section that has
    nothing for them is compiled in full all the same: the binding needs its host code.
    """
    defaults = default_archs(nvcc)
    wanted = defaults if capabilities is None else [Arch.parse(text) for text in capabilities]
    in_full = loose_intersection(wanted, defaults)
    if not in_full:
        raise BuildError(f"nvcc {nvcc[0]}.{nvcc[1]} supports none of the capabilities {', '.join(capabilities or ())}")
    supported = [default.base for default in defaults]
    for arch in narrow:
        if arch.base not in supported:
            raise BuildError(f"--archs {arch}: nvcc {nvcc[0]}.{nvcc[1]} builds for {', '.join(map(str, supported))}")
    if not narrow:
        return in_full
    with_ptx = {arch.base for arch in narrow if arch.ptx}
    narrowed = loose_intersection(wanted, narrow)
    return [Arch(a.major, a.minor, a.suffix, a.ptx or a.base in with_ptx) for a in narrowed] or in_full
