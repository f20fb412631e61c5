"""What only the Metal backend has to pass. Collected by tests/test_metal.py in a process that loads an emulation."""

from __future__ import annotations

import sys

import checks
import emulated
import pytest
import selftest
import torch
from torch._subclasses import FakeTensorMode


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


def test_mps_tensors_take_the_same_corridor(maxsim, monkeypatch):
    """As far as torch goes without the device: tensors that have it, and no memory. Its autograd goes no further."""
    assert sys.modules[f"{maxsim.__name__}._kernels"].DEVICES == {"cpu", "mps"}
    monkeypatch.setattr(maxsim.reference, "score", None)  # whoever falls back fails
    with FakeTensorMode():
        queries, documents = torch.empty(2, 5, 8, device="mps"), torch.empty(3, 7, 8, device="mps")
        scores = maxsim.maxsim(queries, documents, normalize=True)
        assert scores.device.type == "mps" and scores.shape == (2, 3)
        scores, argmax = maxsim.maxsim_with_argmax(queries, documents)
        assert argmax.device.type == "mps" and argmax.shape == (2, 3, 5)
