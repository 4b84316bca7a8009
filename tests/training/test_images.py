"""Training with images: the gradients of both objectives against the model's own path with pixels, and whole runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from t2eval.environment.environment import Environment
from t2eval.errors import UsageError
from t2eval.generation.completion import Completion
from t2eval.generation.engine import Engine
from t2eval.training.config import TrainConfig
from t2eval.training.methods import make_trainable
from t2eval.training.reinforce import Reinforce
from t2eval.training.supervised import Supervised
from t2eval.training.train import train_expert
from t2eval.vision.features import Reader
from tests.tiny import save_tiny
from tests.tiny_vlm import save_tiny_vlm, tiny_processor, tiny_vlm

TASKS = Path(__file__).parents[1] / "fixtures" / "picture_tasks"


@pytest.fixture(scope="module")
def environment() -> Environment:
    return Environment("pictures", include_path=TASKS)


def _settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"task": "pictures", "output": "unused", "include_path": TASKS, "batch_size": 4, **changes}).for_task()


def _pixels(
    environment: Environment, processor: Any, example: Any, answer: list[int], *, strip: bool = False
) -> tuple[dict[str, Any], int]:
    """The model's plain inputs for one example and answer, and how many tokens the prompt has."""
    text = example.prompt.rstrip() if strip else example.prompt
    inputs = processor(text=[text], images=environment.images_of(example), return_tensors="pt")
    count = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return dict(inputs), count


@pytest.mark.parametrize("method", ["svf", "lora", "ia3", "dora"])
def test_the_policy_gradient_is_the_one_with_pixels(method: str, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _settings(method=method, kl=0.0, baseline="none", rollouts=2, micro_batch=3, lora_dropout=0.0, importance="never")
    assert config.wrong_reward == -0.1 and config.layers == "half"
    model, processor = tiny_vlm(), tiny_processor()
    reader = Reader(model, processor)
    trainable = make_trainable(model, config)
    with torch.no_grad():
        for parameter in trainable.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert all("language_model.layers.0." in name or name.startswith("model") for name in trainable.parameters())
    examples = environment.examples("train", limit=2)
    answers, texts = [[71, 72], [73], [74, 75, 76], [77]], ["b", "c", "d", "e"]

    def fixed(self: Any, prompts: list[list[int]], settings: Any, features: list[Any], **_: Any) -> list[Completion]:
        read = [each for each in zip(prompts, features, strict=True) for _ in range(2)]
        return [
            Completion(prompt, answer, text, [0.0] * len(answer), "end", images)
            for (prompt, images), answer, text in zip(read, answers, texts, strict=True)
        ]

    monkeypatch.setattr(Engine, "complete", fixed)
    objective = Reinforce(environment, processor.tokenizer, config, reader)
    report = objective.step(trainable, examples, 0, lambda loss: loss.backward())
    found = {name: parameter.grad.clone() for name, parameter in trainable.parameters().items() if parameter.grad is not None}
    repeated = [example for example in examples for _ in range(2)]
    scores = environment.score_many(list(zip(repeated, texts, strict=True)))
    loss = torch.zeros(())
    for example, answer, score in zip(repeated, answers, scores, strict=True):
        inputs, count = _pixels(environment, processor, example, answer)
        logits = trainable.model(**inputs).logits[0, count - 1 : -1]
        logits[:, reader.token] = -math.inf  # an answer holds no image
        logits = logits.log_softmax(-1)
        loss = loss - (1.0 if score >= 0.5 else -0.1) * logits.gather(1, torch.tensor(answer)[:, None]).sum()
    wanted = torch.autograd.grad(loss / 4, list(trainable.parameters().values()))
    assert report["loss"] == pytest.approx((loss / 4).item(), rel=1e-4)
    for name, gradient in zip(trainable.parameters(), wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", ["svf", "lora", "ia3", "dora"])
def test_the_supervised_loss_is_the_one_with_pixels(method: str, environment: Environment) -> None:
    config = _settings(method=method, objective="supervised", micro_batch=3, lora_dropout=0.0)
    model, processor = tiny_vlm(), tiny_processor()
    reader = Reader(model, processor)
    trainable = make_trainable(model, config)
    examples = environment.examples("train", limit=4)
    objective = Supervised(environment, processor.tokenizer, config, reader)
    report = objective.step(trainable, examples, 0, lambda loss: loss.backward())
    assert all(parameter.grad is not None for parameter in trainable.parameters().values())
    losses, counts = [], []
    for example in examples:
        answer = processor.tokenizer(f" {example.target}\n")["input_ids"]
        inputs, count = _pixels(environment, processor, example, answer, strip=True)
        labels = inputs["input_ids"].clone()
        labels[:, :count] = -100
        losses.append(trainable.model(**inputs, labels=labels).loss.item() * len(answer))
        counts.append(len(answer))
    assert report["loss"] == pytest.approx(sum(losses) / sum(counts), rel=1e-4)


def test_the_prompt_of_an_image_is_not_learnt(environment: Environment) -> None:
    config = _settings(objective="supervised", mask_prompt=False)
    with pytest.raises(UsageError, match="mask_prompt=false"):
        Supervised(environment, tiny_processor().tokenizer, config, Reader(tiny_vlm(), tiny_processor()))


def test_what_is_given_wins_over_the_defaults_of_images() -> None:
    assert _settings().model == "embedded-vlm"
    given = _settings(layers="all", wrong_reward=-1.0, model="mine")
    assert (given.layers, given.wrong_reward, given.model) == ("all", -1.0, "mine")
    text = TrainConfig(task="pictures_text", output="unused", include_path=TASKS).for_task()
    assert (text.layers, text.wrong_reward, text.model) == ("all", -1.0, None)


@pytest.mark.parametrize(("method", "family"), [("svf", "llava_next"), ("ia3", "idefics3")])
def test_a_run_with_images(method: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)
    config = TrainConfig(
        task="pictures_column", include_path=TASKS, model=str(save_tiny_vlm(tmp_path / "vlm", family)), output=tmp_path / "out",
        method=method, steps=2, batch_size=8, rollouts=2, validation_limit=4, test_limit=4, validate_every=2, save_every=2, lr=0.05,
        apply_chat_template=method == "ia3",
    )  # fmt: skip
    result = train_expert(config, progress=False)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["hyperparameters"]["layers"] == "half" and record["hyperparameters"]["wrong_reward"] == -0.1
    assert result.scores["after"]["test"].n == 4 and result.steps == 2
    evaluated_by = {"svf": "t2-expert-vlm", "ia3": "hf-multimodal"}[method]
    assert f"lm_eval --model {evaluated_by} --model_args" in (tmp_path / "out" / "README.md").read_text()
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert all(-0.1 <= row["reward"] <= 1 and row["kl"] >= 0 for row in rows)
    assert train_expert(config.model_copy(update={"resume": True}), progress=False).scores == result.scores, (
        "the settings are the same ones"
    )


def test_a_model_that_reads_text_only_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(task="pictures", include_path=TASKS, model=str(save_tiny(tmp_path / "text")), output=tmp_path / "out")
    with pytest.raises(UsageError, match="has images, and .* reads text only"):
        train_expert(config, progress=False)
