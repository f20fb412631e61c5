"""Metadata that nobody checked, straight into the ops: the right answer or a clean error, never a crash.
MAXSIM_FUZZ_SECONDS says for how long; a sanitizer build under LOCAL_KERNELS makes it a search for stray reads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import torch
from helpers import load_kernel
from helpers_metadata import (
    EXTREMES,
    Problem,
    argmax_width,
    indices,
    is_sound,
    longest_query,
    problems,
    rarely,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

SECONDS = float(os.environ.get("MAXSIM_FUZZ_SECONDS", "12"))

maxsim = load_kernel()
ops = sys.modules[f"{maxsim.__name__}._ops"].ops
ON_CPU = [p for p in range(16) if ops.available_paths() >> p & 1]


def examples(prove: Callable[[st.DataObject], None], share: float) -> None:
    """Fresh examples, a hundred at a time, for this share of the time."""
    configured = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    hundred = configured(given(st.data())(prove))
    end = time.monotonic() + SECONDS * share
    while True:
        hundred()
        if time.monotonic() >= end:
            return


def attempt(op: Callable, *arguments: object) -> Tensor | tuple[Tensor, Tensor] | None:
    """The op's answer, or None where it refused; anything but a RuntimeError with a message is a failure."""
    try:
        return op(*arguments)
    except RuntimeError as error:
        assert str(error).strip()
        return None


def in_double(p: Problem) -> Problem:
    """The problem in float64, both sides leaves."""
    return p._replace(
        queries=p.queries.double().detach().requires_grad_(), documents=p.documents.double().detach().requires_grad_()
    )


def test_ops_on_any_metadata():
    def prove(data: st.DataObject) -> None:
        draw = data.draw
        problem, normalize, empty_score = problems(draw), draw(st.booleans()), draw(st.sampled_from([0.0, -5.0]))
        path, sound = draw(st.sampled_from([0, *ON_CPU])), is_sound(problem)
        scores = attempt(ops.forward, *problem, normalize, empty_score, path, False)
        assert (scores is not None) == sound or scores.numel() == 0

        width = draw(st.integers(-2, 25)) if rarely(draw) or not sound else argmax_width(problem)
        mode = draw(st.integers(0, 2))
        both = attempt(ops.forward_argmax, *problem, normalize, empty_score, path, False, width, mode)
        packed = problem.query_offsets is not None
        fits = width >= longest_query(problem) if packed else width == problem.queries.shape[1]
        if not (sound and fits):
            assert both is None or both[0].numel() == 0
            return
        assert torch.equal(both[0], scores)
        exact = in_double(problem)
        want, winners = maxsim.reference.score(exact, normalize, empty_score, width)
        torch.testing.assert_close(scores.double(), want.detach(), rtol=1e-5, atol=1e-5)

        weights = torch.randint(-2, 3, scores.shape, generator=torch.Generator().manual_seed(0)).float()
        grads = attempt(ops.backward, weights, both[1], *problem, normalize, True, True, 0, path)
        assert [grad.shape for grad in grads] == [problem.queries.shape, problem.documents.shape]
        if not normalize:  # rounding decides between the winners of unit vectors, but nothing is rounded here
            assert torch.equal(both[1], winners)
            exact_grads = torch.autograd.grad(want, (exact.queries, exact.documents), weights.double())
            for got, grad in zip(grads, exact_grads, strict=True):
                torch.testing.assert_close(got, grad.to(got.dtype), rtol=0, atol=0)

    examples(prove, 0.6)


def test_backward_on_any_argmax():
    """Winners that no forward pass found: refused, or bounded by the document they point into."""

    def prove(data: st.DataObject) -> None:
        draw = data.draw
        problem, path = problems(draw), draw(st.sampled_from([0, *ON_CPU]))
        scores = attempt(ops.forward, *problem, False, 0.0, path, False)
        shape = (2,) if scores is None else scores.shape
        width = draw(st.integers(0, 25)) if scores is None or draw(st.booleans()) else argmax_width(problem)
        some = draw(st.lists(st.integers(-2, 21), min_size=1, max_size=8))
        if rarely(draw):
            some += EXTREMES[torch.int32]
        count = width * int(torch.Size(shape).numel())
        argmax = torch.tensor(some, dtype=torch.int32).repeat(count)[:count].reshape(*shape, width)
        need_queries, need_documents = draw(st.booleans()), draw(st.booleans())
        arguments = (torch.ones(shape), argmax, *problem, draw(st.booleans()), need_queries, need_documents, 0, path)
        grads = attempt(ops.backward, *arguments)
        if grads is not None:
            assert grads[0].shape == (problem.queries.shape if need_queries else (0,))
            assert grads[1].shape == (problem.documents.shape if need_documents else (0,))

    examples(prove, 0.2)


def public_call(draw: Callable, p: Problem) -> tuple[str, tuple] | None:
    """The public function for the problem's layout, where there is one that takes metadata, and its arguments."""
    if p.queries.dim() == 3 and p.documents.dim() == 4:
        lengths = indices(draw, p.queries.shape[0], 0, p.queries.shape[1])
        own = indices(draw, p.documents.shape[0] * p.documents.shape[1], 0, p.documents.shape[2])
        return "score_candidates_padded", (p.queries, p.documents, lengths, own.reshape(p.documents.shape[:2]))
    if p.document_offsets is None:
        return None
    if p.query_offsets is None:
        return "score_contrastive", (p.queries, p.documents, p.document_offsets)
    if p.pair_queries is None:
        return None
    sides = (p.queries, p.query_offsets, p.documents, p.document_offsets)
    return "score_pairs_packed", (*sides, p.pair_queries, p.pair_documents)


def test_public_functions_on_any_metadata():
    """What they accept they score as the reference does, and what they refuse they refuse by ValueError."""

    def prove(data: st.DataObject) -> None:
        call = public_call(data.draw, problems(data.draw))
        if call is None:
            return
        outcomes = []
        for suffix in ("", "_reference"):
            try:
                outcomes.append(getattr(maxsim, call[0] + suffix)(*call[1]))
            except ValueError as error:
                outcomes.append(str(error))
        if isinstance(outcomes[0], str):
            assert outcomes[0] == outcomes[1]
        else:
            torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-5, atol=1e-5)

    examples(prove, 0.2)
