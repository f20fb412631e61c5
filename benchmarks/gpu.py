"""The GPU part of the benchmarks: every implementation on the same tensors, verified against float64, then timed on
the device beside the time that the machine's own copy and matrix product would need."""

from __future__ import annotations

import importlib.metadata
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import gpu_clock as clock
import gpu_compressed
import gpu_training
import torch
from gpu_peers import IMPLEMENTATIONS
from gpu_workloads import FORMS, FORWARD, OVERHEAD, TRAIN, on_path, plain_of
from peers import Call, DoesNotApply, load_kernel
from results import Results, Row
from torch import Tensor
from verify import Wrong, rounds_similarities, verified_error
from workloads import Inputs, Workload, make_inputs, reference

DEVICE = "cuda"
PACKAGES = ("late-interaction-kernels", "flash-maxsim", "triton")
TURNS, TURN_MS = 7, 20
# Plain multiply-adds would take minutes for all workloads: two say what there is to say.
SLOW_PATHS = ("sm_fma",)

Measure = Callable[[str, Call, Inputs, tuple[Tensor, ...]], Row]


def describe_machine(kernel: ModuleType) -> dict[str, str]:
    versions = {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "kernel": kernel.__name__,
        **{name: versions[name] for name in PACKAGES if name in versions},
    }


@contextmanager
def settings(workload: Workload) -> Iterator[None]:
    """What holds while the workload is measured: the path it is held to, and whether torch allows TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = workload.form == "tf32"
    with load_kernel().paths.force(workload.path) if workload.path else nullcontext():
        yield
    torch.backends.cuda.matmul.allow_tf32 = before


@dataclass
class Run:
    """The rows of one run, its ceilings, and which workloads it is restricted to."""

    results: Results
    only: tuple[str, ...] = ()

    def floor_ms(self, nbytes: int, flops: int, speedup: int = 1) -> float:
        """The larger of the times for moving the bytes and for multiplying, at the rates measured in this run."""
        copy = self.results.once("copy_TBps", clock.copy_tbps)
        gemm = self.results.once("gemm_TFLOPs", clock.gemm_tflops)
        return max(nbytes / (copy * 1e9), flops / (speedup * gemm * 1e9))

    def wants(self, name: str) -> bool:
        return not self.only or any(part in name for part in self.only)

    def attempt(self, kind: str, name: str, impl: str, measure: Callable[[], Row]) -> None:
        """One more row. An implementation that fails leaves a row that says how, and the others go on."""
        try:
            row = measure()
        except (DoesNotApply, Wrong) as reason:
            row = {"error": str(reason)}
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}"[:200]}
        self.results.add({"kind": kind, "name": name, "impl": impl, **row})

    def workload(self, workload: Workload, measure: Measure, impls: Iterable[str] = IMPLEMENTATIONS) -> None:
        """A row of every implementation that has none yet, all on the same tensors."""
        missing = [impl for impl in impls if not self.results.find(workload.kind, workload.name, impl)]
        if not missing or not self.wants(workload.name):
            return
        inputs = make_inputs(workload, DEVICE)
        expected = reference(inputs)
        with settings(workload):
            for impl in missing:
                self.attempt(
                    workload.kind,
                    workload.name,
                    impl,
                    lambda impl=impl: measure(impl, IMPLEMENTATIONS[impl](inputs), inputs, expected),
                )

    def forward(self, impl: str, call: Call, inputs: Inputs, expected: tuple[Tensor, ...]) -> Row:
        error = verified_error(impl, call, expected, inputs.workload)
        floor, ms = self.floor_ms(inputs.nbytes, inputs.flops), clock.device_ms(call)
        return {"ms": ms, "floor_ms": floor, "of_floor": floor / ms, "err": error, "peak_MiB": clock.peak_mib(call, ())}

    def beside_reading(self, impl: str, call: Call, inputs: Inputs, expected: tuple[Tensor, ...]) -> Row:
        """A forward row, and in the kernel's the time that it takes to read the documents and do nothing else."""
        row = self.forward(impl, call, inputs, expected)
        if impl != "ours":
            return row
        from gpu_reading import reading_ms  # needs triton

        return row | {"reading_ms": reading_ms(inputs.documents)}

    def form(self, impl: str, call: Call, inputs: Inputs, expected: tuple[Tensor, ...]) -> Row:
        """A forward row, and the plain bf16 call's time scaled to as many multiply-adds, if that was measured."""
        row = self.forward(impl, call, inputs, expected)
        plain = next(form for form in FORMS if form.name == plain_of(inputs.workload))
        timed = row if plain is inputs.workload else self.results.find("forms", plain.name, impl)
        if timed is None or "ms" not in timed:
            return row
        plain_ms = timed["ms"] * inputs.flops / plain.flops
        return row | {"plain_ms": plain_ms, "of_plain": row["ms"] / plain_ms}

    def train(self, impl: str, call: Call, inputs: Inputs, expected: tuple[Tensor, ...]) -> Row:
        """Forward and backward. Who rounds similarities has other winners: then the scores are verified instead."""
        scoring = replace(inputs, grad_scores=None)
        score = IMPLEMENTATIONS[impl](scoring)
        if rounds_similarities(impl, inputs.workload):
            error = verified_error(impl, score, reference(scoring), inputs.workload)
        else:
            error = verified_error(impl, call, expected, inputs.workload)
        return {
            "ms": clock.device_ms(call),
            "fwd_ms": clock.device_ms(score),
            "err": error,
            "peak_MiB": clock.peak_mib(call, inputs.differentiable),
        }

    def in_turns(self, workload: Workload) -> None:
        """The times of the workload's rows once more, implementations taking turns: where a step takes the host longer
        to issue than the device to run, what slows the host for a while then slows all of them."""
        rows = [self.results.find(workload.kind, workload.name, impl) for impl in IMPLEMENTATIONS]
        rows = [row for row in rows if row and "ms" in row and "turns_ms" not in row]
        if not rows or not self.wants(workload.name):
            return
        inputs = make_inputs(workload, DEVICE)
        calls = [IMPLEMENTATIONS[row["impl"]](inputs) for row in rows]
        for _ in range(TURNS):
            for row, call in zip(rows, calls, strict=True):
                row.setdefault("turns_ms", []).append(clock.device_ms(call, TURN_MS))
        for row in rows:
            row["ms"] = statistics.median(row["turns_ms"])
        self.results.write()

    def overhead(self, impl: str, call: Call, inputs: Inputs, expected: tuple[Tensor, ...]) -> Row:
        row = {
            "err": verified_error(impl, call, expected, inputs.workload),
            "host_us": clock.host_us(call),
            "ms": clock.device_ms(call),
        }
        try:
            graph, out = clock.graphed(call)
        except RuntimeError as error:
            return row | {"graph_error": str(error)[:200]}
        out.zero_()
        graph.replay()
        verified_error(impl, lambda: out, expected, inputs.workload)
        return row | {"graph_ms": clock.device_ms(graph.replay), "graph_host_us": clock.host_us(graph.replay)}


def forward(run: Run) -> None:
    for workload in FORWARD:
        run.workload(workload, run.beside_reading)


def overhead(run: Run) -> None:
    for workload in OVERHEAD:
        run.workload(workload, run.overhead)


def train(run: Run) -> None:
    for workload in TRAIN:
        run.workload(workload, run.train)
        run.in_turns(workload)


def forms(run: Run) -> None:
    for workload in FORMS:
        run.workload(workload, run.form, ["ours"])


def paths(run: Run) -> None:
    """The paths that this device could take but does not."""
    available = [path for path in load_kernel().paths.available() if path.startswith("sm")]
    chosen = load_kernel().paths.default(torch.empty(1, 1, dtype=torch.bfloat16, device=DEVICE))
    for path in available:
        for workload in FORWARD:
            slow = path in SLOW_PATHS and workload.name not in ("text-long", "inbatch-128")
            if path != chosen and not slow:
                run.workload(on_path(workload, path), run.forward, ["ours"])


def compressed(run: Run, module: str) -> None:
    """A phase of gpu_compressed.py, for a kernel that has the module."""
    if hasattr(load_kernel(), module):
        getattr(gpu_compressed, module)(run)
    else:
        print(f"{module}: skipped, the kernel has no module of that name", flush=True)


PHASES: dict[str, Callable[[Run], None]] = {
    "forward": forward,
    "overhead": overhead,
    "train": train,
    "losses": gpu_training.losses,
    "forms": forms,
    "paths": paths,
    "plaid": lambda run: compressed(run, "plaid"),
    "fp8": lambda run: compressed(run, "fp8"),
    "int8": lambda run: compressed(run, "int8"),
    "binary": lambda run: compressed(run, "binary"),
}


def measure(phases: list[str], only: list[str], output: Path | None) -> Row:
    """All that the results hold now; each row was written to `output` as soon as there was one."""
    run = Run(Results(describe_machine(load_kernel()), output), tuple(only))
    for phase in phases:
        PHASES[phase](run)
    return run.results.content
