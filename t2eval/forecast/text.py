"""The forecast as text, with the source of each figure beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from t2eval.forecast.figures import Figure
from t2eval.forecast.forecast import Forecast, Work

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def render(found: Forecast) -> str:
    """A page for a terminal."""
    parts = [_head(found), _trainings(found), _evaluations(found), _data(found), _power(found), _memory(found), _end(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(part: Figure, unit: str = "", source: bool = True) -> str:
    """`16.1 GB (assumed)`."""
    if part.value is None:
        return "unknown"
    value, prefix = part.value, ""
    for size, letter in _SCALES:
        if abs(part.value) >= size:
            value, prefix = part.value / size, letter
            break
    digits = f"{value:.0f}" if not prefix and value == int(value) else f"{value:.3g}"
    text = f"{digits} {prefix}{unit}".rstrip() if unit else f"{digits}{prefix}"
    return f"{text} ({part.source})" if source else text


def _hours(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _head(found: Forecast) -> str:
    tasks = len({work.name.split(" on ", 1)[1] for work in found.evaluations})
    seeds = f"seeds {', '.join(map(str, found.seeds))}"
    lines = [
        f"Plan of {found.name}: {found.model}, {found.dtype}",
        f"Cells: {found.cells} ({len(found.methods)} methods, {tasks} tasks, {seeds}; the base once), {found.done} done in {found.output}",
        f"Parameters: {shown(found.parameters)}; of one expert: {shown(found.trainable)}",
    ]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = (
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(f"  {line}".rstrip() for line in aligned)


def _works(title: str, works: Iterable[Work]) -> str:
    rows: list[tuple[str, ...]] = [("", "tokens read", "written", "trained on", "merges", "hours")]
    for work in works:
        if work.done:
            continue
        tokens = [shown(part, source=False) for part in (work.read, work.written, work.trained, work.merges)]
        hours = "unknown" if work.hours.value is None else _hours(work.hours.value)
        rows.append((work.name, *tokens, f"{hours} ({work.hours.source})" if work.hours.source == "measured" else hours))
    return f"{title}\n{_table(rows)}" if len(rows) > 1 else title


def _trainings(found: Forecast) -> str:
    if not found.trainings:
        return ""
    done = sum(work.done for work in found.trainings)
    works = _works(f"Training first: {len(found.trainings)} runs, {done} done", found.trainings)
    return "\n".join([works, *_rules(found.trainings)])


def _rules(works: Iterable[Work]) -> list[str]:
    """What the other rule of sweeping would make of the experts' and the baselines' hours."""
    lines = []
    for name, of_svf in (("experts", True), ("baselines", False)):
        own = [work for work in works if not work.done and (work.method == "svf") == of_svf]
        swept = [work for work in own if work.other is not None]
        if not swept:
            continue
        now = sum(work.hours.value or 0.0 for work in own)
        other = sum((work.hours if work.other is None else work.other).value or 0.0 for work in own)
        rules = {"full": ("full sweeps", "halving"), "halving": ("sweeps by halving", "full")}[swept[0].rule]
        lines.append(f"  {len(own)} {name}: {_hours(now)} h by {rules[0]}, {_hours(other)} h with `sweep: {rules[1]}`")
    return lines


def _evaluations(found: Forecast) -> str:
    return _works("Evaluation, of the cells that are not done", found.evaluations)


def _data(found: Forecast) -> str:
    rows: list[tuple[str, ...]] = [("task", "train", "validation", "test", "longest answer")]
    for task in found.tasks:
        sizes = [shown(task.examples[role]) if role in task.examples else "–" for role in ("train", "validation", "test")]
        rows.append((task.name, *sizes, "a choice" if task.longest is None else f"{task.longest} tokens"))
    lines = [f"Examples\n{_table(rows)}", "", "Data sets of the hub"]
    for data in found.data:
        where = f"in the cache, {shown(data.bytes, 'B')}" if data.cached else "not in the cache"
        lines.append(f"  {data.name}: {where}; for {', '.join(data.tasks)}")
    return "\n".join(lines if found.data else [*lines, "  none"])


def _power(found: Forecast) -> str:
    if not found.power:
        return ""
    comparisons = found.power[0].comparisons
    rows: list[tuple[str, ...]] = [("task", "examples", "at 5%", f"at 5% over {comparisons} comparisons")]
    rows += [(task.task, shown(task.examples), _difference(task.alone), _difference(task.corrected)) for task in found.power]
    lines = [f"Smallest difference that the examples show four times in five, of scores of 0 and 1 of one seed\n{_table(rows)}"]
    clustered = [f"{task.task} by {task.cluster}" for task in found.power if task.cluster]
    if clustered:
        lines.append(f"  Where examples share something they show less, by how many share it: {', '.join(clustered)}")
    return "\n".join(lines)


def _difference(part: Figure) -> str:
    return f"{part.value:.3f}" if part.value is not None else part.note if part.note.endswith("no difference") else "unknown"


def _memory(found: Forecast) -> str:
    lines = ["Disk", *(f"  {name}: {shown(part, 'B')}{', ' + part.note if part.note else ''}" for name, part in found.disk.items())]
    lines += ["", "Memory of the device"]
    for name, part in found.memory.items():
        lines.append(f"  {name}: {shown(part, 'B')}{', ' + part.note if part.note else ''}")
    lines.append(f"  evaluation takes {shown(found.needed(False), 'B')} in all")
    if "activations" in found.memory:
        lines.append(f"  training takes {shown(found.needed(True), 'B')} in all")
    return "\n".join(lines)


def _end(found: Forecast) -> str:
    hours = found.hours()
    total = (
        "unknown (--assume read_speed=… answer_speed=… train_speed=…, in tokens a second)"
        if hours.value is None
        else (f"{_hours(hours.value)} h ({hours.source})")
    )
    listed = ", ".join(f"{key}={value}" for key, value in found.assumed.items())
    parts = [
        (name, sum(work.hours.value or 0 for work in works if not work.done))
        for name, works in (("training", found.trainings), ("evaluation", found.evaluations))
    ]
    if hours.value is not None:
        total += "".join(f", {name} {_hours(part)} h" for name, part in parts if part)
    return f"Time for all that is left: {total}\nSpeeds: {found.speeds}\nAssumed: {listed}"
