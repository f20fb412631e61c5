"""Lists of token matrices, laid end to end where a library would pad them: fewer copies, and one launch for all.
Zeros that a library pads documents with are tokens to it, so a shorter document gets one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """``tokens [total, d]``, int64 ``offsets [n + 1]`` of the matrices in it, and the length of the longest."""

    tokens: Tensor
    offsets: Tensor
    longest: int


def pack(pieces: Sequence[Tensor], lengths: Sequence[int], device: str | torch.device) -> Packed:
    """Matrices of ``lengths`` rows that ``pieces`` are the rows of, on ``device``."""
    offsets = torch.tensor([0, *accumulate(lengths)])
    return Packed(sent(torch.cat(list(pieces)), device), sent(offsets, device), max(lengths))


def sent(tensor: Tensor, device: str | torch.device) -> Tensor:
    """``tensor``, whose memory is not pinned, on ``device``: CUDA has read such memory when the copy returns."""
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


def zero_ended(documents: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The pieces and lengths of documents that are padded together: the similarity of a zero is 0, however many."""
    lengths = [document.shape[0] for document in documents]
    longest = max(lengths)
    if longest == min(lengths):
        return list(documents), lengths
    zero, pieces = documents[0].new_zeros(1, documents[0].shape[-1]), []
    for i, document in enumerate(documents):
        pieces.append(document)
        if lengths[i] < longest:
            pieces.append(zero)
            lengths[i] += 1
    return pieces, lengths
