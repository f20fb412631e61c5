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

# What all backends are held to, and the metadata that nobody checked. The kernels that share their staging, checks and
# walks with others run under the sanitizers alone; tests/metal/checks.py takes them through the observed build.
SHARED = ["scores", "special_values", "gradients", "argmax", "invariance"]
SANITIZED_ALONE = ["quantised", "soft", "plaid", "plaid_index"]
OF_METAL = ["tests/metal/check_emulated.py", "tests/metal/check_fuzz.py"]
# What is left out because the emulated GPU takes too long for it, or because it is about threads of a CPU.
TOO_SLOW = [
    *("retrieval_scores", "infinities", "every_batch_size", "threads", "concurrent", "training_lowers"),
    *("(soft and (768 or 130))", "(quantised and every_length)", "long_and_many"),
    *("marked_tokens", "(holes_anywhere and (128 or 300))", "(ragged_documents and 128)"),
    *("(batches_of_long and (145 or 200))", "(several_queries and (131 or 150 or 300))"),
]
TOO_SLOW_OBSERVED = ["768", "more_winners", "(nan_in and 300)"]
# The CPU names what is wrong with a value; a GPU's answer is NaN.
NOT_OF_A_BACKEND = ["method_reaches", "codes_out_of_range"]


def selection(flavour: emulated.Flavour) -> list[str]:
    """pytest's arguments."""
    observed = flavour is emulated.OBSERVED
    left_out = TOO_SLOW + NOT_OF_A_BACKEND + (TOO_SLOW_OBSERVED if observed else [])
    names = SHARED if observed else SHARED + SANITIZED_ALONE
    return ["-k", " and ".join(f"not {x}" for x in left_out), *(f"tests/test_{x}.py" for x in names), *OF_METAL]


FLAVOURS = [emulated.OBSERVED, emulated.SANITIZED]


@pytest.fixture(scope="module")
def runs() -> dict[str, subprocess.Popen]:
    """The tests in both flavours of the emulation, at once, and beside the mutants."""
    started = {}
    for flavour in FLAVOURS:
        environment = os.environ | emulated.environment(flavour, emulated.build(flavour))
        environment |= {"PYTHONPATH": str(ROOT / "tests/metal")}
        command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *selection(flavour)]
        started[flavour.name] = subprocess.Popen(
            command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    return started


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
def test_every_mutant_is_caught(runs, flavour, edits):
    missed = [name for name, complaint in mutants.complaints(flavour, edits).items() if complaint is None]
    assert not missed


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda flavour: flavour.name)
def test_what_every_backend_has_to_pass(runs, flavour):
    output, _ = runs[flavour.name].communicate(timeout=900)
    assert runs[flavour.name].returncode == 0, output[-8000:]
