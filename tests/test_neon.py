"""Every loop of every CPU instruction set against scalar references, without torch: natively, and NEON by a
cross-compiler. tests/neon/check.cpp does the checking; its AArch64 build runs where qemu-user is installed."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    ROOT / "tests/neon/check.cpp",
    ROOT / "maxsim_cpu/dispatch.cpp",
    *sorted((ROOT / "maxsim_cpu").glob("isa_*.cpp")),
]
# What zig builds for a target, such as its C++ library, is kept for the next run.
ZIG_CACHE = {f"ZIG_{name}_CACHE_DIR": str(ROOT / ".build/zig") for name in ("GLOBAL", "LOCAL")}


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | ZIG_CACHE)
    assert done.returncode == 0, f"{command[0]} exits with {done.returncode}: {done.stderr[-4000:]}"
    return done.stdout


def compile_check(compiler: list[str], directory: Path) -> list[Path]:
    objects = [directory / f"{source.stem}.o" for source in SOURCES]
    for source, compiled in zip(SOURCES, objects, strict=True):
        run(*compiler, "-std=gnu++17", "-O2", "-c", source, "-o", compiled)
    return objects


def paths_that_hold(output: str) -> set[str]:
    """The paths that the program names, each with some comparisons and no difference."""
    lines = [re.fullmatch(r"(\w+): 0 of [1-9]\d* comparisons differ", line) for line in output.splitlines()]
    assert None not in lines, output
    return {line[1] for line in lines}


def cross_compiler() -> list[str]:
    if shutil.which("aarch64-linux-gnu-g++"):
        return ["aarch64-linux-gnu-g++"]
    assert importlib.util.find_spec("ziglang"), "neither aarch64-linux-gnu-g++ nor ziglang, which test.txt installs"
    return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]


@pytest.fixture(scope="module")
def neon_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if platform.machine() == "aarch64":
        pytest.skip("this machine is AArch64: the native check runs NEON")
    return compile_check(cross_compiler(), tmp_path_factory.mktemp("neon"))


def test_every_path_of_this_machine(maxsim: ModuleType, tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or "g++"
    run(compiler, *compile_check([compiler], tmp_path), "-o", tmp_path / "check")
    assert paths_that_hold(run(tmp_path / "check")) == {p for p in maxsim.paths.available() if not p.startswith("sm")}


def test_neon_compiles(neon_objects: list[Path]) -> None:
    (compiled,) = (path for path in neon_objects if path.stem == "isa_neon")
    with compiled.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_machine"] == "EM_AARCH64"
        symbols = [s.name for s in elf.get_section_by_name(".symtab").iter_symbols() if s["st_shndx"] != "SHN_UNDEF"]
    assert any("neon_isa" in name for name in symbols)


def test_neon_under_emulation(neon_objects: list[Path], tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64 on PATH (Debian: qemu-user): NEON is compiled here but not run")
    run(*cross_compiler(), "-static", *neon_objects, "-o", tmp_path / "check")
    assert paths_that_hold(run(emulator, tmp_path / "check")) == {"portable", "neon"}
