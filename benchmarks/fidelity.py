#!/usr/bin/env python3
"""What compression costs in quality: the demo's questions over its corpus, with every format of stored documents.
Needs requirements/demo.txt; on the CPU, after the corpus has been encoded once, some minutes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

os.environ["HF_HUB_OFFLINE"] = "1"  # the weights and the kernel are on disk

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "search"))

import torch  # noqa: E402
from corpus import collect  # noqa: E402
from encode import Encoder, encode_corpus  # noqa: E402
from evaluate import first_ranks, load_questions, mean_reciprocal_rank, share_within  # noqa: E402
from kernel import load_kernel  # noqa: E402
from packed import Encoded  # noqa: E402
from results import Row, printed, write  # noqa: E402
from torch import Tensor  # noqa: E402

OUTPUT = ROOT / "benchmarks" / "results" / "fidelity.json"
CENTROIDS = 4096
SAMPLE, ROUNDS = 100_000, 6  # tokens and rounds of k-means
TOP = 10


@dataclass
class Format:
    """How documents are stored, the bytes that a token takes, and the scores of all questions."""

    name: str
    token_bytes: float
    score: Callable[[], Tensor]


def nearest(tokens: Tensor, centroids: Tensor) -> Tensor:
    """The centroid of greatest inner product of each token: centroids are unit vectors, as ColBERTv2's are."""
    return torch.cat([(part @ centroids.T).argmax(dim=1) for part in tokens.split(8192)])


def kmeans(tokens: Tensor, count: int) -> Tensor:
    """Unit centroids ``[count, d]`` of unit vectors, from a sample; a centroid that nobody is near stays."""
    generator = torch.Generator().manual_seed(0)
    sample = tokens[torch.randperm(len(tokens), generator=generator)[:SAMPLE]]
    centroids = sample[:count].clone()
    for _ in range(ROUNDS):
        codes = nearest(sample, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, codes, sample)
        met = codes.bincount(minlength=count)[:, None] > 0
        centroids = torch.where(met, torch.nn.functional.normalize(sums, dim=-1), centroids)
    return centroids


def pack(buckets: Tensor, nbits: int) -> Tensor:
    """Bucket numbers ``[T, d]`` as bytes of 8 / nbits each, the first in the lowest bits."""
    groups = buckets.unflatten(-1, (-1, 8 // nbits))
    return (groups << torch.arange(0, 8, nbits)).sum(-1).to(torch.uint8)


def residual(kernel: ModuleType, queries: Encoded, documents: Encoded, centroids: Tensor, nbits: int) -> Format:
    """PLAID (Santhanam and others, 2022): a centroid, and which of 2 ** nbits quantiles each feature's rest is in."""
    codes = nearest(documents.tokens, centroids)
    rest = documents.tokens - centroids[codes]
    quantiles = torch.arange(1, 2**nbits) / 2**nbits
    sample = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(1))[:2000]].flatten()
    cutoffs = sample.quantile(quantiles)
    buckets = torch.bucketize(rest, cutoffs)
    weights = torch.stack([sample[torch.bucketize(sample, cutoffs) == b].mean() for b in range(2**nbits)])
    packed = pack(buckets, nbits)
    padded, mask = queries.padded(0, len(queries))

    def score() -> Tensor:
        index = (codes.int(), packed, documents.cu_seqlens, centroids, weights, nbits)
        one = [kernel.plaid.maxsim_residual_varlen(q[keep], *index) for q, keep in zip(padded, mask, strict=True)]
        return torch.stack(one)

    return Format(f"residual_{nbits}bit", packed.shape[1] + 2, score)


def formats(kernel: ModuleType, queries: Encoded, documents: Encoded) -> list[Format]:
    m, tokens = kernel.quantised, documents.tokens
    dim = tokens.shape[1]
    offsets = {"cu_seqlens_q": queries.cu_seqlens, "cu_seqlens_d": documents.cu_seqlens}

    def exact(dtype: torch.dtype) -> Callable[[], Tensor]:
        sides = (queries.tokens.to(dtype), tokens.to(dtype))
        return lambda: kernel.maxsim_varlen(*sides, queries.cu_seqlens, documents.cu_seqlens)

    def quantised(make: Callable[[Tensor], object], both: bool = False) -> Callable[[], Tensor]:
        stored = make(tokens)
        query = make(queries.tokens) if both else queries.tokens
        return lambda: m.score(query, stored, **offsets)

    def fp8(quantise: Callable[[Tensor], tuple[Tensor, Tensor]], block: int = 1) -> Callable[[], Tensor]:
        return quantised(lambda x: m.Quantised(*quantise(x), block=block), both=True)

    def affine(x: Tensor) -> object:
        values, scales, minima = kernel.int8.quantize_int8(x)
        return m.Quantised(values, scales.squeeze(-1), minima.squeeze(-1))

    def symmetric(x: Tensor) -> object:
        values, scales = kernel.int8.quantize_int8_symmetric(x)
        return m.Quantised(values, scales.squeeze(-1))

    signs = m.Quantised(kernel.binary.pack_bits(tokens), bits=1)
    signs_of_queries = m.Quantised(kernel.binary.unpack_bits(kernel.binary.pack_bits(queries.tokens)))
    e5m2 = torch.float8_e5m2
    plain = [
        Format("float32", 4 * dim, exact(torch.float32)),
        Format("bfloat16", 2 * dim, exact(torch.bfloat16)),
        Format("e4m3_token", dim + 4, fp8(kernel.fp8.quantize_fp8_per_token)),
        Format("e4m3_block", dim + 4 / 32, fp8(lambda x: kernel.fp8.quantize_fp8_per_block(x, 32), 32)),
        Format("e4m3_tensor", dim, fp8(kernel.fp8.quantize_fp8_per_tensor)),
        Format("e5m2_token", dim + 4, fp8(lambda x: kernel.fp8.quantize_fp8_per_token(x, e5m2))),
        Format("int8_affine", dim + 4, quantised(affine)),
        Format("int8_symmetric", dim + 2, quantised(symmetric)),
        Format("int8x8", dim + 2, quantised(symmetric, both=True)),
        Format("binary", dim / 8, lambda: m.score(queries.tokens, signs, **offsets)),
        Format("hamming", dim / 8, lambda: m.score(signs_of_queries, signs, **offsets)),
    ]
    centroids = kmeans(tokens, CENTROIDS)
    return plain + [residual(kernel, queries, documents, centroids, nbits) for nbits in (1, 2, 4)]


def overlap(scores: Tensor, exact: Tensor) -> float:
    """Share of the exact first TOP that a format finds among its own first TOP."""
    found, wanted = (x.topk(TOP, dim=1).indices for x in (scores, exact))
    return (found[:, :, None] == wanted[:, None, :]).any(1).double().mean().item()


def measure() -> Row:
    kernel, corpus, encoder = load_kernel(), collect(), Encoder()
    documents = encode_corpus(encoder, [document.text for document in corpus.documents], corpus.digest)
    questions = load_questions(corpus)
    queries = encoder.encode(list(questions), "query")
    rows: list[Row] = []
    exact = None
    for one in formats(kernel, queries, documents):
        scores = one.score()
        exact = scores if exact is None else exact
        ranks = first_ranks(scores, list(questions.values()))
        rows.append(
            {
                "kind": "fidelity",
                "name": one.name,
                "impl": "ours",
                "token_bytes": one.token_bytes,
                "mrr": mean_reciprocal_rank(ranks, TOP),
                "within": share_within(ranks, TOP),
                "overlap": overlap(scores, exact),
                "first": (scores.argmax(1) == exact.argmax(1)).double().mean().item(),
            }
        )
        printed(rows[-1])
    count, dim = documents.tokens.shape
    return {
        "documents": len(documents),
        "tokens": count,
        "dim": dim,
        "questions": len(questions),
        "centroids": CENTROIDS,
        "top": TOP,
        "rows": rows,
    }


if __name__ == "__main__":
    write(measure(), OUTPUT)
