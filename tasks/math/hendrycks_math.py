"""MATH: seven subjects as one task, and the grading of an answer by what its box means."""

import random

import datasets

from t2eval.environment.documents import check_rows
from t2eval.errors import T2Error
from t2eval.grading.latex import LONGEST, boxed
from t2eval.grading.mathematics import boxed_equivalent

DATA_SET = "EleutherAI/hendrycks_math"
SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")
SEED = 16


def load(held_out, **_):
    """The test problems of all subjects, in the subjects' order, less `held_out` of them, drawn by a constant seed, for adaptation."""
    rows = [document(row) for subject in SUBJECTS for row in checked(subject)]
    if held_out >= len(rows):
        raise T2Error(f"t2_math cannot hold {held_out} of {len(rows)} problems out for adaptation: nothing would be left to score.")
    chosen = set(random.Random(SEED).sample(range(len(rows)), held_out))
    places = {"adaptation": sorted(chosen), "test": [place for place in range(len(rows)) if place not in chosen]}
    return {split: datasets.Dataset.from_list([rows[place] for place in kept]) for split, kept in places.items()}


def checked(subject):
    """The test rows of a subject, every one of them fit to be asked and graded."""
    source = datasets.load_dataset(DATA_SET, subject)
    if "test" not in source:
        raise T2Error(f"Data set {DATA_SET} ({subject}) has no split 'test'. It has: {', '.join(sorted(source))}.")
    check_rows(source["test"], f"{DATA_SET} ({subject})", "test", problem)
    return source["test"]


def problem(row):
    """What is wrong with a row, or None."""
    for field in ("problem", "level", "type", "solution"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            return f"its {field} is {row.get(field)!r}, and should be text"
    if not boxed(row["solution"]):
        return f"its solution has no \\boxed{{…}} that is closed, not empty and at most {LONGEST:,} characters long"
    return None


def document(row):
    """A row with its final answer."""
    return {**row, "answer": boxed(row["solution"])}


def grade(doc, results):
    """1 if the last box of the answer means what the document's does."""
    if not doc["answer"]:
        raise T2Error(f"A document of t2_math has no answer, to {doc['problem'][:60]!r}.")
    return {"exact_match": float(boxed_equivalent(doc["answer"], results[0]))}
