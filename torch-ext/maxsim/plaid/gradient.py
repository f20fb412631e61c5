"""The gradient of residual scores in the queries: the documents of an index are frozen.
Only the winners are decompressed again, some documents at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference

if TYPE_CHECKING:
    from .documents import Residuals

_ELEMENTS = 1 << 24  # of decompressed winners at once
_EPS = 1e-12


class Score(torch.autograd.Function):
    """Scores and argmax of the op, differentiable in the queries."""

    @staticmethod
    def forward(
        queries: Tensor,
        documents: Residuals,
        pairs: None,
        normalize_queries: bool,
        normalize_documents: bool,
        empty_score: float,
        path: int,
    ) -> tuple[Tensor, Tensor]:
        from .documents import forward

        return forward(queries, documents, pairs, normalize_queries, normalize_documents, empty_score, path, True)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        queries, documents, _, ctx.normalize_queries, ctx.normalize_documents, *_ = inputs
        ctx.save_for_backward(queries, output[1])
        ctx.documents = documents
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_scores: Tensor, _: Tensor) -> tuple:
        queries, argmax = ctx.saved_tensors
        grad = winners_sum(grad_scores, argmax, ctx.documents, ctx.normalize_documents)
        if ctx.normalize_queries:
            wide = queries.float()
            norm = wide.norm(dim=-1, keepdim=True)
            unit = wide / norm.clamp_min(_EPS)
            along = torch.where(norm > _EPS, (unit * grad).sum(-1, keepdim=True), 0.0)
            grad = (grad - unit * along) / norm.clamp_min(_EPS)
        return (grad.to(queries.dtype), *[None] * 6)


def winners_sum(grad_scores: Tensor, argmax: Tensor, documents: Residuals, normalize: bool) -> Tensor:
    """``[Nq, Lq, d]``: the sum over documents of a score's gradient times the winner of each query token."""
    queries, count, width = argmax.shape
    dim = documents.centroids.shape[1]
    total = torch.zeros(queries, width, dim, device=argmax.device)
    if documents.offsets is None:
        first = torch.arange(count, device=argmax.device) * documents.codes.shape[1]
    else:
        first = documents.offsets[:-1].long()
    codes, residuals = documents.codes.reshape(-1), documents.residuals.flatten(0, -2)
    if codes.dtype is torch.uint16:  # not every device indexes it
        codes = codes.int()
    if codes.numel() == 0:
        return total
    step = max(1, _ELEMENTS // max(1, queries * width * dim))
    for start in range(0, count, step):
        part = slice(start, start + step)
        winners = argmax[:, part]
        factors = torch.where(winners >= 0, grad_scores[:, part, None].float(), 0.0)
        rows = torch.where(winners >= 0, first[part, None] + winners, 0)
        tokens = reference.decompress(
            codes[rows],
            residuals[rows],
            documents.centroids,
            documents.bucket_weights,
            documents.nbits,
            normalize,
        )
        total += torch.einsum("ijl,ijld->ild", factors, tokens)
    return total
