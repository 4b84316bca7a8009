"""The embedded base model: a Llama of about a million weights, pretrained from scratch on the generated corpus.

`python -m t2eval.embedded.pretrain --output DIR` rebuilds it from the seed: a byte-level BPE with single digits, then one cosine schedule
of AdamW with transformers.Trainer. A question's tokens weigh less than its answer's, since half of a question cannot be predicted. Two
runs on one machine with one number of threads agree; across machines, floating-point sums may differ in their last bits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from t2eval.embedded.corpus import END, LABELS, pretraining_documents

VOCABULARY = 768
QUESTION_WEIGHT = 0.15
# One document in twenty has others before it, so that few-shot prompts are no surprise.
_SHOT_PERIOD = 20


def train_tokenizer(seed: int, documents: int = 40_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r" ?[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = (question + answer for question, answer in itertools.islice(pretraining_documents(seed), documents))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, padding_side="left")


class TokenBatches(IterableDataset[dict[str, torch.Tensor]]):
    """Batches of about `tokens` tokens of documents of similar length: each row is one document, so none attends to another."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, tokens: int, pool: int = 2048) -> None:
        self._tokenizer, self._seed, self._tokens, self._pool = tokenizer, seed, tokens, pool

    def _encoded(self) -> Iterator[tuple[list[int], int]]:
        """(token ids, number of prompt tokens) of each document."""
        end = self._tokenizer.eos_token_id
        context: list[str] = []
        for index, (question, answer) in enumerate(pretraining_documents(self._seed)):
            if index % _SHOT_PERIOD < 2 and index // _SHOT_PERIOD % 2 == 0:
                context.append(question + answer)
                continue
            before = "".join(text + "\n\n" for text in context)
            context = []
            prompt = self._tokenizer(before + question)["input_ids"]
            yield [*prompt, *self._tokenizer(answer)["input_ids"], end], len(prompt)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order = torch.Generator().manual_seed(self._seed)
        documents = self._encoded()
        while True:
            pool = sorted(itertools.islice(documents, self._pool), key=lambda item: len(item[0]))
            batches: list[list[tuple[list[int], int]]] = [[]]
            for item in pool:
                if batches[-1] and len(item[0]) * (len(batches[-1]) + 1) > self._tokens:
                    batches.append([])
                batches[-1].append(item)
            for position in torch.randperm(len(batches), generator=order).tolist():
                yield self._padded(batches[position])

    def _padded(self, batch: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
        width = max(len(ids) for ids, _ in batch)
        tokens = torch.full((len(batch), width), self._tokenizer.pad_token_id)
        weights = torch.zeros(len(batch), width)
        for row, (ids, prompt) in enumerate(batch):
            tokens[row, : len(ids)] = torch.tensor(ids)
            weights[row, :prompt] = QUESTION_WEIGHT
            weights[row, prompt : len(ids)] = 1
        return {"input_ids": tokens, "weights": weights}


class _WeightedTrainer(Trainer):  # type: ignore[misc]
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        tokens, weights = inputs["input_ids"], inputs["weights"][:, 1:]
        logits = model(input_ids=tokens).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        return (loss, {"logits": logits}) if return_outputs else loss


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model: hidden 128, intermediate 384, 4 layers, 4 heads, tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(
    output: Path, *, seed: int = 0, steps: int = 3400, tokens: int = 5000, learning_rate: float = 3e-3, compiled: bool = False
) -> None:
    """Train tokenizer and model from the seed and save them in the Hub layout under `output`.

    Args:
        output: the folder of the model; made if missing.
        seed: of the corpus, the initial weights and the order of batches.
        steps: optimizer steps, of about `tokens` tokens each.
        tokens: tokens a batch, padding included.
        learning_rate: the peak of the cosine schedule.
        compiled: use torch.compile, a third faster on a CPU, where there is a C++ compiler.
    """
    set_seed(seed)
    tokenizer = train_tokenizer(seed)
    model = new_model(tokenizer)
    model.set_attn_implementation("eager")  # faster than SDPA on a CPU at this size
    if compiled:
        model.forward = torch.compile(model.forward, dynamic=True)
    arguments = TrainingArguments(
        output_dir=str(output / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=learning_rate,
        weight_decay=0.05,
        adam_beta2=0.98,
        warmup_steps=min(200, steps // 10),
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        use_cpu=True,
        logging_steps=50,
        save_steps=800,
        report_to=[],
        seed=seed,
        remove_unused_columns=False,
        dataloader_num_workers=1,
        disable_tqdm=True,
    )
    batches = TokenBatches(tokenizer, seed + 1, tokens)
    trainer = _WeightedTrainer(model=model, args=arguments, train_dataset=batches, data_collator=lambda rows: rows[0])
    trainer.train()
    model.float().save_pretrained(output)
    tokenizer.save_pretrained(output)
    labels = {label: f" {label}" for label in LABELS}
    dispatch = {"template": "Q: {question}\nskill:", "labels": labels}
    (output / "dispatch.json").write_text(json.dumps(dispatch, indent=2) + "\n")
    (output / "recipe.json").write_text(
        json.dumps({"seed": seed, "steps": steps, "tokens_per_batch": tokens, "learning_rate": learning_rate}, indent=2) + "\n"
    )


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The folder of the model.")
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=3400, show_default=True)
@click.option("--tokens", default=5000, show_default=True, help="Tokens a step.")
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile (needs a C++ compiler).")
def main(output: Path, seed: int, steps: int, tokens: int, compiled: bool) -> None:
    """Pretrain the embedded base model."""
    pretrain(output, seed=seed, steps=steps, tokens=tokens, compiled=compiled)


if __name__ == "__main__":
    main()
