"""Compiles the real .metal files, launch plan and binding for this machine's CPU, with headers that stand in for Metal.
The result is the whole package, whose CPU tensors are scored by the emulated GPU."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import variant
from project import load as load_project

ROOT = Path(os.path.abspath(__file__)).parents[2]
EMULATOR = ROOT / "tests/metal/emulator"
OBJC = ROOT / "tests/metal/objc"
KERNELS = ROOT / "maxsim_metal"
OUTPUT = ROOT / ".build/metal"

# What each parameter attribute of a kernel is, in terms of an emulated thread's position.
BUILT_IN = {
    "threadgroup_position_in_grid": "metal::uint3(p.group[0], p.group[1], p.group[2])",
    "threadgroups_per_grid": "metal::uint3(p.groups[0], p.groups[1], p.groups[2])",
    "thread_index_in_threadgroup": "p.thread_index",
    "thread_index_in_simdgroup": "p.thread_index % 32",
    "simdgroup_index_in_threadgroup": "p.thread_index / 32",
}


@dataclass(frozen=True)
class Argument:
    """One parameter of a kernel: its type as written, and its attribute, e.g. ("buffer", 3)."""

    type: str
    name: str
    attribute: str
    index: int | None


@dataclass(frozen=True)
class Kernel:
    """A kernel of the metallib: the name the host asks for, and the function behind it."""

    name: str
    function: str
    arguments: tuple[Argument, ...]


def without_comments(source: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)


def kernels_of(source: str) -> list[Kernel]:
    """The kernels that a .metal file defines, as the Metal compiler would find them."""
    source = without_comments(source)
    signatures: dict[str, tuple[bool, tuple[Argument, ...]]] = {}
    attribute = r"\[\[kernel, max_total_threads_per_threadgroup\(kThreads\)\]\]"
    for found in re.finditer(
        rf"(template\s*<[^>]*>\s*)?{attribute}\s*void\s+(\w+)\s*\((.*?)\)\s*\{{", source, re.DOTALL
    ):
        arguments = []
        for text in re.split(r",(?![^(]*\))", found[3]):
            one = re.fullmatch(r"\s*(.+?)(\w+)\s*\[\[(\w+)(?:\((\d+)\))?\]\]\s*", text, re.DOTALL)
            assert one, f"{found[2]}: cannot read the parameter {text.strip()!r}"
            arguments.append(Argument(one[1].strip(), one[2], one[3], int(one[4]) if one[4] else None))
        signatures[found[2]] = (found[1] is not None, tuple(arguments))
    kernels = [Kernel(name, name, arguments) for name, (template, arguments) in signatures.items() if not template]
    for found in re.finditer(
        r'template\s*\[\[host_name\("(\w+)"\)\]\]\s*\[\[kernel\]\]\s*decltype\((\w+)<(.*?)>\)\s*\2<\3>;', source
    ):
        kernels.append(Kernel(found[1], f"{found[2]}<{found[3]}>", signatures[found[2]][1]))
    return kernels


def _expression(argument: Argument) -> str:
    if argument.attribute == "buffer":
        if argument.type.endswith("&"):
            return f"*reinterpret_cast<{argument.type[:-1]}*>(b[{argument.index}])"
        return f"reinterpret_cast<{argument.type}>(b[{argument.index}])"
    if argument.attribute == "threadgroup":
        return f"reinterpret_cast<{argument.type}>(memory)"
    return BUILT_IN[argument.attribute]


def translation_unit(metal: Path, only: Iterable[str] | None = None) -> str:
    """C++ that holds a .metal file as it is, and calls its kernels by name with arguments by buffer index."""
    wanted = [k for k in kernels_of(metal.read_text()) if only is None or k.name in only]
    lines = ['#include "kernels.h"', '#include "metal_stdlib"', '#include "metal_simdgroup_matrix"']
    # The attribute shares its name with the address space, which is a macro here.
    source = metal.read_text().replace("[[threadgroup(0)]]", "[[threadgroup_memory]]")
    if only is not None:  # what is not wanted need not be compiled
        source = re.sub(r"template\s*\[\[host_name.*?;", "", source, flags=re.DOTALL)
    lines += [f'#line 1 "{metal.name}"', source]
    entries = []
    for i, kernel in enumerate(wanted):
        arguments = ",\n      ".join(map(_expression, kernel.arguments))
        buffers = sum(1 << a.index for a in kernel.arguments if a.attribute == "buffer")
        lines.append(
            f"EMULATOR_HIDDEN static void run_{i}(char* const* b, char* memory, const emulator::Position& p) {{\n"
            f"  (void)memory;\n  {kernel.function}(\n      {arguments});\n}}"
        )
        entries.append(f'  {{"{kernel.name}", run_{i}, {buffers}u}},')
    # No containers here: their code would be compiled with the kernels' instrumentation, for the whole library.
    body = "\n".join(entries)
    lines.append(f"extern const EmulatedKernel kernels_{metal.stem}[] = {{\n{body}\n  {{nullptr, nullptr, 0}}\n}};")
    return "\n".join(lines)


def included(source: Path) -> set[Path]:
    """The headers beside a source that it includes, and theirs."""
    names = re.findall(r'#include "([\w.]+)"', source.read_text())
    direct = {source.parent / name for name in names}
    return direct.union(*map(included, direct))


def _registry(stems: list[str]) -> str:
    declarations = "".join(f"extern const EmulatedKernel kernels_{stem}[];\n" for stem in stems)
    tables = ", ".join(f"kernels_{stem}" for stem in stems)
    return f'#include "kernels.h"\n{declarations}const EmulatedKernel* const kernel_tables[] = {{{tables}, nullptr}};\n'


@dataclass(frozen=True)
class Flavour:
    """How the emulation is compiled: what watches the kernels, and what watches everything."""

    name: str
    kernel_flags: tuple[str, ...]
    flags: tuple[str, ...]
    objc: bool = False  # the plan goes through encode.mm


OBSERVED = Flavour("observed", ("-fsanitize=thread",), ("-DEMULATOR_OBSERVES",))
ENCODED = Flavour("encoded", OBSERVED.kernel_flags, (*OBSERVED.flags, "-DEMULATOR_THROUGH_OBJC"), objc=True)
SANITIZED = Flavour("sanitized", (), ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"))


def _flags() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    headers = Path(sysconfig.get_path("include"))
    assert (headers / "Python.h").is_file(), "Python's headers are missing"
    ops = [f"-D{name}_cpu={name}_mps" for name in ("forward", "forward_argmax", "backward", "default_path")]
    return [
        *("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-attributes", "-Wno-unknown-pragmas"),
        *("-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden"),
        *ops,
        "-Davailable_paths_cpu=available_paths_mps",
        "-DMETAL_KERNEL",
        "-DTORCH_TARGET_VERSION=0x020b000000000000ULL",
        "-DPy_LIMITED_API=0x03090000",
        f"-I{EMULATOR}",
        "-isystem",
        str(include),
        "-isystem",
        str(headers),
    ]


def attempt(command: list[str | Path]) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def run(command: list[str | Path]) -> None:
    done = attempt(command)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}"


def clang() -> list[str] | None:
    """An Objective-C++ compiler that leaves the headers of the C++ library to the caller, if there is one."""
    if found := importlib.util.find_spec("ziglang"):
        resources = Path(found.origin).parent / "lib/include"
        return [sys.executable, "-m", "ziglang", "clang", "-isystem", str(resources)]
    return [path] if (path := shutil.which("clang")) else None


def objc_flags() -> list[str]:
    """What makes clang compile Objective-C++ against g++'s library, Apple's interfaces from tests/metal/objc."""
    probe = subprocess.run(["g++", "-E", "-x", "c++", "-v", os.devnull], capture_output=True, text=True, check=True)
    listed = probe.stderr.partition("#include <...> search starts here:\n")[2].partition("End of")[0].split()
    library = [d for d in listed if "c++" in d]
    system = [d for d in listed if "c++" not in d and "/lib/gcc/" not in d]
    machine = subprocess.check_output(["g++", "-dumpmachine"], text=True).strip()
    return [
        *(f"--target={machine}", "-x", "objective-c++", "-fobjc-runtime=gcc", "-fblocks", "-std=c++17", "-fPIC", "-O1"),
        *("-Wall", "-Wextra", "-Werror", "-nostdinc++", "-nostdlibinc"),
        *(flag for d in library for flag in ("-cxx-isystem", d)),
        *(flag for d in [*system, str(Path(torch.__file__).parent / "include")] for flag in ("-idirafter", d)),
        f"-I{OBJC}",
        '-DEMBEDDED_METALLIB_HEADER="metallib.h"',
        "-DEMBEDDED_METALLIB_NAMESPACE=maxsim_metallib",
        "-Dencode=encode_objc",
    ]


def _digest(paths: Iterable[Path], *more: str) -> str:
    digest = hashlib.sha256("\0".join(more).encode())
    for path in sorted(paths):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(units: list[tuple[Path, list[str], list[Path]]], flags: list[str], work: Path) -> list[Path]:
    """Objects of (source, flags or compiler of its own, headers); those that an earlier build made serve again."""
    kept = OUTPUT / "objects"
    kept.mkdir(parents=True, exist_ok=True)

    def compile_unit(unit: tuple[Path, list[str], list[Path]]) -> Path:
        source, own, headers = unit
        compiled = kept / (_digest([source, *headers], *flags, *own) + ".o")
        if not compiled.is_file():
            fresh = work / f"{source.name}.o"
            command = own if source.suffix == ".mm" else [*flags, f"-I{work}", *own]
            run([*command, "-c", source, "-o", fresh])
            fresh.rename(compiled)
        return compiled

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_unit, units))


# Stands for a build's key in the objects that have it in a name: compiled once, they serve every build.
PLACEHOLDER = "0" * 16


def _named(compiled: Path, key: str, work: Path) -> Path:
    content = compiled.read_bytes()
    name = f"_maxsim_emulated_{PLACEHOLDER}".encode()
    if name not in content:
        return compiled
    named = work / compiled.name
    named.write_bytes(content.replace(name, name.replace(PLACEHOLDER.encode(), key.encode())))
    return named


def build(flavour: Flavour, kernels: Path = KERNELS, only: Iterable[str] | None = None) -> Path:
    """The directory of the package with its kernels emulated, built unless it is there.

    ``kernels`` may be a changed copy of maxsim_metal/; ``only`` names the kernels to compile.
    """
    compiler = os.environ.get("CXX") or "g++"
    binding = ROOT / "torch-ext"
    inputs = [p for d in (kernels, EMULATOR, ROOT / "maxsim_common") for p in d.iterdir() if p.is_file()]
    inputs += [p for p in OBJC.rglob("*") if p.is_file()]
    inputs += [*binding.glob("*.cpp"), *binding.glob("*.h"), *(binding / "maxsim").rglob("*.py"), Path(__file__)]
    key = _digest(inputs, compiler, flavour.name, torch.__version__, ",".join(sorted(only or ())))
    target = OUTPUT / f"{flavour.name}-{key}"
    if target.is_dir():
        return target
    work = target.with_name(target.name + f".{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "registration.h").write_text(variant.REGISTRATION_H)
    for name, source in (("maxsim_metal", kernels), ("maxsim_common", ROOT / "maxsim_common"), ("torch-ext", binding)):
        shutil.copytree(source, work / name, ignore=shutil.ignore_patterns("maxsim", "__pycache__"))
    for source in (EMULATOR, OBJC):
        shutil.copytree(source, work / "tests/metal" / source.name)
    metal, glue, emulator = work / "maxsim_metal", work / "torch-ext", work / "tests/metal/emulator"

    module = f"_maxsim_emulated_{key}"
    flags = [compiler, *_flags(), *flavour.flags, "-g0" if only else "-g"]
    shared = [*glue.glob("*.h"), *emulator.glob("*.h"), *(work / "maxsim_common").glob("*.h")]
    shared += [metal / name for name in ("params.h", "plan.h", "encode.h")]
    metals = [*shared, emulator / "metal_stdlib", emulator / "metal_simdgroup_matrix"]
    sources = [
        *emulator.glob("*.cpp"),
        metal / "plan.cpp",
        *(glue / f"bind_{name}.cpp" for name in ("metal", "problem", "quantised")),
    ]
    units = [(source, [], shared) for source in sources]
    stems = []
    for source in sorted(metal.glob("*.metal")):
        unit = metal / f"{source.stem}.metal.cpp"
        unit.write_text(translation_unit(source, only))
        units.append((unit, list(flavour.kernel_flags), [*metals, *included(source)]))
        stems.append(source.stem)
    (work / "registry.cpp").write_text(_registry(stems))
    units.append((work / "registry.cpp", [f"-I{emulator}"], shared))
    named = ["-O0", f"-DTORCH_EXTENSION_NAME=_maxsim_emulated_{PLACEHOLDER}", "-DMAXSIM_METAL_KEY=CPU"]
    # Schemas and this backend's functions; those of other devices are in files that are named for them.
    registering = [
        source
        for source in sorted(glue.glob("*.cpp"))
        if "TORCH_EXTENSION_NAME" in source.read_text() and not source.stem.endswith(("_cpu", "_register", "_cuda"))
    ]
    units += [(source, named, shared) for source in registering]
    if flavour.objc:
        objc = work / "tests/metal/objc"
        shared += objc.rglob("*.h")
        units.append((objc / "fake.cpp", [f"-I{objc}", "-UTORCH_TARGET_VERSION"], shared))
        units.append((metal / "encode.mm", [*clang(), *objc_flags()], shared))
    objects = [_named(compiled, key, work) for compiled in _compile(units, flags, work)]

    library = Path(torch.__file__).parent / "lib"
    link = [f for f in flavour.flags if f.startswith("-fsanitize")]
    compiled = work / f"{module}.so"
    run([compiler, "-shared", *link, *objects, "-o", compiled, f"-L{library}", "-ltorch_cpu"])
    project = load_project(ROOT)
    package = work / "build" / variant.variant_name(project, "cpu", None)
    variant.install(project, "cpu", module, compiled, [], None, package)
    try:
        work.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(work)
    return target


def load(target: Path) -> ModuleType:
    """The package at ``target``, beside whatever else this process has loaded."""
    (package,) = (target / "build").iterdir()
    name = "maxsim_" + target.name.replace("-", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, package / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def environment(flavour: Flavour, target: Path) -> dict[str, str]:
    """What a Python process needs to load the package at ``target`` in place of the one in this checkout."""
    repo_id = load_project(ROOT).general["hub"]["repo-id"]
    found = {"LOCAL_KERNELS": f"{repo_id}={target}"}
    if flavour is SANITIZED:  # an ordinary python loads it, so the runtime comes first; python's own leaks are its own
        compiler = os.environ.get("CXX") or "g++"
        names = ("libasan.so", "libubsan.so", "libstdc++.so")
        paths = [subprocess.check_output([compiler, f"-print-file-name={n}"], text=True).strip() for n in names]
        found["LD_PRELOAD"] = " ".join(paths)
        found["ASAN_OPTIONS"] = "detect_leaks=0:allocator_may_return_null=1"
        found["UBSAN_OPTIONS"] = "print_stacktrace=1"
    return found


def library(m: ModuleType) -> ctypes.CDLL:
    """The emulation behind a loaded package."""
    ops = sys.modules[f"{m.__name__}._ops"]
    return ctypes.CDLL(next(v.__file__ for n, v in vars(ops).items() if n.startswith("_maxsim_")))
