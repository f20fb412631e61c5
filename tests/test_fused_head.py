"""Scores from hidden states: the same values and gradients as projecting first, and never all projections at once."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from helpers_heads import NEEDED, assert_axes_and_nothing, assert_only_needed_gradients
from torch import Tensor
from torch.nn import functional


def project_then_score(m, Q, H_d, W, b, d_mask, normalize) -> Tensor:
    D = functional.linear(H_d, W, b)
    return m.maxsim(Q, functional.normalize(D, dim=-1) if normalize else D, d_mask=d_mask)


def inputs(dtype: torch.dtype = torch.float32, queries: tuple = (3, 5), documents: tuple = (7, 11)) -> list[Tensor]:
    Q = functional.normalize(torch.randn(*queries, 16), dim=-1)
    shapes = [(*documents, 24), (16, 24), (16,)]
    return [x.to(dtype).requires_grad_() for x in (Q, *(torch.randn(shape) * 0.3 for shape in shapes))]


@pytest.fixture(params=[None, 1, 2000])
def budget(request, maxsim, monkeypatch) -> int | None:
    """Bytes of projected documents: all at once, one document, two or so."""
    if request.param is not None:
        monkeypatch.setattr(sys.modules[f"{maxsim.__name__}.fused_head"], "_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_values_and_gradients(maxsim, budget, bias, masked, normalize):
    Q, H, W, b = inputs()
    leaves = [Q, H, W, b] if bias else [Q, H, W]
    b = b if bias else None
    mask = torch.rand(7, 11) > 0.3 if masked else None
    if masked:
        mask[2] = False
    weight = torch.randn(3, 7)
    want = project_then_score(maxsim, Q, H, W, b, mask, normalize)
    want_gradients = torch.autograd.grad((want * weight).sum(), leaves)
    got = maxsim.fused_head.maxsim_from_hidden(Q, H, W, b, mask, normalize)
    gradients = torch.autograd.grad((got * weight).sum(), leaves)
    torch.testing.assert_close(got, want)
    for mine, theirs in zip(gradients, want_gradients, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(maxsim, budget, dtype):
    leaves = inputs(dtype)
    want = project_then_score(maxsim, *leaves, None, True)
    got = maxsim.fused_head.maxsim_from_hidden(*leaves)
    assert torch.equal(got, want)
    want_gradients = torch.autograd.grad(want.sum(), leaves)
    for mine, theirs in zip(torch.autograd.grad(got.sum(), leaves), want_gradients, strict=True):
        assert mine.dtype is dtype
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


def test_gradients_of_many_parts_add_up_in_float32(maxsim, monkeypatch):
    monkeypatch.setattr(sys.modules[f"{maxsim.__name__}.fused_head"], "_BYTES", 1)
    Q, H, W, b = inputs(torch.bfloat16, documents=(400, 1))  # one token: no winner to be rounded away
    exact = torch.autograd.grad(
        project_then_score(maxsim, *(x.float() for x in (Q, H, W, b)), None, True).sum(), (W, b)
    )
    got = torch.autograd.grad(maxsim.fused_head.maxsim_from_hidden(Q, H, W, b).sum(), (W, b))
    for mine, theirs in zip(got, exact, strict=True):
        assert (mine - theirs).norm() < 0.004 * theirs.norm()


@pytest.mark.parametrize("needed", NEEDED)
def test_only_what_is_needed(maxsim, budget, needed):
    assert_only_needed_gradients(maxsim, inputs(), needed)


def test_axes_and_empty_corpora(maxsim):
    assert_axes_and_nothing(maxsim, inputs())


def test_mixed_dtypes_and_autocast(maxsim):
    head = maxsim.fused_head.maxsim_from_hidden
    Q, H, W, b = inputs()
    want = project_then_score(maxsim, Q, H.half().float(), W, b, None, True)
    torch.testing.assert_close(head(Q, H.half(), W, b), want)
    with torch.autocast("cpu", torch.bfloat16):
        got = head(Q, H, W, b)
        assert torch.equal(got, project_then_score(maxsim, Q, H, W, b, None, True))
    got.sum().backward()
    assert all(x.grad.dtype is torch.float32 for x in (Q, H, W, b))


def largest_allocation(run: Callable[[], object]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    return max(event.self_cpu_memory_usage for event in profile.events())


def test_the_projections_are_never_all_held(maxsim, monkeypatch):
    """Forward and backward: nothing is as large as the projected documents, which are 8 MiB."""
    monkeypatch.setattr(sys.modules[f"{maxsim.__name__}.fused_head"], "_BYTES", 1 << 18)
    Q, H = torch.randn(2, 4, 128), torch.randn(512, 32, 4)
    W = torch.randn(128, 4, requires_grad=True)
    head = maxsim.fused_head.maxsim_from_hidden
    assert largest_allocation(lambda: head(Q, H, W).sum().backward()) < 1 << 20
    assert largest_allocation(lambda: project_then_score(maxsim, Q, H, W, None, None, True)) >= 8 << 20


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"Q": torch.randn(5)}, ValueError, r"Q must be \[Nq, Lq, d_out\]"),
        ({"H_d": torch.randn(24)}, ValueError, r"H_d must be \[Nd, Ld, d_model\]"),
        ({"W": torch.randn(24, 16)}, ValueError, r"W must be \[d_out, d_model\] = \(16, 24\); got \(24, 16\)"),
        ({"b": torch.randn(24)}, ValueError, r"b must be \[d_out\] = \[16\]; got \(24,\)"),
        ({"W": torch.randn(16, 24).double()}, TypeError, "W must be float16"),
        ({"W": torch.randn(16, 24, device="meta")}, RuntimeError, "W must be on the same device as Q, cpu; got meta"),
        ({"d_mask": torch.ones(3, 11)}, ValueError, "d_mask must broadcast to the token shape"),
        ({"normalize": 1}, TypeError, "normalize must be a bool; got int"),
    ],
)
def test_errors_name_the_argument(maxsim, change, error, message):
    arguments = {**dict(zip(("Q", "H_d", "W", "b"), inputs(), strict=True)), **change}
    with pytest.raises(error, match=message):
        maxsim.fused_head.maxsim_from_hidden(**arguments)
