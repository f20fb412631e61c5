"""sentence-transformers: MaxSim in its utilities, and so in its losses, evaluators and ``model.similarity``.
Its padding, chunking and length normalisation stay its own; what is replaced is the scoring of a chunk."""

from __future__ import annotations

import importlib
from functools import wraps
from types import ModuleType
from typing import Callable

from torch import Tensor

from ..scoring import maxsim, maxsim_pairs
from .patching import Patch, Target, ours

_EMPTY = -1e9  # its _EMPTY_DOCUMENT_SCORE


def patch_sentence_transformers() -> None:
    """Score with this kernel in sentence-transformers, on every device that has one, the CPU included.

    Everything that calls ``util.maxsim`` or ``util.maxsim_pairwise`` is reached, imported before or not. The document
    slots of ``colbert_scores`` and ``colbert_kd_scores`` go in one launch, for which losses have to be built after
    patching. A document without a token scores -1e9 as before, but there is no warning about it. XTR scores stay
    theirs. Calling it twice changes nothing.

    Raises:
        ImportError: sentence-transformers is not installed.
        RuntimeError: its version is not a tested one.
    """
    _patch.apply()


def unpatch_sentence_transformers() -> None:
    """Give sentence-transformers its own functions back."""
    _patch.remove()


def _similarity() -> ModuleType:
    return importlib.import_module("sentence_transformers.util.similarity")


def _targets() -> list[Target]:
    colbert = importlib.import_module("sentence_transformers.multi_vector_encoder.scoring.colbert")
    return [
        Target(_similarity(), "_maxsim_score_documents", _documents),
        Target(_similarity(), "_maxsim_score_pairs", _pairs),
        Target(colbert, "colbert_scores", _stacked(shared=True)),
        Target(colbert, "colbert_kd_scores", _stacked(shared=False)),
    ]


_patch = Patch("sentence-transformers", ("6.2.0",), _targets)


def _documents(original: Callable) -> Callable:
    @wraps(original)
    def scores(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> Tensor:
        if not ours(a, b):
            return original(a, b, a_mask, b_mask)
        return maxsim(a, b, a_mask, b_mask, empty_score=_EMPTY)

    return scores


def _pairs(original: Callable) -> Callable:
    @wraps(original)
    def scores(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> Tensor:
        if not ours(a, b):
            return original(a, b, a_mask, b_mask)
        return maxsim_pairs(a, b, a_mask, b_mask, empty_score=_EMPTY)

    return scores


def _stacked(shared: bool) -> Callable[[Callable], Callable]:
    """Scores of stacked documents ``[Q, N, Ld, d]``: of all for every query where they are ``shared``, else of its own.

    The originals go through the N slots one by one, and through chunks of each; without the similarities in memory
    there is nothing to divide.
    """

    def substitute(original: Callable) -> Callable:
        @wraps(original)
        def scores(
            queries_embeddings,
            documents_embeddings,
            queries_mask=None,
            documents_mask=None,
            chunk_elements: int | None = None,
            length_normalize: bool = False,
        ) -> Tensor:
            Q, D, masks = queries_embeddings, documents_embeddings, [queries_mask, documents_mask]
            if not ours(Q, D) or any(mask is not None and not isinstance(mask, Tensor) for mask in masks):
                return original(Q, D, *masks, chunk_elements=chunk_elements, length_normalize=length_normalize)
            if shared:
                D, masks[1] = (x if x is None else x.flatten(0, 1) for x in (D, documents_mask))
            scored = maxsim(Q, D, *masks, empty_score=_EMPTY)
            if not length_normalize:
                return scored
            counts = _similarity()._query_token_counts(Q, queries_mask)
            return scored / counts.to(device=scored.device, dtype=scored.dtype).unsqueeze(1)

        return scores

    return substitute
