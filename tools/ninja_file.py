"""Writes the build.ninja of one variant: kernel-builder's flags, one object per source, one abi3 module.
Only sources that name TORCH_EXTENSION_NAME know the build's id, so a new commit recompiles them and nothing else."""

from __future__ import annotations

import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from archs import Arch, section_archs
from ninja import ninja_syntax
from project import BuildError, Project, Section
from toolchain import Cuda, Torch, cxx_accepts

MODULE = "module.abi3.so"
PYTHON_ABI = "0x03090000"

# torch's CPU build has no libtorch_cuda.so. The module must name it as NEEDED, or its symbols stay unresolved in a
# process whose torch has it; one symbol makes the stub a library that can be linked.
CUDA_STUB = """\
// Stands in for the libtorch_cuda.so of a CUDA build of torch while linking; never loaded.
extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }
"""


@dataclass(frozen=True)
class Build:
    """One variant to compile."""

    project: Project
    backend: str
    ops_name: str
    work: Path  # relative to the project's root, where ninja runs
    torch: Torch
    cxx: str
    python_include: Path
    cuda: Cuda | None
    narrow: list[Arch]
    sanitizers: tuple[str, ...]

    def archs(self, section: Section) -> list[Arch]:
        return section_archs(section.capabilities, self.cuda.version, self.narrow) if self.cuda else []


def render(build: Build) -> str:
    """The text of build.ninja; every path of the project is relative to its root."""
    text = io.StringIO()
    ninja = ninja_syntax.Writer(text, width=120)
    ninja.variable("ninja_required_version", "1.10")
    ninja.variable("builddir", str(build.work))
    for rule, compiler in (("cxx", build.cxx), ("cuda", build.cuda and str(build.cuda.nvcc))):
        if compiler:
            ninja.rule(
                rule,
                f"{_command([compiler])} $flags -MD -MF $out.d -c $in -o $out",
                description=f"{rule} $in",
                depfile="$out.d",
                deps="gcc",
            )
    ninja.rule("link", f"{_command([build.cxx])} -shared -o $out $in $flags", description="link $out")
    objects = []
    for section in build.project.sections(build.backend):
        objects += _objects(ninja, build, section)
    libraries, stub = _libraries(ninja, build)
    flags = [*_sanitizer_flags(build), f"-L{build.torch.root}/lib", *libraries]
    ninja.build(str(build.work / MODULE), "link", objects, implicit=stub, variables={"flags": _command(flags)})
    return text.getvalue()


def _objects(ninja: ninja_syntax.Writer, build: Build, section: Section) -> list[str]:
    shared = _shared_flags(build, section)
    gencode = [flag for arch in build.archs(section) for flag in arch.flags()]
    objects = []
    for source in section.compiled():
        target = str(build.work / "obj" / f"{source}.o")
        named = _named_flags(build) if _names_extension(build.project.root / source) else []
        if source.endswith(".cpp"):
            rule, flags = "cxx", [*_cxx_flags(build), *named, *shared, *section.cxx_flags]
        elif build.cuda:
            rule, flags = "cuda", [*_cuda_flags(build), *named, *shared, *gencode, *section.cuda_flags]
        else:
            raise BuildError(f"build.toml: [{section.name}] lists {source} for the {build.backend} backend")
        ninja.build(target, rule, source, variables={"flags": _command(flags)})
        objects.append(target)
    return objects


def _shared_flags(build: Build, section: Section) -> list[str]:
    """Definitions and include paths that both compilers take."""
    major, minor = build.project.stable_abi[build.backend]
    flags = [f"-DTORCH_TARGET_VERSION={(major << 56) | (minor << 48):#018x}ULL", f"-DPy_LIMITED_API={PYTHON_ABI}"]
    flags += ["-DCUDA_KERNEL", "-DUSE_CUDA=1", "-isystem", str(build.cuda.include)] if build.cuda else ["-DCPU_KERNEL"]
    flags += [f"-I{path}" for path in section.include]
    return [*flags, "-isystem", f"{build.torch.root}/include"]


def _named_flags(build: Build) -> list[str]:
    """What kernel-builder gives every source of every section, as one target has them all: the name that ops are
    registered under, registration.h beside the binding, and Python's headers."""
    name = f"-DTORCH_EXTENSION_NAME={build.ops_name}"
    return [name, f"-I{build.work}/generated", "-isystem", str(build.python_include)]


def _names_extension(source: Path) -> bool:
    """Whether a source, or a header that it finds beside itself, needs those flags."""
    waiting, seen = [source], set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        text = path.read_text()
        if "TORCH_EXTENSION_NAME" in text or '#include "registration.h"' in text:
            return True
        headers = {(path.parent / name).resolve() for name in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE)}
        waiting += [header for header in headers - seen if header.is_file()]
    return False


def _cxx_flags(build: Build) -> list[str]:
    # GCC's own AVX-512 headers set off maybe-uninitialized (its bug 105593).
    warnings = ["-Wall", "-Wextra", "-Wno-maybe-uninitialized"]
    optimize = "-O1" if build.sanitizers else "-O3"  # instrumented and inlined, -O3 takes minutes a file
    return ["-std=gnu++17", optimize, "-DNDEBUG", *warnings, *_host_flags(build), *_sanitizer_flags(build)]


def _cuda_flags(build: Build) -> list[str]:
    host = ",".join(_host_flags(build))
    return ["-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", f"-ccbin={build.cxx}", f"-Xcompiler={host}"]


def _host_flags(build: Build) -> list[str]:
    """Flags for host code: torch's headers put their own path into messages, which must not vary by machine."""
    unique = [flag for flag in ("-fno-gnu-unique",) if cxx_accepts(build.cxx, flag)]
    return ["-fPIC", *unique, f"-ffile-prefix-map={build.torch.root.parent}/="]


def _sanitizer_flags(build: Build) -> list[str]:
    if not build.sanitizers:
        return []
    return [f"-fsanitize={','.join(build.sanitizers)}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]


def _libraries(ninja: ninja_syntax.Writer, build: Build) -> tuple[list[str], list[str]]:
    """Link flags, and the stub that has to exist first."""
    flags = ["-Wl,--no-as-needed", "-ltorch_cpu"]
    if build.cuda is None:
        return flags, []
    cudart = ["-Wl,--as-needed", str(build.cuda.cudart)]
    if build.torch.cuda:
        return [*flags, "-ltorch_cuda", *cudart], []
    stub = str(build.work / "stub" / "libtorch_cuda.so")
    stub_flags = {"flags": "-fPIC -Wl,-soname,libtorch_cuda.so"}
    ninja.build(stub, "link", str(build.work / "generated" / "torch_cuda_stub.cpp"), variables=stub_flags)
    return [*flags, stub, *cudart], [stub]


def _command(words: list[str]) -> str:
    return ninja_syntax.escape(shlex.join(words))
