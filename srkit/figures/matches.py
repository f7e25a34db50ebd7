"""Answers against each other, and against checkable constraints.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from srkit import constraints, headtohead
from srkit.figures.style import (
    FAINT,
    LOSS,
    PAGE,
    TIE,
    WIN,
    Plate,
    caption,
    cycle,
    dots,
    drawing,
    interval,
    percent,
    short_labels,
    span,
)


@drawing(
    (*headtohead.MATCH, "n", "wins", "ties", "losses", "win_rate", "win_rate_low", "win_rate_high"),
    "no two models were compared in both orders",
)
def head_to_head(table: pd.DataFrame, card: pd.DataFrame | None = None) -> Figure | None:
    """Wins, ties and losses as stacked bars (paper Fig. 3), with n and the win rate of each row.

    `table` is `headtohead.head_to_head`; a row reads "left vs right", and wins are left's. Rows
    against the baseline come first, as in the paper's first panel. `card`
    (`headtohead.referee_card`) adds how often the referee agrees with humans.
    """
    if not table["n"].any():
        return None
    against = table["right"] == "baseline"
    groups = [part for part in (table[against], table[~against]) if len(part)]
    rows = pd.concat(groups).reset_index(drop=True)
    # a gap between the two groups; the first row is on top
    place = -(np.arange(len(rows)) + 0.5 * (np.arange(len(rows)) >= len(groups[0])))
    figure = Plate(figsize=(PAGE, 0.36 * len(rows) + 1.1))
    axes = figure.subplots()
    for y, row in zip(place, rows.itertuples(), strict=True):
        _match_bar(axes, y, row)
    axes.set_yticks(place, _match_names(rows))
    axes.set(xlim=(0, 100), ylim=(place.min() - 0.6, 0.6), xticks=[])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    handles = [Patch(color=c) for c in (WIN, TIE, LOSS)]
    words = ["first-named wins", "tie", "first-named loses"]
    axes.legend(handles, words, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0.1)
    header = {"transform": axes.transAxes, "fontsize": 7, "va": "bottom"}
    axes.text(1.02, 1.0, "win rate [95 %], ties half", **header)
    words = ["A win needs both orders; all else is a tie.", *_referees(rows, card)]
    caption(figure, " ".join(words))
    return figure


@drawing(constraints.TABLE, "no test prompt has a constraint")
def constraint_pass_rates(table: pd.DataFrame) -> Figure:
    """Share of constraints met by each model, a row per kind of constraint.

    `table` is `constraints.pass_rates`.
    """
    kinds = list(dict.fromkeys(table["kind"]))
    models = list(dict.fromkeys(table["model"]))
    figure = Plate(figsize=(PAGE * 0.7, max(1.6, 0.12 * len(models) * len(kinds) + 1.0)))
    axes = figure.subplots()
    labels = short_labels(models)
    shifts = np.linspace(-0.3, 0.3, len(models)) if len(models) > 1 else [0.0]
    for model, shift, colour in zip(models, shifts, cycle(len(models)), strict=True):
        rows = table[table["model"] == model].set_index("kind").reindex(kinds)
        place = np.arange(len(kinds)) + shift
        dots(axes, place, rows, colour, labels[model], horizontal=True)
    for border in np.arange(len(kinds) - 1) + 0.5:
        axes.axhline(border, color=FAINT, lw=0.5)
    counts = table.groupby("kind")["n"].agg(["min", "max"])
    names = [f"{kind} (n = {span(*counts.loc[kind])})" for kind in kinds]
    axes.set_yticks(range(len(kinds)), names)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(kinds) - 0.5, -0.5))
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_xlabel("constraints met")
    figure.legend(loc="outside right upper")
    caption(figure, "n: constraints per model. Bars: 95 % interval by prompt.")
    return figure


def _match_names(rows: pd.DataFrame) -> list[str]:
    labels = short_labels([*rows["left"], *rows["right"]])
    several = rows["referee"].nunique() > 1
    ends = [f"\n({row.referee})" if several else "" for row in rows.itertuples()]
    names = [f"{labels[row.left]} vs {labels[row.right]}" for row in rows.itertuples()]
    return [name + end for name, end in zip(names, ends, strict=True)]


def _referees(rows: pd.DataFrame, card: pd.DataFrame | None) -> list[str]:
    """A sentence per referee: how steady it is here, and how often it agrees with humans."""
    sentences = []
    for referee, table in rows.groupby("referee", sort=False):
        words = f"Referee {referee}"
        if "position_consistency" in table and table["position_consistency"].notna().any():
            low, high = table["position_consistency"].min(), table["position_consistency"].max()
            words += f": both orders agree on {span(100 * low, 100 * high)} % of prompts"
        known = card if card is not None and len(card) else pd.DataFrame(columns=["referee"])
        for row in known[known["referee"] == referee].itertuples():
            if row.metric == "accuracy":
                words += f"; agrees with the seed on {percent(row.value)}"
                words += f" {interval(row.low, row.high)} of {row.n} pairs, ties half"
        sentences.append(f"{words}.")
    return sentences


def _match_bar(axes: Axes, y: float, row: Any) -> None:
    start = 0.0
    for count, colour in ((row.wins, WIN), (row.ties, TIE), (row.losses, LOSS)):
        width = 100 * count / row.n if row.n else 0.0
        axes.barh(y, width, left=start, height=0.72, color=colour, edgecolor="white", lw=0.5)
        if width >= 3:
            text = f"{width:.1f}%" if width >= 7 else f"{width:.0f}"
            axes.text(start + width / 2, y, text, ha="center", va="center", fontsize=7)
        start += width
    place = axes.get_yaxis_transform()
    text = f"n = {row.n}"
    if row.n:
        text = f"{100 * row.win_rate:.1f}% {interval(row.win_rate_low, row.win_rate_high)}, {text}"
    axes.text(1.02, y, text, transform=place, va="center", fontsize=7)
