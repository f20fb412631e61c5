"""MaxSim in plain torch: any device, differentiable any number of times, float64 kept. It defines the semantics.
It gathers the tokens of every pair and writes every similarity, so it is slow and large."""

from __future__ import annotations

from typing import Callable, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from . import checks
from .problem import (
    ERIK_NAMES,
    LIK_NAMES,
    Problem,
    candidates,
    contrastive,
    dense,
    listed,
    packed,
    scores_shape,
    unbatched,
)

T = TypeVar("T")
_SIMILARITIES = 1 << 24  # at most this many at once, whatever the number of pairs


def score(
    problem: Problem, normalize: bool = False, empty_score: float = 0.0, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """The scores of ``problem`` and the int32 argmax ``[*scores.shape, width]``.

    Scores are float64 if either side is, else float32. ``width`` defaults to the longest query.
    """
    chunks = _over_pairs(problem, normalize, lambda *sides: _score_pairs(*sides, empty_score))
    shape = scores_shape(problem)
    scores = torch.cat([chunk for chunk, _ in chunks]).view(shape)
    argmax = torch.cat([chunk for _, chunk in chunks])
    if width is None:
        width = argmax.shape[-1] if problem.query_offsets is not None else problem.queries.shape[1]
    argmax = functional.pad(argmax, (0, width - argmax.shape[-1]), value=-1)
    return scores, argmax.view(*shape, width)


def soft_score(problem: Problem, tau: float, normalize: bool = False, empty_score: float = 0.0) -> Tensor:
    """The scores of ``problem`` under a soft maximum of temperature ``tau``; float64 if either side is."""
    chunks = _over_pairs(problem, normalize, lambda *sides: _soft_score_pairs(*sides, tau, empty_score))
    return torch.cat(chunks).view(scores_shape(problem))


def _over_pairs(problem: Problem, normalize: bool, of: Callable[[Tensor, Tensor, Tensor, Tensor], T]) -> list[T]:
    """``of(queries, keep_queries, documents, keep_documents)`` for some pairs after others.

    Tokens are ``[B, L, d]``, float64 if either side is and else float32; which to keep is ``[B, L]``.
    """
    dtype = torch.promote_types(problem.queries.dtype, problem.documents.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    queries, keep_queries = _side(
        problem.queries, problem.query_offsets, problem.query_lengths, problem.query_mask, dtype, normalize
    )
    documents, keep_documents = _side(
        problem.documents, problem.document_offsets, problem.document_lengths, problem.document_mask, dtype, normalize
    )
    query_ids, document_ids = _pairs(problem, queries.shape[0], documents.shape[0])
    step = max(1, _SIMILARITIES // (queries.shape[1] * documents.shape[1]))
    return [
        of(queries[q], keep_queries[q], documents[d], keep_documents[d])
        for q, d in zip(query_ids.split(step), document_ids.split(step))
    ]


def _side(
    tokens: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    dtype: torch.dtype,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Every segment as rows ``[segments, L, d]`` with L of at least one, and which of them are kept ``[segments, L]``.

    A token that is not kept becomes zeros, so that what it held reaches neither a score nor a gradient.
    """
    if offsets is not None:
        lengths = offsets.diff()
        extent = max(1, int(lengths.max())) if lengths.numel() else 1
        places = torch.arange(extent, device=tokens.device)
        keep = places < lengths[:, None]
        index = torch.where(keep, offsets[:-1, None] + places, tokens.shape[0])
        if mask is not None:
            keep = keep & functional.pad(mask, (0, 1))[index]
        rows = functional.pad(tokens, (0, 0, 0, 1))[index]
    else:
        if tokens.shape[-2] == 0:
            tokens = functional.pad(tokens, (0, 0, 0, 1))
            mask = torch.zeros(tokens.shape[:-1], dtype=torch.bool, device=tokens.device)
        keep = torch.ones(tokens.shape[:-1], dtype=torch.bool, device=tokens.device) if mask is None else mask
        if lengths is not None:
            keep = keep & (torch.arange(tokens.shape[-2], device=tokens.device) < lengths[..., None])
        rows, keep = tokens.flatten(0, -3), keep.flatten(0, -2)
    rows = torch.where(keep[..., None], rows.to(dtype), 0.0)
    return functional.normalize(rows, dim=-1, eps=1e-12) if normalize else rows, keep


def _pairs(problem: Problem, queries: int, documents: int) -> tuple[Tensor, Tensor]:
    """The query and the document segment of every score, in the order of the scores."""
    if problem.pair_queries is not None:
        return problem.pair_queries.long(), problem.pair_documents.long()
    device = problem.queries.device
    query_ids, document_ids = torch.arange(queries, device=device), torch.arange(documents, device=device)
    if problem.documents.dim() == 4:
        return query_ids.repeat_interleave(problem.documents.shape[1]), document_ids
    return query_ids.repeat_interleave(documents), document_ids.repeat(queries)


def _score_pairs(
    queries: Tensor, keep_queries: Tensor, documents: Tensor, keep_documents: Tensor, empty_score: float
) -> tuple[Tensor, Tensor]:
    """Scores ``[B]`` and argmax ``[B, Lq]`` of queries ``[B, Lq, d]``, each against its document ``[B, Ld, d]``."""
    with torch.no_grad():
        similarities = queries @ documents.transpose(1, 2)
        highest, winners = similarities.masked_fill(~keep_documents[:, None], -torch.inf).max(dim=-1)
        # Among nothing but -inf the first kept token wins, not the first token.
        first_kept = keep_documents.int().argmax(dim=-1, keepdim=True)
        winners = torch.where(highest == -torch.inf, first_kept, winners)
    best = documents.gather(1, winners[..., None].expand(-1, -1, documents.shape[-1]))
    similarity = torch.where(keep_queries, (queries * best).sum(-1), 0.0)
    filled = keep_documents.any(dim=-1)
    scores = torch.where(filled, similarity.sum(-1), empty_score)
    return scores, torch.where(keep_queries & filled[:, None], winners, -1).int()


def _soft_score_pairs(
    queries: Tensor, keep_queries: Tensor, documents: Tensor, keep_documents: Tensor, tau: float, empty_score: float
) -> Tensor:
    """Scores ``[B]`` under a soft maximum."""
    filled = keep_documents.any(dim=-1)
    left_out = filled[:, None] & ~keep_documents  # all of an empty document stays, for a gradient of 0 and not NaN
    similarities = (queries @ documents.transpose(1, 2)).masked_fill(left_out[:, None], -torch.inf)
    soft = tau * torch.logsumexp(similarities / tau, dim=-1)
    return torch.where(filled, torch.where(keep_queries, soft, 0.0).sum(-1), empty_score)


def maxsim_reference(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    normalize: bool = False,
    empty_score: float = 0.0,
) -> Tensor:
    """:func:`maxsim.maxsim` in plain torch; LIK and Erik call it so too."""
    problem = dense(Q, D, q_mask, d_mask, checks.REFERENCE_DTYPES)
    return unbatched(score(problem, normalize, empty_score)[0], Q, D)


def maxsim_reference_with_argmax(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    normalize: bool = False,
    empty_score: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim.maxsim_with_argmax` in plain torch."""
    problem = dense(Q, D, q_mask, d_mask, checks.REFERENCE_DTYPES)
    scores, argmax = score(problem, normalize, empty_score)
    return unbatched(scores, Q, D), unbatched(argmax, Q, D)


def soft_maxsim_reference(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    tau: float = 0.1,
    normalize: bool = False,
    empty_score: float = 0.0,
) -> Tensor:
    """:func:`maxsim.soft_maxsim` in plain torch."""
    problem = dense(Q, D, q_mask, d_mask, checks.REFERENCE_DTYPES)
    return unbatched(soft_score(problem, checks.positive("tau", tau), normalize, empty_score), Q, D)


def maxsim_reference_varlen(Q_packed: Tensor, D_packed: Tensor, cu_seqlens_q: Tensor, cu_seqlens_d: Tensor) -> Tensor:
    """:func:`maxsim.maxsim_varlen` in plain torch."""
    sides = (Q_packed, D_packed, cu_seqlens_q, cu_seqlens_d)
    return score(packed(LIK_NAMES, *sides, True, checks.REFERENCE_DTYPES))[0]


def maxsim_reference_scatter(
    Q_packed: Tensor,
    D_packed: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_d: Tensor,
    pair_q_idx: Tensor,
    pair_d_idx: Tensor,
) -> Tensor:
    """Scores ``[P]`` of the listed pairs of packed segments, in LIK's argument order."""
    sides = (Q_packed, D_packed, cu_seqlens_q, cu_seqlens_d)
    problem = packed(LIK_NAMES, *sides, True, checks.REFERENCE_DTYPES)
    return score(listed(LIK_NAMES, problem, pair_q_idx, pair_d_idx, True))[0]


def score_pairs_packed_reference(
    queries: Tensor,
    query_offsets: Tensor,
    documents: Tensor,
    document_offsets: Tensor,
    pair_query_ids: Tensor,
    pair_document_ids: Tensor,
) -> Tensor:
    """:func:`maxsim.score_pairs_packed` in plain torch."""
    return score_pairs_packed_with_argmax_reference(
        queries, query_offsets, documents, document_offsets, pair_query_ids, pair_document_ids, None
    )[0]


def score_pairs_packed_with_argmax_reference(
    queries: Tensor,
    query_offsets: Tensor,
    documents: Tensor,
    document_offsets: Tensor,
    pair_query_ids: Tensor,
    pair_document_ids: Tensor,
    max_q_len: int | None,
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim.score_pairs_packed_with_argmax` in plain torch."""
    sides = (queries, documents, query_offsets, document_offsets)
    problem = packed(ERIK_NAMES, *sides, True, checks.REFERENCE_DTYPES)
    checks.longest("max_q_len", max_q_len, "query_offsets", query_offsets, True)
    return score(listed(ERIK_NAMES, problem, pair_query_ids, pair_document_ids, True), width=max_q_len)


def score_candidates_padded_reference(
    queries: Tensor, documents: Tensor, query_lengths: Tensor, doc_lengths: Tensor
) -> Tensor:
    """:func:`maxsim.score_candidates_padded` in plain torch."""
    return score_candidates_padded_with_argmax_reference(queries, documents, query_lengths, doc_lengths)[0]


maxsim_padded_reference = score_candidates_padded_reference  # LIK's name for it


def score_candidates_padded_with_argmax_reference(
    queries: Tensor, documents: Tensor, query_lengths: Tensor, doc_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim.score_candidates_padded_with_argmax` in plain torch."""
    return score(candidates(queries, documents, query_lengths, doc_lengths, True, checks.REFERENCE_DTYPES))


def score_contrastive_reference(queries: Tensor, documents: Tensor, document_offsets: Tensor) -> Tensor:
    """:func:`maxsim.score_contrastive` in plain torch."""
    return score_contrastive_with_argmax_reference(queries, documents, document_offsets)[0]


def score_contrastive_with_argmax_reference(
    queries: Tensor, documents: Tensor, document_offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim.score_contrastive_with_argmax` in plain torch."""
    return score(contrastive(queries, documents, document_offsets, True, checks.REFERENCE_DTYPES))


def unpack_residuals_reference(residuals: Tensor, nbits: int, d: int) -> Tensor:
    """Bucket numbers int32 ``[..., d]``: a byte holds 8 / nbits of them, the lowest bits first (LIK)."""
    checks.option("nbits", nbits, {n: n for n in (1, 2, 4, 8)})
    if not isinstance(residuals, Tensor) or residuals.dtype is not torch.uint8:
        raise TypeError(f"residuals must be a uint8 torch.Tensor; got {getattr(residuals, 'dtype', type(residuals))}")
    if residuals.dim() < 1 or residuals.shape[-1] != -(-d * nbits // 8):
        raise ValueError(
            f"residuals must be [..., ceil(d * nbits / 8)] = [..., {-(-d * nbits // 8)}] for d={d} and nbits={nbits}; "
            f"got shape {tuple(residuals.shape)}"
        )
    shifts = torch.arange(0, 8, nbits, dtype=torch.int32, device=residuals.device)
    return ((residuals.int()[..., None] >> shifts) & (2**nbits - 1)).flatten(-2)[..., :d]


def decompress(
    codes: Tensor, residuals: Tensor, centroids: Tensor, bucket_weights: Tensor, nbits: int, normalize: bool
) -> Tensor:
    """Tokens ``[*codes.shape, d]`` of an index, float64 if its centroids are, else float32.

    A code that names no centroid gives NaN.
    """
    dtype = torch.promote_types(centroids.dtype, torch.float32)
    codes = codes.long()
    known = (codes >= 0) & (codes < centroids.shape[0])
    buckets = unpack_residuals_reference(residuals, nbits, centroids.shape[1]).long()
    rows = centroids.to(dtype)[torch.where(known, codes, 0)] if centroids.shape[0] else buckets.new_zeros(())
    tokens = torch.where(known[..., None], rows + bucket_weights.to(dtype)[buckets], torch.nan)
    return functional.normalize(tokens, dim=-1, eps=1e-12) if normalize else tokens


def maxsim_residual_reference(
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
) -> Tensor:
    """:func:`maxsim.plaid.maxsim_residual` in plain torch; always ``[Nq, Nd]``, as LIK's."""
    checks.tokens("Q", Q, (2, 3), "[Nq, Lq, d] or [Lq, d]", checks.REFERENCE_DTYPES)
    queries = Q if Q.dim() == 3 else Q.unsqueeze(0)
    tokens = decompress(codes, residuals, centroids, bucket_weights, nbits, normalize)
    if normalize:
        queries = functional.normalize(queries.to(torch.promote_types(queries.dtype, tokens.dtype)), dim=-1, eps=1e-12)
    checks.lengths("doc_lengths", doc_lengths, "codes", tokens, True)
    return score(Problem(queries, tokens, None, None, None, doc_lengths), False, empty_score)[0]


def approximate(
    centroid_scores: Tensor,
    codes: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    probed: Tensor | None = None,
) -> Tensor:
    """Approximate scores of ``centroid_scores [Nq, C, Lq]``: a query token's similarities are looked up, not computed.

    Written as MaxSim of one-hot queries: token i of a query picks feature i of a document token's row of scores. With
    ``probed``, bool ``[Nq, C]``, a document without a token of such a centroid scores -inf.
    """
    count, centroids, width = centroid_scores.shape
    codes = codes.long()
    codes = torch.where((codes >= 0) & (codes < centroids), codes, 0)
    one_hot = torch.eye(width, dtype=centroid_scores.dtype, device=codes.device)[None]
    results = []
    for query in range(count):
        problem = Problem(one_hot, centroid_scores[query][codes], None, offsets, None, lengths)
        scores = score(problem)[0][0]
        if probed is not None:
            hits = probed[query][codes].to(centroid_scores.dtype)[..., None]
            found = score(Problem(one_hot[:, :1, :1], hits, None, offsets, None, lengths))[0][0]
            scores = scores.masked_fill(found == 0, -torch.inf)
        results.append(scores)
    return torch.stack(results) if results else centroid_scores.new_zeros(0, 0)


def plaid_approx_score_reference(query_centroid_scores: Tensor, codes: Tensor, doc_lengths: Tensor) -> Tensor:
    """:func:`maxsim.plaid.plaid_approx_score` in plain torch."""
    return approximate(query_centroid_scores[None], codes, None, doc_lengths)[0]
