"""Exported: what `t2 expert export` says of LoRA adapters: what they keep, what they score, and how servers load them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any


def lora_lines(made: Sequence[Any], checks: Sequence[Any], model: str | None) -> Iterator[str]:
    """The report, a line each.

    Args:
        made: `LoraExport` of each adapter.
        checks: `AdapterCheck` of each, or none.
        model: the base model, if not under the name on the cards.
    """
    for each in made:
        size = sum(file.stat().st_size for file in each.folder.iterdir()) / 1e6
        of = f"rank {each.rank} (exact at {each.full_rank}), {len(each.matrices)} matrices, {size:.1f} MB"
        yield f"{each.expert.name}: {of} in {each.folder}"
        width = max(len("all together"), *(len(path) for path in each.matrices))
        yield f"  {'matrix':<{width}}  energy kept  error"
        for path, kept in (*each.matrices.items(), ("all together", each.total)):
            yield f"  {path:<{width}}  {kept.energy:>11.4f}  {kept.error:.4f}"
    for each, check in zip(made, checks, strict=False):
        difference = check.difference
        interval = "" if difference.low is None else f" [{difference.low:+.4f}, {difference.high:+.4f}]"
        yield (
            f"{each.expert.name} on {check.task} ({check.metric}, n={difference.n}): base {_score(check.base)}, whole expert "
            f"{_score(check.expert)}, adapter {_score(check.adapter)}; adapter - expert {difference.difference:+.4f}{interval}, "
            f"p={difference.p:.2g} ({difference.test})"
        )
    yield "To serve, the name of the expert being the model's in a request (SGLang: BASE:NAME):"
    for command in _commands(made, model).values():
        yield f"  {command or 'vLLM takes ranks up to 512 only: give a smaller rank, or export --merged.'}"


def lora_summary(made: Sequence[Any], checks: Sequence[Any], model: str | None) -> dict[str, Any]:
    """The same for `--json`."""
    adapters = []
    for place, each in enumerate(made):
        summary = {"name": each.expert.name, "folder": str(each.folder), "rank": each.rank, "full_rank": each.full_rank}
        matrices = {path: asdict(kept) for path, kept in each.matrices.items()}
        adapters.append({**summary, "matrices": matrices, "total": asdict(each.total), "check": _check(checks[place]) if checks else None})
    return {"adapters": adapters, "serve": _commands(made, model)}


def _commands(made: Sequence[Any], model: str | None) -> dict[str, str | None]:
    from t2eval.expert.serving import sglang_command, vllm_command

    base = model or made[0].expert.card.base_model.id
    folders = {each.expert.name: each.folder for each in made}
    return {"vllm": vllm_command(base, folders, max(each.rank for each in made)), "sglang": sglang_command(base, folders)}


def _check(check: Any) -> dict[str, Any]:
    scores = {name: getattr(check, name).model_dump() for name in ("base", "expert", "adapter")}
    return {"task": check.task, "metric": check.metric, **scores, "difference": asdict(check.difference)}


def _score(score: Any) -> str:
    return f"{score.score:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
