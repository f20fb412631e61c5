"""PyLate: the scores behind its losses, its reranker, its evaluators and ``model.similarity``.
``backend="auto"``, the default, becomes this kernel; any other backend stays what the caller asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import wraps
from itertools import chain
from typing import Callable

import torch
from torch import Tensor

from ..scoring import maxsim, maxsim_pairs, score_pairs_packed
from .lists import pack, sent, zero_ended
from .patching import Patch, Target, ours, serves

_FEATURES = 1 << 26  # of documents that are laid end to end for one launch


def patch_pylate() -> None:
    """Score with this kernel in PyLate, on every device that has one, the CPU included.

    ``colbert_scores``, ``colbert_kd_scores``, ``colbert_scores_pairwise``, ``ColBERTScores`` and ``rank.rerank`` are
    replaced wherever PyLate imported them; names that your code imported from it before keep the original, so patch
    first. XTR scores stay PyLate's. Scores are float32, and a masked token is left out of the max (PyLate multiplies
    its similarity by 0). Calling it twice changes nothing.

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
        Target(importlib.import_module("pylate.rank.rank"), "rerank", _reranked),
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
    Q, D = (pack(side, [segment.shape[0] for segment in side], device) for side in (queries, documents))
    ids = torch.arange(len(queries), device=device)
    return score_pairs_packed(Q.tokens, Q.offsets, D.tokens, D.offsets, ids, ids, max_q_len=Q.longest)


def _reranked(original: Callable) -> Callable:
    """Many queries, each with documents of its own, in one launch; the original pads, scores and waits for each."""

    @wraps(original)
    def rerank(documents_ids, queries_embeddings, documents_embeddings, device: str | None = None) -> list:
        library = importlib.import_module("pylate.rank.rank")
        sides = [library.reshape_embeddings(side) for side in (queries_embeddings, documents_embeddings)]
        count = min(map(len, (documents_ids, *sides)))  # as zip does
        queries = [_tensor(query) for query in sides[0][:count]]
        documents = [[_tensor(document) for document in own] for own in sides[1][:count]]
        if not (
            count
            and all(documents)
            and _automatic(None)
            and ours(*queries)
            and ours(*chain.from_iterable(documents))
            and serves(device or queries[0].device)
        ):
            return original(documents_ids, queries_embeddings, documents_embeddings, device)
        results = []
        for ids, found in zip(documents_ids, _score_own(queries, documents, device or queries[0].device)):
            scores, order = found.sort(descending=True, stable=True)
            ranked = zip(order.tolist(), scores.tolist())
            results.append([library.RerankResult(id=ids[place], score=score) for place, score in ranked])
        return results

    return rerank


@torch.no_grad()
def _score_own(queries: list[Tensor], documents: list[list[Tensor]], device: str | torch.device) -> Iterator[Tensor]:
    """On the CPU, each query's scores of its own documents, padded with zeros as PyLate does."""
    first = 0
    while first < len(queries):
        last, pieces, lengths, owners = first, [], [], []
        while last < len(queries) and sum(lengths) * queries[first].shape[-1] <= _FEATURES:
            more, counts = zero_ended(documents[last])
            pieces += more
            lengths += counts
            owners += [last - first] * len(counts)
            last += 1
        part = queries[first:last]
        Q, D = pack(part, [query.shape[0] for query in part], device), pack(pieces, lengths, device)
        ids = sent(torch.tensor([owners, range(len(owners))]), device)
        scores = score_pairs_packed(Q.tokens, Q.offsets, D.tokens, D.offsets, *ids, max_q_len=Q.longest)
        yield from scores.cpu().split([len(own) for own in documents[first:last]])
        first = last


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
