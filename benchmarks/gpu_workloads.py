"""The GPU workloads: shapes that are met in search, reranking and training, each with its name for good.
Everything is bfloat16 unless its name says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from workloads import DIM, Workload, unit_tokens

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def _forward(name: str, layout: str, *shape: int, dim: int = DIM, kind: str = "forward") -> Workload:
    return Workload(kind, name, layout, *shape, BF16, dim=dim, unit=True)


def _train(name: str, layout: str, *shape: int) -> Workload:
    """On the grid, where winners do not depend on rounding: a gradient that goes elsewhere is then an error."""
    return Workload("train", name, layout, *shape, BF16)


FORWARD = [
    _forward("small-rerank", "own", 32, 10, 32, 180),
    _forward("rerank-50", "own", 32, 50, 32, 180),
    _forward("heavy-rerank", "own", 32, 100, 32, 256),
    _forward("longdoc-stress", "own", 8, 16, 64, 1024),
    _forward("text-short", "cross", 1, 1000, 32, 300),
    _forward("text-long", "cross", 1, 1000, 32, 1024),
    _forward("corpus-10k", "cross", 1, 10000, 32, 300),
    _forward("colpali-128q", "cross", 1, 1000, 128, 1024),
    _forward("colpali-1024q", "cross", 1, 1000, 1024, 1024),
    _forward("inbatch-128", "cross", 128, 128, 32, 300),
    _forward("inbatch-256", "cross", 256, 256, 32, 300),
    _forward("colqwen-train", "cross", 128, 128, 32, 1030),
    _forward("multiquery-corpus", "cross", 64, 10000, 32, 300),
    _forward("edge-d48", "cross", 1, 4000, 32, 2048, dim=48),
    _forward("edge-d64", "cross", 1, 10000, 32, 300, dim=64),
    _forward("d96-odd", "cross", 4, 2000, 31, 333, dim=96),
]

OVERHEAD = [_forward("1x100-32x128", "cross", 1, 100, 32, 128, kind="overhead")]

TRAIN = [
    _train("train-32x80", "cross", 32, 32, 32, 80),
    _train("train-128x300", "cross", 128, 128, 32, 300),
    _train("train-256x300", "cross", 256, 256, 32, 300),
    _train("train-colqwen", "cross", 128, 128, 32, 1030),
    _train("train-longq", "cross", 64, 64, 1030, 1030),
    _train("train-kd-64x32", "own", 64, 32, 32, 300),
    _train("train-neg-256x16", "own", 256, 16, 32, 1030),
    _train("train-longdoc-8k", "cross", 16, 32, 32, 8192),
]

# One that memory bounds and one that arithmetic bounds; every form is tried on both.
BASES = [workload for workload in FORWARD if workload.name in ("text-long", "inbatch-128")]
# And what leaves padding away, on others that padding costs most.
RAGGED = [workload for workload in FORWARD if workload.name in ("text-short", "colpali-128q", "colqwen-train")]


def _form(base: Workload, name: str, **changes: object) -> Workload:
    return replace(base, kind="forms", name=f"{base.name}-{name}", **changes)


def _ragged_forms(base: Workload) -> list[Workload]:
    return [_form(base, "varlen", layout="varlen"), _form(base, "masked", form="masked")]


def _forms(base: Workload) -> list[Workload]:
    dims = [_form(base, f"d{dim}", dim=dim) for dim in (100, 127, 255, 256, 300, 320, 768, 1024, 2048)]
    fp32 = [_form(base, f"fp32-d{dim}", dim=dim, dtype=FP32) for dim in (64, 127, 256, 768)]
    return [
        _form(base, "plain"),
        _form(base, "fp16", dtype=FP16),
        _form(base, "fp32", dtype=FP32),
        _form(base, "tf32", dtype=FP32, form="tf32"),
        _form(base, "bf16-fp16", document_dtype=FP16),
        _form(base, "fp32-bf16", dtype=FP32, document_dtype=BF16),
        *dims,
        *fp32,
        *_ragged_forms(base),
        _form(base, "normalize", form="normalize"),
        _form(base, "normalize-d768", form="normalize", dim=768),
        _form(base, "bf16-fp16-d256", document_dtype=FP16, dim=256),
        # Winners are compared one by one, so that none may depend on rounding.
        _form(base, "argmax", form="argmax", unit=False),
    ]


# 100 000 pairs: each query's own documents, and as many pairs drawn at random from a corpus larger than L2.
_PADDED = _forward("rerank-400-plain", "own", 250, 400, 32, 300, kind="forms")
_LISTED = replace(_PADDED, name="rerank-400-listed", layout="listed", documents=4000, pairs=100_000)

FORMS = [
    *(form for base in BASES for form in _forms(base)),
    *(form for base in RAGGED for form in (_form(base, "plain"), *_ragged_forms(base))),
    _PADDED,
    _LISTED,
]


def plain_of(form: Workload) -> str:
    """The name of the plain call that a form is set beside."""
    base = next((base.name for base in (*BASES, *RAGGED) if form.name.startswith(base.name)), "rerank-400")
    return f"{base}-plain"


def on_path(workload: Workload, path: str) -> Workload:
    return replace(workload, kind="paths", name=f"{workload.name}-{path}", path=path)


@dataclass(frozen=True)
class Plaid:
    """A corpus compressed as PLAID does it, of documents with [document_tokens / 2, document_tokens] tokens."""

    name: str
    documents: int
    document_tokens: int
    bits: int
    centroids: int = 32768


PLAID = [
    Plaid("plaid-1k-1024-2bit", 1024, 1024, 2),
    Plaid("plaid-4k-300-2bit", 4096, 300, 2),
    Plaid("plaid-10k-300-2bit", 10000, 300, 2),
    Plaid("plaid-10k-512-4bit", 10000, 512, 4),
]


@dataclass(frozen=True)
class PlaidIndex:
    """`codes` [T] name a centroid for each token, `residuals` [T, d * bits / 8] a bucket for each dimension, in the
    low bits of a byte first; `weights` [2 ** bits] are the buckets' values."""

    query: Tensor  # [1, 32, d] float16
    codes: Tensor
    residuals: Tensor
    lengths: Tensor
    offsets: Tensor
    centroids: Tensor
    weights: Tensor

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.residuals.nbytes


def plaid_index(plaid: Plaid, device: str) -> PlaidIndex:
    generator = torch.Generator(device).manual_seed(0)

    def integers(low: int, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, device=device, dtype=dtype)

    longest = plaid.document_tokens
    lengths = integers(longest // 2, longest + 1, plaid.documents, dtype=torch.int64)
    tokens = int(lengths.sum())
    return PlaidIndex(
        query=unit_tokens((1, 32, DIM), generator).half(),
        codes=integers(0, plaid.centroids, tokens, dtype=torch.int32),
        residuals=integers(0, 256, tokens, DIM * plaid.bits // 8, dtype=torch.uint8),
        lengths=lengths,
        offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
        centroids=unit_tokens((plaid.centroids, DIM), generator).half(),
        weights=torch.linspace(-0.1, 0.1, 2**plaid.bits, device=device),
    )


def plaid_reference(plaid: Plaid, index: PlaidIndex) -> Tensor:
    """Scores [1, Nd] in float64, tokens and queries normalised."""
    shifts = torch.arange(0, 8, plaid.bits, device=index.codes.device)
    buckets = (index.residuals[..., None] >> shifts) & (2**plaid.bits - 1)
    tokens = index.weights.double()[buckets.flatten(-2).long()]
    tokens += index.centroids.double()[index.codes]
    tokens, query = (torch.nn.functional.normalize(x, dim=-1) for x in (tokens, index.query[0].double()))
    best = torch.segment_reduce(tokens @ query.T, "max", lengths=index.lengths)
    return best.sum(-1)[None]
