"""Which document token answers which query token, and how well: the terms of a score, one for each query token.
The winners are those of the kernel's argmax; their similarities are computed again, so they add up to the score."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from . import checks
from .dispatch import run
from .layouts import fill
from .problem import Problem, scores_shape, unbatched

_ELEMENTS = 1 << 22  # gathered from each side at once


class Explanation(NamedTuple):
    """What :func:`explain` returns."""

    scores: Tensor
    winners: Tensor
    similarities: Tensor


@torch.no_grad()
def explain(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_d: Tensor | None = None,
    pair_q_idx: Tensor | None = None,
    pair_d_idx: Tensor | None = None,
    normalize: bool = False,
    empty_score: float = 0.0,
    validate: bool = False,
) -> Explanation:
    """The winning document token of each query token and their similarity, in any layout.

    Args:
        Q, D, q_mask, d_mask: as for :func:`maxsim.maxsim`, or packed ``[total tokens, d]`` where their offsets are
            given; the mask of a packed side is ``[total tokens]``.
        cu_seqlens_q, cu_seqlens_d: offsets of packed sides, as for :func:`maxsim.maxsim_varlen`.
        pair_q_idx, pair_d_idx: int32 or int64 ``[P]``, to explain those pairs alone.
        validate: check the values of offsets and ids on an accelerator too.

    Returns:
        ``scores``, float32: ``[Nq, Nd]``, ``[Nq, K]`` or ``[P]``, without the axes that 2-D inputs do not have.
        ``winners``, int32 ``[*scores.shape, Lq]``: the winner's index within its document, -1 where nothing won; for
        packed queries Lq is the longest. ``similarities``, float32 of the same shape: 0 where nothing won, so that
        their sum is the score unless that is ``empty_score``.

    There is no gradient. On an accelerator this waits for the device. Errors are those of :func:`maxsim.maxsim`.
    """
    problem = fill(Q, D, q_mask, d_mask, cu_seqlens_q, cu_seqlens_d, pair_q_idx, pair_d_idx, validate)
    scores, winners = run(problem, normalize, empty_score, None, with_argmax=True)
    similarities = _similarities(problem, winners, normalize)
    if cu_seqlens_q is None and cu_seqlens_d is None and pair_q_idx is None:
        return Explanation(*(unbatched(result, Q, D) for result in (scores, winners, similarities)))
    return Explanation(scores, winners, similarities)


@torch.no_grad()
def similarity_matrix(Q: Tensor, D: Tensor, *, normalize: bool = False) -> Tensor:
    """float32 ``[Lq, Ld]``: every query token of ``Q [Lq, d]`` with every document token of ``D [Ld, d]``.

    The matrix that a score is made of, which the kernel never writes; for looking at one pair.
    """
    checks.tokens("Q", Q, (2,), "[Lq, d]")
    checks.tokens("D", D, (2,), "[Ld, d]")
    checks.sides("Q", Q, "D", D)
    query, document = (_wide(side, checks.flag("normalize", normalize)) for side in (Q, D))
    return query @ document.T


def _similarities(problem: Problem, winners: Tensor, normalize: bool) -> Tensor:
    similarities = torch.zeros(winners.shape, device=winners.device)
    won = winners >= 0
    pair, slot = won.flatten(0, -2).nonzero(as_tuple=True)
    query, document = _segments(problem, pair)
    winner = winners[won].long()
    step = max(1, _ELEMENTS // problem.queries.shape[-1])
    parts = [
        (
            _wide(_rows(problem.queries, problem.query_offsets, q, s), normalize)
            * _wide(_rows(problem.documents, problem.document_offsets, d, w), normalize)
        ).sum(-1)
        for q, s, d, w in zip(*(index.split(step) for index in (query, slot, document, winner)))
    ]
    similarities[won] = torch.cat(parts)
    return similarities


def _segments(problem: Problem, pair: Tensor) -> tuple[Tensor, Tensor]:
    """The query and the document segment of each pair, which is an index into the flattened scores."""
    if problem.pair_queries is not None:
        return problem.pair_queries[pair].long(), problem.pair_documents[pair].long()
    per_query = scores_shape(problem)[1]
    query = pair // max(1, per_query)
    return query, pair if problem.documents.dim() == 4 else pair - query * per_query


def _rows(tokens: Tensor, offsets: Tensor | None, segment: Tensor, place: Tensor) -> Tensor:
    """Tokens ``[n, d]``, each at a place within its segment."""
    if offsets is not None:
        return tokens[offsets[segment] + place]
    if tokens.dim() == 4:
        return tokens[segment // tokens.shape[1], segment % tokens.shape[1], place]
    return tokens[segment, place]


def _wide(tokens: Tensor, normalize: bool) -> Tensor:
    tokens = tokens.float()
    return functional.normalize(tokens, dim=-1, eps=1e-12) if normalize else tokens
