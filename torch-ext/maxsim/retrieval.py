"""Top-k retrieval and scoring by id over a corpus that stays where it is.
Scores live for one chunk of documents at a time, so no ``[Nq, Nd]`` matrix is ever written."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import checks, ranking
from .dispatch import BACKWARD_MODES, run
from .layouts import documents_between, fill
from .problem import Problem, scores_shape
from .ranking import Ranking
from .scoring import maxsim

SCORES = 1 << 20  # held at once, with the int64 keys that order them: about 24 MiB
_QUERIES = 1024  # that share a chunk: beyond it, chunks of documents would get too short


def retrieve(
    Q: Tensor,
    D: Tensor,
    top_k: int,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    normalize: bool = True,
    chunk: int | None = None,
    largest: bool = True,
    sorted: bool = True,
    cu_seqlens_d: Tensor | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """The ``top_k`` best documents of each query: ``maxsim(Q, D).topk(top_k)`` without its score matrix (LIK).

    Args:
        Q: ``[Nq, Lq, d]`` or ``[Lq, d]``.
        D: ``[Nd, Ld, d]``, ``[Ld, d]`` for one document, or packed ``[total tokens, d]`` with ``cu_seqlens_d``.
        top_k: at least 1; more than there are documents gives them all.
        q_mask, d_mask: as for :func:`maxsim.maxsim`; for packed documents ``d_mask`` is ``[total tokens]``.
        normalize: score unit vectors. True, as in LIK; :func:`maxsim.maxsim` has False.
        chunk: documents scored at once. None keeps what a call allocates below 64 MiB beyond its results.
        largest, sorted: as for ``torch.topk``; results are sorted in any case.
        cu_seqlens_d: int32 or int64 ``[Nd + 1]``, as for :func:`maxsim.maxsim_varlen`.
        empty_score: the score of a document without a kept token.
        validate: check the values of offsets on an accelerator too, which synchronises.

    Returns:
        float32 scores and int64 indices ``[Nq, min(top_k, Nd)]``, best first, without the first axis for a 2-D ``Q``.
        Among equal scores the lowest index comes first; NaN ranks as in ``torch.topk``. There is no gradient.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`maxsim.maxsim`.
    """
    ranking.options(largest, sorted)
    problem = shared_documents(Q, D, q_mask, d_mask, cu_seqlens_d, validate)
    queries, documents = scores_shape(problem)
    k = ranking.clamp_k(top_k, documents)
    rankings = start(queries, k, largest)
    extend(rankings, problem, chunk, normalize, empty_score)
    scores, ids = finish(rankings, (queries, k), Q.device)
    return (scores.squeeze(0), ids.squeeze(0)) if Q.dim() == 2 else (scores, ids)


def shared_documents(
    Q: Tensor, D: Tensor, q_mask: Tensor | None, d_mask: Tensor | None, cu_seqlens_d: Tensor | None, validate: bool
) -> Problem:
    """The cross product of ``Q`` and a corpus."""
    problem = fill(Q, D, q_mask, d_mask, None, cu_seqlens_d, validate=validate)
    if D.dim() == 4:
        raise ValueError(f"D must be documents that all queries share; got each query's own, {tuple(D.shape)}")
    return problem


def start(queries: int, k: int, largest: bool) -> list[Ranking]:
    """An empty ranking for each block of queries."""
    return [Ranking(k, largest) for _ in range(0, queries, _QUERIES)]


@torch.no_grad()
def extend(
    rankings: list[Ranking],
    problem: Problem,
    chunk: int | None,
    normalize: bool,
    empty_score: float,
    first_id: int = 0,
) -> None:
    """Add every document of ``problem``, whose ids start at ``first_id``, to the rankings, a chunk at a time."""
    documents = scores_shape(problem)[1]
    for block, best in enumerate(rankings):
        rows = slice(block * _QUERIES, (block + 1) * _QUERIES)
        mask = problem.query_mask
        part = problem._replace(queries=problem.queries[rows], query_mask=None if mask is None else mask[rows])
        step = ranking.step("chunk", chunk, SCORES // part.queries.shape[0])
        for first in range(0, documents, step):
            scores, _ = run(documents_between(part, first, min(first + step, documents)), normalize, empty_score, None)
            best.add(scores, first_id + first)


def finish(rankings: list[Ranking], shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scores and ids ``shape`` of all blocks of queries, best first."""
    if 0 in shape:
        return torch.empty(shape, device=device), torch.empty(shape, dtype=torch.int64, device=device)
    scores, ids = zip(*(best.result() for best in rankings))
    return torch.cat(scores), torch.cat(ids)


def score_ids(
    Q: Tensor,
    D: Tensor,
    ids: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    cu_seqlens_d: Tensor | None = None,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
    missing_score: float = float("-inf"),
    validate: bool = False,
) -> Tensor:
    """Scores ``[Nq, K]`` of each query against the documents that ``ids`` names, read where they lie.

    Args:
        Q, D, q_mask, d_mask, cu_seqlens_d: a batch of queries ``[Nq, Lq, d]`` and a corpus as in :func:`retrieve`.
        ids: int32 or int64 ``[Nq, K]``, each below Nd; -1 stands for no candidate.
        missing_score: what a -1 scores; it has no gradient.
        validate: check ids and offsets on an accelerator too, which synchronises. Unchecked, an id out of range
            scores NaN.

    Other options and errors are those of :func:`maxsim.maxsim`; differentiable.
    """
    checks.tokens("Q", Q, (3,), "[Nq, Lq, d]")
    problem = shared_documents(Q, D, q_mask, d_mask, cu_seqlens_d, validate)
    missing_score = checks.number("missing_score", missing_score)
    problem, missing = named_pairs(problem, ids, validate)
    if missing is None:
        checks.option("backward", backward, BACKWARD_MODES)
        return torch.full(ids.shape, missing_score, device=Q.device)
    scores = run(problem, normalize, empty_score, backward)[0]
    return scores.view(ids.shape).masked_fill(missing, missing_score)


def named_pairs(problem: Problem, ids: Tensor, validate: bool) -> tuple[Problem, Tensor | None]:
    """A cross product restricted to the documents ``ids [Nq, K]`` of each query, and which of them are missing.

    None instead of the latter where there is no document at all.
    """
    queries, documents = scores_shape(problem)
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[0] != queries:
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"ids must be [Nq, K] with Nq = {queries}; got {got}")
    missing = ids == -1
    named = ids.masked_fill(missing, 0).flatten()  # to be scored like any other, and overwritten
    checks.ids("ids", named, max(1, documents), problem.queries, validate)
    if documents == 0:
        return problem, None
    rows = torch.arange(queries, device=ids.device).repeat_interleave(ids.shape[1])
    return problem._replace(pair_queries=rows, pair_documents=named), missing


class MaxSimScorer(nn.Module):
    """MaxSim as a module without parameters, with LIK's defaults.

    Args:
        normalize: score unit vectors.
        backward: as for :func:`maxsim.maxsim`.
        mask_pad_token: the id that :meth:`forward_with_ids` takes for padding.
    """

    def __init__(
        self, *, normalize: bool = True, backward: str | None = "auto", mask_pad_token: int | None = None
    ) -> None:
        super().__init__()
        checks.flag("normalize", normalize)
        checks.option("backward", backward, BACKWARD_MODES)
        self.normalize, self.backward, self.mask_pad_token = normalize, backward, mask_pad_token

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}, backward={self.backward!r}, mask_pad_token={self.mask_pad_token!r}"

    def forward(self, Q: Tensor, D: Tensor, q_mask: Tensor | None = None, d_mask: Tensor | None = None) -> Tensor:
        """:func:`maxsim.maxsim`, differentiable."""
        return maxsim(Q, D, q_mask, d_mask, normalize=self.normalize, backward=self.backward)

    @torch.no_grad()
    def score(self, Q: Tensor, D: Tensor, q_mask: Tensor | None = None, d_mask: Tensor | None = None) -> Tensor:
        """:meth:`forward` without a gradient."""
        return self.forward(Q, D, q_mask, d_mask)

    def retrieve(
        self,
        Q: Tensor,
        D: Tensor,
        top_k: int,
        q_mask: Tensor | None = None,
        d_mask: Tensor | None = None,
        *,
        chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:func:`retrieve` with this module's ``normalize``."""
        return retrieve(Q, D, top_k, q_mask, d_mask, normalize=self.normalize, chunk=chunk)

    def forward_with_ids(self, Q: Tensor, D: Tensor, q_ids: Tensor, d_ids: Tensor) -> Tensor:
        """:meth:`forward` without the tokens whose id is ``mask_pad_token``."""
        if self.mask_pad_token is None:
            raise ValueError("mask_pad_token must be given to MaxSimScorer for forward_with_ids; got None")
        return self.forward(Q, D, q_ids != self.mask_pad_token, d_ids != self.mask_pad_token)
