"""MaxSim of documents that are still hidden states: projection, normalisation and scores.
Projections are never all held at once: what the kernels of :mod:`.hidden` do not take is composed a part at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import checks
from . import hidden as kernels
from .problem import dense
from .scoring import maxsim

_BYTES = 32 << 20  # of projected documents at once; they fit a large GPU's L2 cache


def maxsim_from_hidden(
    Q: Tensor,
    H_d: Tensor,
    W: Tensor,
    b: Tensor | None = None,
    d_mask: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """``maxsim(Q, normalize(H_d @ W.T + b))`` without holding the projected documents (LIK).

    Args:
        Q: ``[Nq, Lq, d_out]`` or ``[Lq, d_out]``, projected already, and normalised if it should be.
        H_d: hidden states ``[Nd, Ld, d_model]``, or ``[Ld, d_model]`` for one document.
        W, b: weight ``[d_out, d_model]`` and bias ``[d_out]`` of the projection, as ``torch.nn.Linear`` has them.
        d_mask: as for :func:`maxsim.maxsim`.
        normalize: make unit vectors of the projected tokens, and of them alone.

    Returns:
        float32 scores, shaped as those of :func:`maxsim.maxsim`, and what the composition in its docstring line gives:
        the projection runs in the promoted dtype of ``H_d``, ``W`` and ``b`` (under autocast in autocast's) and rounds
        to it. On a Hopper GPU fp16 and bf16 are rounded once, after normalising, and with up to 128 query tokens no
        projection is written; elsewhere a part of them at a time is. Differentiable in ``Q``, ``H_d``, ``W`` and ``b``;
        the backward pass projects again, a part at a time, and adds up the gradients of ``Q``, ``W`` and ``b`` in
        float32.

    Raises:
        TypeError, ValueError, RuntimeError: an argument does not fit; the message names it.
    """
    checks.flag("normalize", normalize)
    checks.tokens("Q", Q, (2, 3), "[Nq, Lq, d_out] or [Lq, d_out]")
    checks.tokens("H_d", H_d, (2, 3), "[Nd, Ld, d_model] or [Ld, d_model]")
    checks.tokens("W", W, (2,), "[d_out, d_model]")
    wanted = (Q.shape[-1], H_d.shape[-1])
    if W.shape != wanted:
        raise ValueError(f"W must be [d_out, d_model] = {wanted}; got {tuple(W.shape)}")
    if b is not None:
        checks.tokens("b", b, (1,), "[d_out]")
        if b.shape != wanted[:1]:
            raise ValueError(f"b must be [d_out] = [{wanted[0]}]; got {tuple(b.shape)}")
    for name, tensor in (("H_d", H_d), ("W", W), ("b", b)):
        if tensor is not None and tensor.device != Q.device:
            raise RuntimeError(f"{name} must be on the same device as Q, {Q.device}; got {tensor.device}")
    # Checks the mask, and gives it the shape of the tokens; one feature stands for the projected ones.
    mask = dense(Q[..., :1], H_d[..., :1], None, d_mask).document_mask
    hidden = H_d if H_d.dim() == 3 else H_d.unsqueeze(0)
    dtype = torch.promote_types(H_d.dtype, W.dtype if b is None else torch.promote_types(W.dtype, b.dtype))
    device = Q.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        Q = Q.to(dtype)
    with torch.autocast(device, enabled=False):
        W, b = W.to(dtype), None if b is None else b.to(dtype)
        if kernels.takes(hidden, W):
            scores = kernels.score(Q, hidden, W, b, mask, normalize, _BYTES)
        else:
            scores = _FromHidden.apply(Q, hidden, W, b, mask, normalize)
    return scores.squeeze(-1) if H_d.dim() == 2 else scores


def _score(Q: Tensor, hidden: Tensor, W: Tensor, b: Tensor | None, mask: Tensor | None, normalize: bool) -> Tensor:
    documents = functional.linear(hidden.to(W.dtype), W, b)
    if normalize:
        documents = functional.normalize(documents, dim=-1, eps=1e-12)
    return maxsim(Q, documents, d_mask=mask)


class _FromHidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, Q, hidden, W, b, mask, normalize):
        ctx.save_for_backward(Q, hidden, W, b, mask)
        ctx.normalize = normalize
        parts = [
            _score(Q, hidden[part], W, b, None if mask is None else mask[part], normalize) for part in _parts(hidden, W)
        ]
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx, grad_scores):
        Q, hidden, W, b, mask = ctx.saved_tensors
        inputs = {0: Q, 1: hidden, 2: W, 3: b}
        needed = [i for i in inputs if ctx.needs_input_grad[i]]
        sums = {i: torch.zeros_like(inputs[i], dtype=torch.float32) for i in needed if i != 1}
        grad_hidden = torch.empty_like(hidden) if 1 in needed else None
        for part in _parts(hidden, W):
            leaves = [
                x if x is None else x.detach().requires_grad_(i in needed)
                for i, x in enumerate((Q, hidden[part], W, b))
            ]
            with torch.enable_grad():
                scores = _score(*leaves, None if mask is None else mask[part], ctx.normalize)
            grads = torch.autograd.grad(scores, [leaves[i] for i in needed], grad_scores[..., part])
            for i, grad in zip(needed, grads):
                if i == 1:
                    grad_hidden[part] = grad
                else:
                    sums[i] += grad
        gradients = [sums[i].to(inputs[i].dtype) if i in sums else None for i in inputs]
        gradients[1] = grad_hidden
        return (*gradients, None, None)


def _parts(hidden: Tensor, W: Tensor) -> list[slice]:
    """Documents whose projections are held together."""
    return kernels.parts(hidden, hidden.shape[1] * W.shape[0] * W.element_size(), _BYTES)
