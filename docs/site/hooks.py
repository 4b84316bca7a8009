"""Hooks of the docs site: a link to a file of the repository that is no page leads to the repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def outside(target: str, page: str, root: Path, repository: str) -> str:
    """Where a link of a page leads on the site.

    Args:
        target: as the page's Markdown has it, without an anchor.
        page: the page's path in docs/.
        root: the checkout.
        repository: the repository's address, without a slash at its end.

    Raises:
        PluginError: if the link leads out of docs/ to a file that the checkout does not have.
    """
    if re.match(r"[a-z]+:", target):
        return target
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    if path == "docs" or path.startswith("docs/"):
        return target  # mkdocs checks it
    if not (root / path).exists():
        raise PluginError(f"{page} links to {target}: there is no {path}")
    return f"{repository}/{'tree' if (root / path).is_dir() else 'blob'}/main/{path}"


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The page with its links out of docs/ made absolute."""
    root = Path(config.config_file_path).parent
    repository = str(config.extra["repository"])

    def replaced(match: re.Match[str]) -> str:
        return match[1] + outside(match[2], page.file.src_uri, root, repository) + match[3]

    return _LINK.sub(replaced, markdown)
