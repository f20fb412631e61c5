"""Times and memory of a call on a CUDA device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from peers import Call
from torch import Tensor

WARMUP_MS, REPEAT_MS = 15, 60
CALLS, ROUNDS = 200, 5


def device_ms(call: Callable[[], object], repeat_ms: int = REPEAT_MS) -> float:
    """Median time on the device, L2 flushed before each call."""
    from triton.testing import do_bench

    return do_bench(call, warmup=WARMUP_MS, rep=repeat_ms, return_mode="median")


def host_us(call: Callable[[], object]) -> float:
    """How long it takes to issue one call: the mean of 200 in a row, of which the median of five rounds."""
    rounds = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        rounds.append((time.perf_counter() - start) / CALLS * 1e6)
    torch.cuda.synchronize()
    return statistics.median(rounds[1:])


def peak_mib(call: Call, inputs: tuple[Tensor, ...]) -> float:
    """MiB at the highest point of one call beyond what is there already; the gradients of `inputs` do not count."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    gradients = sum(tensor.nbytes for tensor in inputs)
    return (torch.cuda.max_memory_allocated() - before - gradients) / 2**20


def graphed(call: Call) -> tuple[torch.cuda.CUDAGraph, Tensor | tuple[Tensor, ...]]:
    """The call as a CUDA graph, and the tensors that a replay fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


def copy_tbps() -> float:
    """Bytes read and written a second by a copy of 4 GiB, in TB/s, which are also 1e9 bytes/ms."""
    source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / device_ms(lambda: target.copy_(source), 200) / 1e9


def gemm_tflops() -> float:
    """cuBLAS on random bfloat16 matrices of 8192 x 8192, in TFLOP/s, which are also 1e9 FLOP/ms."""
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    return 2 * 8192**3 / device_ms(lambda: a @ b.T, 300) / 1e9
