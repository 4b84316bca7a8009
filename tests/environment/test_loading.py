"""What is wrong with a task's data or file is said by name, and is no bug of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2eval.bench.plan import open_tasks
from t2eval.environment.loading import load_task, make_task_manager, refuse_unreadable
from t2eval.errors import T2Error

YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{{field}}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
GOOD = json.dumps({"question": "q", "answer": "a"}).encode()


@pytest.mark.parametrize(
    ("name", "content", "field", "message"),
    [
        ("undefined", GOOD, "quest", r"undefined.yaml\) use a field that its documents do not have: 'quest' is undefined"),
        ("hollow", b"", "question", r"hollow.yaml\) has no documents. Its data files: .*hollow.jsonl"),
        ("latin", '{"question": "café", "answer": "1"}'.encode("latin-1"), "question", r"latin.yaml\) are not in UTF-8 .*latin.jsonl"),
        ("cut", b'{"question": "x", "answer"', "question", r"cut.yaml\) could not be loaded: ArrowInvalid: .*cut.jsonl"),
        ("absent", None, "question", r"absent.yaml\) could not be loaded: FileNotFoundError: .*absent.jsonl"),
    ],
)
def test_data_errors_name_task_file_and_field(tmp_path: Path, name: str, content: bytes | None, field: str, message: str) -> None:
    file = tmp_path / f"{name}.jsonl"
    if content is not None:
        file.write_bytes(content)
    (tmp_path / f"{name}.yaml").write_text(YAML.format(name=name, file=file, field=field))
    with pytest.raises(T2Error, match=message) as caught:
        load_task(make_task_manager(tmp_path, task=name), name)
    assert "HF_HOME" not in str(caught.value), "no advice about the hub for a local file"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("{metric: exact_mach, aggregation: mean, higher_is_better: true}", "the metric 'exact_mach', .* Did you mean 'exact_match'"),
        ("{metric: exact_mach}", "the metric 'exact_mach', .* Did you mean 'exact_match'"),  # lm-eval then does not load the task
        ("{metric: exact_match, aggregation: maen, higher_is_better: true}", "the aggregation 'maen', .* Did you mean 'mean'"),
    ],
)
def test_a_metric_that_lm_eval_does_not_know_is_named_before_anything_is_generated(tmp_path: Path, metrics: str, message: str) -> None:
    (tmp_path / "data.jsonl").write_bytes(GOOD)
    text = YAML.format(name="slip", file=tmp_path / "data.jsonl", field="question")
    (tmp_path / "slip.yaml").write_text(f"{text.rpartition('metric_list')[0]}metric_list: [{metrics}]\n")
    with pytest.raises(T2Error, match=rf"Task 'slip' \(.*slip.yaml\) has {message}"):
        load_task(make_task_manager(tmp_path, task="slip"), "slip")


def test_a_metric_of_the_tasks_own_is_no_slip(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(GOOD)
    (tmp_path / "utils.py").write_text("def score(doc, results):\n    return {'mine': 1.0}\n")
    text = YAML.format(name="own", file=tmp_path / "data.jsonl", field="question").replace("exact_match", "mine")
    (tmp_path / "own.yaml").write_text(f"{text}process_results: !function utils.score\n")
    assert load_task(make_task_manager(tmp_path, task="own"), "own").config.task == "own"


def test_a_yaml_that_does_not_parse_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.yaml").write_text(YAML.format(name="good", file="x.jsonl", field="question"))
    refuse_unreadable(tmp_path)
    (tmp_path / "bad.yaml").write_text("task: bad\nfoo: [1, 2\nbar: {")
    few = make_task_manager(tmp_path, task="good")
    monkeypatch.setattr("t2eval.environment.loading._task_manager", lambda *_: few)  # lm-eval's own 14,000 take 15 s to read
    with pytest.raises(T2Error, match=r"bad.yaml, line 3, is not YAML: .* its task is missing"):
        open_tasks(["bad"], str(tmp_path))
