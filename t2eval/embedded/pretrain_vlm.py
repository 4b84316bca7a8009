"""The embedded vision-language model: a small CLIP tower and a projector in front of the embedded base, whose own weights stay as they are.

`python -m t2eval.embedded.pretrain_vlm --base experts/base --output DIR` rebuilds it from the seed, in two lessons of one tower:

1. Reading: pictures without questions. Each patch of a row is to become the embedding of one token of what the row says.
2. Answering: questions about pictures. The frozen language model answers, and the tower learns from the likelihood of the corpus' answers.

The language model's weights are the base's, bit for bit, so experts of the base fit it. One row is added to the embeddings, for `<image>`:
zeros, so that its logit is 0, far below that of any token the model would say.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    set_seed,
)

from t2eval.embedded import corpus, vision
from t2eval.embedded.pictures import ROW, ROWS, SIZE, draw, first_row
from t2eval.embedded.problem import Problem, bucket
from t2eval.store.files import read_json

TOKENS = ROWS * ROWS
"""Image tokens of a picture: its patches."""
READING_WEIGHT = 0.3
"""Of the first lesson's loss during the second."""
BLANK_WEIGHT = 0.3
"""Of a patch that says nothing, in the first lesson."""
_SHARPNESS = 4.0
_HARD = 0.5


def new_processor(base: Path) -> LlavaProcessor:
    """The base's tokenizer with an `<image>` token, and an image processor that neither crops nor, for our own pictures, resizes."""
    from transformers import CLIPImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(vision.IMAGE, lstrip=True, special=True)]})
    images = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=ROW,
        vision_feature_select_strategy="default",
        image_token=vision.IMAGE,
        num_additional_image_tokens=1,
    )


def new_model(base: Path, processor: LlavaProcessor, hidden: int = 64, layers: int = 3) -> LlavaForConditionalGeneration:
    """An untrained tower and projector in front of the base; only they have gradients."""
    language = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    text = language.config
    known = text.vocab_size
    text.vocab_size = known + 1
    tower = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=ROW,
        projection_dim=hidden,
    )
    image = processor.tokenizer.convert_tokens_to_ids(vision.IMAGE)
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=image,
        image_seq_length=TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    weights = language.model.state_dict()
    grown = torch.zeros(known + 1, text.hidden_size)
    grown[:known] = weights["embed_tokens.weight"]
    model.model.language_model.load_state_dict({**weights, "embed_tokens.weight": grown})
    model.tie_weights()
    model.generation_config = language.generation_config
    model.requires_grad_(False)
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.requires_grad_(True)
    return model


class Lessons:
    """Endless batches for both lessons, from one seed; no question and no sum of theirs has a twin among the tasks' documents."""

    def __init__(self, processor: LlavaProcessor, seed: int) -> None:
        self._processor, self._tokenizer = processor, processor.tokenizer
        self._blank = processor.tokenizer.convert_tokens_to_ids(vision.IMAGE)
        self._rng = random.Random(seed)

    def _problem(self, level: str) -> Problem:
        while True:
            problem = vision.sample(self._rng, level, _HARD)
            if bucket(problem.question) < corpus.PRETRAINING:
                return problem

    def _rows(self) -> tuple[str, ...]:
        """A picture without a question: words of all kinds, equally often, or a sum."""
        if self._rng.random() < 0.4:
            return self._problem("seen").picture
        return tuple(self._rng.choice(vision.PRINTABLE) for _ in range(self._rng.randint(1, ROWS)))

    def _pictures(self, rows: list[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
        """Pixel values, and for each patch the token that it is to say, -100 where the picture says nothing."""
        seeds = [self._rng.getrandbits(32) for _ in rows]
        images = [draw(picture, seed) for picture, seed in zip(rows, seeds, strict=True)]
        values = self._processor.image_processor(images, return_tensors="pt")["pixel_values"]
        targets = torch.full((len(rows), ROWS, ROWS), self._blank)
        for index, (picture, seed) in enumerate(zip(rows, seeds, strict=True)):
            for line, text in enumerate(vision.said_by(picture), start=first_row(picture, seed)):
                ids = self._tokenizer(f" {text}")["input_ids"]
                targets[index, line, : len(ids)] = torch.tensor(ids)
        return values, targets.flatten(1)

    def reading(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Batches of `pixel_values` and `targets` (size, TOKENS)."""
        while True:
            values, targets = self._pictures([self._rows() for _ in range(size)])
            yield {"pixel_values": values, "targets": targets}

    def answering(self, size: int, pool: int = 16) -> Iterator[dict[str, Tensor]]:
        """Batches of questions of similar length: `pixel_values`, `targets`, `input_ids`, and `labels`, -100 outside the answer."""
        while True:
            encoded = sorted((self._encoded() for _ in range(size * pool)), key=lambda item: len(item[1]) + len(item[2]))
            order = list(range(pool))
            self._rng.shuffle(order)
            for place in order:
                batch = encoded[place * size : (place + 1) * size]
                values, targets = self._pictures([problem.picture for problem, _, _ in batch])
                width = max(len(prompt) + len(answer) for _, prompt, answer in batch)
                tokens = torch.full((size, width), self._tokenizer.pad_token_id)
                labels = torch.full((size, width), -100)
                for row, (_, prompt, answer) in enumerate(batch):
                    tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
                    labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
                yield {"pixel_values": values, "targets": targets, "input_ids": tokens, "labels": labels}

    def _encoded(self) -> tuple[Problem, list[int], list[int]]:
        problem = self._problem("unseen" if self._rng.random() < 0.6 else "seen")
        prompt = corpus.prompt(problem.asked).replace(vision.IMAGE, vision.IMAGE * TOKENS)
        answer = self._tokenizer(f" {vision.answer(self._rng, problem)}")["input_ids"]
        return problem, self._tokenizer(prompt)["input_ids"], [*answer, self._tokenizer.eos_token_id]


def image_features(model: Any, pixel_values: Tensor) -> Tensor:
    """What the language model sees of each picture, (pictures, TOKENS, hidden)."""
    return torch.stack(list(model.model.get_image_features(pixel_values, return_dict=True).pooler_output))


def reading_loss(model: Any, features: Tensor, targets: Tensor) -> Tensor:
    """How far each patch's features are from its token's embedding: the cross-entropy of a softmax over minus the squared distances."""
    embeddings = model.get_input_embeddings().weight.detach()
    distances = torch.cdist(features.flatten(0, 1), embeddings).square()
    weights = torch.where(targets == model.config.image_token_id, BLANK_WEIGHT, 1.0).flatten()
    wrong = torch.nn.functional.cross_entropy(-_SHARPNESS * distances, targets.flatten(), reduction="none")
    near = distances.gather(1, targets.flatten()[:, None])[:, 0]
    return ((wrong + near) * weights).sum() / weights.sum()


def answering_loss(model: Any, features: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens, in nats."""
    tokens, labels = batch["input_ids"], batch["labels"]
    inputs = model.get_input_embeddings()(tokens)
    places = (tokens == model.config.image_token_id).unsqueeze(-1)
    hidden = model.model.language_model(inputs_embeds=inputs.masked_scatter(places, features), use_cache=False).last_hidden_state
    kept = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][kept]), labels[:, 1:][kept])


def _train(model: Any, batches: Iterator[dict[str, Tensor]], steps: int, learning_rate: float, name: str) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    for step, batch in enumerate(itertools.islice(batches, steps)):
        warm = min(1.0, (step + 1) / min(100, steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        features = image_features(model, batch["pixel_values"])
        loss = reading_loss(model, features, batch["targets"])
        if "labels" in batch:
            loss = READING_WEIGHT * loss + answering_loss(model, features, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == steps:
            click.echo(f"{name}: step {step + 1} of {steps}, loss {loss.item():.3f}")


def save(model: Any, processor: LlavaProcessor, output: Path, recipe: dict[str, Any]) -> None:
    """The Hub folder: the base's weights in float32, as they were; what was trained here in float16, which halves it and costs nothing."""
    state = {
        name: weight.half() if ".vision_tower." in name or ".multi_modal_projector." in name else weight
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    model.save_pretrained(output, state_dict=state)
    processor.save_pretrained(output)
    tokenizer = output / "tokenizer.json"
    tokenizer.write_text(json.dumps(read_json(tokenizer), ensure_ascii=False, separators=(",", ":")))
    (output / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


def _copy_dispatch(base: Path, output: Path) -> None:
    """The language model wants to be asked for a skill as before. An expert with a label that it lacks is named alike."""
    if (base / "dispatch.json").is_file():
        form = read_json(base / "dispatch.json")
        (output / "dispatch.json").write_text(json.dumps({**form, "unlisted": " {label}"}, indent=2) + "\n")


def pretrain(base: Path, output: Path, *, seed: int = 0, reading: int = 2200, answering: int = 500) -> None:
    """Train tower and projector from the seed, and save the whole model in the Hub layout under `output`.

    Args:
        base: the folder of the embedded base model.
        output: the folder of the model; made if missing.
        seed: of the initial weights and of the lessons.
        reading: steps of the first lesson, of 128 pictures each.
        answering: steps of the second, of 64 questions each.
    """
    set_seed(seed)
    processor = new_processor(base)
    model = new_model(base, processor)
    _train(model, Lessons(processor, seed + 1).reading(128), reading, 3e-3, "reading")
    _train(model, Lessons(processor, seed + 2).answering(64), answering, 1e-3, "answering")
    save(model, processor, output, {"seed": seed, "reading_steps": reading, "answering_steps": answering})
    _copy_dispatch(base, output)


@click.command()
@click.option("--base", type=click.Path(path_type=Path, exists=True), required=True, help="The folder of the embedded base model.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The folder of the model.")
@click.option("--seed", default=0, show_default=True)
def main(base: Path, output: Path, seed: int) -> None:
    """Train the embedded vision-language model."""
    pretrain(base, output, seed=seed)


if __name__ == "__main__":
    main()
