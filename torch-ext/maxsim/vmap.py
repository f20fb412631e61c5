"""How the ops run under torch.vmap: a batch of problems becomes one larger problem where the layouts allow it.
Otherwise the problems run one after another."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from .problem import Problem

_QUERY_SIDE = ("queries", "query_lengths", "query_mask")
_DOCUMENT_SIDE = ("documents", "document_lengths", "document_mask")


def forward_argmax(op: Callable, size: int, in_dims: tuple, arguments: tuple) -> tuple:
    """``op`` over a batch: its outputs, and the axis at which each carries the batch."""
    count = len(Problem._fields)
    problem, in_dims_problem = Problem(*arguments[:count]), Problem(*in_dims[:count])
    folded = _fold(size, in_dims_problem, problem)
    if folded is None:
        return each(op, size, in_dims, arguments)
    problem, axis, segments = folded
    scores, argmax = op(*problem, *arguments[count:])
    return (scores.unflatten(axis, (size, segments)), argmax.unflatten(axis, (size, segments))), (axis, axis)


def each(op: Callable, size: int, in_dims: tuple, arguments: tuple) -> tuple:
    """``op`` on one element of the batch after another."""
    outputs = [
        op(*(value if dim is None else value.select(dim, i) for value, dim in zip(arguments, in_dims)))
        for i in range(size)
    ]
    return tuple(torch.stack(output) for output in zip(*outputs)), (0, 0)


def _fold(size: int, in_dims: Problem, problem: Problem) -> tuple[Problem, int, int] | None:
    """One padded problem for the whole batch, the axis of its scores that has the batch, and how much of it is not."""
    if (problem.query_offsets, problem.document_offsets, problem.pair_queries) != (None, None, None):
        return None
    query_batch = any(getattr(in_dims, name) is not None for name in _QUERY_SIDE)
    document_batch = any(getattr(in_dims, name) is not None for name in _DOCUMENT_SIDE)
    query_count = _count(problem.queries, in_dims.queries)

    def merged(names: tuple[str, ...], segments: bool = True) -> dict[str, Tensor | None]:
        sides = {name: _batch_first(size, getattr(problem, name), getattr(in_dims, name)) for name in names}
        return {name: x.flatten(0, 1) if segments and x is not None else x for name, x in sides.items()}

    if problem.documents.dim() - (in_dims.documents is not None) == 4:
        return problem._replace(**merged(_QUERY_SIDE), **merged(_DOCUMENT_SIDE)), 0, query_count
    if not document_batch:
        return problem._replace(**merged(_QUERY_SIDE)), 0, query_count
    if not query_batch:
        return problem._replace(**merged(_DOCUMENT_SIDE)), 1, _count(problem.documents, in_dims.documents)
    if query_count == 1:  # each query of the batch owns its documents
        return problem._replace(**merged(_QUERY_SIDE), **merged(_DOCUMENT_SIDE, segments=False)), 0, 1
    return None


def _batch_first(size: int, tensor: Tensor | None, dim: int | None) -> Tensor | None:
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _count(tokens: Tensor, dim: int | None) -> int:
    """Segments of one element of the batch."""
    return tokens.shape[1 if dim == 0 else 0]
