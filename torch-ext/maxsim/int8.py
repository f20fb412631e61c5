"""Documents in eight-bit integers, with a scale and perhaps a minimum for each token; queries in floats or integers.
Names and arguments are those of flash-maxsim 0.3.0; `quantised` has the layouts beyond its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .quantised import Quantised, score


def quantize_int8(D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Affine: uint8 ``[B, Ld, d]``, and float16 scales and minima ``[B, Ld, 1]``; ``value * scale + minimum`` (flash).

    Values are rounded against the float16 scale and minimum that are returned, so that each is off by at most half a
    scale, or by what float16 rounds off the ends of the row's range.
    """
    _check_floats("D", D)
    wide = D.float()
    minima = wide.amin(dim=-1, keepdim=True).half()
    scales = _half_scales(wide.amax(dim=-1, keepdim=True) - minima.float(), 255)
    values = ((wide - minima.float()) / scales.float()).round().clamp(0, 255).to(torch.uint8)
    return values, scales, minima


def dequantize_int8(D_uint8: Tensor, scales: Tensor, mins: Tensor) -> Tensor:
    """float32 ``D_uint8 * scales + mins`` (flash)."""
    return D_uint8.float() * scales.float() + mins.float()


def quantize_int8_symmetric(D: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric: int8 ``[B, Ld, d]`` from -127 to 127, and float16 scales ``[B, Ld, 1]`` (flash)."""
    _check_floats("D", D)
    scales = _half_scales(D.abs().amax(dim=-1, keepdim=True).float(), 127)
    return (D.float() / scales.float()).round().clamp(-127, 127).to(torch.int8), scales


def dequantize_int8_symmetric(D_int8: Tensor, scales: Tensor) -> Tensor:
    """float32 ``D_int8 * scales``."""
    return D_int8.float() * scales.float()


def quantize_query_int8(Q: Tensor) -> tuple[Tensor, Tensor]:
    """A query ``[Lq, d]``, or a batch of them, as int8 and a float16 scale for each token, ``Q.shape[:-1]`` (flash)."""
    _check_floats("Q", Q)
    values, scales = quantize_int8_symmetric(Q)
    return values, scales.squeeze(-1)


def flash_maxsim_int8(
    Q: Tensor,
    D_uint8: Tensor,
    scales: Tensor,
    mins: Tensor,
    doc_lengths: Tensor | None = None,
    query_chunk_size: int = 128,
) -> Tensor:
    """Scores ``[B]`` of a float query ``[Lq, d]`` against affine documents ``[B, Ld, d]`` (flash).

    Args:
        scales, mins: ``[B, Ld, 1]`` or ``[B, Ld]``, of any float dtype.
        doc_lengths: int32 or int64 ``[B]``, or None for documents without padding.
        query_chunk_size: flash's, and without effect: queries of any length are scored in one call.

    A batch of queries ``[Nq, Lq, d]`` gives ``[Nq, B]``. Errors are those of :func:`maxsim.quantised.score`.
    """
    D = Quantised(D_uint8, _of_tokens(scales, D_uint8), _of_tokens(mins, D_uint8))
    return score(Q, D, document_lengths=doc_lengths)


def flash_maxsim_int8_symmetric(
    Q: Tensor, D_int8: Tensor, scales: Tensor, doc_lengths: Tensor | None = None, query_chunk_size: int = 128
) -> Tensor:
    """Scores ``[B]`` of a float query ``[Lq, d]`` against symmetric documents ``[B, Ld, d]`` (flash).

    Arguments as for :func:`flash_maxsim_int8`.
    """
    return score(Q, Quantised(D_int8, _of_tokens(scales, D_int8)), document_lengths=doc_lengths)


def flash_maxsim_int8x8(
    Q: Tensor,
    D_int8: Tensor,
    d_scales: Tensor,
    Q_int8: Tensor | None = None,
    q_scales: Tensor | None = None,
    doc_lengths: Tensor | None = None,
    query_chunk_size: int = 128,
) -> Tensor:
    """Scores ``[B]`` of a query and documents that are both symmetric int8, multiplied as integers (flash).

    Args:
        Q: the float query ``[Lq, d]``, quantised here unless ``Q_int8`` and ``q_scales`` are given.
        Q_int8, q_scales: what :func:`quantize_query_int8` makes of it; then ``Q`` is not looked at.

    Everything else as for :func:`flash_maxsim_int8`.
    """
    if (Q_int8 is None) != (q_scales is None):
        raise ValueError("Q_int8 and q_scales go together; got one of them")
    if Q_int8 is None:
        Q_int8, q_scales = quantize_query_int8(Q)
    query = Quantised(Q_int8, _of_tokens(q_scales, Q_int8))
    return score(query, Quantised(D_int8, _of_tokens(d_scales, D_int8)), document_lengths=doc_lengths)


def _check_floats(name: str, X: object) -> None:
    if not isinstance(X, Tensor) or not X.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floats; got {getattr(X, 'dtype', type(X).__name__)}")
    if X.dim() == 0 or X.shape[-1] == 0:
        raise ValueError(f"{name} must be [..., d] with at least one feature; got shape {tuple(X.shape)}")


def _half_scales(extent: Tensor, steps: int) -> Tensor:
    """float16 scales that cover ``extent`` in ``steps``, none of them below float16's least positive number."""
    return (extent / steps).clamp_min(2.0**-24).half()


def _of_tokens(factor: Tensor, tokens: Tensor) -> Tensor:
    """flash keeps an axis of one behind the tokens."""
    has_axis = isinstance(factor, Tensor) and factor.dim() == tokens.dim() and factor.shape[-1] == 1
    return factor.squeeze(-1) if has_axis else factor
