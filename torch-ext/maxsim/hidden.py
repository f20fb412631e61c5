"""Hidden states that kernels of their own project, normalise and score, and the gradient of that.
What they do not take, :mod:`.fused_head` composes of torch's matrix product and the kernels for projected documents."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _kernels, paths
from ._ops import add_op_namespace_prefix

_SM90 = 18  # the one path that has them
_MOST_FEATURES = 128
# Winners of a document up to which a matrix of which of them are the same token costs next to nothing, and tokens from
# which on it pays to pass over all others: below, launching a dozen kernels more takes longer.
_FEW_WINNERS, _MANY_TOKENS = 256, 1 << 19


def takes(hidden: Tensor, W: Tensor) -> bool:
    """Whether the kernels project ``hidden`` by ``W``. Where their dtypes differ, a part is converted at a time."""
    d_out, d_model = W.shape
    return (
        hidden.device.type in _kernels.HIDDEN_DEVICES
        and paths.forced in (0, _SM90)
        and torch.cuda.get_device_capability(hidden.device)[0] == 9
        and W.dtype in (torch.float16, torch.bfloat16)
        and d_out % 8 == 0
        and d_out <= _MOST_FEATURES
        and d_model % 8 == 0
        and hidden.is_contiguous()
        and hidden.numel() // d_model < 2**31 - 64
    )


def parts(hidden: Tensor, bytes_each: int, budget: int) -> list[slice]:
    """Documents that are worked on together, ``bytes_each`` of them within ``budget``; one part, of none, of none."""
    step = max(1, budget // max(1, bytes_each))
    return [slice(first, first + step) for first in range(0, max(1, hidden.shape[0]), step)]


class FromHidden(torch.autograd.Function):
    """Scores ``[*, Nq, Nd]`` of ``Q`` against the normalised projections of ``hidden [Nd, Ld, d_model]``.

    ``budget`` bounds the bytes of what is held for one part of the documents and not returned.
    """

    @staticmethod
    def forward(ctx, Q, hidden, W, b, mask, normalize, budget):
        needs = any(ctx.needs_input_grad)
        queries = Q if Q.dim() == 3 else Q.unsqueeze(0)
        found = [
            _kernels.hidden_forward(
                queries,
                hidden[part].to(W.dtype),
                W,
                b,
                None if mask is None else mask[part],
                normalize,
                needs,
                budget,
            )
            for part in _converted(hidden, W, budget)
        ]
        scores, argmax = found[0] if len(found) == 1 else [torch.cat(x, dim=1) for x in zip(*found)]
        if needs:
            ctx.save_for_backward(Q, hidden, W, b, argmax)
            ctx.normalize, ctx.budget = normalize, budget
        return scores if Q.dim() == 3 else scores.squeeze(0)

    @staticmethod
    def backward(ctx, grad_scores):
        Q, hidden, W, b, argmax = ctx.saved_tensors
        queries = Q if Q.dim() == 3 else Q.unsqueeze(0)
        gradients = _Gradients(queries, hidden, W, b, ctx.needs_input_grad)
        if argmax.numel() and hidden.numel():
            grad_scores = grad_scores.reshape(argmax.shape[:2])
            winners = argmax.shape[0] * argmax.shape[2]
            many = hidden.shape[0] * hidden.shape[1] >= _MANY_TOKENS
            few = many and winners <= _FEW_WINNERS and 2 * winners <= hidden.shape[1]
            step = _from_winners if few else _from_documents
            # What a part holds: its winners' hidden states, or its documents' projections.
            held = winners * W.shape[1] if few else hidden.shape[1] * W.shape[0]
            size = held * W.element_size()
            pieces = parts(hidden, size, budget=2 * ctx.budget) if few else _converted(hidden, W, ctx.budget, size)
            for part in pieces:
                step(gradients, part, grad_scores[:, part], argmax[:, part], ctx.normalize)
        return (*gradients.result(Q), None, None, None)


def _converted(hidden: Tensor, W: Tensor, budget: int, bytes_each: int = 0) -> list[slice]:
    """Parts that share a converted copy of their hidden states, where those have another dtype, or else everything."""
    if hidden.dtype != W.dtype:
        bytes_each = max(bytes_each, hidden.shape[1] * hidden.shape[2] * W.element_size())
    return parts(hidden, bytes_each, budget) if bytes_each else [slice(None)]


class _Gradients:
    """What is needed of the four gradients. Those that documents add to are summed in float32."""

    def __init__(self, queries: Tensor, hidden: Tensor, W: Tensor, b: Tensor | None, needed: tuple) -> None:
        self.queries, self.hidden, self.W, self.b = queries, hidden, W, b
        self.need_queries, self.need_hidden, self.need_weight, self.need_bias = needed[:4]
        sums = ((queries, self.need_queries), (W, self.need_weight), (b, self.need_bias))
        self.of_queries, self.of_weight, self.of_bias = (
            torch.zeros_like(like, dtype=torch.float32) if need else None for like, need in sums
        )
        self.of_hidden = torch.zeros_like(hidden) if self.need_hidden else None

    def add(self, rows: Tensor, hidden: Tensor) -> None:
        """Gradients ``[n, d_out]`` of unnormalised projections of ``hidden [n, d_model]``."""
        if self.need_weight:
            self.of_weight += torch.mm(rows.t(), hidden, out_dtype=torch.float32)
        if self.need_bias:
            self.of_bias += rows.sum(0, dtype=torch.float32)

    def result(self, Q: Tensor) -> tuple[Tensor | None, ...]:
        sums = ((self.of_queries, Q), (self.of_weight, self.W), (self.of_bias, self.b))
        of_queries, of_weight, of_bias = (x if x is None else x.to(like.dtype).view_as(like) for x, like in sums)
        return of_queries, self.of_hidden, of_weight, of_bias


def _from_documents(to: _Gradients, part: slice, grad_scores: Tensor, argmax: Tensor, normalize: bool) -> None:
    """Every token of the part is projected again, and has a gradient."""
    hidden = to.hidden[part].to(to.W.dtype)
    projected, factors = _kernels.hidden_project(hidden, to.W, to.b, normalize)
    need_projected = to.need_hidden or to.need_weight or to.need_bias
    of_queries, rows = _kernels.backward(
        grad_scores,
        argmax,
        to.queries,
        projected,
        *(None,) * 8,
        False,
        to.need_queries,
        need_projected,
        0,
        paths.forced,
    )
    if to.need_queries:
        to.of_queries += of_queries
    if not need_projected:
        return
    if normalize:
        rows = _kernels.hidden_chain(rows, projected, factors)
    rows = rows.flatten(0, 1)
    if to.need_hidden:
        own = to.of_hidden[part].flatten(0, 1)
        if own.dtype == rows.dtype:
            torch.mm(rows, to.W, out=own)
        else:
            own.copy_(rows @ to.W)
    to.add(rows, hidden.flatten(0, 1))


def _from_winners(to: _Gradients, part: slice, grad_scores: Tensor, argmax: Tensor, normalize: bool) -> None:
    """The few tokens that won are gathered and projected again; no other has a gradient."""
    hidden, (length, d_model), d_out = to.hidden[part], to.hidden.shape[1:], to.W.shape[0]
    documents = hidden.shape[0]
    argmax = argmax.transpose(0, 1).contiguous()  # [documents, Nq, Lq]
    tokens = argmax.clamp_min(0).reshape(documents, -1)
    rows = (tokens + torch.arange(0, documents * length, length, device=tokens.device)[:, None]).flatten()
    won = hidden.view(-1, d_model).index_select(0, rows).to(to.W.dtype)
    projected, factors = _kernels.hidden_project(won.unsqueeze(0), to.W, to.b, normalize)
    weight = (argmax >= 0).mul(grad_scores.t().unsqueeze(-1)).unsqueeze(-1)
    if to.need_queries:
        to.of_queries += (weight * projected.view(*argmax.shape, d_out)).sum(0)
    if not (to.need_hidden or to.need_weight or to.need_bias):
        return
    own = (weight * to.queries).to(to.W.dtype).reshape(1, -1, d_out)
    if normalize:
        own = _kernels.hidden_chain(own, projected, factors)
    own = own.view(documents, -1, d_out)
    if to.need_hidden:
        # A token's gradient is the sum of those that it won; each of its places writes the same.
        same = (tokens.unsqueeze(1) == tokens.unsqueeze(2)).to(own.dtype)
        total = torch.bmm(same, own).flatten(0, 1) @ to.W
        to.of_hidden[part].view(-1, d_model).index_copy_(0, rows, total.to(to.of_hidden.dtype))
    to.add(own.flatten(0, 1), won)


@torch.library.register_fake(add_op_namespace_prefix("hidden_forward"))
def _(queries, hidden, weight, bias, document_mask, normalize, with_argmax, part_bytes) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], hidden.shape[0])
    slots = (*shape, queries.shape[1]) if with_argmax else (0,)
    new_empty = queries.new_empty
    return new_empty(shape, dtype=torch.float32), new_empty(slots, dtype=torch.int32)


@torch.library.register_fake(add_op_namespace_prefix("hidden_project"))
def _(hidden, weight, bias, normalize) -> tuple[Tensor, Tensor]:
    shape = hidden.shape[:2]
    projected = hidden.new_empty((*shape, weight.shape[0]))
    return projected, hidden.new_empty(shape if normalize else (0,), dtype=torch.float32)


@torch.library.register_fake(add_op_namespace_prefix("hidden_chain"))
def _(grad, projected, factors) -> Tensor:
    return grad.new_empty(grad.shape)
