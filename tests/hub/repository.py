"""A Hub repository as the Hub keeps it: a bare git repository, with binary files as LFS pointers.
Commits, branches and object ids are git's own, so whatever a client checks them against holds here too."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class LfsObject:
    """The content behind a pointer file: its SHA-256, its size, and the pointer's own size in bytes."""

    sha256: str
    size: int
    pointer_size: int


@dataclass(frozen=True)
class Entry:
    """A file or a directory of one commit. `size` is that of the content, not of an LFS pointer."""

    path: str
    kind: str
    oid: str
    size: int
    lfs: LfsObject | None


def kernel_files(kernel: Path) -> dict[str, bytes]:
    """The files of the checkout or build tree `kernel` that belong on the Hub: build variants, card and benchmarks."""
    variants = [metadata.parent for metadata in kernel.glob("build/*/metadata.json")]
    paths = [path for variant in variants for path in variant.rglob("*")] + list(kernel.glob("benchmarks/*.py"))
    files = {
        path.relative_to(kernel).as_posix(): path.read_bytes()
        for path in sorted(paths)
        if path.is_file() and "__pycache__" not in path.parts
    }
    card = kernel / "CARD.md"
    if card.exists():
        files["README.md"] = card.read_bytes()
    return files


class Repository:
    """One repository under `directory`: `git/` holds history, `lfs/<sha256>` the binary content."""

    def __init__(self, directory: Path) -> None:
        self._git_dir = directory / "git"
        self.lfs_dir = directory / "lfs"
        self.lfs_dir.mkdir(parents=True)
        self._pointers: dict[str, LfsObject] = {}
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", self._git_dir], check=True)
        self.tree = lru_cache(self._read_tree)

    def publish(self, branch: str, files: Mapping[str, bytes]) -> str:
        """Commit `files` as the whole content of `branch`, which need not exist yet. Returns the commit id."""
        ref = f"refs/heads/{branch}"
        parent = self.refs().get(ref)
        stream = [f"commit {ref}\ncommitter Publisher <publisher@localhost> now\ndata 7\npublish\n".encode()]
        if parent is not None:
            stream.append(f"from {parent}\n".encode())
        stream.append(b"deleteall\n")
        for path, content in files.items():
            blob = self._store_lfs(content) if b"\0" in content else content
            stream.append(b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(blob), blob))
        self._git("fast-import", "--quiet", "--date-format=now", stdin=b"".join(stream))
        return self.refs()[ref]

    def force(self, branch: str, commit: str) -> None:
        """Point `branch` at a commit that is already here, as a forced push does."""
        self._git("update-ref", f"refs/heads/{branch}", commit)

    def refs(self) -> dict[str, str]:
        """Full ref name (`refs/heads/v1`) to commit id."""
        lines = self._git("for-each-ref", "--format=%(refname) %(objectname)").decode().splitlines()
        return dict(line.split() for line in lines)

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, tag, full ref or full commit id names; None when there is none."""
        if COMMIT.fullmatch(revision):
            known = self._git("rev-list", "--all").decode().split()
            return revision if revision in known else None
        refs = self.refs()
        candidates = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((refs[name] for name in candidates if name in refs), None)

    def entry(self, commit: str, path: str) -> Entry | None:
        return next((entry for entry in self.tree(commit) if entry.path == path), None)

    def read(self, entry: Entry) -> bytes:
        """The blob of a file that git itself stores: a pointer where `entry.lfs` is set."""
        return self._git("cat-file", "blob", entry.oid)

    def _read_tree(self, commit: str) -> tuple[Entry, ...]:
        entries = []
        for record in self._git("ls-tree", "-r", "-t", "-l", "-z", commit).decode().split("\0")[:-1]:
            attributes, path = record.split("\t", 1)
            _mode, object_type, oid, size = attributes.split()
            if object_type == "tree":
                entries.append(Entry(path, "directory", oid, 0, None))
            else:
                lfs = self._pointers.get(oid)
                entries.append(Entry(path, "file", oid, lfs.size if lfs else int(size), lfs))
        return tuple(entries)

    def _store_lfs(self, content: bytes) -> bytes:
        sha256 = hashlib.sha256(content).hexdigest()
        (self.lfs_dir / sha256).write_bytes(content)
        pointer = (f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n").encode()
        oid = hashlib.sha1(b"blob %d\0%s" % (len(pointer), pointer)).hexdigest()
        self._pointers[oid] = LfsObject(sha256, len(content), len(pointer))
        return pointer

    def _git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = ["git", "--git-dir", str(self._git_dir), *arguments]
        return subprocess.run(command, input=stdin, check=True, stdout=subprocess.PIPE).stdout
