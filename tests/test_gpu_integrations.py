"""The script for GPU machines, at sizes that a CPU checks it with: every section runs and every check in it holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

from helpers import ROOT

# In an environment that is about one library, what concerns that library.
SECTIONS = [library for library in ("pylate", "colpali_engine") if find_spec(library) is not None]


def test_the_script_for_gpu_machines(maxsim, tmp_path):
    sections = [*SECTIONS, "order"] if SECTIONS else []
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "tests/gpu_integrations.py",
        "--small",
        "--output",
        str(tmp_path / "found.json"),
        *sections,
    ]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-4000:]
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert all(row.get("ok", True) for row in rows)
    ran = {row["section"] for row in rows}
    assert ran >= (
        set(sections) if SECTIONS else {"retrieve", "ids", "stream", "scaling", "head", "sentence_transformers"}
    )
