"""The one description of every call: query segments, document segments, and which of them meet.
Each filler checks a public layout and lays it out in place, with views and never a copy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks


class Problem(NamedTuple):
    """The problem arguments of every op, in the order of their schemas.

    ``queries`` is ``[Nq, Lq, d]`` padded or ``[Tq, d]`` packed; ``documents`` is ``[Nd, Ld, d]`` padded,
    ``[Nq, K, Ld, d]`` where each query owns its slab, or ``[Td, d]`` packed. Offsets belong to packed sides, prefix
    lengths to padded ones; masks have the token shape of their side and ``True`` keeps. A pair list names query and
    document segments; without one, 4-D ``documents`` pair by slab and anything else is a cross product.
    """

    queries: Tensor
    documents: Tensor
    query_offsets: Tensor | None = None
    document_offsets: Tensor | None = None
    query_lengths: Tensor | None = None
    document_lengths: Tensor | None = None
    query_mask: Tensor | None = None
    document_mask: Tensor | None = None
    pair_queries: Tensor | None = None
    pair_documents: Tensor | None = None


def scores_shape(problem: Problem) -> tuple[int, ...]:
    """The shape of the scores: ``[P]`` for a pair list, ``[Nq, K]`` for slabs, else ``[Nq, Nd]``."""
    if problem.pair_queries is not None:
        return (problem.pair_queries.shape[0],)
    if problem.documents.dim() == 4:
        return tuple(problem.documents.shape[:2])
    return (
        _segments(problem.queries, problem.query_offsets),
        _segments(problem.documents, problem.document_offsets),
    )


def _segments(tokens: Tensor, offsets: Tensor | None) -> int:
    return tokens.shape[0] if offsets is None else offsets.shape[0] - 1


def argmax_width(problem: Problem, longest: int | None, name: str) -> int:
    """Slots per pair in the argmax: ``Lq`` when padded, else ``longest`` or what the offsets say.

    ``name`` is the argument that gives ``longest``. Without it, offsets on an accelerator cost one synchronisation,
    and a graph being compiled cannot know.
    """
    offsets = problem.query_offsets
    if offsets is None:
        return problem.queries.shape[1]
    if longest is not None:
        return longest
    if torch.compiler.is_compiling():
        raise ValueError(f"{name} must be given under torch.compile when an argmax or a gradient is needed; got None")
    return int(offsets.diff().max()) if offsets.shape[0] > 1 else 0


def dense(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None,
    d_mask: Tensor | None,
    dtypes: tuple[torch.dtype, ...] = checks.KERNEL_DTYPES,
    document_dtypes: tuple[torch.dtype, ...] | None = None,
    document_bits: int = 0,
) -> Problem:
    """``[Nq, Lq, d]`` or ``[Lq, d]`` against ``[Nd, Ld, d]``, ``[Ld, d]`` or each query's own ``[Nq, K, Ld, d]``.

    ``document_dtypes`` are those of the queries unless given. ``document_bits`` of 1 packs eight features into a byte.
    """
    checks.tokens("Q", Q, (2, 3), "[Nq, Lq, d] or [Lq, d]", dtypes)
    checks.tokens("D", D, (2, 3, 4), "[Nd, Ld, d], [Ld, d] or [Nq, K, Ld, d]", document_dtypes or dtypes)
    checks.sides("Q", Q, "D", D, document_bits)
    if D.dim() == 4:
        checks.slabs("Q", Q, "D", D)
    elif D.dim() == 2:
        D = D.unsqueeze(0)
    if Q.dim() == 2:
        Q = Q.unsqueeze(0)
    if q_mask is not None:
        q_mask = _token_mask("q_mask", q_mask, Q)
    if d_mask is not None:
        d_mask = _token_mask("d_mask", d_mask, D)
    return Problem(Q, D, None, None, None, None, q_mask, d_mask)


def matched(Q: Tensor, D: Tensor, q_mask: Tensor | None, d_mask: Tensor | None) -> Problem:
    """``[B, Lq, d]`` against ``[B, Ld, d]``, row by row: slabs of one document each."""
    checks.tokens("Q", Q, (3,), "[B, Lq, d]")
    checks.tokens("D", D, (3,), "[B, Ld, d]")
    checks.sides("Q", Q, "D", D)
    checks.slabs("Q", Q, "D", D)
    if q_mask is not None:
        q_mask = _token_mask("q_mask", q_mask, Q)
    if d_mask is not None:
        d_mask = _token_mask("d_mask", d_mask, D).unsqueeze(1)
    return Problem(Q, D.unsqueeze(1), None, None, None, None, q_mask, d_mask)


def candidates(
    queries: Tensor,
    documents: Tensor,
    query_lengths: Tensor,
    doc_lengths: Tensor,
    validate: bool,
    dtypes: tuple[torch.dtype, ...] = checks.KERNEL_DTYPES,
) -> Problem:
    """``[B, Lq, d]`` against each query's ``[B, C, Ld, d]``, both padded behind prefix lengths."""
    checks.tokens("queries", queries, (3,), "[B, Lq, d]", dtypes)
    checks.tokens("documents", documents, (4,), "[B, C, Ld, d]", dtypes)
    checks.sides("queries", queries, "documents", documents)
    checks.slabs("queries", queries, "documents", documents)
    checks.lengths("query_lengths", query_lengths, "queries", queries, validate)
    checks.lengths("doc_lengths", doc_lengths, "documents", documents, validate)
    return Problem(queries, documents, None, None, query_lengths, doc_lengths)


def contrastive(
    queries: Tensor,
    documents: Tensor,
    document_offsets: Tensor,
    validate: bool,
    dtypes: tuple[torch.dtype, ...] = checks.KERNEL_DTYPES,
) -> Problem:
    """Every ``[Nq, Lq, d]`` query against every document packed in ``[Td, d]``."""
    checks.tokens("queries", queries, (3,), "[Nq, Lq, d]", dtypes)
    checks.tokens("documents", documents, (2,), "[total document tokens, d]", dtypes)
    checks.sides("queries", queries, "documents", documents)
    checks.offsets("document_offsets", document_offsets, "documents", documents, validate)
    return Problem(queries, documents, None, document_offsets)


class PackedNames(NamedTuple):
    """What one public function calls the arguments of the packed layout."""

    queries: str
    documents: str
    query_offsets: str
    document_offsets: str
    pair_queries: str
    pair_documents: str


LIK_NAMES = PackedNames("Q_packed", "D_packed", "cu_seqlens_q", "cu_seqlens_d", "pair_q_idx", "pair_d_idx")
ERIK_NAMES = PackedNames(
    "queries", "documents", "query_offsets", "document_offsets", "pair_query_ids", "pair_document_ids"
)


def packed(
    names: PackedNames,
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    validate: bool,
    dtypes: tuple[torch.dtype, ...] = checks.KERNEL_DTYPES,
) -> Problem:
    """Every query packed in ``[Tq, d]`` against every document packed in ``[Td, d]``."""
    checks.tokens(names.queries, queries, (2,), "[total query tokens, d]", dtypes)
    checks.tokens(names.documents, documents, (2,), "[total document tokens, d]", dtypes)
    checks.sides(names.queries, queries, names.documents, documents)
    checks.offsets(names.query_offsets, query_offsets, names.queries, queries, validate)
    checks.offsets(names.document_offsets, document_offsets, names.documents, documents, validate)
    return Problem(queries, documents, query_offsets, document_offsets)


def listed(
    names: PackedNames, problem: Problem, pair_queries: Tensor, pair_documents: Tensor, validate: bool
) -> Problem:
    """``problem`` restricted to the listed pairs of its query and document segments."""
    queries, documents = problem.query_offsets.shape[0] - 1, problem.document_offsets.shape[0] - 1
    checks.ids(names.pair_queries, pair_queries, queries, problem.queries, validate)
    checks.ids(names.pair_documents, pair_documents, documents, problem.queries, validate)
    checks.same_length(names.pair_queries, pair_queries, names.pair_documents, pair_documents)
    return problem._replace(pair_queries=pair_queries, pair_documents=pair_documents)


def unbatched(result: Tensor, Q: Tensor, D: Tensor) -> Tensor:
    """``result`` of :func:`dense` without the axes that 2-D inputs do not have."""
    if D.dim() == 2:
        result = result.squeeze(1)
    return result.squeeze(0) if Q.dim() == 2 else result


def _token_mask(name: str, mask: Tensor, tokens: Tensor) -> Tensor:
    """``mask`` as booleans over the token shape; a mask of fewer axes serves every segment."""
    shape = tokens.shape[:-1]
    checks.mask(name, mask, shape, tokens)
    if mask.dtype is not torch.bool:
        mask = mask != 0
    return mask if mask.shape == shape else mask.expand(shape)
