"""Scores of documents stored in eight bits a feature or one: every layout, with masks, lengths and argmax.
The formats are made by `fp8`, `int8` and `binary`; what they share is here. Inference only."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from . import _kernels, checks, fake, paths, reference  # noqa: F401  fake registers with the ops
from .layouts import fill
from .problem import Problem, argmax_width
from .retrieval import named_pairs

QUERY_DTYPES = (*checks.KERNEL_DTYPES, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


class Quantised(NamedTuple):
    """Tokens as they are stored, and what the stored values stand for: ``values * scale + minimum``.

    ``values`` is ``[..., L, d]`` in float8_e4m3fn, float8_e5m2, int8 or uint8. With ``bits=1`` it is uint8
    ``[..., L, ceil(d / 8)]``: eight features to a byte, the first in the lowest bit, where 1 stands for 1 and 0 for -1.

    ``scale`` and ``minimum`` are floats, ``[]`` for all tokens or ``values.shape[:-1]`` with one for each. With
    ``block > 1`` each entry serves that many neighbours along ``L``, the last one those that are left. Scales must be
    positive; None stands for 1 and for 0. Kept in float32 they are read in place; each call widens other dtypes.
    """

    values: Tensor
    scale: Tensor | None = None
    minimum: Tensor | None = None
    block: int = 1
    bits: int = 8

    def dequantise(self, dim: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tokens ``[..., L, d]`` that are stored; ``dim`` cuts off the bits that fill up a byte."""
        values = unpack_bits(self.values, dim) if self.bits == 1 else self.values
        tokens = values.to(dtype)
        if self.scale is not None:
            tokens = tokens * self._by_token(self.scale, dtype)
        return tokens if self.minimum is None else tokens + self._by_token(self.minimum, dtype)

    def _by_token(self, factor: Tensor, dtype: torch.dtype) -> Tensor:
        if factor.dim() and self.block > 1:
            factor = factor.repeat_interleave(self.block, dim=-1)[..., : self.values.shape[-2]]
        return factor.to(dtype)[..., None] if factor.dim() else factor.to(dtype)


def pack_bits(X: Tensor) -> Tensor:
    """One bit a feature, uint8 ``[..., ceil(d / 8)]``: whether it is above 0, the first of eight in the lowest bit."""
    if not isinstance(X, Tensor) or X.dim() == 0:
        raise ValueError(f"X must be [..., d]; got {type(X).__name__}")
    signs = torch.nn.functional.pad((X > 0).to(torch.uint8), (0, -X.shape[-1] % 8))
    places = torch.arange(8, dtype=torch.uint8, device=X.device)
    return (signs.unflatten(-1, (-1, 8)) << places).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, dim: int | None = None) -> Tensor:
    """int8 ``[..., dim]`` of 1 where a bit is set and -1 elsewhere; ``dim`` defaults to all bits."""
    if not isinstance(packed, Tensor) or packed.dtype is not torch.uint8:
        raise TypeError(f"packed must be uint8; got {getattr(packed, 'dtype', type(packed).__name__)}")
    if dim is not None and -(-dim // 8) != packed.shape[-1]:
        raise ValueError(f"dim must fit {packed.shape[-1]} bytes a token; got {dim}")
    # Few operations, because for a query's few bytes launching them is all that takes time: each bit becomes a sign,
    # and what is shifted out from under it -1 or 0.
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    minus = (packed[..., None] << places).view(torch.int8) >> 7
    return torch.rsub(minus, -1, alpha=2).flatten(-2)[..., :dim]


def score(
    Q: Tensor | Quantised,
    D: Quantised,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    query_lengths: Tensor | None = None,
    document_lengths: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_d: Tensor | None = None,
    pair_q_idx: Tensor | None = None,
    pair_d_idx: Tensor | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> Tensor:
    """Scores of every layout of :mod:`maxsim` where the documents are quantised.

    Args:
        Q: queries as :func:`maxsim.maxsim` takes them, float16, bfloat16 or float32, or quantised too (not with a
            minimum, not to one bit).
        D: documents ``[Nd, Ld, d]``, ``[Ld, d]`` or each query's own ``[Nq, K, Ld, d]``; ``[B, 1, Ld, d]`` pairs row
            with row.
        q_mask, d_mask: as for :func:`maxsim.maxsim`, over the token shapes.
        query_lengths, document_lengths: int32 or int64 prefix lengths of padded sides, one for each segment.
        cu_seqlens_q, cu_seqlens_d: int32 or int64 ``[segments + 1]``; that side is packed then, ``[total tokens, d]``.
        pair_q_idx, pair_d_idx: int32 or int64 ``[P]``: the listed pairs alone, not with each query's own documents.
        empty_score: the score of a document without a kept token.
        validate: check lengths, offsets and ids on an accelerator too, which synchronises. Unchecked, wrong ones make
            the scores they belong to NaN.

    Returns:
        float32 scores, ``[P]``, ``[Nq, K]`` or ``[Nq, Nd]``, without the axes that 2-D inputs do not have: what the
        dequantised tensors score. There is no gradient.

    Raises:
        TypeError, ValueError, RuntimeError: an argument does not fit; the message names it.
    """
    offsets, pairs, lengths = (cu_seqlens_q, cu_seqlens_d), (pair_q_idx, pair_d_idx), (query_lengths, document_lengths)
    problem, scales = _fill(Q, D, (q_mask, d_mask), offsets, pairs, lengths, validate)
    scores, _ = _run(problem, scales, D, empty_score, -1)
    return _without_axes(scores, Q, D, offsets, pair_q_idx)


def score_with_argmax(
    Q: Tensor | Quantised,
    D: Quantised,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    query_lengths: Tensor | None = None,
    document_lengths: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_d: Tensor | None = None,
    pair_q_idx: Tensor | None = None,
    pair_d_idx: Tensor | None = None,
    max_seqlen_q: int | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`score`, and the int32 argmax ``[*scores.shape, Lq]`` with -1 where nothing won.

    The index counts from the start of the document. Packed queries have ``max_seqlen_q`` slots, by default as many as
    the longest has tokens, which costs an accelerator one synchronisation.
    """
    offsets, pairs, lengths = (cu_seqlens_q, cu_seqlens_d), (pair_q_idx, pair_d_idx), (query_lengths, document_lengths)
    problem, scales = _fill(Q, D, (q_mask, d_mask), offsets, pairs, lengths, validate)
    if max_seqlen_q is not None and cu_seqlens_q is not None:
        checks.longest("max_seqlen_q", max_seqlen_q, "cu_seqlens_q", cu_seqlens_q, validate)
    width = argmax_width(problem, max_seqlen_q, "max_seqlen_q")
    results = _run(problem, scales, D, empty_score, width)
    return tuple(_without_axes(x, Q, D, offsets, pair_q_idx) for x in results)


def score_ids(
    Q: Tensor | Quantised,
    D: Quantised,
    ids: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    cu_seqlens_d: Tensor | None = None,
    empty_score: float = 0.0,
    missing_score: float = float("-inf"),
    validate: bool = False,
) -> Tensor:
    """Scores ``[Nq, K]`` of each query ``[Nq, Lq, d]`` against the documents that ``ids`` names, where they lie.

    ``ids`` and ``missing_score`` are those of :func:`maxsim.score_ids`, everything else is as for :func:`score`.
    """
    missing_score = checks.number("missing_score", missing_score)
    none = (None, None)
    problem, scales = _fill(Q, D, (q_mask, d_mask), (None, cu_seqlens_d), none, none, validate)
    if _values(Q).dim() != 3:
        raise ValueError(f"Q must be [Nq, Lq, d]; got shape {tuple(_values(Q).shape)}")
    if D.values.dim() == 4:
        raise ValueError(f"D must be documents that all queries share; got each query's own, {tuple(D.values.shape)}")
    problem, missing = named_pairs(problem, ids, validate)
    if missing is None:
        return torch.full(ids.shape, missing_score, device=problem.queries.device)
    scores, _ = _run(problem, scales, D, empty_score, -1)
    return scores.view(ids.shape).masked_fill(missing, missing_score)


class _Scales(NamedTuple):
    """The factors of both sides, as the op takes them."""

    query: Tensor | None
    document: Tensor | None
    minimum: Tensor | None
    query_block: int


def _values(side: Tensor | Quantised) -> Tensor:
    return side.values if isinstance(side, Quantised) else side


_Two = tuple[Optional[Tensor], Optional[Tensor]]


def _fill(
    Q: Tensor | Quantised, D: Quantised, masks: _Two, offsets: _Two, pairs: _Two, lengths: _Two, validate: bool
) -> tuple[Problem, _Scales]:
    """The problem of a public function's arguments, the query's before the document's, and its factors."""
    if not isinstance(D, Quantised):
        raise TypeError(f"D must be a maxsim.quantised.Quantised; got {type(D).__name__}")
    if D.bits not in (1, 8):
        raise ValueError(f"D.bits must be 1 or 8; got {D.bits!r}")
    query = Q if isinstance(Q, Quantised) else Quantised(Q)
    if query.minimum is not None or query.bits != 8:
        raise ValueError("Q must be quantised without a minimum, in eight bits a feature")
    if isinstance(Q, Tensor) and torch.is_grad_enabled() and Q.requires_grad:
        raise ValueError("Q must not require a gradient: scores of quantised documents have none; got requires_grad")
    problem = fill(
        query.values,
        D.values,
        *masks,
        *offsets,
        *pairs,
        validate,
        dtypes=QUERY_DTYPES,
        document_dtypes=(torch.uint8,) if D.bits == 1 else checks.STORED_DTYPES,
        document_bits=D.bits,
    )
    for side, name, given, tokens, offset in (
        ("query_lengths", "Q", lengths[0], problem.queries, offsets[0]),
        ("document_lengths", "D", lengths[1], problem.documents, offsets[1]),
    ):
        if given is None:
            continue
        if offset is not None:
            raise ValueError(f"{side} go with padded tokens; got cu_seqlens_{name.lower()} too")
        checks.lengths(side, given, name, tokens, validate)
        problem = problem._replace(**{side: given})
    return problem, _Scales(
        _factor("Q.scale", query.scale, query, problem.queries),
        _factor("D.scale", D.scale, D, problem.documents),
        _factor("D.minimum", D.minimum, D, problem.documents),
        query.block,
    )


def _factor(name: str, factor: Tensor | None, side: Quantised, tokens: Tensor) -> Tensor | None:
    """A side's factor over the tokens of the problem, in float32."""
    if factor is None:
        return None
    if isinstance(side.block, bool) or not isinstance(side.block, int) or side.block < 1:
        raise ValueError(f"{name[0]}.block must be an int of at least 1; got {side.block!r}")
    checks.factor(name, factor, name[0], tuple(side.values.shape[:-1]), side.block, side.values)
    if factor.dim() and side.values.dim() < tokens.dim():
        factor = factor.unsqueeze(0)
    return factor.float()


def _run(
    problem: Problem, scales: _Scales, D: Quantised, empty_score: float, width: int
) -> tuple[Tensor, Tensor | None]:
    empty_score = checks.number("empty_score", empty_score)
    device = problem.queries.device.type
    if device not in _kernels.DEVICES and device != "meta":
        queries = Quantised(problem.queries, scales.query, block=scales.query_block).dequantise()
        documents = Quantised(problem.documents, scales.document, scales.minimum, D.block, D.bits)
        documents = documents.dequantise(queries.shape[-1])
        problem = problem._replace(queries=queries, documents=documents)
        return reference.score(problem, False, empty_score, None if width < 0 else width)
    return _kernels.quantised_forward(
        *problem,
        scales.query,
        scales.document,
        scales.minimum,
        scales.query_block,
        D.block,
        D.bits,
        empty_score,
        paths.forced,
        width,
    )


def _without_axes(
    result: Tensor,
    Q: Tensor | Quantised,
    D: Quantised,
    offsets: _Two,
    pairs: Tensor | None,
) -> Tensor:
    if pairs is not None:
        return result
    if offsets[1] is None and D.values.dim() == 2:
        result = result.squeeze(1)
    return result.squeeze(0) if offsets[0] is None and _values(Q).dim() == 2 else result
