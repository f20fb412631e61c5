"""Documents of one bit a feature, 16 bytes a token at d = 128, against float queries or queries of one bit.
A set bit stands for 1, a clear one for -1 (Shen and others, binary token representations, 2019; PLAID's bit order)."""

from __future__ import annotations

from torch import Tensor

from .quantised import Quantised, pack_bits, score, score_with_argmax, unpack_bits

__all__ = ["maxsim_binary", "maxsim_binary_with_argmax", "maxsim_hamming", "pack_bits", "unpack_bits"]


def maxsim_binary(
    Q: Tensor,
    D_bits: Tensor,
    *,
    scale_D: Tensor | None = None,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    cu_seqlens_d: Tensor | None = None,
    empty_score: float = 0.0,
) -> Tensor:
    """Scores of float queries against the signs of documents: ``sum_i max_j <q_i, s_j>`` with ``s_j`` of 1 and -1.

    Args:
        Q: queries as :func:`maxsim.maxsim` takes them.
        D_bits: what :func:`pack_bits` makes of documents, uint8 with ``ceil(d / 8)`` bytes a token.
        scale_D: a positive factor of all tokens ``[]`` or of each: a token's mean absolute feature brings its signs
            closest to it (Rastegari and others, XNOR-Net, 2016).
        q_mask, d_mask, empty_score: as for :func:`maxsim.maxsim`.
        cu_seqlens_d: documents are packed then, ``[total tokens, ceil(d / 8)]``.

    Errors are those of :func:`maxsim.quantised.score`, which has the other layouts.
    """
    D = Quantised(D_bits, scale_D, bits=1)
    return score(Q, D, q_mask, d_mask, cu_seqlens_d=cu_seqlens_d, empty_score=empty_score)


def maxsim_binary_with_argmax(
    Q: Tensor,
    D_bits: Tensor,
    *,
    scale_D: Tensor | None = None,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    cu_seqlens_d: Tensor | None = None,
    empty_score: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim_binary`, and the int32 argmax ``[*scores.shape, Lq]`` with -1 where nothing won."""
    D = Quantised(D_bits, scale_D, bits=1)
    return score_with_argmax(Q, D, q_mask, d_mask, cu_seqlens_d=cu_seqlens_d, empty_score=empty_score)


def maxsim_hamming(
    Q_bits: Tensor,
    D_bits: Tensor,
    dim: int | None = None,
    *,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    cu_seqlens_d: Tensor | None = None,
    empty_score: float = 0.0,
) -> Tensor:
    """Scores where both sides are signs: each similarity is ``dim - 2 * hamming``, from -dim to dim.

    Args:
        Q_bits, D_bits: what :func:`pack_bits` makes of both sides.
        dim: features; all bits unless given, which it must be where d is no multiple of 8.
        q_mask, d_mask, cu_seqlens_d, empty_score: as for :func:`maxsim_binary`.

    The queries are unpacked, which is small beside the documents; integers are multiplied, so scores are exact.
    """
    signs = unpack_bits(Q_bits, dim)
    # Tensor cores multiply halves by signs; other devices have loops for integers.
    Q = signs.half() if signs.is_cuda else Quantised(signs)
    D = Quantised(D_bits, bits=1)
    return score(Q, D, q_mask, d_mask, cu_seqlens_d=cu_seqlens_d, empty_score=empty_score)
