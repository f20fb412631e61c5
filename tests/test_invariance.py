"""One pair, one score: bit for bit the same in every layout, batch, position, stride and number of threads.
And the same call twice gives the same bits twice, forward and backward."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import helpers
import pytest
import torch
from helpers import DTYPES, LAYOUTS, Batch, assert_scores, dtype_id, layout_id, ragged, tolerance


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _alone(m, batch: Batch, i: int, j: int, **options: object) -> float:
    return m.maxsim(batch.queries[i], batch.documents[j], **options).item()


@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
@pytest.mark.parametrize("options", [{}, {"normalize": True}], ids=["plain", "normalized"])
def test_every_layout_gives_the_bits_of_the_pair_alone(maxsim, path, threads, layout, dtypes, options):
    batch = ragged(layout, 100, dtypes, path.device)
    laid = layout(maxsim, batch)
    scores = laid.score(laid.queries, laid.documents, **options).flatten().tolist()
    assert scores == [_alone(maxsim, batch, i, j, **options) for i, j in laid.pairs]
    if laid.score_with_argmax is not None:
        with_argmax, _ = laid.score_with_argmax(laid.queries, laid.documents, **options)
        assert scores == with_argmax.flatten().tolist()


@pytest.mark.parametrize("dtypes", DTYPES[:3], ids=dtype_id)
@pytest.mark.parametrize("queries, documents", [(1, 1), (1, 97), (2, 3), (7, 40), (33, 2), (64, 5)])
def test_every_batch_size_and_position(maxsim, path, threads, queries, documents, dtypes):
    """One known pair among random neighbours, first, last and in the middle."""
    query, document = (torch.randn(n, 128).to(path.device, dtype) for n, dtype in zip((32, 71), dtypes, strict=True))
    want = maxsim.maxsim(query, document)
    neighbours_q = torch.randn(queries, 32, 128).to(path.device, dtypes[0])
    neighbours_d = torch.randn(documents, 71, 128).to(path.device, dtypes[1])
    for i in {0, queries // 2, queries - 1}:
        for j in {0, documents // 2, documents - 1}:
            q, d = neighbours_q.clone(), neighbours_d.clone()
            q[i], d[j] = query, document
            assert maxsim.maxsim(q, d)[i, j].equal(want)
            assert maxsim.maxsim(q[i], d)[j].equal(want)
            assert maxsim.maxsim(q, d[j])[i].equal(want)


@pytest.mark.parametrize("dtypes", DTYPES[:3], ids=dtype_id)
def test_padding_and_holes_change_nothing(maxsim, path, dtypes):
    """Masked tokens between the kept ones, as punctuation is in a document, leave every bit."""
    query, document = (torch.randn(n, 96).to(path.device, dtype) for n, dtype in zip((21, 50), dtypes, strict=True))
    want = maxsim.maxsim(query, document)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        spread = []
        for tokens in (query, document):
            places = torch.randperm(90, generator=generator)[: len(tokens)].sort().values.to(path.device)
            wide = tokens.new_full((90, 96), torch.nan)
            wide[places] = tokens
            mask = torch.zeros(90, dtype=torch.bool, device=path.device)
            mask[places] = True
            spread.append((wide, mask))
        (q, q_mask), (d, d_mask) = spread
        assert maxsim.maxsim(q, d, q_mask, d_mask).equal(want)


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
@pytest.mark.parametrize("tokens", [33, 128, 1100])
def test_queries_of_many_blocks(maxsim, path, layout, tokens):
    """However many blocks of rows a query has, whoever adds their sums: each pair as if it were alone, and right."""
    lengths = [tokens] * 3 if layout is helpers.contrastive else [tokens, 1, tokens - 32]
    batch = Batch.random(lengths, [41, 7, 0, 130, 64, 12], 16, (torch.bfloat16, torch.bfloat16), path.device)
    laid = layout(maxsim, batch)
    scores = laid.score(laid.queries, laid.documents)
    assert_scores(scores, laid, batch, tolerance(torch.bfloat16, torch.bfloat16))
    assert scores.flatten().tolist() == [_alone(maxsim, batch, i, j) for i, j in laid.pairs]


@pytest.mark.parametrize("counts", [(1, 700), (20, 300)], ids=["one query", "many"])
@pytest.mark.parametrize("dim", [16, 128])
def test_ragged_documents_shared_out(maxsim, path, counts, dim):
    """Lengths from nothing to many tiles, in any order: every document is met once by every query."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, 40, (counts[1],), generator=generator)
    lengths[::37] *= 30
    batch = Batch.random([32] * counts[0], lengths.tolist(), dim, (torch.bfloat16, torch.bfloat16), path.device)
    laid = helpers.varlen(maxsim, batch)
    assert_scores(laid.score(laid.queries, laid.documents), laid, batch, tolerance(torch.bfloat16, torch.bfloat16))


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("tokens", [103, 300, 1500])
@pytest.mark.parametrize("queries", [1, 3, 9])
@pytest.mark.parametrize("dim", [64, 128])
def test_holes_anywhere(maxsim, path, queries, tokens, kept, dim):
    """The kept tokens of a masked document score as the document that has only those, and win as they do."""
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(queries, 32, dim, generator=generator).to(path.device, torch.bfloat16)
    d = torch.randn(4, tokens, dim, generator=generator).to(path.device, torch.bfloat16)
    mask = (torch.rand(4, tokens, generator=generator) < kept).to(path.device)
    mask[0, : tokens // 2], mask[0, tokens // 2 :] = True, False  # as padding looks
    mask[1] = False
    scores, winners = maxsim.maxsim_with_argmax(q, d.masked_fill(~mask[..., None], torch.nan), d_mask=mask)
    assert torch.equal(scores, maxsim.maxsim(q, d.masked_fill(~mask[..., None], torch.nan), d_mask=mask))
    for j in range(4):
        places = mask[j].nonzero().flatten()
        if not len(places):
            assert (winners[:, j] == -1).all()
            continue
        alone, among = maxsim.maxsim_with_argmax(q, d[j, places])
        assert torch.equal(scores[:, j], alone.flatten())
        assert torch.equal(winners[:, j], places[among.flatten(0, -2).long()].to(winners.dtype))


@pytest.mark.parametrize("slab", [False, True], ids=["cross", "candidates"])
@pytest.mark.parametrize("tokens", [32, 70, 300])
@pytest.mark.parametrize("length", [104, 333, 2100])
def test_marked_tokens_are_the_documents(maxsim, path, slab, tokens, length):
    """Lengths and masks on both sides of padded tensors, on any of them or on none: the pair of what is kept, alone."""
    generator = torch.Generator().manual_seed(length + tokens)

    def side(shape: tuple[int, ...], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.randn(*shape, rows, 128, generator=generator).to(path.device, torch.bfloat16)
        lengths = torch.randint(0, rows + 1, shape, generator=generator)
        kept = torch.arange(rows) < lengths[..., None]
        kept[0] |= True
        kept[1] &= torch.rand(*shape[1:], rows, generator=generator) < 0.8
        kept = kept.to(path.device)
        return values.masked_fill(~kept[..., None], torch.nan), kept

    q, q_mask = side((5,), tokens)
    d, d_mask = side((5, 3) if slab else (7,), length)
    scores = maxsim.maxsim(q, d, q_mask, d_mask)
    for i, j in itertools.product(range(scores.shape[0]), range(scores.shape[1])):
        document, mask = (d[i, j], d_mask[i, j]) if slab else (d[j], d_mask[j])
        alone = maxsim.maxsim(q[i][q_mask[i]], document[mask])
        assert scores[i, j].equal(alone.view(()))


def test_training_sees_the_scores_of_inference(maxsim, path):
    batch = ragged(helpers.cross, 64, (torch.bfloat16, torch.bfloat16), path.device)
    laid = helpers.cross(maxsim, batch)
    inference = laid.score(laid.queries, laid.documents)
    assert torch.equal(laid.score(laid.queries.requires_grad_(), laid.documents), inference)


def _gradients(laid: helpers.Laid, backward: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    queries, documents = laid.queries.detach().requires_grad_(), laid.documents.detach().requires_grad_()
    scores = laid.score(queries, documents, backward=backward)
    weights = torch.linspace(-1, 1, scores.numel(), device=scores.device)
    return torch.autograd.grad((scores.flatten() * weights).sum(), (queries, documents))


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
@pytest.mark.parametrize("dtypes", DTYPES[:3], ids=dtype_id)
def test_lowmem_gradients_are_reproducible(maxsim, path, layout, dtypes):
    batch = ragged(layout, 64, dtypes, path.device)
    laid = layout(maxsim, batch)
    before = torch.get_num_threads()
    runs = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        runs.append(_gradients(laid, "lowmem"))
    torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_concurrent_calls(maxsim, path):
    """Calls from several Python threads at once, each with its own problem."""
    laids = [helpers.varlen(maxsim, ragged(helpers.varlen, 64, DTYPES[k % 3], path.device, seed=k)) for k in range(8)]

    def results(laid: helpers.Laid) -> tuple[torch.Tensor, ...]:
        return laid.score(laid.queries, laid.documents), *_gradients(laid, "lowmem")

    alone = [results(laid) for laid in laids]
    with ThreadPoolExecutor(4) as pool:
        for mine, want in zip(pool.map(results, laids * 4), alone * 4, strict=True):
            assert all(torch.equal(*pair) for pair in zip(mine, want, strict=True))


@pytest.mark.parametrize(
    "backward, deterministic, mode",
    [
        (None, False, 0),
        ("auto", False, 0),
        ("unified", False, 1),
        ("lowmem", False, 2),
        (None, True, 2),
        ("unified", True, 2),
    ],
)
def test_the_method_reaches_the_gradient(maxsim, monkeypatch, backward, deterministic, mode):
    """Deterministic algorithms take the reproducible one, whatever was asked for."""
    kernels = sys.modules[f"{maxsim.__name__}._kernels"]
    op, modes = kernels.backward, []
    monkeypatch.setattr(kernels, "backward", lambda *arguments: modes.append(arguments[-2]) or op(*arguments))
    laid = helpers.cross(maxsim, ragged(helpers.cross, 8, (torch.float32, torch.float32), "cpu"))
    want = _gradients(laid, "lowmem")
    torch.use_deterministic_algorithms(deterministic)
    try:
        got = _gradients(laid, backward)
    finally:
        torch.use_deterministic_algorithms(False)
    assert modes == [2, mode]
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))
