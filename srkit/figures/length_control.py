"""Results at equal length: what of a score or a win rate is owed to length.

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

from srkit import equal_length as control
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

PANELS = {
    "win rate": "Win rate against the baseline, ties half",
    "leaning": "Log-odds favour over the baseline",
    "pairwise accuracy": "Pairwise accuracy, ties half",
    "score gap": "Score of chosen less rejected",
}


@drawing(control.EXPLAINED, "no judgement of a ranked response could be read", names=["name"])
def score_and_length(table: pd.DataFrame) -> Figure | None:
    """Correlation of each judge's score with length, raw and at equal quality, and R squared.

    `table` is `equal_length.score_and_length`.
    """
    if table["value"].isna().all():
        return None
    names = list(dict.fromkeys(table["name"]))
    figure = Plate(figsize=(PAGE, 3.2 if turned(names) else 2.6))
    for axes, other in zip(figure.subplots(1, 3), ("length", "quality", ""), strict=True):
        given = {"length": "quality", "quality": "length"}.get(other)
        parts = {
            "as they are": f"score and {other}",
            f"at equal {given}": f"score and {other}, {given} equal",
        }
        if not other:
            parts = {part: f"explained by {part}" for part in ("length", "quality", "both")}
        _side_by_side(axes, table, names, parts)
        axes.set_title(f"Score and {other}" if other else "Share of the score explained")
        if other:
            axes.set_ylim(-1.05, 1.6)
            axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set(ylim=(0, 1.35), yticks=(0, 0.25, 0.5, 0.75, 1))
    n = span(table["n"].min(), table["n"].max())
    told = "Ranks within prompts of the held-out rankings; quality: the seed's grade."
    caption(figure, f"{told} n = {n} prompts. Bars: 95 % interval by prompt.")
    return figure


@drawing(control.MATCHED, "nothing was compared", names=["name"], most=len(COLOURS))
def equal_length(table: pd.DataFrame) -> Figure | None:
    """Win rates, accuracy and score gaps among texts whose lengths differ by at most so much.

    `table` is the table `equal_length` of `metrics.make_length_drift`: a panel per quantity.
    """
    table = table.dropna(subset="value")
    if table.empty:
        return None
    # the paper's first comparison is with the baseline too; the table has all of them
    table = table[table["against"].isin(["baseline", "the seed", "rejected"])]
    kinds = [kind for kind in PANELS if kind in set(table["quantity"])]
    judges = table[table["quantity"] == "pairwise accuracy"]
    models = list(dict.fromkeys(judges["name"]))  # the baseline first, as everywhere
    loops = list(dict.fromkeys(table.loc[table["quantity"] == "score gap", "name"]))
    drawn = [*models, *loops]
    looks = dict(zip(drawn, zip(COLOURS, MARKERS, strict=True), strict=False))
    short = not turned(drawn)
    figure = Plate(figsize=(PAGE, 2.3 * -(-len(kinds) // 2) + 0.3))
    panels = figure.subplots(-(-len(kinds) // 2), 2, squeeze=False).flat
    for axes, kind in zip(panels, kinds, strict=False):
        _matched_panel(axes, table[table["quantity"] == kind], looks)
        axes.set_title(PANELS[kind])
    for axes in list(panels)[len(kinds) :]:
        axes.axis("off")
    labels = short_labels(drawn)
    keys = [
        Line2D([], [], color=colour, marker=marker, ls="", label=labels[name])
        for name, (colour, marker) in looks.items()
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), 4 + 3 * short))
    words = "n: prompts left. Bars: 95 % interval by prompt; none without two."
    caption(figure, words)
    return figure


def _side_by_side(axes: Axes, table: pd.DataFrame, names: list[str], parts: dict[str, str]) -> None:
    shifts = np.linspace(-0.22, 0.22, len(parts))
    looks = zip(parts.items(), shifts, COLOURS, MARKERS, strict=False)
    for (label, quantity), shift, colour, marker in looks:
        rows = table[table["quantity"] == quantity].set_index("name").reindex(names)
        dots(axes, np.arange(len(names)) + shift, rows, colour, label, marker=marker)
    axes.axhline(0, color=PAPER_GREY, ls="--", lw=0.8)
    name_axis(axes, names)
    axes.legend(loc="upper left", ncols=1, borderpad=0.1, labelspacing=0.2)


def _matched_panel(axes: Axes, rows: pd.DataFrame, looks: dict[str, tuple[str, str]]) -> None:
    """Points of each name over the limits, the strictest first."""
    names = [name for name in looks if name in set(rows["name"])]
    rows = rows[rows["name"].isin(names)]
    shifts = np.linspace(-0.3, 0.3, len(names)) if len(names) > 1 else [0.0]
    for name, shift in zip(names, shifts, strict=True):
        part, (colour, marker) = rows[rows["name"] == name], looks[name]
        place = part["within"].map(control.WITHIN.index).to_numpy() + shift
        dots(axes, place, part, colour, marker=marker)
    shares = rows["quantity"].iloc[0] != "score gap"
    axes.axhline(0.5 if shares else 0, color=PAPER_GREY, ls="--", lw=0.8)
    counts = rows.groupby("within")["n"].agg(["min", "max"])
    limits = [f"within {100 * limit:.0f} %" if limit < 1 else "all" for limit in counts.index]
    ns = [f"n = {span(*counts.loc[limit])}" for limit in counts.index]
    ticks = [control.WITHIN.index(limit) for limit in counts.index]
    axes.set_xticks(ticks, [f"{limit}\n{n}" for limit, n in zip(limits, ns, strict=True)])
    axes.set_xlim(-0.5, len(control.WITHIN) - 0.5)
    axes.grid(False, axis="x")
    if shares:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
