"""Problems whose metadata may be anything, drawn by hypothesis, and which of them an op has to accept.
Embeddings are small integers, exact in every dtype and sum, so that ties are ties."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from helpers import load_kernel
from hypothesis import strategies as st
from torch import Tensor

Problem = sys.modules[f"{load_kernel().__name__}.problem"].Problem

Draw = Callable[[st.SearchStrategy], object]
EXTREMES = {torch.int32: [2**31 - 1, -(2**31), 2**30], torch.int64: [2**63 - 1, -(2**63), 2**62, 2**32, -(2**32)]}


def rarely(draw: Draw) -> bool:
    return draw(st.integers(0, 15)) == 7


def embeddings(draw: Draw, shape: tuple[int, ...]) -> Tensor:
    """In memory of just this size, at times behind odd strides."""
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    tensor = torch.randint(-4, 5, shape, generator=_generator(draw)).to(dtype)
    stride = draw(st.sampled_from(["contiguous", "contiguous", "transposed", "expanded"]))
    if stride == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if stride == "expanded" and shape[0] > 0:
        return tensor[:1].expand(shape)
    return tensor


def indices(draw: Draw, count: int, low: int, high: int) -> Tensor:
    """``count`` integers, mostly within bounds, of either width, at times strided."""
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    value = st.integers(low, max(low, high))
    if rarely(draw):
        value = st.one_of(value, st.integers(-3, 25), st.sampled_from(EXTREMES[dtype]))
    tensor = torch.tensor(draw(st.lists(value, min_size=count, max_size=count)), dtype=dtype)
    return torch.stack([tensor, tensor], dim=1)[:, 0] if draw(st.booleans()) else tensor


def offsets(draw: Draw, segments: int, total: int) -> Tensor:
    """Segment boundaries, mostly as they should be."""
    tensor = indices(draw, segments + 1, 0, total)
    if not rarely(draw):
        tensor = tensor.sort().values
        tensor[0] = 0
    return tensor


def side(draw: Draw, rank: int, dim: int, segments: int) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Tokens, offsets, lengths and mask of one side."""
    bounds = lengths = mask = None
    extent = draw(st.integers(0, 20))
    leading = {2: (), 3: (segments,), 4: (segments, draw(st.integers(0, 3)))}[rank]
    tokens = embeddings(draw, (*leading, extent, dim))
    if rank == 2:
        bounds = offsets(draw, segments, extent)
    elif draw(st.booleans()):
        lengths = indices(draw, math.prod(leading), 0, extent).reshape(leading)
    if draw(st.booleans()):
        mask = torch.rand((*leading, extent + rarely(draw)), generator=_generator(draw)) < 0.6
    return tokens, bounds, lengths, mask


def problems(draw: Draw) -> Problem:
    dim, query_count = draw(st.sampled_from([1, 2, 3, 8, 17, 33])), draw(st.integers(0, 4))
    query_rank, document_rank = draw(st.sampled_from([2, 3])), draw(st.sampled_from([2, 3, 4]))
    own_slabs = document_rank == 4
    document_count = query_count if own_slabs and not rarely(draw) else draw(st.integers(0, 4))
    queries = side(draw, query_rank, dim, query_count)
    documents = side(draw, document_rank, dim + rarely(draw), document_count)
    pairs = (None, None)
    if draw(st.booleans()) if not own_slabs else rarely(draw):
        count = draw(st.integers(0, 6)) if query_count and document_count else 0
        pairs = (
            indices(draw, count, 0, query_count - 1),
            indices(draw, count + rarely(draw), 0, document_count - 1),
        )
    sides = (tensor for both in zip(queries, documents, strict=True) for tensor in both)
    return Problem(*sides, *pairs)


def is_sound(p: Problem) -> bool:
    """Whether an op must accept the problem."""
    if p.queries.shape[-1] != p.documents.shape[-1]:
        return False
    if not _side_is_sound(p.queries, p.query_offsets, p.query_lengths, p.query_mask):
        return False
    if not _side_is_sound(p.documents, p.document_offsets, p.document_lengths, p.document_mask):
        return False
    queries, documents = _count(p.queries, p.query_offsets), _count(p.documents, p.document_offsets)
    if p.pair_queries is not None:
        ids = ((p.pair_queries.tolist(), queries), (p.pair_documents.tolist(), documents))
        in_range = all(0 <= i < count for values, count in ids for i in values)
        return p.documents.dim() < 4 and len(p.pair_queries) == len(p.pair_documents) and in_range
    return p.documents.dim() < 4 or queries == documents


def longest_query(p: Problem) -> int:
    """Tokens of the longest query, by offsets or lengths."""
    if p.query_offsets is not None:
        return max(p.query_offsets.diff().tolist(), default=0)
    return p.queries.shape[1] if p.query_lengths is None else max(p.query_lengths.tolist(), default=0)


def argmax_width(p: Problem) -> int:
    """The width that an op must accept."""
    return p.queries.shape[1] if p.query_offsets is None else longest_query(p)


def _generator(draw: Draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 1000)))


def _side_is_sound(tokens: Tensor, bounds: Tensor | None, lengths: Tensor | None, mask: Tensor | None) -> bool:
    if mask is not None and mask.shape != tokens.shape[:-1]:
        return False
    if bounds is not None:
        values = bounds.tolist()
        return 0 <= values[0] and values == sorted(values) and values[-1] <= tokens.shape[0]
    return lengths is None or all(0 <= n <= tokens.shape[-2] for n in lengths.flatten().tolist())


def _count(tokens: Tensor, bounds: Tensor | None) -> int:
    return tokens.shape[0] if bounds is None else len(bounds) - 1
