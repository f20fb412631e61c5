#!/usr/bin/env python3
"""Builds build/<variant>/ from build.toml without Nix: the tree that `kernel-builder` makes and `kernels` loads.
Objects stay in .build/, so that the next run compiles only what changed."""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
from pathlib import Path

try:
    import ninja
    from archs import Arch
    from ninja_file import CUDA_STUB, MODULE, Build, render
    from project import BuildError, Project, load
    from toolchain import find_cuda, find_cxx, find_python_include, find_torch
    from variant import REGISTRATION_H, git_identity, install, variant_name
except ModuleNotFoundError as missing:
    sys.exit(f"build.py: error: {missing.name} is not installed: pip install -r requirements/build.txt")

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    options = parse_options()
    try:
        project = load(options.project.resolve())
        for backend in chosen_backends(project, options):
            print(f"built {build_variant(project, backend, options)}")
    except BuildError as error:
        print(f"build.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", help="cpu, cuda or all; default: the one that the installed torch selects")
    parser.add_argument("--archs", default="", help="CUDA capabilities to build for, e.g. 8.0,9.0a; default: all")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilers at once")
    parser.add_argument("--sanitize", default="", help="sanitizers of a CPU build, e.g. address,undefined")
    parser.add_argument("--output", type=Path, help="directory of the variants; default: build/ of the project")
    parser.add_argument("--unique-id", help="id of the build; default: git's tree id, with _dirty for changes")
    parser.add_argument("--project", type=Path, default=ROOT, help="directory of build.toml; default: this checkout")
    return parser.parse_args()


def chosen_backends(project: Project, options: argparse.Namespace) -> tuple[str, ...]:
    backend = options.backend or ("cuda" if find_torch().cuda else "cpu")
    if backend != "all" and backend not in project.backends:
        raise BuildError(f"unknown backend {backend}: build.toml has {', '.join(project.backends)}")
    backends = project.backends if backend == "all" else (backend,)
    if options.archs and "cuda" not in backends:
        raise BuildError("--archs narrows the cuda backend, which is not being built")
    if options.sanitize and (backends != ("cpu",) or options.output is None):
        raise BuildError("--sanitize needs --backend cpu, and an --output of its own")
    return backends


def build_variant(project: Project, backend: str, options: argparse.Namespace) -> Path:
    """Compile and install one variant; returns its directory."""
    torch = find_torch()
    if torch.version < project.stable_abi[backend]:
        have, need = ("{}.{}".format(*version) for version in (torch.version, project.stable_abi[backend]))
        raise BuildError(f"torch {have} is installed, and build.toml asks for the stable ABI of {need}")
    cuda = find_cuda() if backend == "cuda" else None
    name = variant_name(project, backend, cuda and cuda.version)
    unique_id, provenance = (options.unique_id, None) if options.unique_id else git_identity(project.root)
    sanitizers = tuple(filter(None, options.sanitize.split(",")))
    build = Build(
        project=project,
        backend=backend,
        ops_name=f"_{project.name}_{backend}_{unique_id}".replace("-", "_"),
        work=Path(".build", "-".join((name, *sanitizers))),
        torch=torch,
        cxx=find_cxx(),
        python_include=find_python_include(),
        cuda=cuda,
        narrow=[Arch.parse(arch) for arch in options.archs.split(",") if arch],
        sanitizers=sanitizers,
    )
    work = project.root / build.work
    (work / "generated").mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        compile_module(build, work, options.jobs)
        archs = sorted({arch for section in project.kernels[backend] for arch in build.archs(section)})
        target = (options.output or project.root / "build") / name
        install(project, backend, build.ops_name, work / MODULE, archs, provenance, target)
    return target


def compile_module(build: Build, work: Path, jobs: int) -> None:
    write_if_changed(work / "generated" / "registration.h", REGISTRATION_H)
    write_if_changed(work / "generated" / "torch_cuda_stub.cpp", CUDA_STUB)
    write_if_changed(work / "build.ninja", render(build))
    command = [str(Path(ninja.BIN_DIR, "ninja")), "-f", str(build.work / "build.ninja"), "-j", str(jobs)]
    if subprocess.run(command, cwd=build.project.root).returncode:
        raise BuildError(f"the {build.backend} backend does not compile, see above")


def write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
