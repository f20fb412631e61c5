"""The CPU part of the benchmarks: every implementation on the same tensors, verified against float64, then timed in
turns in one process, beside the rate of the machine's matrix product in the same turns."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clock import Timing, interleave
from memory import Crashed, peak_mib
from peers import IMPLEMENTATIONS, THREADS, Call, DoesNotApply, load_kernel, use_threads
from results import printed
from torch import Tensor
from verify import Wrong, verified_error
from workloads import DIM, Inputs, Workload, described, make_inputs, name_of, reference

GEMM_SIZE = 4096
# What the compiled paths ask the processor for.
FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "asimd")


def describe_machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = set(re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)[1].split())
    kernel = load_kernel()
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    peer = {d.name: d.version for d in importlib.metadata.distributions() if d.name in ("maxsim-cpu", "numpy")}
    return {
        "cpu": model[1] if model else platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": THREADS,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **dict(sorted(peer.items())),
        "kernel": kernel.__name__,
        "paths": {name_of(dtype): kernel.paths.default(torch.empty(1, dtype=dtype)) for dtype in dtypes},
    }


def multiplied_as(dtype: torch.dtype) -> torch.dtype:
    """The dtype whose matrix product is the limit: x86 and ARM CPUs here multiply float16 as float32."""
    return torch.float32 if dtype is torch.float16 else dtype


def gemms(dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """Ways to the best matrix product of this machine: MKL, behind `mm` in float32, leaves AVX-512 unused on AMD."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(multiplied_as(dtype)) for _ in range(2))
    calls = {"mm": lambda: torch.mm(a, b)}
    if torch.backends.mkldnn.is_available():
        a_onednn, b_onednn = a.to_mkldnn(), b.to_mkldnn()
        calls["oneDNN"] = lambda: torch.nn.functional.linear(a_onednn, b_onednn)
    return calls


def prepare(workload: Workload, inputs: Inputs) -> tuple[dict[str, Call], dict[str, dict[str, Any]]]:
    """The calls that may be timed, and a row for every implementation: its error and peak memory, or why not."""
    expected = reference(inputs)
    calls, rows = {}, {}
    for name, implementation in IMPLEMENTATIONS.items():
        try:
            call = implementation(inputs)
            peak = peak_mib(workload.name, name)
            rows[name] = {"err": verified_error(name, call, expected, workload), "peak_MiB": peak}
            calls[name] = call
        except Wrong as reason:
            if name == "ours":
                raise RuntimeError(f"{workload.name}: {name} is {reason}") from None
            rows[name] = {"error": str(reason)}
        except (DoesNotApply, Crashed) as reason:
            rows[name] = {"error": str(reason)}
    return calls, rows


def measure_workload(workload: Workload, turns: int) -> tuple[list[dict[str, Any]], float]:
    """The workload's rows, and the GFLOP/s of the faster matrix product in the same turns."""
    inputs = make_inputs(workload)
    calls, rows = prepare(workload, inputs)
    products = gemms(workload.dtype)
    timings = interleave(calls | products, turns)
    gemm_rate = 2 * GEMM_SIZE**3 / min(timings.pop(name).median for name in products) / 1e9
    for name, timing in timings.items():
        rows[name] = timed_row(workload, inputs, timing, gemm_rate) | rows[name]
    return [
        {"kind": workload.kind, "name": workload.name, "impl": name, **row} for name, row in rows.items()
    ], gemm_rate


def timed_row(workload: Workload, inputs: Inputs, timing: Timing, gemm_rate: float) -> dict[str, Any]:
    """`floor_ms` is how long the similarities would take at the rate of the matrix product (forward only)."""
    ms = timing.median * 1e3
    if workload.kind == "overhead":
        return {"host_us": ms * 1e3, "quartiles_us": [timing.low * 1e6, timing.high * 1e6]}
    row = {"ms": ms, "quartiles_ms": [timing.low * 1e3, timing.high * 1e3]}
    if workload.kind == "forward":
        floor = inputs.flops / gemm_rate / 1e6
        row |= {"floor_ms": floor, "of_floor": floor / ms}
    return row


def measure(turns: int, workloads: list[Workload]) -> dict[str, Any]:
    """Machine, GEMM rates and rows, in the row format that all results share: kind, name, impl and measurements."""
    use_threads()
    all_rows, rates = [], defaultdict(list)
    for workload in workloads:
        rows, rate = measure_workload(workload, turns)
        rates[name_of(multiplied_as(workload.dtype))].append(rate)
        all_rows += rows
        for row in rows:
            printed(row)
    return {
        "machine": describe_machine(),
        "dim": DIM,
        "turns": turns,
        "gemm_GFLOPs": {dtype: statistics.median(seen) for dtype, seen in rates.items()},
        "workloads": {w.name: described(w) for w in workloads},
        "rows": all_rows,
    }
