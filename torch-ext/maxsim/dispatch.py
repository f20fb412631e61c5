"""The one corridor of every call: from a filled problem to the op that scores it.
Inference takes the op without an autograd formula, because merely carrying one doubles the cost of a call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from . import _kernels, autograd, checks, paths, reference
from .problem import Problem, argmax_width

BACKWARD_MODES = {None: 0, "auto": 0, "unified": 1, "lowmem": 2}
_HALVES = frozenset((torch.float16, torch.bfloat16))


def common(queries: Tensor, documents: Tensor) -> Tensor | None:
    """The scores of the commonest call, padded 16-bit tokens and no option, for less of the host than :func:`run`.

    None where anything is out of the ordinary. That is asked for in one go; what the op refuses, ``run`` explains.
    """
    if (
        is_compiling()
        or type(queries) is not Tensor
        or type(documents) is not Tensor
        or queries.dtype not in _HALVES
        or documents.dtype not in _HALVES
        or queries.dim() != 3
        or documents.dim() < 3
        or queries.requires_grad
        or documents.requires_grad
        or paths.forced
        or _is_any_autocast_enabled()
        or forward_ad._current_level >= 0
        or peek_interpreter_stack() is not None
    ):
        return None
    try:
        return _kernels.call_plain(queries, documents)
    except RuntimeError:
        return None


def run(
    problem: Problem,
    normalize: bool,
    empty_score: float,
    backward: str | None,
    longest: int | None = None,
    longest_name: str = "",
    with_argmax: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The fp32 scores of ``problem``, and the int32 argmax ``[*scores.shape, width]`` when asked for.

    ``longest`` bounds the packed queries and came in as the argument ``longest_name``.
    """
    # The defaults need no call that finds them right.
    mode = 0 if backward is None else checks.option("backward", backward, BACKWARD_MODES)
    normalize = normalize is not False and checks.flag("normalize", normalize)
    empty_score = empty_score if type(empty_score) is float else checks.number("empty_score", empty_score)
    device = "cuda" if problem.queries.is_cuda else problem.queries.device.type  # which is cheaper to ask
    if device != "meta":  # meta tensors take the ops' fake kernels
        if torch.is_autocast_enabled(device):
            problem = autocast(problem, torch.get_autocast_dtype(device))
        if device not in _kernels.DEVICES:
            width = argmax_width(problem, longest, longest_name) if with_argmax else None
            return reference.score(problem, normalize, empty_score, width)
    tf32 = allow_tf32(problem)
    if with_argmax or differentiable(problem):
        width = argmax_width(problem, longest, longest_name)
        return autograd.forward_argmax(*problem, normalize, empty_score, paths.forced, tf32, width, mode)
    if normalize or empty_score or paths.forced or tf32 or not _bare(problem):
        bound = -1 if longest is None else longest
        return _kernels.forward(*problem, normalize, empty_score, paths.forced, tf32, bound), None
    return _kernels.forward_plain(problem.queries, problem.documents), None


def _bare(problem: Problem) -> bool:
    """Whether the tokens say it all: an op that takes nothing else makes the call cheaper."""
    _, _, a, b, c, d, e, f, g, h = problem
    return a is b is c is d is e is f is g is h is None


def allow_tf32(problem: Problem) -> bool:
    """Whether a kernel may round the operands of ``problem`` to TF32."""
    float32 = torch.float32
    promoted = problem.queries.dtype is float32 or problem.documents.dtype is float32
    return promoted and problem.queries.is_cuda and _allow_tf32()


def _allow_tf32() -> bool:
    """Whether torch multiplies float32 matrices as TF32: then so may the kernel. A compiled graph keeps its answer."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


_allow_tf32._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, without importing the compiler


def differentiable(problem: Problem) -> bool:
    """Whether a gradient may be asked of this call."""
    if torch.is_grad_enabled() and (problem.queries.requires_grad or problem.documents.requires_grad):
        return True
    return forward_ad._current_level >= 0 or autograd.transformed()


def autocast(problem: Problem, dtype: torch.dtype) -> Problem:
    """Both sides in the autocast dtype, as a matrix product would take them."""
    return problem._replace(queries=problem.queries.to(dtype), documents=problem.documents.to(dtype))
