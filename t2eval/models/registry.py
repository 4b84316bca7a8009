"""Registry: the strategies by name, one entry each.

From an entry follow the lm-eval models `t2-NAME` and `t2-NAME-vlm`, and the method NAME of a benchmark. lm-eval itself finds an installed
package's models by its entry points, so an entry has its lines under `lm_eval.models` in pyproject.toml too (a test compares them).
Nothing here imports torch or lm-eval.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from t2eval.errors import unknown


@dataclass(frozen=True)
class Entry:
    """One strategy.

    Attributes:
        about: how z' is chosen, in a line.
        text: `module:Class` of the lm-eval class for text.
        images: the same for models that read images; None where it has none.
        chooses: whether it chooses at test time; the fixed expert does not.
        in_paper: whether the paper has it, so that a benchmark file without `methods` evaluates it.
    """

    about: str
    text: str
    images: str | None = None
    chooses: bool = True
    in_paper: bool = True


_TEXT, _IMAGES = "t2eval.models.text", "t2eval.models.images"
STRATEGIES: dict[str, Entry] = {
    "expert": Entry("one expert, or a fixed mix of several", f"{_TEXT}:T2Expert", f"{_IMAGES}:T2ExpertVlm", chooses=False),
    "prompt": Entry("per prompt, by the base model", f"{_TEXT}:T2Prompt", f"{_IMAGES}:T2PromptVlm"),
    "cls": Entry("per prompt, by a classification expert", f"{_TEXT}:T2Cls", f"{_IMAGES}:T2ClsVlm"),
    "nearest": Entry("per prompt, by the nearest training prompts", f"{_TEXT}:T2Nearest", f"{_IMAGES}:T2NearestVlm", in_paper=False),
    "fewshot": Entry("per task, by a search over α", f"{_TEXT}:T2Fewshot", f"{_IMAGES}:T2FewshotVlm"),
}


def lm_eval_models() -> dict[str, str]:
    """Name of each lm-eval model → `module:Class`."""
    text = {f"t2-{name}": entry.text for name, entry in STRATEGIES.items()}
    return text | {f"t2-{name}-vlm": entry.images for name, entry in STRATEGIES.items() if entry.images is not None}


def strategy_class(name: str, *, with_images: bool = False) -> Any:
    """The lm-eval class of a strategy.

    Args:
        name: an entry's.
        with_images: for a model that reads images.

    Raises:
        UsageError: no such strategy, or none for images.
    """
    entry = STRATEGIES.get(name)
    place = None if entry is None else entry.images if with_images else entry.text
    if place is None:
        having = [other for other, its in STRATEGIES.items() if its.images or not with_images]
        raise unknown("strategy for images" if with_images else "strategy", name, having)
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
