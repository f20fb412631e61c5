"""Scoring time of the kernel on the packed corpus beside eager torch on the same tensors, with the same threads.
Eager torch gets its padded copy of the corpus for free: the padding is done before the clock starts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from packed import Encoded
from torch import Tensor

# Documents in one einsum: bounds its [questions, documents, Lq, Ld] tile, as any eager implementation must.
CHUNK = 128


@dataclass(frozen=True)
class Timing:
    """One workload: seconds a call takes, and the largest difference between the two scores of a pair.

    In bf16 eager torch rounds every dot product to bf16 and the kernel keeps it in fp32, which is that difference.
    """

    kernel_seconds: float
    eager_seconds: float
    difference: float


def eager_scores(queries: tuple[Tensor, Tensor], chunks: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Scores [Nq, Nd] in fp32 by einsum, mask, max and sum; both sides as `Encoded.padded` returns them."""
    query_tokens, query_mask = queries
    scores = []
    for tokens, mask in chunks:
        similarity = torch.einsum("qid,njd->qnij", query_tokens, tokens)
        best = similarity.masked_fill_(~mask[:, None], float("-inf")).amax(-1).float()
        scores.append((best * query_mask[:, None]).sum(-1))
    return torch.cat(scores, dim=1)


def pad_in_chunks(documents: Encoded) -> list[tuple[Tensor, Tensor]]:
    """The corpus as eager torch wants it: CHUNK documents at a time, each chunk as `Encoded.padded` returns it."""
    firsts = range(0, len(documents), CHUNK)
    return [documents.padded(first, min(first + CHUNK, len(documents))) for first in firsts]


def measure(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Median seconds of a call, after one that warms up, and what it returned."""
    result = call()
    seconds: list[float] = []
    while sum(seconds) < 0.5:
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def compare(kernel: ModuleType, queries: Encoded, documents: Encoded, chunks: list[tuple[Tensor, Tensor]]) -> Timing:
    """Time both on every query against every document; `chunks` are the same documents from `pad_in_chunks`."""
    padded_queries = queries.padded(0, len(queries))
    kernel_seconds, scores = measure(
        lambda: kernel.maxsim_varlen(queries.tokens, documents.tokens, queries.cu_seqlens, documents.cu_seqlens)
    )
    eager_seconds, expected = measure(lambda: eager_scores(padded_queries, chunks))
    return Timing(kernel_seconds, eager_seconds, float((scores - expected).abs().max()))
