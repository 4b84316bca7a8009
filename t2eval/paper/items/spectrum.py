"""Figures 10 and 11: how much of the singular values' sum the largest r of them hold.

    share(r) = Σ_{i≤r} σ_i / Σ_i σ_i      (appendix C)

1. The paper's r = 256 is a sixteenth of its models' hidden size; r is that fraction here too, beside a sixty-fourth and a quarter.
2. A Gaussian random matrix of the same shape is the control: it says how much is due to the shape alone.
3. The paper calls the share "variance"; a variance would be of squared singular values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t2eval.paper import style
from t2eval.paper.claims import Claim
from t2eval.paper.item import Columns, Item, Reported, Result, Unavailable
from t2eval.paper.lab import Lab

if TYPE_CHECKING:
    from torch import Tensor

FRACTIONS = (64, 16, 4)
PAPERS = 16
_PLACE = re.compile(r"\.(\d+)\.(.+)$")


def share(sigma: Tensor, r: int) -> float:
    """Σ_{i≤r} σ_i / Σ_i σ_i.

    Args:
        sigma: singular values, largest first.
        r: at least 1.
    """
    return float(sigma[:r].sum() / sigma.sum())


def spectrum(model: Any) -> list[dict[str, Any]]:
    """The shares of every linear map in a model's decoder layers, in float64.

    Args:
        model: a transformers causal model.

    Returns:
        A row for each matrix and r: `module`, `layer`, `shape`, `fraction` (r is the hidden size over it), `r`, `share`, `gaussian`.
    """
    import torch

    from t2eval.svf.matrices import find_matrix
    from t2eval.svf.selection import target_paths

    hidden = int(model.config.get_text_config().hidden_size)
    controls: dict[tuple[int, ...], Tensor] = {}
    rows = []
    for path in target_paths(model):
        weight = find_matrix(model, path).weight()
        shape = tuple(weight.shape)
        sigma = torch.linalg.svdvals(weight.to(torch.float64))
        if shape not in controls:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            controls[shape] = torch.linalg.svdvals(noise.to(weight.device))
        place = _PLACE.search(path)
        layer, module = (int(place[1]), place[2]) if place else (0, path)
        for fraction in FRACTIONS:
            r = max(1, hidden // fraction)
            shares = {"share": share(sigma, r), "gaussian": share(controls[shape], r)}
            rows.append({"module": module, "layer": layer, "shape": list(shape), "fraction": fraction, "r": r, **shares})
    return rows


def _measured(name: str | None, dtype: str) -> list[dict[str, Any]]:
    from t2eval.basemodel.load import load_base

    return spectrum(load_base(name, dtype=dtype)[0])


def _means(rows: Sequence[Mapping[str, Any]], fraction: int) -> dict[str, float]:
    """Module → its share at one r, averaged over the layers."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["fraction"] == fraction:
            found.setdefault(row["module"], []).append(float(row["share"]))
    return {module: sum(shares) / len(shares) for module, shares in found.items()}


def _is_attention(module: str) -> bool:
    return "attn" in module or "attention" in module


def claims(rows: Sequence[Mapping[str, Any]]) -> tuple[Claim, ...]:
    """The paper's three statements about r = hidden / 16."""
    means = _means(rows, PAPERS)
    attention = {module: value for module, value in means.items() if _is_attention(module)}
    rest = {module: value for module, value in means.items() if not _is_attention(module)}
    average = sum(means.values()) / len(means)
    r = next(row["r"] for row in rows if row["fraction"] == PAPERS)
    inputs = {module: value for module, value in attention.items() if not module.endswith(("o_proj", "out_proj", "c_proj", "dense"))}
    others = {module: value for module, value in means.items() if module not in inputs}
    return (
        Claim(text=f"the first {r} singular values hold less than 50% on average", holds=average < 0.5, seen=f"{average:.1%}"),
        Claim(
            text=f"in the MLP they hold less than 20% (paper: r = 256; here r = {r})",
            holds=max(rest.values()) < 0.2,
            seen=", ".join(f"{module.split('.')[-1]} {value:.1%}" for module, value in rest.items()),
        ),
        Claim(
            text="query, key and value projections concentrate more than the other matrices",
            holds=min(inputs.values()) > max(others.values()),
            seen=f"least {min(inputs.values()):.1%}, the others' most {max(others.values()):.1%}",
        ),
    )


def _result(lab: Lab, name: str, dtype: str) -> Result:
    rows = lab.once(
        f"spectrum/{name.replace('/', '-')}", lambda: _measured(name, dtype), key={"model": name, "dtype": dtype, "fractions": FRACTIONS}
    )
    layers = len({row["layer"] for row in rows})
    notes = (
        f"{name}: {layers} layers, all linear maps in them, singular values in float64; nothing is sampled, so nothing is tested.",
        "`Gaussian` is a random matrix of the same shape; the hidden size bounds r, so a small model's r is small.",
    )
    return Result(tuple(rows), claims(rows), notes)


def run_base(lab: Lab) -> Result:
    """The preset's base model."""
    return _result(lab, lab.preset.model, "auto")


def run_other(lab: Lab) -> Result:
    """The preset's second base model."""
    if lab.preset.other is None:
        raise Unavailable(f"The preset {lab.preset.name!r} has no second base model, which this figure is about.")
    return _result(lab, lab.preset.other, "auto")


def ours(result: Result) -> Columns:
    """The share at each r, and at the paper's fraction the control's; averaged over the layers."""
    found: dict[str, dict[str, str]] = {}
    for fraction in FRACTIONS:
        r = next(row["r"] for row in result.rows if row["fraction"] == fraction)
        means = _means(result.rows, fraction)
        found[f"r={r} (hidden/{fraction})"] = {module: f"{value:.1%}" for module, value in means.items()}
        if fraction == PAPERS:
            own = {row["module"]: row["gaussian"] for row in result.rows if row["fraction"] == fraction}
            found[f"r={r}, Gaussian"] = {module: f"{value:.1%}" for module, value in own.items()}
    return found


def draw(result: Result, figure: Any) -> None:
    """One panel a module: share over layers, a line for each r, the control's as a thin line."""
    modules = list(dict.fromkeys(row["module"] for row in result.rows))
    columns = 4
    lines = -(-len(modules) // columns)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, module in zip(panels, modules, strict=False):
        for index, fraction in enumerate(FRACTIONS):
            own = [row for row in result.rows if (row["module"], row["fraction"]) == (module, fraction)]
            label = f"r = {own[0]['r']} (hidden/{fraction})"
            panel.plot([row["layer"] for row in own], [row["share"] for row in own], label=label, **style.line(index))
            panel.axhline(own[0]["gaussian"], **{**style.BASE, "color": style.line(index)["color"], "linewidth": 0.8})
        panel.set_title(module)
        panel.set_ylim(0, 1)
        panel.xaxis.get_major_locator().set_params(integer=True)
    for panel in panels[len(modules) :]:
        panel.set_axis_off()
    for panel in panels[::columns]:
        panel.set_ylabel("share of Σσ")
    for panel in panels[max(0, len(modules) - columns) : len(modules)]:
        panel.set_xlabel("layer")
        panel.tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    from matplotlib.lines import Line2D

    control = Line2D([], [], **{**style.BASE, "linewidth": 0.8})
    place = panels[-1] if len(panels) > len(modules) else figure
    place.legend([*handles, control], [*labels, "Gaussian matrix"], loc="center")


_TEXT = (
    "r = 256 singular values of about 4096 hold less than 50% on average, and less than 20% in MLP layers; only query, key and value "
    "projections concentrate more. So adapters confined to a few leading directions lose much."
)
_MEASURES = "Σ_{i≤r} σ_i / Σ σ_i of every linear map, by module and layer, beside a Gaussian random matrix of the same shape."

ITEMS = (
    Item(
        name="figure10",
        title="The spectrum of the base model",
        measures=_MEASURES,
        reported=Reported(model="Llama-3-8B-Instruct", text=_TEXT),
        run=run_base,
        ours=ours,
        draw=draw,
        size=(8.0, 4.2),
    ),
    Item(
        name="figure11",
        title="The spectrum of a second base model",
        measures=_MEASURES,
        reported=Reported(model="Mistral-7B-Instruct-v0.3", text=f"As figure 10: {_TEXT}"),
        run=run_other,
        ours=ours,
        draw=draw,
        size=(8.0, 4.2),
    ),
)
