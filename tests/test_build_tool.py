"""tools/build.py on the toy kernel: what it makes, what it makes again, and what it says when it cannot.
Each test gets its own copy of a toy that is built once, so that none pays for the compiler without a reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kernels._rust import Digest, DigestAlgorithm, Metadata

toolchain = pytest.importorskip("toolchain", reason="kernel-builder's sandbox has tests/ and not tools/")
variant = pytest.importorskip("variant")

from archs import Arch, section_archs  # noqa: E402
from project import BuildError  # noqa: E402

TESTS = Path(__file__).resolve().parent
BUILD_PY = TESTS.parent / "tools" / "build.py"


def build(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BUILD_PY), "--project", str(project), "--jobs", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def compiled(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The sources that a successful run has compiled."""
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"^\[\d+/\d+\] (?:cxx|cuda) (\S+)", done.stdout, re.MULTILINE))


def git(project: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=toy", "-c", "user.email=toy@localhost")
    return subprocess.check_output(["git", "-C", str(project), *identity, *arguments], text=True).strip()


def only_variant(project: Path, backend: str = "cpu") -> Path:
    (found,) = (project / "build").glob(f"torch-stable-abi211-{backend}*")
    return found


def run_toy(variants: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh python, with the toy loaded from `variants` as the module `toy`."""
    load = "import torch; from kernels import get_kernel; toy = get_kernel('toys/toy', version=1, backend='cpu'); "
    environment |= {"LOCAL_KERNELS": f"toys/toy={variants}"}
    command = [sys.executable, "-c", load + code]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("toy") / "kernel"
    shutil.copytree(TESTS / "toy_kernel", project)
    (project / ".gitignore").write_text("/build/\n/.build/\n")
    git(project, "init", "--quiet")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message", "toy")
    assert compiled(build(project, "--backend", "cpu")) == {
        "torch-ext/torch_binding.cpp",
        "toy_cpu/increment.cpp",
        "toy_cpu/step.cpp",
    }
    return project


@pytest.fixture
def toy(built_once: Path, tmp_path: Path) -> Path:
    """A copy that keeps the times of the files, by which ninja knows what is up to date."""
    return shutil.copytree(built_once, tmp_path / "kernel")


@pytest.fixture(scope="session")
def cuda() -> toolchain.Cuda:
    try:
        return toolchain.find_cuda()
    except BuildError as reason:
        pytest.skip(str(reason))


def test_kernels_loads_what_is_built(toy: Path) -> None:
    code = "print(toy.increment(torch.zeros(3)).tolist(), toy.op_name(), toy.__name__)"
    done = run_toy(toy, code)
    tree = git(toy, "rev-parse", "HEAD^{tree}")[:7]
    assert done.stdout.split("\n")[0] == f"[1.0, 1.0, 1.0] _toy_cpu_{tree}::increment _toy_cpu_{tree}", done.stderr


def test_metadata_states_the_source_and_the_digest(toy: Path) -> None:
    directory = only_variant(toy)
    metadata = Metadata.read_from_file(directory / "metadata.json")
    assert (str(metadata.name), metadata.version, metadata.license) == ("toy", 1, "Apache-2.0")
    assert str(metadata.backend.backend_type) == "cpu" and metadata.backend.archs is None
    assert metadata.provenance.kernel.commit == git(toy, "rev-parse", "HEAD")
    assert not metadata.provenance.dirty
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, directory))
    assert set(metadata.digest.files) == {"__init__.py", "_ops.py", f"{metadata.id}.abi3.so"}
    keys = json.loads((directory / "metadata.json").read_text()).keys()
    assert keys == {
        *("name", "id", "version", "kernels-minver", "license", "python-depends", "kernel-depends"),
        *("backend", "digest", "provenance"),
    }


def test_an_unchanged_project_compiles_nothing(toy: Path) -> None:
    assert compiled(build(toy, "--backend", "cpu")) == set()


def test_a_header_recompiles_the_sources_that_include_it(toy: Path) -> None:
    with open(toy / "toy_cpu" / "toy.h", "a") as header:
        header.write("// changed\n")
    assert compiled(build(toy, "--backend", "cpu")) == {"torch-ext/torch_binding.cpp", "toy_cpu/increment.cpp"}


def test_a_commit_recompiles_the_binding_alone_and_renames_the_module(toy: Path) -> None:
    before = Metadata.read_from_file(only_variant(toy) / "metadata.json").id
    (toy / "README").write_text("toy\n")
    git(toy, "add", ".")
    git(toy, "commit", "--quiet", "--message", "readme")
    assert compiled(build(toy, "--backend", "cpu")) == {"torch-ext/torch_binding.cpp"}
    (module,) = only_variant(toy).glob("*.so")
    assert module.name == f"_toy_cpu_{git(toy, 'rev-parse', 'HEAD^{tree}')[:7]}.abi3.so" != f"{before}.abi3.so"


def test_a_changed_file_marks_the_build_dirty_and_an_untracked_one_does_not(toy: Path) -> None:
    (toy / "untracked").write_text("")
    assert compiled(build(toy, "--backend", "cpu")) == set()
    with open(toy / "toy_cpu" / "step.cpp", "a") as source:
        source.write("// changed\n")
    assert compiled(build(toy, "--backend", "cpu")) == {"toy_cpu/step.cpp", "torch-ext/torch_binding.cpp"}
    metadata = Metadata.read_from_file(only_variant(toy) / "metadata.json")
    assert metadata.id.endswith("_dirty") and metadata.provenance.dirty


def test_a_unique_id_stands_in_for_git(toy: Path) -> None:
    shutil.rmtree(toy / ".git")
    refused = build(toy, "--backend", "cpu", GIT_CEILING_DIRECTORIES=str(toy.parent))
    assert refused.returncode == 1 and "--unique-id" in refused.stderr
    named = build(toy, "--backend", "cpu", "--unique-id", "v7", GIT_CEILING_DIRECTORIES=str(toy.parent))
    assert compiled(named) == {"torch-ext/torch_binding.cpp"}
    metadata = Metadata.read_from_file(only_variant(toy) / "metadata.json")
    assert metadata.id == "_toy_cpu_v7" and metadata.provenance.kernel is None


REGISTERS = """
#include <torch/csrc/stable/library.h>

#include "toy.h"

namespace {
int64_t answer() { return 42; }
}  // namespace

// The extra level lets the name be a macro.
#define TOY_FRAGMENT(name, library) STABLE_TORCH_LIBRARY_FRAGMENT(name, library)
#define TOY_IMPLEMENTATION(name, library) STABLE_TORCH_LIBRARY_IMPL(name, CompositeExplicitAutograd, library)
TOY_FRAGMENT(TORCH_EXTENSION_NAME, ops) { ops.def("answer() -> int"); }
TOY_IMPLEMENTATION(TORCH_EXTENSION_NAME, ops) { ops.impl("answer", TORCH_BOX(&answer)); }
"""


def test_a_kernel_section_registers_under_the_same_name(toy: Path) -> None:
    """kernel-builder's one target defines the name for every source; only those that say it are compiled anew."""
    (toy / "toy_cpu" / "register.cpp").write_text(REGISTERS)
    replace("build.toml", '"toy_cpu/step.cpp"', '"toy_cpu/step.cpp", "toy_cpu/register.cpp"')(toy)
    assert compiled(build(toy, *CPU)) == {"torch-ext/torch_binding.cpp", "toy_cpu/register.cpp"}
    done = run_toy(toy, "print(getattr(torch.ops, toy.__name__).answer())")
    assert done.stdout.split("\n")[0] == "42", done.stderr
    git(toy, "add", ".")
    git(toy, "commit", "--quiet", "--message", "register")
    assert compiled(build(toy, *CPU)) == {"torch-ext/torch_binding.cpp", "toy_cpu/register.cpp"}


def append(path: str, text: str):
    def change(project: Path) -> None:
        with open(project / path, "a") as file:
            file.write(text)

    return change


def replace(path: str, old: str, new: str):
    def change(project: Path) -> None:
        text = (project / path).read_text()
        assert old in text
        (project / path).write_text(text.replace(old, new, 1))

    return change


NOTHING = append("build.toml", "")
CPU = ("--backend", "cpu")
REFUSALS = {
    "backend": (NOTHING, ("--backend", "rocm"), {}, "unknown backend rocm: build.toml has cpu, cuda"),
    "compiler": (NOTHING, CPU, {"CXX": "no-such-compiler"}, "no C++ compiler: no-such-compiler is not on PATH"),
    "nvcc": (NOTHING, ("--backend", "cuda"), {"CUDA_HOME": "/nowhere"}, "CUDA_HOME is /nowhere, which has no bin/nvcc"),
    "archs": (NOTHING, (*CPU, "--archs", "9.0a"), {}, "--archs narrows the cuda backend"),
    "sanitize": (NOTHING, (*CPU, "--sanitize", "address"), {}, "--sanitize needs --backend cpu, and an --output"),
    "toml": (append("build.toml", "[general"), CPU, {}, "TOML parse error at line"),
    "unknown key": (
        replace("build.toml", 'backend = "cpu"', 'backend = "cpu"\nbogus = 1'),
        CPU,
        {},
        "Unknown field",
    ),
    "unsupported key": (
        replace("build.toml", "edition = 5", "edition = 5\npython-depends = ['einops']"),
        CPU,
        {},
        "[general] uses python-depends, which this builder does not support",
    ),
    "dependency": (
        replace("build.toml", 'depends = ["torch"]', 'depends = ["torch", "cutlass_4_0"]'),
        CPU,
        {},
        "depends may only list torch",
    ),
    "stable ABI": (replace("build.toml", 'cpu = "2.11"\n', ""), CPU, {}, "[torch] has no stable-abi for cpu"),
    "old torch": (replace("build.toml", 'cpu = "2.11"', 'cpu = "9.1"'), CPU, {}, "the stable ABI of 9.1"),
    "missing source": (
        replace("build.toml", "toy_cpu/step.cpp", "toy_cpu/gone.cpp"),
        CPU,
        {},
        "[kernel.toy_cpu] lists toy_cpu/gone.cpp, which does not exist",
    ),
    "twice": (
        append("build.toml", '[kernel.again]\nbackend = "cpu"\ndepends = ["torch"]\nsrc = ["toy_cpu/step.cpp"]\n'),
        CPU,
        {},
        "toy_cpu/step.cpp is in both [kernel.toy_cpu] and [kernel.again]",
    ),
    "CUDA source on CPU": (
        replace("build.toml", '"toy_cpu/step.cpp"', '"toy_cuda/increment.cu"'),
        CPU,
        {},
        "[kernel.toy_cpu] lists toy_cuda/increment.cu for the cpu backend",
    ),
    "no python": (lambda p: (p / "torch-ext/toy/__init__.py").unlink(), CPU, {}, "torch-ext/toy/__init__.py does not"),
    "C++ error": (append("toy_cpu/step.cpp", "no such thing\n"), CPU, {}, "the cpu backend does not compile"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_take_one_line_and_leave_the_old_variant(case: str, toy: Path) -> None:
    change, arguments, environment, message = REFUSALS[case]
    change(toy)
    done = build(toy, *arguments, **environment)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("build.py: error: ") and message in line
    (left,) = os.listdir(toy / "build")
    metadata = Metadata.read_from_file(toy / "build" / left / "metadata.json")
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, toy / "build" / left))


def test_a_variant_is_never_missing_while_it_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "variant"
    target.mkdir()
    (target / "metadata.json").write_text("{}")
    done, misses = threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            if not (target / "metadata.json").exists():
                misses.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(500):
        stage = tmp_path / f"stage{number}"
        stage.mkdir()
        (stage / "metadata.json").write_text(str(number))
        variant._put_in_place(stage, target)
    done.set()
    watcher.join()
    assert not misses and (target / "metadata.json").read_text() == "499"


def test_sanitized_builds_report_what_they_are_for(toy: Path) -> None:
    replace("toy_cpu/increment.cpp", "i < count", "i <= count")(toy)
    assert compiled(build(toy, *CPU, "--sanitize", "address,undefined", "--output", str(toy / "sanitized")))
    asan, stdcxx = (
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    )
    preload = {"LD_PRELOAD": f"{asan} {stdcxx}", "ASAN_OPTIONS": "detect_leaks=0"}
    # An abort loses what is still in a buffer.
    done = run_toy(toy / "sanitized", "print('loaded', flush=True); toy.increment(torch.zeros(1024))", **preload)
    assert "loaded" in done.stdout and done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr and "toy_cpu/increment.cpp:8" in done.stderr


def test_cuda_variant_without_a_cuda_torch(toy: Path, cuda: toolchain.Cuda) -> None:
    assert compiled(build(toy, "--backend", "cuda", "--archs", "9.0a")) == {
        "torch-ext/torch_binding.cpp",
        "toy_cpu/increment.cpp",
        "toy_cpu/step.cpp",
        "toy_cuda/increment.cu",
    }
    directory = only_variant(toy, "cu")
    assert directory.name.startswith("torch-stable-abi211-cu{}{}-".format(*cuda.version))
    metadata = Metadata.read_from_file(directory / "metadata.json")
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, directory))
    assert str(metadata.backend.backend_type) == "cuda" and metadata.backend.archs == ["9.0", "9.0a"]
    (module,) = directory.glob("_toy_cuda_*.abi3.so")
    dynamic = subprocess.check_output(["readelf", "--dynamic", str(module)], text=True)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert {"libtorch_cpu.so", "libtorch_cuda.so", cuda.cudart.resolve().name} <= needed
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    assert b"-arch sm_90a" in module.read_bytes()
    if toolchain.find_torch().cuda is None:
        # The stub takes libtorch_cuda.so's place, so that CPU tensors can show that the CPU sources are inside.
        (stub,) = toy.glob(".build/*/stub/libtorch_cuda.so")
        libraries = {"LD_LIBRARY_PATH": f"{stub.parent}:{cuda.cudart.parent}"}
        done = run_toy(directory, "print(toy.increment(torch.zeros(3)).tolist())", **libraries)
        assert done.stdout.strip() == "[1.0, 1.0, 1.0]", done.stderr
    assert compiled(build(toy, "--backend", "cuda", "--archs", "9.0a")) == set()
    assert {path.name for path in (toy / "build").iterdir()} == {directory.name, only_variant(toy).name}


def test_nvcc_comes_from_the_wheels_where_there_is_no_other(
    cuda: toolchain.Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit = tmp_path / "nvidia" / "cu13"
    toolkit.parent.mkdir()
    toolkit.symlink_to(cuda.include.parent)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert toolchain.find_cuda().nvcc == toolkit / "bin" / "nvcc"
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(BuildError, match=r"no nvcc: .*requirements/cuda.txt"):
        toolchain.find_cuda()


ALL_13 = ["7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "11.0", "12.0+PTX"]


@pytest.mark.parametrize(
    ("capabilities", "nvcc", "narrow", "expected"),
    [
        (None, (13, 0), [], ALL_13),
        (None, (13, 0), ["8.6", "9.0a"], ["8.6", "9.0"]),
        (["9.0a"], (13, 0), [], ["9.0a"]),
        (["9.0a"], (13, 0), ["9.0a"], ["9.0a"]),
        (["9.0a"], (13, 0), ["8.0"], ["9.0a"]),  # in full: the binding needs its host code
        (["8.0", "9.0", "9.0a"], (13, 0), [], ["8.0", "9.0a"]),
        (["10.0a", "10.0f"], (13, 0), [], ["10.0a", "10.0f"]),
        (["7.5", "8.0", "12.0"], (13, 0), [], ["7.5", "8.0", "12.0"]),
        (["7.5", "8.0", "9.0"], (13, 0), ["8.9"], ["8.0"]),
        (["7.5", "8.0", "9.0"], (13, 0), ["8.0+PTX"], ["8.0+PTX"]),
        (["8.0+PTX"], (13, 0), [], ["8.0+PTX"]),
        (["6.1", "8.0"], (13, 0), [], ["8.0"]),
        (["7.0", "8.0"], (12, 9), [], ["7.0", "8.0"]),
    ],
)
def test_capabilities(
    capabilities: list[str] | None, nvcc: tuple[int, int], narrow: list[str], expected: list[str]
) -> None:
    wanted = None if capabilities is None else tuple(capabilities)
    chosen = section_archs(wanted, nvcc, [Arch.parse(arch) for arch in narrow])
    assert [str(arch) for arch in chosen] == expected


@pytest.mark.parametrize(
    ("capabilities", "narrow", "message"),
    [
        (("6.1",), [], "nvcc 13.0 supports none of the capabilities 6.1"),
        (None, ["9.5"], "--archs 9.5: nvcc 13.0 builds for 7.5, 8.0"),
        (("sm_90",), [], "'sm_90' is not a CUDA capability"),
    ],
)
def test_impossible_capabilities(capabilities: tuple[str, ...] | None, narrow: list[str], message: str) -> None:
    with pytest.raises(BuildError, match=re.escape(message)):
        section_archs(capabilities, (13, 0), [Arch.parse(arch) for arch in narrow])
