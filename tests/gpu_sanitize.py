"""compute-sanitizer's four tools over problems that reach every CUDA kernel: `python tests/gpu_sanitize.py`.

Every tool and family of tests/sanitized_problems.py is a process of its own, all at once, and beside them each family
runs under torch's profiler: which kernels of the binary nothing launched is said at the end. Prints a table; fails if a
tool found something."""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
LOOK = "launches"  # not a tool: the profiler
# Hazards of shared memory are a kernel's own: there is nothing to learn from torch's.
ONLY = {"racecheck": ["--kernel-name", "kns=maxsim"]}
FOUND = 99
SECONDS = 300  # for one family under one tool


def launched(run) -> set[str]:
    """Names of the kernels that a call launches."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    return {event.name for event in profiled.events()}


def work(family: str, names: Path | None) -> None:
    """One family in this process."""
    import torch
    from sanitized_problems import FAMILIES

    torch.manual_seed(0)
    if names is None:
        FAMILIES[family]()
        torch.cuda.synchronize()
    else:
        names.write_text("\n".join(sorted(launched(FAMILIES[family]))))


def demangled(name: str) -> str:
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_void_p
    found = demangle(name.encode(), None, None, None)
    return ctypes.string_at(found).decode() if found else name


def kernels_of(module: Path) -> set[str]:
    """The kernels that a module registers: their names are strings in its read-only data."""
    data = module.read_bytes()
    start, size = _read_only(data)
    names = re.findall(rb"(?<=\0)_ZN6maxsim4cuda\w+(?=\0)", data[start : start + size])
    return {demangled(name.decode()) for name in names}


def _read_only(data: bytes) -> tuple[int, int]:
    """Offset and size of .rodata in a 64-bit little-endian ELF file."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    table, entry, count, names = number(0x28, 8), number(0x3A, 2), number(0x3C, 2), number(0x3E, 2)
    sections = [table + i * entry for i in range(count)]
    texts = number(sections[names] + 24, 8)
    for section in sections:
        if data.startswith(b".rodata\0", texts + number(section, 4)):
            return number(section + 24, 8), number(section + 32, 8)
    raise ValueError("no .rodata")


def report(tool: str, family: str, folder: Path, names: list[str]) -> str:
    """Runs one cell of the table: what was found and how long it took."""
    log, command = folder / f"{tool}-{family}.log", [sys.executable, __file__, "--family", family]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # an allocation for each tensor
    if tool == LOOK:
        command += ["--names", str(folder / f"{family}.names")]
        environment.pop("PYTORCH_NO_CUDA_MEMORY_CACHING")
    else:
        options = ["--error-exitcode", str(FOUND), "--print-limit", "50", *ONLY.get(tool, [])]
        command = ["compute-sanitizer", "--tool", tool, *options, *command]
    began = time.monotonic()
    with log.open("w") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            code = running.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            code = running.wait()
    took = f"{time.monotonic() - began:.0f} s"
    summary = re.findall(r"SUMMARY: (.*)", log.read_text(errors="replace"))
    if code == 0 and (summary or tool == LOOK):
        return f"clean, {took}"
    names.append(log.name)
    return f"{summary[-1] if summary else f'failed ({code})'}, {took}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--families", default="", help="all of them, if none is named")
    parser.add_argument("--logs", type=Path, help="where to keep what the tools say")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--family", help=argparse.SUPPRESS)
    parser.add_argument("--names", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.family:
        work(options.family, options.names)
        return 0
    if shutil.which("compute-sanitizer") is None:
        raise SystemExit("compute-sanitizer is not on PATH: it comes with the CUDA toolkit")

    from sanitized_problems import FAMILIES, maxsim

    families = [f for f in options.families.split(",") if f] or list(FAMILIES)
    tools = [LOOK, *options.tools.split(",")]
    folder = options.logs or Path(tempfile.mkdtemp(prefix="sanitize-"))
    folder.mkdir(parents=True, exist_ok=True)
    broken: list[str] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        cells = {(t, f): pool.submit(report, t, f, folder, broken) for t in tools for f in families}
        print(f"| family | {' | '.join(tools)} |\n|---|{'---|' * len(tools)}")
        for family in families:
            print(f"| {family} | {' | '.join(cells[tool, family].result() for tool in tools)} |", flush=True)

    (module,) = Path(maxsim.__file__).parent.glob("_maxsim_cuda_*.so")
    known = kernels_of(module)
    seen = {name for names in folder.glob("*.names") for name in names.read_text().splitlines()}
    unseen = known - seen
    print(f"{len(known - unseen)} of {len(known)} kernels were launched")
    spaces = r"^void |\((anonymous namespace|maxsim::cuda::\w+)\)(::)?|maxsim::cuda::"
    for name, count in Counter(re.sub(spaces, "", n).split("(")[0] for n in sorted(unseen)).items():
        print(f"  not launched: {name}" + (f" ({count})" if count > 1 else ""))
    for name in sorted(broken):
        print(f"\n{folder / name}:\n" + "\n".join((folder / name).read_text(errors="replace").splitlines()[-40:]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
