"""What differentiation needs to know of the ops: the gradient of one, and that the other has none.
The forward pass saves one int32 per query token and pair; the backward pass follows it to the winners."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _kernels, vmap
from ._ops import add_op_namespace_prefix
from .problem import Problem

_ARGUMENTS = len(Problem._fields)
_LOWMEM = 2  # sums owned by their destination, so bitwise reproducible


def transformed() -> bool:
    """Whether a torch.func transform is active.

    It differentiates only a ``torch.autograd.Function``, and inside it ``requires_grad`` is not to be trusted.
    """
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def forward_argmax(*arguments: object) -> tuple[Tensor, Tensor]:
    """The differentiable op, in the form that a trace or an active transform understands, or else the cheapest one."""
    refuse_tangents(arguments)
    if torch.compiler.is_compiling():
        return _kernels.forward_argmax(*arguments)
    if transformed():
        return _ForwardArgmax.apply(*arguments)
    return _EagerForwardArgmax.apply(arguments[0], arguments[1], arguments)


def backward(*arguments: object) -> tuple[Tensor, Tensor]:
    """The gradient op, in the form that an active transform understands."""
    refuse_tangents(arguments)
    return _Backward.apply(*arguments) if transformed() else _kernels.backward(*arguments)


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    problem, (normalize, _, path, _, _, backward_mode) = inputs[:_ARGUMENTS], inputs[_ARGUMENTS:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *problem)
    ctx.normalize, ctx.path, ctx.backward_mode = normalize, path, backward_mode


def _gradients(ctx, grad_scores: Tensor | None, backward: Callable = backward) -> tuple[Tensor | None, Tensor | None]:
    if grad_scores is None:
        return None, None
    argmax, *problem = ctx.saved_tensors
    need_queries, need_documents = ctx.needs_input_grad[:2]
    mode = _LOWMEM if torch.are_deterministic_algorithms_enabled() else ctx.backward_mode
    grad_queries, grad_documents = backward(
        grad_scores, argmax, *problem, ctx.normalize, need_queries, need_documents, mode, ctx.path
    )
    return grad_queries if need_queries else None, grad_documents if need_documents else None


def _differentiate(ctx, grad_scores: Tensor | None, _: Tensor | None) -> tuple:
    return *_gradients(ctx, grad_scores), *((None,) * (_ARGUMENTS + 4))


def refuse(*_: object) -> None:
    raise RuntimeError(
        "maxsim has first derivatives in reverse mode only: its gradient cannot be differentiated again, nor its score "
        "in forward mode; the functions of maxsim.reference can be"
    )


def refuse_tangents(arguments: tuple[object, ...]) -> None:
    """Outside torch.func, forward mode would silently see a constant."""
    if forward_ad._current_level >= 0 and any(
        isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None for value in arguments
    ):
        refuse()


torch.library.register_autograd(add_op_namespace_prefix("forward_argmax"), _differentiate, setup_context=_save)
torch.library.register_autograd(add_op_namespace_prefix("backward"), refuse)


class _EagerForwardArgmax(torch.autograd.Function):
    """A third of what the op's own formula costs the host: its arguments come in one piece beside the two that may
    need a gradient, and the ops are not asked for formulas of theirs."""

    @staticmethod
    def forward(ctx, queries: Tensor, documents: Tensor, arguments: tuple) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output = _kernels.forward_argmax(*arguments)
        _save(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx, grad_scores: Tensor | None, _: Tensor | None) -> tuple:
        if torch.is_grad_enabled():  # a graph of the gradient is made, which must know that it ends here
            return *_gradients(ctx, grad_scores), None
        with torch._C._AutoDispatchBelowAutograd():
            return *_gradients(ctx, grad_scores, _kernels.backward), None


class _ForwardArgmax(torch.autograd.Function):
    forward = staticmethod(forward_argmax)
    setup_context = staticmethod(_save)
    backward = staticmethod(_differentiate)
    jvp = staticmethod(refuse)

    @staticmethod
    def vmap(info, in_dims: tuple, *arguments: object) -> tuple:
        return vmap.forward_argmax(forward_argmax, info.batch_size, in_dims, arguments)


class _Backward(torch.autograd.Function):
    forward = staticmethod(backward)
    backward = staticmethod(refuse)
    jvp = staticmethod(refuse)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        """Nothing to save: there is no second derivative."""

    @staticmethod
    def vmap(info, in_dims: tuple, *arguments: object) -> tuple:
        return vmap.each(backward, info.batch_size, in_dims, arguments)
