"""The scoring functions of late-interaction-kernels' plaid module, with its signatures, and their argmax forms.
They take an index's tensors as they are; maxsim.reference has the same functions in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, reference
from . import documents, fake  # noqa: F401  fake registers with the ops
from .documents import Residuals

_APPROX_DEVICES = documents.devices_of("approx_forward")


def maxsim_residual(
    Q: Tensor,
    codes: Tensor,
    residuals: Tensor,
    doc_lengths: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    nbits: int,
    *,
    normalize: bool = True,
    empty_score: float = 0.0,
    validate: bool = False,
) -> Tensor:
    """MaxSim against padded residual documents, decompressed in the kernel; differentiable in ``Q`` (LIK).

    A token is ``centroids[code] + bucket_weights[bucket of each feature]``.

    Args:
        Q: ``[Nq, Lq, d]`` or ``[Lq, d]``, float16, bfloat16 or float32.
        codes: ``[Nd, max_Ld]`` centroid numbers, integers of any width.
        residuals: uint8 ``[Nd, max_Ld, ceil(d * nbits / 8)]``; a byte holds 8 / nbits buckets, the lowest bits first.
        doc_lengths: int32 or int64 ``[Nd]``, how many leading tokens count.
        centroids: ``[C, d]``, float16, bfloat16 or float32.
        bucket_weights: ``[2 ** nbits]`` of any of these types.
        nbits: 1, 2, 4 or 8.
        normalize: score unit vectors on both sides.
        empty_score: the score of a document without tokens.
        validate: check the values of lengths and codes on an accelerator too, which synchronises. On the CPU they
            always are. A document that names no centroid, or whose length is wrong, scores NaN where nobody checked.

    Returns:
        float32 scores ``[Nq, Nd]``, ``[Nd]`` for a 2-D ``Q``. Products of float16 (bfloat16) queries and centroids
        are within 2e-4 (2e-3) of float64, those of float32 within 1e-5.

    Raises:
        TypeError, ValueError, RuntimeError: an argument has the wrong type, shape or value, or another device.
    """
    queries, index = documents.padded(
        Q, codes, residuals, doc_lengths, centroids, bucket_weights, nbits, checks.flag("validate", validate)
    )
    return _score(Q, queries, index, normalize, empty_score, False)[0]


def maxsim_residual_with_argmax(
    Q: Tensor,
    codes: Tensor,
    residuals: Tensor,
    doc_lengths: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    nbits: int,
    *,
    normalize: bool = True,
    empty_score: float = 0.0,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim_residual`, and the int32 winners ``[*scores.shape, Lq]`` with -1 where nothing won."""
    queries, index = documents.padded(
        Q, codes, residuals, doc_lengths, centroids, bucket_weights, nbits, checks.flag("validate", validate)
    )
    return _score(Q, queries, index, normalize, empty_score, True)


def maxsim_residual_varlen(
    Q: Tensor,
    codes_flat: Tensor,
    residuals_flat: Tensor,
    cu_seqlens_d: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    nbits: int,
    *,
    max_seqlen_d: int | None = None,
    normalize: bool = True,
    empty_score: float = 0.0,
    validate: bool = False,
) -> Tensor:
    """:func:`maxsim_residual` for documents one after another, as indexes store them (LIK).

    Args:
        codes_flat: ``[total_d_tokens]``.
        residuals_flat: uint8 ``[total_d_tokens, ceil(d * nbits / 8)]``.
        cu_seqlens_d: int32 or int64 ``[Nd + 1]``, document i is the rows from entry i up to entry i + 1.
        max_seqlen_d: at least the longest document; nothing needs it.

    Other arguments, results and errors are those of :func:`maxsim_residual`.
    """
    queries, index = documents.packed(
        Q, codes_flat, residuals_flat, cu_seqlens_d, centroids, bucket_weights, nbits, checks.flag("validate", validate)
    )
    checks.longest("max_seqlen_d", max_seqlen_d, "cu_seqlens_d", cu_seqlens_d, validate)
    return _score(Q, queries, index, normalize, empty_score, False)[0]


def maxsim_residual_varlen_with_argmax(
    Q: Tensor,
    codes_flat: Tensor,
    residuals_flat: Tensor,
    cu_seqlens_d: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    nbits: int,
    *,
    max_seqlen_d: int | None = None,
    normalize: bool = True,
    empty_score: float = 0.0,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim_residual_varlen`, and the winners ``[*scores.shape, Lq]``, counted from a document's start."""
    queries, index = documents.packed(
        Q, codes_flat, residuals_flat, cu_seqlens_d, centroids, bucket_weights, nbits, checks.flag("validate", validate)
    )
    checks.longest("max_seqlen_d", max_seqlen_d, "cu_seqlens_d", cu_seqlens_d, validate)
    return _score(Q, queries, index, normalize, empty_score, True)


def _score(
    Q: Tensor, queries: Tensor, index: Residuals, normalize: bool, empty_score: float, with_argmax: bool
) -> tuple[Tensor, Tensor | None]:
    normalize = checks.flag("normalize", normalize)
    empty_score = checks.number("empty_score", empty_score)
    scores, argmax = documents.score(queries, index, normalize, normalize, empty_score, with_argmax)
    if Q.dim() == 2:
        scores, argmax = scores.squeeze(0), argmax if argmax is None else argmax.squeeze(0)
    return scores, argmax


def plaid_approx_score(
    query_centroid_scores: Tensor, codes: Tensor, doc_lengths: Tensor, *, validate: bool = False
) -> Tensor:
    """PLAID's scores from centroids alone: ``sum_i max_j query_centroid_scores[code_j, i]`` (LIK).

    Args:
        query_centroid_scores: ``[C, Lq]``, usually ``centroids @ Q.T``; taken as float32.
        codes: ``[B, max_Ld]`` centroid numbers, integers of any width. One that is out of range counts as 0.
        doc_lengths: int32 or int64 ``[B]``, how many leading tokens count. A document without any scores 0.
        validate: check the values of the lengths on an accelerator too, which synchronises. Unchecked, a wrong length
            scores NaN.

    Returns:
        float32 ``[B]``.
    """
    checks.tokens("query_centroid_scores", query_centroid_scores, (2,), "[n_centroids, Lq]", checks.REFERENCE_DTYPES)
    documents._codes("codes", codes, 2, "[B, max_Ld]", query_centroid_scores)
    checks.lengths("doc_lengths", doc_lengths, "codes", codes.unsqueeze(-1), checks.flag("validate", validate))
    if min(query_centroid_scores.shape) == 0:
        if query_centroid_scores.shape[0] == 0 and codes.numel():
            raise ValueError("query_centroid_scores must have at least one centroid; got 0")
        return torch.zeros(codes.shape[0], device=codes.device)
    return approximate(query_centroid_scores.float().unsqueeze(0), codes, None, doc_lengths)[0]


def approximate(
    centroid_scores: Tensor,
    codes: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    probed: Tensor | None = None,
) -> Tensor:
    """The same ``[Nq, Nd]`` for ``centroid_scores [Nq, C, Lq]`` and padded or packed codes.

    With ``probed``, bool ``[Nq, C]``, a document without a token of a probed centroid scores -inf.
    """
    device = codes.device.type
    if device != "meta" and device not in _APPROX_DEVICES:
        return reference.approximate(centroid_scores, codes, offsets, lengths, probed)
    return documents.approx_forward(centroid_scores, codes, offsets, lengths, probed)


def unpack_residuals(residuals: Tensor, nbits: int, d: int) -> Tensor:
    """Bucket numbers int32 ``[..., d]`` of packed residuals uint8 ``[..., ceil(d * nbits / 8)]``, on any device.

    A byte holds 8 / nbits of them, the lowest bits first (LIK).
    """
    return reference.unpack_residuals_reference(residuals, nbits, d)
