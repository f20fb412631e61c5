"""Random problems on a GPU, shapes that no other test thinks of: float64, every layout, and metadata out of range.
MAXSIM_FUZZ_PROBLEMS says how many for each path; under a sanitizer it searches for stray accesses."""

from __future__ import annotations

import os
import random
import sys

import pytest
import torch
from helpers import load_kernel
from torch import Tensor
from torch.nn.functional import normalize as unit

PROBLEMS = int(os.environ.get("MAXSIM_FUZZ_PROBLEMS", "60"))
LENGTHS = [1, 2, 7, 8, 30, 31, 32, 33, 63, 64, 65, 100, 104, 128, 129, 152, 191, 192, 193, 300, 305, 700]
DIMS = [1, 8, 31, 40, 48, 64, 65, 96, 100, 128, 128, 128, 129, 200, 320, 768]
PAIRS_OF_DTYPES = [(a, b) for a in (torch.float32, torch.bfloat16, torch.float16) for b in (a, a, a, torch.float16)]
EMPTY = -7.0

maxsim = load_kernel()
ops = sys.modules[f"{maxsim.__name__}._ops"].ops
number_of = maxsim.paths._NUMBERS


class Problem:
    """Padded tensors with masks, and what float64 says of them."""

    def __init__(self, rng: random.Random) -> None:
        big = rng.random() < 0.15
        self.queries_count, self.documents_count = (
            (rng.randint(1, 40), rng.randint(1, 60)) if big else (rng.randint(1, 9), rng.randint(1, 12))
        )
        self.query_length = rng.choice([1, 3, 16, 31, 32, 33, 64, 70, 130] + ([] if big else [300, 600]))
        self.document_length = rng.choice([30, 104, 180, 300] if big else LENGTHS)
        self.dim, self.normalize, self.dtypes = rng.choice(DIMS), rng.random() < 0.4, rng.choice(PAIRS_OF_DTYPES)
        self.queries = self._side(self.queries_count, self.query_length, self.dtypes[0])
        self.documents = self._side(self.documents_count, self.document_length, self.dtypes[1])
        whole = rng.random() < 0.4
        self.query_mask = None if whole else torch.rand(self.queries.shape[:2], device="cuda") < 0.8
        self.document_mask = None if whole else torch.rand(self.documents.shape[:2], device="cuda") < 0.6

    def _side(self, count: int, length: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(count, length, self.dim, device="cuda").to(dtype)

    def __str__(self) -> str:
        shapes = f"{tuple(self.queries.shape)} x {tuple(self.documents.shape)} {self.dtypes}"
        return f"{shapes} normalize={self.normalize} masked={self.query_mask is not None}"

    def in_double(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, how large the sums behind them may be, and similarities without masked document tokens."""
        queries, documents = self.queries.double(), self.documents.double()
        if self.normalize:
            queries, documents = unit(queries, dim=-1), unit(documents, dim=-1)
        similarities = torch.einsum("qid,njd->qnij", queries, documents)
        terms = queries.norm(dim=-1).sum(-1)[:, None] * documents.norm(dim=-1).amax(-1)
        if self.query_mask is None:
            return similarities.amax(-1).sum(-1), terms, similarities
        similarities = similarities.masked_fill(~self.document_mask[:, None], -torch.inf)
        best = similarities.amax(-1).masked_fill(~self.query_mask[:, None], 0.0)
        return best.sum(-1).where(self.document_mask.any(-1), EMPTY), terms, similarities


def strided(tensor: Tensor, between: int) -> Tensor:
    """The same values, with other memory between features or behind rows."""
    wide = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] * between + 3)
    view = wide[..., : tensor.shape[-1] * between : between]
    view.copy_(tensor)
    return view


def layouts(p: Problem, rng: random.Random, score):
    """Names, and scores that must have the bits of `want[query, document]`."""
    masks, none = (p.query_mask, p.document_mask), [None] * 4
    slab = p.documents.expand(p.queries_count, *p.documents.shape)
    slab_mask = None if p.document_mask is None else p.document_mask.expand(p.queries_count, -1, -1)
    every = torch.cartesian_prod(torch.arange(p.queries_count), torch.arange(p.documents_count)).cuda()
    grid = (p.queries_count, p.documents_count)
    yield "slab", score(p.queries, slab, *none, masks[0], slab_mask, None, None)
    yield "own copies", score(p.queries, slab.contiguous(), *none, masks[0], slab_mask, None, None)
    order = torch.randperm(len(every), device="cuda")
    listed = score(p.queries, p.documents, *none, *masks, every[order, 0], every[order, 1].int())
    yield "pair list", torch.empty_like(listed).scatter_(0, order, listed).view(grid)
    offsets = [
        torch.arange(n + 1, device="cuda") * length
        for n, length in zip(grid, (p.query_length, p.document_length), strict=True)
    ]
    flat_masks = [None if mask is None else mask.flatten() for mask in masks]
    packed = (p.queries.flatten(0, 1), p.documents.flatten(0, 1), offsets[0].int(), offsets[1], None, None, *flat_masks)
    yield "packed", score(*packed, None, None)
    between = rng.choice([1, 2])
    yield "strided", score(strided(p.queries, between), strided(p.documents, between), *none, *masks, None, None)
    beyond = offsets[1].clone()
    beyond[-1] = 1 << 30
    spoiled = score(*packed[:3], beyond, *packed[4:], None, None)
    assert spoiled[:, -1].isnan().all()
    if p.documents_count > 1:
        yield "beside a bad offset", torch.cat([spoiled[:, :-1], score(*packed, None, None)[:, -1:]], 1)


def test_random_problems(path):
    if path.device != "cuda":
        pytest.skip("tests/test_fuzz.py searches on the CPU")
    number, rng = number_of[path.name], random.Random(path.name)
    torch.manual_seed(rng.randrange(1 << 30))
    for _ in range(PROBLEMS):
        p = Problem(rng)
        options = (p.normalize, EMPTY, number, False)
        problem = (p.queries, p.documents, *[None] * 4, p.query_mask, p.document_mask, None, None)
        scores = ops.forward(*problem, *options)
        want, terms, similarities = p.in_double()
        assert ((scores - want).abs() <= 2e-6 * (want.abs() + 0.05 * terms)).all(), p
        with_argmax, winners = ops.forward_argmax(*problem, *options, p.query_length, 0)
        assert torch.equal(scores, with_argmax), p
        counts = similarities.amax(-1) > -torch.inf
        if p.query_mask is not None:
            counts &= p.query_mask[:, None]
        assert torch.equal(winners >= 0, counts), p
        won = similarities.gather(-1, winners.clamp(min=0).long()[..., None])[..., 0]
        short = (similarities.amax(-1) - won)[counts]
        assert (short <= 1e-5 * (1 if p.normalize else p.dim)).all(), p
        for layout, same in layouts(p, rng, lambda *problem, o=options: ops.forward(*problem, *o)):
            assert torch.equal(scores, same), f"{layout}: {p}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_more_than_two_to_the_31_elements(path, dtype):
    """The last document lies where a 32-bit index does not reach."""
    count, shape = (1 << 31) // (256 * 128) + 100, (256, 128)
    if path.device != "cuda" or torch.cuda.mem_get_info()[0] < count * 256 * 128 * 5:
        pytest.skip("needs a GPU with room for a large tensor")
    documents = torch.zeros(count, *shape, device="cuda", dtype=dtype)
    documents[-1] = 1
    scores = maxsim.maxsim(torch.ones(1, 32, 128, device="cuda", dtype=dtype), documents)
    assert scores[0, -3:].tolist() == [0.0, 0.0, 32 * 128.0]
    offsets = torch.arange(count + 1, device="cuda") * 256
    packed = maxsim.score_contrastive(
        torch.ones(1, 32, 128, device="cuda", dtype=dtype), documents.flatten(0, 1), offsets
    )
    assert torch.equal(scores, packed)
