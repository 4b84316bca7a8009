"""Document: the page as one HTML file, with its style, its script and its data in it, that asks no network for anything.

Data is packed (gzip, then base64) in elements that a browser does not run, so nothing that a model wrote is ever read as HTML; the script
unpacks a part when it is looked at, and puts text in as text. A content security policy names the one style and the one script by hash and
forbids everything else: other scripts, pictures, frames, forms, requests.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t2eval.errors import UsageError
from t2eval.leaderboard.cells import Where
from t2eval.leaderboard.page.content import Content, content
from t2eval.store.files import read_text, write_text
from t2eval.store.texts import visible

_SOURCE = Path(__file__).parent
_START = b"<!doctype html>"
_SCRIPTS = ("base.js", "drawing.js", "list.js", "table.js", "compare.js", "samples.js", "charts.js", "history.js", "main.js")


def write_page(path: Path, where: Where, earlier: tuple[Path, ...] = ()) -> int:
    """Write the page of a benchmark.

    Args:
        path: of the HTML file.
        where: the benchmark's folder, or the folders of its parts.
        earlier: folders of its earlier runs, oldest first.

    Returns:
        The file's size, in bytes.

    Raises:
        UsageError: no finished cells, rows that do not belong together, or a file of that name that is no page.
        T2Error: damaged rows or samples.
        DiskError: there is no room.
    """
    _refuse_other_file(path)
    text = document(content(where, earlier))
    write_text(path, text, remedy="Free some space, or give another --html.")
    return len(text.encode())


def _refuse_other_file(path: Path) -> None:
    """A page may be written over a page. What else has its name, such as the rows, would be lost."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(_START)).lower() != _START:
                raise UsageError(f"{path} is there already, and is no page: it would be lost. Give another --html.")


def document(found: Content, served: str | None = None, packed: Callable[[str], str | None] = lambda _: None) -> str:
    """The page.

    Args:
        found: what it shows.
        served: the tag of this version, where a server gives the page: then it asks that server, and no other, for newer versions.
        packed: chunks that are packed already, by name; None for others.
    """
    style = read_text(_SOURCE / "page.css", what="page's style")
    script = "\n".join(['"use strict";', *(read_text(_SOURCE / name, what="page's script") for name in _SCRIPTS)])
    data = {"summary": pack({**found.summary, "served": served})}
    data |= {name: packed(name) or pack(make()) for name, make in found.chunks.items()}
    blocks = "\n".join(f'<script type="text/plain" id="data-{name}">{text}</script>' for name, text in data.items())
    page = read_text(_SOURCE / "page.html", what="page's frame")
    parts = {
        "policy": policy(style, script, served is not None),
        "title": html.escape(visible(found.title)),
        "style": style,
        "text": html.escape(visible(found.text, keep="\n\t")),
        "data": blocks,
        "script": script,
    }
    for name, text in parts.items():
        before, _, after = page.partition(f"<!--{name}-->")
        page = before + text + after
    return page


def policy(style: str, script: str, served: bool) -> str:
    """The content security policy: this style, this script, and nothing else."""
    own = [f"style-src '{_hash(style)}'", f"script-src '{_hash(script)}'"]
    rules = ["default-src 'none'", *own, "img-src data:", "base-uri 'none'", "form-action 'none'"]
    return "; ".join([*rules, "connect-src 'self'"] if served else rules)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def pack(value: Any) -> str:
    """A value as JSON, gzip and base64: no character in it means anything to HTML."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 6, mtime=0)).decode()
