"""Assembles build/<variant>/ from the compiled module and the Python sources, as kernel-builder lays it out.
The new directory takes the old one's place in one step, so a process that loads meanwhile sees either, whole."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from archs import Arch
from kernels._rust import Digest, DigestAlgorithm
from project import BuildError, Project

# The version of `kernels` that kernel-builder names for a kernel without kernel dependencies.
KERNELS_MINVER = "0.14.0"

# The macros of kernel-builder's registration.h that a stable-ABI binding uses.
REGISTRATION_H = """\
#pragma once

#include <Python.h>

// The extra level lets NAME be a macro, such as TORCH_EXTENSION_NAME.
#define STABLE_TORCH_LIBRARY_EXPAND(NAME, MODULE) STABLE_TORCH_LIBRARY(NAME, MODULE)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(NAME, DEVICE, MODULE) STABLE_TORCH_LIBRARY_IMPL(NAME, DEVICE, MODULE)

#define REGISTRATION_STRING_(NAME) #NAME
#define REGISTRATION_MODULE_(NAME)                                                                            \\
  PyMODINIT_FUNC PyInit_##NAME(void) {                                                                        \\
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, REGISTRATION_STRING_(NAME), nullptr, 0, nullptr,      \\
                                 nullptr,               nullptr,                    nullptr, nullptr};        \\
    return PyModule_Create(&module);                                                                          \\
  }

// Makes the shared library importable from Python; importing it registers the operators.
#define REGISTER_EXTENSION(NAME) REGISTRATION_MODULE_(NAME)
"""

OPS_PY = '''\
import torch
from . import {ops_name}
ops = torch.ops.{ops_name}

def add_op_namespace_prefix(op_name: str):
    """
    Prefix op by namespace.
    """
    return f"{ops_name}::{{op_name}}"
'''


def variant_name(project: Project, backend: str, cuda: tuple[int, int] | None) -> str:
    """The directory that the `kernels` package looks for, e.g. torch-stable-abi211-cu130-x86_64-linux."""
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    compute = "cpu" if cuda is None else f"cu{cuda[0]}{cuda[1]}"
    major, minor = project.stable_abi[backend]
    return f"torch-stable-abi{major}{minor}-{compute}-{machine}-{platform.system().lower()}"


def git_identity(root: Path) -> tuple[str, dict[str, object]]:
    """The build's id (short tree id, `_dirty` when tracked files differ) and its provenance (commit, dirty)."""
    commit, tree = _git(root, "rev-parse", "HEAD", "HEAD^{tree}").split()
    dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules"))
    return tree[:7] + ("_dirty" if dirty else ""), {"commit": commit, "dirty": dirty}


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except OSError:
        raise BuildError("git is not on PATH; --unique-id names the build without it") from None
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise BuildError(f"no commit to take the build's id from ({reason}); --unique-id names the build without it")
    return done.stdout


def install(
    project: Project,
    backend: str,
    ops_name: str,
    module: Path,
    archs: list[Arch],
    provenance: dict[str, object] | None,
    target: Path,
) -> None:
    """Write `target`, a variant directory, replacing the one that is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        stage.chmod(0o755)
        for source in sorted(project.python_source.rglob("*")):
            if source.suffix.lstrip(".") in project.python_extensions and source.is_file():
                copy = stage / source.relative_to(project.python_source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
        (stage / "_ops.py").write_text(OPS_PY.format(ops_name=ops_name))
        shutil.copy(module, stage / f"{ops_name}.abi3.so")
        metadata = _metadata(project, backend, ops_name, archs, provenance, stage)
        (stage / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        _put_in_place(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _metadata(
    project: Project,
    backend: str,
    ops_name: str,
    archs: list[Arch],
    provenance: dict[str, object] | None,
    stage: Path,
) -> dict[str, object]:
    general = project.general
    metadata: dict[str, object] = {
        "name": project.name,
        "id": ops_name,
        "version": general["version"],
        "kernels-minver": KERNELS_MINVER,
        "license": general["license"],
    }
    metadata |= {key: general[key] for key in ("upstream", "source") if key in general}
    metadata |= {"python-depends": [], "kernel-depends": [], "backend": {"type": backend}}
    if archs:
        metadata["backend"] = {"type": backend, "archs": [str(arch) for arch in archs]}
    digest = Digest.hash_variant(DigestAlgorithm.SHA256, stage)
    metadata["digest"] = {"algorithm": "sha256", "files": dict(sorted(digest.files.items()))}
    # The schema asks who built it; this builder must not pass for a release of kernel-builder.
    metadata["provenance"] = {"kernel-builder": {"version": f"{project.name} tools/build.py"}}
    if provenance is not None:
        metadata["provenance"]["kernel"] = provenance
    return metadata


def _put_in_place(stage: Path, target: Path) -> None:
    """Rename `stage` to `target`; where `target` exists the two change places in one system call."""
    if not target.exists():
        stage.rename(target)
        return
    exchange, here = 2, -100  # RENAME_EXCHANGE, AT_FDCWD of renameat2(2)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(here, os.fsencode(stage), here, os.fsencode(target), exchange):
        code = ctypes.get_errno()
        raise BuildError(f"{target} cannot be replaced: {os.strerror(code)}")
