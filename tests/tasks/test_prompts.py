"""Prompts, letter by letter: one of each task, plain and in the formats of Llama 3 and Mistral-Instruct-v0.3.

After a wanted change: `pytest tests/tasks/test_prompts.py --write-golden`, and read the difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from t2eval.environment.environment import Environment
from t2eval.environment.plain import PlainHFLM
from t2eval.models import T2Expert
from tests.tasks.names import MANAGER, TEXT, load_once, raw
from tests.tiny import chat_tokenizer, save_library, tiny_model

pytestmark = pytest.mark.usefixtures("hub")
GOLDEN = Path(__file__).parents[1] / "golden" / "prompts"
TEMPLATES = ("plain", "llama3", "mistral")


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2eval.environment.environment.load_task", load_once)


def _environment(name: str, template: str, **options: Any) -> Environment:
    chat = template != "plain"
    tokenizer = chat_tokenizer(template) if chat else None
    return Environment(name, task_manager=MANAGER, tokenizer=tokenizer, apply_chat_template=chat, **options)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TEXT)
def test_the_prompt_is_the_golden_one(name: str, template: str, request: pytest.FixtureRequest) -> None:
    prompt = _environment(name, template).examples("test", limit=1)[0].prompt
    path = GOLDEN / template / f"{name}.txt"
    if request.config.getoption("--write-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(prompt.encode())
    assert path.read_bytes().decode() == prompt


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*/*.txt")} == set(TEXT)


@pytest.mark.parametrize("name", TEXT)
def test_the_instruction_and_the_begun_answer_are_in_every_form(name: str) -> None:
    instruction, begun = str(raw(name).get("description") or "").strip(), str(raw(name).get("gen_prefix") or "")
    for template in (*TEMPLATES, "strict-mistral"):
        for shots in (0, 1):
            environment = _environment(name, template, num_fewshot=shots)
            if shots and getattr(environment.task, "sampler", None) is None:
                continue
            example = environment.examples("test", limit=1)[0]
            assert example.prompt.count(instruction) == 1 or not instruction
            assert example.prompt.endswith(begun) and example.prompt.count(begun) == 1 + shots or not begun


def _lms(template: str, folder: Path) -> list[HFLM]:
    tokenizer = chat_tokenizer(template)
    library = save_library(folder / "library", "math")
    ours = T2Expert(pretrained=tiny_model(), tokenizer=tokenizer, experts=str(library / "e-math"))
    return [PlainHFLM(pretrained=tiny_model(), tokenizer=tokenizer), ours]


@pytest.mark.parametrize("template", ["llama3", "mistral", "strict-mistral"])
@pytest.mark.parametrize("shots", [0, 2])
def test_base_models_strategies_and_training_read_the_same_prompts(template: str, shots: int, tmp_path: Path) -> None:
    wanted = [example.prompt for example in _environment("t2_arc_easy", template, num_fewshot=shots).examples("test")]
    for lm in _lms(template, tmp_path):
        task = MANAGER.load(["t2_arc_easy"])["tasks"]["t2_arc_easy"]
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(1234)
        task.build_all_requests(
            apply_chat_template=True, fewshot_as_multiturn=True, chat_template=lm.apply_chat_template, tokenizer_name=lm.tokenizer_name
        )
        assert [instance.args[0] for instance in task.instances] == wanted
