"""colpali-engine: the scores behind its five late-interaction losses and every processor's ``score``.
``COLPALI_SCORES_BACKEND=auto``, the default, becomes this kernel; any other value stays what it asks for."""

from __future__ import annotations

import importlib
from functools import wraps
from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..scoring import maxsim, maxsim_pairs, maxsim_varlen
from ..soft import soft_maxsim
from .lists import pack, zero_ended
from .patching import Patch, Target, ours, serves


def patch_colpali_engine() -> None:
    """Score with this kernel in colpali-engine, on every device that has one, the CPU included.

    Reaches ``maxsim_inbatch`` and ``maxsim_kd`` wherever colpali-engine imported them, and every processor's
    ``score_multi_vector``; the positives of the negative losses, which it multiplies out itself, go to the kernel too.
    Losses with ``use_smooth_max`` get :func:`maxsim.soft_maxsim`. Scores are float32. Calling it twice changes nothing.

    Raises:
        ImportError: colpali-engine is not installed.
        RuntimeError: its version is not a tested one.
    """
    _patch.apply()


def unpatch_colpali_engine() -> None:
    """Give colpali-engine its own functions back."""
    _patch.remove()


def _targets() -> list[Target]:
    dispatch = importlib.import_module("colpali_engine.utils.maxsim")
    losses = importlib.import_module("colpali_engine.loss.late_interaction_losses")
    processing = importlib.import_module("colpali_engine.utils.processing_utils")
    return [
        Target(dispatch, "maxsim_inbatch", _scores),
        Target(dispatch, "maxsim_kd", _scores),
        Target(processing.BaseVisualRetrieverProcessor, "score_multi_vector", _multi_vector),
        Target(losses.ColbertModule, "_inbatch_scores", _inbatch),
        Target(losses.ColbertNegativeCELoss, "forward", _negatives),
        Target(losses.ColbertPairwiseNegativeCELoss, "forward", _negatives),
    ]


_patch = Patch("colpali-engine", ("0.3.18",), _targets)


def _automatic() -> bool:
    return importlib.import_module("colpali_engine.utils.maxsim")._resolve_backend() == "auto"


def _scores(original: Callable) -> Callable:
    """In-batch scores and those of each query's own documents: the rank of the documents says which."""

    @wraps(original)
    def scores(query: Tensor, doc: Tensor) -> Tensor:
        return maxsim(query, doc) if _automatic() and ours(query, doc) else original(query, doc)

    return scores


def _multi_vector(original: staticmethod) -> staticmethod:
    """Lists of any lengths, ``batch_size`` of them at a time on the device as in the original, which pads them."""
    plain = original.__func__

    @wraps(plain)
    def score_multi_vector(qs, ps, batch_size: int = 128, device: str | torch.device | None = None) -> Tensor:
        device = device or importlib.import_module("colpali_engine.utils.processing_utils").get_torch_device("auto")
        if not (len(qs) and len(ps) and _automatic() and ours(qs[0]) and ours(ps[0]) and serves(device)):
            return plain(qs, ps, batch_size, device)
        queries = [
            pack(part, [query.shape[0] for query in part], device)
            for part in (qs[first : first + batch_size] for first in range(0, len(qs), batch_size))
        ]
        columns = []
        for first in range(0, len(ps), batch_size):
            D = pack(*zero_ended(ps[first : first + batch_size]), device)
            scores = [maxsim_varlen(Q.tokens, D.tokens, Q.offsets, D.offsets, Q.longest) for Q in queries]
            columns.append(torch.cat(scores).cpu())
        return torch.cat(columns, dim=1)

    return staticmethod(score_multi_vector)


def _inbatch(original: Callable) -> Callable:
    """With a smooth maximum; the other kind reaches ``maxsim_inbatch`` by itself."""

    @wraps(original)
    def scores(self, query_embeddings: Tensor, doc_embeddings: Tensor) -> Tensor:
        if not (self.use_smooth_max and _automatic() and ours(query_embeddings, doc_embeddings)):
            return original(self, query_embeddings, doc_embeddings)
        smooth = soft_maxsim(query_embeddings, doc_embeddings, tau=self.tau)
        if not self.normalize_scores:
            return smooth
        return self._apply_normalization(smooth, _lengths(query_embeddings))

    return scores


def _negatives(original: Callable) -> Callable:
    """The two losses with explicit negatives, which differ in the in-batch loss that they contain."""

    @wraps(original)
    def forward(
        self, query_embeddings: Tensor, doc_embeddings: Tensor, neg_doc_embeddings: Tensor, offset: int = 0
    ) -> Tensor:
        if not (_automatic() and ours(query_embeddings, doc_embeddings, neg_doc_embeddings)):
            return original(self, query_embeddings, doc_embeddings, neg_doc_embeddings, offset)
        own = doc_embeddings[offset : offset + query_embeddings.shape[0]]
        if self.use_smooth_max:
            positive = soft_maxsim(query_embeddings, own.unsqueeze(1), tau=self.tau).squeeze(1)
            negative = soft_maxsim(query_embeddings, neg_doc_embeddings, tau=self.tau)
        else:
            positive, negative = maxsim_pairs(query_embeddings, own), maxsim(query_embeddings, neg_doc_embeddings)
        if self.normalize_scores:
            lengths = _lengths(query_embeddings)
            positive, negative = (self._apply_normalization(scores, lengths) for scores in (positive, negative))
        loss = functional.softplus((negative - positive.unsqueeze(1)) / self.temperature).mean()
        if self.in_batch_term_weight > 0:
            inner = self.inner_loss if hasattr(self, "inner_loss") else self.inner_pairwise
            in_batch = inner(query_embeddings, doc_embeddings, offset)
            loss = loss * (1 - self.in_batch_term_weight) + in_batch * self.in_batch_term_weight
        return loss

    return forward


def _lengths(query_embeddings: Tensor) -> Tensor:
    """Query tokens that are not padding, as colpali-engine counts them."""
    return (query_embeddings[:, :, 0] != 0).sum(dim=1)
