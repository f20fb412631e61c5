"""The Metal backend, run without a Mac: its kernels, plan and binding are compiled for this machine and score tensors
in processes of their own, which run the tests that every backend has to pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/metal"))

import emulated  # noqa: E402
import mutants  # noqa: E402

FLAVOURS = [emulated.OBSERVED, emulated.SANITIZED]

# What all backends are held to, and what is left out because the emulated GPU takes minutes for it.
TESTS = ["scores", "special_values", "gradients", "argmax", "invariance"]
TOO_SLOW = ["retrieval_scores", "infinities", "every_batch_size", "threads", "concurrent", "training_lowers"]
NOT_OF_A_BACKEND = ["method_reaches"]


@pytest.fixture(scope="module")
def runs() -> dict[str, subprocess.Popen]:
    """The tests in both flavours of the emulation, at once."""
    selection = " and ".join(f"not {name}" for name in TOO_SLOW + NOT_OF_A_BACKEND)
    files = [*(f"tests/test_{name}.py" for name in TESTS), "tests/metal/check_emulated.py"]
    command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", "-k", selection, *files]
    started = {}
    for flavour in FLAVOURS:
        environment = os.environ | emulated.environment(flavour, emulated.build(flavour))
        environment |= {"PYTHONPATH": str(ROOT / "tests/metal")}
        started[flavour.name] = subprocess.Popen(
            command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    return started


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda flavour: flavour.name)
def test_what_every_backend_has_to_pass(runs, flavour):
    output, _ = runs[flavour.name].communicate(timeout=600)
    assert runs[flavour.name].returncode == 0, output[-8000:]


@pytest.mark.parametrize(
    "flavour, edits",
    [
        pytest.param(emulated.OBSERVED, mutants.MUTANTS, id="kernels and plan"),
        pytest.param(
            emulated.ENCODED,
            mutants.HOST_MUTANTS,
            id="host",
            marks=pytest.mark.skipif(emulated.clang() is None, reason="neither ziglang nor clang is installed"),
        ),
    ],
)
def test_every_mutant_is_caught(flavour, edits):
    missed = [name for name, complaint in mutants.complaints(flavour, edits).items() if complaint is None]
    assert not missed
