"""PyLate: the scores behind its losses, its reranker, its evaluators and ``model.similarity``.
``backend="auto"``, the default, becomes this kernel; any other backend stays what the caller asked for."""

from __future__ import annotations

import importlib
from functools import wraps
from typing import Callable

import torch
from torch import Tensor

from ..scoring import maxsim, maxsim_pairs, score_pairs_packed
from .patching import Patch, Target, ours


def patch_pylate() -> None:
    """Score with this kernel in PyLate, on every device that has one, the CPU included.

    ``colbert_scores``, ``colbert_kd_scores``, ``colbert_scores_pairwise`` and ``ColBERTScores`` are replaced wherever
    PyLate imported them; names that your code imported from it before keep the original, so patch first. XTR scores
    stay PyLate's. Scores are float32, and a masked token is left out of the max (PyLate multiplies its similarity by
    0). Calling it twice changes nothing.

    Raises:
        ImportError: PyLate is not installed.
        RuntimeError: its version is not a tested one.
    """
    _patch.apply()


def unpatch_pylate() -> None:
    """Give PyLate its own functions back."""
    _patch.remove()


def _targets() -> list[Target]:
    colbert = importlib.import_module("pylate.scores.colbert")
    return [
        Target(colbert, "colbert_scores", _scores),
        Target(colbert, "colbert_kd_scores", _scores),
        Target(colbert, "colbert_scores_pairwise", _pairwise),
        Target(colbert.ColBERTScores, "__call__", _slots),
    ]


_patch = Patch("pylate", ("1.6.0",), _targets)


def _automatic(backend: str | None) -> bool:
    return importlib.import_module("pylate.scores.colbert")._resolve_backend(backend) == "auto"


def _tensor(value: object) -> Tensor:
    return importlib.import_module("pylate.utils.tensor").convert_to_tensor(value)


def _scores(original: Callable) -> Callable:
    """In-batch and distillation scores: the rank of the documents says which."""

    @wraps(original)
    def scores(
        queries_embeddings, documents_embeddings, queries_mask=None, documents_mask=None, backend: str | None = None
    ) -> Tensor:
        Q, D = _tensor(queries_embeddings), _tensor(documents_embeddings)
        if not _automatic(backend) or not ours(Q, D):
            return original(Q, D, queries_mask, documents_mask, backend)
        masks = (None if mask is None else _tensor(mask) for mask in (queries_mask, documents_mask))
        return maxsim(Q, D, *masks)

    return scores


def _pairwise(original: Callable) -> Callable:
    """Row by row; evaluators pass lists of documents of different lengths."""

    @wraps(original)
    def scores(queries_embeddings, documents_embeddings, backend: str | None = None) -> Tensor:
        sides = (queries_embeddings, documents_embeddings)
        count = min(map(len, sides))  # as zip does
        if not count or not _automatic(backend):
            return original(*sides, backend)
        if ours(*sides):
            return maxsim_pairs(*(side[:count] for side in sides))
        segments = [[_tensor(segment) for segment in side[:count]] for side in sides]
        if not ours(*segments[0], *segments[1]):
            return original(*sides, backend)
        return _score_lists(*segments)

    return scores


def _score_lists(queries: list[Tensor], documents: list[Tensor]) -> Tensor:
    device = queries[0].device
    packed = []
    for side in (queries, documents):
        lengths = torch.tensor([0, *(len(segment) for segment in side)])
        packed += [torch.cat(side), lengths.cumsum(0).to(device)]
    ids = torch.arange(len(queries), device=device)
    return score_pairs_packed(*packed, ids, ids, max_q_len=max(map(len, queries)))


def _slots(original: Callable) -> Callable:
    """All N documents of every query in one launch; the original launches once for each of N slots."""

    @wraps(original)
    def scores(
        self,
        queries_embeddings,
        documents_embeddings,
        queries_mask=None,
        documents_mask=None,
        backend: str | None = None,
    ) -> Tensor:
        Q, D = _tensor(queries_embeddings), _tensor(documents_embeddings)
        if not _automatic(backend) or not ours(Q, D):
            return original(self, Q, D, queries_mask, documents_mask, backend)
        masks = [None if mask is None else _tensor(mask) for mask in (queries_mask, documents_mask)]
        return maxsim(Q, D.flatten(0, 1), masks[0], None if masks[1] is None else masks[1].flatten(0, 1))

    return scores
