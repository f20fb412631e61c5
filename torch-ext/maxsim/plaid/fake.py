"""What tracing needs to know of the ops on compressed documents: the shapes and dtypes that they return."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix


def _documents(codes: Tensor, offsets: Tensor | None) -> int:
    return codes.shape[0] if offsets is None else offsets.shape[0] - 1


@torch.library.register_fake(add_op_namespace_prefix("residual_forward"))
def _residual_forward(
    queries: Tensor,
    codes: Tensor,
    residuals: Tensor,
    document_offsets: Tensor | None,
    document_lengths: Tensor | None,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    pair_queries: Tensor | None,
    *rest: object,
) -> tuple[Tensor, Tensor]:
    if pair_queries is None:
        shape = (queries.shape[0], _documents(codes, document_offsets))
    else:
        shape = tuple(pair_queries.shape)
    argmax_shape = (*shape, queries.shape[1]) if rest[-1] else (0,)
    return queries.new_empty(shape, dtype=torch.float32), queries.new_empty(argmax_shape, dtype=torch.int32)


@torch.library.register_fake(add_op_namespace_prefix("approx_forward"))
def _approx_forward(
    centroid_scores: Tensor,
    codes: Tensor,
    document_offsets: Tensor | None,
    document_lengths: Tensor | None,
    probed: Tensor | None,
) -> Tensor:
    return centroid_scores.new_empty(
        (centroid_scores.shape[0], _documents(codes, document_offsets)), dtype=torch.float32
    )


@torch.library.register_fake(add_op_namespace_prefix("search_forward"))
def _search_forward(by_centroid: Tensor | None, queries: Tensor, *rest: Tensor | float | int) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], rest[-1])
    return queries.new_empty(shape, dtype=torch.float32), queries.new_empty(shape, dtype=torch.int64)
