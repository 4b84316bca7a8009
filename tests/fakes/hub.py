"""A hub on this machine: as much of the HTTP API of the Hugging Face hub as `huggingface_hub` asks for models and data sets.

Repositories live in memory, with their commits; a repository is made by `POST /api/repos/create` or by `FakeHub.put`. Tokens: those in
`FakeHub.tokens` may write; `FakeHub.fail` makes the next requests whose path it matches answer with a status.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """Commits by hash, each the whole tree (path → content), and branches."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)

    def commit(self, tree: Mapping[str, bytes], branch: str = "main") -> str:
        seed = json.dumps([sorted((path, hashlib.sha1(content).hexdigest()) for path, content in tree.items()), len(self.commits)])
        name = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[name] = dict(tree)
        self.branches[branch] = name
        return name

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class FakeHub:
    """The server; `endpoint` is its address."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.tokens = {TOKEN}
        self.requests: list[str] = []
        self.failures: list[tuple[re.Pattern[str], int]] = []
        self.closed = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def quiet(self) -> None:
        """Print nothing of requests that break off."""
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]

    def close(self) -> None:
        self.closed = True  # connections that are kept alive have threads of their own
        self._server.shutdown()
        self._server.server_close()

    def put(self, name: str, tree: Mapping[str, bytes], *, kind: str = "models", branch: str = "main") -> str:
        """A commit of these files; returns its hash."""
        repository = self.repositories.setdefault(f"{kind}/{name}", Repository())
        return repository.commit(tree, branch)

    def tree(self, name: str, branch: str = "main") -> dict[str, bytes]:
        repository = self.repositories[f"models/{name}"]
        return repository.commits[repository.branches[branch]]

    def fail(self, pattern: str, status: int) -> None:
        """Answer with a status wherever a request (`GET /api/…`) has the pattern."""
        self.failures.append((re.compile(pattern), status))

    def asked(self, pattern: str) -> list[str]:
        return [request for request in self.requests if re.search(pattern, request)]


@contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **said: str) -> None:
        self.status, self.code, self.message, self.said = status, code, message, said


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._serve("GET")

        def do_HEAD(self) -> None:
            self._serve("HEAD")

        def do_POST(self) -> None:
            self._serve("POST")

        def do_PUT(self) -> None:
            self._serve("PUT")

        def _serve(self, verb: str) -> None:
            url = urlsplit(self.path)
            path, query = unquote(url.path), parse_qs(url.query)
            body = self._body()
            if hub.closed:
                self.close_connection = True
                return
            hub.requests.append(f"{verb} {path}")
            try:
                for pattern, status in hub.failures:
                    if pattern.search(f"{verb} {path}"):
                        raise _Refused(status, message="as the test asked")
                self._answer(verb, path, query, body)
            except _Refused as refused:
                content = json.dumps({"error": refused.message or "refused", **refused.said}).encode()
                headers = {"X-Error-Code": refused.code} if refused.code else {}
                self._send(refused.status, content, {**headers, "X-Error-Message": refused.message})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _send(self, status: int, content: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            given = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
            for name, value in given.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
            self._send(200, json.dumps(value).encode(), headers)

        # ---------------------------------------------------------------- who may what
        @property
        def _user(self) -> bool:
            return self.headers.get("Authorization", "").removeprefix("Bearer ") in hub.tokens

        def _may_write(self) -> None:
            if not self._user:
                raise _Refused(401, message="Invalid username or password.")

        def _repository(self, kind: str, name: str) -> Repository:
            found = hub.repositories.get(f"{kind}/{name}")
            if found is None or (found.private and not self._user):
                raise _Refused(401 if not self._user else 404, "RepoNotFound", "Repository not found")
            if found.gated and not self._user:
                raise _Refused(401, "GatedRepo", f"Access to model {name} is restricted")
            return found

        def _commit(self, repository: Repository, revision: str) -> str:
            found = repository.find(revision)
            if found is None:
                raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return found

        # ---------------------------------------------------------------- what is asked
        def _answer(self, verb: str, path: str, query: dict[str, list[str]], body: bytes) -> None:
            if verb == "POST" and path == "/api/repos/create":
                return self._create(json.loads(body))
            if verb == "POST" and path == "/api/validate-yaml":
                return self._validate(json.loads(body))
            if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit|branch)/([^?]+?))?", path):
                return self._api(verb, *found.groups(), query, body)  # type: ignore[arg-type]
            if verb == "POST" and (found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)):
                return self._batch(found[1], json.loads(body))
            if verb == "PUT" and (found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path)):
                if hashlib.sha256(body).hexdigest() != found[1]:
                    raise _Refused(400, message="another hash")
                hub.uploads[found[1]] = body
                return self._send(200)
            if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", path):
                return self._resolve("datasets" if found[1] else "models", found[2], found[3], found[4])
            raise _Refused(404, message=f"the fake hub has no {verb} {path}")

        def _create(self, asked: dict[str, Any]) -> None:
            self._may_write()
            name = f"{asked['organization'] or 'somebody'}/{asked['name']}"
            key = f"{asked.get('type', 'model')}s/{name}"
            if key in hub.repositories:
                raise _Refused(409, message="You already created this model repo", url=f"{hub.endpoint}/{name}")
            made = hub.repositories[key] = Repository(private=asked.get("visibility") == "private" or bool(asked.get("private")))
            made.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
            self._json({"url": f"{hub.endpoint}/{name}", "name": name, "id": name})

        def _validate(self, asked: dict[str, Any]) -> None:
            """The card's header must be YAML, and a `model-index` must have a name, and results with a task, a data set and metrics."""
            errors = []
            try:
                header = yaml.safe_load(asked["content"].split("---")[1])
                for model in header.get("model-index", []):
                    for result in model["results"]:
                        if not (model["name"] and result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]):
                            errors.append({"message": "model-index: a field is empty"})
                        errors += [
                            {"message": "no number"} for metric in result["metrics"] if not isinstance(metric["value"], (int, float))
                        ]
            except (yaml.YAMLError, KeyError, IndexError, TypeError) as error:
                errors.append({"message": f"{type(error).__name__}: {error}"})
            content = json.dumps({"errors": errors, "warnings": []}).encode()
            self._send(400 if errors else 200, content)

        def _api(
            self, verb: str, kind: str, name: str, what: str | None, rest: str | None, query: dict[str, list[str]], body: bytes
        ) -> None:
            repository = self._repository(kind, name)
            if what in ("preupload", "commit", "branch"):
                self._may_write()
            if what in (None, "revision"):
                commit = self._commit(repository, rest or "main")
                siblings = [{"rfilename": path} for path in sorted(repository.commits[commit])]
                return self._json({"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": siblings})
            assert rest is not None
            if what == "tree":
                commit = self._commit(repository, rest)
                return self._json([self._entry(repository, path, content) for path, content in repository.commits[commit].items()])
            if what == "branch":
                if rest in repository.branches:
                    raise _Refused(409, message="Reference already exists")
                repository.branches[rest] = repository.branches["main"]
                return self._json({})
            if what == "preupload":
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                return self._json({"files": files})
            return self._write(repository, name, rest, body)

        def _entry(self, repository: Repository, path: str, content: bytes) -> dict[str, Any]:
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "oid": oid, "size": len(content), "path": path}
            if path in repository.lfs:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            return entry

        def _write(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
            tree = dict(repository.commits[self._commit(repository, branch)])
            for line in body.decode().splitlines():
                step = json.loads(line)
                value = step["value"]
                if step["key"] == "header":
                    repository.messages.append(value["summary"])
                elif step["key"] == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                elif step["key"] == "lfsFile":
                    tree[value["path"]] = hub.uploads[value["oid"]]
                    repository.lfs.add(value["path"])
                else:
                    raise _Refused(400, message=f"the fake hub does no {step['key']}")
            oid = repository.commit(tree, branch)
            self._json({"success": True, "commitOid": oid, "commitUrl": f"{hub.endpoint}/{name}/commit/{oid}"})

        def _batch(self, name: str, asked: dict[str, Any]) -> None:
            self._may_write()
            self._repository("models", name)
            objects = [
                {
                    "oid": each["oid"],
                    "size": each["size"],
                    "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{each['oid']}", "header": {}}},
                }
                if each["oid"] not in hub.uploads
                else {"oid": each["oid"], "size": each["size"]}
                for each in asked["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})

        def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
            repository = self._repository(kind, name)
            commit = self._commit(repository, revision)
            content = repository.commits[commit].get(path)
            if content is None:
                raise _Refused(404, "EntryNotFound", "Entry not found")
            entry = self._entry(repository, path, content)
            headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"', "Content-Type": "application/octet-stream"}
            if "lfs" in entry:
                headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
            self._send(200, content, headers)

    return Handler
