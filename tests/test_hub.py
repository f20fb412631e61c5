"""The kernel as users get it: downloaded from a Hub by the released `kernels` library, locked, checked and loaded.
Every client is a process of its own, since `huggingface_hub` reads HF_ENDPOINT and HF_HOME once, when imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub import Hub, Repository, kernel_files
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from kernels import Metadata

ROOT = Path(__file__).resolve().parents[1]
REPO_ID = tomllib.loads((ROOT / "build.toml").read_text())["general"]["hub"]["repo-id"]
ORGANIZATION = REPO_ID.split("/")[0]
PROJECT = ROOT / "examples" / "locked_project"

SCORE = """
import torch
def score(kernel):
    queries, documents = torch.eye(4)[None, :3], torch.eye(4)[None, 1:]
    return kernel.maxsim(queries, documents).item()
"""


@dataclass
class Client:
    """A machine with a Hugging Face cache of its own, for which `hub` is the Hub."""

    hub: Hub
    cache: Path

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "KERNELS_"))}
        inherited.pop("LOCAL_KERNELS", None)
        return subprocess.run(
            [str(part) for part in command],
            env={**inherited, "HF_ENDPOINT": self.hub.endpoint, "HF_HOME": str(self.cache), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def python(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        prelude = f"from kernels import get_kernel\nREPO_ID = {REPO_ID!r}\n"
        return self.run(sys.executable, "-c", prelude + SCORE + code, **environment)

    def tool(self, name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a console script of this Python's environment."""
        return self.run(Path(sys.executable).with_name(name), *arguments, **environment)

    def cached(self, name: str) -> list[Path]:
        """The files of this name in the snapshots downloaded so far."""
        return list(self.cache.glob(f"hub/kernels--*/snapshots/*/build/**/{name}"))


def succeeded(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def refused(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode != 0, process.stdout
    return process.stdout + process.stderr


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def second_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build tree of version 2 with an id of its own. It starts from the checkout's objects, so only the binding
    compiles."""
    project = tmp_path_factory.mktemp("second-version")
    for folder in (ROOT / ".build", ROOT / "torch-ext", *ROOT.glob("maxsim_*")):
        shutil.copytree(folder, project / folder.name)
    declared = (ROOT / "build.toml").read_text()
    (project / "build.toml").write_text(declared.replace("version = 1\n", "version = 2\n", 1))
    build = [sys.executable, ROOT / "tools" / "build.py", "--project", project, "--unique-id", "second"]
    subprocess.run(build, check=True)
    return project


@pytest.fixture(scope="module")
def repository(hub: Hub, second_version: Path) -> Repository:
    """The kernel's repository: the checkout's build as v1, another build with its own id as v2."""
    repository = hub.create_kernel(REPO_ID)
    repository.publish("main", {"README.md": (ROOT / "CARD.md").read_bytes()})
    repository.publish("v1", kernel_files(ROOT))
    repository.publish("v2", kernel_files(second_version))
    return repository


@pytest.fixture
def client(hub: Hub, repository: Repository, tmp_path: Path) -> Client:
    hub.requests.clear()
    return Client(hub, tmp_path / "huggingface")


def test_errors_are_the_hubs(hub: Hub, repository: Repository, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.endpoint)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("nobody/nothing", repo_type="kernel")
    with pytest.raises(RepositoryNotFoundError):
        api.list_repo_refs(REPO_ID, repo_type="model")
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree(REPO_ID, repo_type="kernel", revision="v9"))
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO_ID, "absent.py", repo_type="kernel", revision="v1", cache_dir=tmp_path)


def test_every_revision_names_one_tree(hub: Hub, repository: Repository) -> None:
    api = HfApi(endpoint=hub.endpoint)
    commit = repository.resolve("v1")
    trees = [
        [entry.path for entry in api.list_repo_tree(REPO_ID, repo_type="kernel", revision=revision, recursive=True)]
        for revision in ("v1", "refs/heads/v1", commit)
    ]
    assert trees[0] == trees[1] == trees[2]
    assert {path for path in trees[0] if "/" not in path} == {"README.md", "build", "benchmarks"}


def test_long_trees_come_in_pages(hub: Hub, tmp_path: Path) -> None:
    repository = hub.create_kernel("someone/many-files")
    paths = sorted(f"file-{number:04}" for number in range(2100))
    repository.publish("main", dict.fromkeys(paths, b""))
    hub.requests.clear()
    listed = [
        entry.path for entry in HfApi(endpoint=hub.endpoint).list_repo_tree("someone/many-files", repo_type="kernel")
    ]
    assert listed == paths
    assert len(hub.requests) == 3


def test_get_kernel_downloads_once_and_scores(client: Client) -> None:
    code = "kernel = get_kernel(REPO_ID, version=1, trust_remote_code=True); print(kernel.__file__, score(kernel))"
    path, score = succeeded(client.python(code)).split()
    assert Path(path) in client.cached("__init__.py")
    assert score == "2.0"

    client.hub.requests.clear()
    assert succeeded(client.python(code)).split() == [path, score]
    assert not [request for request in client.hub.requests if "/resolve/" in request]


def test_an_untrusted_publisher_needs_consent(client: Client) -> None:
    code = """
for consent in (False, ["someone/else"]):
    try:
        get_kernel(REPO_ID, version=1, trust_remote_code=consent)
    except ValueError as error:
        print(error)
"""
    refusals = succeeded(client.python(code)).splitlines()
    assert [line.split(". ")[0] for line in refusals] == [
        f"Kernel repository '{REPO_ID}' is not from a trusted publisher"
    ] * 2
    assert client.cached("*") == []
    with client.hub.trusting(ORGANIZATION):
        assert succeeded(client.python("print(score(get_kernel(REPO_ID, version=1)))")) == "2.0\n"


def test_versions_lists_each_branch_with_its_builds(client: Client) -> None:
    listed = succeeded(client.tool("kernels", "versions", REPO_ID))
    first, second = listed.split("Version 2:")
    assert first.startswith("Version 1:")
    assert "cpu" in first and "compatible, preferred" in first
    assert "compatible, preferred" in second


def test_two_versions_live_in_one_process(client: Client) -> None:
    code = """
first, second = (get_kernel(REPO_ID, version=version, trust_remote_code=[REPO_ID]) for version in (1, 2))
import torch
print(first.__name__, second.__name__, score(first), score(second))
print(*(hasattr(getattr(torch.ops, kernel.__name__), "forward") for kernel in (first, second)))
"""
    (first, second, *scores), registered = (line.split() for line in succeeded(client.python(code)).splitlines())
    assert first != second
    assert scores == ["2.0", "2.0"]
    assert registered == ["True", "True"]


def test_content_of_another_size_is_not_stored(client: Client, repository: Repository) -> None:
    whole = {path: path.read_bytes() for path in repository.lfs_dir.iterdir()}
    try:
        for path, content in whole.items():
            path.write_bytes(content[:-1])
        message = refused(client.python("get_kernel(REPO_ID, version=1, trust_remote_code=True)"))
    finally:
        for path, content in whole.items():
            path.write_bytes(content)
    assert "Consistency check failed: file should be of size" in message
    assert client.cached("*.so") == []


@dataclass
class LockedProject:
    """A copy of the example project, locked against the Hub and installed into `site`."""

    folder: Path
    site: Path

    def search(self, client: Client, query: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "line_search", query, self.folder / "README.md", "--count", "1"]
        return client.run(*command, PYTHONPATH=str(self.site), **environment)


@pytest.fixture(scope="module")
def project(hub: Hub, repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> LockedProject:
    folder = tmp_path_factory.mktemp("locked")
    developer = Client(hub, folder / "huggingface")
    project = LockedProject(folder / "project", folder / "site")
    shutil.copytree(PROJECT, project.folder)
    with hub.trusting(ORGANIZATION):
        succeeded(developer.tool("kernels", "lock", project.folder))
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    succeeded(developer.run(*pip, "--target", project.site, project.folder))
    return project


def test_the_example_names_this_kernel() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert list(project["tool"]["kernels"]["dependencies"]) == [REPO_ID]


def test_lock_refuses_an_untrusted_publisher(client: Client, tmp_path: Path) -> None:
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    assert "is not from a trusted publisher" in refused(client.tool("kernels", "lock", tmp_path))
    assert not (tmp_path / "kernels.lock").exists()


def test_a_locked_project_stays_at_its_commit(client: Client, project: LockedProject, repository: Repository) -> None:
    locked = repository.resolve("v1")
    assert json.loads((project.folder / "kernels.lock").read_text()) == [
        {"dependency": {"repo-id": REPO_ID, "version": 1}, "lock": {"commit": locked}}
    ]
    moved = repository.publish("v1", {**kernel_files(ROOT), "README.md": b"a later state of version 1"})
    try:
        succeeded(client.tool("kernels", "download", project.folder))
        assert {path.parents[2].name for path in client.cached("metadata.json")} == {locked}
        client.hub.requests.clear()
        score, place, _line = succeeded(project.search(client, "wihtout a netwrok")).split(maxsplit=2)
    finally:
        repository.force("v1", locked)
    assert not [request for request in client.hub.requests if moved in request]
    lines = (project.folder / "README.md").read_text().splitlines()
    assert "Without a network" in lines[int(place.rstrip(":")) - 1]
    assert 0.5 < float(score) < 1


def test_offline_after_a_full_download(client: Client, project: LockedProject) -> None:
    succeeded(client.tool("hf", "download", "--repo-type", "kernel", REPO_ID, "--revision", "v1"))
    client.hub.requests.clear()
    code = "print(score(get_kernel(REPO_ID, version=1, trust_remote_code=True)))"
    assert succeeded(client.python(code, HF_HUB_OFFLINE="1")) == "2.0\n"
    assert "letter trigrams" in succeeded(project.search(client, "letter trigrams", HF_HUB_OFFLINE="1"))
    assert client.hub.requests == []


def test_a_tampered_file_is_refused_before_it_runs(client: Client, project: LockedProject, tmp_path: Path) -> None:
    succeeded(client.tool("kernels", "download", project.folder))
    (metadata,) = client.cached("metadata.json")
    module = metadata.with_name("__init__.py")
    assert Metadata.read_from_file(metadata).digest is not None
    trace = tmp_path / "it-ran"
    module.resolve().write_text(f"open({str(trace)!r}, 'w')\n" + module.read_text())

    message = refused(project.search(client, "a locked kernel"))
    assert "DigestValidationError" in message and "__init__.py" in message
    assert not trace.exists()

    commit = module.parents[2].name
    verify = ("cache", "verify", REPO_ID, "--repo-type", "kernel", "--revision", commit)
    assert "__init__.py" in refused(client.tool("hf", *verify))
