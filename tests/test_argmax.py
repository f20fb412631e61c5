"""Which document token wins: lowest index among equals, -1 where nothing can."""

from __future__ import annotations

import helpers
import pytest
import torch
from helpers import DTYPES, LAYOUTS, dtype_id, layout_id, ragged, truth

WITH_ARGMAX = [layout for layout in LAYOUTS if layout not in (helpers.matched, helpers.varlen)]


def _integers(batch: helpers.Batch) -> helpers.Batch:
    """Few small integers, so that every dtype is exact and equal similarities abound."""
    return helpers.Batch(*([x.round().clamp(-2, 2) for x in side] for side in (batch.queries, batch.documents)))


@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", WITH_ARGMAX, ids=layout_id)
def test_every_layout(maxsim, path, layout, dtypes):
    batch = _integers(ragged(layout, 5, dtypes, path.device))
    laid = layout(maxsim, batch)
    scores, argmax = laid.score_with_argmax(laid.queries, laid.documents)
    assert torch.equal(scores, laid.score(laid.queries, laid.documents))
    assert argmax.dtype is torch.int32 and argmax.shape[:-1] == scores.shape
    for (i, j), winners in zip(laid.pairs, argmax.view(-1, argmax.shape[-1]), strict=True):
        pair = truth(batch.queries[i], batch.documents[j])
        count = len(batch.queries[i])
        assert (winners[count:] == -1).all()
        if pair.filled:
            assert torch.equal(winners[:count].long(), pair.similarities.argmax(dim=-1))
        else:
            assert (winners == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("length", [2, 17, 64, 300])
def test_lowest_index_wins_across_blocks(maxsim, path, length, dtype):
    document = torch.ones(1, length, 32, device=path.device, dtype=dtype)
    queries = torch.ones(2, 19, 32, device=path.device, dtype=dtype)
    _, argmax = maxsim.maxsim_with_argmax(queries, document)
    assert not argmax.any()
    for first in (1, length // 2, length - 1):
        document[:, :first] = 0.5
        assert (maxsim.maxsim_with_argmax(queries, document)[1] == first).all()
        mask = torch.ones(1, length, dtype=torch.bool, device=path.device)
        mask[:, first] = False
        want = first + 1 if first + 1 < length else 0
        assert (maxsim.maxsim_with_argmax(queries, document, d_mask=mask)[1] == want).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_id)
@pytest.mark.parametrize(("queries", "tokens"), [(1, 32), (3, 32), (12, 32), (2, 100)])
@pytest.mark.parametrize("length", [15, 64, 104, 180, 300])
def test_any_token_may_win(maxsim, path, length, queries, tokens, dtype):
    """Query tokens are single features, so a similarity is a document's feature: positive, zero or negative maxima, few
    distinct values and so many equal ones, and winners everywhere."""
    generator = torch.Generator().manual_seed(length * queries + tokens)
    values = torch.tensor([-2.0, -1.0, -0.0, 0.0, 0.25, 0.5, 1.0])
    highest = torch.randint(1, len(values) + 1, (5, 1, 128), generator=generator)
    picked = torch.randint(1 << 16, (5, length, 128), generator=generator) % highest
    documents = values[picked].to(path.device, dtype)
    features = torch.stack([torch.randperm(128, generator=generator)[:tokens] for _ in range(queries)])
    Q = torch.nn.functional.one_hot(features, 128).to(path.device, dtype)
    scores, argmax = maxsim.maxsim_with_argmax(Q, documents)
    similarities = documents.float().cpu()[:, :, features].permute(2, 0, 3, 1)  # [queries, documents, tokens, length]
    best = similarities.amax(dim=-1, keepdim=True)
    assert torch.equal(argmax.long().cpu(), (similarities == best).int().argmax(dim=-1))
    assert torch.equal(scores.cpu(), best.sum(dim=(-2, -1)))


def test_masked_tokens_have_no_winner_and_win_nothing(maxsim, path):
    queries, documents = torch.randn(3, 7, 16, device=path.device), torch.randn(2, 9, 16, device=path.device)
    q_mask, d_mask = torch.rand(3, 7, device=path.device) < 0.5, torch.rand(2, 9, device=path.device) < 0.5
    d_mask[1] = False
    _, argmax = maxsim.maxsim_with_argmax(queries, documents, q_mask, d_mask)
    assert (argmax[:, 1] == -1).all()
    assert torch.equal(argmax[:, 0] == -1, ~q_mask)
    assert d_mask[0][argmax[:, 0][q_mask].long()].all()


def test_minus_infinity_still_wins(maxsim, path):
    """When every kept similarity is -inf the first kept token wins, whatever is masked before it."""
    queries = torch.ones(1, 2, 4, device=path.device)
    documents = torch.full((1, 6, 4), -torch.inf, device=path.device)
    mask = torch.tensor([[False, False, True, True, False, True]], device=path.device)
    scores, argmax = maxsim.maxsim_with_argmax(queries, documents, d_mask=mask)
    assert scores.item() == -torch.inf
    assert (argmax == 2).all()


def test_first_nan_wins(maxsim, path):
    """As torch.max has it, so that the gradient becomes NaN where the score did."""
    queries, documents = torch.ones(1, 3, 4, device=path.device), torch.ones(1, 40, 4, device=path.device)
    documents[0, [7, 21], 2] = torch.nan
    scores, argmax = maxsim.maxsim_with_argmax(queries, documents)
    assert scores.isnan().all()
    assert (argmax == 7).all()


def test_width_of_packed_queries(maxsim, path):
    batch = helpers.Batch.random([3, 5], [4, 4], 8, device=path.device)
    laid = helpers.listed(maxsim, batch)
    scores, argmax = laid.score_with_argmax(laid.queries, laid.documents)
    wide_scores, wide = laid.score_with_argmax(laid.queries, laid.documents, max_q_len=9)
    assert argmax.shape[-1] == 5 and wide.shape[-1] == 9
    assert torch.equal(scores, wide_scores) and torch.equal(wide[:, :5], argmax) and (wide[:, 5:] == -1).all()
