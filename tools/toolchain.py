"""Finds what a build runs and links: the C++ compiler, Python's headers, torch, and nvcc for CUDA.
torch is located, never imported, and its JIT extension builder (`torch.utils.cpp_extension`) is not used."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from project import BuildError


@dataclass(frozen=True)
class Torch:
    """An installed torch; `cuda` is the CUDA version it was built with, None for a CPU build."""

    root: Path
    version: tuple[int, int]
    cuda: str | None


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit, whole or as PyPI wheels."""

    nvcc: Path
    version: tuple[int, int]
    include: Path
    cudart: Path


def find_torch() -> Torch:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("torch is not installed: pip install -r requirements/build.txt")
    root = Path(spec.origin).parent
    version = runpy.run_path(str(root / "version.py"))
    major, minor = version["__version__"].split(".")[:2]
    return Torch(root, (int(major), int(minor)), version["cuda"])


def find_cxx() -> str:
    """The C++ compiler: $CXX, else g++."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise BuildError(f"no C++ compiler: {compiler} is not on PATH (install g++, or set CXX)")
    return compiler


@functools.cache
def cxx_accepts(cxx: str, flag: str) -> bool:
    probe = subprocess.run([cxx, "-Werror", flag, "-E", "-x", "c++", os.devnull], capture_output=True)
    return probe.returncode == 0


def find_python_include() -> Path:
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise BuildError(f"{include}/Python.h does not exist: install Python's headers (python3-dev, python3-devel)")
    return include


def find_cuda() -> Cuda:
    nvcc = _find_nvcc()
    release = re.search(r"release (\d+)\.(\d+)", _output([str(nvcc), "--version"]))
    # The nvcc on PATH may be a wrapper script, so ask it where its toolkit lies.
    top = re.search(r"^#\$ TOP=(.+)$", _output([str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull]), re.MULTILINE)
    if release is None or top is None:
        raise BuildError(f"{nvcc} does not answer like nvcc")
    root = Path(top[1].strip()).resolve()
    bases = (root, *root.glob("targets/*"))
    return Cuda(
        nvcc=nvcc,
        version=(int(release[1]), int(release[2])),
        include=_first(bases, "include/cuda_runtime.h", root).parent,
        cudart=_first(bases, "lib*/libcudart.so*", root),
    )


def _find_nvcc() -> Path:
    if home := os.environ.get("CUDA_HOME"):
        nvcc = Path(home, "bin", "nvcc")
        if not nvcc.is_file():
            raise BuildError(f"CUDA_HOME is {home}, which has no bin/nvcc")
        return nvcc
    if on_path := shutil.which("nvcc"):
        return Path(on_path)
    wheels = importlib.util.find_spec("nvidia")
    for location in wheels.submodule_search_locations or () if wheels else ():
        if found := sorted(Path(location).glob("*/bin/nvcc")):
            return found[-1]
    raise BuildError("no nvcc: set CUDA_HOME, put nvcc on PATH, or pip install -r requirements/cuda.txt")


def _first(bases: tuple[Path, ...], pattern: str, root: Path) -> Path:
    for base in bases:
        if found := sorted(base.glob(pattern)):
            return found[0]
    raise BuildError(f"the CUDA toolkit in {root} has no {pattern}")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from None
    return done.stdout
