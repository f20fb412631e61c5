"""A kernel that reads and does nothing else: what the memory gives a call as short as the one beside it, launch
included. The floor is made of a copy's rate, which takes 4 GiB to reach."""

from __future__ import annotations

import gpu_clock as clock
import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = 8192  # that a program asks for before it looks at the first
PROGRAMS = 8  # for each multiprocessor, if there is enough to read


@triton.jit
def read(words, found, count, WORDS: tl.constexpr):
    most = tl.full((), -(2**31), tl.int32)
    for first in range(tl.program_id(0) * WORDS, count, tl.num_programs(0) * WORDS):
        at = first + tl.arange(0, WORDS)
        some = tl.load(words + at, mask=at < count, other=-(2**31), eviction_policy="evict_first")
        most = tl.maximum(most, tl.max(some, 0))
    tl.store(found + tl.program_id(0), most)


def reading_ms(tensor: Tensor) -> float:
    """Median time on the device of reading every element once, clocked as calls are."""
    words = tensor.view(torch.int32).flatten()
    sms = torch.cuda.get_device_properties(tensor.device).multi_processor_count
    programs = min(triton.cdiv(words.numel(), WORDS), sms * PROGRAMS)
    found = torch.empty(programs, dtype=torch.int32, device=tensor.device)
    call = lambda: read[(programs,)](words, found, words.numel(), WORDS, num_warps=8)  # noqa: E731
    call()
    if int(found.max()) != int(words.max()):
        raise RuntimeError("the reading kernel did not read everything")
    return clock.device_ms(call)
