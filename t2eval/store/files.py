"""Files: written whole or not at all, and read through one door.

A writer puts the content into a temporary file in the same folder, syncs it, and renames it: a killed process or a full disk leaves the old
file or the new one. What such a process leaves behind (`.NAME.….unfinished`) goes when its folder is next locked (`store.lock`).

A reader takes regular files only (a FIFO would hang, a device would never end), of a bounded size, in UTF-8, with JSON and YAML of a
bounded depth; whatever is wrong comes as one `T2Error` with the path, the place in the file, and what to do. Text is cut into lines at
line feeds only: `str.splitlines` cuts at U+2028 too, which may stand inside a line of JSON.
"""

from __future__ import annotations

import errno
import functools
import gzip
import io
import json
import math
import os
import re
import secrets
import struct
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from t2eval.errors import T2Error, shown, wrong_value
from t2eval.store.regular import open_regular
from t2eval.store.texts import whole_json
from t2eval.store.yamls import DEPTH, parse_yaml

LIMIT = 64 * 2**20
"""Most bytes that a reader takes unless told otherwise."""
_T = TypeVar("_T")
_LONGEST_NAME = 255  # bytes, on every common file system
_SURROGATE = re.compile("[\ud800-\udfff]")
UNFINISHED = ".unfinished"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class DiskError(T2Error):
    """A file or folder could not be written: no room, no permission, a broken disk. What was there before is as it was."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that no more can be written, rather than that one piece of work is broken."""
    return isinstance(error, DiskError) or (isinstance(error, OSError) and error.errno in _FULL)


def disk_error(path: str | Path, error: OSError, remedy: str = "Free some space, or choose another folder.") -> DiskError:
    """The error for a write that failed."""
    return DiskError(f"Could not write {path}: {error.strerror or error}. {remedy}")


# ---------------------------------------------------------------------- writing
def write_bytes(path: str | Path, content: bytes, *, remedy: str = "Free some space, or choose another folder.") -> None:
    """Write a file whole or not at all; its folder is made.

    Raises:
        DiskError: nothing is left behind, and an older file of that name is as it was. A device, a pipe or a socket of that name is
            refused: the file would take its place.
    """
    target = Path(path)
    temporary = unfinished(target)
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            raise OSError(errno.EINVAL, "it is no regular file, and would be replaced by one")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:  # Ctrl-C as well
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise disk_error(target, error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error)), remedy) from error


def write_text(path: str | Path, text: str, *, remedy: str = "Free some space, or choose another folder.") -> None:
    """Write a text file in UTF-8, as `write_bytes`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), remedy=remedy)


def write_json(path: str | Path, value: Any, *, indent: int | None = 2, remedy: str = "Free some space, or choose another folder.") -> None:
    """Write a value as JSON, with a newline at the end, as `write_bytes`.

    Raises:
        DiskError: as `write_bytes`.
        T2Error: the value holds a number that JSON has not (NaN, infinity), with its place.
    """
    write_text(path, json_text(value, what=str(path), indent=indent) + "\n", remedy=remedy)


def json_text(value: Any, *, what: str, indent: int | None = 2) -> str:
    """A value as JSON text that every reader takes: NaN and infinities are no JSON, and are refused with their place.

    Args:
        value: of JSON's types.
        what: what is written, for the error.
        indent: spaces a level; None: one line.

    Raises:
        T2Error: a number that is not finite.
    """
    try:
        return whole_json(json.dumps(value, indent=indent, allow_nan=False), value, indent)
    except ValueError as error:
        place = next((f"{where} is {number}" for where, number in _not_finite(value)), str(error))
        raise T2Error(f"{what} cannot be written as JSON: {place}. Mend what gave that number; nothing was written.") from error


def append_line(path: str | Path, text: str, *, remedy: str = "Free some space, then run the same command again.") -> None:
    """Append one line in a single write, and sync it: a killed process loses this line at most. There is one writer at a time.

    Args:
        path: the file; made if missing.
        text: without a newline at its end. Several lines that belong together are one text.

    Raises:
        DiskError: what was written of the line is taken back first.
    """
    line = text.encode("utf-8", "backslashreplace") + b"\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise disk_error(path, error, remedy) from error


def cut_unfinished(path: str | Path, *, what: str = "file", remedy: str = "Check the file.", limit: int = LIMIT) -> None:
    """Cut what a killed writer left of a file's last line. Call it only where no one else is writing.

    Args:
        path: a file that `append_line` writes; a missing one is fine.
        what, remedy, limit: as `read_bytes`.

    Raises:
        T2Error, OSError: it cannot be read or cut.
    """
    path = Path(path)
    if not path.exists():
        return
    content = read_bytes(path, what=what, remedy=remedy, limit=limit)
    if not content or content.endswith(b"\n"):
        return
    with path.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)
        os.fsync(file.fileno())


def unfinished(target: Path) -> Path:
    """A new name beside `target`, for what will take its place when it is whole."""
    return target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}{UNFINISHED}")


# ---------------------------------------------------------------------- reading
def read_bytes(path: str | Path, *, what: str = "file", remedy: str = "Check the file.", limit: int = LIMIT) -> bytes:
    """All of a regular file.

    Args:
        path: the file, or a link to it.
        what: what the file should be, for errors: `recipe`, `expert's card`.
        remedy: what to do when it cannot be read.
        limit: most bytes that are taken.

    Raises:
        T2Error: no such file, no regular file, too large, or it cannot be read.
    """
    try:
        with open_regular(path) as file:
            too_large = os.fstat(file.fileno()).st_size > limit  # before it is read: a sparse file costs its maker nothing
            content = b"" if too_large else file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        _refuse(what, path, getattr(error, "strerror", None) or str(error), remedy, error)
    if too_large or len(content) > limit:
        _refuse(what, path, f"it has more than {limit:,} bytes", remedy)
    return content


def inside(folder: str | Path, name: str, *, links: bool = False, what: str = "file", remedy: str = "Check the file.") -> Path:
    """The path of a file that belongs to a folder, which came from somebody else perhaps: neither its name nor a link leads out of it.

    A snapshot in the hub's cache is links into the `blobs` beside it, and they are followed.

    Args:
        folder: the folder.
        name: relative to it, with `/`.
        links: whether a link may lead elsewhere: the folder is the user's own.
        what, remedy: as `read_bytes`.

    Raises:
        T2Error: it leads elsewhere, or the name holds a NUL or a line's end.
    """
    path, parts = Path(folder) / name, name.split("/")
    if not name or not parts[0] or ".." in parts or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        _refuse(what, path, f"{shown(name)} is no name of a file in {folder}", remedy)
    if any(len(part.encode(errors="surrogatepass")) > _LONGEST_NAME for part in parts):
        _refuse(what, path.parent, f"{shown(name)} is longer than a file's name can be", remedy)
    if links:
        return path
    home = Path(folder)
    home = next((above.parent.parent for above in (home, *home.parents) if above.parent.name == "snapshots"), home)
    try:
        if not path.resolve().is_relative_to(home.resolve()):
            _refuse(what, path, f"it is a link that leads out of {folder}", remedy)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a ring, before Python 3.13
        _refuse(what, path, str(error), remedy, error)
    return path


def read_packed(path: str | Path, *, what: str = "file", remedy: str = "Check the file.", limit: int = LIMIT) -> bytes:
    """What a gzip file holds, `limit` bytes at most; errors as `read_bytes`, and a file that is cut off, damaged, or no gzip."""
    packed = read_bytes(path, what=what, remedy=remedy, limit=limit)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            blocks, size = [], 0
            while size <= limit and (block := file.read(2**20)):
                blocks.append(block)
                size += len(block)
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        _refuse(what, path, f"it is no whole gzip file ({error})", remedy, error)
    if size > limit:
        _refuse(what, path, f"unpacked it has more than {limit:,} bytes", remedy)
    return b"".join(blocks)


def read_text(path: str | Path, *, what: str = "file", remedy: str = "Check the file.", limit: int = LIMIT) -> str:
    """All of a text file in UTF-8 (with or without a byte order mark); errors as `read_bytes`, and bytes that are no UTF-8."""
    content = read_bytes(path, what=what, remedy=remedy, limit=limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        _refuse(what, path, f"line {line} is not UTF-8 (byte {content[error.start]:#04x})", remedy, error)


def read_lines(path: str | Path, *, what: str = "file", remedy: str = "Check the file.", limit: int = LIMIT) -> list[str]:
    """The lines of a text file, cut at `\\n` only, without it; errors as `read_text`."""
    lines = read_text(path, what=what, remedy=remedy, limit=limit).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_json(path: str | Path, *, what: str = "file", remedy: str = "Check the file.", limit: int = LIMIT) -> Any:
    """The value of a JSON file; errors as `read_text`, and text that is no JSON, nests deeper than 64, or holds NaN or infinities."""
    return _parsed(path, read_text(path, what=what, remedy=remedy, limit=limit), parse_json, what, remedy)


def read_json_lines(
    path: str | Path, *, what: str = "file", remedy: str = "Check the file.", limit: int = LIMIT, grows: bool = False
) -> list[Any]:
    """The values of a file with one JSON value a line (empty lines are skipped); errors as `read_json`, with the line.

    Args:
        path, what, remedy, limit: as `read_bytes`.
        grows: another process may be at its next line: what stands behind the last line feed does not count.
    """
    found = []
    lines = read_text(path, what=what, remedy=remedy, limit=limit).split("\n")
    for number, line in enumerate(lines[:-1] if grows else lines, start=1):
        if line.strip():
            found.append(_parsed(path, line, parse_json, what, remedy, f"line {number}: "))
    return found


def read_yaml(path: str | Path, *, what: str = "file", remedy: str = "Check the file.", limit: int = 2**20) -> Any:
    """The value of a YAML file (`store.yamls`); errors as `read_text`, and text that `parse_yaml` refuses."""
    return _parsed(path, read_text(path, what=what, remedy=remedy, limit=limit), parse_yaml, what, remedy)


def read_record(path: str | Path, kind: type[_T], *, what: str = "file", remedy: str = "Check the file.", limit: int = LIMIT) -> _T:
    """The value of a JSON file, of one shape; errors as `read_json`, and a value of another shape, with its place.

    Args:
        path: the file.
        kind: the shape: a pydantic model, or a type such as `dict[str, dict[str, float]]`.
        what, remedy, limit: as `read_bytes`.
    """
    return of_shape(read_json(path, what=what, remedy=remedy, limit=limit), kind, path, what=what, remedy=remedy)


def of_shape(value: Any, kind: type[_T], path: str | Path, *, what: str = "file", remedy: str = "Check the file.", place: str = "") -> _T:
    """A value that was read, as one of a shape.

    Args:
        value: of JSON's or YAML's types.
        kind: as in `read_record`.
        path, what, remedy: for the error, as in `read_bytes`.
        place: where in the file it stands, for the error: `line 3`.

    Raises:
        T2Error: it has another shape; the first place that is wrong is named.
    """
    try:
        return cast(_T, _adapter(cast(Hashable, kind)).validate_python(value))
    except ValidationError as error:
        first, number = error.errors(include_url=False)[0], error.error_count()
        where = ".".join(part for part in (place, *map(str, first["loc"])) if part)
        more = f" ({number} problems in all)" if number > 1 else ""
        found = f" (found: {shown(first['input'])})" if first["type"] != "missing" else ""
        _refuse(what, path, f"{where + ': ' if where else ''}{wrong_value(first)}{found}{more}", remedy, error)


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, nested deeper than 64, or with NaN, infinities or half of a surrogate pair.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError(f"it nests deeper than {DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    _check_value(value)
    return value


def _parsed(path: str | Path, text: str, parse: Callable[[str], Any], what: str, remedy: str, place: str = "") -> Any:
    try:
        return parse(text)
    except ValueError as error:
        _refuse(what, path, f"{place}{error}", remedy, error)


def _refuse(what: str, path: str | Path, problem: str, remedy: str, error: Exception | None = None) -> NoReturn:
    raise T2Error(f"The {what} {str(path)!r} cannot be read: {problem}. {remedy}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _check_value(value: Any) -> None:
    """Refuse a parsed value that other code would stumble over. Goes level by level, so that depth costs no stack."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"it nests deeper than {DEPTH} levels")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError("it holds a number that is too large")  # 1e999
            elif isinstance(item, str) and not item.isascii() and _SURROGATE.search(item):
                raise ValueError(f"{ascii(item[:40])} holds half of a surrogate pair")
        level = below


def _not_finite(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """(place, number) of each number that is not finite, such as (`scores.after[2]`, nan)."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place or "the value", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{place}[{index}]")
