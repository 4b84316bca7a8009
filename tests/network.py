"""Which addresses this process asks for: an audit hook, which no library can go round. `tests/conftest.py` sets it before all imports."""

from __future__ import annotations

import sys
from typing import Any

ASKED = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname")
imports: list[str] = []
"""What was asked for while the tests were imported, and with them all that they use."""
_importing = True


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """The hook: notes until the tests are collected."""
    if _importing and event in ASKED and not _local(asked := address(event, arguments)):
        imports.append(f"{event} {asked}")


def address(event: str, arguments: tuple[Any, ...]) -> Any:
    """What is asked for: a name, or of a socket the address."""
    return arguments[0] if "gethostbyname" in event or "getaddrinfo" in event else arguments[1]


def _local(asked: Any) -> bool:
    """Whether an address is this machine's own: of a socket in the file system, or a loopback address."""
    host = asked[0] if isinstance(asked, tuple) else asked
    return host is None or str(host).startswith("/") or str(host) in ("localhost", "127.0.0.1", "::1")


def collected() -> None:
    """The imports are over."""
    global _importing
    _importing = False


sys.addaudithook(note)
