"""encode.mm, the only file that talks to Metal: compiled by clang against interfaces with Apple's signatures, and run
against a Metal that checks the rules of API validation and hands every dispatch to the emulated GPU."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/metal"))

import checks  # noqa: E402
import emulated  # noqa: E402

pytestmark = pytest.mark.skipif(emulated.clang() is None, reason="neither ziglang nor clang is installed")


class Fake(ctypes.Structure):
    """The state of tests/metal/objc/fake.cpp."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("libraries", "pipelines", "fail_library", "fail_pipeline", "simd_width", "pools")
    ]


@pytest.fixture(scope="module")
def metal():
    return emulated.load(emulated.build(emulated.ENCODED))


@pytest.fixture
def fake(metal) -> Fake:
    library = emulated.library(metal)
    library.fake_state.restype = ctypes.POINTER(Fake)
    return library.fake_state().contents


def call(m) -> torch.Tensor:
    return m.maxsim(torch.ones(1, 2, 8), torch.ones(1, 3, 8))


def test_what_cannot_run_says_why_and_is_not_remembered(metal, fake):
    """First of the module, while no pipeline is cached."""
    for field, broken, words in (
        ("fail_library", 1, "the embedded library does not load: the fake was told to"),
        ("fail_pipeline", 1, "no pipeline for maxsim_forward_f32: the fake was told to"),
        ("simd_width", 64, "this GPU does not run maxsim_forward_f32 with 128 threads in simdgroups of 32"),
    ):
        whole = getattr(fake, field)
        setattr(fake, field, broken)
        with pytest.raises(RuntimeError, match=f"Metal: {words}"):
            call(metal)
        setattr(fake, field, whole)
    assert call(metal).item() == 16


def test_every_kernel_runs_as_encoded(metal, fake):
    before = fake.pools
    checks.verify(metal)
    assert fake.pools == before


def test_one_library_and_one_pipeline_a_kernel(metal, fake):
    call(metal)
    before = fake.libraries, fake.pipelines
    for _ in range(3):
        call(metal)
    assert (fake.libraries, fake.pipelines) == before and fake.libraries == 1


@pytest.mark.parametrize("counting", ["-fobjc-arc", "-fno-objc-arc"])
def test_with_and_without_reference_counting(counting):
    """kernel-builder decides which; both have to compile."""
    flags = [f for f in emulated.objc_flags() if not f.startswith("-fobjc-runtime")]
    runtime = "-fobjc-runtime=gnustep-1.9"  # one of clang's that has reference counting on Linux
    emulated.run([*emulated.clang(), *flags, runtime, counting, "-fsyntax-only", ROOT / "maxsim_metal/encode.mm"])
