"""The machine code of a CUDA module, taken apart by NVIDIA's disassembler, which PyPI has too."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PRODUCTS = re.compile(r"(H|I|Q)(GMMA|MMA)\b")
LOCAL = ("LDL", "STL")


@dataclass
class Kernel:
    """A kernel for one architecture: its operations in order, and its loops as first and last operation."""

    name: str
    arch: str
    operations: list[str]
    loops: list[tuple[int, int]]
    descriptors: set[int]  # uniform registers that say how memory is accessed, the first of two each

    def products(self) -> set[str]:
        """Which products it has: HGMMA is Hopper's own, HMMA every tensor core's."""
        return {found[0] for operation in self.operations if (found := PRODUCTS.match(operation))}

    def local_share(self) -> float:
        """How much of the innermost loops around products is access to local memory: of the worst such loop."""
        worst = 0.0
        around: list[tuple[int, int]] = []
        for first, last in sorted(self.loops, key=lambda loop: loop[1] - loop[0]):
            body = self.operations[first : last + 1]
            inner = any(first <= a and b <= last for a, b in around)
            if not inner and any(PRODUCTS.match(operation) for operation in body):
                around.append((first, last))
                worst = max(worst, sum(operation.startswith(LOCAL) for operation in body) / len(body))
        return worst


def tool(name: str) -> Path | None:
    """From PyPI or from a toolkit."""
    nvidia = importlib.util.find_spec("nvidia")
    for location in nvidia.submodule_search_locations or () if nvidia else ():
        if found := sorted(Path(location).glob(f"*/bin/{name}")):
            return found[-1]
    path = shutil.which(name) or shutil.which(name, path=os.path.join(os.environ.get("CUDA_HOME", ""), "bin"))
    return Path(path) if path else None


def kernels_of(module: Path, folder: Path) -> list[Kernel]:
    """Every kernel of a module for every architecture; its code objects are left in `folder`."""
    subprocess.run([tool("cuobjdump"), "-xelf", "all", module.resolve()], cwd=folder, check=True, capture_output=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [kernel for kernels in pool.map(_disassembled, sorted(folder.glob("*.cubin"))) for kernel in kernels]


def _disassembled(cubin: Path) -> list[Kernel]:
    done = subprocess.run([tool("nvdisasm"), "-c", cubin], check=True, capture_output=True, text=True)
    return list(_parsed(done.stdout, cubin.name.rsplit(".", 2)[1]))


def _parsed(text: str, arch: str) -> Iterator[Kernel]:
    for part in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition(":")
        operations: list[str] = []
        labels: dict[str, int] = {}
        jumps: list[tuple[str, int]] = []
        descriptors = {int(number) for number in re.findall(r"desc\[UR(\d+)\]", body)}
        for line in body.splitlines():
            if label := re.match(r"(\.L_x_\d+):", line):
                labels[label[1]] = len(operations)
            elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)(.*)", line):
                if target := re.search(r"`\((\.L_x_\d+)\)", found[2]):
                    jumps.append((target[1], len(operations)))
                operations.append(found[1])
        loops = {(labels[label], at) for label, at in jumps if labels.get(label, at + 1) <= at}
        yield Kernel(name, arch, operations, sorted(loops), descriptors)
