"""GSM8K: the splits of the task, and the grading of an answer by its last number."""

import re

import datasets

from t2eval.environment.documents import check_rows, disjoint
from t2eval.errors import T2Error
from t2eval.grading.numbers import last_number

DATA_SET, CONFIGURATION = "openai/gsm8k", "main"
# The calculator's annotations in the worked answers: <<48/2=24>>.
ANNOTATION = re.compile(r"<<[^<>]*>>")


def load(**_):
    """The splits: training rows are dealt out by their place, so that no two splits have a row in common; the test rows are all kept."""
    source = datasets.load_dataset(DATA_SET, CONFIGURATION)
    if missing := [split for split in ("train", "test") if split not in source]:
        raise T2Error(f"Data set {DATA_SET} ({CONFIGURATION}) has no split {missing[0]!r}. It has: {', '.join(sorted(source))}.")
    for split in ("train", "test"):
        check_rows(source[split], f"{DATA_SET} ({CONFIGURATION})", split, problem)
    train, test = ([document(row) for row in source[split]] for split in ("train", "test"))
    dealt = {
        "train": train[0::2],
        "validation": [row for place, row in enumerate(train) if place % 8 in (1, 3, 5)],
        "adaptation": train[7::8],
        "test": test,
    }
    return disjoint({split: datasets.Dataset.from_list(rows) for split, rows in dealt.items()}, lambda row: row["question"])


def problem(row):
    """What is wrong with a row, or None."""
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            return f"its {field} is {row.get(field)!r}, and should be text"
    _, mark, final = row["answer"].rpartition("####")
    if not mark or last_number(final) is None:
        return f"its answer has no number after '####' (it ends with {row['answer'][-40:]!r})"
    return None


def document(row):
    """A row with its worked answer as a person would write it, and its final answer."""
    return {**row, "solution": ANNOTATION.sub("", row["answer"]), "final": row["answer"].rpartition("####")[2].strip()}


def grade(doc, results):
    """1 if the last number of the answer is the document's, as a number."""
    gold = last_number(doc["final"])
    if gold is None:
        raise T2Error(f"A document of t2_gsm8k has no number as its final answer: {doc['final'][:60]!r}, to {doc['question'][:60]!r}.")
    return {"exact_match": float(last_number(results[0]) == gold)}
