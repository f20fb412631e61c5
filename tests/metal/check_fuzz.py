"""Metadata that nobody checked, through every kernel of the Metal backend: a pair that points outside its tensors
scores NaN, every other pair is exact. Collected by tests/test_metal.py in a process that loads an emulation, which
stops at the first access outside a tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator

import checks
import pytest
import torch
from helpers_metadata import Problem, problems, rarely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

EXAMPLES = int(os.environ.get("MAXSIM_METAL_EXAMPLES", "80"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def segments(tokens: Tensor, offsets: Tensor | None, lengths: Tensor | None) -> list[slice | tuple | None]:
    """Where each segment's rows are, None where its metadata points outside."""
    if offsets is not None:
        bounds = offsets.tolist()
        rows = [slice(a, b) if 0 <= a <= b <= len(tokens) else None for a, b in zip(bounds, bounds[1:], strict=False)]
        return [None if row is None else (row,) for row in rows]
    leading = list(torch.cartesian_prod(*(torch.arange(n) for n in tokens.shape[:-2])).view(-1, tokens.dim() - 2))
    extent, found = tokens.shape[-2], []
    for place in (tuple(p.tolist()) for p in leading):
        length = extent if lengths is None else int(lengths[place])
        found.append((*place, slice(0, length)) if 0 <= length <= extent else None)
    return found


def shared_rows(p: Problem) -> tuple[Tensor, Tensor]:
    """Of packed tokens, those in several segments, which offsets that fall can make. Their gradient is that of one."""
    shared = []
    for tokens, offsets in ((p.queries, p.query_offsets), (p.documents, p.document_offsets)):
        owners = torch.zeros(tokens.shape[:-1], dtype=torch.int32)
        if offsets is not None:
            for segment in segments(tokens, offsets, None):
                if segment is not None:
                    owners[segment] += 1
        shared.append(owners > 1)
    return shared[0], shared[1]


def gradients_of(p: Problem, backward: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...] | None:
    """None where the emulation saw two segments write a row that they share, and stopped at nothing else."""
    try:
        return backward()
    except RuntimeError as error:
        shared = any(rows.any() for rows in shared_rows(p))
        if not shared or "which another thread of this grid wrote" not in str(error):
            raise
        return None


def assert_gradients(p: Problem, got: tuple[Tensor, ...] | None, exact: list[Tensor], **tolerance: float) -> None:
    """Of the rows that are not in several segments, if there are gradients."""
    for got_one, exact_one, several in zip(got or (), exact, shared_rows(p), strict=got is not None):
        want = exact_one.to(got_one.dtype)
        torch.testing.assert_close(got_one[~several], want[~several], **({"rtol": 0, "atol": 0} | tolerance))


def pairs_of(p: Problem, queries: list, documents: list) -> Iterator[tuple]:
    """Each score's query and document, None where an id names none."""
    if p.pair_queries is not None:
        for i, j in zip(p.pair_queries.tolist(), p.pair_documents.tolist(), strict=True):
            yield tuple(side[k] if 0 <= k < len(side) else None for side, k in ((queries, i), (documents, j)))
    elif p.documents.dim() == 4:
        for n, document in enumerate(documents):
            yield queries[n // p.documents.shape[1]], document
    else:
        for query in queries:
            for document in documents:
                yield query, document


def expected(p: Problem, width: int, empty_score: float, weights: list[float]) -> tuple[list, list, list[Tensor]]:
    """Scores and winners by plain loops, and the gradients of their weighted sum, in float64."""
    q, d = p.queries.double(), p.documents.double()
    gradients = [torch.zeros_like(q), torch.zeros_like(d)]
    both = (
        segments(p.queries, p.query_offsets, p.query_lengths),
        segments(p.documents, p.document_offsets, p.document_lengths),
    )
    scores, argmax = [], []
    for (query, document), weight in zip(pairs_of(p, *both), weights, strict=True):
        slots = [-1] * width
        argmax.append(slots)
        if query is None or document is None or len(q[query]) > width:
            scores.append(math.nan)
            continue
        similarities = q[query] @ d[document].T
        kept = torch.ones(similarities.shape[1], dtype=bool) if p.document_mask is None else p.document_mask[document]
        if not kept.any():
            scores.append(empty_score)
            continue
        best, winners = similarities.masked_fill(~kept, -math.inf).max(1)
        counts = torch.ones(len(best), dtype=bool) if p.query_mask is None else p.query_mask[query]
        scores.append(best[counts].sum().item())
        for i in counts.nonzero()[:, 0].tolist():
            first = int((similarities[i] == best[i]).logical_and(kept).nonzero()[0])
            slots[i] = first
            gradients[0][query][i] += weight * d[document][first]
            gradients[1][document][first] += weight * q[query][i]
    return scores, argmax, gradients


@fuzz
@given(data=st.data())
def test_any_metadata(maxsim, data):
    """Scores, argmax and gradients of small integers, which are exact in every sum."""
    ops, draw = checks.ops_of(maxsim), data.draw
    p, empty_score = problems(draw), draw(st.sampled_from([0.0, -5.0]))
    width = p.queries.shape[1] if p.query_offsets is None else draw(st.integers(0, 25))
    try:
        scores, argmax = ops.forward_argmax(*p, False, empty_score, 0, False, width, 0)
    except RuntimeError as error:
        assert not str(error).startswith("emulated GPU") and str(error).strip()
        with pytest.raises(RuntimeError):
            ops.forward(*p, False, empty_score, 0, False)
        return
    weights = torch.randint(-2, 3, scores.shape, generator=torch.Generator().manual_seed(0)).float()
    want, winners, gradients = expected(p, width, empty_score, weights.flatten().tolist())
    want = torch.tensor(want).view(scores.shape)
    torch.testing.assert_close(scores, want, rtol=0, atol=0, equal_nan=True)
    assert argmax.view(-1, width).tolist() == winners if width else argmax.numel() == 0
    wide_enough = want.isnan() <= ops.forward(*p, False, empty_score, 0, False).isnan()
    assert wide_enough.all() or p.query_offsets is not None  # only an argmax can be too narrow
    assert_gradients(p, gradients_of(p, lambda: ops.backward(weights, argmax, *p, False, True, True, 0, 0)), gradients)


@fuzz
@given(data=st.data())
def test_any_metadata_of_other_kernels(maxsim, data):
    """Stored documents and the soft maximum have NaN where the others have it, and stay inside their tensors."""
    ops, draw = checks.ops_of(maxsim), data.draw
    p = problems(draw)
    try:
        scores = ops.forward(*p, False, -5.0, 0, False)
    except RuntimeError:
        return
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    values = torch.randint(256, p.documents.shape, generator=generator).byte()
    dtype = draw(st.sampled_from([torch.uint8, torch.int8, torch.float8_e5m2]))
    if dtype is torch.float8_e5m2:
        values &= 0x3F  # finite
    shape, block = list(p.documents.shape[:-1]), draw(st.sampled_from([1, 3, 50]))
    shape[-1] = -(-shape[-1] // block)
    scale = torch.rand(shape, generator=generator) + 0.5
    stored = ops.quantised_forward(p.queries, values.view(dtype), *p[2:], None, scale, None, 1, block, 8, -5.0, 0, -1)[
        0
    ]
    assert torch.equal(stored.isnan(), scores.isnan())
    width = p.queries.shape[1] if p.query_offsets is None else 25
    soft, parts = ops.soft_forward_parts(*p, 0.5, False, -5.0, 0, width)
    assert torch.equal(soft.isnan(), scores.isnan())
    if rarely(draw):
        parts = torch.full_like(parts, draw(st.sampled_from([math.nan, math.inf, 3.0])))
    ones = torch.ones_like(soft)
    grads = gradients_of(p, lambda: ops.soft_backward(ones, parts, *p, 0.5, False, True, True, 0))
    assert grads is None or [grad.shape for grad in grads] == [p.queries.shape, p.documents.shape]


@pytest.mark.parametrize("of_queries", [True, False])
@pytest.mark.parametrize("offsets", [[0, 1, 0, 1], [0, 40, 10, 60], [5, 37, 5, 37]])
def test_segments_that_share_rows(maxsim, offsets, of_queries):
    """What offsets that fall make: everybody else's gradient is exact."""
    ops, offsets = checks.ops_of(maxsim), torch.tensor(offsets, dtype=torch.int32)
    packed, padded = torch.randint(-4, 5, (int(offsets.max()), 3)).float(), torch.randint(-4, 5, (2, 4, 3)).float()
    p = (
        Problem(queries=packed, documents=padded, query_offsets=offsets)
        if of_queries
        else Problem(queries=padded, documents=packed, document_offsets=offsets)
    )
    width = len(packed) if of_queries else padded.shape[1]
    scores, argmax = ops.forward_argmax(*p, False, 0.0, 0, False, width, 0)
    want, winners, gradients = expected(p, width, 0.0, [1.0] * scores.numel())
    torch.testing.assert_close(scores, torch.tensor(want).view(scores.shape), rtol=0, atol=0, equal_nan=True)
    assert argmax.view(-1, width).tolist() == winners
    ones = torch.ones_like(scores)
    assert_gradients(p, gradients_of(p, lambda: ops.backward(ones, argmax, *p, False, True, True, 0, 0)), gradients)

    tokens = [x.double().requires_grad_() for x in (p.queries, p.documents)]
    both = (segments(tokens[0], p.query_offsets, None), segments(tokens[1], p.document_offsets, None))
    known = [pair for pair in pairs_of(p, *both) if None not in pair]
    sums = [torch.logsumexp(tokens[0][q] @ tokens[1][d].T / 0.5, -1).sum() * 0.5 for q, d in known]
    _, parts = ops.soft_forward_parts(*p, 0.5, False, 0.0, 0, width)
    grads = gradients_of(p, lambda: ops.soft_backward(ones, parts, *p, 0.5, False, True, True, 0))
    assert_gradients(p, grads, list(torch.autograd.grad(sum(sums), tokens)), rtol=1e-4, atol=1e-4)
