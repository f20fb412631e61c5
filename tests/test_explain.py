"""The terms of a score in every layout, held to float64, and the page that shows them."""

from __future__ import annotations

import pytest
import torch
from helpers import DTYPES, LAYOUTS, Batch, Packed, Padded, dtype_id, layout_id, ragged, tolerance, truth
from torch import Tensor


def explained(m, laid_name: str, batch: Batch, **options) -> tuple[object, list[tuple[int, int]]]:
    """``explain`` on ``batch`` in the layout of that name, and the pairs that its results belong to."""
    count, per_query = len(batch.queries), len(batch.documents) // len(batch.queries)
    every = [(i, j) for i in range(count) for j in range(len(batch.documents))]
    q, d = Padded(batch.queries), Padded(batch.documents)
    pq, pd = Packed(batch.queries), Packed(batch.documents)
    if laid_name == "cross":
        return m.explain(q.tensor, d.tensor, q.mask(), d.mask(), **options), every
    if laid_name == "single_query":
        return m.explain(q.tensor[0], d.tensor, q.mask()[0], d.mask(), **options), every[: len(batch.documents)]
    if laid_name == "single_document":
        result = m.explain(q.tensor, d.tensor[0], q.mask(), d.mask()[0], **options)
        return result, [(i, 0) for i in range(count)]
    if laid_name in ("slab", "candidates"):
        shape = (count, per_query)
        result = m.explain(q.tensor, d.tensor.unflatten(0, shape), q.mask(), d.mask().unflatten(0, shape), **options)
        return result, [(i, i * per_query + k) for i in range(count) for k in range(per_query)]
    if laid_name == "matched":
        result = m.explain(q.tensor, d.tensor[:count, None], q.mask(), d.mask()[:count, None], **options)
        return result, [(i, i) for i in range(count)]
    if laid_name == "contrastive":
        return m.explain(q.tensor, pd.tensor, q.mask(), cu_seqlens_d=pd.offsets(), **options), every
    offsets = {"cu_seqlens_q": pq.offsets(torch.int64), "cu_seqlens_d": pd.offsets()}
    if laid_name == "varlen":
        return m.explain(pq.tensor, pd.tensor, **offsets, **options), every
    pairs = [(2, 5), (0, 0), (1, 3), (2, 2), (0, 0)]
    ids = dict(zip(("pair_q_idx", "pair_d_idx"), map(torch.tensor, zip(*pairs, strict=True)), strict=True))
    return m.explain(pq.tensor, pd.tensor, **offsets, **ids, **options), pairs


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
@pytest.mark.parametrize("dtypes", DTYPES[::2], ids=dtype_id)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_terms_of_every_score(maxsim, layout, dtypes, normalize):
    batch = ragged(layout, 24, dtypes, "cpu")
    (scores, winners, similarities), pairs = explained(maxsim, layout.__name__, batch, normalize=normalize)
    assert winners.dtype is torch.int32 and similarities.dtype is torch.float32
    assert winners.shape == similarities.shape == (*scores.shape, winners.shape[-1])
    winners, similarities = winners.flatten(0, -2), similarities.flatten(0, -2)
    assert len(pairs) == scores.numel() == len(winners)
    for (i, j), score, winner, similarity in zip(pairs, scores.flatten(), winners, similarities, strict=True):
        want = truth(batch.queries[i], batch.documents[j], normalize)
        n = len(batch.queries[i]) if want.filled else 0
        assert (winner[n:] == -1).all() and not similarity[n:].any()
        if n:
            best, index = want.similarities.max(dim=-1)
            assert torch.equal(winner[:n].long(), index)
            torch.testing.assert_close(similarity[:n].double(), best, rtol=1e-5, atol=1e-5)
        assert abs(similarity.double().sum() - score) <= 4 * tolerance(*dtypes) * max(want.scale, 1e-30)


def test_many_terms_are_gathered_in_parts(maxsim):
    Q, D = torch.randn(40, 32, 256), torch.randn(30, 8, 256)
    scores, winners, similarities = maxsim.explain(Q, D)
    assert winners.numel() * 256 > 2 * (1 << 22)
    torch.testing.assert_close(similarities.sum(-1), scores)
    got = (Q[:, None] * D[torch.arange(30)[:, None], winners.long()]).sum(-1)
    torch.testing.assert_close(similarities, got)


def test_nothing_to_explain(maxsim):
    assert maxsim.explain(torch.randn(2, 3, 4), torch.randn(0, 3, 4)).winners.shape == (2, 0, 3)
    scores, winners, similarities = maxsim.explain(torch.randn(3, 4), torch.randn(0, 4), empty_score=-1.0)
    assert scores.item() == -1 and winners.tolist() == [-1] * 3 and similarities.tolist() == [0] * 3


def test_similarity_matrix(maxsim):
    Q, D = torch.randn(3, 4).half(), torch.randn(5, 4)
    unit: list[Tensor] = [x.double() / x.double().norm(dim=-1, keepdim=True) for x in (Q, D)]
    matrix = maxsim.similarity_matrix(Q, D, normalize=True)
    torch.testing.assert_close(matrix.double(), unit[0] @ unit[1].T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maxsim.similarity_matrix(Q, D).max(1).values, maxsim.explain(Q, D).similarities)


def test_errors_name_the_argument(maxsim):
    Q, D, ids = torch.randn(2, 3, 4), torch.randn(5, 3, 4), torch.tensor([0])
    with pytest.raises(ValueError, match="pair_q_idx and pair_d_idx go together"):
        maxsim.explain(Q, D, pair_q_idx=ids)
    with pytest.raises(ValueError, match=r"pair_d_idx must be in \[0, 5\); got pair_d_idx\[0\]=5"):
        maxsim.explain(Q, D, pair_q_idx=ids, pair_d_idx=ids + 5)
    with pytest.raises(ValueError, match="pair_q_idx needs D that all queries share"):
        maxsim.explain(Q, torch.randn(2, 5, 3, 4), pair_q_idx=ids, pair_d_idx=ids)
    with pytest.raises(ValueError, match=r"Q must be \[Lq, d\]"):
        maxsim.similarity_matrix(Q, D[0])
