"""A few calls that walk every kernel of the Metal backend and every way its arguments can be wrong.
Small enough for one run a mutant, and for a Mac: the tests that all backends share go further."""

from __future__ import annotations

import sys
from types import ModuleType

import helpers
import torch
from helpers import Batch
from torch import Tensor

HALF = (torch.float16, torch.float16)
MIXED = (torch.float16, torch.float32)


def ops_of(m: ModuleType):
    return sys.modules[f"{m.__name__}._ops"].ops


def verify(m: ModuleType, device: str = "cpu") -> None:
    """Raises AssertionError or RuntimeError where ``m`` does not do on ``device`` what every backend does."""
    for check in CHECKS:
        check(m, device)


def placed(batch: Batch, device: str) -> Batch:
    return Batch(*([x.to(device) for x in side] for side in (batch.queries, batch.documents)))


def layouts(m: ModuleType, device: str) -> None:
    """Long and short sides, in tails of every kind: tokens, rows, features."""
    for dtypes in (HALF, MIXED):
        for layout, dim in ((helpers.cross, 35), (helpers.listed, 24), (helpers.slab, 30)):
            batch = Batch.random([70, 3, 33], [130, 1, 0, 45, 31, 64], dim, dtypes)
            laid = layout(m, placed(batch, device))
            for options in ({}, {"normalize": True, "empty_score": -3.0}):
                scores = laid.score(laid.queries, laid.documents, **options).cpu()
                helpers.assert_scores(scores, laid, batch, helpers.tolerance(*dtypes), **options)
            with_argmax, argmax = laid.score_with_argmax(laid.queries, laid.documents, empty_score=-3.0, normalize=True)
            assert torch.equal(with_argmax.cpu(), scores)
            assert argmax.amin() == -1 and 64 < argmax.amax() < 130


def masks(m: ModuleType, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    queries, documents = (torch.randn(3, n, 32, generator=generator).half() for n in (40, 150))
    q_mask, d_mask = (torch.rand(3, n, generator=generator) < 0.5 for n in (40, 150))
    d_mask[1] = False
    got = m.maxsim(*(x.to(device) for x in (queries, documents, q_mask, d_mask)), empty_score=-7.0)
    want = m.maxsim_reference(queries.double(), documents.double(), q_mask, d_mask, empty_score=-7.0)
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-5)


def ties_and_nan(m: ModuleType, device: str) -> None:
    queries, documents = (torch.ones(shape).half().to(device) for shape in ((1, 2, 8), (2, 140, 8)))
    scores, argmax = m.maxsim_with_argmax(queries, documents)
    assert argmax.tolist() == [[[0, 0]] * 2] and scores.tolist() == [[16.0, 16.0]]
    documents[1, 137] = torch.nan
    scores, argmax = m.maxsim_with_argmax(queries, documents)
    assert scores[0, 0] == 16 and scores[0, 1].isnan() and argmax.tolist() == [[[0, 0], [137, 137]]]


def strides(m: ModuleType, device: str) -> None:
    """Rows apart, features apart, rows and tensors that are not aligned: the same bits."""
    queries, documents = (torch.randn(shape).half().to(device) for shape in ((2, 9, 24), (3, 20, 24)))
    want = m.maxsim(queries, documents)
    for width in (25, 27, 32):
        wide = documents.new_full((3, 20, width), torch.nan)
        wide[..., :24] = documents
        assert torch.equal(m.maxsim(queries, wide[..., :24]), want)
        short = m.maxsim(queries[..., :23], wide[..., :23])  # a vector would take in what is not a feature
        assert torch.equal(short, m.maxsim(queries[..., :23].contiguous(), documents[..., :23].contiguous()))
    for start in (3, 4, 8):  # elements into a storage
        late = [torch.cat([x.flatten()[:start], x.flatten()])[start:].view(x.shape) for x in (queries, documents)]
        assert torch.equal(m.maxsim(*late), want)
    spread = queries.new_full((2, 9, 48), torch.nan)
    spread[..., ::2] = queries
    assert torch.equal(m.maxsim(spread[..., ::2], documents), want)


def hostile_metadata(m: ModuleType, device: str) -> None:
    """A pair whose metadata points outside its tensors scores NaN and wins nothing; every other pair is unaffected."""
    ops = ops_of(m)
    huge, tokens = 2**31 - 1, torch.randn(12, 16).half().to(device)
    padded = tokens.view(3, 4, 16)
    fine = m.maxsim(padded, padded).cpu()

    def forward(*problem: Tensor | None, width: int = 4) -> Tensor:
        problem = [x if x is None else x.to(device) for x in problem]
        scores = ops.forward(*problem, False, 0.0, 0, False).cpu()
        with_argmax, argmax = (x.cpu() for x in ops.forward_argmax(*problem, False, 0.0, 0, False, width, 0))
        torch.testing.assert_close(with_argmax, scores, equal_nan=True, rtol=0, atol=0)
        assert (argmax[scores.isnan()] == -1).all() and argmax.amin() >= -1 and argmax.amax() < 12
        return scores

    def same_but_for(got: Tensor, wrong: Tensor) -> None:
        assert torch.equal(got.isnan(), wrong) and torch.equal(got[~wrong], fine[~wrong])

    none = [None] * 8
    for dtype in (torch.int32, torch.int64):
        rows, columns = torch.tensor([[False], [True], [False]]), torch.tensor([[False, True, False]])
        for bad in (-1, 5, huge, -huge):
            lengths = torch.tensor([4, bad, 4], dtype=dtype)
            same_but_for(forward(padded, padded, None, None, lengths, None, *[None] * 4), rows.expand(3, 3))
            same_but_for(forward(padded, padded, None, None, None, lengths, *[None] * 4), columns.expand(3, 3))
            same_but_for(forward(padded, padded, None, None, lengths, lengths, *[None] * 4), rows | columns)
        for bad in (13, huge, -1, -huge):
            offsets, good = torch.tensor([0, 4, 8, bad], dtype=dtype), torch.tensor([0, 4, 8, 12], dtype=dtype)
            last = torch.tensor([[False, False, True]]).expand(3, 3)
            same_but_for(forward(tokens, tokens, good, offsets, *none[:6]), last)
            same_but_for(forward(tokens, tokens, offsets, good, *none[:6]), last.T)
        ids = torch.tensor([0, 1, 2, -1, 3, huge], dtype=dtype)
        zeros = torch.zeros_like(ids)
        outside = torch.tensor([False] * 3 + [True] * 3)
        for pairs, want in (((ids, zeros), fine[:, 0]), ((zeros, ids), fine[0])):
            scores = forward(padded, padded, *none[:6], *pairs)
            assert torch.equal(scores.isnan(), outside) and torch.equal(scores[:3], want)


def gradients(m: ModuleType, device: str) -> None:
    """Against float64's: several pairs and slices to a document, with and without norms."""
    for layout in (helpers.cross, helpers.listed):
        for normalize in (False, True):
            batch = Batch.random([20, 3], [70, 33, 5], 40, HALF)
            laid = layout(m, placed(batch, device))
            queries, documents = (x.detach().requires_grad_() for x in (laid.queries, laid.documents))
            laid.score(queries, documents, normalize=normalize).sum().backward()
            exact = Batch(*([x.double().requires_grad_() for x in side] for side in (batch.queries, batch.documents)))
            total = sum(
                helpers.truth(exact.queries[i], exact.documents[j], normalize=normalize).score for i, j in laid.pairs
            )
            want = torch.autograd.grad(total, exact.queries + exact.documents)
            got = laid.query_segments(queries.grad.cpu()) + laid.document_segments(documents.grad.cpu())
            for mine, truth in zip(got, want, strict=True):
                torch.testing.assert_close(mine.double(), truth, rtol=1e-3, atol=1e-5)


def hostile_winners(m: ModuleType, device: str) -> None:
    """Winners that no forward found and ids that name nothing stay inside the tensors."""
    ops, tokens = ops_of(m), torch.randn(3, 4, 16).half().to(device)
    winners = torch.tensor([0, 3, 4, -2, 2**31 - 1, -(2**31), 1, 35], dtype=torch.int32, device=device)
    ids = torch.tensor([0, 3, 2, -1], device=device)
    ones = torch.ones(9, device=device)
    none = [None] * 8
    for normalize in (False, True):
        argmax = winners.repeat(5)[:36].view(3, 3, 4)
        got = ops.backward(ones.view(3, 3), argmax, tokens, tokens, *none, normalize, True, True, 0, 0)
        problem = (tokens, tokens, *none[:6], ids, ids.flip(0))
        listed = ops.backward(ones[:4], winners.repeat(2).view(4, 4), *problem, normalize, True, True, 0, 0)
        assert all(grad.isfinite().all() for grad in (*got, *listed))


def unpacked(residuals: Tensor, nbits: int, dim: int) -> Tensor:
    """Bucket numbers [..., dim]: the lowest bits of a byte come first."""
    shifts = torch.arange(0, 8, nbits)
    return (residuals[..., None].long() >> shifts & 2**nbits - 1).flatten(-2)[..., :dim]


def assert_decompressed(got: tuple[Tensor, Tensor], queries: Tensor, documents: list[Tensor], limit: float) -> None:
    """Within ``limit`` of float64 over the decompressed documents; each winner as good as the best token."""
    scores, argmax = (x.cpu() for x in got)
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            want = helpers.truth(query, document, empty_score=-2.0)
            assert abs(scores[i, j].double() - want.score) <= limit * want.scale
            if want.filled:
                chosen = want.similarities.gather(1, argmax[i, j, :, None].long())[:, 0]
                assert ((want.similarities.amax(1) - chosen).abs() <= limit * want.scale).all()
            else:
                assert (argmax[i, j] == -1).all()


def residuals(m: ModuleType, device: str) -> None:
    """Every width of a bucket, padded and packed, a code that names no centroid."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([70, 1, 0, 33])
    offsets = torch.tensor([0, 70, 71, 71, 104], dtype=torch.int32)
    limits = {torch.float16: 2e-4, torch.bfloat16: 2e-3, torch.float32: 1e-5}
    for nbits, dtype, normalize in (
        (1, torch.float16, True),
        (2, torch.float32, True),
        (4, torch.float16, False),
        (8, torch.bfloat16, True),
    ):
        dim = 36
        queries = torch.randn(2, 40, dim, generator=generator).to(dtype)
        centroids, weights = torch.randn(9, dim, generator=generator), torch.randn(2**nbits, generator=generator) * 0.1
        centroids, weights = centroids.to(dtype), weights.to(dtype)
        codes = torch.randint(9, (4, 75), generator=generator)
        packed = torch.randint(256, (4, 75, -(-dim * nbits // 8)), generator=generator).byte()
        tokens = centroids[codes].double() + weights.double()[unpacked(packed, nbits, dim)]
        if normalize:
            tokens = torch.nn.functional.normalize(tokens, dim=-1)
        documents = [row[:n] for row, n in zip(tokens, lengths.tolist(), strict=True)]
        keep = torch.arange(75) < lengths[:, None]
        op = ops_of(m).residual_forward

        def score(codes: Tensor, packed: Tensor, *metadata: Tensor | None) -> tuple[Tensor, Tensor]:
            arguments = [queries, codes, packed, *metadata, None, None, centroids, weights, None]  # noqa: B023
            arguments = [x if x is None else x.to(device) for x in arguments]
            return op(*arguments, 0.0, nbits, False, normalize, -2.0, 0, True)  # noqa: B023

        forms = (
            score(codes, packed, None, lengths, None, None),
            score(codes.int(), packed, None, None, None, keep),
            score(codes[keep], packed[keep], offsets, None, None, None),
        )
        for got in forms:
            assert_decompressed(got, queries, documents, limits[dtype])
            assert all(torch.equal(*pair) for pair in zip(got, forms[0], strict=True))
        codes[3, 5], codes[0, 74], codes[1, 1] = 9, -(2**62), 2**62  # only the first is of a token that counts
        scores, _ = score(codes, packed, None, lengths, None, None)
        assert scores[:, 3].isnan().all() and torch.equal(scores[:, :3], forms[0][0][:, :3])


def eight_bits(m: ModuleType, device: str) -> None:
    """Signed without minima, unsigned with them; the products are exact in every tile."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([50, 0, 129], dtype=torch.int32)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        queries = torch.randn(3, 33, 20, generator=generator).to(dtype)
        for with_minima in (False, True):
            values = torch.randint(256, (3, 130, 20), generator=generator).to(torch.uint8)
            values = values if with_minima else values.view(torch.int8)
            scales = (torch.rand(3, 130, 1, generator=generator) * 0.01).half()
            minima = (torch.randn(3, 130, generator=generator)).half() if with_minima else None
            tokens = values.double() * scales.double() + (minima.double()[..., None] if with_minima else 0)
            documents = [row[:n] for row, n in zip(tokens, lengths.tolist(), strict=True)]
            factors = [None if x is None else x.float().view(3, 130) for x in (scales, minima)]
            arguments = [queries, values, None, None, None, lengths, *[None] * 5, *factors]
            arguments = [x if x is None else x.to(device) for x in arguments]
            got = ops_of(m).quantised_forward(*arguments, 1, 1, 8, -2.0, 0, 33)
            assert_decompressed(got, queries, documents, 3e-6)


DENSE = (ties_and_nan, strides, hostile_winners, gradients, hostile_metadata, masks, layouts)
COMPRESSED = (residuals, eight_bits)
CHECKS = (*DENSE, *COMPRESSED)
