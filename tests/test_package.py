"""The variant that `make build` leaves in build/, held against what the Hub and its tools ask of a kernel.
The sources of these rules: kernel-builder's documentation (kernel requirements) and the `kernels` package."""

from __future__ import annotations

import ast
import ctypes
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jinja2
import pytest
import torch
from kernels._rust import Backend, Build, Digest, DigestAlgorithm, Metadata
from kernels.resolver import LocalKernel, resolve_local_kernel

ROOT = Path(__file__).resolve().parent.parent
CONFIG = tomllib.loads((ROOT / "build.toml").read_text())
PYTHON_SOURCE = ROOT / "torch-ext" / CONFIG["general"]["name"]


@pytest.fixture(scope="module")
def built() -> LocalKernel:
    """The variant that `get_kernel` picks on this machine."""
    return resolve_local_kernel(ROOT, backend=None)


@pytest.fixture(scope="module")
def module(built: LocalKernel) -> Path:
    return built.variant_path / f"{built.metadata.id}.abi3.so"


def output(*command: str | Path) -> str:
    return subprocess.check_output(list(map(str, command)), text=True, cwd=ROOT)


def sources(backend: str) -> set[str]:
    """Every file that build.toml lists for a backend, [torch] included."""
    kernels = [kernel for kernel in CONFIG["kernel"].values() if kernel["backend"] == backend]
    return {source for section in (CONFIG["torch"], *kernels) for source in section["src"]}


def test_the_real_parser_accepts_build_toml() -> None:
    assert {Backend.CPU, Backend.CUDA} <= set(Build.open(ROOT).general.backends)


def test_the_cuda_variant_has_the_cpu_sources() -> None:
    assert sources("cpu") <= sources("cuda")


def test_no_capability_is_claimed_that_has_no_gpu_code() -> None:
    """metadata.json lists the capabilities of every CUDA section, kernel-builder's defaults where one names none."""
    sections = [kernel for kernel in CONFIG["kernel"].values() if kernel["backend"] == "cuda"]
    gpu_code = [kernel for kernel in sections if any(source.endswith(".cu") for source in kernel["src"])]
    compiled_for = {arch for kernel in gpu_code for arch in kernel["cuda-capabilities"]}
    assert all(set(kernel["cuda-capabilities"]) <= compiled_for for kernel in sections)


def test_metadata(built: LocalKernel) -> None:
    metadata = Metadata.read_from_file(built.variant_path / "metadata.json")
    general = CONFIG["general"]
    assert str(metadata.name) == general["name"]
    assert (metadata.version, metadata.license) == (general["version"], general["license"])
    assert metadata.python_depends == [] and metadata.kernel_depends == []
    assert metadata.id.startswith(f"_{general['name']}_{metadata.backend.backend_type}_")
    actual = Digest.hash_variant(DigestAlgorithm.SHA256, built.variant_path)
    metadata.digest.validate(actual)


def test_the_variant_is_the_python_sources_and_the_module(built: LocalKernel) -> None:
    wanted = {str(path.relative_to(PYTHON_SOURCE)) for path in PYTHON_SOURCE.rglob("*.py")}
    wanted |= {"_ops.py", f"{built.metadata.id}.abi3.so"}
    assert set(built.metadata.digest.files) == wanted


def test_python_is_3_9_and_imports_torch_and_the_standard_library_alone() -> None:
    files = sorted(PYTHON_SOURCE.rglob("*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(), str(path), feature_version=(3, 9))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module)
            for name in names:
                assert name.split(".")[0] in {"torch", *sys.stdlib_module_names}, f"{path} imports {name}"


def test_abi3(module: Path) -> None:
    output(sys.executable, "-m", "abi3audit", "--strict", "--assume-minimum-abi3", "3.9", module)


def test_needed_libraries(built: LocalKernel, module: Path) -> None:
    dynamic = output("readelf", "--dynamic", "--wide", module)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    torchs = {f"libtorch_{name}.so" for name in ("cpu", str(built.metadata.backend.backend_type))}
    assert torchs <= needed
    runtime = re.compile(r"libcudart\.so\.\d+|lib(stdc\+\+|gcc_s|m|c|pthread|dl|rt)\.so\.\d+|ld-linux.*")
    assert [name for name in needed - torchs if not runtime.fullmatch(name)] == []
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_undefined_symbols_are_of_the_stable_abi(built: LocalKernel, module: Path) -> None:
    """No C++ of torch, and of its C functions only those that this torch, and the declared one, have."""
    undefined = re.findall(r"^ +U (\S+)$", output("nm", "--dynamic", "--undefined-only", module), re.MULTILINE)
    unversioned = {name for name in undefined if "@" not in name}
    c_functions = {name for name in unversioned if name.startswith(("aoti_torch_", "torch_"))}
    assert [name for name in unversioned - c_functions if not name.startswith("Py")] == []
    library = ctypes.CDLL(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    cuda_only = {name for name in c_functions if "_cuda_" in name}
    assert [name for name in c_functions - cuda_only if not hasattr(library, name)] == []
    declared = CONFIG["torch"]["stable-abi"][str(built.metadata.backend.backend_type)]
    newer = symbols_newer_than(tuple(map(int, declared.split("."))))
    assert newer and sorted(c_functions & newer) == []


def symbols_newer_than(version: tuple[int, int]) -> set[str]:
    """The functions that torch's shim headers declare under `#if TORCH_FEATURE_VERSION >= <something newer>`."""
    newer, open_guards = set(), []
    for line in (Path(torch.__file__).parent / "include/torch/csrc/stable/c/shim.h").read_text().splitlines():
        if line.startswith("#if"):
            guard = re.search(r"TORCH_FEATURE_VERSION >= TORCH_VERSION_(\d+)_(\d+)", line)
            open_guards.append(guard is not None and (int(guard[1]), int(guard[2])) > version)
        elif line.startswith("#endif"):
            open_guards.pop()
        elif any(open_guards):
            newer |= set(re.findall(r"\b(?:aoti_torch|torch)_\w+(?=\()", line))
    return newer


@pytest.mark.parametrize("backend", CONFIG["general"]["backends"])
def test_every_include_is_listed(backend: str) -> None:
    """kernel-builder's sandbox holds only what build.toml lists; what this checkout lacks is its own."""
    listed = sources(backend)
    for source in sorted(listed):
        for include in re.findall(r'^#include "(.+)"', (ROOT / source).read_text(), re.MULTILINE):
            path = os.path.normpath(Path(source).parent / include)
            assert path in listed or not (ROOT / path).exists(), f"{source} includes {path}"


def test_every_header_that_is_read_is_listed(built: LocalKernel) -> None:
    """The same of headers that are read by another way."""
    import ninja  # not in kernel-builder's sandbox, which imports this file for other tests' sake

    ninja_file = Path(".build", built.variant_path.name, "build.ninja")
    lines = output(Path(ninja.BIN_DIR, "ninja"), "-f", ninja_file, "-t", "deps").splitlines()
    read = {os.path.normpath(line.strip()) for line in lines if line.startswith(" ")}
    own = {path for path in read if not os.path.isabs(path) and not path.startswith(".build")}
    assert own and own <= sources(str(built.metadata.backend.backend_type))


def test_ops_are_in_the_namespace_of_this_build(built: LocalKernel) -> None:
    """In a process of its own: what other tests load here may be another build."""
    code = (
        "import sys, torch; from pathlib import Path; from kernels import get_local_kernel; "
        "kernel = get_local_kernel(Path(sys.argv[1])); print(kernel.__name__); "
        "print([name for name in torch._C._dispatch_get_all_op_names() if name.startswith(kernel.__name__ + '::')])"
    )
    name, ops = output(sys.executable, "-c", code, ROOT).splitlines()
    assert name == built.metadata.id
    assert {f"{name}::{op}" for op in ("forward", "forward_argmax", "backward")} <= set(ast.literal_eval(ops))


def test_the_card_renders_as_kernel_builder_does() -> None:
    """With the variables and the settings of `kernel-builder fill-card`."""
    (exported,) = (
        node.value
        for node in ast.parse((PYTHON_SOURCE / "__init__.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    functions = ast.literal_eval(exported)
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    card = environment.from_string((ROOT / "CARD.md").read_text()).render(
        repo_id=CONFIG["general"]["hub"]["repo-id"],
        version=CONFIG["general"]["version"],
        license=CONFIG["general"]["license"].lower(),
        functions=functions,
        layers=None,
        has_benchmark=True,
        upstream=None,
    )
    assert card.startswith("---\nlibrary_name: kernels\nlicense: apache-2.0\ntags:\n")
    assert all(f"- `{name}`\n" in card for name in functions)
    example = card.split("```python\n")[1].split("```")[0]
    ast.parse(example)
    assert f'get_kernel("{CONFIG["general"]["hub"]["repo-id"]}", version={CONFIG["general"]["version"]}' in example
