"""What a judge's differences are worth, and whether two judges agree.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from srkit import calibration
from srkit.figures.style import (
    COLOURS,
    COLUMN,
    PAGE,
    Plate,
    caption,
    dots,
    drawing,
    short_labels,
    span,
)

MEASURES = {
    "kendall": "Kendall's tau-b, mean of prompts",
    "ordered_alike": "Pairs that both order alike",
}


@drawing(calibration.BINS, "no judge told two responses apart", names=["model"])
def judge_calibration(table: pd.DataFrame) -> Figure | None:
    """Share of pairs ordered right by the size of the judge's difference, a panel per judge.

    `table` is `calibration.bins`.
    """
    names = list(dict.fromkeys(table["model"]))
    columns = min(len(names), 4)
    rows = math.ceil(len(names) / columns)
    width = max(COLUMN, min(PAGE, 2 * columns))
    figure = Plate(figsize=(width, 1.7 * rows + 0.8))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    labels = short_labels(names)
    for axes, name in zip(panels.flat, names, strict=False):
        _panel(axes, table[table["model"] == name], labels[name])
    for axes in panels.flat[len(names) :]:
        axes.axis("off")
    figure.supylabel("pairs ordered right", fontsize=7)
    caption(
        figure,
        "Difference of scores (points of the judge), each part with about as many pairs (equal "
        "differences stay together), 95 % intervals by prompt. A judge whose differences mean "
        "something rises to the right; dotted: chance.",
    )
    return figure


@drawing(calibration.AGREEMENT, "there are no two models to compare", names=["model", "reference"])
def judge_agreement(table: pd.DataFrame) -> Figure | None:
    """How alike two models judge the same responses, a row per pair of models.

    `table` is `calibration.agreement`.
    """
    if table["value"].isna().all():
        return None
    pairs = list(dict.fromkeys(zip(table["model"], table["reference"], strict=True)))
    labels = short_labels([name for pair in pairs for name in pair])
    figure = Plate(figsize=(PAGE, 0.3 * len(pairs) + 1.2))
    panels = figure.subplots(1, 2, sharey=True)
    place = np.arange(len(pairs))[::-1]
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        rows = table[table["measure"] == measure].set_index(["model", "reference"]).reindex(pairs)
        dots(axes, place, rows, COLOURS[0], horizontal=True)
        axes.set_title(title)
        nothing = 0.5 if measure == "ordered_alike" else 0
        axes.axvline(nothing, color="black", ls=":", lw=1)
        axes.set_xlim(min(-0.05, np.nanmin(rows["low"].fillna(0)) - 0.05), 1.03)
        n = span(rows["n"].min(), rows["n"].max())
        axes.set_xlabel(f"n = {n} {rows['unit'].iloc[0]}")
        axes.grid(False, axis="y")
    panels[1].xaxis.set_major_formatter(PercentFormatter(1, 0))
    panels[0].set_yticks(place, [f"{labels[a]} and {labels[b]}" for a, b in pairs])
    panels[0].set_ylim(-0.6, len(pairs) - 0.4)
    caption(figure, "95 % intervals by prompt; dotted: what chance gives.")
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, label: str) -> None:
    axes.axhline(0.5, color="black", ls=":", lw=1)
    dots(axes, rows["gap"].to_numpy(float), rows, COLOURS[0])
    axes.set_title(f"{label}\nn = {rows['n'].sum():,} pairs", fontsize=7)
    axes.set_xlim(0, 1.15 * rows["gap"].max())
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.tick_params(axis="x", labelsize=6)
    axes.locator_params(axis="x", nbins=4)
