"""Builds the ladder of CUDA programs in benchmarks/ladder/ and, on a Hopper GPU, measures every rung.
`--build` stops after building, so that the program can be taken to a machine that has a GPU but no nvcc."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from results import Row, printed, write

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "benchmarks" / "ladder"
PROGRAM = ROOT / ".build" / "ladder" / "ladder"
FLAGS = ["-O3", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", f"-I{ROOT / 'maxsim_cuda'}"]

sys.path.append(str(ROOT / "tools"))
from project import BuildError  # noqa: E402
from toolchain import find_cuda  # noqa: E402


def build(program: Path, *flags: str) -> str:
    """What the compiler said; `flags` go to nvcc as well. Raises BuildError where there is no nvcc or it fails."""
    program.parent.mkdir(parents=True, exist_ok=True)
    sources = sorted(SOURCES.glob("*.cu"))
    # The runtime is linked in, so that the program needs nothing but the driver.
    command = [find_cuda().nvcc, *FLAGS, *flags, "--threads=2", *sources, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(done.stdout + done.stderr)
    return done.stdout + done.stderr


def climb(program: Path, output: Path | None) -> str | None:
    """Writes the machine and a row for each rung and shape. Returns what went wrong: a wrong rung has no row."""
    result: Row = {"rows": []}
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as process:
        for row in map(json.loads, process.stdout):
            printed(row)
            if "rung" in row:
                result["rows"].append(row)
            else:
                result = row | result
    if output is not None and result["rows"]:
        write(result, output)
    return f"{program.name} stopped with {process.returncode}" if process.returncode else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", action="store_true", help=f"only build {PROGRAM.relative_to(ROOT)}")
    parser.add_argument("--program", type=Path, help="run this one, built earlier")
    parser.add_argument("--output", type=Path, help="write the results there")
    arguments = parser.parse_args()
    if arguments.program is None:
        build(PROGRAM)
    if not arguments.build:
        sys.exit(climb(arguments.program or PROGRAM, arguments.output))


if __name__ == "__main__":
    main()
