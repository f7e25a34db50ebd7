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

from srkit import constraints, headtohead, strength
from srkit.figures.style import (
    COLOURS,
    FAINT,
    LOSS,
    MARKERS,
    MOST,
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
    names=["left", "right"],
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


@drawing(strength.TABLE, "no two models were compared in both orders", names=["left", "right"])
def strengths(table: pd.DataFrame) -> Figure | None:
    """Win rates as they are and at equal length, and Bradley-Terry strengths.

    `table` holds the rows of `strength.win_rates` and of `strength.bradley_terry`, one under the
    other. A row of the left panel reads "left vs right"; the right panel has the reference model
    at 0.
    """
    matches = table[table["measure"] == "win_rate"].reset_index(drop=True)
    models = table[table["measure"] == strength.STRENGTH].reset_index(drop=True)
    if matches.empty or models.empty:
        return None
    figure = Plate(figsize=(PAGE, max(1.9, 0.28 * max(len(matches), len(models)) + 1.2)))
    rates, scale = figure.subplots(1, 2, width_ratios=[4, 3])
    for name, shift, colour, marker in (
        ("win_rate", -0.14, COLOURS[0], "o"),
        ("win_rate_length_controlled", 0.14, COLOURS[1], "D"),
    ):
        rows = table[table["measure"] == name]
        label = strength.MEASURES[name]
        place = np.arange(len(rows)) + shift
        dots(rates, place, rows, colour, label, horizontal=True, marker=marker)
    _rows_of(rates, _match_names(matches), matches["n"])
    rates.axvline(0.5, color="black", ls=":", lw=1)
    rates.set(xlim=(-0.02, 1.02), title="Win rate of the first-named")
    rates.set_xticks([0, 0.25, 0.5, 0.75, 1])
    rates.xaxis.set_major_formatter(PercentFormatter(1, 0))
    dots(scale, np.arange(len(models)), models, COLOURS[6], horizontal=True, marker="s")
    _rows_of(scale, _model_names(models), models["n"])
    scale.axvline(0, color="black", ls=":", lw=1)
    reference = "/".join(short_labels(models["right"]).values())
    scale.set(title="Bradley-Terry strength", xlabel=f"log-odds,\n{reference} = 0")
    figure.legend(*rates.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    words = "Bars: 95 % interval. n: prompts, and verdicts of each model. Ties count half."
    caption(figure, words + _all_ties(table))
    return figure


@drawing(constraints.TABLE, "no test prompt has a constraint", names=["model"], most=MOST)
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
    for i, (model, shift) in enumerate(zip(models, shifts, strict=True)):
        rows = table[table["model"] == model].set_index("kind").reindex(kinds)
        place, colour = np.arange(len(kinds)) + shift, cycle(len(models))[i]
        marker = MARKERS[i % len(MARKERS)]  # a second cue beside the colour
        dots(axes, place, rows, colour, labels[model], horizontal=True, marker=marker)
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


def _model_names(rows: pd.DataFrame) -> list[str]:
    labels = short_labels([*rows["left"]])
    several = rows["referee"].nunique() > 1
    return [labels[r.left] + (f" ({r.referee})" if several else "") for r in rows.itertuples()]


def _rows_of(axes: Axes, names: list[str], counts: pd.Series) -> None:
    """Names down the y axis, the first on top, each with its n."""
    texts = [f"{name}, n = {n:,}" for name, n in zip(names, counts, strict=True)]
    axes.set_yticks(range(len(texts)), texts)
    axes.set_ylim(len(texts) - 0.5, -0.5)
    axes.grid(False, axis="y")


def _all_ties(table: pd.DataFrame) -> str:
    """A sentence on referees whose every verdict is a tie; they have shown nothing."""
    decided = table[table["measure"] == "win_rate_decided"].groupby("referee", sort=False)["n"]
    silent = [referee for referee, n in decided.sum().items() if n == 0]
    return "".join(
        f" Every verdict of referee {name} is a tie: nothing is shown." for name in silent
    )


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
