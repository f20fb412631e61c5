"""Both sides in eight-bit floats: quantisers with a scale for a tensor, a token or a block of tokens, and scores.
Names and arguments are those of late-interaction-kernels 0.4.5 (LIK); `quantised` has the layouts beyond its own."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .quantised import Quantised, score, score_with_argmax

_DTYPES = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}  # and the largest finite value of each
_LEAST = 1e-6  # no tensor is scaled up further than if this were its largest value


def quantize_fp8_per_tensor(X: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """``X``, whatever its shape, in ``dtype``, and the float32 scale ``[]`` that brings it back (LIK).

    The largest absolute value becomes the largest of ``dtype``, float8_e4m3fn or float8_e5m2. Nothing waits for a GPU.
    """
    largest = _largest(X, dtype)
    peak = X.abs().amax().float() if X.numel() else torch.zeros((), device=X.device)
    scale = peak.clamp_min(_LEAST) / largest
    return _rounded(X, scale, dtype), scale


def quantize_fp8_per_token(X: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """``X [..., d]`` in ``dtype``, and a float32 scale for each token, ``X.shape[:-1]`` (LIK)."""
    largest = _largest(X, dtype)
    scale = X.abs().amax(dim=-1).float().clamp_min(_LEAST) / largest
    return _rounded(X, scale[..., None], dtype), scale


def quantize_fp8_per_block(X: Tensor, block: int, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """``X [..., L, d]`` in ``dtype``, and float32 scales ``[..., ceil(L / block)]``, one for ``block`` neighbours each.

    Fewer scales than tokens: 4 bytes for ``block`` tokens of d bytes. The last block may be shorter.
    """
    largest = _largest(X, dtype)
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block must be an int of at least 1; got {block!r}")
    if X.dim() < 2:
        raise ValueError(f"X must be [..., L, d]; got shape {tuple(X.shape)}")
    peaks = X.abs().amax(dim=-1).float()
    peaks = torch.nn.functional.pad(peaks, (0, -peaks.shape[-1] % block)).unflatten(-1, (-1, block))
    scale = peaks.amax(dim=-1).clamp_min(_LEAST) / largest
    by_token = scale.repeat_interleave(block, dim=-1)[..., : X.shape[-2]]
    return _rounded(X, by_token[..., None], dtype), scale


def dequantize_fp8_per_tensor(X_fp8: Tensor, scale: Tensor) -> Tensor:
    """float32 ``X_fp8 * scale`` for a scale ``[]`` (LIK)."""
    return Quantised(X_fp8, scale).dequantise()


def dequantize_fp8_per_token(X_fp8: Tensor, scale: Tensor) -> Tensor:
    """float32 ``X_fp8 * scale`` for a scale of each token (LIK)."""
    return Quantised(X_fp8, scale).dequantise()


def dequantize_fp8_per_block(X_fp8: Tensor, scale: Tensor, block: int) -> Tensor:
    """float32 ``X_fp8 * scale`` for a scale of each ``block`` tokens."""
    return Quantised(X_fp8, scale, block=block).dequantise()


def maxsim_inference_fp8(
    Q: Tensor,
    D: Tensor,
    *,
    scale_Q: Tensor,
    scale_D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    block_Q: int = 1,
    block_D: int = 1,
    empty_score: float = 0.0,
) -> Tensor:
    """Scores of two sides in the same eight-bit float, as :func:`maxsim.maxsim` has them of floats (LIK).

    Args:
        Q, D: float8_e4m3fn, or float8_e5m2, in the shapes that :func:`maxsim.maxsim` takes.
        scale_Q, scale_D: positive floats, ``[]``, or one for each token, or for each ``block_Q`` or ``block_D``
            neighbouring tokens. Kept in float32 they are read in place.
        q_mask, d_mask, empty_score: as for :func:`maxsim.maxsim`.

    Returns:
        float32 scores of what the tensors stand for. Hopper's tensor cores add products of eight-bit floats in fewer
        bits than float32 has: see docs/quantised.md for the bound. Everywhere else sums are as exact as of floats.

    Raises:
        TypeError, ValueError, RuntimeError: an argument does not fit; the message names it.
    """
    return score(*_sides(Q, D, scale_Q, scale_D, block_Q, block_D), q_mask, d_mask, empty_score=empty_score)


def maxsim_inference_fp8_with_argmax(
    Q: Tensor,
    D: Tensor,
    *,
    scale_Q: Tensor,
    scale_D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    block_Q: int = 1,
    block_D: int = 1,
    empty_score: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim_inference_fp8`, and the int32 argmax ``[*scores.shape, Lq]`` with -1 where nothing won."""
    sides = _sides(Q, D, scale_Q, scale_D, block_Q, block_D)
    return score_with_argmax(*sides, q_mask, d_mask, empty_score=empty_score)


def _sides(
    Q: Tensor, D: Tensor, scale_Q: Tensor, scale_D: Tensor, block_Q: int, block_D: int
) -> tuple[Quantised, Quantised]:
    checks.tokens("Q", Q, (2, 3), "[Nq, Lq, d] or [Lq, d]", tuple(_DTYPES))
    checks.tokens("D", D, (2, 3, 4), "[Nd, Ld, d], [Ld, d] or [Nq, K, Ld, d]", tuple(_DTYPES))
    if Q.dtype is not D.dtype:
        raise TypeError(f"Q and D must have the same dtype; got {Q.dtype} and {D.dtype}")
    return Quantised(Q, scale_Q, block=block_Q), Quantised(D, scale_D, block=block_D)


def _largest(X: Tensor, dtype: torch.dtype) -> float:
    if not isinstance(X, Tensor) or not X.is_floating_point():
        raise TypeError(f"X must be a tensor of floats; got {getattr(X, 'dtype', type(X).__name__)}")
    if dtype not in _DTYPES:
        raise TypeError(f"dtype must be torch.float8_e4m3fn or torch.float8_e5m2; got {dtype}")
    return _DTYPES[dtype]


def _rounded(X: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounding a quotient up may pass the largest value, which would become NaN or infinite."""
    return (X.float() / scale).clamp(-_DTYPES[dtype], _DTYPES[dtype]).to(dtype)
