"""Model card: the README.md of an expert, with the `model-index` that the Hub reads scores from, and of a model it is merged into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from t2eval.basemodel.probe import HubData
from t2eval.vision.images import is_multimodal


def model_card(card: Any, place: str = "PATH_OF_THIS_FOLDER", data: Mapping[str, HubData] | None = None) -> str:
    """The README.md of an expert.

    Args:
        card: the expert's `ExpertCard`.
        place: what `experts=` has to be for it: `hf://owner/name`, once it is on the hub.
        data: the data set of the hub that a task's test split is of, by the task's name; scores on others are of the task.

    Returns:
        Markdown with the Hub's YAML header.
    """
    training = card.training
    results = _results(card, data or {})
    base = card.base_model.id
    header = ModelCardData(
        base_model=_hub_id(base),
        base_model_relation="adapter" if _hub_id(base) else None,
        library_name="t2eval",
        tags=["t2eval", "svf", "self-adaptive", card.label],
        model_name=card.name if results else None,
        eval_results=results or None,
    )
    lines = [
        f"---\n{header.to_yaml()}\n---",
        f"# {card.name}",
        f"{card.description}",
        f"A t2eval expert for the skill `{card.label}`: {_what(card)}.",
        _command(card, "expert", place, training.task if training else "TASK"),
    ]
    lines += _training(training)
    return "\n\n".join(line for line in lines if line) + "\n"


def library_card(cards: Mapping[str, Any], repository: str, data: Mapping[str, HubData]) -> str:
    """The README.md of a repository that holds experts.

    Args:
        cards: an `ExpertCard` by the expert's folder in the repository.
        repository: `owner/name`.
        data: as in `model_card`.

    Returns:
        Markdown with the Hub's YAML header, in which the scores of all experts are.
    """
    results = [result for name, card in cards.items() for result in _results(card, data, name)]
    bases = sorted({card.base_model.id for card in cards.values()})
    known = [base for base in map(_hub_id, bases) if base]
    header = ModelCardData(
        base_model=known or None,
        base_model_relation="adapter" if known else None,
        library_name="t2eval",
        tags=["t2eval", "svf", "self-adaptive", *sorted({card.label for card in cards.values()})],
        model_name=repository.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    first = next(iter(cards.values()))
    table = ["| expert | skill | what for | test score |", "|---|---|---|---|"]
    table += [f"| [{name}]({name}) | `{card.label}` | {_cell(card.description)} | {_test_score(card)} |" for name, card in cards.items()]
    lines = [
        f"---\n{header.to_yaml()}\n---",
        f"# {repository.rpartition('/')[2]}",
        f"{len(cards)} t2eval experts of {' and '.join(f'`{base}`' for base in bases)}.",
        "\n".join(table),
        _command(first, "fewshot", f"hf://{repository}", first.training.task if first.training else "TASK"),
    ]
    return "\n\n".join(lines) + "\n"


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


def _results(card: Any, data: Mapping[str, HubData], expert: str | None = None) -> list[EvalResult]:
    """The scores after training, for a `model-index`; `expert` names the one of several that they are of."""
    training = card.training
    if not training:
        return []
    of = data.get(training.task)
    metric = training.metric or "score"
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=of.name if of and split == "test" else training.task,
            dataset_config=of.config if of and split == "test" else None,
            dataset_name=training.task,
            dataset_split=split,
            metric_type=metric,
            metric_name=f"{metric} of {expert}" if expert else None,
            metric_value=score.score,
        )
        for split, score in training.scores.get("after", {}).items()
    ]


def _command(card: Any, strategy: str, place: str, task: str) -> str:
    model = f"t2-{strategy}{'-vlm' if is_multimodal(card.base_model.architecture) else ''}"
    return f"```bash\nlm_eval --model {model} --model_args pretrained={card.base_model.id},experts={place} --tasks {task}\n```"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _test_score(card: Any) -> str:
    score = card.training.scores.get("after", {}).get("test") if card.training else None
    if score is None:
        return "–"
    return f"{score.score:.3f}{'' if score.stderr is None else f' ± {score.stderr:.3f}'} (n={score.n}, `{card.training.task}`)"


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
