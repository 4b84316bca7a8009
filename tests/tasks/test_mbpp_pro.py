"""t2_mbpp_pro: the 300/rest rule, the prompt, and grading through the task, on hand-made rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval.tasks._yaml_loader import _import_func_in_yml

from t2eval.environment.environment import Environment
from t2eval.errors import T2Error
from t2eval.paths import tasks_dir
from t2eval.sandbox import available
from tests.fixtures import mbpp_rows
from tests.offline_datasets import datasets_cache, hub_rows, write_dataset, write_hub

FOLDER = tasks_dir() / "mbpp_pro"
SPLITS: list[Any] = ["train", "validation", "adaptation", "test"]
needs_sandbox = pytest.mark.skipif(available().kind is None, reason=f"no sandbox: {available().reason}")


def _own(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = _import_func_in_yml(f"mbpp_pro.{name}", FOLDER)
    return function


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    cache = tmp_path_factory.mktemp("hub")
    write_hub(cache, "evalplus/mbppplus")
    with datasets_cache(cache):
        yield Environment("t2_mbpp_pro")


def test_the_fixture_is_what_its_script_writes() -> None:
    assert mbpp_rows.PATH.read_text(encoding="utf-8") == mbpp_rows.lines()


@pytest.mark.parametrize(("total", "test"), [(378, 78), (399, 99), (301, 1)])
def test_the_300_rest_rule(total: int, test: int) -> None:
    splits = _own("split_indices")(total)
    assert {name: len(places) for name, places in splits.items()} == {"train": 190, "adaptation": 10, "validation": 100, "test": test}
    assert sorted(place for places in splits.values() for place in places) == list(range(total))
    assert splits["test"] == list(range(300, total))
    assert splits["train"] != sorted(splits["train"]) and splits == _own("split_indices")(total)


def test_too_few_rows_leave_no_test() -> None:
    with pytest.raises(T2Error, match="evalplus/mbppplus has 300 rows"):
        _own("split_indices")(300)


def test_no_prompt_is_learnt_from_and_asked_again(tmp_path: Path) -> None:
    """As in the real rows: a prompt of a training row stands in another training row, and one in an adaptation row, with other tests."""
    rows = hub_rows("evalplus/mbppplus", "default", "test")
    places = _own("split_indices")(len(rows))
    twins = [(places["train"][3], places["train"][7]), (places["train"][5], places["adaptation"][2])]
    for first, second in twins:
        rows[first] = {**rows[first], "prompt": "  " + rows[second]["prompt"].upper() + " "}
    write_dataset(tmp_path, "evalplus/mbppplus", "default", datasets.Dataset.from_list(rows).features, {"test": rows})
    with datasets_cache(tmp_path):
        found = _own("load")()
    assert {split: len(kept) for split, kept in found.items()} == {"train": 188, "adaptation": 10, "validation": 100, "test": 20}
    prompts = [" ".join(row["prompt"].casefold().split()) for kept in found.values() for row in kept]
    assert len(set(prompts)) == len(prompts)


def test_splits_prompt_and_limits(environment: Environment) -> None:
    examples = {split: environment.examples(split) for split in SPLITS}
    ids = [example.doc["task_id"] for found in examples.values() for example in found]
    assert [len(found) for found in examples.values()] == [190, 100, 10, 20] and len(set(ids)) == 320
    assert environment.metric == "pass@1" and environment.max_new_tokens == 512 and environment.t2["label"] == "code"
    first = examples["test"][0]
    assert first.doc["task_id"] == 1300 and first.doc["entry_point"] == "without_300"
    assert first.prompt == (
        "You are a careful Python programmer. You answer with a short, complete and correct program.\n\n"
        "Write a function to remove 300 from a list.\nThe function has to pass this test:\n\n"
        "assert without_300([300, -1]) == [-1]\n\nGive the code in one Python block.\n"
    )
    assert first.answer == "```python\ndef without_300(xs):\n    return [x for x in xs if x != 300]\n```"


@needs_sandbox
@pytest.mark.parametrize("split", ["adaptation", "test"])
def test_solutions_pass_and_empty_answers_fail_through_the_task(environment: Environment, split: Any) -> None:
    examples = environment.examples(split)
    assert environment.score_many([(example, example.target) for example in examples]) == [1.0] * len(examples)
    assert environment.score_many([(example, example.doc["code"]) for example in examples]) == [1.0] * len(examples)
    assert environment.score_many([(example, "") for example in examples]) == [0.0] * len(examples)
    assert environment.score_many([(example, example.doc["test_list"][0]) for example in examples]) == [0.0] * len(examples)


@needs_sandbox
def test_all_base_tests_count_and_their_imports_are_there(environment: Environment) -> None:
    examples = [example for split in SPLITS for example in environment.examples(split)]
    two = next(example for example in examples if example.doc["entry_point"].startswith("count_"))
    number = two.doc["entry_point"].split("_")[1]
    assert environment.score(two, f"def count_{number}(xs):\n    return 2") == 0.0  # the second test says 0
    imports = next(example for example in examples if example.doc["test_imports"] == ["import math"])
    assert environment.score(imports, imports.target) == 1.0


def test_the_function_is_the_one_that_the_tests_call_first() -> None:
    row = {
        **hub_rows("evalplus/mbppplus", "default", "test")[0],
        "code": "def helper(x):\n    return x\n\ndef main(x):\n    return helper(x)\n",
    }
    row["test_list"] = ["assert set(main([1])) == set([1])", "assert helper(1) == 1"]
    assert _own("checked_rows")([row])[0]["entry_point"] == "main"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("test_list", None, "it has no 'test_list'"),
        ("test_list", [], "'test_list' is []"),
        ("test_list", [""], "'test_list[0]' is empty"),
        ("test_list", "assert f(1)", "not a list of texts"),
        ("test_list", ["assert 1 == 1"], "call no function that its code defines"),
        ("test_list", ["expect(f(1)).toBe(2);;"], "is not Python"),
        ("code", "", "'code' is empty"),
        ("code", "x = 1", "call no function that its code defines"),
        ("code", "function f(x) { return x }", "'code' is not Python"),
        ("prompt", "a" * 10_000_000, "has 10000000 characters"),
        ("prompt", "\udcff", "lone surrogates"),
        ("prompt", None, "it has no 'prompt'"),
        ("prompt", float("nan"), "'prompt' is a float"),
    ],
)
def test_a_bad_row_is_named(field: str, value: Any, said: str) -> None:
    row = hub_rows("evalplus/mbppplus", "default", "test")[0]
    with pytest.raises(T2Error, match=r"Row 1 \(task_id '1000'\) of evalplus/mbppplus cannot be graded: ") as error:
        _own("checked_rows")([row, {**row, field: value}])
    assert said in str(error.value) and len(str(error.value)) < 600


def test_without_hub_and_cache_the_error_says_what_to_do(tmp_path: Path) -> None:
    with datasets_cache(tmp_path), pytest.raises(T2Error, match="The data of task 't2_mbpp_pro' could not be loaded"):
        Environment("t2_mbpp_pro")
