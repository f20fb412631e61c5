"""A library's losses on its torch path, on the kernel and on LIK, for tests/gpu_integrations.py.
What is compared are values and gradients, and the time and memory of the same step."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from gpu_losses import BACKENDS, CASES, Case, Sizes
from torch import Tensor

if TYPE_CHECKING:
    from gpu_integrations import Run


def step_of(case: Case, parameters: list[Tensor]) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    loss = case.build()

    def step() -> tuple[Tensor, list[Tensor]]:
        for parameter in parameters:
            parameter.grad = None
        value = loss()
        value.backward()
        return value.detach().float(), [p.grad.float() for p in parameters]

    return step


def error(got: tuple[Tensor, list[Tensor]], want: tuple[Tensor, list[Tensor]]) -> float:
    """The worst of the value's and the gradients' relative errors."""
    pairs = [(got[0], want[0]), *zip(got[1], want[1], strict=True)]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-20)) for a, b in pairs)


def losses_of(library: str) -> Callable[[Run], None]:
    def section(run: Run) -> None:
        patch, unpatch = (getattr(run.maxsim.integrations, f"{verb}_{library}") for verb in ("patch", "unpatch"))
        sizes = Sizes(8, 6, 14, 1, 3, 32) if run.small else Sizes()
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            for case in CASES[library](sizes, dtype, run.device):
                compare(run, library, case, dtype, patch, unpatch)

    return section


def compare(run: Run, library: str, case: Case, dtype: torch.dtype, patch: Callable, unpatch: Callable) -> None:
    """One loss on the library's torch path, on the kernel, and on LIK where the library takes it."""
    variable = BACKENDS.get(library)
    paths = {"torch": "torch", "maxsim": "auto"}
    if variable and run.gpu and find_spec("late_interaction_kernels"):
        paths["lik"] = "lik"
    found, exact = {}, None
    if dtype is not torch.float32:  # the truth: the torch path on the same numbers in fp32
        kept = [p.data for p in case.parameters]
        for parameter, data in zip(case.parameters, kept, strict=True):
            parameter.data = data.float()
            parameter.grad = None
        exact = _on("torch", variable, case)()
        for parameter, data in zip(case.parameters, kept, strict=True):
            parameter.grad = None
            parameter.data = data
    for name, backend in paths.items():
        if name == "maxsim":
            patch()
        try:
            step = _on(backend, variable, case)
            found[name] = step()
            run.record(f"{case.name}, {dtype}, {name}", step_ms=run.ms(step, 7), peak_MiB=run.peak(step))
        except Exception as problem:  # what a peer cannot do is a finding, not the end
            if name == "maxsim":
                raise
            run.record(f"{case.name}, {dtype}, {name}", failed=f"{type(problem).__name__}: {str(problem)[:200]}")
        finally:
            unpatch()
            if variable:
                os.environ.pop(variable, None)
    if "torch" not in found:
        return
    if exact is None:
        off = error(found["maxsim"], found["torch"])
        run.check(f"{case.name}, {dtype}: value and gradients as in torch", off <= 1e-3, f"{off:.1e}")
    else:
        off, theirs = error(found["maxsim"], exact), error(found["torch"], exact)
        detail = f"{off:.1e} off fp32, torch {theirs:.1e}"
        run.check(f"{case.name}, {dtype}: as near to fp32 as torch", off <= max(1.2 * theirs, 5e-3), detail)


def _on(backend: str, variable: str | None, case: Case) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    if variable:
        os.environ[variable] = backend
    return step_of(case, case.parameters)
