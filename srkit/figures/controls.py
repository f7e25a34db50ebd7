"""The controls: an oracle that must move what it scores, and coin flips that must not.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from srkit import constraints
from srkit.config import ARMS
from srkit.figures.style import (
    COLOURS,
    PAGE,
    PAPER_GREY,
    Plate,
    caption,
    dots,
    drawing,
    span,
)

# an arm looks the same whatever stands beside it; no two have colour and marker in common
ARM_STYLE = {
    arm: {"colour": COLOURS[colour], "marker": marker}
    for arm, colour, marker in zip(
        ARMS,
        (0, 5, 3, 0, 5, 4, 2, 2, 3, 6, 2, 0, 6, 5, 4, 4, 5, 2, 1, 6),
        "osDsoD^sooDDs^o^vvPX",
        strict=True,
    )
}


@drawing(
    constraints.CONTROLS, "no answer was scored by the oracle", names=["model"], most=16, whole=True
)
def controls(table: pd.DataFrame) -> Figure:
    """The oracle's score of each arm's models, and the change from the model the arm started from.

    `table` is `constraints.oracle_scores`.
    """
    figure = Plate(figsize=(PAGE, 2.7))
    level, change = figure.subplots(1, 2, width_ratios=[3, 2])
    arms = list(dict.fromkeys(name.partition("/")[0] for name in table["model"] if "/" in name))
    shifts = np.linspace(-0.18, 0.18, len(arms)) if len(arms) > 1 else [0.0]
    for arm, shift in zip(arms, shifts, strict=True):
        _walk(level, change, table, arm, shift, ARM_STYLE[arm])
    change.axhline(0, color=PAPER_GREY, ls="--")
    last = table["model"].str.partition("/")[0].isin(arms).sum() // max(len(arms), 1)
    names = ["start", *(f"M{t + 1}" for t in range(1, last + 1))]
    for axes, first in ((level, 0), (change, 1)):
        axes.set_xticks(range(first, last + 1), names[first:])
        axes.set_xlim(first - 0.5, last + 0.5)
        axes.grid(False, axis="x")
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    level.set(title="The oracle's score on the test prompts", ylabel="constraints met")
    change.set(title="Change from the start, same prompts", ylabel="points")
    change.yaxis.set_major_formatter(PercentFormatter(1, 0, symbol=""))
    figure.legend(loc="outside right upper")
    starts = ", ".join(dict.fromkeys(table["reference"].dropna()))
    n = span(table["n"].min(), table["n"].max())
    caption(figure, f"n = {n} prompts per model. Start: {starts}. Bars: 95 % interval by prompt.")
    return figure


def _walk(
    level: Axes, change: Axes, table: pd.DataFrame, arm: str, shift: float, style: dict[str, str]
) -> None:
    """One arm's models on both panels of `controls`, from where it started."""
    mine = table[table["model"].str.startswith(f"{arm}/")]
    walk = pd.concat([table[table["model"] == mine["reference"].iloc[0]], mine])
    place = np.arange(len(walk)) + shift
    level.plot(place, walk["value"], color=style["colour"], lw=0.8, alpha=0.6)
    dots(level, place, walk, label=arm, **style)
    ends = {"value": "difference", "low": "difference_low", "high": "difference_high"}
    moved = pd.DataFrame({name: mine[column] for name, column in ends.items()})
    dots(change, place[1:], moved, **style)
