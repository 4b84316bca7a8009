"""MBPP-pro: EvalPlus's selection of MBPP by the paper's 300/rest rule, base tests, graded in t2eval's sandbox."""

from __future__ import annotations

import builtins
import random
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from t2eval.environment.documents import disjoint
from t2eval.errors import T2Error
from t2eval.grading.code_task import CodeTask
from t2eval.grading.problems import Problem, called_names, defined_names
from t2eval.sandbox.programs import extract_code

DATASET = "evalplus/mbppplus"
SEED = 16
LEARNING, TRAINING, ADAPTATION = 300, 200, 10
"""The first 300 rows are for training and validation; 200 of them, shuffled, for training; the last 10 of those for adaptation."""


def split_indices(total: int) -> dict[str, list[int]]:
    """Split name → the rows' places, by the 300/rest rule.

    Raises:
        T2Error: too few rows to leave any for the test.
    """
    if total <= LEARNING:
        raise T2Error(
            f"{DATASET} has {total} rows here: the first {LEARNING} are for training and validation, and none is left for the test."
        )
    shuffled = list(range(LEARNING))
    random.Random(SEED).shuffle(shuffled)
    train = TRAINING - ADAPTATION
    return {
        "train": shuffled[:train],
        "adaptation": shuffled[train:TRAINING],
        "validation": shuffled[TRAINING:],
        "test": list(range(LEARNING, total)),
    }


def checked_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without EvalPlus's further tests, with `entry_point`: the function that the tests call first and the solution defines.

    Raises:
        T2Error: a row cannot be asked or graded; the message names it.
    """
    checked = []
    for index, row in enumerate(rows):
        problem = Problem(DATASET, index, row)
        fields = {"task_id": problem.field("task_id"), "prompt": problem.text("prompt").strip(), "code": problem.text("code").strip()}
        imports = problem.texts("test_imports", needed=False)
        tests = [test.strip() for test in problem.texts("test_list", needed=True)]
        test = problem.python("test_imports and test_list", "\n".join([*imports, *tests]))
        defined = set(defined_names(problem.python("code", fields["code"])))
        names = [name for name in called_names(test) if name in defined]
        if not names:
            raise problem.wrong("its tests call no function that its code defines.")
        checked.append({**fields, "entry_point": names[0], "test_imports": imports, "test_list": tests})
    return checked


def load(**_: Any) -> dict[str, datasets.Dataset]:
    """The rows by split, as lm-eval's `custom_dataset` wants them.

    Some tasks have one prompt, with other functions and tests: what a later split asks is not learnt from.
    """
    rows = checked_rows(list(datasets.load_dataset(DATASET, split="test")))
    splits = {name: datasets.Dataset.from_list([rows[index] for index in indices]) for name, indices in split_indices(len(rows)).items()}
    return disjoint(splits, lambda row: row["prompt"])


class MbppPro(CodeTask):
    """The program in an answer, and the base tests."""

    def program(self, doc: Mapping[str, Any], answer: str) -> tuple[str, str]:
        name = doc["entry_point"]
        theirs = [f"from __main__ import {name}"] if hasattr(builtins, name) else []  # one is called `sum`: not Python's own
        return extract_code(answer, name), "\n".join([*theirs, *doc["test_imports"], *doc["test_list"]])
