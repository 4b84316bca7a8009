"""Model card: the README.md of an expert, with the `model-index` that the Hub reads scores from, and of a model it is merged into."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from t2eval.vision.images import is_multimodal


def model_card(card: Any) -> str:
    """The README.md of an expert.

    Args:
        card: the expert's `ExpertCard`.

    Returns:
        Markdown with the Hub's YAML header.
    """
    training = card.training
    after = training.scores.get("after", {}) if training else {}
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=training.task,
            dataset_name=training.task,
            dataset_split=split,
            metric_type=training.metric or "score",
            metric_value=score.score,
        )
        for split, score in after.items()
    ]
    base = card.base_model.id
    model = "t2-expert-vlm" if is_multimodal(card.base_model.architecture) else "t2-expert"
    data = ModelCardData(
        base_model=_hub_id(base),
        library_name="t2eval",
        tags=["t2eval", "svf", "self-adaptive", card.label],
        model_name=card.name if results else None,
        eval_results=results or None,
    )
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {card.name}",
        f"{card.description}",
        f"A t2eval expert for the skill `{card.label}`: {_what(card)}.",
        f"```bash\nlm_eval --model {model} --model_args pretrained={base},experts=PATH_OF_THIS_FOLDER --tasks "
        f"{training.task if training else 'TASK'}\n```",
    ]
    lines += _training(training)
    return "\n\n".join(line for line in lines if line) + "\n"


def merged_model_card(card: Any, sha256: str) -> str:
    """The README.md of a base model with an expert merged into its weights.

    Args:
        card: the expert's `ExpertCard`.
        sha256: of the expert's file.

    Returns:
        Markdown with the Hub's YAML header.
    """
    base = card.base_model.id
    data = ModelCardData(base_model=_hub_id(base), library_name="transformers", tags=["t2eval", "svf", card.label])
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {base.rpartition('/')[2]} with the expert {card.name}",
        f"{card.description}",
        f"The weights of `{base}` with the t2eval expert `{card.name}` (skill `{card.label}`, sha256 `{sha256}`) merged into them: "
        f"{_what(card)}. It loads as any transformers model does; t2eval is not needed.",
        *_training(card.training),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def lora_model_card(card: Any, sha256: str, rank: int, full_rank: int, energy: float, error: float) -> str:
    """The README.md of an expert's LoRA adapter.

    Args:
        card: the expert's `ExpertCard`.
        sha256: of the expert's file.
        rank: of the adapter. full_rank: at which it would be exact.
        energy, error: what of W' - W is in it, and how far it is off, as shares.

    Returns:
        Markdown with the Hub's YAML header.
    """
    base = card.base_model.id
    data = ModelCardData(base_model=_hub_id(base), library_name="peft", tags=["t2eval", "svf", "lora", card.label])
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {card.name}, as a LoRA adapter of rank {rank}",
        f"{card.description}",
        f"The best approximation of rank {rank} of what the t2eval expert `{card.name}` (skill `{card.label}`, sha256 `{sha256}`) changes "
        f"in `{base}`: {_what(card)}. It keeps {energy:.1%} of the squared norm of W' - W and is off by {error:.1%} of its norm; at rank "
        f"{full_rank} it would be exact.",
        "The scores below are the whole expert's, not this adapter's." if card.training and card.training.scores else "",
        *_training(card.training),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _hub_id(base: str) -> str | None:
    return base if base.count("/") == 1 and not base.startswith(("/", ".", "~")) else None


def _what(card: Any) -> str:
    scales = sum(module.rank for module in card.modules.values())
    revision = f" at revision `{card.base_model.revision}`" if card.base_model.revision else ""
    number = f"{scales:,} scales of singular values (`{card.parameterisation}`)"
    return f"{number} of {len(card.modules)} matrices of `{card.base_model.id}`{revision}"


def _training(training: Any) -> list[str]:
    if not training:
        return []
    return [
        _scores(training),
        f"Trained on `{training.task}` with {training.method} and the {training.objective} objective, seed {training.seed}, "
        f"{training.steps} steps in {training.seconds:.0f} s.",
    ]


def _scores(training: Any) -> str:
    rows = [
        f"| {split} | {when} | {score.score:.4f} | {'' if score.stderr is None else f'{score.stderr:.4f}'} | {score.n} |"
        for when, splits in training.scores.items()
        for split, score in splits.items()
    ]
    if not rows:
        return ""
    return "\n".join(["| split | training | score | standard error | n |", "|---|---|---|---|---|", *sorted(rows, reverse=True)])
