"""Top-k, scoring by id and streaming, held to the whole score matrix: same documents, same bits, lowest index first."""

from __future__ import annotations

import sys
from itertools import accumulate
from types import ModuleType

import pytest
import torch
from helpers import Batch, Packed, Padded
from torch import Tensor


def stable(scores: Tensor, k: int, largest: bool = True) -> tuple[Tensor, Tensor]:
    """What a stable sort makes of a score matrix."""
    values, ids = scores.sort(dim=-1, descending=largest, stable=True)
    return values[..., :k], ids[..., :k]


def assert_same(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    assert got[0].dtype is torch.float32 and got[1].dtype is torch.int64
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0].view(torch.int32), want[0].contiguous().view(torch.int32))


@pytest.fixture
def ragged() -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch.random([5, 0, 9], torch.randint(0, 12, (70,), generator=generator).tolist(), 16)


@pytest.mark.parametrize("chunk", [None, 1, 7, 64, 1000])
@pytest.mark.parametrize("k", [1, 5, 70, 99])
@pytest.mark.parametrize("largest", [True, False])
def test_retrieve_is_the_head_of_a_stable_sort(maxsim, ragged, chunk, k, largest):
    """Empty documents all score 0, so there are ties."""
    q, d = Padded(ragged.queries), Padded(ragged.documents)
    masks = (q.mask(), d.mask())
    for normalize in (True, False):
        scores = maxsim.maxsim(q.tensor, d.tensor, *masks, normalize=normalize)
        got = maxsim.retrieve(q.tensor, d.tensor, k, *masks, normalize=normalize, chunk=chunk, largest=largest)
        assert_same(got, stable(scores, k, largest))


@pytest.mark.parametrize("chunk", [None, 13])
def test_retrieve_takes_a_packed_corpus(maxsim, ragged, chunk):
    q, d = Padded(ragged.queries), Packed(ragged.documents)
    keep = torch.rand(d.tensor.shape[0]) > 0.2
    offsets = d.offsets()
    got = maxsim.retrieve(q.tensor, d.tensor, 9, q.mask(), keep, cu_seqlens_d=offsets, chunk=chunk)
    kept = [document[keep[a:b]] for document, a, b in zip(ragged.documents, offsets, offsets[1:], strict=False)]
    documents = Padded(kept)
    scores = maxsim.maxsim(q.tensor, documents.tensor, q.mask(), documents.mask(), normalize=True)
    assert_same(got, stable(scores, 9))


def test_a_single_query_or_document_has_no_axis_of_its_own(maxsim):
    q, d = torch.randn(4, 8), torch.randn(6, 5, 8)
    scores, ids = maxsim.retrieve(q, d, 3)
    assert scores.shape == ids.shape == (3,)
    assert_same((scores, ids), stable(maxsim.maxsim(q, d, normalize=True), 3))
    scores, ids = maxsim.retrieve(torch.randn(2, 4, 8), d[0], 3)
    assert ids.tolist() == [[0], [0]]


def test_nothing_to_retrieve(maxsim):
    assert maxsim.retrieve(torch.randn(3, 4, 8), torch.randn(0, 5, 8), 2)[1].shape == (3, 0)
    scores, ids = maxsim.retrieve(torch.randn(0, 4, 8), torch.randn(6, 5, 8), 2)
    assert scores.shape == ids.shape == (0, 2) and ids.dtype is torch.int64


@pytest.mark.parametrize("chunk", [None, 3])
def test_order_of_special_values(maxsim, chunk):
    """NaN above everything as in torch.topk, whatever its sign bit; -0.0 equals 0.0."""
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([0.0, -0.0, nan, -inf, inf, -nan, 0.0, 5.0, -5.0, inf])
    values[5] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)  # a NaN whose sign bit is set
    Q, D = torch.ones(1, 1, 1), values.view(10, 1, 1)
    for largest in (True, False):
        scores, ids = maxsim.retrieve(Q, D, 10, normalize=False, largest=largest, chunk=chunk)
        want = [2, 5, 4, 9, 7, 0, 1, 6, 8, 3] if largest else [3, 8, 0, 1, 6, 7, 4, 9, 2, 5]
        assert ids.tolist() == [want]
        assert torch.equal(scores[0].nan_to_num(99), values[want].nan_to_num(99))


def test_long_rows_are_shared_out(maxsim, monkeypatch):
    """Many more documents than one selection looks at, with ties between its groups."""
    monkeypatch.setattr(sys.modules[f"{maxsim.__name__}.ranking"], "_CPU_GROUP", 1 << 10)
    D = torch.randint(-3, 4, (9000, 1, 2)).float()
    Q = torch.randint(-3, 4, (3, 2, 2)).float()
    scores = maxsim.maxsim(Q, D)
    for k in (1, 100, 4000):
        assert_same(maxsim.retrieve(Q, D, k, normalize=False), stable(scores, k))


def test_more_queries_than_share_a_chunk(maxsim):
    Q, D = torch.randn(1030, 2, 4), torch.randn(12, 3, 4)
    assert_same(maxsim.retrieve(Q, D, 4, normalize=False), stable(maxsim.maxsim(Q, D), 4))


def test_no_score_matrix_is_written(maxsim, monkeypatch):
    """Whatever the number of documents, one call to the op sees at most so many scores."""
    retrieval = sys.modules[f"{maxsim.__name__}.retrieval"]
    sizes = []
    run = retrieval.run
    monkeypatch.setattr(retrieval, "run", lambda p, *o: sizes.append(len(p.queries) * len(p.documents)) or run(p, *o))
    monkeypatch.setattr(retrieval, "SCORES", 4096)
    maxsim.retrieve(torch.randn(8, 1, 2), torch.randn(5000, 1, 2), 10)
    assert max(sizes) == 4096 and sum(sizes) == 8 * 5000


@pytest.mark.parametrize(("queries", "documents"), [(1, 1_000_000), (64, 10_000), (1024, 4096)])
def test_little_memory_is_held(maxsim, queries, documents):
    """The largest sum of what is allocated and not yet freed, inside the call."""
    Q, D = torch.randn(queries, 1, 1), torch.randn(documents, 1, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        maxsim.retrieve(Q, D, 100)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    assert 4 * queries * 100 < max(held) <= 32 << 20


def test_retrieve_has_no_gradient(maxsim):
    Q = torch.randn(2, 3, 4, requires_grad=True)
    assert not maxsim.retrieve(Q, torch.randn(5, 3, 4), 2)[0].requires_grad


@pytest.mark.parametrize("packed", [False, True])
def test_score_ids(maxsim, ragged, packed):
    q = Padded(ragged.queries)
    ids = torch.tensor([[3, -1, 0, 69], [5, 5, 5, 5], [-1, -1, 12, 1]])
    d = Packed(ragged.documents) if packed else Padded(ragged.documents)
    documents = d.tensor.nan_to_num()
    options = {"cu_seqlens_d": d.offsets()} if packed else {"d_mask": d.mask()}
    padded = Padded(ragged.documents)
    want = maxsim.maxsim(q.tensor, padded.tensor, q.mask(), padded.mask(), normalize=True)
    want = want.gather(1, ids.clamp_min(0)).masked_fill(ids < 0, -7.0)
    queries = q.tensor.nan_to_num().requires_grad_()
    for dtype in (torch.int32, torch.int64):
        got = maxsim.score_ids(
            queries, documents, ids.to(dtype), q.mask(), normalize=True, missing_score=-7.0, **options
        )
        assert torch.equal(got, want)
    got.sum().backward()
    assert torch.isfinite(queries.grad).all() and queries.grad[0].any()


def test_score_ids_of_an_empty_corpus(maxsim):
    scores = maxsim.score_ids(torch.randn(3, 2, 4), torch.randn(0, 5, 4), torch.full((3, 2), -1))
    assert scores.tolist() == [[float("-inf")] * 2] * 3


def test_score_ids_copies_nothing(maxsim):
    """The corpus is 64 MiB; scoring by id allocates a sliver of that."""
    Q, D = torch.randn(2, 4, 64), torch.randn(1 << 18, 64)
    ids = torch.randint(0, 4096, (2, 50))
    offsets = torch.arange(0, (1 << 18) + 1, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        maxsim.score_ids(Q, D, ids, cu_seqlens_d=offsets)
    assert 0 < sum(max(0, event.self_cpu_memory_usage) for event in profile.events()) < 1 << 20


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("buffer_bytes", [None, 1, 2000, 4096])
def test_a_streamed_corpus_gives_what_a_resident_one_does(maxsim, ragged, packed, masked, buffer_bytes):
    q, d = Padded(ragged.queries), (Packed if packed else Padded)(ragged.documents)
    options = {"cu_seqlens_d": d.offsets()} if packed else {}
    documents = d.tensor.nan_to_num()
    d_mask = torch.rand(documents.shape[:-1]) > 0.3 if masked else None
    masks = (q.mask(), d_mask)
    want = maxsim.retrieve(q.tensor, documents, 11, *masks, **options)
    assert_same(maxsim.retrieve_streamed(q.tensor, documents, 11, *masks, buffer_bytes=buffer_bytes, **options), want)


def test_a_corpus_on_disk_is_streamed(maxsim, tmp_path):
    tokens, offsets = torch.randn(300, 8).half(), torch.arange(0, 301, 3)
    torch.save({"tokens": tokens, "offsets": offsets}, tmp_path / "corpus.pt")
    corpus = torch.load(tmp_path / "corpus.pt", mmap=True)
    Q = torch.randn(4, 8)
    got = maxsim.retrieve_streamed(Q, corpus["tokens"], 5, cu_seqlens_d=corpus["offsets"], buffer_bytes=500)
    assert got[0].shape == (5,)
    assert_same(got, maxsim.retrieve(Q, tokens, 5, cu_seqlens_d=offsets))


def test_progress_of_a_stream(maxsim, capsys):
    Q, D = torch.randn(1, 3, 4), torch.randn(10, 2, 4)
    seen = []
    maxsim.retrieve_streamed(Q, D, 1, buffer_bytes=3 * 32, progress=lambda *at: seen.append(at))
    assert seen == [(3, 10), (6, 10), (9, 10), (10, 10)]
    assert capsys.readouterr().err == ""
    maxsim.retrieve_streamed(Q, D, 1, buffer_bytes=5 * 32, progress=True)
    half, whole = capsys.readouterr().err.split("\r")[1:]
    assert half == f"[{'#' * 20}{'.' * 20}] 5/10 documents" and whole == f"[{'#' * 40}] 10/10 documents\n"


def test_nothing_to_stream(maxsim):
    assert maxsim.retrieve_streamed(torch.randn(2, 3, 4), torch.randn(0, 3, 4), 5)[1].shape == (2, 0)


def test_scorer_has_liks_defaults(maxsim):
    Q, D = torch.randn(2, 4, 8), torch.randn(6, 5, 8)
    q_ids, d_ids = torch.randint(0, 3, (2, 4)), torch.randint(0, 3, (6, 5))
    scorer = maxsim.MaxSimScorer(mask_pad_token=0)
    assert repr(scorer) == "MaxSimScorer(normalize=True, backward='auto', mask_pad_token=0)"
    assert not list(scorer.parameters())
    assert torch.equal(scorer(Q, D), maxsim.maxsim(Q, D, normalize=True))
    assert torch.equal(scorer.forward_with_ids(Q, D, q_ids, d_ids), scorer(Q, D, q_ids != 0, d_ids != 0))
    assert_same(scorer.retrieve(Q, D, 2, chunk=4), maxsim.retrieve(Q, D, 2))
    Q.requires_grad_()
    assert scorer(Q, D).requires_grad and not scorer.score(Q, D).requires_grad
    with pytest.raises(ValueError, match="mask_pad_token must be given"):
        maxsim.MaxSimScorer().forward_with_ids(Q, D, q_ids, d_ids)


def wrong_calls(m: ModuleType) -> list:
    Q, D, ids = torch.randn(2, 3, 4), torch.randn(5, 3, 4), torch.zeros(2, 2, dtype=torch.int64)
    return [
        (lambda: m.retrieve(Q, D, 0), ValueError, "top_k must be positive; got 0"),
        (lambda: m.retrieve(Q, D, 1.0), TypeError, "top_k must be an int; got float"),
        (lambda: m.retrieve(Q, D, 1, chunk=0), ValueError, "chunk must be positive; got 0"),
        (lambda: m.retrieve(Q, D, 1, chunk="a"), TypeError, "chunk must be an int or None; got str"),
        (lambda: m.retrieve(Q, D, 1, largest=1), TypeError, "largest must be a bool"),
        (lambda: m.retrieve(Q, D[None].expand(2, -1, -1, -1), 1), ValueError, "D must be documents that all queries"),
        (lambda: m.retrieve(Q, D, 1, cu_seqlens_d=torch.tensor([0, 1])), ValueError, "D must be .total tokens, d."),
        (lambda: m.retrieve(Q, D[0], 1, cu_seqlens_d=torch.tensor([0, 9])), ValueError, r"cu_seqlens_d\[-1\] must"),
        (lambda: m.score_ids(Q, D, ids[:1]), ValueError, r"ids must be \[Nq, K\] with Nq = 2; got \(1, 2\)"),
        (lambda: m.score_ids(Q, D, ids.float()), TypeError, "ids must be int32 or int64"),
        (lambda: m.score_ids(Q, D, ids + 5), ValueError, r"ids must be in \[0, 5\); got ids\[0\]=5"),
        (lambda: m.score_ids(Q, D, ids - 2), ValueError, r"ids must be in \[0, 5\); got ids\[0\]=-2"),
        (lambda: m.score_ids(Q[0], D, ids), ValueError, r"Q must be \[Nq, Lq, d\]"),
        (lambda: m.score_ids(Q, D, ids, backward="fast"), ValueError, "backward must be one of"),
        (lambda: m.retrieve_streamed(Q, D.to("meta"), 1), RuntimeError, "D must be on the CPU, .* got meta"),
        (lambda: m.retrieve_streamed(Q, D, 1, progress="yes"), TypeError, "progress must be a bool; got str"),
        (lambda: m.retrieve_streamed(Q, D, 1, buffer_bytes=-1), ValueError, "buffer_bytes must be positive; got -1"),
        (lambda: m.MaxSimScorer(backward="fast"), ValueError, "backward must be one of"),
    ]


@pytest.mark.parametrize("number", range(18))
def test_errors_name_the_argument(maxsim, number):
    calls = wrong_calls(maxsim)
    assert len(calls) == 18
    call, error, message = calls[number]
    with pytest.raises(error, match=message):
        call()
