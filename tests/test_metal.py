"""The Metal backend, run without a Mac: its kernels, plan and binding are compiled for this machine and score tensors
in a process of their own, which runs the tests that every backend has to pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/metal"))

import emulated  # noqa: E402

# What all backends are held to, as far as a CPU gets through it in reasonable time.
SHARED_TESTS = ["test_scores.py", "test_special_values.py"]
TOO_SLOW = "retrieval_scores or infinities"


def run_tests(flavour: emulated.Flavour, target: Path, files: list[str], selection: str) -> str:
    environment = os.environ | emulated.environment(flavour, target)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-k", selection]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in files)], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("flavour", [emulated.OBSERVED, emulated.SANITIZED], ids=lambda f: f.name)
def test_what_every_backend_has_to_pass(flavour):
    output = run_tests(
        flavour, emulated.build(flavour), SHARED_TESTS, f"not ({TOO_SLOW}) and not gradients and not zero_sizes"
    )
    assert " passed" in output and "failed" not in output
