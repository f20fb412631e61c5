"""NaN, infinities, huge values, masks of any pattern, and sizes of zero."""

from __future__ import annotations

import pytest
import torch
from helpers import DTYPES, dtype_id

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
@pytest.mark.parametrize("length", [1, 16, 300])
def test_nan_in_a_kept_token_is_the_score(maxsim, path, dtype, length):
    """As torch.amax has it, wherever the token is, and for that pair alone."""
    queries = torch.randn(3, 18, 40).to(path.device, dtype)
    documents = torch.randn(4, length, 40).to(path.device, dtype)
    clean = maxsim.maxsim(queries, documents)
    for token in {0, length // 2, length - 1}:
        spoiled = documents.clone()
        spoiled[2, token, 39] = torch.nan
        scores = maxsim.maxsim(queries, spoiled)
        assert scores[:, 2].isnan().all()
        assert torch.equal(scores[:, [0, 1, 3]], clean[:, [0, 1, 3]])
        mask = torch.ones(4, length, dtype=torch.bool, device=path.device)
        mask[2, token] = False
        assert maxsim.maxsim(queries, spoiled, d_mask=mask).isfinite().all()
    for token in (0, 17):
        spoiled = queries.clone()
        spoiled[1, token, 0] = torch.nan
        scores = maxsim.maxsim(spoiled, documents)
        assert scores[1].isnan().all()
        assert torch.equal(scores[[0, 2]], clean[[0, 2]])
        mask = torch.ones(3, 18, dtype=torch.bool, device=path.device)
        mask[1, token] = False
        assert maxsim.maxsim(spoiled, documents, q_mask=mask).isfinite().all()


def test_nan_query_against_an_empty_document(maxsim, path):
    queries = torch.full((1, 4, 8), torch.nan, device=path.device)
    mask = torch.tensor([[False] * 3, [True] * 3], device=path.device)
    scores = maxsim.maxsim(queries, torch.randn(2, 3, 8, device=path.device), d_mask=mask, empty_score=-2.5)
    assert scores[0, 0].item() == -2.5
    assert scores[0, 1].isnan()


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_infinities_follow_ieee(maxsim, path, dtype, normalize):
    """inf * 0 and inf - inf are NaN, -inf loses to anything, and a row of nothing but -inf scores -inf."""
    values = torch.tensor([torch.inf, -torch.inf, 0.0, 1.0, -1.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    pick = torch.randint(6, (400, 2, 3), generator=generator)
    queries = values[pick[:200]].to(path.device, dtype)
    documents = values[pick[200:]].to(path.device, dtype)
    want = maxsim.maxsim_reference(queries.double(), documents.double(), normalize=normalize)
    got = maxsim.maxsim(queries, documents, normalize=normalize)
    expected = {"nan"} if normalize else {"nan", "inf", "-inf"}
    assert expected == {str(x) for x in want[~want.isfinite()].tolist()}
    torch.testing.assert_close(got.double(), want, equal_nan=True, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
def test_large_and_small_values(maxsim, path, dtypes):
    """Products beyond the range of the inputs' dtype stay within float32's."""
    scale = {torch.float16: 3e4, torch.bfloat16: 1e15, torch.float32: 1e15}
    for power in (1, -1):
        queries, documents = (
            (torch.rand(2, 9, 64) + 0.5).to(path.device, torch.float64) * scale[dtype] ** power for dtype in dtypes
        )
        queries, documents = queries.to(dtypes[0]), documents.to(dtypes[1])
        want = maxsim.maxsim_reference(queries.double(), documents.double())
        got = maxsim.maxsim(queries, documents)
        assert got.isfinite().all()
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=0)
        unit = maxsim.maxsim(queries, documents, normalize=True)
        want = maxsim.maxsim_reference(queries.double(), documents.double(), normalize=True)
        torch.testing.assert_close(unit.double(), want, rtol=2e-6, atol=0)


def test_beyond_float32_is_infinite(maxsim, path):
    queries = torch.full((1, 2, 4), 1e30, device=path.device)
    assert maxsim.maxsim(queries, queries).item() == torch.inf
    assert maxsim.maxsim(queries, -queries).item() == -torch.inf


def test_zero_vectors_normalize_to_zero(maxsim, path):
    queries, documents = torch.zeros(1, 2, 8, device=path.device), torch.randn(1, 3, 8, device=path.device)
    assert maxsim.maxsim(queries, documents, normalize=True).item() == 0
    tiny = torch.full((1, 1, 8), 1e-14, device=path.device)
    want = maxsim.maxsim_reference(tiny.double(), documents.double(), normalize=True)
    torch.testing.assert_close(maxsim.maxsim(tiny, documents, normalize=True).double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtypes", DTYPES[:3], ids=dtype_id)
@pytest.mark.parametrize("keep", [0.0, 0.03, 0.5, 0.97])
def test_masks_of_any_pattern(maxsim, path, keep, dtypes):
    queries, documents = (torch.randn(4, n, 32).to(path.device, t) for n, t in zip((37, 150), dtypes, strict=True))
    slabs = torch.randn(4, 3, 150, 32).to(path.device, dtypes[1])
    q_mask = torch.rand(4, 37, device=path.device) < keep
    for d, call in ((documents, maxsim.maxsim), (documents, maxsim.maxsim_pairs), (slabs, maxsim.maxsim)):
        d_mask = torch.rand(d.shape[:-1], device=path.device) < keep
        got = call(queries, d, q_mask, d_mask, empty_score=-3.0)
        if call is maxsim.maxsim_pairs:
            d, d_mask, got = d[:, None], d_mask[:, None], got[:, None]
        want = maxsim.maxsim_reference(queries.double(), d.double(), q_mask, d_mask, empty_score=-3.0)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("empty_score", [0.0, -1e9, 2, torch.inf, -torch.inf])
def test_empty_score(maxsim, path, empty_score):
    """It is the score of an empty document, even for an empty query; an empty query scores 0 anywhere else."""
    queries, documents = torch.randn(2, 3, 8, device=path.device), torch.randn(2, 5, 8, device=path.device)
    q_mask = torch.tensor([[True] * 3, [False] * 3], device=path.device)
    d_mask = torch.tensor([[True] * 5, [False] * 5], device=path.device)
    scores = maxsim.maxsim(queries, documents, q_mask, d_mask, empty_score=empty_score).tolist()
    assert scores[0][1] == scores[1][1] == empty_score
    assert scores[1][0] == 0
    offsets = torch.tensor([0, 0, 5], device=path.device)
    packed = maxsim.score_contrastive(queries, documents[0], offsets, empty_score=empty_score)
    assert packed[:, 0].tolist() == [empty_score] * 2


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 0, 3, 5), (2, 4, 0, 5), (2, 4, 3, 0), (0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_zero_sizes_of_dense_layouts(maxsim, path, shape, normalize):
    count, documents, query_length, document_length = shape
    q = torch.randn(count, query_length, 8, device=path.device, requires_grad=True)
    d = torch.randn(documents, document_length, 8, device=path.device, requires_grad=True)
    slabs = torch.randn(count, documents, document_length, 8, device=path.device, requires_grad=True)
    options = {"normalize": normalize, "empty_score": -4.0}
    filled = 0.0 if document_length else -4.0
    for call, documents_of, expected in (
        (maxsim.maxsim, d, (count, documents)),
        (maxsim.maxsim, slabs, (count, documents)),
        (maxsim.maxsim_pairs, slabs[:, 0] if documents else slabs.new_zeros(count, document_length, 8), (count,)),
    ):
        scores = call(q, documents_of, **options)
        assert scores.shape == expected
        if not (query_length and document_length):
            assert (scores == filled).all()
        scores.sum().backward()
        with torch.no_grad():
            assert torch.equal(call(q, documents_of, **options), scores)
    assert q.grad.shape == q.shape and d.grad.shape == d.shape


def test_zero_sizes_of_packed_layouts(maxsim, path):
    none, one = (torch.tensor(x, device=path.device) for x in ([0], [0, 0]))
    tokens, nothing = torch.randn(4, 8, device=path.device), torch.zeros(0, 8, device=path.device)
    ids = torch.zeros(0, dtype=torch.int64, device=path.device)
    all_tokens = torch.tensor([0, 4], device=path.device)
    for q, q_offsets in ((nothing, none), (nothing, one), (tokens, all_tokens)):
        for d, d_offsets in ((nothing, none), (nothing, one), (tokens, all_tokens)):
            q, d = q.clone().requires_grad_(), d.clone().requires_grad_()
            shape = (len(q_offsets) - 1, len(d_offsets) - 1)
            scores = maxsim.maxsim_varlen(q, d, q_offsets, d_offsets)
            assert scores.shape == shape
            scores.sum().backward()
            contrastive = maxsim.score_contrastive(q.view(1, -1, 8), d, d_offsets)
            assert contrastive.shape == (1, shape[1])
            scores, argmax = maxsim.score_pairs_packed_with_argmax(q, q_offsets, d, d_offsets, ids, ids)
            assert scores.shape == (0,) and argmax.shape[0] == 0
            scores.sum().backward()


def test_gradients_around_infinities_stay_with_the_winner(maxsim, path):
    """A token that did not win gives nothing, whatever it holds."""
    queries = torch.ones(1, 2, 4, device=path.device, requires_grad=True)
    documents = torch.ones(1, 3, 4, device=path.device)
    documents[0, 1] = -torch.inf
    documents.requires_grad_()
    maxsim.maxsim(queries, documents).sum().backward()
    assert torch.equal(queries.grad, torch.ones_like(queries))
    assert documents.grad[0, 0].eq(2).all() and not documents.grad[0, 1:].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float32_is_rounded_to_tf32_only_where_torch_allows_it(maxsim, monkeypatch):
    queries, documents = torch.randn(4, 32, 128, device="cuda"), torch.randn(9, 100, 128, device="cuda")
    similarities = torch.einsum("qid,njd->qnij", queries.double(), documents.double())
    expected = similarities.amax(-1).sum(-1)

    def error():
        return ((maxsim.maxsim(queries, documents) - expected) / expected).abs().max()

    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")
    assert error() < 2e-6
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    assert 2e-6 < error() < 1e-3
