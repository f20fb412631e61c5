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
_FEW_WINNERS, _MANY_TOKENS = 256, 1 << 18


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


def score(
    Q: Tensor, hidden: Tensor, W: Tensor, b: Tensor | None, mask: Tensor | None, normalize: bool, budget: int
) -> Tensor:
    """Scores ``[*, Nd]`` of ``Q`` against the normalised projections of ``hidden [Nd, Ld, d_model]``.

    ``budget`` bounds the bytes of what is held for one part of the documents and not returned.
    """
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (Q, hidden, W, b)):
        return _FromHidden.apply(Q, hidden, W, b, mask, normalize, budget)
    return _forward(Q, hidden, W, b, mask, normalize, False, budget)[0].view(*Q.shape[:-2], hidden.shape[0])


def _forward(
    Q: Tensor,
    hidden: Tensor,
    W: Tensor,
    b: Tensor | None,
    mask: Tensor | None,
    normalize: bool,
    with_argmax: bool,
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Scores ``[Nq, Nd]``, and the argmax ``[Nq, Nd, Lq]`` or ``[0]``."""
    options = (normalize, with_argmax, budget)
    queries = Q if Q.dim() == 3 else Q.unsqueeze(0)
    if hidden.dtype == W.dtype:
        return _kernels.hidden_forward(queries, hidden, W, b, mask, *options)
    found = [
        _kernels.hidden_forward(queries, hidden[part].to(W.dtype), W, b, None if mask is None else mask[part], *options)
        for part in _converted(hidden, W, budget)
    ]
    return tuple(torch.cat(x, dim=1) if x[0].dim() > 1 else x[0] for x in zip(*found))


class _FromHidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, Q, hidden, W, b, mask, normalize, budget):
        scores, argmax = _forward(Q, hidden, W, b, mask, normalize, True, budget)
        ctx.save_for_backward(Q, hidden, W, b, argmax)
        ctx.normalize, ctx.budget = normalize, budget
        return scores.view(*Q.shape[:-2], hidden.shape[0])

    @staticmethod
    def backward(ctx, grad_scores):
        Q, hidden, W, b, argmax = ctx.saved_tensors
        documents, length = hidden.shape[:2]
        winners = argmax.shape[0] * argmax.shape[2]
        few = winners <= _FEW_WINNERS and 2 * winners <= length and documents * length >= _MANY_TOKENS
        nothing = not (argmax.numel() and hidden.numel())
        gradients = _Gradients(Q, hidden, W, b, ctx.needs_input_grad, zeroed=few or nothing)
        if not nothing:
            grad_scores = grad_scores.reshape(argmax.shape[:2])
            step = _from_winners if few else _from_documents
            # What a part holds: its winners' hidden states, or its documents' projections.
            held = (winners * W.shape[1] if few else length * W.shape[0]) * W.element_size()
            pieces = parts(hidden, held, 2 * ctx.budget) if few else _converted(hidden, W, ctx.budget, held)
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

    def __init__(
        self, Q: Tensor, hidden: Tensor, W: Tensor, b: Tensor | None, needed: tuple[bool, ...], zeroed: bool
    ) -> None:
        self.queries, self.hidden, self.W, self.b = Q if Q.dim() == 3 else Q.unsqueeze(0), hidden, W, b
        self.need_queries, self.need_hidden, self.need_weight, self.need_bias = needed[:4]
        self.need_rows = self.need_hidden or self.need_weight or self.need_bias
        self.sums: dict[str, Tensor] = {}
        new = torch.zeros_like if zeroed else torch.empty_like
        self.of_hidden = new(hidden) if self.need_hidden else None

    def add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name].float() + value if name in self.sums else value

    def chained(self, rows: Tensor, projected: Tensor, factors: Tensor, normalize: bool) -> None:
        """From the gradient ``[..., d_out]`` of projections to that of unnormalised ones, in place, which are summed.

        torch's own sum of so many rows would hold 130 MB for what its blocks find.
        """
        if normalize or self.need_bias:
            known = (projected, factors) if normalize else (None, None)
            total = _kernels.hidden_chain(rows, *known, self.need_bias)
            if self.need_bias:
                self.add("bias", total)

    def add_weight(self, rows: Tensor, hidden: Tensor) -> None:
        """Gradients ``[n, d_out]`` of unnormalised projections of ``hidden [n, d_model]``."""
        if self.need_weight:
            self.add("weight", torch.mm(rows.t(), hidden, out_dtype=torch.float32))

    def result(self, Q: Tensor) -> tuple[Tensor | None, ...]:
        def total(name: str, like: Tensor | None, needed: bool) -> Tensor | None:
            if not needed:
                return None
            return self.sums[name].to(like.dtype).view_as(like) if name in self.sums else torch.zeros_like(like)

        of_queries = total("queries", Q, self.need_queries)
        return (
            of_queries,
            self.of_hidden,
            total("weight", self.W, self.need_weight),
            total("bias", self.b, self.need_bias),
        )


def _from_documents(to: _Gradients, part: slice, grad_scores: Tensor, argmax: Tensor, normalize: bool) -> None:
    """Every token of the part is projected again, and has a gradient."""
    hidden = to.hidden[part].to(to.W.dtype)
    projected, factors = _kernels.hidden_project(hidden, to.W, to.b, normalize)
    of_queries, rows = _kernels.backward(
        grad_scores,
        argmax,
        to.queries,
        projected,
        *(None,) * 8,
        False,
        to.need_queries,
        to.need_rows,
        0,
        paths.forced,
    )
    if to.need_queries:
        to.add("queries", of_queries)
    if not to.need_rows:
        return
    to.chained(rows, projected, factors, normalize)
    del projected, factors  # which are as large as the rows
    rows = rows.flatten(0, 1)
    if to.need_hidden:
        own = to.of_hidden[part].flatten(0, 1)
        if own.dtype == rows.dtype:
            torch.mm(rows, to.W, out=own)
        else:
            own.copy_(rows @ to.W)
    to.add_weight(rows, hidden.flatten(0, 1))


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
        to.add("queries", (weight * projected.view(*argmax.shape, d_out)).sum(0))
    if not to.need_rows:
        return
    own = (weight * to.queries).to(to.W.dtype).reshape(documents, -1, d_out)
    to.chained(own, projected, factors, normalize)
    to.add_weight(own.flatten(0, 1), won)
    del projected, factors, won  # before as many gradients of hidden states
    if to.need_hidden:
        # A token's gradient is the sum of those that it won; each of its places writes the same.
        same = (tokens.unsqueeze(1) == tokens.unsqueeze(2)).to(own.dtype)
        total = torch.bmm(same, own).flatten(0, 1) @ to.W
        to.of_hidden[part].view(-1, d_model).index_copy_(0, rows, total.to(to.of_hidden.dtype))


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
def _(grad, projected, factors, with_sum) -> Tensor:
    return grad.new_empty((grad.shape[-1] if with_sum else 0,), dtype=torch.float32)
