"""Several processes against one: the same bits on every rank, and the example that torchrun starts.
Over gloo, and over NCCL where there are two GPUs or four."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from distributed_worker import SIZES, corpus, searches
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import distributed_table

ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
GROUPS = [("gloo", 3)] + [("nccl", n) for n in (2, 4) if torch.cuda.device_count() >= n]


@pytest.fixture(scope="module", params=GROUPS, ids=str)
def ranks(request, maxsim, tmp_path_factory) -> list[dict]:
    """What every rank found."""
    folder, (backend, count) = tmp_path_factory.mktemp("ranks"), request.param
    command = [sys.executable, str(ROOT / "tests/distributed_worker.py"), str(folder)]
    processes = [subprocess.Popen([*command, str(r), str(count), backend], env=ENVIRONMENT) for r in range(count)]
    assert [process.wait(timeout=120) for process in processes] == [0] * count
    return [{**torch.load(folder / f"{rank}.pt"), "backend": backend} for rank in range(count)]


def test_every_rank_finds_what_one_process_finds(maxsim, ranks):
    for number in range(len(SIZES)):
        *whole, _ = corpus(number, len(ranks), "cuda" if ranks[0]["backend"] == "nccl" else "cpu")
        want = [[x.cpu() for x in found] for found in searches(maxsim, maxsim.retrieve, *whole)]
        for rank in ranks:
            for known in (0, 1):
                got = rank["results"][2 * number + known]
                assert len(got) == len(want)
                for mine, theirs in zip(got, want, strict=True):
                    assert torch.equal(mine[1], theirs[1])
                    assert torch.equal(mine[0].view(torch.int32), theirs[0].contiguous().view(torch.int32))


def test_errors_name_the_argument(maxsim, ranks):
    for number, rank in enumerate(ranks):
        few, other = rank["errors"]
        assert few == f"sizes must be one number for each of {len(ranks)} ranks; got 1"
        assert other == f"sizes[{number}] must be {number}, the documents of rank {number}; got 99"
    with pytest.raises(RuntimeError, match="needs torch.distributed.init_process_group first"):
        maxsim.distributed.retrieve(torch.randn(1, 2, 4), torch.randn(3, 2, 4), 1)


def test_shards_have_tokens_of_about_equal_number(maxsim):
    lengths = torch.randint(0, 50, (1000,))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    for shards in (1, 2, 7):
        bounds = maxsim.distributed.shard_bounds(offsets.int(), shards)
        assert bounds[0] == 0 and bounds[-1] == 1000 and bounds == sorted(bounds)
        assert len(bounds) == shards + 1
        tokens = offsets[bounds].diff()
        assert (tokens - offsets[-1] / shards).abs().max() <= 50
    assert maxsim.distributed.shard_bounds(torch.tensor([0, 5]), 3) == [0, 1, 1, 1]
    assert maxsim.distributed.shard_bounds(torch.tensor([0]), 2) == [0, 0, 0]
    with pytest.raises(ValueError, match="shards must be an int of at least 1; got 0"):
        maxsim.distributed.shard_bounds(offsets, 0)
    with pytest.raises(ValueError, match=r"cu_seqlens_d\[0\] must be 0; got 1"):
        maxsim.distributed.shard_bounds(offsets + 1, 2)


def test_the_example(maxsim):
    example = ["examples/distributed/search.py", "--documents", "600", "--queries", "3", "--check"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *example]
    process = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert process.returncode == 0, process.stderr
    first, second, third = process.stdout.splitlines()
    assert first.startswith("600 documents on 2 x") and third == "bit for bit what one process finds"


def test_the_benchmark(maxsim, tmp_path):
    output = tmp_path / "rows.json"
    options = ["--device", "cpu", "--ranks", "1,2", "--scale", "0.001", "--output", str(output)]
    command = [sys.executable, "benchmarks/gpu_distributed.py", *options]
    process = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert process.returncode == 0, process.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [row["documents"] for row in rows] == [10, 10, 1000, 10, 20, 1000]
    assert all(row["ms"] > 0 for row in rows) and all(row["speedup"] == 1 for row in rows if row["ranks"] == 1)
    assert [row["same_bits"] for row in rows if row["ranks"] == 2] == [True] * 3
    assert "3 of 3 answers" in distributed_table.every_row(json.loads(output.read_text()))
