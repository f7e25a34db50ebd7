"""Ways of judging, accuracy beside cost.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from srkit import reward_accuracy as accuracy
from srkit import ways
from srkit.figures.style import (
    COLOURS,
    FAINT,
    PAGE,
    PAPER_GREY,
    Plate,
    caption,
    dots,
    drawing,
    short_labels,
    span,
)

MOST_MODELS = 4  # in one figure; all are in the csv
MARKERS = "osD^"


@drawing(ways.TABLE, "no model judged in several ways (eval.ways_of)")
def judge_ways(table: pd.DataFrame, costs: pd.DataFrame) -> Figure | None:
    """Pairwise accuracy of each way of judging beside what it costs, the cheapest at the bottom.

    `table` is `ways.ways_table`, `costs` is `ways.ways_costs`. A row of points per way, one per
    model; beside it bars of tokens read and written per response, a mean over the models.
    """
    rows = table[table["metric"] == "pairwise_accuracy"]
    if rows["value"].isna().all() or not {"model", "read", "written"} <= set(costs.columns):
        return None
    spent = costs.groupby("model")[["read", "written"]].mean()
    spent = spent.assign(total=spent.sum(axis=1)).sort_values("total", kind="stable")
    names, models = list(spent.index), list(dict.fromkeys(rows["of"]))[:MOST_MODELS]
    figure = Plate(figsize=(PAGE, 0.25 * len(names) + 1.5))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    _points(left, rows, names, models)
    _bars(right, spent)
    told = rows[rows["value"].notna()]
    caption(
        figure,
        f"95 % intervals by prompt, {span(told['prompts'].min(), told['prompts'].max())} prompts "
        f"and {span(told['n'].min(), told['n'].max())} pairs, ties left out; the band is length "
        "alone. A way without a point told no two responses apart, or could not be read. Tokens "
        "are the mean of the models.",
    )
    return figure


def _points(axes: Axes, rows: pd.DataFrame, names: list[str], models: list[str]) -> None:
    place, labels = np.arange(len(names)), short_labels(models)
    alone = rows[rows["model"] == accuracy.LENGTH_ALONE].iloc[0]
    axes.axvline(0.5, color="black", ls=":", lw=1)
    if pd.notna(alone["low"]):
        axes.axvspan(alone["low"], alone["high"], color=COLOURS[4], alpha=0.12, lw=0)
    handles = [Line2D([], [], color="black", ls=":", label="chance")]
    for i, model in enumerate(models):
        mine = rows[rows["of"] == model].set_index("model").reindex(names)
        if i:  # length knows no model
            mine.loc[accuracy.LENGTH_ALONE, ["value", "low", "high"]] = np.nan
        shift = 0.2 * (i - (len(models) - 1) / 2)
        mark = {"marker": MARKERS[i], "horizontal": True}
        dots(axes, place - shift, mine, COLOURS[i], **mark)
        handles.append(
            Line2D([], [], color=COLOURS[i], marker=MARKERS[i], ls="", label=labels[model])
        )
    axes.set_yticks(place, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_title("Pairwise accuracy")
    axes.grid(False, axis="y")
    axes.legend(handles=handles, loc="lower left", ncols=1)


def _bars(axes: Axes, spent: pd.DataFrame) -> None:
    place = np.arange(len(spent))
    axes.barh(place, spent["read"], 0.6, color=FAINT, ec=PAPER_GREY)
    axes.barh(place, spent["written"], 0.6, left=spent["read"], color=COLOURS[1])
    axes.set_title("Tokens per response")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    handles = [Patch(fc=FAINT, ec=PAPER_GREY, label="read"), Patch(fc=COLOURS[1], label="written")]
    axes.legend(handles=handles, loc="lower right")
