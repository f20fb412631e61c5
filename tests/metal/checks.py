"""A few calls that walk every kernel of the Metal backend and every way its arguments can be wrong.
Small enough for one run a mutant, and for a Mac: the tests that all backends share go further."""

from __future__ import annotations

import sys
from types import ModuleType

import helpers
import helpers_quantised as hq
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


def assert_exact(got: tuple[Tensor, Tensor], pairs: list, batch: Batch, limit: float) -> None:
    """Within ``limit`` of float64 over what is stored; each winner as good as the best token."""
    scores, argmax = (x.cpu() for x in got)
    scores, argmax = scores.flatten(), argmax.view(scores.numel(), -1)
    for (i, j), score, winners in zip(pairs, scores, argmax, strict=True):
        query = batch.queries[i]
        want = helpers.truth(query, batch.documents[j], empty_score=-2.0)
        assert abs(score.double() - want.score) <= limit * want.scale
        if want.filled:
            chosen = want.similarities.gather(1, winners[: len(query), None].long())[:, 0]
            assert ((want.similarities.amax(1) - chosen).abs() <= limit * want.scale).all()
        assert (winners[len(query) if want.filled else 0 :] == -1).all()


def residuals(m: ModuleType, device: str) -> None:
    """Every width of a bucket and of a code, padded, packed and listed; a code that names no centroid."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([70, 1, 0, 33])
    offsets = torch.tensor([0, 70, 71, 71, 104], dtype=torch.int32)
    pairs = [(i, j) for i in range(2) for j in range(4)]
    listed = torch.tensor([(1, 3), (0, 2), (0, 0), (1, 3), (1, 0)])
    limits = {torch.float16: 2e-4, torch.bfloat16: 2e-3, torch.float32: 1e-5}
    for nbits, dtype, normalize, width in (
        (1, torch.float16, True, torch.uint8),
        (2, torch.float32, True, torch.int16),
        (4, torch.float16, False, torch.int8),
        (8, torch.bfloat16, True, torch.int32),
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
        stored = Batch(list(queries.double()), [row[:n] for row, n in zip(tokens, lengths.tolist(), strict=True)])
        keep = torch.arange(75) < lengths[:, None]
        op = ops_of(m).residual_forward

        def score(codes: Tensor, packed: Tensor, *metadata: Tensor | None) -> tuple[Tensor, Tensor]:
            arguments = [queries, codes, packed, *metadata, centroids, weights, None]  # noqa: B023
            arguments = [x if x is None else x.to(device) for x in arguments]
            return op(*arguments, 0.0, nbits, False, normalize, -2.0, 0, True)  # noqa: B023

        none = [None] * 4
        forms = (
            score(codes, packed, None, lengths, *none),
            score(codes.to(width), packed, None, None, None, keep, None, None),
            score(codes[keep], packed[keep], offsets, None, *none),
        )
        for got in forms:
            assert_exact(got, pairs, stored, limits[dtype])
            assert all(torch.equal(*pair) for pair in zip(got, forms[0], strict=True))
        some = score(codes, packed, None, lengths, None, None, *listed.T)
        assert all(torch.equal(got, want[*listed.T]) for got, want in zip(some, forms[0], strict=True))
        codes[3, 5], codes[0, 74], codes[1, 1] = 9, -(2**62), 2**62  # only the first is of a token that counts
        scores, _ = score(codes, packed, None, lengths, *none)
        assert scores[:, 3].isnan().all() and torch.equal(scores[:, :3], forms[0][0][:, :3])


def stored(m: ModuleType, device: str) -> None:
    """Eight-bit floats and integers, with minima and without, and bits; queries of floats and of integers."""
    for name in ("e4m3_token", "e5m2_token", "e4m3_tensor", "affine_bf16", "symmetric_f32", "int8x8", "binary_f16"):
        sides = hq.quantise(m, name, Batch.random([9, 0, 37], [21, 1, 0, 140, 5, 33], 36, HALF))
        for layout in (hq.cross_lengths, hq.slab, hq.varlen, hq.listed):
            laid = layout(sides, "cpu")
            try:
                there = [hq.mapped(side, lambda x: x.to(device)) for side in laid.sides]
            except TypeError:  # torch's MPS backend may be without eight-bit floats
                continue
            options = {key: value.to(device) for key, value in laid.options.items()}
            got = m.quantised.score_with_argmax(*there, **options, empty_score=-2.0)
            assert_exact(got, laid.pairs, sides.truth, 3e-6)
            assert torch.equal(m.quantised.score(*there, **options, empty_score=-2.0), got[0])


def every_byte(m: ModuleType, device: str) -> None:
    """All 256 values of a byte, one a document, read one by one and four at a time: what torch says that they are."""
    codes = torch.arange(256).byte()
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8):
        for dim in (1, 4):
            documents = codes.view(256, 1, 1).expand(256, 1, dim).contiguous().view(dtype)
            try:
                documents = m.quantised.Quantised(documents.to(device))
            except TypeError:  # as above
                continue
            scores = m.quantised.score(torch.ones(1, dim).to(device), documents).flatten().cpu()
            torch.testing.assert_close(scores, dim * codes.view(dtype).float(), rtol=0, atol=0, equal_nan=True)


def blocks(m: ModuleType, device: str) -> None:
    """One scale and minimum for several neighbouring tokens, padded and packed: what single ones give."""
    generator = torch.Generator().manual_seed(4)
    values = torch.randint(256, (3, 40, 24), generator=generator).byte().to(device)
    queries = torch.randn(2, 33, 24, generator=generator).half().to(device)
    scale, minimum = (torch.rand(3, 6, generator=generator).to(device) for _ in range(2))
    each = [x.repeat_interleave(7, dim=1)[:, :40] for x in (scale, minimum)]
    want = m.quantised.score(queries, m.quantised.Quantised(values, *each))
    assert torch.equal(m.quantised.score(queries, m.quantised.Quantised(values, scale, minimum, block=7)), want)
    flat = m.quantised.Quantised(values.flatten(0, 1), *(x.flatten() for x in each))
    offsets = torch.arange(0, 121, 40, device=device)
    assert torch.equal(m.quantised.score(queries, flat, cu_seqlens_d=offsets), want)


def by_centroids(m: ModuleType, device: str) -> None:
    """Looked up, with and without centroids that were probed, and codes that name none."""
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(3, 11, 37, generator=generator)
    codes = torch.randint(11, (104,), generator=generator)
    codes[7], codes[100] = 11, -1
    offsets, known = torch.tensor([0, 70, 71, 71, 104]), codes.where((codes >= 0) & (codes < 11), 0)
    probed = torch.rand(3, 11, generator=generator) < 0.1
    segments = [known[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    for probe in (None, probed):
        arguments = [x if x is None else x.to(device) for x in (table, codes, offsets, None, probe)]
        got = ops_of(m).approx_forward(*arguments).cpu()
        for i, j in ((i, j) for i in range(3) for j in range(4)):
            empty = 0.0 if probe is None else -torch.inf
            want = table[i, segments[j]].double().amax(0).sum().item() if len(segments[j]) else empty
            if probe is not None and not probe[i, segments[j]].any():
                want = -torch.inf
            assert got[i, j].item() == want or abs(got[i, j].item() - want) < 1e-5


def soft(m: ModuleType, device: str) -> None:
    """Scores, parts and gradients under a soft maximum, with holes in masks, in every layout."""
    generator = torch.Generator().manual_seed(6)
    none = [None] * 8
    for dtype, dim, tau, normalize in (
        (torch.float16, 35, 0.2, False),
        (torch.float32, 136, 0.2, True),
        (torch.float32, 8, 0.005, False),  # shares of what is masked would not be finite
    ):
        queries, documents = (torch.randn(3, n, dim, generator=generator).to(dtype) / dim**0.5 for n in (40, 75))
        if tau < 0.01:
            queries, documents = queries.abs(), -documents.abs() - 0.1
        q_mask, d_mask = (torch.rand(3, n, generator=generator) < 0.7 for n in (40, 75))
        d_mask[1], options = False, {"tau": tau, "normalize": normalize, "empty_score": -2.0}
        for pairing in ("cross", "slab"):
            shape = (3, 3, 75, dim) if pairing == "slab" else (3, 75, dim)
            mask = d_mask.expand(shape[:-1])
            sides = [queries.clone(), documents.expand(shape).clone()]
            there = [x.to(device).requires_grad_() for x in sides]
            scores = m.soft_maxsim(*there, q_mask.to(device), mask.to(device), **options)
            exact = [x.double().requires_grad_() for x in sides]
            want = m.soft_maxsim_reference(*exact, q_mask, mask, **options)
            torch.testing.assert_close(scores.cpu().double(), want, rtol=1e-5, atol=1e-5)
            upstream = torch.randn(want.shape, generator=generator)
            got = torch.autograd.grad(scores, there, upstream.to(device))
            for mine, truth in zip(got, torch.autograd.grad(want, exact, upstream.double()), strict=True):
                torch.testing.assert_close(mine.cpu().double(), truth, rtol=2e-3, atol=2e-5)
        q, d = queries.to(device), documents.to(device)
        ops = ops_of(m)
        padded, parts = ops.soft_forward_parts(q, d, *none, tau, normalize, -2.0, 0, 40)
        torch.testing.assert_close(parts.sum(-1), padded, rtol=1e-5, atol=1e-5)
        offsets = [torch.arange(0, 3 * n + 1, n, device=device) for n in (40, 75)]
        flat = (q.flatten(0, 1), d.flatten(0, 1), *offsets, *none[:4])
        ids = torch.tensor([2, 0, 1, 2], device=device), torch.tensor([1, 0, 0, 1], device=device)
        listed, some = ops.soft_forward_parts(*flat, *ids, tau, normalize, -2.0, 0, 40)
        assert torch.equal(listed, padded[ids]) and torch.equal(some, parts[ids])
        apart = ops.soft_backward(torch.ones_like(listed), some, *flat, *ids, tau, normalize, True, True, 0)
        upstream = torch.zeros_like(padded).index_put_(ids, torch.ones_like(listed), accumulate=True)
        together = ops.soft_backward(upstream, parts, q, d, *none, tau, normalize, True, True, 0)
        for mine, other in zip(apart, together, strict=True):
            torch.testing.assert_close(mine.view(other.shape), other, rtol=2e-3, atol=2e-5)


DENSE = (ties_and_nan, strides, hostile_winners, gradients, hostile_metadata, masks, layouts)
COMPRESSED = (every_byte, residuals, stored, blocks, by_centroids)
SOFT = (soft,)
CHECKS = (*DENSE, *COMPRESSED, *SOFT)
