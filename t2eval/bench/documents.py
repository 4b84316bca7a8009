"""Documents: what each example of a task asks, and its gold answer: once a task, beside the answers of all cells that were asked it.

`samples/documents-….jsonl.gz` is named by the digest of the prompts (`hashes.prompts` of a row), so that cells with the same documents and
prompts share one file, and a row finds its own.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from t2eval.bench.rows import REMEDY, SAMPLES, Row, read_lines
from t2eval.store import files
from t2eval.store.texts import Text


class Document(BaseModel):
    """One example as it was asked.

    Attributes:
        doc_id: lm-eval's.
        prompt: the text of its (first) request, with few-shot examples and chat template.
        choices: the answers on offer, in lm-eval's order; empty where the model writes its answer.
        target: the gold answer as lm-eval logs it; for choices often the place of the right one, from 0.
        images: how many pictures were sent with it; they are not kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    doc_id: int
    prompt: Text
    choices: tuple[Text, ...] = ()
    target: Text = ""
    images: int = 0


def write_documents(folder: Path, digest: str, logged: Iterable[Mapping[str, Any]]) -> None:
    """Keep the documents of a run, unless another cell has kept them.

    Args:
        folder: the benchmark's.
        digest: of the prompts.
        logged: lm-eval's samples, of any filters.

    Raises:
        DiskError: there is no room.
    """
    path = folder / SAMPLES / _name(digest)
    if path.exists():
        return
    found = {sample["doc_id"]: sample for sample in logged}
    text = "".join(_document(found[doc]).model_dump_json() + "\n" for doc in sorted(found))
    files.write_bytes(path, gzip.compress(text.encode("utf-8", "backslashreplace"), mtime=0), remedy=REMEDY)


def read_documents(folder: Path, row: Row) -> dict[int, Document] | None:
    """The documents that a row is of: doc_id → document; None where they were not kept (rows of older releases).

    Raises:
        T2Error: the file is damaged.
    """
    digest = row.hashes.get("prompts")
    if row.samples is None or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{16,}", digest):
        return None
    path = (row.folder or folder) / SAMPLES / _name(digest)
    if not path.exists():
        return None
    found = read_lines(path, Document, what=f"documents of {row.task}", remedy="Remove it: scores stay.")
    return {document.doc_id: document for document in found}


def _name(digest: str) -> str:
    return f"documents-{digest[:32]}.jsonl.gz"


def _document(sample: Mapping[str, Any]) -> Document:
    """From one of lm-eval's samples. A request's arguments are (context, continuation), (context, settings), with pictures after them."""
    arguments = [tuple(request) for request in sample.get("arguments") or ()]
    first = arguments[0] if arguments else ("",)
    choices = [str(request[1]) for request in arguments if len(request) > 1 and isinstance(request[1], str)]
    pictures = next((part["visual"] for part in first if isinstance(part, Mapping) and "visual" in part), None) or ()
    target = sample.get("target", "")
    return Document(
        doc_id=sample["doc_id"],
        prompt=str(first[0]),
        choices=tuple(choices) if len(choices) > 1 else (),
        target=target if isinstance(target, str) else json.dumps(target, default=str, ensure_ascii=False),
        images=len(pictures),
    )
