"""Response cache: lm-eval's file of answers (`--use_cache`), with a table in it for each identity. A part of the harness (`harness.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def caches_responses(hook: Any) -> bool:
    """Whether lm-eval keeps this model's answers (`--use_cache`)."""
    return getattr(hook, "dbdict", None) is not None


def own_table(hook: Any, name: Callable[[], str]) -> None:
    """Give the response cache a table of its own in its file: lm-eval's key is the request alone.

    Args:
        hook: lm-eval's CacheHook.
        name: called when the cache is first asked, which is after every task's requests have been built.
    """
    if not caches_responses(hook):
        return
    database = hook.dbdict
    plain = database.__class__
    if getattr(plain, "named_by_t2eval", False):
        plain = plain.__mro__[1]

    class Table(plain):  # type: ignore[misc, valid-type]
        named_by_t2eval = True
        tablename: str

        def _named(self) -> Any:
            table = name()
            if self.tablename != table:
                self.tablename = table
                self.conn.execute(f'CREATE TABLE IF NOT EXISTS "{table}" (key TEXT PRIMARY KEY, value BLOB)')
                self.conn.commit()
            return super()

        def __contains__(self, key: Any) -> bool:
            return bool(self._named().__contains__(key))

        def __getitem__(self, key: Any) -> Any:
            return self._named().__getitem__(key)

        def __setitem__(self, key: Any, value: Any) -> None:
            self._named().__setitem__(key, value)

    database.__class__ = Table
