"""A PLAID index in memory: read from disk or made of tensors, prepared, searched.
What a search needs beside the files is computed once: each token's inverse length, and codes as narrow as they get."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .. import checks, reference
from ..problem import Problem
from ..retrieval import named_pairs
from . import documents, layouts
from .documents import Residuals

_TOKENS = 1 << 18  # decompressed at once for their lengths


@dataclass(frozen=True)
class Index:
    """Residual documents one after another, ready to be scored and searched.

    Attributes:
        codes: ``[T]`` centroid numbers. residuals: uint8 ``[T, ceil(d * nbits / 8)]``, the lowest bits first.
        offsets: ``[Nd + 1]``, document i is the tokens from entry i up to entry i + 1.
        centroids, bucket_weights, nbits: what a token is the sum of.
        inverse_norms: float32 ``[T]``, what makes a token a unit vector. centroid_norm: no centroid is longer.
    """

    codes: Tensor
    residuals: Tensor
    offsets: Tensor
    centroids: Tensor
    bucket_weights: Tensor
    nbits: int
    inverse_norms: Tensor
    centroid_norm: float

    def __len__(self) -> int:
        """How many documents there are."""
        return self.offsets.shape[0] - 1

    @property
    def device(self) -> torch.device:
        """Where the index lies."""
        return self.codes.device

    def to(self, device: torch.device | str) -> Index:
        """The index on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def score(self, Q: Tensor, *, empty_score: float = 0.0) -> Tensor:
        """:func:`maxsim.plaid.maxsim_residual_varlen` of all documents, both sides normalised: ``[Nq, Nd]``."""
        queries = self._queries(Q)
        scores, _ = documents.score(queries, self.stored(), True, True, checks.number("empty_score", empty_score))
        return scores if Q.dim() == 3 else scores.squeeze(0)

    @torch.no_grad()
    def score_ids(
        self,
        Q: Tensor,
        ids: Tensor,
        *,
        empty_score: float = 0.0,
        missing_score: float = float("-inf"),
        validate: bool = False,
    ) -> Tensor:
        """Scores ``[Nq, K]`` of each query ``[Nq, Lq, d]`` against the documents that ``ids`` names, where they lie.

        ``ids``, ``missing_score`` and ``validate`` are those of :func:`maxsim.score_ids`; scores are those of
        :meth:`score`. There is no gradient.
        """
        checks.tokens("Q", Q, (3,), "[Nq, Lq, d]")
        missing_score = checks.number("missing_score", missing_score)
        # Which pairs there are depends on the numbers of queries and documents alone.
        problem = Problem(self._queries(Q), self.codes, document_offsets=self.offsets)
        problem, missing = named_pairs(problem, ids, validate)
        if missing is None:
            return torch.full(ids.shape, missing_score, device=Q.device)
        pairs, empty_score = (problem.pair_queries, problem.pair_documents), checks.number("empty_score", empty_score)
        scores, _ = documents.score(Q, self.stored(), True, True, empty_score, pairs=pairs)
        return scores.view(ids.shape).masked_fill(missing, missing_score)

    def search(
        self, Q: Tensor, top_k: int = 10, *, n_full_scores: int = 4096, n_ivf_probe: int = 8
    ) -> tuple[Tensor, Tensor]:
        """The documents that PLAID's search finds, best first, without a synchronisation on the way.

        Candidates are the documents with a token of one of the ``n_ivf_probe`` best centroids of a query token. The
        best ``n_full_scores / 4`` of them by their centroids alone are decompressed and scored exactly, as fast-plaid
        does it.

        Args:
            Q: ``[Nq, Lq, d]`` or ``[Lq, d]``. Rows of zeros are padding. Unlike documents, queries are not normalised.
            top_k, n_full_scores, n_ivf_probe: at least 1.

        Returns:
            float32 scores and int64 document numbers ``[Nq, k]``, ``[k]`` for a 2-D ``Q``, with k at most ``top_k``,
            ``max(1, n_full_scores / 4)`` and the number of documents. Where candidates run out the score is -inf and
            the number -1.
        """
        from .search import search

        for name, value in (("top_k", top_k), ("n_full_scores", n_full_scores), ("n_ivf_probe", n_ivf_probe)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int; got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        scores, ids = search(self, self._queries(Q), top_k, n_full_scores, n_ivf_probe)
        return (scores, ids) if Q.dim() == 3 else (scores.squeeze(0), ids.squeeze(0))

    def stored(self) -> Residuals:
        """The arguments of the op."""
        return Residuals(
            self.codes,
            self.residuals,
            self.offsets,
            None,
            self.centroids,
            self.bucket_weights,
            self.nbits,
            self.inverse_norms,
            self.centroid_norm,
        )

    def _queries(self, Q: Tensor) -> Tensor:
        checks.tokens("Q", Q, (2, 3), "[Nq, Lq, d] or [Lq, d]")
        checks.sides("Q", Q, "centroids", self.centroids)
        return Q if Q.dim() == 3 else Q.unsqueeze(0)


def prepare_index(
    codes: Tensor,
    residuals: Tensor,
    cu_seqlens_d: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    nbits: int,
) -> Index:
    """An index of the arguments of :func:`maxsim.plaid.maxsim_residual_varlen`, with what its kernels compute stored.

    Scores stay those of the plain call. It decompresses every token once, and reads values back to check them.
    """
    documents.packed(centroids[:1], codes, residuals, cu_seqlens_d, centroids, bucket_weights, nbits, True)
    inverse_norms = torch.cat(
        [
            _inverse_norms(part, packed, centroids, bucket_weights, nbits)
            for part, packed in zip(codes.split(_TOKENS), residuals.split(_TOKENS))
        ]
        or [torch.empty(0, device=codes.device)]
    )
    longest = float(centroids.float().norm(dim=-1).max()) if centroids.shape[0] else 0.0
    narrow = torch.int16 if centroids.shape[0] <= 1 << 15 else torch.int32
    return Index(
        codes.to(narrow).contiguous(),
        residuals.contiguous(),
        cu_seqlens_d.contiguous(),
        centroids.contiguous(),
        bucket_weights.float().contiguous(),
        nbits,
        inverse_norms,
        max(longest, 1e-30),
    )


def _inverse_norms(codes: Tensor, residuals: Tensor, centroids: Tensor, weights: Tensor, nbits: int) -> Tensor:
    """Of the exact sums. Kernels that round sums to 16 bits do not read them: theirs are of what they multiply."""
    tokens = reference.decompress(codes, residuals, centroids.float(), weights.float(), nbits, False)
    return 1 / tokens.norm(dim=-1).clamp_min(1e-12)


def load_index(path: str | os.PathLike, device: torch.device | str = "cpu") -> Index:
    """An index that fast-plaid (1.0 to 1.7) or Stanford's ColBERTv2 wrote, on ``device``.

    Files are read as data: neither library is needed, and nothing in them is executed.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated or malformed, nbits is none of 1, 2, 4 and 8, a code is no centroid's number, or
            lengths do not add up. The message names the file or the index, and what it got.
    """
    stored = layouts.read(Path(path))
    offsets = torch.nn.functional.pad(stored.lengths.cumsum(0), (1, 0))
    centroids = stored.centroids if stored.centroids.dtype in checks.KERNEL_DTYPES else stored.centroids.float()
    weights = stored.bucket_weights.float()
    tensors = (stored.codes, stored.residuals, offsets, centroids, weights)
    return prepare_index(*(tensor.to(device) for tensor in tensors), stored.nbits)
