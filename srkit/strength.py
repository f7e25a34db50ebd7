"""What the verdicts of a referee add up to: win rates, strengths, and what n prompts can show.

- A win rate counts ties half. Its interval comes twice: by resampling prompts, and Wilson's, for
  which a tie is a coin and which is therefore wider. Where every verdict is the same, only Wilson's
  stands.
- The length-controlled win rate is that of a logistic regression in which both answers are equally
  long (Dubois et al. 2024, arXiv 2404.04475): logit P(left wins) = theta + phi tanh(d / std(d)), d
  being the characters that left is longer by. The rate is logistic(theta). **Their term for the
  difficulty of an instruction is dropped**: it was fitted to the models of one leaderboard on the
  805 prompts of AlpacaEval and exists for no others. Instead of their L1 penalty, theta and phi are
  each given half a win and half a loss.
- Bradley-Terry strengths are log-odds against a reference model, from all pairs at once. A pair's
  two models are given one tied game more, so that who won every game is still finitely strong.

Surprising decisions: verdicts are what enters, ties as halves, not the referee's log-odds, so that
all rates here are about the same thing; a model that no chain of comparisons ties to the reference
has no strength; with nothing but ties all rates are 1/2, and the intervals are as wide as those of
coins, for such a referee has shown nothing.

    python -c "from srkit.strength import power_table; print(power_table(None))"
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from srkit import stats
from srkit.headtohead import MATCH, PAPER, verdicts

MEASURES = {
    "win_rate": "win rate, ties half",
    "win_rate_wilson": "win rate, Wilson's interval",
    "win_rate_decided": "win rate, ties left out",
    "win_rate_length_controlled": "win rate at equal length",
    "length_difference": "characters that left is longer by",
    "length_weight": "weight of length, log-odds",
}
STRENGTH = "strength"
TABLE = (*MATCH, "measure", "value", "low", "high", "n")
POWER = ("referee", "tie_share", "n", "here", "win_rate")
NUMBERS = dict.fromkeys(("value", "low", "high"), float)
WON = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def win_rates(
    comparisons: pd.DataFrame,
    lengths: pd.DataFrame,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Every pair of models by every measure of `MEASURES`, a row each.

    `comparisons` as for `headtohead.verdicts`; `lengths` has a row per answer: model, prompt_id,
    characters (`length.lengths`). Columns: referee, left, right, measure, value, low, high (95 %),
    n (prompts; for win_rate_decided the prompts without a tie). A prompt without both lengths
    takes no part in the length-controlled measures.
    """
    table = verdicts(comparisons).dropna(subset="verdict")
    characters = lengths.set_index(["model", "prompt_id"])["characters"] if len(lengths) else {}
    rows = []
    for names, match in table.groupby(MATCH, sort=False):
        match = match.assign(won=match["verdict"].map(WON), one=1)
        for side in ("left", "right"):
            keys = zip(match[side], match["prompt_id"], strict=True)
            match[f"{side}_characters"] = [characters.get(key, np.nan) for key in keys]
        found = _raw(match, resamples, seed) | _length_controlled(match, resamples, seed)
        labels = dict(zip(MATCH, names, strict=True))
        rows += [{**labels, "measure": name, **found[name]} for name in MEASURES]
    return pd.DataFrame(rows, columns=list(TABLE)).astype(NUMBERS)


def bradley_terry(comparisons: pd.DataFrame, reference: str = "baseline") -> pd.DataFrame:
    """Strength of every model, in log-odds of beating `reference`, a row per referee and model.

    Without the reference among the models, the first of them is. Columns: referee, left (the
    model), right (the reference), measure ("strength"), value, se, low, high (95 %), n (its
    verdicts). The reference has value 0 and no interval; a model that no chain of comparisons
    connects with it has no value, and a referee that only ties gives no interval.
    """
    table = verdicts(comparisons).dropna(subset="verdict")
    parts = [_strengths(games, reference) for _, games in table.groupby("referee", sort=False)]
    columns = [*TABLE[:-1], "se", "n"]
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts, ignore_index=True)[columns].astype({**NUMBERS, "se": float})


def power_table(
    head_to_head: pd.DataFrame | None, prompts: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
) -> pd.DataFrame:
    """How large a win rate n prompts can show, for each referee at its own share of ties.

    `head_to_head` is `headtohead.head_to_head`; None, or no row, leaves the paper's referee, who is
    always there for comparison. Columns: referee, tie_share, n, here (whether the study has this
    n), win_rate: the smallest one (ties half) that a two-sided 5 % test finds in four of five
    studies; missing where no result could show a difference.
    """
    paper = PAPER.assign(
        referee="GPT-4 (the paper)", n=PAPER[["wins", "ties", "losses"]].sum(axis=1)
    )
    ours = head_to_head if head_to_head is not None else paper.iloc[:0]
    rows = []
    for referee, games in pd.concat([ours, paper]).groupby("referee", sort=False):
        here = {int(n) for n in games["n"] if n}
        ties = games["ties"].sum() / games["n"].sum() if here else np.nan
        for n in sorted(here.union(prompts)) if here else ():
            shown = stats.smallest_shown(n, ties)
            rows.append(dict(zip(POWER, (referee, ties, n, n in here, shown), strict=True)))
    return pd.DataFrame(rows, columns=list(POWER)).astype({"win_rate": float})


def _raw(match: pd.DataFrame, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    won = match["won"]
    decided = int((won != 0.5).sum())
    return {
        "win_rate": stats.rate(match, "won", "one", resamples=resamples, seed=seed),
        "win_rate_wilson": stats.wilson(won.sum(), len(won)),
        "win_rate_decided": stats.wilson((won == 1).sum(), decided),
    }


def _length_controlled(match: pd.DataFrame, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    match = match.assign(longer=match["left_characters"] - match["right_characters"])
    match = match.dropna(subset="longer")
    nothing = {"value": None, "low": None, "high": None, "n": len(match)}
    found = dict.fromkeys(("win_rate_length_controlled", "length_weight"), nothing)
    options = {"resamples": resamples, "seed": seed}
    found["length_difference"] = stats.bootstrap(match, ("longer", "one"), **options)
    if match.empty:
        return found
    fit = _fit_length(match)
    rate = {name: float(expit(fit.at["advantage", name])) for name in ("value", "low", "high")}
    found["win_rate_length_controlled"] = {**rate, "n": len(match)}
    if "length" in fit.index:
        ends = fit.loc["length", ["value", "low", "high"]].to_dict()
        found["length_weight"] = {**ends, "n": len(match)}
    return found


def _fit_length(match: pd.DataFrame) -> pd.DataFrame:
    design = pd.DataFrame({"advantage": 1.0}, index=match.index)
    spread = match["longer"].std()
    # where every answer is longer by the same, length and advantage cannot be told apart
    if spread > 0:
        design["length"] = np.tanh(match["longer"] / spread)
    names = design.columns
    prior = pd.DataFrame(np.eye(len(names)), columns=names)
    return stats.logistic(design, match["won"].to_numpy(), match["prompt_id"].to_numpy(), prior)


def _strengths(games: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Strengths of one referee's games; all columns of `bradley_terry`."""
    models = list(dict.fromkeys([*games["left"], *games["right"]]))
    reference = reference if reference in models else models[0]
    models.sort(key=lambda model: model != reference)  # the reference first
    table = pd.DataFrame({"left": models, "right": reference, "measure": STRENGTH})
    played = [int(((games["left"] == m) | (games["right"] == m)).sum()) for m in models]
    table = table.assign(referee=games["referee"].iloc[0], n=played)
    linked = _connected(games, models, reference)
    games = games[games["left"].isin(linked)]
    design = _signs(games, linked).drop(columns=reference)
    pair = pd.Series(map(frozenset, zip(games["left"], games["right"], strict=True)), games.index)
    prior = _signs(games[~pair.duplicated()], linked).drop(columns=reference)
    won, prompts = games["verdict"].map(WON).to_numpy(), games["prompt_id"].to_numpy()
    fit = stats.logistic(design, won, prompts, prior) if len(linked) > 1 else pd.DataFrame()
    table = table.join(fit.reindex(columns=["value", "se", "low", "high"]), on="left")
    table.loc[table["left"] == reference, "value"] = 0.0
    if (won == 0.5).all():  # as many coins as verdicts would have an interval: there was none
        table.loc[:, ["se", "low", "high"]] = np.nan
    return table


def _connected(games: pd.DataFrame, models: list[str], reference: str) -> list[str]:
    """The models that a chain of games ties to the reference, itself included."""
    place = {model: i for i, model in enumerate(models)}
    met = np.zeros((len(models), len(models)), int)
    met[games["left"].map(place), games["right"].map(place)] = 1
    group = connected_components(met, directed=False)[1]
    return [model for model in models if group[place[model]] == group[place[reference]]]


def _signs(games: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """The design of Bradley and Terry: +1 in left's column, -1 in right's; (games, models)."""
    columns = {m: (games["left"] == m).astype(int) - (games["right"] == m) for m in models}
    return pd.DataFrame(columns, index=games.index).astype(float)
