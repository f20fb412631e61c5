"""One filler for functions that take every layout: either side padded or packed, pairs implied or listed.
It is `problem.dense` first, with a packed side seen as one long segment, so that the checks are the same."""

from __future__ import annotations

from torch import Tensor

from . import checks
from .problem import Problem, dense, scores_shape


def fill(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None,
    d_mask: Tensor | None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_d: Tensor | None = None,
    pair_q_idx: Tensor | None = None,
    pair_d_idx: Tensor | None = None,
    validate: bool = False,
    **kinds: object,
) -> Problem:
    """The problem of ``Q`` and ``D`` as :func:`maxsim.maxsim` takes them, or packed where their offsets are given.

    ``kinds`` are the dtypes that :func:`dense` is to allow.
    """
    problem = dense(Q, D, q_mask, d_mask, **kinds)
    if cu_seqlens_q is not None:
        _packed("Q", Q, "cu_seqlens_q", cu_seqlens_q, validate)
        mask = problem.query_mask
        problem = problem._replace(queries=Q, query_offsets=cu_seqlens_q, query_mask=None if mask is None else mask[0])
    if cu_seqlens_d is not None:
        _packed("D", D, "cu_seqlens_d", cu_seqlens_d, validate)
        mask = problem.document_mask
        problem = problem._replace(
            documents=D, document_offsets=cu_seqlens_d, document_mask=None if mask is None else mask[0]
        )
    if pair_q_idx is None and pair_d_idx is None:
        return problem
    if pair_q_idx is None or pair_d_idx is None:
        raise ValueError("pair_q_idx and pair_d_idx go together; got one of them")
    if D.dim() == 4:
        raise ValueError(f"pair_q_idx needs D that all queries share; got each query's own, {tuple(D.shape)}")
    queries, documents = scores_shape(problem)
    checks.ids("pair_q_idx", pair_q_idx, queries, Q, validate)
    checks.ids("pair_d_idx", pair_d_idx, documents, Q, validate)
    checks.same_length("pair_q_idx", pair_q_idx, "pair_d_idx", pair_d_idx)
    return problem._replace(pair_queries=pair_q_idx, pair_documents=pair_d_idx)


def documents_between(problem: Problem, first: int, end: int) -> Problem:
    """``problem`` on documents ``first`` up to ``end`` alone: views, no copy."""
    if problem.document_offsets is not None:
        return problem._replace(document_offsets=problem.document_offsets[first : end + 1])
    mask = problem.document_mask
    return problem._replace(
        documents=problem.documents[first:end], document_mask=None if mask is None else mask[first:end]
    )


def _packed(name: str, tokens: Tensor, offsets_name: str, offsets: Tensor, validate: bool) -> None:
    if tokens.dim() != 2:
        raise ValueError(f"{name} must be [total tokens, d] where {offsets_name} is given; got {tuple(tokens.shape)}")
    checks.offsets(offsets_name, offsets, name, tokens, validate)
