"""What only the Metal backend has to pass. Collected by tests/test_metal.py in a process that loads an emulation."""

from __future__ import annotations

import sys

import checks
import emulated
import pytest
import selftest
import torch


def test_the_report_of_the_self_test(maxsim, capsys):
    assert selftest.report(maxsim, "cpu", {"Tiny": (1, 1, 2, 3)})
    lines = capsys.readouterr().out.splitlines()
    assert [f"{check.__name__}: holds" for check in checks.CHECKS] == lines[2:-1]
    assert lines[1].endswith("path metal") and lines[-1].startswith("Tiny: ")


def test_the_layout_of_a_matrix_in_its_lanes_does_not_matter(maxsim):
    """Apple documents none, so none may be assumed."""
    library = emulated.library(maxsim)
    queries, documents = torch.randn(3, 40, 24).half(), torch.randn(4, 70, 24).half()
    want = maxsim.maxsim_with_argmax(queries, documents)
    library.emulator_set(0, 0, 1)
    got = maxsim.maxsim_with_argmax(queries, documents)
    library.emulator_set(0, 0, 0)
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))


@pytest.mark.parametrize("backward", ["unified", "lowmem"])
def test_forcing_another_path_is_refused(maxsim, backward):
    ops = checks.ops_of(maxsim)
    with pytest.raises(RuntimeError, match="path 3 does not run on MPS"):
        ops.forward(torch.ones(1, 1, 4), torch.ones(1, 1, 4), *[None] * 8, False, 0.0, 3, False)


def test_mps_is_a_device_with_kernels(maxsim):
    assert sys.modules[f"{maxsim.__name__}._kernels"].DEVICES == {"cpu", "mps"}
