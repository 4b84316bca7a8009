"""Serving: the page of a benchmark while it runs, to this machine alone.

The page is made anew when a folder's rows have changed and somebody asks. Only requests that name this machine as their host are answered:
a page of another site that has its name point here (DNS rebinding) would name its own.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from t2eval.bench.merge import parts_of
from t2eval.bench.rows import ROWS
from t2eval.errors import T2Error, UsageError
from t2eval.leaderboard.cells import Where, folders
from t2eval.leaderboard.comparison import Comparison, adjusted
from t2eval.leaderboard.page.content import Content, Tested, content
from t2eval.leaderboard.page.document import document, pack
from t2eval.training.log import LOG

HOST = "127.0.0.1"
_LOCAL = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")
_SECONDS = 3
_HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Pages:
    """The newest page of a benchmark, made when it is asked for.

    Args:
        where: the benchmark's folder, or those of its parts; they may have no rows yet.
        earlier: folders of its earlier runs, oldest first.
    """

    def __init__(self, where: Where, earlier: Sequence[Path] = ()) -> None:
        self._where, self._earlier = where, tuple(earlier)
        self._lock = threading.Lock()
        self._made: tuple[str, bytes] | None = None
        self._tests: dict[tuple[str, ...], list[Comparison]] = {}
        self._packed: dict[str, str] = {}

    def tag(self) -> str:
        """A name of what the folders hold now, which changes when a row is added or a training goes on."""
        seen = []
        for folder in (part for place in (*self._earlier, *folders(self._where)) for part in parts_of(place)):
            for path in (folder / ROWS, *sorted(folder.glob(f"*/seed-*/*/{LOG}"))):
                try:
                    state = path.stat()
                except FileNotFoundError:
                    continue
                seen.append((str(path), state.st_size, state.st_mtime_ns))
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]

    def page(self) -> tuple[str, bytes]:
        """The tag and the page."""
        with self._lock:
            tag = self.tag()
            if self._made is None or self._made[0] != tag:
                self._made = tag, self._make(tag).encode()
            return self._made

    def _make(self, tag: str) -> str:
        try:
            found = content(self._where, self._earlier, self._tested)
        except T2Error as error:
            return _waiting(str(error))
        return document(found, tag, lambda name: self._chunk(found, name))

    def _tested(self, asked: Sequence[Tested]) -> list[Comparison]:
        """Tests of before are kept: they are what takes time. A row that was made anew has another cell's time in it."""
        key = tuple(
            f"{method}|{task}|" + "|".join(row.model_dump_json() for group in (first, second) for row in group.rows)
            for method, task, first, second in asked
        )
        if key not in self._tests:
            self._tests[key] = adjusted(asked)
        return self._tests[key]

    def _chunk(self, found: Content, name: str) -> str | None:
        """Packed examples of before, by what makes them."""
        make: Any = found.chunks[name]
        key = f"{make.func.__name__}|{make.args[0]}|{make.args[1].model_dump_json()}"
        if key not in self._packed:
            self._packed[key] = pack(make())
        return self._packed[key]


def _waiting(why: str) -> str:
    """What is shown before the first row, or while the rows cannot be read; it looks again by itself."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{_SECONDS}">'
        f"<title>Waiting for rows</title><h1>Waiting for rows</h1><p>{html.escape(why)}</p></html>"
    )


class _Handler(BaseHTTPRequestHandler):
    """Answers `/` (the page) and `/tag` (the tag of the newest one)."""

    pages: Pages
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "t2eval", ""

    def do_GET(self) -> None:
        """A request."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """A request for the headers alone."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _LOCAL.fullmatch(hosts[0].strip()):
            self._send(HTTPStatus.FORBIDDEN, b"This page is for this machine alone.\n", "text/plain", body=body)
            return
        path = self.path.partition("?")[0]
        if path == "/tag":
            self._send(HTTPStatus.OK, self.pages.tag().encode(), "text/plain", body=body)
        elif path != "/":
            self._send(HTTPStatus.NOT_FOUND, b"There is one page, at /.\n", "text/plain", body=body)
        else:
            tag, page = self.pages.page()
            if f'"{tag}"' in (self.headers.get("If-None-Match") or ""):
                self._send(HTTPStatus.NOT_MODIFIED, b"", "text/html", body=False, tag=tag)
            else:
                self._send(HTTPStatus.OK, page, "text/html", body=body, tag=tag)

    def _send(self, status: HTTPStatus, content: bytes, kind: str, *, body: bool, tag: str | None = None) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if tag is not None:
            self.send_header("ETag", f'"{tag}"')
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Requests are not printed."""


class _Server(ThreadingHTTPServer):
    """Says nothing of a browser that goes away while it is answered."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A request that could not be answered."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def make_server(pages: Pages, port: int) -> ThreadingHTTPServer:
    """A server of the page on this machine; `serve_forever` runs it.

    Args:
        pages: what it serves.
        port: 0 takes any that is free.

    Raises:
        UsageError: the port is taken, or not allowed.
    """
    handler = type("Handler", (_Handler,), {"pages": pages})
    try:
        server = _Server((HOST, port), handler)
    except OSError as error:
        raise UsageError(f"Cannot listen on {HOST}:{port} ({error.strerror}). Give another --port; 0 takes any that is free.") from error
    return server


def serve(where: Where, earlier: Sequence[Path] = (), port: int = 0, say: Callable[[str], None] = print) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UsageError: no such folder, or the port is taken.
    """
    for folder in (*folders(where), *earlier):
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder. Give the --output of `t2 bench`; it may still be running.")
    with make_server(Pages(where, earlier), port) as server:
        say(f"http://{HOST}:{server.server_address[1]}/ shows {', '.join(map(str, folders(where)))} while it runs. Ctrl-C ends it.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
