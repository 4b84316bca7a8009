"""Figure 8: a worked example as LoRA's training reads it, with the tokens that carry loss. Nothing is trained.

1. The paper shows an example of GSM8K in an instruction template; here it is the preset's own math task, in its own prompt.
2. Tokens with and without loss are counted over many examples of each skill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t2eval.errors import T2Error
from t2eval.paper.claims import Claim
from t2eval.paper.item import Columns, Item, Reported, Result
from t2eval.paper.markdown import short

if TYPE_CHECKING:
    from t2eval.paper.lab import Lab
    from t2eval.training.config import TrainConfig

EXAMPLES = 64
"""Of each skill's training split."""
WITHOUT, WITH = "tokens_without_loss", "tokens_with_loss"
_WIDTH = 76  # characters a line of the picture


def _reader(name: str) -> tuple[Any, Any]:
    """The base's tokenizer and configuration without its weights, which for 70B are 140 GB.

    Raises:
        T2Error: there is none, or the hub cannot be reached.
    """
    from transformers import AutoConfig, AutoTokenizer

    from t2eval.basemodel.load import model_source

    try:
        return AutoTokenizer.from_pretrained(model_source(name)), AutoConfig.from_pretrained(model_source(name))
    except OSError as error:
        raise T2Error(f"Cannot load the tokenizer of {name!r}: {error}") from error


def _read(lab: Lab, configs: Mapping[str, TrainConfig]) -> list[dict[str, Any]]:
    """A row for each example of the skills' training splits: its tokens as texts, and the solution that should carry the loss."""
    from t2eval.environment.environment import Environment
    from t2eval.training.supervised import Supervised

    tokenizer, model_config = _reader(lab.preset.model)
    rows = []
    for skill, config in configs.items():
        environment = Environment(
            config.task, tokenizer=tokenizer, apply_chat_template=config.apply_chat_template, num_fewshot=config.num_fewshot
        )
        objective = Supervised(environment, tokenizer, config)
        for example in environment.examples("train", limit=EXAMPLES):
            prompt, predicted = objective.encoded(example, model_config)
            texts = {key: [tokenizer.decode([token]) for token in ids] for key, ids in ((WITHOUT, prompt), (WITH, predicted))}
            choice = example.choices is not None and example.gold is not None
            answer = example.requests[example.gold or 0][1] if choice else example.answer
            learnt = {"answer": answer, "learnt": tokenizer.decode(predicted)}
            rows.append({"skill": skill, "task": config.task, "index": example.index, **texts, **learnt})
    return rows


def _only_the_solution(rows: Sequence[Mapping[str, Any]]) -> Claim:
    """Whether the tokens with loss spell the solution and one and the same end, and nothing of the prompt."""
    learnt = [(str(row["learnt"]).lstrip(), str(row["answer"]).lstrip()) for row in rows]
    right = sum(text.startswith(answer) for text, answer in learnt)
    ends = sorted({text.removeprefix(answer) for text, answer in learnt})
    seen = f"{right} of {len(rows)} examples; {'the end is' if len(ends) == 1 else 'ends are'} {', '.join(map(repr, ends[:3])) or 'empty'}"
    holds = right == len(rows) and len(ends) == 1
    return Claim(text=f"the loss is on the worked solution and its end alone, on {short(str(rows[0]['task']))}", holds=holds, seen=seen)


def run(lab: Lab) -> Result:
    """The training examples of the seen tasks, as they are encoded."""
    configs = {skill: lab.training("settings", skill, 0, method="lora", objective="supervised").config for skill in lab.preset.skills}
    fields = {"task", "apply_chat_template", "num_fewshot", "mask_prompt"}  # what a prompt and its loss depend on
    key = {
        "model": lab.preset.model,
        "examples": EXAMPLES,
        **{skill: config.model_dump(include=fields) for skill, config in configs.items()},
    }
    rows: list[dict[str, Any]] = lab.once("supervision", lambda: _read(lab, configs), key=key)
    claims = tuple(_only_the_solution([row for row in rows if row["skill"] == skill]) for skill in configs)
    first = rows[0]
    notes = (
        f"The picture is example {first['index']} of {first['task']}'s training split. ↵ is a line break.",
        f"Counts are means over {EXAMPLES} training examples of each task. SVF's policy gradient sees the same prompts and no solution.",
    )
    return Result(tuple(rows), claims, notes)


def ours(result: Result) -> Columns:
    """Mean tokens of each task without and with loss, and the loss's share."""
    columns: dict[str, dict[str, str]] = {}
    for skill in dict.fromkeys(row["skill"] for row in result.rows):
        own = [row for row in result.rows if row["skill"] == skill]
        without, loss = (sum(len(row[key]) for row in own) / len(own) for key in (WITHOUT, WITH))
        cells = {"prompt tokens, without loss": f"{without:.1f}", "solution tokens, with loss": f"{loss:.1f}"}
        columns[f"{short(own[0]['task'])} (n={len(own)})"] = {**cells, "share with loss": f"{loss / (without + loss):.0%}"}
    return columns


def _placed(pieces: Sequence[tuple[str, bool]]) -> list[tuple[int, int, str, bool]]:
    """(line, column, text, whether it carries loss) of each token, or part of one, wrapped at `_WIDTH` and after line breaks."""
    line = column = 0
    placed: list[tuple[int, int, str, bool]] = []
    for text, loss in pieces:
        shown = text.replace("\n", "↵")
        if column + len(shown) > _WIDTH and column:
            line, column = line + 1, 0
        placed.append((line, column, shown, loss))
        column += len(shown)
        if text.endswith("\n"):
            line, column = line + 1, 0
    return placed


def draw(result: Result, figure: Any) -> None:
    """The first example, a box a token: grey on white without loss, black in a filled box with loss."""
    from matplotlib.patches import Patch, Rectangle

    from t2eval.paper.style import COLOURS

    row = result.rows[0]
    placed = _placed([(text, False) for text in row[WITHOUT]] + [(text, True) for text in row[WITH]])
    looks: dict[bool, dict[str, Any]] = {
        False: {"facecolor": "white", "edgecolor": "0.75", "linewidth": 0.6},
        True: {"facecolor": COLOURS[5], "edgecolor": "black", "linewidth": 0.9},
    }
    axes = figure.subplots()
    for line, column, text, loss in placed:
        axes.add_patch(Rectangle((column + 0.06, line - 0.42), len(text) - 0.12, 0.84, **looks[loss]))
        weight = "bold" if loss else "normal"
        for place, letter in enumerate(text):
            axes.text(column + place + 0.5, line, letter, family="monospace", ha="center", va="center", fontsize=8, weight=weight)
    lines = placed[-1][0] + 1
    figure.set_figheight(0.5 + 0.27 * lines)  # inches
    axes.set(xlim=(0, _WIDTH), ylim=(lines - 0.4, -0.6))
    axes.set_axis_off()
    counts = {False: len(row[WITHOUT]), True: len(row[WITH])}
    names = {False: "the prompt: read, without loss", True: "the worked solution and its end: with loss"}
    handles = [Patch(label=f"{names[loss]} ({counts[loss]} tokens)", **looks[loss]) for loss in (False, True)]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


ITEMS = (
    Item(
        name="figure8",
        title="What LoRA's training reads",
        measures="A worked example of the math task as next-token training reads it: one box a token, filled where it carries loss.",
        reported=Reported(
            model="all base models",
            text="an instruction, a question of GSM8K, and its worked solution; the solution is the part that is not masked.",
        ),
        run=run,
        ours=ours,
        draw=draw,
        size=(8.0, 1.6),
    ),
)
