"""`kernels benchmark .` on this checkout: the script runs as the Hub's tool runs it, and every workload is verified."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from kernels.cli.benchmark import discover_benchmark_classes

ROOT = Path(__file__).resolve().parents[1]


def test_every_workload_is_verified(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    kernels = Path(sys.executable).with_name("kernels")
    process = subprocess.run(
        [kernels, "benchmark", ".", "--iterations", "2", "--warmup", "1", "--output", results],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    verified = {result["workload"]: result.get("verified") for result in json.loads(results.read_text())["results"]}
    (workloads,) = discover_benchmark_classes(ROOT / "benchmarks" / "benchmark.py", ROOT)
    names = {name.replace("benchmark_", "MaxSim.") for name in dir(workloads) if name.startswith("benchmark_")}
    assert verified == dict.fromkeys(names, True)
