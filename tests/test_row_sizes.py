"""Embeddings of more than 128 features, which some paths multiply by kernels of their own, and of numbers that 8 does
not divide, so that rows begin where copy engines do not count from. Documents of several tiles, queries of several
blocks, every layout; and bits that depend on nothing but the pair."""

from __future__ import annotations

from functools import partial

import helpers
import pytest
import torch
from helpers import DTYPES, LAYOUTS, Batch, assert_scores, dtype_id, layout_id, tolerance, truth
from torch import Tensor

HALVES = DTYPES[1:3]
KINDS = [*DTYPES[:3], DTYPES[4]]  # of one type on both sides, or of two


def _ragged(layout, dim: int, dtypes: tuple[torch.dtype, torch.dtype], device: str) -> Batch:
    query_lengths = [40, 40, 40] if layout is helpers.contrastive else [40, 0, 130]
    return Batch.random(query_lengths, [210, 1, 0, 5, 340, 40], dim, dtypes, device)


def _assert_laid(laid, batch: Batch, limit: float) -> Tensor:
    """Scores, which it returns, and winners against float64."""
    scores = laid.score(laid.queries, laid.documents)
    assert_scores(scores, laid, batch, limit)
    if laid.score_with_argmax is None:
        return scores
    with_argmax, argmax = laid.score_with_argmax(laid.queries, laid.documents)
    assert torch.equal(with_argmax, scores)
    for (i, j), winners in zip(laid.pairs, argmax.view(-1, argmax.shape[-1]), strict=True):
        pair, count = truth(batch.queries[i], batch.documents[j]), len(batch.queries[i])
        assert (winners[count if pair.filled else 0 :] == -1).all()
        if pair.filled and count:
            rows = torch.arange(count, device=winners.device)
            won = pair.similarities[rows, winners[:count].long()]
            best = pair.similarities.amax(dim=-1)
            assert ((best - won) <= 1e-4 * best.abs().clamp_min(1)).all()
    return scores


@pytest.mark.parametrize("dtypes", KINDS, ids=dtype_id)
@pytest.mark.parametrize("dim", [20, 100, 102, 127, 136, 200])
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_every_layout(maxsim, path, layout, dim, dtypes):
    """Against float64, and bit for bit against each pair alone."""
    batch = _ragged(layout, dim, dtypes, path.device)
    laid = layout(maxsim, batch)
    scores = _assert_laid(laid, batch, tolerance(*dtypes))
    alone = [maxsim.maxsim(batch.queries[i], batch.documents[j]).item() for i, j in laid.pairs]
    assert scores.flatten().tolist() == alone


@pytest.mark.parametrize("dtypes", KINDS, ids=dtype_id)
@pytest.mark.parametrize("dim", [100, 127, 264])
@pytest.mark.parametrize("layout, longest", [(helpers.candidates, 3500), (helpers.varlen, 14000)])
def test_long_documents_beside_short_ones(maxsim, path, layout, longest, dim, dtypes):
    """So long that several thread blocks share documents, and some have none of a short one's tokens."""
    batch = Batch.random([9], [1, 0, 9, longest], dim, dtypes, path.device)
    _assert_laid(layout(maxsim, batch), batch, tolerance(*dtypes))


@pytest.mark.parametrize("dtypes", KINDS, ids=dtype_id)
@pytest.mark.parametrize("dim", [100, 128, 200])
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_long_queries_among_short_ones(maxsim, path, layout, dim, dtypes):
    """Of several blocks where the average query has one."""
    lengths = [70, 70] if layout is helpers.contrastive else [1, 2, 70, 1, 0, 3, 33, 1]
    batch = Batch.random(lengths, [110, 3, 0, 5, 40, 1, 9, 2], dim, dtypes, path.device)
    _assert_laid(layout(maxsim, batch), batch, tolerance(*dtypes))


@pytest.mark.parametrize("dtypes", KINDS, ids=dtype_id)
@pytest.mark.parametrize("dim", [100, 125, 136])
@pytest.mark.parametrize("length", [1, 7, 64, 65, 104, 105, 128, 152, 153, 209, 257, 300, 304, 305, 457])
def test_every_tile_edge(maxsim, path, length, dim, dtypes):
    """Lengths around whole tiles; equal tokens, so that the first must win."""
    queries, documents = (
        torch.randn(2, n, dim).to(path.device, dtype) for n, dtype in zip((33, length), dtypes, strict=True)
    )
    batch = Batch(list(queries), list(documents))
    laid = helpers.cross(maxsim, batch)
    assert_scores(laid.score(laid.queries, laid.documents), laid, batch, tolerance(*dtypes))
    _, argmax = maxsim.maxsim_with_argmax(queries.abs(), torch.ones_like(documents))
    assert not argmax.any()


@pytest.mark.parametrize("dtypes", HALVES, ids=dtype_id)
@pytest.mark.parametrize("dim", [1024, 2048])
def test_relative_error_of_retrieval_scores(maxsim, path, dim, dtypes):
    """Unit vectors. Tensor cores cut off what does not fit into the sum so far, so that errors grow with d."""
    queries, documents = (
        torch.nn.functional.normalize(torch.randn(n, length, dim), dim=-1).to(path.device, dtype)
        for n, length, dtype in ((2, 32, dtypes[0]), (9, 180, dtypes[1]))
    )
    want = maxsim.maxsim_reference(queries.double(), documents.double())
    assert ((maxsim.maxsim(queries, documents) - want).abs() / want).max().item() <= dim / 1024 * 1.5e-6


@pytest.mark.parametrize("dtypes", KINDS, ids=dtype_id)
@pytest.mark.parametrize("queries, documents", [(1, 1), (1, 97), (2, 3), (7, 40), (33, 2)])
def test_every_batch_size_and_position(maxsim, path, queries, documents, dtypes):
    query, document = (torch.randn(n, 192).to(path.device, dtype) for n, dtype in zip((32, 171), dtypes, strict=True))
    want = maxsim.maxsim(query, document)
    q = torch.randn(queries, 32, 192).to(path.device, dtypes[0])
    d = torch.randn(documents, 171, 192).to(path.device, dtypes[1])
    i, j = queries // 2, documents - 1
    q[i], d[j] = query, document
    assert maxsim.maxsim(q, d)[i, j].equal(want)
    assert maxsim.maxsim(q[i], d)[j].equal(want)
    assert maxsim.maxsim(q, d[j])[i].equal(want)


@pytest.mark.parametrize("dtypes", KINDS, ids=dtype_id)
@pytest.mark.parametrize("dim", [101, 264])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.98])
def test_masks_of_any_pattern(maxsim, path, keep, dim, dtypes):
    """What is masked is NaN, which nobody may look at."""
    queries, documents = (torch.randn(4, n, dim).to(path.device, t) for n, t in zip((37, 390), dtypes, strict=True))
    q_mask, d_mask = (torch.rand(x.shape[:-1], device=path.device) < keep for x in (queries, documents))
    queries[~q_mask], documents[~d_mask] = torch.nan, torch.nan
    got = maxsim.maxsim(queries, documents, q_mask, d_mask, empty_score=-3.0)
    for i in range(4):
        for j in range(4):
            pair = (queries[i][q_mask[i]], documents[j][d_mask[j]])
            assert maxsim.maxsim(*pair, empty_score=-3.0).equal(got[i, j])
            want = truth(*pair, empty_score=-3.0)
            assert abs(got[i, j].item() - want.score.item()) <= tolerance(*dtypes) * want.scale


@pytest.mark.parametrize("dtypes", KINDS, ids=dtype_id)
@pytest.mark.parametrize("dim", [96, 100, 127, 128, 320])
@pytest.mark.parametrize("normalize", [False, True])
def test_strides_and_paddings_change_no_bit(maxsim, path, normalize, dim, dtypes):
    """Whatever the way that rows are loaded, products and squares are added in the same order."""
    queries, documents = (torch.randn(3, n, dim).to(path.device, t) for n, t in zip((45, 230), dtypes, strict=True))
    score = partial(maxsim.maxsim, normalize=normalize)
    want = score(queries, documents)
    for between, first, behind in ((1, 0, 3), (1, 1, 0), (1, 4, 28), (1, 2, 500), (2, 0, 3), (2, 3, 0)):
        end = first + between * dim
        wide = [x.new_full((*x.shape[:-1], end + behind), torch.nan) for x in (queries, documents)]
        views = [x[..., first:end:between].copy_(y) for x, y in zip(wide, (queries, documents), strict=True)]
        assert score(*views).equal(want)
        assert score(queries, views[1]).equal(want)
        assert score(views[0], documents).equal(want)
    apart = documents.repeat_interleave(2, dim=1)[:, ::2]
    assert score(queries, apart).equal(want)
    turned = documents.permute(2, 0, 1).contiguous().permute(1, 2, 0)  # the tokens of a feature follow one another
    assert score(queries, turned).equal(want)


@pytest.mark.parametrize("dtypes", KINDS, ids=dtype_id)
@pytest.mark.parametrize("dim", [129, 200, 512, 1000])
@pytest.mark.parametrize("tokens", [20, 33, 150])
def test_normalised(maxsim, path, tokens, dim, dtypes):
    """Norms are of whole rows, of which a kernel may have only a part at a time; and of rows of zeros."""
    queries, documents = (torch.randn(3, n, dim).to(path.device, t) for n, t in zip((tokens, 210), dtypes, strict=True))
    documents[1] *= torch.logspace(-3, 3, dim, device=path.device).to(dtypes[1])
    documents[2, 5:9], queries[1, 3] = 0, 0
    got = maxsim.maxsim(queries, documents, normalize=True)
    want = maxsim.maxsim_reference(queries.double(), documents.double(), normalize=True)
    assert ((got - want).abs() <= tolerance(*dtypes) * tokens).all()
    assert maxsim.maxsim(queries[2], documents[1], normalize=True).equal(got[2, 1])


@pytest.mark.parametrize("dtypes", KINDS, ids=dtype_id)
def test_nan_and_infinity(maxsim, path, dtypes):
    queries, documents = (torch.randn(3, n, 144).to(path.device, t) for n, t in zip((33, 310), dtypes, strict=True))
    documents[1, 307, 140] = torch.nan
    documents[2, 11] = torch.inf
    queries[:, :, :] = queries.abs()
    scores = maxsim.maxsim(queries, documents)
    assert scores[:, 0].isfinite().all() and scores[:, 1].isnan().all() and (scores[:, 2] == torch.inf).all()
