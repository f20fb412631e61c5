"""Encoded texts as the kernel reads them: the tokens of all texts end to end, and where each text begins.
The same texts also come padded, which is what eager torch needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Encoded:
    """Texts as a packed batch of their T word pieces: N texts of any length, end to end.

    tokens [T, 384] (unit vectors) and pooled [N, 384] (unit vectors) share a floating-point dtype,
    token_ids [T] is int32, cu_seqlens [N + 1] is int32: text n owns rows cu_seqlens[n] to cu_seqlens[n + 1].
    """

    tokens: Tensor
    token_ids: Tensor
    cu_seqlens: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    def segment(self, index: int) -> slice:
        """Rows of one text in `tokens` and `token_ids`."""
        return slice(int(self.cu_seqlens[index]), int(self.cu_seqlens[index + 1]))

    def to(self, dtype: torch.dtype) -> Encoded:
        """The same texts with embeddings of another dtype."""
        return Encoded(self.tokens.to(dtype), self.token_ids, self.cu_seqlens, self.pooled.to(dtype))

    def padded(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Texts first to last as [n, longest, 384] with zeros at the end, and a mask [n, longest], True for tokens."""
        segments = [self.tokens[self.segment(index)] for index in range(first, last)]
        lengths = torch.tensor([len(segment) for segment in segments])
        return pad_sequence(segments, batch_first=True), torch.arange(int(lengths.max())) < lengths[:, None]
