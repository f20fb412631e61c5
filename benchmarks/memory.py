"""Peak memory of one call, counted in a process of its own, which also keeps a peer's crash out of the harness.

count_malloc.cpp counts every allocation, also those of C++ and Rust code that torch's profiler and tracemalloc do not
see. Inputs, libraries and whatever the first call leaves behind are there before the count starts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from peers import IMPLEMENTATIONS, ROOT, use_threads
from workloads import WORKLOADS, make_inputs

SOURCE = Path(__file__).with_name("count_malloc.cpp")
LIBRARY = ROOT / ".build" / "bench" / "count_malloc.so"


class Crashed(Exception):
    """The process died; says of which signal."""


def compile_counter() -> None:
    if LIBRARY.exists() and LIBRARY.stat().st_mtime > SOURCE.stat().st_mtime:
        return
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX") or "g++"
    subprocess.run([compiler, "-std=c++17", "-O2", "-fPIC", "-shared", SOURCE, "-o", LIBRARY], check=True)


def peak_mib(workload: str, implementation: str) -> float:
    """MiB beyond the inputs, and beyond the gradients of a training step, at the highest point of one call."""
    compile_counter()
    done = subprocess.run(
        [sys.executable, __file__, workload, implementation],
        env=os.environ | {"LD_PRELOAD": str(LIBRARY)},
        capture_output=True,
        text=True,
    )
    if done.returncode < 0:
        raise Crashed(f"the process dies of {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise RuntimeError(f"{implementation} on {workload} fails: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(workload: str, implementation: str) -> float:
    """What `peak_mib` returns, in a process with the counter preloaded."""
    counter = ctypes.CDLL(None)
    counter.count_malloc_highest.restype = counter.count_malloc_reset.restype = ctypes.c_int64
    use_threads()
    (chosen,) = (w for w in WORKLOADS if w.name == workload)
    inputs = make_inputs(chosen)
    call = IMPLEMENTATIONS[implementation](inputs)
    call()
    gc.collect()
    before = counter.count_malloc_reset()
    call()
    gradients = sum(tensor.nbytes for tensor in inputs.differentiable)
    return (counter.count_malloc_highest() - before - gradients) / 2**20


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
