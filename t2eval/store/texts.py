"""Texts: what a model wrote, as UTF-8 can hold it, and as a reader may see it. A text may have half of a surrogate pair, which no file in
UTF-8 may."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

# In JSON of ASCII, one half without the other. Behind an escaped backslash it is found as well, which costs time and nothing else.
_HALF = re.compile(r"\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f]")


def utf8_text(text: str) -> str:
    """The text with each half of a surrogate pair as its escape, such as `\\ud800`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: str, keep: str = "") -> str:
    """Text in which nothing is hidden: controls, marks of direction and odd line ends stand as their code points (`\u202e`).

    Args:
        text: of anybody.
        keep: characters that stay though they are not printable, such as line feeds.
    """
    return "".join(c if c.isprintable() or c in keep else f"\\u{ord(c):04x}" for c in text)


def code_span(text: str) -> str:
    """Any text as code in a line of Markdown: no character of it means anything there, and nobody is mentioned by it."""
    text = visible(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


Text = Annotated[str, BeforeValidator(lambda value: utf8_text(value) if isinstance(value, str) else value)]
"""A record's field of text that a model wrote in part."""


def whole_json(text: str, value: Any, indent: int | None) -> str:
    """JSON of ASCII as every reader takes it: `text`, or where that has half of a surrogate pair, `value` written without."""
    return text if _HALF.search(text) is None else json.dumps(_whole(value), indent=indent, allow_nan=False)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return utf8_text(value)
    if isinstance(value, Mapping):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, (list, tuple)) else value
