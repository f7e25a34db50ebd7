"""Models as judges: agreement with the held-out rankings, and the scores they gave.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from srkit import health
from srkit import reward_accuracy as accuracy
from srkit.figures.style import (
    COLOURS,
    COLUMN,
    FAINT,
    PAGE,
    PAPER_GREY,
    Plate,
    caption,
    dots,
    drawing,
    name_axis,
    percent,
    short_labels,
    span,
    turned,
)

TITLES = {
    "pairwise_accuracy": "Pairwise accuracy, ties left out",
    "pairwise_accuracy_ties_half": "Pairwise accuracy, ties half",
    "pairwise_accuracy_ties_wrong": "Pairwise accuracy, ties wrong",
    "tie_rate": "Tied pairs",
    "parse_rate": "Judgements that parsed",
    "five_best": "5-best: scored 5, ranked best",
    "five_best_rounded": "5-best: scored 4.5 and up, ranked best",
    "exact_match": "Exact match of the order",
    "spearman": "Spearman within prompts",
    "kendall": "Kendall's tau-b within prompts",
    "spearman_pooled": "Spearman, pooled",
    "kendall_pooled": "Kendall's tau-b, pooled",
}


@drawing(accuracy.TABLE, "no judgement of a ranked response could be read", names=["model"])
def reward_accuracy(
    table: pd.DataFrame, metrics: Sequence[str] = tuple(accuracy.PAPER.columns)
) -> Figure | None:
    """Agreement of each model's judging with humans (paper Table 4), a panel per metric.

    `table` is `reward_accuracy.accuracy_table`. Ours with intervals, the paper's values in grey
    beside them, what chance gives, and what length alone gives with its interval.
    """
    drawn = table["metric"].isin(metrics) & (table["model"] != accuracy.LENGTH_ALONE)
    if table.loc[drawn, "value"].isna().all():
        return None
    columns = 3 if len(metrics) > 1 else 2
    rows = math.ceil((len(metrics) + 1) / columns)
    slanted = turned(table["model"])
    figure = Plate(figsize=(PAGE, (2.7 if slanted else 2.2) * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, metric in zip(panels, metrics, strict=False):
        _accuracy_panel(axes, table[table["metric"] == metric], metric)
    for axes in panels[len(metrics) :]:
        axes.axis("off")
    _accuracy_legend(panels[len(metrics)])
    caption(figure, "Pairs with a response that got no score are left out; n says what is left.")
    return figure


@drawing(health.HISTOGRAM, "no judgement was made", names=["name"])
def score_histograms(table: pd.DataFrame) -> Figure | None:
    """Scores that each judge gave, as shares of its judgements, with those that did not parse.

    `table` is `health.score_histogram`.
    """
    if not table["judgements"].any():
        return None
    names = list(dict.fromkeys(table["name"]))
    columns = len(names) if len(names) < 5 else 3 if len(names) < 7 else 4
    rows = math.ceil(len(names) / columns)
    figure = Plate(figsize=(max(COLUMN, min(PAGE, 2 * columns)), 1.6 * rows + 0.3))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    labels = short_labels(names)
    for axes, name in zip(panels.flat, names, strict=False):
        _score_panel(axes, table[table["name"] == name], labels[name])
    for axes in panels.flat[len(names) :]:
        axes.axis("off")
    panels[0, 0].yaxis.set_major_formatter(PercentFormatter(1, 0))
    figure.supylabel("share of judgements", fontsize=7)
    caption(figure, "Grey: no score could be read from the judgement.")
    return figure


def _accuracy_panel(axes: Axes, rows: pd.DataFrame, metric: str) -> None:
    by_length = rows[rows["model"] == accuracy.LENGTH_ALONE]
    rows = rows[rows["model"] != accuracy.LENGTH_ALONE]
    axes.set_title(TITLES.get(metric, metric))
    if rows.empty:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    axes.axhline(rows["chance"].max(), color="black", ls=":", lw=1)
    for row in by_length.dropna(subset="value").itertuples():
        axes.axhline(row.value, color=COLOURS[4])
        axes.axhspan(row.low, row.high, color=COLOURS[4], alpha=0.15, lw=0)
    place = np.arange(len(rows))
    dots(axes, place - 0.1, rows, COLOURS[0])
    paper = [_paper_value(model, metric) for model in rows["model"]]
    axes.plot(place + 0.2, paper, "D", color=PAPER_GREY, mfc="white", ms=4)
    for x in place[rows["value"].isna()]:
        note = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 6}
        axes.annotate("none", (x, 0.03), color="#555555", **note)
    name_axis(axes, rows["model"])
    prompts = span(rows["prompts"].min(), rows["prompts"].max())
    units = f"n = {span(rows['n'].min(), rows['n'].max())} {'/'.join(set(rows['unit']))}"
    axes.set_xlabel(units if units.endswith("prompts") else f"{units}, {prompts} prompts")
    if metric.startswith(("spearman", "kendall")):
        axes.set_ylim(*_widened(axes.get_ylim()))
    else:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))


def _widened(limits: tuple[float, float]) -> tuple[float, float]:
    return min(limits[0], -0.1), max(limits[1], 0.5)


def _paper_value(model: str, metric: str) -> float:
    """The paper's Table 4 has one arm; another arm's M2 has no counterpart there."""
    arm, _, name = model.rpartition("/")
    known = arm in ("", "self-rewarding") and name in accuracy.PAPER.index
    return accuracy.PAPER.loc[name, metric] if known and metric in accuracy.PAPER else np.nan


def _accuracy_legend(axes: Axes) -> None:
    handles = {
        "this study, 95 % interval\nby prompt": Line2D([], [], marker="o", color=COLOURS[0]),
        "the paper, 70B, Open Assistant\n(no intervals given)": Line2D(
            [], [], marker="D", ls="", color=PAPER_GREY, mfc="white"
        ),
        "chance": Line2D([], [], color="black", ls=":"),
        "length alone, 95 % interval": (
            Patch(color=COLOURS[4], alpha=0.15, lw=0),
            Line2D([], [], color=COLOURS[4]),
        ),
    }
    axes.legend(handles.values(), handles.keys(), loc="center", labelspacing=1)


def _score_panel(axes: Axes, rows: pd.DataFrame, label: str) -> None:
    colours = [FAINT if score == "no score" else COLOURS[0] for score in rows["score"]]
    edges = [PAPER_GREY if score == "no score" else COLOURS[0] for score in rows["score"]]
    axes.bar(rows["score"].str.replace("no score", "none"), rows["share"], color=colours, ec=edges)
    n, parsed = int(rows["judgements"].iloc[0]), rows["parse_rate"].iloc[0]
    axes.set_title(f"{label}\nn = {n:,}, {percent(parsed)} parsed", fontsize=7)
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", labelbottom=True)
