"""Compressed documents as every function here takes them, and the one way from them to an op or to the reference.
Arguments are checked on the way in; the op that they reach is the same for every backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks, paths, reference
from .._ops import add_op_namespace_prefix, ops
from ..problem import Problem
from . import gradient

residual_forward = ops.residual_forward.default
approx_forward = ops.approx_forward.default
search_forward = ops.search_forward.default

NBITS = (1, 2, 4, 8)
CODE_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64)


def devices_of(op: str) -> frozenset[str]:
    """The device types whose tensors ``op`` takes; others go to the torch reference."""
    return frozenset(
        device
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA"), ("mps", "MPS"))
        if torch._C._dispatch_has_kernel_for_dispatch_key(add_op_namespace_prefix(op), key)
    )


_RESIDUAL_DEVICES = devices_of("residual_forward")


class Residuals(NamedTuple):
    """Compressed documents in the order of the op's arguments.

    ``codes`` is ``[Nd, L]`` with ``lengths``, or ``[T]`` with ``offsets``; ``residuals`` has one more axis, of
    ``ceil(d * nbits / 8)`` bytes. ``inverse_norms`` are what an index stores of its tokens' lengths.
    """

    codes: Tensor
    residuals: Tensor
    offsets: Tensor | None
    lengths: Tensor | None
    centroids: Tensor
    bucket_weights: Tensor
    nbits: int
    inverse_norms: Tensor | None = None
    centroid_norm: float = 0.0

    @property
    def count(self) -> int:
        """How many documents there are."""
        return self.codes.shape[0] if self.offsets is None else self.offsets.shape[0] - 1


def score(
    queries: Tensor,
    documents: Residuals,
    normalize_queries: bool,
    normalize_documents: bool,
    empty_score: float,
    with_argmax: bool = False,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scores ``[Nq, Nd]`` of ``queries [Nq, Lq, d]``, or of the ``pairs`` alone, and the argmax when asked for."""
    device = "cuda" if queries.is_cuda else queries.device.type
    if device != "meta" and device not in _RESIDUAL_DEVICES:
        problem = decompressed(queries, documents, normalize_queries, normalize_documents, pairs)
        scores, argmax = reference.score(problem, False, empty_score)
        return scores, argmax if with_argmax else None
    options = (normalize_queries, normalize_documents, empty_score, paths.forced)
    if torch.is_grad_enabled() and queries.requires_grad:
        return gradient.Score.apply(queries, documents, pairs, *options)
    scores, argmax = forward(queries, documents, pairs, *options, with_argmax)
    return scores, argmax if with_argmax else None


def forward(
    queries: Tensor,
    documents: Residuals,
    pairs: tuple[Tensor, Tensor] | None,
    normalize_queries: bool,
    normalize_documents: bool,
    empty_score: float,
    path: int,
    with_argmax: bool,
) -> tuple[Tensor, Tensor]:
    """The op, without a gradient."""
    pair_queries, pair_documents = pairs or (None, None)
    return residual_forward(
        queries,
        documents.codes,
        documents.residuals,
        documents.offsets,
        documents.lengths,
        None,
        None,
        pair_queries,
        pair_documents,
        documents.centroids,
        documents.bucket_weights,
        documents.inverse_norms,
        documents.centroid_norm,
        documents.nbits,
        normalize_queries,
        normalize_documents,
        empty_score,
        path,
        with_argmax,
    )


def decompressed(
    queries: Tensor,
    documents: Residuals,
    normalize_queries: bool,
    normalize_documents: bool,
    pairs: tuple[Tensor, Tensor] | None,
) -> Problem:
    """The same call on decompressed documents, for devices without the op."""
    tokens = reference.decompress(
        documents.codes,
        documents.residuals,
        documents.centroids,
        documents.bucket_weights,
        documents.nbits,
        normalize_documents,
    )
    if normalize_queries:
        queries = torch.nn.functional.normalize(queries.to(tokens.dtype), dim=-1)
    pair_queries, pair_documents = pairs or (None, None)
    return Problem(
        queries,
        tokens,
        None,
        documents.offsets,
        None,
        documents.lengths,
        None,
        None,
        pair_queries,
        pair_documents,
    )


def padded(
    Q: Tensor,
    codes: Tensor,
    residuals: Tensor,
    doc_lengths: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    nbits: int,
    validate: bool,
) -> tuple[Tensor, Residuals]:
    """Queries ``[Nq, Lq, d]`` and documents padded to one length."""
    _codes("codes", codes, 2, "[Nd, max_Ld]", centroids)
    documents = Residuals(codes, residuals, None, doc_lengths, centroids, bucket_weights, nbits)
    queries = _sides(Q, "codes", "residuals", documents)
    checks.lengths("doc_lengths", doc_lengths, "codes", residuals, validate)
    if checks._readable(codes, validate):
        places = torch.arange(codes.shape[1], device=codes.device)
        _in_table("codes", codes, centroids, places < doc_lengths[:, None])
    return queries, documents


def packed(
    Q: Tensor,
    codes: Tensor,
    residuals: Tensor,
    offsets: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    nbits: int,
    validate: bool,
) -> tuple[Tensor, Residuals]:
    """Queries ``[Nq, Lq, d]`` and documents one after another."""
    _codes("codes_flat", codes, 1, "[total_d_tokens]", centroids)
    documents = Residuals(codes, residuals, offsets, None, centroids, bucket_weights, nbits)
    queries = _sides(Q, "codes_flat", "residuals_flat", documents)
    checks.offsets("cu_seqlens_d", offsets, "codes_flat", codes, validate)
    if checks._readable(codes, validate):
        count = int(offsets[-1])
        _in_table("codes_flat", codes[:count], centroids, None)
    return queries, documents


def _codes(name: str, codes: Tensor, rank: int, axes: str, centroids: Tensor) -> None:
    if not isinstance(codes, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(codes).__name__}")
    if codes.dim() != rank:
        raise ValueError(f"{name} must be {axes}; got shape {tuple(codes.shape)}")
    if codes.dtype not in CODE_DTYPES:
        raise TypeError(f"{name} must be integers of 8, 16, 32 or 64 bits; got {codes.dtype}")
    checks._same_device("centroids", centroids, codes, name)


def _sides(Q: Tensor, codes_name: str, residuals_name: str, documents: Residuals) -> Tensor:
    """``Q`` as a batch, after everything that does not depend on the layout was checked."""
    codes, residuals, _, _, centroids, bucket_weights, nbits, *_ = documents
    checks.tokens("Q", Q, (2, 3), "[Nq, Lq, d] or [Lq, d]")
    checks.tokens("centroids", centroids, (2,), "[C, d]")
    checks.sides("Q", Q, "centroids", centroids)
    checks.option("nbits", nbits, {n: n for n in NBITS})
    checks.tokens("bucket_weights", bucket_weights, (1,), "[2 ** nbits]")
    if bucket_weights.shape[0] != 2**nbits:
        raise ValueError(f"bucket_weights must be [2 ** nbits] = [{2**nbits}]; got shape {tuple(bucket_weights.shape)}")
    if not isinstance(residuals, Tensor) or residuals.dtype is not torch.uint8:
        got = residuals.dtype if isinstance(residuals, Tensor) else type(residuals).__name__
        raise TypeError(f"{residuals_name} must be uint8; got {got}")
    expected = (*codes.shape, -(-Q.shape[-1] * nbits // 8))
    if tuple(residuals.shape) != expected:
        raise ValueError(
            f"{residuals_name} must be [*{codes_name}.shape, ceil(d * nbits / 8)] = {expected} for "
            f"d={Q.shape[-1]} and nbits={nbits}; got shape {tuple(residuals.shape)}"
        )
    for name, tensor in ((codes_name, codes), (residuals_name, residuals), ("bucket_weights", bucket_weights)):
        checks._same_device(name, tensor, Q, "Q")
    return Q if Q.dim() == 3 else Q.unsqueeze(0)


def _in_table(name: str, codes: Tensor, centroids: Tensor, counts: Tensor | None) -> None:
    """Codes of tokens that count name a centroid. What pads a document may hold anything."""
    if codes.dtype is torch.uint16:  # has no comparisons
        codes = codes.int()
    if counts is not None:
        codes = codes.masked_fill(~counts, 0)
    if codes.numel():
        checks._in_range(name, codes, centroids.shape[0], f"[0, {centroids.shape[0]}), the number of centroids")
