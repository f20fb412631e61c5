"""MaxSim with a soft maximum, ``tau * logsumexp(s / tau)``, in place of the maximum: every document token has a share.
The forward pass saves one float for each query token and pair; from it the backward pass computes the shares again."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _kernels, autograd, checks, paths, reference, vmap
from ._ops import add_op_namespace_prefix
from .dispatch import autocast, differentiable
from .problem import Problem, candidates, dense, scores_shape, unbatched

_ARGUMENTS = len(Problem._fields)


def soft_maxsim(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    tau: float = 0.1,
    normalize: bool = False,
    empty_score: float = 0.0,
) -> Tensor:
    """``sum_i tau * logsumexp_j(<q_i, d_j> / tau)``, differentiable: colpali-engine's ``use_smooth_max``.

    It approaches :func:`maxsim.maxsim` from above as ``tau`` falls, and its gradient reaches every document token, in
    proportion to ``softmax_j(<q_i, d_j> / tau)``.

    Args:
        Q, D, q_mask, d_mask: as for :func:`maxsim.maxsim`, in all its pairings.
        tau: the temperature, in similarity; more than 0.
        normalize, empty_score: as for :func:`maxsim.maxsim`.

    Returns:
        float32 scores, shaped as those of :func:`maxsim.maxsim`. A NaN in a kept token makes its scores NaN, and a
        query token whose soft maximum is not finite has a gradient of NaN. Gradients are bitwise reproducible.

    Raises:
        TypeError, ValueError, RuntimeError: an argument does not fit; the message names it.
    """
    return unbatched(_run(dense(Q, D, q_mask, d_mask), tau, normalize, empty_score), Q, D)


def soft_maxsim_padded(
    queries: Tensor,
    documents: Tensor,
    query_lengths: Tensor,
    doc_lengths: Tensor,
    *,
    tau: float = 0.1,
    normalize: bool = False,
    empty_score: float = 0.0,
    validate: bool = False,
) -> Tensor:
    """:func:`soft_maxsim` of each query and its own candidates, as :func:`maxsim.maxsim_padded` takes them."""
    problem = candidates(queries, documents, query_lengths, doc_lengths, validate)
    return _run(problem, tau, normalize, empty_score)


def _run(problem: Problem, tau: float, normalize: bool, empty_score: float) -> Tensor:
    tau = checks.positive("tau", tau)
    normalize = checks.flag("normalize", normalize)
    empty_score = checks.number("empty_score", empty_score)
    device = problem.queries.device.type
    if device != "meta":
        if torch.is_autocast_enabled(device):
            problem = autocast(problem, torch.get_autocast_dtype(device))
        if device not in _kernels.DEVICES:
            return reference.soft_score(problem, tau, normalize, empty_score)
    options = (tau, normalize, empty_score, paths.forced)
    if not differentiable(problem):
        return _kernels.soft_forward(*problem, *options)
    arguments = (*problem, *options, problem.queries.shape[1])
    autograd.refuse_tangents(arguments)
    return (_SoftForward.apply if autograd.transformed() else _kernels.soft_forward_parts)(*arguments)[0]


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *inputs[:_ARGUMENTS])
    ctx.options = inputs[_ARGUMENTS:]


def _differentiate(ctx, grad_scores: Tensor | None, _: Tensor | None) -> tuple:
    rest = (None,) * (_ARGUMENTS + 3)
    if grad_scores is None:
        return None, None, *rest
    parts, *problem = ctx.saved_tensors
    tau, normalize, _, path, _ = ctx.options
    needed = ctx.needs_input_grad[:2]
    gradients = _backward(grad_scores, parts, *problem, tau, normalize, *needed, path)
    return (*(gradient if need else None for gradient, need in zip(gradients, needed)), *rest)


def _backward(*arguments: object) -> tuple[Tensor, Tensor]:
    autograd.refuse_tangents(arguments)
    return (_SoftBackward.apply if autograd.transformed() else _kernels.soft_backward)(*arguments)


torch.library.register_autograd(add_op_namespace_prefix("soft_forward_parts"), _differentiate, setup_context=_save)
torch.library.register_autograd(add_op_namespace_prefix("soft_backward"), autograd.refuse)


class _SoftForward(torch.autograd.Function):
    forward = staticmethod(lambda *arguments: _kernels.soft_forward_parts(*arguments))
    setup_context = staticmethod(_save)
    backward = staticmethod(_differentiate)
    jvp = staticmethod(autograd.refuse)

    @staticmethod
    def vmap(info, in_dims: tuple, *arguments: object) -> tuple:
        return vmap.each(_SoftForward.apply, info.batch_size, in_dims, arguments)


class _SoftBackward(torch.autograd.Function):
    forward = staticmethod(lambda *arguments: _kernels.soft_backward(*arguments))
    backward = staticmethod(autograd.refuse)
    jvp = staticmethod(autograd.refuse)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        """Nothing to save: there is no second derivative."""

    @staticmethod
    def vmap(info, in_dims: tuple, *arguments: object) -> tuple:
        return vmap.each(_SoftBackward.apply, info.batch_size, in_dims, arguments)


@torch.library.register_fake(add_op_namespace_prefix("soft_forward"))
def _(*arguments: object) -> Tensor:
    problem = Problem(*arguments[:_ARGUMENTS])
    return problem.queries.new_empty(scores_shape(problem), dtype=torch.float32)


@torch.library.register_fake(add_op_namespace_prefix("soft_forward_parts"))
def _(*arguments: object) -> tuple[Tensor, Tensor]:
    problem, width = Problem(*arguments[:_ARGUMENTS]), arguments[-1]
    shape = scores_shape(problem)
    new_empty = problem.queries.new_empty
    return new_empty(shape, dtype=torch.float32), new_empty((*shape, width), dtype=torch.float32)


@torch.library.register_fake(add_op_namespace_prefix("soft_backward"))
def _(grad_scores: Tensor, parts: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    problem = Problem(*arguments[:_ARGUMENTS])
    needed = arguments[_ARGUMENTS + 2 : _ARGUMENTS + 4]
    sides = (problem.queries, problem.documents)
    return tuple(side.new_empty(side.shape if need else (0,)) for side, need in zip(sides, needed))
