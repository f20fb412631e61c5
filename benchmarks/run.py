"""Measures the kernel and its peers on this machine; `make bench` runs it.
A whole run writes benchmarks/results/cpu.json and the tables made from it; a part of one only prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cpu
import table
from workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORKLOAD", choices=[w.name for w in WORKLOADS])
    parser.add_argument("--turns", type=int, default=15, help="samples of each implementation (%(default)s)")
    parser.add_argument("--output", type=Path, help="write the results there and leave the documents alone")
    arguments = parser.parse_args()

    result = cpu.measure(arguments.turns, arguments.only)
    print(table.cpu_summary(result))
    whole_run = not arguments.only and arguments.output is None
    output = table.CPU_RESULTS if whole_run else arguments.output
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")
    if whole_run:
        table.update()


if __name__ == "__main__":
    main()
