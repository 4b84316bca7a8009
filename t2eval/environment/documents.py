"""Documents: the rows of a hub data set, each checked before it is used, in splits that share none of them."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t2eval.errors import T2Error

Row = Mapping[str, Any]

LONGEST = 100_000
"""Characters. No question or answer of any benchmark comes near; a longer text is a broken file, and would fill the memory."""


def load_documents(
    path: str,
    name: str | None,
    *,
    splits: Sequence[str],
    problem: Callable[[Row], str | None],
    content: Callable[[Row], str],
) -> dict[str, Any]:
    """The splits of a hub data set, checked, and disjoint by what is asked.

    Args:
        path: hub id. name: its configuration.
        splits: those to keep, the ones to be scored last: a question that is in two of them stays where it comes last in this order.
            The last split keeps every row, also its own repeats, so that its scores are over as many examples as everyone's.
        problem: what is wrong with a row, or None.
        content: what a row asks, as text; two rows with the same text (but for case and white space) are the same question.

    Returns:
        Split → `datasets.Dataset`.

    Raises:
        T2Error: a split is missing, or a row cannot be used.
    """
    from datasets import load_dataset

    found = load_dataset(path, name)
    where = f"{path} ({name})" if name else path
    if missing := [split for split in splits if split not in found]:
        raise T2Error(f"Data set {where} has no split {missing[0]!r}. It has: {', '.join(sorted(map(str, found)))}.")
    for split in splits:
        check_rows(found[split], where, split, problem)
    return disjoint({split: found[split] for split in splits}, content)


def check_rows(rows: Any, data_set: str, split: str, problem: Callable[[Row], str | None]) -> None:
    """Refuse a split with a row that cannot be used.

    Args:
        rows: the split's rows.
        data_set, split: how the message names them.
        problem: what is wrong with a row, or None.

    Raises:
        T2Error: the first such row, by number and id.
    """
    for index, row in enumerate(rows):
        too_long = [f"its {field} has {len(text)} characters" for field, text in _texts(row) if len(text) > LONGEST]
        wrong = too_long[0] if too_long else problem(row)
        if wrong:
            named = next((f" ({key} {str(row[key])[:60]!r})" for key in ("id", "task_id") if row.get(key) is not None), "")
            raise T2Error(
                f"Row {index}{named} of split {split!r} of data set {data_set} cannot be used: {wrong}. "
                "Download the data set again, or mend or remove the row."
            )


def _texts(row: Row) -> list[tuple[str, str]]:
    texts: list[tuple[str, str]] = []
    for field, value in row.items():
        parts = value.values() if isinstance(value, Mapping) else [value]
        for part in parts:
            texts.extend((field, text) for text in (part if isinstance(part, list) else [part]) if isinstance(text, str))
    return texts


def content_hash(text: str) -> str:
    """A hash of a text that does not see case or white space."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()[:16]


def disjoint(splits: Mapping[str, Any], content: Callable[[Row], str]) -> dict[str, Any]:
    """Splits without the rows that a later split, or a later row of the same one, asks again. The last split is left as it is.

    Args:
        splits: split → `datasets.Dataset`, the ones to be scored last.
        content: what a row asks, as text.
    """
    *earlier, (last, scored) = splits.items()
    kept: dict[str, Any] = {last: scored}
    seen = {content_hash(content(row)) for row in scored}
    for split, rows in reversed(earlier):
        indices = []
        for index in range(len(rows) - 1, -1, -1):
            key = content_hash(content(rows[index]))
            if key not in seen:
                seen.add(key)
                indices.append(index)
        kept[split] = rows if len(indices) == len(rows) else rows.select(indices[::-1])
    return {split: kept[split] for split in splits}


def question_of(task: Any, doc: Row) -> str:
    """What a document asks, as dispatch reads it: without the words that the task's prompt puts around a question.

    Those words would tell the task and not the skill. The field that `metadata: {t2: {question_field: …}}` names, else the task's prompt,
    and behind it the answer choices of a task that scores them and does not show them: they are part of what is asked. Empty where the
    prompt is no text.

    Args:
        task: lm-eval's task object.
        doc: one of its documents.

    Raises:
        T2Error: the document does not have that field.
    """
    metadata = task.config.metadata
    field = ((metadata.get("t2") or {}) if isinstance(metadata, Mapping) else {}).get("question_field")
    if field is None:
        asked = task.doc_to_text(doc)  # where the choices are contexts, it is the right one's index, or all of them
        return _with_choices(task, doc, asked.strip()) if isinstance(asked, str) else ""
    if not isinstance(doc.get(field), str):
        raise T2Error(
            f"Task {task.config.task!r}: metadata.t2.question_field names {field!r}, which a document does not have as text; it has: "
            f"{', '.join(doc)}."
        )
    return str(doc[field]).strip()


def _with_choices(task: Any, doc: Row, asked: str) -> str:
    """A prompt and, where it does not show them, the choices, as `t2_arc_easy` shows its own."""
    if task.config.output_type != "multiple_choice" or task.config.doc_to_choice is None:
        return asked
    choices = [str(choice).strip() for choice in task.doc_to_choice(doc)]
    if all(choice in asked for choice in choices):
        return asked
    letters = string.ascii_uppercase
    labels = letters if len(choices) <= len(letters) else [str(place) for place in range(1, len(choices) + 1)]
    return "\n".join([asked, "Options:", *(f"{label}. {choice}" for label, choice in zip(labels, choices, strict=False))])


def cluster_of(task: Any, doc: Row) -> str | None:
    """What a document shares with others, such as its picture, its passage or its subject: those of one cluster are not independent.

    The field that `metadata: {t2: {cluster: …}}` names; None where the task names none, whose documents are taken to be independent.

    Args:
        task: lm-eval's task object.
        doc: one of its documents.

    Raises:
        T2Error: the document does not have that field as text or a whole number.
    """
    metadata = task.config.metadata
    field = ((metadata.get("t2") or {}) if isinstance(metadata, Mapping) else {}).get("cluster")
    if field is None:
        return None
    value = doc.get(field) if isinstance(field, str) else None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise T2Error(
            f"Task {task.config.task!r}: metadata.t2.cluster names {field!r}, which a document does not have as text or a whole number; it "
            f"has: {', '.join(doc)}. Name another field, or remove the key where documents are independent."
        )
    return str(value)
