"""Workloads: shapes, their tensors, and what float64 says of them, for every device.
The CPU's are here, the GPU's in gpu_workloads.py; the names agree where the shapes do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

DIM = 128
MASKED_SHARE = 0.1


@dataclass(frozen=True)
class Workload:
    """One shape. `layout`: "cross" is every query with every document, "own" is each query with its own `documents`,
    "varlen" is cross with documents of [document_tokens / 4, document_tokens] tokens, uniformly, and "listed" is
    `pairs` pairs at random. `form`: "argmax", "normalize", "tf32", which is float32 where torch allows TF32,
    and "masked", which drops a tenth of the document tokens."""

    kind: str  # forward, train or overhead; on a GPU also forms and paths
    name: str
    layout: str
    queries: int
    documents: int
    query_tokens: int
    document_tokens: int
    dtype: torch.dtype = torch.float32
    document_dtype: torch.dtype | None = None  # where it is another than the queries'
    dim: int = DIM
    form: str = "plain"
    pairs: int | None = None
    path: str | None = None  # which the kernel is held to
    unit: bool = False  # unit vectors, as models give them, rather than multiples of 1/512

    @property
    def count(self) -> int:
        """How many scores."""
        return self.queries * self.documents if self.pairs is None else self.pairs

    @property
    def flops(self) -> int:
        """Multiply-adds of the similarities, counted as two, if every document is as long as the longest."""
        return 2 * self.count * self.query_tokens * self.document_tokens * self.dim


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


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def described(workload: Workload) -> dict[str, Any]:
    """The workload as the results keep it: what was not asked for is left out."""
    fields = {key: value for key, value in asdict(workload).items() if value is not None}
    return {k: name_of(value) if isinstance(value, torch.dtype) else value for k, value in fields.items()}


@dataclass(frozen=True)
class Inputs:
    """The tensors of a workload. Every implementation prepares its own view of them before the clock starts."""

    workload: Workload
    queries: Tensor  # [Nq, Lq, d]
    documents: Tensor  # [Nd, Ld, d] or [Nq, K, Ld, d], zeros behind the lengths
    lengths: Tensor | None = None  # [Nd] of a varlen corpus
    mask: Tensor | None = None  # [Nd, Ld], True for document tokens that count
    pairs: tuple[Tensor, Tensor] | None = None  # ids of queries and of documents, [P] each
    grad_scores: Tensor | None = None  # [Nq, Nd] of a training step

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return (self.queries, self.documents) if self.grad_scores is not None else ()

    @property
    def document_tokens(self) -> int:
        """How many are stored; padding is not."""
        return self.documents[..., 0].numel() if self.lengths is None else int(self.lengths.sum())

    @property
    def flops(self) -> int:
        """As the workload's; what is padding does not count."""
        return self.workload.flops * self.document_tokens // self.documents[..., 0].numel()

    @property
    def nbytes(self) -> int:
        """What has to be moved at least: every token read once, everything asked for written once."""
        w = self.workload
        documents = self.document_tokens * w.dim * self.documents.element_size()
        about = sum(t.nbytes for t in self.pairs or ()) + (self.mask.nbytes if w.form == "masked" else 0)
        written = w.count * 4 * (1 + (w.query_tokens if w.form == "argmax" else 0))
        return self.queries.nbytes + documents + about + written


def grid_tokens(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Multiples of 1/512: dot products are exact in float32 in any order of summation, so that every implementation
    has the same winners and the same gradients. With this seed no training batch of the CPU's has a tie."""
    return (torch.randn(*shape, generator=generator, device=generator.device) * 256).round().div(512)


def unit_tokens(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, device=generator.device), dim=-1)


def make_inputs(workload: Workload, device: str = "cpu") -> Inputs:
    w = workload
    generator = torch.Generator(device).manual_seed(0)
    tokens = unit_tokens if w.unit else grid_tokens
    queries = tokens((w.queries, w.query_tokens, w.dim), generator).to(w.dtype)
    rows = (*([w.queries] if w.layout == "own" else []), w.documents, w.document_tokens)
    documents = tokens((*rows, w.dim), generator).to(w.document_dtype or w.dtype)
    lengths = mask = pairs = grad_scores = None
    if w.layout == "varlen":
        lengths = torch.randint(
            w.document_tokens // 4, w.document_tokens + 1, (w.documents,), generator=generator, device=device
        )
        mask = torch.arange(w.document_tokens, device=device) < lengths[:, None]
        documents[~mask] = 0
    if w.form == "masked":
        mask = torch.rand(rows, generator=generator, device=device) >= MASKED_SHARE
    if w.layout == "listed":
        pairs = tuple(
            torch.randint(n, (w.pairs,), generator=generator, device=device, dtype=torch.int32)
            for n in (w.queries, w.documents)
        )
    if w.kind == "train":
        grad_scores = torch.randn(w.queries, w.documents, generator=generator, device=device)
        queries.requires_grad_()
        documents.requires_grad_()
    return Inputs(workload, queries, documents, lengths, mask, pairs, grad_scores)


def reference(inputs: Inputs) -> tuple[Tensor, ...]:
    """In float64: the scores [Nq, Nd], [Nq, K] or [P], and the argmax [Nq, Nd, Lq] where the form has it; or the
    gradients of queries and documents of a training step."""
    queries, documents = (x.detach().double() for x in (inputs.queries, inputs.documents))
    if inputs.workload.form == "normalize":
        queries, documents = (torch.nn.functional.normalize(x, dim=-1) for x in (queries, documents))
    differentiable = inputs.grad_scores is not None
    queries.requires_grad_(differentiable)
    documents.requires_grad_(differentiable)
    best, winners = [], []
    for i, query in enumerate(queries):
        similarity = query @ (documents if documents.dim() == 3 else documents[i]).mT
        if inputs.mask is not None:
            similarity = similarity.masked_fill(~inputs.mask[:, None], float("-inf"))
        value, winner = similarity.max(-1)
        best.append(value.sum(-1))
        winners += [winner] if inputs.workload.form == "argmax" else []
    scores = torch.stack(best)
    if differentiable:
        return torch.autograd.grad(scores, (queries, documents), inputs.grad_scores.double())
    if inputs.pairs is not None:
        scores = scores[inputs.pairs]
    return (scores, torch.stack(winners)) if winners else (scores,)
