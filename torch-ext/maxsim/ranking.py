"""The best k of many scores, seen a part at a time: a score and its document's id become one sortable integer.
Ties need no rule of their own then, and parts from chunks, streams or ranks merge the same way."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _kernels, checks
from ._ops import add_op_namespace_prefix

_LOW = 0xFFFFFFFF  # ids live in the low half of a key
# Scores that one selection looks at. A long row is shared out, or one thread block, or one thread, would have it alone.
_GROUP, _CPU_GROUP = 1 << 10, 1 << 16
_MOST_RANKED = 2048  # that the op keeps for a query


class Ranking:
    """The best ``k`` documents of each query among those added so far.

    ``largest`` and the place of NaN, above everything, are those of ``torch.topk``; among equal scores the lowest id
    comes first, in whatever order documents are added.
    """

    def __init__(self, k: int, largest: bool = True) -> None:
        self.k, self.largest = k, largest
        self.keys: Tensor | None = None  # [Nq, at most k]

    def add(self, scores: Tensor, first: int) -> None:
        """Scores ``[Nq, n]`` of documents ``first`` to ``first + n``."""
        if scores.device.type in _kernels.RANK_DEVICES and self.k <= _MOST_RANKED and scores.shape[1]:
            self.keys = _kernels.rank(self.keys, scores, first, self.k, self.largest)
        else:
            keys = _greatest(_keys(scores, first, self.largest), self.k)
            self.keys = keys if self.keys is None else _greatest(torch.cat([self.keys, keys], dim=1), self.k)

    def result(self) -> tuple[Tensor, Tensor]:
        """float32 scores and int64 ids ``[Nq, k]``, best first."""
        return merged(self.keys.unsqueeze(0), self.k, self.largest)


def merged(keys: Tensor, k: int, largest: bool) -> tuple[Tensor, Tensor]:
    """float32 scores and int64 ids ``[Nq, k]``, best first, of the keys ``[rankings, Nq, m]`` of several rankings."""
    if keys.device.type in _kernels.RANK_DEVICES:
        return _kernels.unrank(keys, k, largest)
    keys = keys[0] if len(keys) == 1 else _greatest(keys.transpose(0, 1).flatten(1), k)
    order = (keys >> 32).to(torch.int32)
    return _flip(order if largest else ~order).view(torch.float32), _LOW - (keys & _LOW)


def clamp_k(top_k: int, documents: int) -> int:
    """``top_k``, or the number of documents where that is smaller (LIK)."""
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise TypeError(f"top_k must be an int; got {type(top_k).__name__}")
    if top_k <= 0:
        raise ValueError(f"top_k must be positive; got {top_k}")
    if documents > _LOW + 1:
        raise ValueError(f"ids of documents must be below 2**32; got {documents} documents")
    return min(top_k, documents)


def step(name: str, value: int | None, default: int) -> int:
    """How many documents are scored at once: ``value``, the argument ``name``, or ``default``."""
    if value is None:
        return max(1, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int or None; got {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name} must be positive; got {value}")
    return value


def options(largest: bool, sorted: bool) -> None:
    """Both flags of ``torch.topk``; results come sorted either way, which "unsorted" allows."""
    checks.flag("largest", largest)
    checks.flag("sorted", sorted)


def _keys(scores: Tensor, first: int, largest: bool) -> Tensor:
    """int64 ``[Nq, n]``, greater for a better score and, among equals, for a lower id."""
    # One zero and one NaN: -0.0 equals 0.0, and what makes a NaN may set its sign.
    order = _flip((scores + 0.0).masked_fill_(scores.isnan(), torch.nan).view(torch.int32))
    ids = torch.arange(_LOW - first, _LOW - first - scores.shape[1], -1, device=scores.device)
    return (order if largest else order.bitwise_not_()).long().bitwise_left_shift_(32).bitwise_or_(ids)


def _flip(bits: Tensor) -> Tensor:
    """int32 bits of floats to integers of the same order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _greatest(keys: Tensor, k: int) -> Tensor:
    """The ``k`` greatest of each row, descending; fewer where a row is shorter."""
    width = max(_CPU_GROUP if keys.device.type == "cpu" else _GROUP, 4 * k)
    while keys.shape[1] > width:
        groups = keys.shape[1] // width
        grouped = keys[:, : groups * width].unflatten(1, (groups, width))
        best = grouped.topk(k, sorted=False).values.flatten(1)
        keys = torch.cat([best, keys[:, groups * width :]], dim=1)
    return keys.topk(min(k, keys.shape[1])).values


@torch.library.register_fake(add_op_namespace_prefix("rank"))
def _(keys: Tensor | None, scores: Tensor, first: int, k: int, largest: bool) -> Tensor:
    known = 0 if keys is None else keys.shape[1]
    return scores.new_empty((scores.shape[0], min(k, known + scores.shape[1])), dtype=torch.int64)


@torch.library.register_fake(add_op_namespace_prefix("unrank"))
def _(keys: Tensor, k: int, largest: bool) -> tuple[Tensor, Tensor]:
    lists, queries, length = keys.shape
    shape = (queries, min(k, lists * length))
    return keys.new_empty(shape, dtype=torch.float32), keys.new_empty(shape)
