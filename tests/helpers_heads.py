"""What a head on hidden states has to do anywhere. Queries [3, Lq, d], hidden states [7, Ld, d], weight, bias."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

NEEDED = [(0,), (1,), (2,), (3,), (0, 2), ()]


def assert_only_needed_gradients(m: ModuleType, tensors: Sequence[Tensor], needed: Sequence[int]) -> None:
    leaves = [x.detach().requires_grad_(i in needed) for i, x in enumerate(tensors)]
    got = m.fused_head.maxsim_from_hidden(*leaves)
    assert got.requires_grad == bool(needed)
    if needed:
        got.sum().backward()
    assert [x.grad is not None for x in leaves] == [i in needed for i in range(4)]


def assert_axes_and_nothing(m: ModuleType, tensors: Sequence[Tensor]) -> None:
    """One query or document without its axis, and no documents, no tokens of theirs, no tokens of queries."""
    head = m.fused_head.maxsim_from_hidden
    Q, H, W, b = tensors
    whole = head(Q, H, W, b)
    torch.testing.assert_close(head(Q[0], H, W, b), whole[0])
    torch.testing.assert_close(head(Q, H[1], W, b), whole[:, 1])
    torch.testing.assert_close(head(Q[2], H[1], W, b), whole[2, 1])
    assert head(Q, H[:0], W, b).shape == (3, 0)
    assert head(Q, H[:, :0], W, b).tolist() == [[0.0] * 7] * 3
    assert head(Q[:, :0], H, W, b).tolist() == [[0.0] * 7] * 3
    head(Q, H[:0], W, b).sum().backward()
    assert not W.grad.any() and H.grad.shape == H.shape
