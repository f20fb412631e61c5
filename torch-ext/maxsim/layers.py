"""Pure modules that ``kernelize`` of the `kernels` package swaps in: no state of their own, one forward each.
A module that is replaced keeps its attributes; the ones that are read here are named in each docstring."""

from __future__ import annotations

from torch import Tensor, nn

from .scoring import maxsim


class MaxSim(nn.Module):
    """:func:`maxsim.maxsim` of what the layer is given."""

    can_torch_compile = True
    has_backward = True

    def forward(self, Q: Tensor, D: Tensor, q_mask: Tensor | None = None, d_mask: Tensor | None = None) -> Tensor:
        return maxsim(Q, D, q_mask, d_mask)


class NormalizedMaxSim(nn.Module):
    """:func:`maxsim.maxsim` of unit vectors."""

    can_torch_compile = True
    has_backward = True

    def forward(self, Q: Tensor, D: Tensor, q_mask: Tensor | None = None, d_mask: Tensor | None = None) -> Tensor:
        return maxsim(Q, D, q_mask, d_mask, normalize=True)


class MaxSimScorer(nn.Module):
    """:class:`maxsim.MaxSimScorer`, or a module of that kind: reads its ``normalize`` and ``backward``."""

    can_torch_compile = True
    has_backward = True
    normalize: bool
    backward: str | None

    def forward(self, Q: Tensor, D: Tensor, q_mask: Tensor | None = None, d_mask: Tensor | None = None) -> Tensor:
        return maxsim(Q, D, q_mask, d_mask, normalize=self.normalize, backward=self.backward)
