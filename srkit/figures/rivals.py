"""What each arm gained for what it took: tokens beside gain per million of them.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from srkit.ablations import CONTROLS
from srkit.costs import GAINS, TOKENS
from srkit.figures.style import (
    COLOURS,
    FAINT,
    PAGE,
    PAPER_GREY,
    Plate,
    caption,
    dots,
    drawing,
    span,
)
from srkit.plan import PAPER_ARM

LOOKS = {"written": (COLOURS[1], ""), "read": (FAINT, ""), "trained": (COLOURS[5], "///")}


@drawing(GAINS, "no arm has finished an iteration")
def gain_per_token(gains: pd.DataFrame, spent: pd.DataFrame | None = None) -> Figure:
    """Tokens of every arm by kind, and its gains from its start per million tokens.

    `gains` is `costs.gains`, `spent` is `costs.by_arm`.
    """
    order = [*(() if spent is None else spent["arm"]), *gains["arm"]]
    arms = [arm for arm in dict.fromkeys(order) if arm in set(gains["arm"])]
    outcomes = list(dict.fromkeys(gains["outcome"]))
    figure = Plate(figsize=(PAGE, 1.2 + 0.17 * max(len(arms), 3)))
    first, *panels = figure.subplots(1, 1 + len(outcomes), sharey=True)
    _tokens(first, arms, spent)
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    for axes, outcome in zip(panels, outcomes, strict=True):
        _gains(axes, gains[gains["outcome"] == outcome], arms)
        axes.set_title(outcome)
    first.set_ylim(len(arms) - 0.5, -0.5)
    names = [f"{arm} (control)" if arm in CONTROLS else arm for arm in arms]
    first.set_yticks(range(len(arms)), names)
    caption(
        figure,
        "Left: tokens by kind. Right: points of 100 gained from the arm's start, per million "
        f"tokens; n = {span(gains['n'].min(), gains['n'].max())} prompts. Bars: 95 % interval by "
        "prompt, divided by the same tokens. Squares: controls. Where an interval holds 0, a gain "
        "per token says nothing.",
    )
    return figure


def _tokens(axes: Axes, arms: list[str], spent: pd.DataFrame | None) -> None:
    """Million tokens by kind; an arm whose tokens are not all known has no bar."""
    known = pd.DataFrame(columns=["arm", *TOKENS]) if spent is None else spent
    known = known.set_index("arm").reindex(arms)[list(TOKENS)].astype(float).dropna() / 1e6
    places = [arms.index(arm) for arm in known.index]
    left = np.zeros(len(known))
    for kind, (colour, hatch) in LOOKS.items():
        width = known[kind].to_numpy()
        axes.barh(places, width, 0.6, left=left, color=colour, ec="white", hatch=hatch, label=kind)
        left = left + width
    axes.set(title="tokens", xlabel="million")
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.grid(False, axis="y")


def _gains(axes: Axes, rows: pd.DataFrame, arms: list[str]) -> None:
    axes.axvline(0, color=PAPER_GREY, ls="--", lw=0.8)
    per = 1e8 / rows["tokens"]  # points of 100, per million
    rows = rows.assign(**{name: rows[name] * per for name in ("value", "low", "high")})
    for row in rows.to_dict("records"):
        marker = "s" if row["arm"] in CONTROLS else "o"
        plain = "#444444" if row["arm"] in CONTROLS else COLOURS[1]
        colour = COLOURS[0] if row["arm"] == PAPER_ARM else plain
        place = np.array([arms.index(row["arm"])])
        dots(axes, place, pd.DataFrame([row]), colour, horizontal=True, marker=marker)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("points")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
