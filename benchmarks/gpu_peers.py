"""What is timed on a GPU, by name: the kernel, late-interaction-kernels, flash-maxsim and eager torch.
As in peers.py, each takes a workload's inputs and gives the call to time."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType

from peers import Call, DoesNotApply, eager, einsum, ours, step
from workloads import Inputs


def installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DoesNotApply("not installed") from None


def lik(inputs: Inputs) -> Call:
    return step(inputs, partial(installed("late_interaction_kernels").maxsim, inputs.queries, inputs.documents))


def flash(inputs: Inputs) -> Call:
    module = installed("flash_maxsim")
    shared = inputs.workload.layout == "cross"
    if inputs.queries.requires_grad:
        entry = partial(module.flash_maxsim_batched_train, shared_docs=shared)
    elif shared:
        entry = partial(module.flash_maxsim_batched, shared_docs=True)
    else:
        entry = module.flash_maxsim_rerank_padded
    return step(inputs, partial(entry, inputs.queries, inputs.documents))


IMPLEMENTATIONS: dict[str, Callable[[Inputs], Call]] = {
    "ours": ours,
    "lik": lik,
    "flash": flash,
    "eager": eager(einsum),
}
