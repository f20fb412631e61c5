"""Loads the kernel that this checkout built, through the call that a user of the Hub makes.
The repository id and the version come from build.toml; LOCAL_KERNELS points that id to the checkout."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from types import ModuleType

from kernels import get_kernel

ROOT = Path(__file__).resolve().parents[2]


def load_kernel() -> ModuleType:
    """The maxsim kernel module; an error from `kernels` when `tools/build.py` has not built it."""
    general = tomllib.loads((ROOT / "build.toml").read_text())["general"]
    repo_id = general["hub"]["repo-id"]
    os.environ["LOCAL_KERNELS"] = f"{repo_id}={ROOT}"
    return get_kernel(repo_id, version=general["version"])
