"""The docs site: it is built strictly without a network, every page is in it, and no page asks another host for anything."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")

_FOREIGN = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//|@import|url\(["']?https?:"""
)


def _refused(*_: Any, **__: Any) -> NoReturn:
    raise OSError("the site's build asks a network for something")


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; the build fails where a link is broken."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    made = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _refused)
        patch.setattr(socket, "getaddrinfo", _refused)
        patch.chdir(root)
        config = load_config(str(root / "mkdocs.yml"), site_dir=str(made), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        config.plugins.on_shutdown()
    return made


def test_every_page_is_in_the_navigation(site: Path, root: Path) -> None:
    pages = [page for page in (root / "docs").rglob("*.md") if "site" not in page.relative_to(root / "docs").parts]
    assert len(pages) > 20
    start = (site / "index.html").read_text(encoding="utf-8")
    absent = [page for page in pages if f'{page.relative_to(root / "docs").with_suffix(".html").as_posix()}"' not in start]
    assert not absent


def test_no_page_asks_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    found = [(page.name, match[0]) for page in pages for match in _FOREIGN.finditer(page.read_text(encoding="utf-8"))]
    assert pages and not found
    # The theme's script asks an API of the repository's host for stars where a page has this element, as a browser showed.
    assert not [page.name for page in pages if 'data-md-component="source"' in page.read_text(encoding="utf-8")]


def test_the_reference_is_made_of_docstrings(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in ("t2eval.attach", "t2eval.svf.adapted.Adapted.merge", "t2eval.Expert.load", "t2eval.T2Error"):
        assert f'id="{name}"' in page
    assert "Freeze a model and make its matrices scalable by z" in page


def test_links_out_of_the_docs_lead_to_the_repository(site: Path) -> None:
    assert "https://github.com/t2eval/t2eval/tree/main/tasks/gsm8k" in (site / "tasks.html").read_text(encoding="utf-8")


def test_a_link_to_no_file_is_seen(root: Path) -> None:
    import importlib.util

    from mkdocs.exceptions import PluginError

    spec = importlib.util.spec_from_file_location("hooks", root / "docs" / "site" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    assert hooks.outside("../CONTRIBUTING.md", "index.md", root, "https://x.org/a/b") == "https://x.org/a/b/blob/main/CONTRIBUTING.md"
    assert hooks.outside("../cli.md", "reference/python.md", root, "https://x.org/a/b") == "../cli.md"
    with pytest.raises(PluginError, match="nowhere"):
        hooks.outside("../nowhere.md", "index.md", root, "https://x.org/a/b")
