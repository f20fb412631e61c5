"""Measures the kernel and its peers on this machine; `make bench` runs it for the CPU.
A whole CPU run writes benchmarks/results/cpu.json and the tables made from it; everything else only prints, unless it
is told where to write."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cpu
import cpu_table
import gpu
import table
import torch
from results import write
from workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="measure the CUDA device instead of the CPU")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="workloads with this in their names")
    parser.add_argument("--turns", type=int, default=15, help="CPU: samples of each implementation (%(default)s)")
    parser.add_argument("--phases", nargs="+", default=list(gpu.PHASES), choices=gpu.PHASES, help="GPU: which kinds")
    parser.add_argument("--output", type=Path, help="write the results there; a GPU run goes on with what is there")
    arguments = parser.parse_args()
    sys.exit(measure_gpu(arguments) if arguments.gpu else measure_cpu(arguments))


def measure_cpu(arguments: argparse.Namespace) -> str | None:
    workloads = [w for w in WORKLOADS if not arguments.only or any(part in w.name for part in arguments.only)]
    if not workloads:
        return f"no CPU workload has {' or '.join(arguments.only)} in its name"
    result = cpu.measure(arguments.turns, workloads)
    print(cpu_table.summary(result))
    whole_run = not arguments.only and arguments.output is None
    output = table.CPU_RESULTS if whole_run else arguments.output
    if output is not None:
        write(result, output)
    if whole_run:
        table.update()
    return None


def measure_gpu(arguments: argparse.Namespace) -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    result = gpu.measure(arguments.phases, arguments.only, arguments.output)
    failed = [f"{row['kind']} {row['name']}" for row in result["rows"] if row["impl"] == "ours" and "error" in row]
    return f"the kernel failed: {', '.join(failed)}" if failed else None


if __name__ == "__main__":
    main()
