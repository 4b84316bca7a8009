"""Train settings: every field of `TrainConfig` with its option, default and meaning, for `--help-all` and docs/training.md.

What is listed is read from the class itself, so a new setting is listed by being there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Setting:
    """One setting of a training run.

    Attributes:
        name: the field of `TrainConfig`, the key in a recipe and in `--set`.
        option: what gives it on the command line: an option of its own, or `--set name=…`.
        default: of a run for which only task and output are given; empty where the meaning says what happens then.
        paper: the same under `--preset paper`, where that differs; else empty.
        meaning: one or two sentences.
    """

    name: str
    option: str
    default: str
    paper: str
    meaning: str

    def bracket(self) -> str:
        """The defaults as click shows them: `[default: 64; paper: 256]`, or nothing."""
        parts = [f"default: {self.default}"] if self.default else []
        parts += [f"paper: {self.paper}"] if self.paper else []
        return f"[{'; '.join(parts)}]" if parts else ""


def train_settings(command: click.Command) -> list[Setting]:
    """Every setting, in `TrainConfig`'s order.

    Args:
        command: `t2 train-expert`, whose own options are named.
    """
    from t2eval.training.config import TrainConfig

    options = {parameter.name: max(parameter.opts, key=len) for parameter in command.params}
    ours, paper = (TrainConfig(task="TASK", output="DIR", preset=preset) for preset in ("embedded", "paper"))
    found = []
    for name, field in TrainConfig.model_fields.items():
        required = field.is_required()
        default, other = ("", "") if required else (_shown(getattr(ours, name)), _shown(getattr(paper, name)))
        found.append(
            Setting(
                name=name,
                option=options.get(name, f"--set {name}=…"),
                default=default,
                paper=other if other != default and name != "preset" else "",
                meaning=field.description or "",
            )
        )
    return found


def _shown(value: Any) -> str:
    """A value as a recipe or `--set` would give it; empty for None and for an empty list."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def show_all(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    """The callback of `--help-all`: the command's help with all settings behind it, and no run."""
    if not asked or context.resilient_parsing:
        return
    click.echo(context.get_help())
    formatter = context.make_formatter()
    with formatter.section("Settings, each by its option, by --set KEY=VALUE, or in a recipe"):
        formatter.write_dl(
            [(setting.name, f"{setting.meaning}  {setting.bracket()}".strip() or " ") for setting in train_settings(context.command)]
        )
    click.echo("\n" + formatter.getvalue().rstrip("\n"))
    context.exit()


def table(command: click.Command) -> str:
    """The settings as a Markdown table."""
    lines = ["| setting | on the command line | default | with `--preset paper` | meaning |", "|---|---|---|---|---|"]
    for setting in train_settings(command):
        cells = (f"`{setting.name}`", f"`{setting.option}`", _code(setting.default), _code(setting.paper), setting.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
