"""The public scoring functions: each lays its arguments out as one problem and sends it down one corridor.
LIK is late-interaction-kernels 0.4.5 and Erik is ErikKaum/maxsim v2; code written for either runs here unchanged."""

from __future__ import annotations

from torch import Tensor

from . import checks, fake  # noqa: F401  fake registers with the ops
from .dispatch import common, run
from .problem import ERIK_NAMES, LIK_NAMES, candidates, contrastive, dense, listed, matched, packed, unbatched


def maxsim(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
) -> Tensor:
    """MaxSim, ``score(q, d) = sum_i max_j <q_i, d_j>`` (Khattab and Zaharia, ColBERT, 2020), differentiable.

    The ranks choose the pairing, as in LIK:

    ==================  ====================  =============  ==========================================
    ``Q``               ``D``                 scores
    ==================  ====================  =============  ==========================================
    ``[Nq, Lq, d]``     ``[Nd, Ld, d]``       ``[Nq, Nd]``   every query against every document
    ``[Lq, d]``         ``[Nd, Ld, d]``       ``[Nd]``
    ``[Nq, Lq, d]``     ``[Ld, d]``           ``[Nq]``
    ``[Lq, d]``         ``[Ld, d]``           ``[]``
    ``[Nq, Lq, d]``     ``[Nq, K, Ld, d]``    ``[Nq, K]``    every query against its own K documents
    ==================  ====================  =============  ==========================================

    Args:
        Q, D: float16, bfloat16 or float32, in any mix and with any strides. Under autocast both are cast as a matrix
            product would cast them.
        q_mask, d_mask: True, or non-zero, keeps a token. They broadcast to the token shape of their side, and the
            kept tokens may have any pattern. A masked query token adds nothing; a masked document token cannot win.
        normalize: score unit vectors ``x / max(|x|, 1e-12)``; gradients go through the norm.
        backward: None, ``"auto"``, ``"unified"`` or ``"lowmem"`` (LIK). ``"lowmem"`` promises bitwise reproducible
            gradients, which ``torch.use_deterministic_algorithms`` always gets; today all of them are the same.
        empty_score: the score of a document without a kept token, whatever the query. Its gradient is zero.

    Returns:
        float32 scores. A NaN in a kept token makes its scores NaN; among equals the first document token wins, and
        the gradient goes to the winner alone.

    Raises:
        TypeError: an argument has the wrong type or dtype (``maxsim.reference`` takes float64).
        ValueError: shapes do not fit, or an option has no such value.
        RuntimeError: tensors are on different devices.
    """
    if (
        q_mask is d_mask is backward is None
        and normalize is False
        and type(empty_score) is float
        and empty_score == 0.0
    ):
        scores = common(Q, D)
        if scores is not None:
            return scores
    scores, _ = run(dense(Q, D, q_mask, d_mask), normalize, empty_score, backward)
    return unbatched(scores, Q, D)


def maxsim_with_argmax(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim`, and which document token won for each query token.

    Returns:
        scores, and int32 argmax ``[*scores.shape, Lq]``: an index along ``Ld``, or -1 where nothing won, because the
        query token is masked or the document has no kept token.
    """
    scores, argmax = run(dense(Q, D, q_mask, d_mask), normalize, empty_score, backward, with_argmax=True)
    return unbatched(scores, Q, D), unbatched(argmax, Q, D)


def maxsim_pairs(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
) -> Tensor:
    """Scores ``[B]`` of ``Q[i]`` against ``D[i]`` for ``Q [B, Lq, d]`` and ``D [B, Ld, d]`` (LIK).

    Options and errors are those of :func:`maxsim`.
    """
    scores, _ = run(matched(Q, D, q_mask, d_mask), normalize, empty_score, backward)
    return scores.squeeze(1)


def maxsim_varlen(
    Q_packed: Tensor,
    D_packed: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_d: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_d: int | None = None,
    *,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> Tensor:
    """Scores ``[Nq, Nd]`` of every packed query against every packed document (LIK).

    Args:
        Q_packed, D_packed: ``[total tokens, d]``, segments one after another.
        cu_seqlens_q, cu_seqlens_d: int32 or int64 ``[segments + 1]``; segment i is the rows from entry i up to entry
            i + 1. They start at 0, never fall and end within the tokens; a segment may be empty.
        max_seqlen_q: at least the longest query; on CUDA a longer one scores NaN. Only a gradient needs it: without it
            an accelerator synchronises once, and ``torch.compile`` raises. Many queries score faster with it on CUDA.
        max_seqlen_d: at least the longest document; nothing needs it.
        validate: check the values of offsets on an accelerator too, which synchronises. On the CPU they always are.
            Wrong offsets that nobody checked give wrong scores, but no access outside the tensors.

    Other options and errors are those of :func:`maxsim`; values out of range raise ValueError.
    """
    problem = packed(LIK_NAMES, Q_packed, D_packed, cu_seqlens_q, cu_seqlens_d, validate)
    checks.longest("max_seqlen_q", max_seqlen_q, "cu_seqlens_q", cu_seqlens_q, validate)
    checks.longest("max_seqlen_d", max_seqlen_d, "cu_seqlens_d", cu_seqlens_d, validate)
    return run(problem, normalize, empty_score, backward, max_seqlen_q, "max_seqlen_q")[0]


def score_candidates_padded(
    queries: Tensor,
    documents: Tensor,
    query_lengths: Tensor,
    doc_lengths: Tensor,
    *,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> Tensor:
    """Scores ``[B, C]`` of each query against its own C candidates, padded (Erik; LIK's ``maxsim_padded``).

    Args:
        queries, documents: ``[B, Lq, d]`` and ``[B, C, Ld, d]``, read in place.
        query_lengths, doc_lengths: int32 or int64 ``[B]`` and ``[B, C]``, how many leading tokens count: 0 and more.
        validate: as in :func:`maxsim_varlen`, for the lengths.

    Other options and errors are those of :func:`maxsim`.
    """
    problem = candidates(queries, documents, query_lengths, doc_lengths, validate)
    return run(problem, normalize, empty_score, backward)[0]


def score_candidates_padded_with_argmax(
    queries: Tensor,
    documents: Tensor,
    query_lengths: Tensor,
    doc_lengths: Tensor,
    *,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`score_candidates_padded`, and the int32 argmax ``[B, C, Lq]`` with -1 where nothing won (Erik)."""
    problem = candidates(queries, documents, query_lengths, doc_lengths, validate)
    return run(problem, normalize, empty_score, backward, with_argmax=True)


def score_contrastive(
    queries: Tensor,
    documents: Tensor,
    document_offsets: Tensor,
    *,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> Tensor:
    """Scores ``[Nq, Nd]`` of every query ``[Nq, Lq, d]`` against every document packed in ``[Td, d]`` (Erik).

    ``document_offsets`` is ``[Nd + 1]``, as ``cu_seqlens_d`` of :func:`maxsim_varlen`, which ``validate`` follows too.
    Other options and errors are those of :func:`maxsim`.
    """
    problem = contrastive(queries, documents, document_offsets, validate)
    return run(problem, normalize, empty_score, backward)[0]


def score_contrastive_with_argmax(
    queries: Tensor,
    documents: Tensor,
    document_offsets: Tensor,
    *,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`score_contrastive`, and the int32 argmax ``[Nq, Nd, Lq]`` with -1 where nothing won (Erik).

    The index counts from the start of the document.
    """
    problem = contrastive(queries, documents, document_offsets, validate)
    return run(problem, normalize, empty_score, backward, with_argmax=True)


def score_pairs_packed(
    queries: Tensor,
    query_offsets: Tensor,
    documents: Tensor,
    document_offsets: Tensor,
    pair_query_ids: Tensor,
    pair_document_ids: Tensor,
    *,
    max_q_len: int | None = None,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> Tensor:
    """Scores ``[P]`` of the listed pairs of packed queries and packed documents (Erik).

    Args:
        queries, documents: ``[total tokens, d]``.
        query_offsets, document_offsets: as the ``cu_seqlens`` of :func:`maxsim_varlen`.
        pair_query_ids, pair_document_ids: int32 or int64 ``[P]``; pair p is query ``pair_query_ids[p]`` and document
            ``pair_document_ids[p]``.
        max_q_len, validate: as ``max_seqlen_q`` and ``validate`` of :func:`maxsim_varlen`; ids are values too.

    Other options and errors are those of :func:`maxsim`.
    """
    problem = packed(ERIK_NAMES, queries, documents, query_offsets, document_offsets, validate)
    problem = listed(ERIK_NAMES, problem, pair_query_ids, pair_document_ids, validate)
    checks.longest("max_q_len", max_q_len, "query_offsets", query_offsets, validate)
    return run(problem, normalize, empty_score, backward, max_q_len, "max_q_len")[0]


def score_pairs_packed_with_argmax(
    queries: Tensor,
    query_offsets: Tensor,
    documents: Tensor,
    document_offsets: Tensor,
    pair_query_ids: Tensor,
    pair_document_ids: Tensor,
    *,
    max_q_len: int | None = None,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`score_pairs_packed`, and the int32 argmax ``[P, max_q_len]`` with -1 where nothing won (Erik).

    The index counts from the start of the document. ``max_q_len`` defaults to the longest query.
    """
    problem = packed(ERIK_NAMES, queries, documents, query_offsets, document_offsets, validate)
    problem = listed(ERIK_NAMES, problem, pair_query_ids, pair_document_ids, validate)
    checks.longest("max_q_len", max_q_len, "query_offsets", query_offsets, validate)
    return run(problem, normalize, empty_score, backward, max_q_len, "max_q_len", with_argmax=True)


# Every function here is differentiable, so Erik's separate training entries are the same functions.
maxsim_padded = score_candidates_padded
score_candidates_padded_train = score_candidates_padded
score_contrastive_train = score_contrastive
score_pairs_packed_train = score_pairs_packed
