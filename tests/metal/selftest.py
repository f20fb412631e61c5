"""One command for whoever has a Mac: `python tests/metal/selftest.py` checks the kernel on its GPU, times it, and
prints a report to paste into an issue. LOCAL_KERNELS chooses another build than the Hub's, as everywhere."""

from __future__ import annotations

import platform
import sys
import time
import tomllib
import traceback
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import checks  # noqa: E402
import torch  # noqa: E402
from kernels import get_kernel  # noqa: E402

# Queries, documents of each, query tokens, document tokens; fp16, d = 128.
WORKLOADS = {
    "SmallRerank": (32, 10, 32, 180),
    "HeavyRerank": (32, 100, 32, 256),
    "LongDocStress": (8, 16, 64, 1024),
}


def report(m: ModuleType, device: str, workloads: dict[str, tuple[int, int, int, int]]) -> bool:
    """Prints what holds and how fast it is; whether everything holds."""
    print(f"macOS {platform.mac_ver()[0] or 'none'}, {platform.machine()}, python {platform.python_version()}")
    print(f"torch {torch.__version__}, kernel {m.__name__}, path {m.paths.default(torch.ones(1, 1, device=device))}")
    sound = True
    for check in checks.CHECKS:
        try:
            check(m, device)
            print(f"{check.__name__}: holds")
        except Exception:
            sound = False
            print(f"{check.__name__}: FAILS\n{traceback.format_exc()}")
    for name, (queries, each, query_tokens, tokens) in workloads.items():
        q = torch.randn(queries, query_tokens, 128).half().to(device)
        d = torch.randn(queries, each, tokens, 128).half().to(device)
        seconds = min(timed(m, q, d) for _ in range(5))
        flops = 2 * queries * each * query_tokens * tokens * 128
        print(
            f"{name}: {seconds * 1e3:.3f} ms, {flops / seconds / 1e12:.2f} TFLOP/s, {d.nbytes / seconds / 1e9:.0f} GB/s"
        )
    return sound


def timed(m: ModuleType, q: torch.Tensor, d: torch.Tensor, calls: int = 20) -> float:
    """Seconds a call, queued one behind another."""
    m.maxsim(q, d).cpu()
    begin = time.perf_counter()
    for _ in range(calls):
        scores = m.maxsim(q, d)
    scores.cpu()  # waits for all of them
    return (time.perf_counter() - begin) / calls


def main() -> int:
    if not torch.backends.mps.is_available():
        print("torch finds no Apple GPU here; python -m pytest tests/test_metal.py runs the kernels without one")
        return 2
    repo_id = tomllib.loads((ROOT / "build.toml").read_text())["general"]["hub"]["repo-id"]
    return 0 if report(get_kernel(repo_id, version=1, trust_remote_code=True), "mps", WORKLOADS) else 1


if __name__ == "__main__":
    sys.exit(main())
