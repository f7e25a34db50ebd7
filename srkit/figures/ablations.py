"""What each choice changes: a panel per outcome, a row per arm, the controls among them.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from srkit.ablations import CONTROLS, OUTCOMES, TABLE, against_paper, differs
from srkit.figures.style import COLOURS, FAINT, PAGE, PAPER_GREY, Plate, caption, drawing, span
from srkit.plan import PAPER_ARM

COINS = "random-judge"


@drawing(TABLE, "no arm has finished an iteration")
def ablations(table: pd.DataFrame) -> Figure:
    """The last iteration of every arm: its change from the start, or its level where that is all.

    `table` is `ablations.with_costs`.
    """
    table = table[(table["iteration"] == table["iteration"].max()) & (table["arm"] != "")]
    arms = list(dict.fromkeys(table["arm"]))
    if not arms:
        return None
    measured = set(table.loc[table["value"].notna(), "outcome"])
    shown = [name for name in OUTCOMES if name in measured]
    rows = -(-len(shown) // 3)
    figure = Plate(figsize=(PAGE, 0.5 + rows * (0.55 + 0.15 * max(len(arms), 3))))
    panels = figure.subplots(rows, 3, sharey=True, squeeze=False)
    for axes, outcome in zip(panels.flat, shown, strict=False):
        _panel(axes, table[table["outcome"] == outcome], arms)
    for axes in panels.flat[len(shown) :]:
        axes.axis("off")
    n = table.loc[(table["against"] == "") & table["n"].notna(), "n"]
    words = f"n = {span(n.min(), n.max())} prompts. " if len(n) else ""
    caption(
        figure,
        f"{words}Bars: 95 % interval by prompt. Full: differs from {PAPER_ARM} (interval of the "
        "paired difference without zero); hollow: no difference shown; a tick: not compared. "
        f"Squares: controls; grey band: random-judge's interval. Dotted: {PAPER_ARM}.",
    )
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, arms: list[str]) -> None:
    outcome, unit = rows["outcome"].iloc[0], rows["unit"].iloc[0]
    compared = against_paper(rows).dropna(subset="value")
    told = set(compared[differs(compared)]["arm"])
    compared = {PAPER_ARM, *compared["arm"]}
    changes = ~rows["against"].str.startswith(f"{PAPER_ARM}/") & (rows["against"] != "")
    drawn = rows[changes] if changes.any() else rows[rows["against"] == ""]
    drawn = drawn.set_index("arm")
    _lines(axes, drawn, outcome, changes.any())
    for place, arm in enumerate(arms):
        if arm in drawn.index:
            _mark(axes, place, drawn.loc[arm], arm, arm in told, arm in compared)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_yticks(range(len(arms)), [f"{a} (control)" if a in CONTROLS else a for a in arms])
    axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
    if unit == "share":
        axes.xaxis.set_major_formatter(PercentFormatter(1, None, symbol=""))
    words = {"share": "points" if changes.any() else "%"}.get(unit, unit)
    axes.set_title(f"{outcome}, change" if changes.any() else outcome)
    axes.set_xlabel(words, labelpad=1)
    axes.grid(False, axis="x")


def _lines(axes: Axes, drawn: pd.DataFrame, outcome: str, change: bool) -> None:
    """What nothing would be, where the paper's arm is, and how far coins reach."""
    if change or outcome == "win rate":
        axes.axvline(0 if change else 0.5, color=PAPER_GREY, ls="--", lw=0.8)
    if PAPER_ARM in drawn.index:
        axes.axvline(drawn.loc[PAPER_ARM, "value"], color=COLOURS[0], ls=":", lw=0.9)
    if COINS in drawn.index and pd.notna(drawn.loc[COINS, "low"]):
        axes.axvspan(drawn.loc[COINS, "low"], drawn.loc[COINS, "high"], color=FAINT, lw=0)


def _mark(axes: Axes, place: int, row: pd.Series, arm: str, full: bool, compared: bool) -> None:
    colour = COLOURS[0] if arm == PAPER_ARM else "#444444" if arm in CONTROLS else COLOURS[1]
    known = pd.notna(row["low"])
    reach = [[row["value"] - row["low"]], [row["high"] - row["value"]]] if known else None
    axes.errorbar(
        [row["value"]],
        [place],
        xerr=reach,
        fmt="|" if not compared else "s" if arm in CONTROLS else "o",
        color=colour,
        mfc=colour if full or arm == PAPER_ARM else "white",
        elinewidth=1,
    )
