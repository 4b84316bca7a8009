"""Runs: the prompts that t2eval builds for a run are, letter for letter, those that lm-eval sends, whatever lm-eval was told."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from t2eval.environment import harness, runs
from t2eval.environment.environment import Environment
from t2eval.errors import T2Error

YAML = """task: {name}
description: "Answer."
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
{splits}
output_type: {kind}
doc_to_text: "Q: {{{{q}}}}\\nA:"
{rest}
metadata: {{version: 1.0, t2: {{label: math}}}}
"""
GENERATED = """doc_to_target: "{{w}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false, max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""
CHOSEN = """doc_to_target: "{{a}}"
doc_to_choice: ["1", "2", "3"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"""


@pytest.fixture(autouse=True)
def _recording() -> None:
    runs.record()


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Tasks over six test and forty training rows, with worked examples from either."""
    test = [{"q": f"What is {i} + 1?", "a": f"{i % 3}", "w": f"it is {i + 1}"} for i in range(1, 7)]
    train = [{"q": f"What is {i} + 2?", "a": f"{i % 3}", "w": f"it is {i + 2}"} for i in range(20, 60)]
    for name, rows in (("test", test), ("train", train)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, kind, rest in (("made", "generate_until", GENERATED), ("picked", "multiple_choice", CHOSEN)):
        for source in ("train", "test"):
            splits = f"fewshot_split: {source}\ntest_split: test"
            text = YAML.format(name=f"{name}_{source}", folder=tmp_path, splits=splits, kind=kind, rest=rest)
            (tmp_path / f"{name}_{source}.yaml").write_text(text)
    return tmp_path


def _chat(history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    return "".join(f"<{turn['role']}>{turn['content']}" for turn in history) + ("<assistant>" if add_generation_prompt else "")


def _changed(tasks: Path, **changes: Any) -> str:
    """The name of a group that changes `made_train`."""
    (tasks / "changing.yaml").write_text(json.dumps({"group": "changing", "task": [{"task": "made_train", **changes}]}))
    return "changing"


def _built(tasks: Path, name: str, shots: int | None = None, seed: int = 1234, **arguments: Any) -> runs.Run:
    """A run, as lm-eval's `simple_evaluate` begins one."""
    task = next(iter(TaskManager(include_path=str(tasks), include_defaults=False).load([name])["tasks"].values()))
    task.set_config(key="num_fewshot", value=shots if shots is not None else task.config.num_fewshot or 0)
    task.set_fewshot_seed(seed=seed)
    task.build_all_requests(**arguments)
    found = runs.run_of(task.instances[0])
    assert found is not None
    return found


SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "two worked examples": {"shots": 2},
    "another seed": {"shots": 2, "seed": 7},
    "a chat": {"apply_chat_template": True, "chat_template": _chat},
    "a chat with an instruction": {"apply_chat_template": True, "chat_template": _chat, "system_instruction": "Be brief."},
    "an instruction without a chat": {"system_instruction": "Be brief."},
    "one turn": {"shots": 2, "apply_chat_template": True, "chat_template": _chat, "fewshot_as_multiturn": False},
    "several turns": {"shots": 2, "apply_chat_template": True, "chat_template": _chat, "fewshot_as_multiturn": True},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", ["made_train", "made_test", "picked_train", "picked_test"])
def test_prompts_are_those_that_lm_eval_sends(tasks: Path, name: str, settings: dict[str, Any]) -> None:
    run = _built(tasks, name, **settings)
    sent = [tuple(request.args[:2]) for request in run.task.instances]
    examples = Environment.from_run(run, sent={}).examples("test")  # nothing of what was sent is told
    if name.startswith("made"):
        assert [example.prompt for example in examples] == [prompt for prompt, _ in sent]
    else:
        assert [pair for example in examples for pair in example.requests] == sent
    assert len({example.key for example in examples}) == 6


def test_a_sample_of_the_scored_split_has_the_prompts_of_its_places(tasks: Path) -> None:
    """Worked examples are drawn by one generator: a document's depend on how many documents came before it."""
    run = _built(tasks, "made_train", shots=2)
    sent = {request.doc["q"]: request.args[0] for request in run.task.instances}
    some = Environment.from_run(run, sent={}).examples("adaptation", limit=3, seed=5)
    assert 0 < len(some) < 6 and all(example.prompt == sent[example.doc["q"]] for example in some)
    assert [example.index for example in some] != [0, 1, 2]


def test_a_limit_leaves_the_other_documents_their_prompts(tasks: Path) -> None:
    whole = {request.doc["q"]: request.args[0] for request in _built(tasks, "made_train", shots=2).task.instances}
    run = _built(tasks, "made_train", shots=2, limit=2)
    assert len(run.requests) == 2
    assert {e.doc["q"]: e.prompt for e in Environment.from_run(run).examples("test")} == whole


def test_each_process_knows_the_prompts_of_all(tasks: Path) -> None:
    shares = [_built(tasks, "made_train", shots=2, rank=rank, world_size=2) for rank in (0, 1)]
    sent = {request.doc["q"]: request.args[0] for run in shares for request in run.task.instances}
    assert len(sent) == 6
    for run in shares:
        assert {e.doc["q"]: e.prompt for e in Environment.from_run(run, sent={}).examples("test")} == sent


def test_chosen_documents_keep_their_places(tasks: Path) -> None:
    run = _built(tasks, "made_train", shots=2, samples=[4, 1])
    sent = {request.doc["q"]: request.args[0] for request in run.task.instances}
    assert set(run.sent()) == {1, 4} and len(sent) == 2
    found = {e.doc["q"]: e.prompt for e in Environment.from_run(run, sent={}).examples("test")}
    assert len(found) == 6 and {q: found[q] for q in sent} == sent


def test_a_task_changed_by_its_group_is_the_changed_one(tasks: Path) -> None:
    run = _built(tasks, _changed(tasks, doc_to_text="Question: {{q}}\nAnswer:", num_fewshot=1))
    prompts = [example.prompt for example in Environment.from_run(run, sent={}).examples("test")]
    assert prompts == [request.args[0] for request in run.task.instances] and prompts[0].count("Question:") == 2


def test_generation_settings_are_those_of_the_requests(tasks: Path) -> None:
    task = TaskManager(include_path=str(tasks), include_defaults=False).load(["made_train"])["tasks"]["made_train"]
    task.set_config(key="generation_kwargs", value={"until": ["!"], "max_gen_toks": 3}, update=True)
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests()
    run = runs.run_of(task.instances[0])
    assert run is not None
    environment = Environment.from_run(run)
    assert (environment.until, environment.max_new_tokens, environment.generation_kwargs["do_sample"]) == (["!"], 3, False)


def test_building_examples_leaves_lm_evals_sampler_as_it_was(tasks: Path) -> None:
    run = _built(tasks, "made_train", shots=2)
    again = [request.args[0] for request in _built(tasks, "made_train", shots=2).task.instances]
    Environment.from_run(run).examples("test")
    run.task.set_fewshot_seed(seed=1234)
    run.task.build_all_requests()
    assert [request.args[0] for request in run.task.instances] == again


def test_requests_from_lm_evals_cache_that_are_not_this_runs_are_found_out(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tasks / "requests"))
    assert runs.stale(_built(tasks, "made_train", shots=2, cache_requests=True)) is None
    same = _built(tasks, "made_train", shots=2, cache_requests=True)
    assert runs.stale(same) is None and len(same.requests) == 6
    assert "in the first prompt" in str(runs.stale(_built(tasks, "made_train", shots=2, seed=7, cache_requests=True)))
    other = _built(tasks, _changed(tasks, generation_kwargs={"until": ["?"]}), shots=2, cache_requests=True)
    assert "generation settings" in str(runs.stale(other))


def test_a_note_keeps_no_model_and_is_not_pickled(tasks: Path) -> None:
    class Model:
        def chat(self, history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
            return _chat(history, add_generation_prompt)

    model = Model()
    run = _built(tasks, "made_train", apply_chat_template=True, chat_template=model.chat)
    assert run.chat_template is not None
    del model
    gc.collect()
    assert run.chat_template is None
    request = run.task.instances[0]
    assert runs.run_of(pickle.loads(pickle.dumps(request))) is None and runs.run_of(request) is run
    assert copy.deepcopy(request).args == request.args


def test_the_output_types_of_what_was_asked_are_told_without_loading(tasks: Path) -> None:
    (tasks / "group.yaml").write_text("group: several\ntask: [made_train, {task: picked_test, num_fewshot: 2}]\n")
    (tasks / "elsewhere").mkdir()
    text = YAML.format(name="by_path", folder="/nowhere", splits="test_split: test", kind="loglikelihood_rolling", rest="")
    (tasks / "elsewhere" / "one.txt").write_text(text)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    asked = ["several", str(tasks / "elsewhere" / "one.txt"), {"task": "made_test", "output_type": "loglikelihood"}, "unheard_of"]
    assert harness.asked_output_types(asked, manager) == {
        "made_train": "generate_until",
        "picked_test": "multiple_choice",
        "by_path": "loglikelihood_rolling",
        "made_test": "loglikelihood",
    }


@pytest.mark.parametrize("found", ["0.4.12", "0.6.0", "1.0"])
def test_another_lm_eval_is_one_clear_message(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "version", lambda _name: found)
    harness.check_version.cache_clear()
    try:
        with pytest.raises(T2Error, match=f"lm-eval {found} is installed.*lm-eval>=0.4.13,<0.6"):
            harness.open_index([], defaults=False)
    finally:
        harness.check_version.cache_clear()


@pytest.mark.parametrize("found", ["0.4.13", "0.5.0.dev1", "0.5.2"])
def test_these_releases_are_worked_with(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "version", lambda _name: found)
    harness.check_version.cache_clear()
    try:
        assert str(harness.check_version()) == found
    finally:
        harness.check_version.cache_clear()


def test_what_a_document_asks_is_rendered_once_for_all_of_its_choices() -> None:
    rendered: list[int] = []
    config = SimpleNamespace(metadata=None, output_type="multiple_choice", doc_to_choice="choices")
    task = SimpleNamespace(
        config=config, doc_to_text=lambda doc: rendered.append(doc) or f"Which of {doc}?", doc_to_choice=lambda doc: ["a bird", "a stone"]
    )
    run = runs.Run(task, {}, 1)
    requests = [SimpleNamespace(doc_id=place, doc=place) for place in (0, 0, 1, 0, 1)]
    asked = [f"Which of {place}?\nOptions:\nA. a bird\nB. a stone" for place in (0, 0, 1, 0, 1)]
    assert [run.question(request) for request in requests] == asked
    assert rendered == [0, 1]
