"""What becomes of scores in training: the contrastive loss beside the same composed of scores, and the soft maximum
beside colpali-engine's operations. Rows have the format of gpu.py's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import gpu_clock as clock
import torch
from gpu_peers import installed
from peers import load_kernel
from torch import Tensor
from torch.nn.functional import cross_entropy
from verify import Wrong
from workloads import DIM, unit_tokens

if TYPE_CHECKING:
    from gpu import Run
    from results import Row

TEMPERATURE = TAU = 0.1
# Queries, documents, tokens of each.
LOSSES = {
    "loss-128x300": (128, 128, 32, 300),
    "loss-1024x300": (1024, 1024, 32, 300),
}
SOFT = {
    "soft-32x1030": (32, 32, 32, 1030),
    "soft-128x300": (128, 128, 32, 300),
}

Scores = Callable[[Tensor, Tensor], Tensor]


def tensors(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    queries, documents, query_tokens, document_tokens = shape
    generator = torch.Generator("cuda").manual_seed(0)
    sides = ((queries, query_tokens, DIM), (documents, document_tokens, DIM))
    return tuple(unit_tokens(side, generator).bfloat16().requires_grad_() for side in sides)


def diagonal_cross_entropy(scores: Tensor) -> Tensor:
    return cross_entropy(scores.float() / TEMPERATURE, torch.arange(len(scores), device=scores.device))


def composed(scores: Scores) -> Scores:
    return lambda Q, D: diagonal_cross_entropy(scores(Q, D))


def smooth(Q: Tensor, D: Tensor) -> Tensor:
    """As in colpali-engine's losses."""
    return (TAU * torch.logsumexp(torch.einsum("bnd,csd->bcns", Q, D) / TAU, dim=3)).sum(dim=2)


def implementations(kind: str) -> dict[str, Callable[[], Scores]]:
    kernel = load_kernel()
    if kind == "soft":
        return {"ours": lambda: lambda Q, D: kernel.soft_maxsim(Q, D, tau=TAU), "eager": lambda: smooth}
    return {
        "ours": lambda: lambda Q, D: kernel.contrastive_loss(Q, D, temperature=TEMPERATURE),
        "ours, composed": lambda: composed(kernel.maxsim),
        "lik": lambda: composed(installed("late_interaction_kernels").maxsim),
    }


def expected(kind: str, Q: Tensor, D: Tensor) -> Tensor:
    """In float32 from the same bfloat16 tokens, sixteen queries at a time; the loss's softmax in float64."""
    with torch.no_grad():
        if kind == "soft":
            return torch.cat([smooth(part.float(), D.float()) for part in Q.split(16)])
        return diagonal_cross_entropy(load_kernel().maxsim(Q.float(), D.float()).double())


def measure(make: Callable[[], Scores], Q: Tensor, D: Tensor, want: Tensor) -> Row:
    value = make()
    error = ((value(Q, D).double() - want.double()).abs().max() / want.abs().max()).item()
    if not error <= 0.02:
        raise Wrong(f"off by {error:.1e}")

    def step() -> tuple[Tensor, ...]:
        result = value(Q, D)
        return torch.autograd.grad(result, (Q, D), torch.ones_like(result))

    with torch.no_grad():
        forward_ms = clock.device_ms(lambda: value(Q, D))
    return {"ms": clock.device_ms(step), "fwd_ms": forward_ms, "err": error, "peak_MiB": clock.peak_mib(step, (Q, D))}


def losses(run: Run) -> None:
    for kind, workloads in (("loss", LOSSES), ("soft", SOFT)):
        for name, shape in workloads.items():
            missing = [impl for impl in implementations(kind) if not run.results.find(kind, name, impl)]
            if missing and run.wants(name):
                Q, D = tensors(shape)
                want = expected(kind, Q, D)
                for impl in missing:
                    value = implementations(kind)[impl]
                    run.attempt(kind, name, impl, partial(measure, value, Q, D, want))
