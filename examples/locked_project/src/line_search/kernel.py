"""Loads the kernel that `kernels.lock` pins, after checking every file of it.
`kernels` itself pins the commit; it does not compare the files in the cache with the digest before it runs them."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.metadata import distribution
from types import ModuleType

from huggingface_hub.constants import HF_HUB_OFFLINE
from kernels import Metadata, get_locked_kernel, install_kernel


@lru_cache(maxsize=1)
def locked_maxsim() -> ModuleType:
    """The kernel of the lock file that was installed with this project.

    Raises:
        FileNotFoundError: the project was installed without a `kernels.lock`.
        kernels._rust.DigestValidationError: a file of the kernel is missing, unknown or changed; nothing of it has run.
    """
    lock_file = next((file for file in distribution("line-search").files if file.name == "kernels.lock"), None)
    if lock_file is None:
        raise FileNotFoundError("no kernels.lock: run `kernels lock .` in the project, then install the project again")
    (entry,) = json.loads(lock_file.read_text())
    repo_id, commit = entry["dependency"]["repo-id"], entry["lock"]["commit"]

    consent = [repo_id]
    variant = install_kernel(repo_id, revision=commit, local_files_only=HF_HUB_OFFLINE, trust_remote_code=consent)
    digest = Metadata.read_from_file(variant / "metadata.json").digest
    if digest is None:
        raise ValueError(f"{repo_id} at {commit} carries no digest to check its files against")
    digest.validate(type(digest).hash_variant(digest.algorithm, variant))
    # Without a path, `get_locked_kernel` of kernels 0.17.2 looks for the lock in its own package, not in its caller's.
    return get_locked_kernel(repo_id, lockfile=lock_file.locate(), trust_remote_code=consent)
