"""Benchmarks: instructions followed, and what training changed; the paper's changes apart.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from srkit import benchmarks
from srkit.figures.style import (
    COLOURS,
    MARKERS,
    PAGE,
    PAPER_GREY,
    Plate,
    caption,
    dots,
    drawing,
    name_axis,
    short_labels,
    span,
    turned,
)

COLUMNS = 4
STRICTNESS = {"strict": (COLOURS[0], "o", -0.12), "loose": (COLOURS[1], "s", 0.12)}


@drawing(benchmarks.SCORES, "no test prompt carries a constraint", names=["model"])
def instruction_following(table: pd.DataFrame) -> Figure | None:
    """Share of instructions that each model follows, by prompt and by constraint.

    `table` is `benchmarks.scores`.
    """
    rows = table[table["benchmark"] == benchmarks.INSTRUCTIONS]
    if rows.empty:
        return None
    models = list(dict.fromkeys(rows["model"]))
    figure = Plate(figsize=(PAGE, 3.2 if turned(models) else 2.4))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, of in zip(panels, ("prompts", "constraints"), strict=True):
        for how, (colour, marker, shift) in STRICTNESS.items():
            part = rows[rows["metric"] == f"{of}, {how}"].set_index("model").reindex(models)
            dots(axes, np.arange(len(models)) + shift, part, colour, how, marker=marker)
        name_axis(axes, models)
        axes.set(title=f"{of} (n = {span(part['n'].min(), part['n'].max())})", ylim=(-0.02, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    panels[0].set_ylabel("followed")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    caption(
        figure,
        "prompts: all constraints of a prompt. loose: in the best of the answer's forms without "
        "its first line, last line or asterisks. Bars: 95 % interval by prompt.",
    )
    return figure


@drawing(benchmarks.CHANGES, "no benchmark was measured for two models", names=["model"])
def alignment_tax(table: pd.DataFrame) -> Figure:
    """Change of every metric, a panel each, a row per model; the paper's in grey below.

    `table` is `benchmarks.changes`: those of `benchmarks.against`, and those from an arm's start
    where it is another model.
    """
    metrics = list(table.groupby(benchmarks.LABELS, sort=False))
    models = sorted(dict.fromkeys(table["model"]), key="baseline".__ne__)  # against M0 it is one
    tall, lines = 0.2 * len(models) + 0.55, math.ceil(len(metrics) / COLUMNS)
    figure = Plate(figsize=(PAGE, lines * tall + 3.3))
    ours, paper = figure.subfigures(2, 1, height_ratios=[lines * tall, 2.4])
    panels = ours.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axes in panels[len(metrics) :]:
        axes.remove()
    for place, ((benchmark, metric, unit), rows) in enumerate(metrics):
        axes = panels[place]
        _change_panel(axes, rows, models, unit)
        axes.set_title(_title(benchmark, metric))
        labels = list(short_labels(models).values()) if place % COLUMNS == 0 else []
        axes.set_yticks(range(len(models)), labels)
    tasks, two_turn = paper.subplots(1, 2)
    _paper_tasks(tasks)
    _paper_two_turn(two_turn)
    _legend(figure, table)
    n = span(table["prompts"].min(), table["prompts"].max())
    caption(
        figure,
        f"Top: this study, n = {n} prompts or items, bars: paired 95 % interval; none where no "
        "item changed. Bottom: the paper, 70B, other data, no intervals (SFT: its baseline).",
    )
    return figure


def _title(benchmark: str, metric: str) -> str:
    return metric if benchmark == benchmarks.INSTRUCTIONS else f"{benchmark}\n{metric}"


def _change_panel(axes: Axes, rows: pd.DataFrame, models: list[str], unit: str) -> None:
    axes.axvline(0, color=PAPER_GREY, ls="--", lw=0.8)
    starts = rows[~rows["reference"].isin(["M0", "baseline"])]
    drawn = [(benchmarks.against(rows), COLOURS[0], "o", -0.13)]
    drawn.append((starts, COLOURS[1], "s", 0.13))
    for part, colour, marker, shift in drawn:
        part = part.set_index("model").reindex(models)
        place = np.arange(len(models)) + (shift if len(starts) else 0)
        dots(axes, place, part, colour, horizontal=True, marker=marker)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if unit == "share":
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0, symbol=""))
    axes.set_xlabel("points of 100" if unit == "share" else "points")


def _paper_tasks(axes: Axes) -> None:
    changes = benchmarks.PAPER.iloc[1:] - benchmarks.PAPER.iloc[0]
    _paper_panel(axes, changes)
    axes.set(title="The paper, Table 9: change from Llama 2", ylabel="points of 100")


def _paper_two_turn(axes: Axes) -> None:
    changes = benchmarks.PAPER_TWO_TURN.iloc[1:] - benchmarks.PAPER_TWO_TURN.iloc[0]
    _paper_panel(axes, changes)
    axes.set(title="The paper, Table 10: MT-Bench, from SFT", ylabel="points of 10")


def _paper_panel(axes: Axes, changes: pd.DataFrame) -> None:
    """A marker and a shade of grey per model, the tasks along x."""
    shades = {"baseline": "0.8", "M1": "0.65", "M2": "0.5", "M3": "0.3"}
    axes.axhline(0, color=PAPER_GREY, ls="--", lw=0.8)
    shifts = np.linspace(-0.24, 0.24, len(changes))
    for model, marker, shift in zip(changes.index, MARKERS[-len(changes) :], shifts, strict=True):
        look = {"color": shades[model], "mfc": "white" if model == "baseline" else shades[model]}
        label = {"baseline": "SFT"}.get(model, model)
        place = np.arange(changes.shape[1]) + shift
        axes.plot(place, changes.loc[model], marker, ms=3.5, label=label, **look)
    turn = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(changes.shape[1]), changes.columns, **turn)
    axes.grid(False, axis="x")
    axes.legend(loc="best", ncols=2, fontsize=6)


def _legend(figure: Figure, table: pd.DataFrame) -> None:
    first = sorted(set(benchmarks.against(table)["reference"])) or ["baseline"]
    others = list(dict.fromkeys(table["reference"]))
    starts = [name for name in others if name not in ("M0", "baseline")]
    words = f"against {first[0]}" + (" (not measured: the baseline)" if first[1:] else "")
    looks = [(words, COLOURS[0], "o")]
    if starts:
        looks.append((f"against the arm's start ({', '.join(starts)})", COLOURS[1], "s"))
    keys = [Line2D([], [], color=c, marker=m, ls="", label=label) for label, c, m in looks]
    figure.legend(handles=keys, loc="outside upper left", ncols=2)
