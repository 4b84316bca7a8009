"""Strategies under lmms-eval's own registry and evaluator, with the package itself: what lm-eval answers, lmms-eval answers."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

pytest.importorskip("lmms_eval")
from lm_eval import simple_evaluate
from lmms_eval import evaluator, models
from lmms_eval.api.instance import Instance
from lmms_eval.models.registry_v2 import ModelRegistryV2
from lmms_eval.tasks import TaskManager

from t2eval.environment.environment import Environment, make_task_manager
from t2eval.errors import UsageError
from t2eval.models.lmms import LMMS_MODELS
from t2eval.models.lmms_host import LmmsExpert, LmmsNearest, LmmsPrompt
from t2eval.models.registry import strategy_class

LIMIT = 6
TASK = """
task: lmms_pictures
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: asked
doc_to_visual: !function utils.pictures
doc_to_target: answer
generation_kwargs: {{until: ["\\n\\n", "Q:"], max_new_tokens: 80, temperature: 0, do_sample: false}}
process_results: !function utils.right
metric_list:
  - {{metric: right, aggregation: mean, higher_is_better: true}}
"""
UTILS = """
def pictures(doc):
    return [doc["picture"].convert("RGB")]

def right(doc, results):
    return {"right": float(results[0].strip().endswith(doc["answer"].split()[-1]))}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of lmms-eval: the first questions of `embedded_vqa_unseen`, as lm-eval asks them."""
    place = tmp_path_factory.mktemp("lmms")
    environment = Environment("embedded_vqa_unseen")
    rows = []
    for example in environment.examples("test", limit=LIMIT):
        asked = {"asked": example.prompt, "question": example.doc["asked"].replace("<image>", "").strip()}
        rows.append({**asked, "picture": environment.images_of(example)[0], "answer": example.answer})
    datasets.Dataset.from_list(rows).cast_column("picture", datasets.Image()).to_parquet(place / "test.parquet")
    (place / "lmms_pictures.yaml").write_text(TASK.format(data=place / "test.parquet"))
    (place / "utils.py").write_text(UTILS)
    return place


@pytest.fixture(scope="module", autouse=True)
def _found() -> Iterator[None]:
    """Our entry point, loaded by lmms-eval's registry: the installed one, or as pyproject.toml has it where nothing is installed."""
    if any(point.value.startswith("t2eval.") for point in importlib.metadata.entry_points(group="lmms_eval.models")):
        yield
        return
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    ((name, value),) = re.findall(r'entry-points\."lmms_eval\.models"\]\n(\w+) = "(\S+)"\n', text)
    points = [importlib.metadata.EntryPoint(name, value, "lmms_eval.models")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelRegistryV2, "_select_entry_points", lambda _self, _group: points)
        models.MODEL_REGISTRY_V2.load_entrypoint_manifests(overwrite=True)
    yield


def under_lmms(folder: Path, name: str, arguments: str = "") -> list[str]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = evaluator.simple_evaluate(
        model=name, model_args=arguments, tasks=["lmms_pictures"], task_manager=manager, batch_size=LIMIT, bootstrap_iters=0, device="cpu"
    )
    samples = sorted(found["samples"]["lmms_pictures"], key=lambda sample: sample["doc_id"])
    assert found["results"]["lmms_pictures"]["right,none"] == pytest.approx(sum(s["right"] for s in samples) / LIMIT)
    return [_text(sample["filtered_resps"]) for sample in samples]


def _text(found: Any) -> str:
    while isinstance(found, list):
        (found,) = found
    return str(found)


def under_lm_eval(name: str, **arguments: Any) -> list[str]:
    lm = strategy_class(name, with_images=True)(batch_size=LIMIT, device="cpu", **arguments)
    manager = make_task_manager(task="embedded_vqa_unseen")
    found = simple_evaluate(lm, tasks=["embedded_vqa_unseen"], task_manager=manager, limit=LIMIT, bootstrap_iters=0)
    samples = sorted(found["samples"]["embedded_vqa_unseen"], key=lambda sample: sample["doc_id"])
    return [_text(sample["resps"]) for sample in samples]


def test_the_registry_finds_every_model() -> None:
    assert set(LMMS_MODELS) <= set(models.list_available_models())
    for name in LMMS_MODELS:
        assert name.removeprefix("t2-") == models.get_model(name).STRATEGY


@pytest.mark.parametrize("name", ["prompt", "nearest"])
def test_answers_are_those_of_lm_eval(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = under_lm_eval(name)
    with caplog.at_level(logging.WARNING):
        assert under_lmms(folder, f"t2-{name}", "question_field=question") == expected
    assert f"t2-{name}; lmms_pictures: " in caplog.text


def test_an_expert_changes_them(folder: Path) -> None:
    from t2eval.basemodel.folders import embedded_library_dir

    reasoning = str(embedded_library_dir(0) / "reasoning")
    found = under_lmms(folder, "t2-expert", f"experts={reasoning}")
    assert found == under_lm_eval("expert", experts=reasoning)
    assert found != under_lmms(folder, "t2-expert", f"experts={embedded_library_dir(0) / 'code'}")


@pytest.fixture(scope="module")
def lm() -> LmmsNearest:
    made = LmmsNearest(batch_size=2, device="cpu")
    made.task_dict = {"task": {"test": [{"question": "what is it ?"}]}}
    return made


def asked(visuals: Any, **settings: Any) -> Instance:
    arguments = ("what is it ?", settings, visuals, 0, "task", "test")
    return Instance("generate_until", arguments, 0, {"task": "task", "doc_id": 0, "repeats": 1})


def test_a_picture_that_the_task_does_not_place_stands_before_its_text(lm: LmmsNearest) -> None:
    from PIL import Image

    picture = Image.new("RGB", (8, 8))
    made = lm.as_lm_eval(0, asked(lambda doc: [[picture], picture], max_new_tokens=3, temperature=0, top_p=None))
    assert made.args == (
        "<image><image>\nwhat is it ?",
        {"do_sample": False, "until": [], "max_gen_toks": 3},
        {"visual": [picture, picture]},
    )
    sampled = lm.as_lm_eval(0, asked(None, temperature=0.5, top_p=0.9)).args
    assert sampled == ("what is it ?", {"temperature": 0.5, "top_p": 0.9, "do_sample": True, "until": [], "max_gen_toks": 1024})


def test_what_cannot_be_served_is_refused_by_name(lm: LmmsNearest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'task', document 0: a str where an image"):
        lm.generate_until([asked(lambda doc: ["film.mp4"])])
    with pytest.raises(UsageError, match="generation_kwargs length_penalty"):
        lm.generate_until([asked(None, length_penalty=2)])
    with pytest.raises(UsageError, match="'task' asks in several rounds"):
        lm.generate_until_multi_round([asked(None)])
    with pytest.raises(UsageError, match="'task' asks for the likelihood"):
        lm.loglikelihood([asked(None)])
    monkeypatch.setattr(lm, "question_field", "asked")
    with pytest.raises(UsageError, match="question_field=asked: a document of task 'task' has no such text; it has: question"):
        lm.generate_until([asked(None)])
    with pytest.raises(UsageError, match="no chat template"):
        LmmsPrompt(chat="true", device="cpu")
    with pytest.raises(UsageError, match="give true, false or auto"):
        LmmsExpert(chat="maybe", device="cpu")
