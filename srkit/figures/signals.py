"""The dashboard of the loop: all its signals, iteration by iteration, on one page.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from srkit import signals
from srkit.drift import ESTIMATES
from srkit.figures.style import (
    COLOURS,
    MARKERS,
    PAGE,
    Plate,
    caption,
    cycle,
    dots,
    drawing,
    name_axis,
    short_labels,
    span,
    turned,
)

TITLES = {
    "pair yield": "Prompts that gave a pair",
    "score": "Mean score of candidates",
    "score histogram": "Scores of candidates",
    "gap": "Score gap of the pairs",
    "log-probability": "Log-probability, nats",
    "KL": "KL to the start, nats",
    "judge health": "Judge health",
    "seconds": "Minutes",
    "tokens": "Tokens, thousands",
}
UNITS = {"seconds": 60, "tokens": 1000}


@drawing(signals.TABLE, "no iteration was finished")
def loop_signals(table: pd.DataFrame) -> Figure:
    """Yield, scores, gap, log-probabilities, KL, judge health and cost of each iteration.

    `table` is `signals.loop_signals`.
    """
    names = list(dict.fromkeys(table["name"]))
    figure = Plate(figsize=(PAGE, 7.0 if turned(names) else 5.8))
    draw = {
        "score histogram": _histogram_panel,
        "log-probability": _training_panel,
        "KL": _kl_panel,
        "judge health": _health_panel,
        "seconds": _cost_panel,
        "tokens": _cost_panel,
    }
    for axes, signal in zip(figure.subplots(3, 3).flat, signals.SIGNALS, strict=True):
        rows = table[table["signal"] == signal]
        axes.set_title(TITLES[signal])
        if rows["value"].isna().all():
            axes.set_axis_off()
            axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes, fontsize=7)
            continue
        draw.get(signal, _mean_panel)(axes, rows, names)
    prompts = table.loc[table["signal"] == "pair yield", "n"]
    scored = table.loc[table["signal"] == "score histogram", "n"]
    counts = f"n = {span(prompts.min(), prompts.max())} prompts and "
    counts += f"{span(scored.min(), scored.max())} scored candidates an iteration."
    answers = table.loc[table["signal"] == "KL", "n"]
    if len(answers):
        counts += f" KL: n = {span(answers.min(), answers.max())} answers."
    caption(figure, f"{counts} Bars: 95 % interval by prompt. Log-probabilities: batch by batch.")
    return figure


def _mean_panel(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    rows = rows.set_index("name").reindex(names)
    dots(axes, np.arange(len(names)), rows, COLOURS[0])
    name_axis(axes, names)
    if rows["signal"].dropna().eq("pair yield").all():
        axes.set_ylim(-0.03, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    if rows["signal"].dropna().eq("gap").all():
        axes.set_ylim(bottom=0)


def _histogram_panel(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    labels = short_labels(names)
    styles = ("-", "--", ":", "-.")
    for i, (name, colour) in enumerate(zip(names, cycle(len(names)), strict=True)):
        part = rows[rows["name"] == name]
        left, share = part["position"].to_numpy(), part["value"].to_numpy()
        edges = np.append(left, 2 * left[-1] - left[-2])
        axes.stairs(share, edges, color=colour, ls=styles[i % 4], lw=1.2, label=labels[name])
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])
    axes.set_xlabel("score")
    axes.legend(loc="upper right", borderpad=0.1, fontsize=6)


def _training_panel(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    """The updates of all iterations one after another, a line between two."""
    start = 0.0
    for name in names:
        part = rows[rows["name"] == name]
        for i, (side, line) in enumerate(part.groupby("part")):
            x = start + line["position"]
            axes.plot(x, line["value"], color=COLOURS[i], ls=("-", "--")[i], lw=1, label=side)
        start += part["position"].max() if len(part) else 0
        if name != names[-1]:
            axes.axvline(start + 0.5, color="black", lw=0.6, ls=":")
    axes.set_xlabel("update, iterations in a row")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    sides = sorted(set(rows["part"]))
    looks = zip(sides, COLOURS, ("-", "--"), strict=False)
    keys = [Line2D([], [], color=colour, ls=ls, label=side) for side, colour, ls in looks]
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))
    axes.legend(handles=keys, loc="upper left", ncols=2, borderpad=0.1, fontsize=6)


def _kl_panel(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    """Both estimates of each model's distance from where its arm started."""
    for i, estimate in enumerate(ESTIMATES):
        found = rows[rows["part"] == estimate].set_index("name").reindex(names)
        place = np.arange(len(names)) + (-0.12, 0.12)[i]
        dots(axes, place, found, COLOURS[i], estimate, marker=MARKERS[i])
    axes.axhline(0, color="black", lw=0.6)
    name_axis(axes, names)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.35 * (high - low))
    axes.legend(loc="upper left", borderpad=0.1, fontsize=6)


def _health_panel(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    parts = list(dict.fromkeys(rows["part"]))
    shifts = np.linspace(-0.25, 0.25, len(parts))
    for part, shift, colour, marker in zip(parts, shifts, COLOURS, MARKERS, strict=False):
        found = rows[rows["part"] == part].set_index("name").reindex(names)
        place = np.arange(len(names)) + shift
        dots(axes, place, found, colour, part.replace("_", " "), marker=marker)
    name_axis(axes, names)
    axes.set_ylim(-0.03, 1.5)
    axes.set_yticks([0, 0.5, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.legend(loc="upper left", ncols=2, borderpad=0.1, fontsize=6, columnspacing=0.5)


def _cost_panel(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    """Stacked bars, a part per step."""
    unit = UNITS[rows["signal"].iloc[0]]
    below = np.zeros(len(names))
    for part, colour in zip(dict.fromkeys(rows["part"]), COLOURS, strict=False):
        found = rows[rows["part"] == part].set_index("name")["value"].reindex(names).fillna(0)
        height = found.to_numpy(float) / unit
        axes.bar(range(len(names)), height, 0.6, below, color=colour, ec="white", label=part)
        below += height
    name_axis(axes, names)
    axes.set_ylim(0, 1.75 * max(below.max(), 1e-9))
    axes.legend(loc="upper left", borderpad=0.1, fontsize=6, labelspacing=0.2)
