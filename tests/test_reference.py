"""The torch reference: right pair by pair, in float64, differentiable twice, and what serves other devices."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import helpers
import pytest
import torch
from helpers import LAYOUTS, Batch, assert_scores, layout_id, ragged, truth

DOUBLE = (torch.float64, torch.float64)


@pytest.fixture(scope="module")
def reference(maxsim):
    """The reference functions under the names of what they are references for."""
    r = maxsim.reference
    return SimpleNamespace(
        maxsim=r.maxsim_reference,
        maxsim_with_argmax=r.maxsim_reference_with_argmax,
        maxsim_pairs=lambda q, d, q_mask, d_mask, **o: r.maxsim_reference(
            q, d[:, None], q_mask, d_mask[:, None], **o
        ).squeeze(1),
        maxsim_varlen=r.maxsim_reference_varlen,
        score_candidates_padded=r.score_candidates_padded_reference,
        score_candidates_padded_with_argmax=r.score_candidates_padded_with_argmax_reference,
        score_contrastive=r.score_contrastive_reference,
        score_contrastive_with_argmax=r.score_contrastive_with_argmax_reference,
        score_pairs_packed=r.score_pairs_packed_reference,
        score_pairs_packed_with_argmax=lambda *a: r.score_pairs_packed_with_argmax_reference(*a, max_q_len=None),
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_every_layout(reference, layout):
    batch = ragged(layout, 12, DOUBLE, "cpu")
    laid = layout(reference, batch)
    scores = laid.score(laid.queries, laid.documents)
    assert scores.dtype is torch.float64
    for (i, j), score in zip(laid.pairs, scores.flatten().tolist(), strict=True):
        want = truth(batch.queries[i], batch.documents[j])
        assert abs(score - want.score.item()) <= 1e-14 * want.scale
    if laid.score_with_argmax is not None:
        again, argmax = laid.score_with_argmax(laid.queries, laid.documents)
        assert torch.equal(again, scores) and argmax.dtype is torch.int32
        for (i, j), winners in zip(laid.pairs, argmax.view(-1, argmax.shape[-1]), strict=True):
            pair = truth(batch.queries[i], batch.documents[j])
            count = len(batch.queries[i]) if pair.filled else 0
            assert winners[:count].tolist() == (pair.similarities.argmax(-1).tolist() if count else [])
            assert (winners[count:] == -1).all()


@pytest.mark.parametrize("layout", [helpers.cross, helpers.slab], ids=layout_id)
def test_options(reference, layout):
    batch = ragged(layout, 12, (torch.float32, torch.float32), "cpu")
    laid = layout(reference, batch)
    options = {"normalize": True, "empty_score": -7.0}
    assert_scores(laid.score(laid.queries, laid.documents, **options), laid, batch, 1e-6, **options)


def test_many_pairs_are_scored_in_chunks(maxsim, monkeypatch):
    queries, documents = torch.randn(3, 5, 8), torch.randn(7, 6, 8)
    whole = maxsim.maxsim_reference_with_argmax(queries, documents)
    monkeypatch.setattr(maxsim.reference, "_SIMILARITIES", 100)
    chunked = maxsim.maxsim_reference_with_argmax(queries, documents)
    assert all(torch.equal(*pair) for pair in zip(whole, chunked, strict=True))


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_first_and_second_derivatives(maxsim, normalize):
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    q = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    d = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)

    def score(q, d):
        return maxsim.maxsim_reference(q, d, d_mask=mask, normalize=normalize)

    assert torch.autograd.gradcheck(score, (q, d))
    assert torch.autograd.gradgradcheck(score, (q, d))
    assert torch.autograd.gradcheck(score, (q, d), check_forward_ad=True, check_backward_ad=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_floats_are_computed_in_float32(maxsim, dtype):
    queries, documents = torch.randn(2, 3, 8).to(dtype), torch.randn(2, 4, 8).to(dtype)
    scores = maxsim.maxsim_reference(queries, documents)
    assert scores.dtype is torch.float32
    assert torch.equal(scores, maxsim.maxsim_reference(queries.float(), documents.float()))


def test_what_is_masked_is_never_seen(maxsim):
    """NaN behind a mask reaches neither the score nor a gradient."""
    q = torch.randn(1, 4, 3, dtype=torch.float64)
    d = torch.randn(2, 5, 3, dtype=torch.float64)
    q_mask, d_mask = torch.rand(1, 4) < 0.6, torch.tensor([[True, False, True, True, False], [False] * 5])
    q[~q_mask], d[~d_mask] = torch.nan, torch.inf
    q.requires_grad_(), d.requires_grad_()
    for normalize in (False, True):
        scores = maxsim.maxsim_reference(q, d, q_mask, d_mask, normalize=normalize)
        for grad in torch.autograd.grad(scores.sum(), (q, d)):
            assert grad.isfinite().all()
        assert scores.isfinite().all()


def test_lik_and_erik_names(maxsim):
    """Both peers' reference names, on their own argument orders."""
    r = maxsim.reference
    batch = Batch.random([3, 2], [4, 1, 5], 6)
    q, d = torch.cat(batch.queries), torch.cat(batch.documents)
    q_offsets, d_offsets = torch.tensor([0, 3, 5]), torch.tensor([0, 4, 5, 10])
    ids = torch.tensor([1, 0]), torch.tensor([2, 0])
    cross = r.maxsim_reference_varlen(q, d, q_offsets, d_offsets)
    want = cross[ids]
    assert torch.equal(r.maxsim_reference_scatter(q, d, q_offsets, d_offsets, *ids), want)
    assert torch.equal(r.score_pairs_packed_reference(q, q_offsets, d, d_offsets, *ids), want)
    scores, argmax = r.score_pairs_packed_with_argmax_reference(q, q_offsets, d, d_offsets, *ids, 4)
    assert torch.equal(scores, want) and argmax.shape == (2, 4)
    score, winners = r.maxsim_reference_with_argmax(batch.queries[1], batch.documents[2])
    assert score.shape == () and torch.equal(score, want[0]) and torch.equal(winners, argmax[0, :2])


@pytest.fixture
def no_kernels(maxsim, monkeypatch):
    """As if the tensors were on a device that nothing was compiled for."""
    monkeypatch.setattr(sys.modules[f"{maxsim.__name__}._kernels"], "DEVICES", frozenset())


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_serves_devices_without_kernels(maxsim, no_kernels, layout):
    batch = ragged(layout, 12, (torch.bfloat16, torch.float32), "cpu")
    laid = layout(maxsim, batch)
    queries = laid.queries.requires_grad_()
    scores = laid.score(queries, laid.documents, empty_score=-1.0)
    assert_scores(scores, laid, batch, 2e-6, empty_score=-1.0)
    scores.sum().backward()
    assert queries.grad.dtype is torch.bfloat16 and queries.grad.isfinite().all()
    assert "forward" not in scores.grad_fn.name()
    assert maxsim.paths.default(queries) == "reference"
