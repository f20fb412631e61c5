"""MaxSim in plain torch: any device, differentiable any number of times, float64 kept. It defines the semantics.
It gathers the tokens of every pair and writes every similarity, so it is slow and large."""

from __future__ import annotations

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

_SIMILARITIES = 1 << 24  # at most this many at once, whatever the number of pairs


def score(
    problem: Problem, normalize: bool = False, empty_score: float = 0.0, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """The scores of ``problem`` and the int32 argmax ``[*scores.shape, width]``.

    Scores are float64 if either side is, else float32. ``width`` defaults to the longest query.
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
    chunks = [
        _score_pairs(queries[q], keep_queries[q], documents[d], keep_documents[d], empty_score)
        for q, d in zip(query_ids.split(step), document_ids.split(step))
    ]
    shape = scores_shape(problem)
    scores = torch.cat([chunk for chunk, _ in chunks]).view(shape)
    argmax = torch.cat([chunk for _, chunk in chunks])
    if width is None:
        width = argmax.shape[-1] if problem.query_offsets is not None else problem.queries.shape[1]
    argmax = functional.pad(argmax, (0, width - argmax.shape[-1]), value=-1)
    return scores, argmax.view(*shape, width)


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
