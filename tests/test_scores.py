"""Scores against float64: every layout, dtype, option and path, many embedding dims, shapes and strides."""

from __future__ import annotations

import helpers
import pytest
import torch
from helpers import DTYPES, LAYOUTS, Batch, assert_scores, dtype_id, layout_id, ragged, tolerance

DIMS = [1, 3, 31, 48, 64, 96, 128, 320, 768, 1024]
SAME_DTYPES = DTYPES[:3]


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
@pytest.mark.parametrize("options", [{}, {"normalize": True, "empty_score": -1e9}], ids=["plain", "normalized"])
def test_every_layout(maxsim, path, layout, dtypes, options):
    batch = ragged(layout, 48, dtypes, path.device)
    laid = layout(maxsim, batch)
    scores = laid.score(laid.queries, laid.documents, **options)
    assert_scores(scores, laid, batch, tolerance(*dtypes), **options)


@pytest.mark.parametrize("dtypes", DTYPES[:4], ids=dtype_id)
@pytest.mark.parametrize("dim", DIMS)
def test_every_dim(maxsim, path, dim, dtypes):
    batch = Batch.random([32, 7], [70, 16, 1], dim, dtypes, path.device)
    laid = helpers.varlen(maxsim, batch)
    assert_scores(laid.score(laid.queries, laid.documents), laid, batch, tolerance(*dtypes))


@pytest.mark.parametrize("dtypes", SAME_DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    "query_length, document_length", [(1, 1), (1, 3000), (40, 9000), (1100, 5), (129, 257), (32, 300)]
)
def test_every_length(maxsim, path, query_length, document_length, dtypes):
    batch = Batch.random([query_length], [document_length, document_length], 64, dtypes, path.device)
    laid = helpers.cross(maxsim, batch)
    assert_scores(laid.score(laid.queries, laid.documents), laid, batch, tolerance(*dtypes))


@pytest.mark.parametrize("dtypes", SAME_DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    "dim, query_tokens, tokens",
    [(48, 20, 70), (64, 20, 64), (128, 20, 33), (128, 20, 100), (128, 40, 150), (64, 100, 131), (48, 200, 300)],
)
def test_many_documents_of_several_queries(maxsim, path, dim, query_tokens, tokens, dtypes):
    """Several for each thread block of any GPU, so that everything that goes round does so more than once."""
    count = 50 if path.device != "cuda" else 700 if query_tokens <= 32 else 200
    queries = torch.randn(7, query_tokens, dim).to(path.device, dtypes[0])
    documents = torch.randn(7, count, tokens, dim).to(path.device, dtypes[1])
    queries[3, 4] = -queries[3, 4].abs()  # a query and a document whose maxima are negative, and a NaN
    documents[3, ::3] = documents[3, ::3].abs()
    documents[5, 6, -1, -1] = float("nan")
    scores, one = maxsim.maxsim(queries, documents), maxsim.maxsim(queries[:1], documents[0])
    assert torch.equal(one[0], scores[0])
    similarities = torch.einsum("qid,qnjd->qnij", queries.double(), documents.double())
    size = torch.einsum("qid,qnjd->qnij", queries.double().abs(), documents.double().abs()).amax((-1, -2))
    want = similarities.amax(-1).sum(-1)
    assert want.isnan().sum() == 1 and torch.equal(scores.isnan(), want.isnan())
    off = ((scores - want).abs() / (query_tokens * size)).nan_to_num()
    assert off.max().item() <= tolerance(*dtypes)


@pytest.mark.parametrize("dtypes", SAME_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("query_tokens", [20, 64, 100])
@pytest.mark.parametrize("longest", [9, 2500], ids=["alike", "giants"])
def test_many_ragged_documents_of_one_query(maxsim, path, longest, query_tokens, dtypes):
    """Several for each thread block, and some that alone are more work than the share of one."""
    count, longest = (900, longest) if path.device == "cuda" else (40, min(longest, 250))
    lengths = torch.randint(0, 10, (count,))
    lengths[[2, 5, count // 2, count - 1]] = longest
    batch = Batch.random([query_tokens], lengths.tolist(), 128, dtypes, path.device)
    laid = helpers.varlen(maxsim, batch)
    scores = laid.score(laid.queries, laid.documents)
    assert_scores(scores, laid, batch, tolerance(*dtypes))
    few = helpers.varlen(maxsim, Batch(batch.queries, batch.documents[:7]))
    assert torch.equal(few.score(few.queries, few.documents), scores[:, :7])


@pytest.mark.parametrize("dtypes", SAME_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("lengths", [(0, 12), (20, 60), (75, 300)], ids=["tiny", "short", "long"])
def test_many_ragged_documents_of_a_batch(maxsim, path, lengths, dtypes):
    """Documents that follow one another, some of which similarities are all negative, and neighbours none of whose
    tokens may be taken for theirs; queries with and without a bound on their tokens."""
    count = 150 if path.device == "cuda" else 30
    document_tokens = torch.randint(*lengths, (count,)).tolist()
    batch = Batch.random([32, 7, 32, 32, 1, 32, 20, 32, 32, 32], document_tokens, 128, dtypes, path.device)
    batch.queries[2].abs_(), batch.queries[4].abs_()
    for document in batch.documents[::4]:
        document.abs_().neg_()
    laid = helpers.varlen(maxsim, batch)
    scores = laid.score(laid.queries, laid.documents)
    assert_scores(scores, laid, batch, tolerance(*dtypes))
    bounded = laid.score(laid.queries, laid.documents, max_seqlen_q=32)
    assert torch.equal(bounded, scores)
    few = helpers.varlen(maxsim, Batch(batch.queries, batch.documents[5:31]))
    assert torch.equal(few.score(few.queries, few.documents), scores[:, 5:31])


@pytest.mark.parametrize("dim", [40, 128])
@pytest.mark.parametrize(
    "bound, lengths",
    [(64, (64, 40, 63, 33)), (128, (128, 97, 100, 128, 120)), (100, (100,)), (256, (256, 230)), (64, (64, 70, 40, 60))],
)
def test_packed_queries_of_several_blocks(maxsim, path, bound, lengths, dim):
    """As many blocks for each as the longest may have, or as many as there are: the same scores, of whatever adds the
    blocks' sums. One longer than promised is NaN on CUDA."""
    batch = Batch.random(list(lengths), [9, 0, 150, *[40] * 20, 1, 300], dim, SAME_DTYPES[0], path.device)
    laid = helpers.varlen(maxsim, batch)
    scores = laid.score(laid.queries, laid.documents)
    assert_scores(scores, laid, batch, tolerance(*SAME_DTYPES[0]))
    longer = torch.tensor([length > bound for length in lengths], device=path.device)
    if path.device != "cpu" or not longer.any():
        bounded = laid.score(laid.queries, laid.documents, max_seqlen_q=bound)
        if path.device == "cuda":
            scores = scores.masked_fill(longer[:, None], torch.nan)
        assert torch.allclose(bounded, scores, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bound", [32, 40])
@pytest.mark.parametrize("dim", [40, 128, 200])
@pytest.mark.parametrize("layout, name", [(helpers.varlen, "max_seqlen_q"), (helpers.listed, "max_q_len")])
def test_a_query_longer_than_promised(maxsim, path, layout, name, dim, bound):
    """Found where offsets can be read; on CUDA it scores NaN, and no other query does."""
    batch = Batch.random([3, 32, 70, 20], [4, 9, 1, 150], dim, device=path.device)
    laid = layout(maxsim, batch)
    if path.device == "cpu":
        with pytest.raises(ValueError, match=f"{name} must be at least 70"):
            laid.score(laid.queries, laid.documents, **{name: bound})
        return
    scores, whole = laid.score(laid.queries, laid.documents, **{name: bound}), laid.score(laid.queries, laid.documents)
    longer = torch.tensor([pair[0] == 2 for pair in laid.pairs], device=path.device).view(scores.shape)
    if path.device == "cuda":
        whole = whole.masked_fill(longer, torch.nan)
    assert torch.allclose(scores, whole, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtypes", SAME_DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    "query_tokens, dim, tokens",
    [
        *((32, 128, 145), (33, 40, 64), (64, 64, 200), (90, 128, 145), (128, 64, 200), (128, 128, 145)),
        *((200, 40, 64), (256, 128, 145), (300, 64, 200)),
    ],
)
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_batches_of_long_queries(maxsim, path, normalize, query_tokens, dim, tokens, dtypes):
    """Blocks of query rows that fill what meets a document together, and some that do not; masks with holes, documents
    of which nothing is kept, and maxima that are negative."""
    queries = torch.randn(9, query_tokens, dim).to(path.device, dtypes[0])
    documents = torch.randn(60 if path.device == "cuda" else 6, tokens, dim).to(path.device, dtypes[1])
    queries[2], documents[::5] = queries[2].abs(), -documents[::5].abs()
    ends = torch.linspace(0, tokens, len(documents)).long().flip(0)
    q_mask = torch.rand(9, query_tokens) < 0.8
    d_mask = (torch.rand(len(documents), tokens) < 0.7) & (torch.arange(tokens) < ends[:, None])
    q_mask, d_mask = q_mask.to(path.device), d_mask.to(path.device)
    exact = [x.double() for x in (queries, documents)]
    if normalize:
        exact = [x / x.norm(dim=-1, keepdim=True) for x in exact]
    similarities = torch.einsum("qid,njd->qnij", *exact)
    size = torch.einsum("qid,njd->qnij", *[x.abs() for x in exact]).amax((-1, -2)) * query_tokens
    for q, d in [(None, None), (q_mask, None), (None, d_mask), (q_mask, d_mask)]:
        scores = maxsim.maxsim(queries, documents, q, d, normalize=normalize)
        best = similarities if d is None else similarities.masked_fill(~d[:, None], -torch.inf)
        best = best.amax(-1) if q is None else best.amax(-1).masked_fill(~q[:, None], 0)
        want = best.sum(-1) if d is None else best.sum(-1).where(d.any(-1), 0)
        assert ((scores - want).abs() / size).max().item() <= tolerance(*dtypes)
        slabs = documents.expand(9, *documents.shape), q, d if d is None else d.expand(9, -1, -1)
        assert torch.equal(maxsim.maxsim(queries, *slabs, normalize=normalize), scores)
        pair = queries[3:4], documents[-3:-2], None if q is None else q[3:4], None if d is None else d[-3:-2]
        assert torch.equal(maxsim.maxsim(*pair, normalize=normalize)[0, 0], scores[3, -3])


EDGES = [0, 1, 8, 63, 64, 65, 103, 104, 105, 168, 300, 7, 0, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
@pytest.mark.parametrize(
    "queries, lengths",
    [(1, EDGES), (4, EDGES), (9, EDGES), (1, [5, 0, 9]), (9, [5, 0, 9]), (1, [3, 0, 9] * 1500)],
    ids=["one", "four", "nine", "one, less than a tile", "nine, less than a tile", "many documents"],
)
def test_packed_rows_of_256_bytes(maxsim, path, queries, lengths, dtype):
    """Documents that end anywhere in a tile, next to NaN that is not theirs, as in the rows behind the last one."""
    batch = Batch.random([32] * queries, lengths, 128, (dtype, dtype), path.device)
    laid = helpers.contrastive(maxsim, batch)
    scores, argmax = laid.score_with_argmax(laid.queries, laid.documents)
    assert_scores(scores, laid, batch, tolerance(dtype))
    for (i, j), winners in zip(laid.pairs, argmax.flatten(0, 1), strict=True):
        want = helpers.truth(batch.queries[i], batch.documents[j])
        assert winners.tolist() == (want.similarities.argmax(-1).tolist() if want.filled else [-1] * 32), (i, j)
    packed = helpers.varlen(maxsim, batch)
    for other in (laid, packed):
        assert torch.equal(other.score(other.queries, other.documents), scores)
    poisoned = lengths.index(9 if 9 in lengths else 5)
    batch.documents[poisoned].fill_(float("nan"))
    others = [j for j in range(len(lengths)) if j != poisoned]
    for layout in (helpers.contrastive, helpers.varlen):
        laid = layout(maxsim, batch)
        got = laid.score(laid.queries, laid.documents)
        assert got[:, poisoned].isnan().all() and torch.equal(got[:, others], scores[:, others])


@pytest.mark.parametrize("dtypes", SAME_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("dim", [128, 384])
def test_relative_error_of_retrieval_scores(maxsim, path, dim, dtypes):
    """Unit vectors, one query, many documents: the plain relative error, with no allowance for cancellation."""
    generator = torch.Generator().manual_seed(3)
    queries, documents = (
        torch.nn.functional.normalize(torch.randn(n, length, dim, generator=generator), dim=-1).to(path.device, dtype)
        for n, length, dtype in ((2, 32, dtypes[0]), (150, 180, dtypes[1]))
    )
    want = maxsim.maxsim_reference(queries.double(), documents.double())
    got = maxsim.maxsim(queries, documents)
    assert ((got - want).abs() / want).max().item() <= tolerance(*dtypes)


def _strided_views(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values behind other strides."""
    features_outside = tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    every_other = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), float("nan"))
    every_other[..., ::2] = tensor
    tokens_apart = tensor.new_full((*tensor.shape[:-2], 3 * tensor.shape[-2], tensor.shape[-1]), float("nan"))
    tokens_apart[..., ::3, :] = tensor
    unaligned = torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    among_others = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), float("nan"))
    among_others[..., 1:-2] = tensor
    segments = tensor.flatten(0, -3)
    parts_of_rows_apart = tensor.new_full((len(segments), segments[0].numel() + 5), float("nan"))
    parts_of_rows_apart[:, :-5] = segments.flatten(1)
    return {
        "features outside": features_outside,
        "every other feature": every_other[..., ::2],
        "tokens apart": tokens_apart[..., ::3, :],
        "segments inside": tensor.transpose(0, 1).contiguous().transpose(0, 1),
        "unaligned": unaligned,
        "among other features": among_others[..., 1:-2],
        "parts of rows apart": parts_of_rows_apart[:, :-5]
        .unflatten(1, tensor.shape[-2:])
        .unflatten(0, tensor.shape[:-2]),
    }


@pytest.mark.parametrize("dtypes", SAME_DTYPES, ids=dtype_id)
def test_strides_change_nothing(maxsim, path, dtypes):
    queries, documents = (
        torch.randn(3, n, 64).to(path.device, dtype) for n, dtype in zip((20, 30), dtypes, strict=True)
    )
    slabs = torch.randn(3, 4, 30, 64).to(path.device, dtypes[1])
    for call, tokens in ((maxsim.maxsim, documents), (maxsim.maxsim_pairs, documents), (maxsim.maxsim, slabs)):
        want = call(queries, tokens)
        for (name, q), d in zip(_strided_views(queries).items(), _strided_views(tokens).values(), strict=True):
            assert torch.equal(call(q, d), want), name


def test_expanded_inputs_are_read_in_place(maxsim, path):
    queries, documents = torch.randn(1, 8, 32, device=path.device), torch.randn(5, 9, 32, device=path.device)
    want = maxsim.maxsim(queries, documents).expand(4, 5)
    assert torch.equal(maxsim.maxsim(queries.expand(4, 8, 32), documents), want)
    assert torch.equal(maxsim.maxsim(queries.expand(4, 8, 32), documents.expand(4, 5, 9, 32)), want)
    one_token = documents[:, :1].expand(5, 9, 32)
    assert torch.equal(maxsim.maxsim(queries, one_token), maxsim.maxsim(queries, documents[:, :1]))


def test_mask_strides(maxsim, path):
    queries, documents = torch.randn(3, 8, 32, device=path.device), torch.randn(5, 9, 32, device=path.device)
    q_mask, d_mask = torch.rand(3, 8, device=path.device) < 0.6, torch.rand(5, 9, device=path.device) < 0.6
    want = maxsim.maxsim(queries, documents, q_mask, d_mask)
    transposed = [mask.T.contiguous().T for mask in (q_mask, d_mask)]
    assert torch.equal(maxsim.maxsim(queries, documents, *transposed), want)
    slab_mask = d_mask.expand(3, 5, 9)
    assert torch.equal(maxsim.maxsim(queries, documents.expand(3, 5, 9, 32), q_mask, slab_mask), want)


def test_index_strides_and_widths(maxsim, path):
    """Offsets, lengths and ids may be int32 or int64, and views."""
    queries, documents = torch.randn(12, 16, device=path.device), torch.randn(20, 16, device=path.device)
    index = {"query": [0, 5, 12], "document": [0, 7, 7, 20], "q": [0, 1, 1], "d": [2, 0, 1]}
    results = []
    for dtype in (torch.int32, torch.int64):
        plain = {name: torch.tensor(values, dtype=dtype, device=path.device) for name, values in index.items()}
        spread = {name: torch.stack([x, x - 99], dim=1)[:, 0] for name, x in plain.items()}
        results += [
            maxsim.score_pairs_packed(queries, x["query"], documents, x["document"], x["q"], x["d"])
            for x in (plain, spread)
        ]
        q, d = queries.view(3, 4, 16), documents.view(1, 5, 4, 16).expand(3, 5, 4, 16)
        query_lengths = torch.tensor([2, 4, 0], dtype=dtype, device=path.device)
        lengths = torch.arange(5, dtype=dtype, device=path.device).expand(3, 5)
        padded = maxsim.score_candidates_padded(q, d, query_lengths, lengths)
        assert torch.equal(padded, maxsim.score_candidates_padded(q, d, query_lengths, lengths.T.contiguous().T))
    assert all(torch.equal(result, results[0]) for result in results)
