"""The CPU workloads: shapes, their tensors, and what float64 says of them.
The names are those of the GPU workloads where the shapes are the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DIM = 128


@dataclass(frozen=True)
class Workload:
    """One shape. `layout`: "cross" is every query with every document, "own" is each query with its own `documents`,
    "varlen" is cross with documents of [document_tokens / 4, document_tokens] tokens, uniformly."""

    kind: str  # forward, train or overhead
    name: str
    layout: str
    queries: int
    documents: int
    query_tokens: int
    document_tokens: int
    dtype: torch.dtype = torch.float32


WORKLOADS = [
    Workload("forward", "text-short", "cross", 1, 1000, 32, 300),
    Workload("forward", "text-short-bf16", "cross", 1, 1000, 32, 300, torch.bfloat16),
    Workload("forward", "text-short-fp16", "cross", 1, 1000, 32, 300, torch.float16),
    Workload("forward", "text-128q", "cross", 1, 1000, 128, 300),
    Workload("forward", "varlen", "varlen", 1, 1000, 32, 300),
    Workload("forward", "inbatch-32", "cross", 32, 32, 32, 180),
    Workload("forward", "small-rerank", "own", 32, 10, 32, 180),
    Workload("train", "train-32x180", "cross", 32, 32, 32, 180),
    Workload("overhead", "1x1-4x4", "cross", 1, 1, 4, 4),
]


@dataclass(frozen=True)
class Inputs:
    """The tensors of a workload. Every implementation prepares its own view of them before the clock starts."""

    workload: Workload
    queries: Tensor  # [Nq, Lq, d]
    documents: Tensor  # [Nd, Ld, d] or [Nq, K, Ld, d], zeros behind the lengths
    lengths: Tensor | None = None  # [Nd] of a varlen corpus
    grad_scores: Tensor | None = None  # [Nq, Nd] of a training step

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return (self.queries, self.documents) if self.grad_scores is not None else ()

    @property
    def padding(self) -> Tensor | None:
        """[Nd, Ld], True behind a document's length."""
        if self.lengths is None:
            return None
        return torch.arange(self.documents.shape[-2]) >= self.lengths[:, None]

    @property
    def flops(self) -> int:
        """Multiply-adds of the similarities, counted as two; what is padding does not count."""
        w = self.workload
        tokens = w.documents * w.document_tokens if self.lengths is None else int(self.lengths.sum())
        return 2 * w.queries * w.query_tokens * tokens * DIM


def make_inputs(workload: Workload) -> Inputs:
    """Multiples of 1/512: dot products are exact in float32 in any order of summation, so that every implementation
    has the same winners and the same gradients. With this seed no training batch has a tie."""
    generator = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> Tensor:
        return (torch.randn(*shape, DIM, generator=generator) * 256).round().div(512).to(workload.dtype)

    w = workload
    queries = tokens(w.queries, w.query_tokens)
    documents = tokens(*([w.queries] if w.layout == "own" else []), w.documents, w.document_tokens)
    lengths = grad_scores = None
    if w.layout == "varlen":
        lengths = torch.randint(w.document_tokens // 4, w.document_tokens + 1, (w.documents,), generator=generator)
        documents[torch.arange(w.document_tokens) >= lengths[:, None]] = 0
    if w.kind == "train":
        grad_scores = torch.randn(w.queries, w.documents, generator=generator)
        queries.requires_grad_()
        documents.requires_grad_()
    return Inputs(workload, queries, documents, lengths, grad_scores)


def reference(inputs: Inputs) -> tuple[Tensor, ...]:
    """In float64: the scores [Nq, Nd] or [Nq, K], or the gradients of queries and documents of a training step."""
    queries, documents = (x.detach().double() for x in (inputs.queries, inputs.documents))
    differentiable = inputs.grad_scores is not None
    queries.requires_grad_(differentiable)
    documents.requires_grad_(differentiable)
    rows = []
    for i, query in enumerate(queries):
        similarity = query @ (documents if documents.dim() == 3 else documents[i]).mT
        if inputs.padding is not None:
            similarity = similarity.masked_fill(inputs.padding[:, None], float("-inf"))
        rows.append(similarity.max(-1).values.sum(-1))
    scores = torch.stack(rows)
    if not differentiable:
        return (scores,)
    return torch.autograd.grad(scores, (queries, documents), inputs.grad_scores.double())
