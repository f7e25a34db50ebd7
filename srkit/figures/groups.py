"""Results by task, complexity and expected length, the paper's beside ours (Figs. 4 and 11).

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from srkit import breakdowns
from srkit.figures.style import (
    COLOURS,
    FAINT,
    MARKERS,
    MOST,
    PAGE,
    PAPER_GREY,
    Plate,
    caption,
    dots,
    drawing,
    short_labels,
    span,
)

TITLES = {
    "win rate": "Win rate against\nthe baseline",
    "leaning": "Log-odds favour\nover the baseline",
    "constraints met": "Constraints\nmet",
    "pairwise accuracy": "Pairwise accuracy",
    "score": "Mean score given",
}
LABELS = {"task": "category", "complexity": "complexity", "expected_length": "expected length"}


@drawing(
    breakdowns.TABLE, "no test prompt carries a label to break down by", names=["model"], most=MOST
)
def breakdown(table: pd.DataFrame, label: str = "task") -> Figure | None:
    """Answers to the test prompts by one label, and the paper's win rates by the same label.

    `table` is `breakdowns.answers_by_group`. Groups with few prompts are drawn pale.
    """
    rows = table[table["label"] == label]
    kinds = [k for k in TITLES if rows.loc[rows["quantity"] == k, "value"].notna().any()]
    if not kinds:
        return None
    groups = list(dict.fromkeys(rows["group"]))
    models = list(dict.fromkeys(table.loc[table["quantity"] == "characters", "model"]))
    paper = breakdowns.PAPER[breakdowns.PAPER["label"] == label]
    tall = max(len(groups) * (0.1 * len(models) + 0.12), 0.2 * paper["group"].nunique())
    figure = Plate(figsize=(PAGE, max(2.2, tall + 1.3)))
    *panels, last = figure.subplots(1, len(kinds) + 1)
    for axes, kind in zip(panels, kinds, strict=True):
        _group_panel(axes, rows[rows["quantity"] == kind], groups, models)
        axes.set_title(TITLES[kind])
    _group_axis(panels, rows[rows["quantity"].isin(kinds)], groups)
    _paper_panel(last, paper, label)
    few = f"Pale: fewer than {breakdowns.SMALL} prompts. Bars: 95 % interval by prompt."
    words = "The paper: 70B, AlpacaEval, against GPT-4 Turbo, read off a chart, no intervals."
    _group_legend(figure, models)
    caption(figure, f"{few} n: prompts a point rests on. {words}")
    return figure


@drawing(
    breakdowns.TABLE,
    "no ranked prompt carries a label to break down by",
    names=["model"],
    most=MOST,
)
def judging_breakdown(table: pd.DataFrame, label: str = "task") -> Figure | None:
    """Accuracy and mean score of each model as a judge, by task of the held-out rankings.

    `table` is `breakdowns.judging_by_group`.
    """
    rows = table[table["label"] == label]
    if rows["value"].isna().all():
        return None
    groups, models = (list(dict.fromkeys(rows[c])) for c in ("group", "model"))
    figure = Plate(figsize=(PAGE, max(2.2, len(groups) * (0.1 * len(models) + 0.12) + 1.1)))
    panels = figure.subplots(1, 2)
    for axes, kind in zip(panels, ("pairwise accuracy", "score"), strict=True):
        _group_panel(axes, rows[rows["quantity"] == kind], groups, models)
        axes.set_title(TITLES[kind])
    _group_axis(panels, rows, groups)
    _group_legend(figure, models)
    few = f"Pale: fewer than {breakdowns.SMALL} prompts."
    words = "Bars: 95 % interval by prompt; ties are left out of the accuracy."
    caption(figure, f"{few} {words}")
    return figure


def _group_panel(axes: Axes, rows: pd.DataFrame, groups: list[str], models: list[str]) -> None:
    """A row per group, a point per model; few prompts make it pale."""
    shifts = np.linspace(-0.3, 0.3, len(models)) if len(models) > 1 else [0.0]
    for i, (model, shift) in enumerate(zip(models, shifts, strict=True)):
        part = rows[rows["model"] == model].set_index("group").reindex(groups)
        pale = part["small"].ne(False).to_numpy()
        for few in np.unique(pale):
            colour = COLOURS[i % len(COLOURS)] + ("40" if few else "")
            place = np.flatnonzero(pale == few) + shift
            look = {"horizontal": True, "marker": MARKERS[i % len(MARKERS)]}
            dots(axes, place, part[pale == few], colour, **look)
    for border in np.arange(len(groups) - 1) + 0.5:
        axes.axhline(border, color=FAINT, lw=1 if border < 1 else 0.5)
    if set(rows["quantity"]) != {"score"}:
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(False, axis="y")


def _group_axis(panels: list[Axes], rows: pd.DataFrame, groups: list[str]) -> None:
    counts = rows.groupby("group")["n"].agg(["min", "max"])
    names = [f"{group}, n = {span(*counts.loc[group])}" for group in groups]
    for axes in panels:
        axes.set_yticks(range(len(groups)), names if axes is panels[0] else [])
        axes.tick_params(axis="y", length=0)


def _group_legend(figure: Figure, models: list[str]) -> None:
    labels = short_labels(models)
    looks = zip(models, COLOURS * 3, MARKERS * 3, strict=False)
    keys = [
        Line2D([], [], color=colour, marker=marker, ls="", label=labels[model])
        for model, colour, marker in looks
    ]
    figure.legend(handles=keys, loc="outside upper left", ncols=len(keys))


def _paper_panel(axes: Axes, paper: pd.DataFrame, label: str) -> None:
    """The paper's win rates in grey, a marker and a shade per model."""
    groups = list(dict.fromkeys(paper["group"]))
    for i, (model, part) in enumerate(paper.groupby("model")):
        place = part["group"].map(groups.index)
        look = {"color": str(0.75 - 0.2 * i), "mfc": "white" if i < 3 else PAPER_GREY, "ms": 3.5}
        axes.plot(part["value"], place, MARKERS[i], label=model, **look)
    axes.set_yticks(range(len(groups)), groups)
    axes.set(ylim=(len(groups) - 0.5, -0.5), title=f"The paper: win rate\nby {LABELS[label]}")
    axes.set_xlim(0, 0.4)
    axes.set_xticks([0, 0.2, 0.4])
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=4, fontsize=6)
