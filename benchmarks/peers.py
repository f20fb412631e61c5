"""Every implementation that is timed, by name: each takes a workload's inputs and gives the call to time.
What a caller would have done beforehand, such as packing or padding the corpus, happens before that call exists."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from kernels import get_kernel
from torch import Tensor
from workloads import Inputs

ROOT = Path(__file__).resolve().parents[1]

THREADS = 2

# A call returns the scores, or the gradients of a training step.
Call = Callable[[], Tensor | tuple[Tensor, ...]]


class DoesNotApply(Exception):
    """The implementation has no such call; says why."""


def use_threads() -> None:
    """The same number for torch, whose pool the kernel uses, and for maxsim-cpu, whose pool asks the environment."""
    torch.set_num_threads(THREADS)
    os.environ["RAYON_NUM_THREADS"] = str(THREADS)


def load_kernel() -> ModuleType:
    """The kernel out of this checkout's build/, or of wherever LOCAL_KERNELS already points."""
    general = tomllib.loads((ROOT / "build.toml").read_text())["general"]
    repo_id = general["hub"]["repo-id"]
    os.environ.setdefault("LOCAL_KERNELS", f"{repo_id}={ROOT}")
    return get_kernel(repo_id, version=general["version"])


def step(inputs: Inputs, score: Call) -> Call:
    """The scoring itself, or a training step around it."""
    if inputs.grad_scores is None:
        return score
    return lambda: torch.autograd.grad(score(), inputs.differentiable, inputs.grad_scores)


def offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def rows_of(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A padded tensor [N, L, d] as packed tokens and their offsets."""
    count, length, _ = tensor.shape
    return tensor.flatten(0, 1), torch.arange(count + 1, dtype=torch.int32, device=tensor.device) * length


def ours(inputs: Inputs) -> Call:
    kernel = load_kernel()
    workload = inputs.workload
    if workload.layout == "varlen":
        packed, document_offsets = inputs.documents[inputs.mask], offsets(inputs.lengths)
        queries, query_offsets = rows_of(inputs.queries)
        longest = (workload.query_tokens, workload.document_tokens)  # as whoever packs tokens knows them
        return partial(kernel.maxsim_varlen, queries, packed, query_offsets, document_offsets, *longest)
    if workload.layout == "listed":
        sides = (*rows_of(inputs.queries), *rows_of(inputs.documents))
        return partial(kernel.score_pairs_packed, *sides, *inputs.pairs)
    entry = kernel.maxsim_with_argmax if workload.form == "argmax" else kernel.maxsim
    options: dict[str, Any] = {"normalize": True} if workload.form == "normalize" else {}
    if workload.form == "masked":
        options["d_mask"] = inputs.mask
    return step(inputs, partial(entry, inputs.queries, inputs.documents, **options))


def einsum(queries: Tensor, documents: Tensor) -> Tensor:
    """Similarities [Nq, Nd, Lq, Ld]."""
    return torch.einsum("ild,jtd->ijlt" if documents.dim() == 3 else "ild,ijtd->ijlt", queries, documents)


def batched_matmul(queries: Tensor, documents: Tensor) -> Tensor:
    return queries[:, None] @ documents.mT


def one_matmul(queries: Tensor, documents: Tensor) -> Tensor:
    products = queries.flatten(0, 1) @ documents.flatten(0, 1).T
    return products.view(*queries.shape[:2], *documents.shape[:2]).transpose(1, 2)


def eager(similarity: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], Call]:
    """Eager torch over one way to multiply. For a gradient `max` is faster than `amax`, and gives it to one token."""

    def prepare(inputs: Inputs) -> Call:
        if similarity is one_matmul and inputs.documents.dim() == 4:
            raise DoesNotApply("each query has its own documents")
        padding = None if inputs.mask is None else ~inputs.mask[:, None]

        def score() -> Tensor:
            products = similarity(inputs.queries, inputs.documents)
            if padding is not None:
                products.masked_fill_(padding, float("-inf"))
            best = products.amax(-1) if inputs.grad_scores is None else products.max(-1).values
            return best.float().sum(-1)

        return step(inputs, score)

    return prepare


def maxsim_cpu(inputs: Inputs) -> Call:
    """maxsim-cpu takes one query and float32 NumPy arrays; more queries are a loop around it."""
    try:
        from maxsim_cpu import maxsim_scores, maxsim_scores_variable
    except ImportError:
        raise DoesNotApply("not installed") from None
    if inputs.grad_scores is not None:
        raise DoesNotApply("no gradient")
    if inputs.queries.dtype is not torch.float32:
        raise DoesNotApply("float32 only")
    queries = list(inputs.queries.numpy())
    documents = inputs.documents.numpy()
    if inputs.lengths is not None:
        ragged = [document[:length] for document, length in zip(documents, inputs.lengths.tolist(), strict=True)]
        return lambda: torch.stack([torch.from_numpy(maxsim_scores_variable(query, ragged)) for query in queries])
    slabs = [documents] * len(queries) if documents.ndim == 3 else list(documents)
    return lambda: torch.stack(
        [torch.from_numpy(maxsim_scores(query, slab)) for query, slab in zip(queries, slabs, strict=True)]
    )


IMPLEMENTATIONS: dict[str, Callable[[Inputs], Call]] = {
    "ours": ours,
    "einsum": eager(einsum),
    "batched matmul": eager(batched_matmul),
    "one matmul": eager(one_matmul),
    "maxsim-cpu": maxsim_cpu,
}
