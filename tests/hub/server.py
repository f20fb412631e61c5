"""The Hub's HTTP API on loopback: organisations, refs, repository info, tree listing and file resolution.
LFS content is redirected to a second origin, as the Hub redirects to its CDN."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from hub.repository import Entry, Repository

Query = dict[str, str]
TREE_PAGE = 1000  # entries in one answer, the Hub's own limit


@dataclass
class Response:
    """What a route answers; the handler adds Content-Length and, for HEAD, drops the body."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Routes = list[tuple[re.Pattern[str], Callable[..., Response]]]


def as_json(value: object, headers: dict[str, str] | None = None) -> Response:
    return Response(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """The Hub names the kind of error in X-Error-Code; clients choose their exception by it."""
    body = json.dumps({"error": message}).encode()
    return Response(status, body, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})


class Hub:
    """A Hub that serves while the `with` block lasts. State lives under `directory`.

    Attributes: `endpoint`, the value for HF_ENDPOINT; `requests`, every "METHOD path" it was asked, in order.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._trusted: set[str] = set()
        self._lock = threading.Lock()
        self.requests: list[str] = []
        self._api = self._server(HUB_ROUTES)
        self._storage = self._server(STORAGE_ROUTES)
        self.endpoint = self._origin(self._api)

    def create_kernel(self, repo_id: str) -> Repository:
        repository = Repository(self._directory / repo_id)
        self._repositories["kernel", repo_id] = repository
        return repository

    @contextmanager
    def trusting(self, organization: str) -> Iterator[None]:
        """Make `organization` a trusted kernel publisher for a while."""
        self._trusted.add(organization)
        yield
        self._trusted.remove(organization)

    def __enter__(self) -> Hub:
        for server in (self._api, self._storage):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        for server in (self._api, self._storage):
            server.shutdown()
            server.server_close()

    # Routes. Each takes the query and the unquoted groups of its pattern.

    def organization(self, query: Query, organization: str) -> Response:
        if organization not in {repo_id.split("/")[0] for _type, repo_id in self._repositories}:
            return error(404, "OrganizationNotFound", "This organization does not exist")
        overview = {"name": organization, "fullname": organization, "avatarUrl": "", "type": "org"}
        return as_json({**overview, "trustedKernelPublisher": organization in self._trusted})

    def refs(self, query: Query, repo_type: str, repo_id: str) -> Response:
        repository = self._repositories.get((repo_type, repo_id))
        if repository is None:
            return self._no_repository()
        listing: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
        for ref, commit in repository.refs().items():
            _refs, kind, name = ref.split("/", 2)
            group = listing["tags" if kind == "tags" else "branches"]
            group.append({"name": name, "ref": ref, "targetCommit": commit})
        return as_json(listing)

    def info(self, query: Query, repo_type: str, repo_id: str, revision: str = "main") -> Response:
        return self._at_revision(
            repo_type,
            repo_id,
            revision,
            lambda _repository, commit: as_json(
                {"id": repo_id, "author": repo_id.split("/")[0], "sha": commit, "private": False, "gated": False}
            ),
        )

    def tree(self, query: Query, repo_type: str, repo_id: str, revision: str, path: str = "") -> Response:
        def listing(repository: Repository, commit: str) -> Response:
            folder = f"{path}/" if path else ""
            if path and repository.entry(commit, path) is None:
                return self._no_entry(path, commit)
            entries = [entry for entry in repository.tree(commit) if entry.path.startswith(folder)]
            recursive = query.get("recursive", "false")
            if recursive != "true":
                entries = [entry for entry in entries if "/" not in entry.path[len(folder) :]]
            start = int(query.get("cursor", 0))
            headers = {"X-Repo-Commit": commit}
            if len(entries) > start + TREE_PAGE:
                following = urlencode({"recursive": recursive, "cursor": start + TREE_PAGE})
                here = f"{self.endpoint}/api/{repo_type}s/{repo_id}/tree/{commit}/{path}".rstrip("/")
                headers["Link"] = f'<{here}?{following}>; rel="next"'
            return as_json([describe(entry) for entry in entries[start : start + TREE_PAGE]], headers)

        return self._at_revision(repo_type, repo_id, revision, listing)

    def resolve(self, query: Query, repo_type: str, repo_id: str, revision: str, path: str) -> Response:
        def file(repository: Repository, commit: str) -> Response:
            entry = repository.entry(commit, path)
            if entry is None or entry.kind != "file":
                return self._no_entry(path, commit)
            headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.oid}"'}
            if entry.lfs is None:
                return Response(200, repository.read(entry), headers)
            headers["X-Linked-ETag"] = f'"{entry.lfs.sha256}"'
            headers["X-Linked-Size"] = str(entry.lfs.size)
            headers["Location"] = f"{self._origin(self._storage)}/{repo_id}/{entry.lfs.sha256}"
            return Response(302, headers=headers)

        return self._at_revision(repo_type, repo_id, revision, file)

    def lfs_object(self, query: Query, repo_id: str, sha256: str) -> Response:
        """The stored bytes as they are: like a CDN, this does not check them against their name."""
        content = (self._repositories["kernel", repo_id].lfs_dir / sha256).read_bytes()
        return Response(200, content, {"ETag": f'"{sha256}"'})

    def _at_revision(
        self, repo_type: str, repo_id: str, revision: str, answer: Callable[[Repository, str], Response]
    ) -> Response:
        repository = self._repositories.get((repo_type, repo_id))
        if repository is None:
            return self._no_repository()
        commit = repository.resolve(revision)
        if commit is None:
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return answer(repository, commit)

    @staticmethod
    def _no_repository() -> Response:
        # The Hub does not tell an anonymous client whether a repository is private or missing.
        return error(401, "RepoNotFound", "Repository not found")

    @staticmethod
    def _no_entry(path: str, commit: str) -> Response:
        return error(404, "EntryNotFound", f"{path} does not exist", {"X-Repo-Commit": commit})

    def _server(self, routes: Routes) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                with hub._lock:
                    hub.requests.append(f"{self.command} {url.path}")
                self._send(dispatch(hub, routes, url.path, url.query))

            do_HEAD = do_GET

            def _send(self, response: Response) -> None:
                body = response.body
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                if response.status == 200 and wanted:
                    start = int(wanted[1])
                    response.headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                    response.status, body = 206, body[start:]
                self.send_response(response.status)
                for name, value in {"Accept-Ranges": "bytes", **response.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """`Hub.requests` is the log."""

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @staticmethod
    def _origin(server: ThreadingHTTPServer) -> str:
        return f"http://127.0.0.1:{server.server_port}"


def describe(entry: Entry) -> dict[str, object]:
    """An entry in the tree API's own words."""
    described: dict[str, object] = {"type": entry.kind, "oid": entry.oid, "size": entry.size, "path": entry.path}
    if entry.lfs is not None:
        lfs = entry.lfs
        described["lfs"] = {"oid": lfs.sha256, "size": lfs.size, "pointerSize": lfs.pointer_size}
    return described


def dispatch(hub: Hub, routes: Routes, path: str, query: str) -> Response:
    for pattern, route in routes:
        match = pattern.fullmatch(path)
        if match:
            groups = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
            return route(hub, {name: values[-1] for name, values in parse_qs(query).items()}, **groups)
    return error(404, "NotFound", f"no such route: {path}")


REPO = r"(?P<repo_id>[^/]+/[^/]+)"
API = rf"/api/(?P<repo_type>model|dataset|space|kernel)s/{REPO}"
HUB_ROUTES = [
    (re.compile(r"/api/organizations/(?P<organization>[^/]+)/overview"), Hub.organization),
    (re.compile(rf"{API}/refs"), Hub.refs),
    (re.compile(rf"{API}(/revision/(?P<revision>[^/]+))?"), Hub.info),
    (re.compile(rf"{API}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?"), Hub.tree),
    (re.compile(rf"/(?P<repo_type>kernel)s/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"), Hub.resolve),
]
STORAGE_ROUTES = [(re.compile(rf"/{REPO}/(?P<sha256>[0-9a-f]{{64}})"), Hub.lfs_object)]
