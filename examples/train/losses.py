"""The same contrastive loss twice: one call of the kernel, and torch's operations on all similarities."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.02

# Of query and document embeddings and their masks; text i is answered by document i.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def composed(Q: Tensor, D: Tensor, q_mask: Tensor, d_mask: Tensor) -> Tensor:
    Q, D = functional.normalize(Q, dim=-1), functional.normalize(D, dim=-1)
    similarities = torch.einsum("qid,cjd->qcij", Q, D).masked_fill(~d_mask[:, None], -torch.inf)
    best = similarities.max(dim=-1).values.float() * q_mask[:, None]
    scores = best.sum(-1) / q_mask.sum(-1, keepdim=True)
    return functional.cross_entropy(scores / TEMPERATURE, torch.arange(len(Q), device=Q.device))


def fused(kernel: ModuleType) -> Loss:
    def loss(Q: Tensor, D: Tensor, q_mask: Tensor, d_mask: Tensor) -> Tensor:
        return kernel.contrastive_loss(
            Q, D, q_mask, d_mask, normalize=True, mean_over_tokens=True, temperature=TEMPERATURE
        )

    return loss
