"""The loss of MaxSim scores, whole or in parts. In parts, the forward pass keeps one or two floats for each query.
The backward pass scores by documents for their gradient and by queries for the rest: every part's result is final."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import autograd, paths
from ._ops import add_op_namespace_prefix
from .dispatch import BACKWARD_MODES, run
from .layouts import documents_between
from .problem import Problem

_LOGITS = 4  # float32 copies of a part's scores that are alive at once: scores, logits, and two steps of the loss


class Options(NamedTuple):
    """What the loss does with similarities; the order of the ops' trailing arguments."""

    scale: float
    teacher_weight: float
    mean_over_tokens: bool
    normalize: bool
    empty_score: float
    backward: str | None


def pair_bytes(queries: Tensor) -> int:
    """Held for a query and a document while their gradient is computed: winners, and what becomes of the score."""
    return 4 * queries.shape[1] + 4 * _LOGITS


def in_parts(parts: list[Problem], labels: Tensor, teacher: Tensor | None, options: Options, max_bytes: int) -> Tensor:
    """The losses ``[Nq]``, holding at most ``max_bytes``."""
    shared, own = parts[0], parts[1] if len(parts) > 1 else None
    return _forward(
        shared.queries,
        shared.documents,
        None if own is None else own.documents,
        shared.query_mask,
        shared.document_mask,
        None if own is None else own.document_mask,
        labels,
        teacher,
        *options,
        max_bytes,
    )[0]


def logits_of(parts: list[Problem], options: Options) -> Tensor:
    """What softmax takes, ``[Nq, candidates]``, by torch's autograd."""
    scores = [run(part, options.normalize, options.empty_score, options.backward)[0] for part in parts]
    return (scores[0] if len(scores) == 1 else torch.cat(scores, dim=1)) * _factor(parts[0], options)


def _factor(part: Problem, options: Options) -> Tensor | float:
    """What makes logits of a query's scores: a number, or one for each query ``[Nq, 1]``."""
    if not options.mean_over_tokens:
        return options.scale
    if part.query_mask is None:
        return options.scale / max(1, part.queries.shape[1])
    return options.scale / part.query_mask.sum(dim=1, keepdim=True).clamp_min(1)


def losses_of(logits: Tensor, labels: Tensor, teacher: Tensor | None, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The losses ``[Nq]``, and what softmax divides the exponentials of logits and of the teacher by, as logarithms."""
    total = logits.logsumexp(dim=1)
    loss, teacher_total = total, total.new_empty(0)
    if weight < 1:
        index = labels.clamp(0, logits.shape[1] - 1)
        positive = logits.gather(1, index.long()[:, None]).squeeze(1)
        loss = loss - (1 - weight) * torch.where(labels == index, positive, torch.nan)
    if teacher is not None:
        teacher_total = teacher.logsumexp(dim=1)
        target = (teacher - teacher_total[:, None]).exp()
        expected = torch.where(target > 0, target * logits, 0.0)
        loss = loss - weight * (expected + torch.special.entr(target)).sum(dim=1)
    return loss, total, teacher_total


class _Saved(NamedTuple):
    """What the backward pass starts from, for some queries."""

    grad: Tensor
    total: Tensor
    teacher_total: Tensor
    labels: Tensor
    teacher: Tensor | None

    def rows(self, rows: slice) -> _Saved:
        return _Saved(*(None if x is None else x[rows] for x in self))


def _grad_scores(scores: Tensor, part: Problem, first: int, saved: _Saved, options: Options) -> Tensor:
    """The gradient of ``part``'s scores, whose columns are candidates ``first`` and following."""
    factor = _factor(part, options)
    grad = scores.mul(factor).sub_(saved.total[:, None]).exp_()
    columns = slice(first, first + scores.shape[1])
    if options.teacher_weight < 1:
        candidate = torch.arange(columns.start, columns.stop, device=scores.device)
        grad.sub_((candidate == saved.labels[:, None]).to(grad.dtype), alpha=1 - options.teacher_weight)
    if saved.teacher is not None:
        target = (saved.teacher[:, columns] - saved.teacher_total[:, None]).exp_()
        grad.sub_(target, alpha=options.teacher_weight)
    return grad.mul_(saved.grad[:, None] * factor)


def _scored_gradients(
    part: Problem, first: int, saved: _Saved, options: Options, need_queries: bool, need_documents: bool
) -> tuple[Tensor, Tensor]:
    scores, argmax = run(part, options.normalize, options.empty_score, options.backward, with_argmax=True)
    mode = "lowmem" if torch.are_deterministic_algorithms_enabled() else options.backward
    return autograd.backward(
        _grad_scores(scores, part, first, saved, options),
        argmax,
        *part,
        options.normalize,
        need_queries,
        need_documents,
        BACKWARD_MODES[mode],
        paths.forced,
    )


def _parts(Q: Tensor, D: Tensor, N: Tensor | None, q_mask: Tensor | None, d_mask: Tensor | None, n_mask: Tensor | None):
    parts = [Problem(Q, D, None, None, None, None, q_mask, d_mask)]
    return parts if N is None else [*parts, Problem(Q, N, None, None, None, None, q_mask, n_mask)]


def _queries_between(part: Problem, rows: slice) -> Problem:
    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    own = part.documents.dim() == 4
    return part._replace(
        queries=part.queries[rows],
        query_mask=cut(part.query_mask),
        documents=part.documents[rows] if own else part.documents,
        document_mask=cut(part.document_mask) if own else part.document_mask,
    )


def _blocks(count: int, bytes_each: int, max_bytes: int) -> Iterator[slice]:
    """Ranges of at most ``max_bytes``; eights where they can be, which fill a tile of 32-token queries."""
    step = max(1, max_bytes // max(1, bytes_each))
    if step > 8:
        step -= step % 8
    return (slice(first, min(count, first + step)) for first in range(0, count, step))


_INPUTS = (
    "Tensor queries, Tensor documents, Tensor? negatives, Tensor? query_mask, Tensor? document_mask, "
    "Tensor? negatives_mask, Tensor labels, Tensor? teacher, float scale, float teacher_weight, bool mean_over_tokens, "
    "bool normalize, float empty_score, str? backward, int max_bytes"
)


@torch.library.custom_op(
    add_op_namespace_prefix("contrastive_forward"), mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)"
)
def _forward(Q, D, N, q_mask, d_mask, n_mask, labels, teacher, *rest):  # noqa: ANN001  the schema has the types
    """Losses, and the logarithms of softmax's divisors: ``[Nq]`` each, the teacher's ``[0]`` where there is none."""
    options, max_bytes = Options(*rest[:-1]), rest[-1]
    parts = _parts(Q, D, N, q_mask, d_mask, n_mask)
    count = Q.shape[0]
    out = [Q.new_empty(count, dtype=torch.float32) for _ in range(2)]
    out.append(Q.new_empty(0 if teacher is None else count, dtype=torch.float32))
    candidates = sum(part.documents.shape[-3] for part in parts)
    with torch.no_grad(), torch.autocast(Q.device.type, enabled=False):
        for rows in _blocks(count, 4 * _LOGITS * candidates, max_bytes):
            logits = logits_of([_queries_between(part, rows) for part in parts], options)
            some = losses_of(logits, labels[rows], None if teacher is None else teacher[rows], options.teacher_weight)
            for whole, part in zip(out, some):
                if whole.shape[0]:
                    whole[rows] = part
    return tuple(out)


@torch.library.custom_op(
    add_op_namespace_prefix("contrastive_backward"),
    mutates_args=(),
    schema=f"(Tensor grad, Tensor total, Tensor teacher_total, bool[] needed, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _backward(grad, total, teacher_total, needed, Q, D, N, q_mask, d_mask, n_mask, labels, teacher, *rest):  # noqa: ANN001
    """The gradients of queries, documents and negatives; ``[0]`` where ``needed`` says no."""
    options, max_bytes = Options(*rest[:-1]), rest[-1]
    parts = _parts(Q, D, N, q_mask, d_mask, n_mask)
    saved = _Saved(grad, total, teacher_total if teacher is not None else None, labels, teacher)
    out = [
        tensor.new_empty(tensor.shape) if need else Q.new_empty(0)
        for tensor, need in zip((Q, D, Q if N is None else N), needed)
    ]
    with torch.no_grad(), torch.autocast(Q.device.type, enabled=False):
        shared = D.dim() == 3
        if needed[1] and shared:
            _by_documents(parts[0], out[1], saved, options, max_bytes)
        if needed[0] or needed[2] or (needed[1] and not shared):
            _by_queries(parts, out, needed, saved, options, max_bytes)
    return tuple(out)


def _by_documents(part: Problem, out: Tensor, saved: _Saved, options: Options, max_bytes: int) -> None:
    """All queries against some documents at a time, whose gradients are then complete."""
    documents = part.documents
    bytes_each = part.queries.shape[0] * pair_bytes(part.queries) + out[:1].nbytes
    for block in _blocks(documents.shape[0], bytes_each, max_bytes):
        some = documents_between(part, block.start, block.stop)
        out[block] = _scored_gradients(some, block.start, saved, options, False, True)[1]


def _by_queries(
    parts: list[Problem], out: list[Tensor], needed: list[bool], saved: _Saved, options: Options, max_bytes: int
) -> None:
    """Some queries at a time against all candidates: their gradients, and those of their own documents."""
    bytes_each = 2 * parts[0].queries[:1].nbytes
    for part in parts:
        own = part.documents.dim() == 4
        bytes_each += part.documents.shape[-3] * pair_bytes(part.queries) + (part.documents[:1].nbytes if own else 0)
    for rows in _blocks(parts[0].queries.shape[0], bytes_each, max_bytes):
        first, grad_queries = 0, None
        for number, part in enumerate(parts, start=1):
            need_own = needed[number] and part.documents.dim() == 4
            some = _queries_between(part, rows)
            if needed[0] or need_own:
                queries, documents = _scored_gradients(some, first, saved.rows(rows), options, needed[0], need_own)
                if need_own:
                    out[number][rows] = documents
                if needed[0]:
                    grad_queries = queries if grad_queries is None else grad_queries.float() + queries
            first += part.documents.shape[-3]
        if needed[0]:
            out[0][rows] = grad_queries


@_forward.register_fake
def _(Q, D, N, q_mask, d_mask, n_mask, labels, teacher, *_):  # noqa: ANN001
    one = Q.new_empty(Q.shape[0], dtype=torch.float32)
    teachers = 0 if teacher is None else Q.shape[0]
    return one, torch.empty_like(one), Q.new_empty(teachers, dtype=torch.float32)


@_backward.register_fake
def _(grad, total, teacher_total, needed, Q, D, N, *_):  # noqa: ANN001
    tensors = (Q, D, Q if N is None else N)
    return tuple(Q.new_empty(0) if not need else x.new_empty(x.shape) for x, need in zip(tensors, needed))


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], *inputs[:8])
    ctx.rest = inputs[8:]


def _differentiate(ctx, grad: Tensor | None, *_: None) -> tuple:
    total, teacher_total, *tensors = ctx.saved_tensors
    none = (None,) * (5 + len(ctx.rest))
    needed = [tensors[i] is not None and ctx.needs_input_grad[i] for i in range(3)]
    if grad is None or not any(needed):
        return (None, None, None, *none)
    gradients = _backward(grad, total, teacher_total, needed, *tensors, *ctx.rest)
    return (*(gradient if need else None for gradient, need in zip(gradients, needed)), *none)


_forward.register_autograd(_differentiate, setup_context=_save)
