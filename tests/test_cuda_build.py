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

import toolchain  # noqa: E402
from project import BuildError  # noqa: E402


@pytest.fixture(scope="module")
def cuda() -> toolchain.Cuda:
    try:
        return toolchain.find_cuda()
    except BuildError as missing:
        pytest.skip(str(missing))


def test_the_variant_builds_for_ampere_and_hopper(cuda: toolchain.Cuda) -> None:
    output = ROOT / ".build" / "cuda-check"
    command = ("tools/build.py", "--backend", "cuda", "--archs", "8.0,9.0a", "--output", str(output))
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (variant,) = output.iterdir()
    metadata = Metadata.read_from_file(variant / "metadata.json")
    assert {"8.0", "9.0a"} <= set(metadata.backend.archs)
    (module,) = variant.glob("_maxsim_cuda_*.abi3.so")
    assert module.stat().st_size < 32 << 20


def test_no_product_of_the_hopper_forward_is_serialised(cuda: toolchain.Cuda, tmp_path: Path) -> None:
    """ptxas gives up overlapping wgmma with anything as soon as control flow around it may diverge, and says so."""
    flags = ("-O3", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v", "-c")
    source = ROOT / "maxsim_cuda" / "sm90_bf16.cu"
    command = [cuda.nvcc, *flags, source, "-o", tmp_path / "sm90_bf16.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert said.count("Compiling entry function") >= 30, "the assembler no longer reports what it does"
    assert re.findall(r"Potential Performance Loss: wgmma.*", said) == []
