"""The CUDA variant compiles here, for Ampere and Hopper, wherever there is an nvcc.
No GPU is needed: what can go wrong at compile time and cost speed in silence is in the assembler's own words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from kernels._rust import Metadata

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import sass  # noqa: E402
import toolchain  # noqa: E402
from project import BuildError  # noqa: E402


@pytest.fixture(scope="module")
def cuda() -> toolchain.Cuda:
    try:
        return toolchain.find_cuda()
    except BuildError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def module(cuda: toolchain.Cuda) -> Path:
    output = ROOT / ".build" / "cuda-check"
    command = ("tools/build.py", "--backend", "cuda", "--archs", "8.0,9.0a", "--output", str(output))
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = output.glob("*/_maxsim_cuda_*.abi3.so")
    return found


def test_the_variant_builds_for_ampere_and_hopper(module: Path) -> None:
    metadata = Metadata.read_from_file(module.parent / "metadata.json")
    assert {"8.0", "9.0a"} <= set(metadata.backend.archs)
    assert module.stat().st_size < 32 << 20


@pytest.fixture(scope="module")
def machine_code(module: Path, tmp_path_factory: pytest.TempPathFactory) -> list[sass.Kernel]:
    if not (sass.tool("cuobjdump") and sass.tool("nvdisasm")):
        pytest.skip("no disassembler: pip install -r requirements/test.txt")
    return sass.kernels_of(module, tmp_path_factory.mktemp("cubins"))


# Kernels by a part of their names, the architecture, how many there are, and what each must have one of.
INSTRUCTIONS = [
    (r"\dsm90_(?!forward.*Lb0ELb1ELb0EEE)", "sm_90a", 100, {"HGMMA", "QGMMA", "IGMMA"}),
    (r"\dsm90_forward.*__nv_fp8_", "sm_90a", 32, {"QGMMA"}),
    (r"\dsm90_forward.*EEEaLb", "sm_90a", 16, {"IGMMA"}),
    (r"\dsm90_forward.*Lb1ELb0ELb0EEE(6__half|13__nv_bfloat16)", "sm_90a", 72, {"HGMMA"}),
    (r"\dsm90_forward.*Lb0ELb1ELb0EEE(6__half|13__nv_bfloat16)", "sm_90a", 24, {"HMMA"}),
    (r"\dmma_", "sm_80", 30, {"HMMA"}),
    (r"\dresidual_", "sm_80", 30, {"HMMA"}),
]


@pytest.mark.parametrize(
    ("part", "arch", "count", "wanted"),
    INSTRUCTIONS,
    ids=["sm90", "fp8", "int8", "widened", "turned", "mma", "residual"],
)
def test_machine_code_uses_tensor_cores(
    machine_code: list[sass.Kernel], part: str, arch: str, count: int, wanted: set[str]
) -> None:
    """No architecture falls back to something slower because a condition on it was wrong."""
    named = [k for k in machine_code if k.arch == arch and re.search(part, k.name)]
    assert len(named) >= count
    assert [k.name for k in named if not k.products() & wanted] == []


def test_products_do_not_wait_for_local_memory(machine_code: list[sass.Kernel]) -> None:
    """What registers had no room for is next to nothing of the loops around products, least where there is no more to
    do than to multiply and take the maximum."""
    shares = {(k.arch, k.name): k.local_share() for k in machine_code if k.products()}
    assert len(shares) >= 150
    plain = {key: share for key, share in shares.items() if re.search(r"Lb0ELNS0_7ColumnsE0|\dmma_", key[1])}
    assert {key: share for key, share in plain.items() if share > 0.02} == {}
    assert {key: share for key, share in shares.items() if share > 0.05} == {}


def test_every_descriptor_is_a_pair_of_registers(machine_code: list[sass.Kernel]) -> None:
    """ptxas 13.0 writes an illegal instruction where the shared address of an asynchronous copy under a cache policy is
    the sum of a uniform register and another: it names the wrong register."""
    assert any(kernel.descriptors for kernel in machine_code)
    assert {k.name: k.arch for k in machine_code if any(number % 2 for number in k.descriptors)} == {}


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("sm90_bf16", 30),
        ("sm90_e4m3", 16),
        ("sm90_s8", 16),
        ("sm90_hidden", 12),
        ("sm90_split", 20),
        ("sm90_deep_bf16", 14),
        ("sm90_deep_split", 8),
    ],
)
def test_no_product_of_the_hopper_forward_is_serialised(
    cuda: toolchain.Cuda, tmp_path: Path, name: str, kernels: int
) -> None:
    """ptxas gives up overlapping wgmma with anything as soon as control flow around it may diverge, and says so."""
    flags = ("-O3", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v", "-c")
    source = ROOT / "maxsim_cuda" / f"{name}.cu"
    command = [cuda.nvcc, *flags, source, "-o", tmp_path / f"{name}.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert said.count("Compiling entry function") >= kernels, "the assembler no longer reports what it does"
    assert re.findall(r"Potential Performance Loss: wgmma.*", said) == []


# What Turing's driver compiles, whose machine code is in no module: the instruction that its kernels stand on, and how
# many kernels there are.
TURING = {"mma_f16": ("mma.sync.aligned.m16n8k8", 12), "mma_split": ("mma.sync.aligned.m16n8k8", 8)}


@pytest.mark.parametrize("name", TURING)
def test_turing_uses_tensor_cores(cuda: toolchain.Cuda, tmp_path: Path, name: str) -> None:
    instruction, kernels = TURING[name]
    ptx = tmp_path / "kernels.ptx"
    command = [cuda.nvcc, "-std=c++17", "-arch=compute_75", "-ptx", ROOT / "maxsim_cuda" / f"{name}.cu", "-o", ptx]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bodies = ptx.read_text().split(".entry ")[1:]
    forwards = [body for body in bodies if "forward" in body.split("(", 1)[0]]
    assert len(forwards) >= kernels
    missing = [body.split("(", 1)[0] for body in forwards if instruction not in body]
    assert missing == []


def test_products_stay_in_registers(cuda: toolchain.Cuda, tmp_path: Path) -> None:
    """What spills is what the loading side keeps between tiles, not the products: tens of bytes, not hundreds."""
    flags = ("-O3", "-std=c++17", "-gencode=arch=compute_80,code=sm_80", "-Xptxas=-v", "-c")
    command = [cuda.nvcc, *flags, ROOT / "maxsim_cuda" / "mma_bf16.cu", "-o", tmp_path / "kernels.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", done.stdout + done.stderr)]
    assert len(spilled) >= 12, "the assembler no longer reports what it does"
    assert max(spilled) <= 64
