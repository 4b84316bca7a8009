"""Machine paths: what in a card names a folder of this machine, and how it is taken out before the card leaves it."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2eval.errors import T2Error, shown
from t2eval.expert.card import ExpertCard
from t2eval.paths import is_embedded

_PATH = re.compile(r"(?<![\w:/.~-])(?:~|\.{1,2})?/(?:[^/\s'\",;:()]+/)*([^/\s'\",;:()]+)/?|[A-Za-z]:\\(?:[^\\\s]+\\)*([^\\\s]+)")
"""A path on a machine, in any text; its last part is a group. An address (https://…) and a Hub id (owner/name) are none."""
_LEAK = re.compile(r"file:/+[^\s'\"]+|\\\\[\w.-]+\\[^\s'\"]+|(?<![\w/.:<~-])~?(?:/[\w.+@-]+){2,}|\b[A-Za-z]:\\[^\s'\"]+")
"""What no text may have left: absolute paths of two parts and more, `file:` addresses, and those of Windows."""


def without_paths(card: ExpertCard) -> ExpertCard:
    """A card in which every path of this machine is cut to its last part: the base model's folder, settings, descriptions."""
    stated = card.model_dump(mode="json")
    kept = {key: stated[key] for key in ("modules", "basis_fingerprint")}
    rest = {key: cleaned(value) for key, value in stated.items() if key not in kept}
    base = rest["base_model"]
    if Path(base["id"]).is_dir() and not is_embedded(base["id"]):  # a folder by a relative name
        base["id"] = Path(base["id"]).name
    return ExpertCard.model_validate({**rest, **kept})


def refuse_paths(name: str, content: bytes) -> None:
    """Refuse a file that would tell others of this machine's folders.

    Args:
        name: of the file, for the message.
        content: its bytes. In what is no text only this machine's own folders are looked for.

    Raises:
        T2Error: a path is in it; the message names both.
    """
    found = next((path for text in _texts(name, content) for path in _leaks(text)), None)
    if found is None:
        found = next((place for place in _places() if place.encode() in content), None)
    if found is not None:
        raise T2Error(f"{name} names a path of this machine, {shown(found)}: nothing was uploaded. Take it out of the expert's card.")


def cleaned(value: Any) -> Any:
    """A value of JSON's types in whose texts each path of this machine is cut to its last part."""
    if isinstance(value, str):
        for place in _places():  # first, as one of them may have a space in it
            value = re.sub(rf"{re.escape(place)}(?=/|\\|$)[/\\]?", lambda _: "/", value)
        value = re.sub(r"file:/+(?=[^\s])", "/", value)
        return _PATH.sub(lambda match: match[1] or match[2], value)
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, (list, tuple)) else value


def _places() -> list[str]:
    """The folders that nobody else has: home, the current one, the one of temporary files; longest first. Those of one part say nothing."""
    found = {str(Path.home()), os.getcwd(), tempfile.gettempdir()}
    return sorted((place for place in found if len(Path(place).parts) > 2), key=len, reverse=True)


def _texts(name: str, content: bytes) -> Iterator[str]:
    if name.endswith(".json"):
        yield from _strings(json.loads(content))
    elif name.endswith((".md", ".yaml")):
        yield content.decode("utf-8")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (str(key), *_strings(item))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _leaks(text: str) -> Iterator[str]:
    return (match[0] for match in _LEAK.finditer(text))
