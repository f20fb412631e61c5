"""What tracing needs to know of the ops: the shapes and dtypes that they return.
It serves torch.compile, torch.export and meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .problem import Problem, scores_shape

_ARGUMENTS = len(Problem._fields)


@torch.library.register_fake(add_op_namespace_prefix("forward"))
def _forward(*arguments: object) -> Tensor:
    problem = Problem(*arguments[:_ARGUMENTS])
    return problem.queries.new_empty(scores_shape(problem), dtype=torch.float32)


@torch.library.register_fake(add_op_namespace_prefix("forward_plain"))
def _forward_plain(queries: Tensor, documents: Tensor) -> Tensor:
    return _forward(queries, documents, *[None] * (_ARGUMENTS - 2))


@torch.library.register_fake(add_op_namespace_prefix("forward_argmax"))
def _forward_argmax(*arguments: object) -> tuple[Tensor, Tensor]:
    problem, argmax_width = Problem(*arguments[:_ARGUMENTS]), arguments[_ARGUMENTS + 4]
    shape = scores_shape(problem)
    new_empty = problem.queries.new_empty
    return new_empty(shape, dtype=torch.float32), new_empty((*shape, argmax_width), dtype=torch.int32)


@torch.library.register_fake(add_op_namespace_prefix("quantised_forward"))
def _quantised_forward(*arguments: object) -> tuple[Tensor, Tensor]:
    problem, argmax_width = Problem(*arguments[:_ARGUMENTS]), arguments[-1]
    shape = scores_shape(problem)
    new_empty = problem.queries.new_empty
    slots = (0,) if argmax_width < 0 else (*shape, argmax_width)
    return new_empty(shape, dtype=torch.float32), new_empty(slots, dtype=torch.int32)


@torch.library.register_fake(add_op_namespace_prefix("backward"))
def _backward(grad_scores: Tensor, argmax: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    problem = Problem(*arguments[:_ARGUMENTS])
    need_queries, need_documents = arguments[_ARGUMENTS + 1 : _ARGUMENTS + 3]
    return (
        problem.queries.new_empty(problem.queries.shape if need_queries else (0,)),
        problem.documents.new_empty(problem.documents.shape if need_documents else (0,)),
    )
