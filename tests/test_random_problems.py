"""Random problems against float64, forward and backward: shapes and layouts that no other test thinks of, and, on a
GPU, metadata out of range. docs/proving.md has the command for so many that they find what a few do not."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import pytest
import torch
from helpers import Path, load_kernel
from random_problems import DTYPES, Problem, Truth
from torch import Tensor

COUNTS = {
    name: int(os.environ.get(f"MAXSIM_{name.upper()}_PROBLEMS", str(few)))
    for name, few in (("forward", 60), ("backward", 30))
}
# A gradient's largest relative error in norm, beyond the rounding to its dtype that float64 gets too.
BOUNDS = {torch.bfloat16: 1e-3, torch.float16: 2e-4, torch.float32: 5e-6}
AT_ONCE = 200  # problems before the host looks

maxsim = load_kernel()
ops = sys.modules[f"{maxsim.__name__}._ops"].ops
number_of = maxsim.paths._NUMBERS

Wrong = dict[str, Tensor]  # what is claimed, and where it does not hold


def search(path: Path, count: int, prove: Callable[[Problem], Wrong]) -> None:
    """What `prove` says of so many problems; it leaves its results on the device."""
    generator = torch.Generator(path.device)
    for first in range(0, count, AT_ONCE):
        claims, found = [], []
        for number in range(first, min(first + AT_ONCE, count)):
            for claim, wrong in prove(Problem(path.name, number, path.device, generator)).items():
                claims.append((number, claim))
                found.append(wrong.any())
        broken = [claim for claim, wrong in zip(claims, torch.stack(found).tolist(), strict=True) if wrong]
        if broken:
            number = broken[0][0]
            names = ", ".join(claim for n, claim in broken if n == number)
            others = len({n for n, _ in broken}) - 1
            pytest.fail(f"{names}: {Problem(path.name, number, path.device, generator)} ({others} more problems)")


def differ(one: Tensor, other: Tensor) -> Tensor:
    """Bit for bit, but for which NaN it is."""
    integers = {2: torch.int16, 4: torch.int32}[one.element_size()]
    return (one.contiguous().view(integers) != other.contiguous().view(integers)) & ~(one.isnan() & other.isnan())


def with_winners(p: Problem, options: tuple, mode: int = 0) -> tuple[Tensor, Tensor]:
    return ops.forward_argmax(*p.first.arguments, *options, p.first.width, mode)


def test_forward(path):
    def prove(p: Problem) -> Wrong:
        options = (p.normalize, p.empty_score, number_of[path.name], False)
        scores, truth = ops.forward(*p.first.arguments, *options), Truth(p, p.first)
        repeated, winners = with_winners(p, options)
        got, winners = scores.flatten(), winners.view(-1, p.first.width)
        # Where terms cancel, what remains is their rounding; unit vectors of one feature are all rounded the same way.
        limit = 2e-6 * (truth.scores.abs() + (0.15 if p.normalize else 0.05) * truth.terms)
        if p.exact and not p.normalize:
            limit.zero_()
            places = torch.arange(truth.similarities.shape[-1], device=p.device)
            lowest = places.where(truth.similarities == truth.best[..., None], len(places)).amin(-1)
            badly_won = (winners != lowest) & truth.counts
        else:
            won = truth.similarities.gather(-1, winners.clamp(min=0).long()[..., None])[..., 0]
            badly_won = (truth.best - won > 1e-5 * (1 if p.normalize else p.queries.values.shape[-1])) & truth.counts
        second = ops.forward(*p.second.arguments, *options).flatten()
        # Pairs that both layouts score, by their numbers in the problem.
        numbers = [torch.tensor(x.numbers, device=p.device) for x in (p.first, p.second)]
        second = torch.empty(len(p.pairs), device=p.device).scatter_(0, numbers[1], second)[numbers[0]]
        return {
            "score": ~((got - truth.scores).abs() <= limit) & truth.sound,
            "NaN for what is out of range": ~got.isnan() & ~truth.sound,
            "the same score with winners": differ(scores, repeated),
            "the same score again": differ(scores, ops.forward(*p.first.arguments, *options)),
            "the same score in another layout": differ(got, second) & truth.sound,
            "who has a winner": (winners >= 0) != truth.counts,
            "winner": badly_won,
        }

    began = time.perf_counter()
    search(path, COUNTS["forward"], prove)
    print(f"\n{path.name}: {COUNTS['forward']} forward problems in {time.perf_counter() - began:.0f} s")


def beyond_rounding(got: Tensor, want: Tensor) -> Tensor:
    """How far ``got`` is from ``want``, less half of the distance between numbers of its dtype there."""
    info = torch.finfo(got.dtype)
    half = torch.ldexp(torch.full_like(want, info.eps / 4), want.frexp().exponent)
    return ((got.double() - want).abs() - half.clamp_min(info.smallest_normal * info.eps / 2)).clamp_min(0)


def test_backward(path):
    worst = {dtype: torch.zeros((), dtype=torch.float64, device=path.device) for dtype in DTYPES}

    def prove(p: Problem) -> Wrong:
        number = number_of[path.name]
        scores, winners = with_winners(p, (p.normalize, p.empty_score, number, False))
        weights = torch.randn(scores.shape, generator=p.generator, device=p.device)
        need = p.rng.choice([(True, True)] * 4 + [(True, False), (False, True)])

        def gradients(mode: int) -> tuple[Tensor, Tensor]:
            return ops.backward(weights, winners, *p.first.arguments, p.normalize, *need, mode, number)

        results = [gradients(mode) for mode in (1, 2, 2, 0)]
        exact = Truth(p, p.first).gradients(winners.view(-1, p.first.width), weights)
        wrong = {}
        for side, name in enumerate(("queries", "documents")):
            got, (want, size) = results[0][side], exact[side]
            if not need[side]:
                assert got.numel() == 0
                continue
            assert got.dtype is p.first.arguments[side].dtype and got.shape == p.first.arguments[side].shape
            for other, what in zip(results[1:], ("lowmem", "lowmem again", "auto"), strict=True):
                wrong[f"{name}: unified and {what} are the same"] = differ(got, other[side])
            # Of a zero vector with normalisation, 1e12 times what came in: float16 has no such number, and says inf.
            largest = torch.finfo(got.dtype).max
            rows, want = got.reshape(want.shape).clamp(-largest, largest), want.clamp(-largest, largest)
            # A sum of fp32 terms errs with the terms, however little is left of them; the true gradient may be zero.
            slack = 2e-7 * size.norm()
            excess, bound = beyond_rounding(rows, want).norm(), BOUNDS[torch.float32] * want.norm()
            wrong[f"{name}: beyond rounding"] = ~(excess <= bound + slack)
            wrong[f"{name}: zero where nothing won"] = (rows != 0) & (size == 0)
            if got.numel() >= 4096:  # one number that rounds to the other side is no part of a norm then
                error = (rows.double() - want.to(got.dtype).double()).norm()
                wrong[f"{name}: in norm"] = ~(error <= BOUNDS[got.dtype] * want.norm() + slack)
                worst[got.dtype].copy_(worst[got.dtype].maximum(error / (want.norm() + 0.01 * size.norm() + 1e-30)))
        return wrong

    began = time.perf_counter()
    search(path, COUNTS["backward"], prove)
    print(f"\n{path.name}: {COUNTS['backward']} backward problems in {time.perf_counter() - began:.0f} s")
    for dtype, error in worst.items():
        print(f"  largest relative error in norm, {dtype}: {error.item():.1e}")


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
