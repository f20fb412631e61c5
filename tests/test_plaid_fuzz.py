"""Random residual documents on a GPU: float64, every layout, codes and offsets that name nothing.
MAXSIM_FUZZ_PROBLEMS says how many for each path; under a sanitizer it searches for stray accesses."""

from __future__ import annotations

import os
import random

import pytest
import torch
from helpers import Path, load_kernel
from torch import Tensor

PROBLEMS = int(os.environ.get("MAXSIM_FUZZ_PROBLEMS", "40"))
LIMITS = {torch.float16: 2e-4, torch.bfloat16: 3e-3, torch.float32: 1e-5}
EMPTY = -7.0

maxsim = load_kernel()


class Problem:
    """Packed documents of any lengths, and queries; `bad` is a document with a code that names no centroid."""

    def __init__(self, rng: random.Random, path: str) -> None:
        self.path, self.nbits = path, rng.choice([1, 2, 2, 4, 8])
        self.dim = rng.choice([128, 128, 128, 128, 8, 24, 64, 96, 101, 136])
        self.dtype = rng.choice([torch.float16, torch.float16, torch.bfloat16, torch.float32])
        self.normalize, self.whole_lists = rng.random() < 0.8, rng.random() < 0.5
        count = rng.choice([1, 3, 7, 40, 300, 2500])
        longest = rng.choice([1, 16, 17, 40, 300] if count > 10 else [1, 40, 700, 20_000])
        self.lengths = torch.randint(0, longest + 1, (count,), device="cuda")
        tokens = int(self.lengths.sum())
        self.centroid_count = rng.choice([1, 40, 1000, 40_000 if self.dim == 128 else 40])
        kinds = [torch.int32, torch.int64]
        kinds += [torch.int16] if self.centroid_count < 1 << 15 else []
        kinds += [torch.uint8] if self.centroid_count <= 256 else []
        self.codes = torch.randint(self.centroid_count, (tokens,), device="cuda").to(rng.choice(kinds))
        self.residuals = torch.randint(256, (tokens, -(-self.dim * self.nbits // 8)), device="cuda").byte()
        self.offsets = torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0)).to(
            rng.choice([torch.int32, torch.int64])
        )
        self.centroids = torch.randn(self.centroid_count, self.dim, device="cuda").div(self.dim**0.5).to(self.dtype)
        self.weights = torch.randn(2**self.nbits, device="cuda") * 0.1
        shape = rng.choice([(1, 32), (1, 32), (1, 5), (1, 33), (2, 32), (3, 70), (8, 32), (11, 7), (2, 300)])
        spread = 10.0 ** torch.randint(-3, 4, (*shape, 1), device="cuda") if self.normalize else 1.0
        self.queries = (torch.randn(*shape, self.dim, device="cuda") * spread).to(self.dtype)

    def __str__(self) -> str:
        return (
            f"{self.path}: {tuple(self.queries.shape)} x {len(self.lengths)} documents of {len(self.codes)} tokens, "
            f"{self.centroid_count} centroids, {self.nbits} bits, {self.dtype}, {self.codes.dtype}, "
            f"normalize={self.normalize}"
        )

    @property
    def stored(self) -> tuple[object, ...]:
        return self.codes, self.residuals, self.offsets, self.centroids, self.weights, self.nbits

    def tokens(self) -> Tensor:
        wide = (self.codes, self.residuals, self.centroids.double(), self.weights.double(), self.nbits)
        return maxsim.reference.decompress(*wide, self.normalize)

    def in_double(self) -> tuple[Tensor, Tensor]:
        """Scores, and how large the sums behind them may be."""
        queries, tokens = self.queries.double(), self.tokens()
        if self.normalize:
            queries = torch.nn.functional.normalize(queries, dim=-1, eps=1e-12)
        best = torch.stack(
            [torch.segment_reduce(tokens @ query.T, "max", lengths=self.lengths).sum(-1) for query in queries]
        )
        norms = torch.segment_reduce(tokens.norm(dim=-1), "max", lengths=self.lengths, initial=0)
        terms = queries.norm(dim=-1).sum(-1)[:, None] * norms
        return best.where(self.lengths > 0, EMPTY), terms

    def score(self, **options: object) -> Tensor:
        arguments = {"normalize": self.normalize, "empty_score": EMPTY, **options}
        stored = options.pop("stored", self.stored)
        arguments.pop("stored", None)
        return maxsim.plaid.maxsim_residual_varlen(self.queries, *stored, **arguments)


def close(got: Tensor, want: Tensor, terms: Tensor, limit: float) -> bool:
    return bool(((got - want).abs() <= limit * (want.abs() + 0.3 * terms) + 1e-12).all())


def with_change(tensor: Tensor, place: int, value: int) -> Tensor:
    out = tensor.clone()
    out[place] = value
    return out


def test_random_residual_documents(path: Path) -> None:
    if path.device != "cuda":
        pytest.skip("test_plaid.py searches on the CPU")
    rng = random.Random(path.name)
    torch.manual_seed(rng.randrange(1 << 30))
    for _ in range(PROBLEMS):
        p = Problem(rng, path.name)
        want, terms = p.in_double()
        scores = p.score()
        assert close(scores, want, terms, LIMITS[p.dtype]), p
        if p.normalize and len(p.codes):
            prepared = maxsim.plaid.prepare_index(*p.stored)
            assert close(prepared.score(p.queries, empty_score=EMPTY), want, terms, LIMITS[p.dtype]), p
        if not len(p.codes):
            continue
        row = rng.randrange(len(p.codes))
        document = int(torch.searchsorted(p.offsets, row, right=True)) - 1
        others = torch.arange(len(p.lengths), device="cuda") != document
        code = rng.choice(
            [
                c
                for c in (-1, p.centroid_count, -(2**15))
                if torch.iinfo(p.codes.dtype).min <= c <= torch.iinfo(p.codes.dtype).max
            ]
            or [255]
        )
        if code < 0 or code >= p.centroid_count:
            spoiled = p.score(stored=(with_change(p.codes, row, code), *p.stored[1:]))
            assert spoiled[:, document].isnan().all() and torch.equal(spoiled[:, others], scores[:, others]), p
        for value in (-3, len(p.codes) + 1, 1 << 30, rng.randrange(len(p.codes) + 1)):
            place = rng.randrange(len(p.offsets))
            offsets = with_change(p.offsets, place, value)
            hostile = p.score(stored=(p.codes, p.residuals, offsets, *p.stored[3:]))
            begins, ends = offsets[:-1], offsets[1:]
            valid = (begins >= 0) & (begins <= ends) & (ends <= len(p.codes))
            assert torch.equal(hostile.isnan().any(0), ~valid), p
            same = valid & (begins == p.offsets[:-1]) & (ends == p.offsets[1:])
            assert torch.equal(hostile[:, same], scores[:, same]), p
