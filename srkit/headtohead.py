"""Win, tie and loss of one model against another, and the card of the referee that says so.

The paper's protocol (Fig. 3): every pair of answers is shown to the referee in both
orders; only if both agree is it a win, everything else is a tie. A single order would reward
whoever stands in the place that the referee likes, and small referees have such a place.

Surprising decisions: an order that did not parse makes a tie (it cannot confirm), and how many ties
come from there is reported; a prompt with one order only is incomplete and left out. The log-odds
are averaged over both orders, so that a constant preference for a place cancels exactly; they are
finer than verdicts where a small referee ties nearly everything. Rows are matched by prompt id,
never by position.

    python -c "from srkit.headtohead import PAPER; print(PAPER)"
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from srkit import stats
from srkit.config import SrkitError

MATCH = ["referee", "left", "right"]
COMPARISONS = (*MATCH, "prompt_id", "first", "preferred", "log_odds_left")
VERDICTS = (*MATCH, "prompt_id", "verdict", "reason", "first_preferred", "parsed", "log_odds_left")
CARD = ("referee", "metric", "value", "low", "high", "n", "unit", "prompts", "chance")

# estimate of `head_to_head` -> (sum, count); columns of `_marks`
ESTIMATES = {
    "win_rate": ("won", "one"),
    "position_consistency": ("consistent", "both"),
    "first_preferred": ("first", "presentations"),
    "log_odds": ("log_odds_left", "leaning"),
}

# metric -> (hits, trials, unit, chance); columns of `_marks`
CARD_METRICS = {
    "accuracy": ("right_or_half", "one", "pairs", 0.5),
    "accuracy_decided": ("right", "decided", "pairs", 0.5),
    "accuracy_log_odds": ("leaning_right", "leaning", "pairs", 0.5),
    "position_consistency": ("consistent", "both", "pairs", 0.5),
    "first_preferred": ("first", "presentations", "presentations", 0.5),
    "parse_rate": ("parsed", "two", "presentations", None),
}

# Fig. 3 of the paper: GPT-4 as referee on 256 prompts
PAPER = pd.DataFrame(
    [
        ("M1", "baseline", 78, 99, 79),
        ("M2", "baseline", 126, 93, 37),
        ("M3", "baseline", 160, 71, 25),
        ("M2", "M1", 142, 84, 30),
        ("M3", "M2", 122, 102, 32),
        ("M3", "M1", 176, 58, 22),
    ],
    columns=["left", "right", "wins", "ties", "losses"],
)


def verdicts(comparisons: pd.DataFrame) -> pd.DataFrame:
    """One row per referee, pair and prompt, from the two rows with either answer shown first.

    Columns: referee, left, right, prompt_id, verdict (win, tie or loss of left; missing if
    incomplete), reason (agree, disagree, unparsed or incomplete), first_preferred (orders in which
    the answer shown first was preferred), parsed (orders), log_odds_left (mean of both orders, NaN
    without both). Raises SrkitError when left is right, for a missing name, a repeated order, or a
    word that is neither left nor right.
    """
    rows = stats.require(comparisons, COMPARISONS, "comparisons")
    _check(rows)
    rows = rows.assign(
        parsed=rows["preferred"].notna(),
        for_left=rows["preferred"] == "left",
        first_preferred=rows["preferred"] == rows["first"],
        known=rows["log_odds_left"].notna(),
        log_odds_left=rows["log_odds_left"].astype(float),
    )
    sums = rows.groupby([*MATCH, "prompt_id"]).agg(
        orders=("first", "size"),
        known=("known", "sum"),
        log_odds_left=("log_odds_left", "mean"),
        **{name: (name, "sum") for name in ("parsed", "for_left", "first_preferred")},
    )
    sums["log_odds_left"] = sums["log_odds_left"].where(sums["known"] == 2)
    return sums.assign(reason=_reason(sums), verdict=_verdict(sums)).reset_index()[list(VERDICTS)]


def head_to_head(
    comparisons: pd.DataFrame, resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Wins, ties and losses of left against right, a row per referee and pair of models.

    Columns: referee, left, right, n (complete prompts), wins, ties, losses, wins_percent,
    ties_percent, losses_percent, disagreed and unparsed (where the ties come from), incomplete
    (prompts left out), and four estimates, each with _low, _high (95 %, by prompt) and _n
    (prompts): win_rate (ties count half), position_consistency (share of parsed prompts where both
    orders agree), first_preferred (share of their presentations won by the answer shown first),
    log_odds (of left, mean over orders and prompts).
    """
    table = verdicts(comparisons)
    options = {"resamples": resamples, "seed": seed}
    rows = []
    for names, match in table.groupby(MATCH, sort=False):
        row = dict(zip(MATCH, names, strict=True)) | _counts(match)
        marks = _marks(match.dropna(subset="verdict"))
        for name, (above, below) in ESTIMATES.items():
            # log-odds are no share: their interval is never Wilson's
            found = (
                stats.bootstrap(marks, (above, below), **options)
                if name == "log_odds"
                else stats.rate(marks, above, below, **options)
            )
            ends = {"": "value", "_low": "low", "_high": "high", "_n": "n"}
            row |= {f"{name}{end}": found[key] for end, key in ends.items()}
        rows.append(row)
    numbers = [f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")]
    columns = [*MATCH, *_counts(table), *numbers, *(f"{name}_n" for name in ESTIMATES)]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(numbers, float))


def referee_card(
    comparisons: pd.DataFrame,
    rankings: pd.DataFrame,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """How far a referee can be trusted: comparisons of responses that humans have ranked.

    `comparisons` are rows as everywhere, with `left` and `right` being response ids of `rankings`
    (seed/eft_eval); pairs of equal human rank are left out. A row per referee and metric: accuracy
    (both-order verdict against the human order, ties half), accuracy_decided (without ties),
    accuracy_log_odds (sign of the order-averaged log-odds, zero half), position_consistency,
    first_preferred, parse_rate (of presentations). Columns: referee, metric, value, low, high
    (95 %, by prompt), n (in `unit`), unit, prompts, chance.
    Raises SrkitError for a response that is not ranked.
    """
    table = verdicts(comparisons).dropna(subset="verdict")
    table = table.assign(human=_human(table, rankings)).query("human != 0")
    rows = []
    for referee, pairs in table.groupby("referee", sort=False):
        marks = _marks(pairs)
        for metric, (above, below, unit, chance) in CARD_METRICS.items():
            found = stats.rate(marks, above, below, resamples=resamples, seed=seed)
            counts = {"n": int(marks[below].sum()), "prompts": found["n"]}
            labels = {"referee": referee, "metric": metric, "unit": unit, "chance": chance}
            rows.append({**labels, **found, **counts})
    numbers = dict.fromkeys(("value", "low", "high", "chance"), float)
    return pd.DataFrame(rows, columns=list(CARD)).astype(numbers)


def _check(rows: pd.DataFrame) -> None:
    for column in (*MATCH, "prompt_id"):
        if unnamed := int(rows[column].isna().sum()):
            raise SrkitError(
                f"`{column}` is missing in {unnamed} comparison(s). Each needs its referee, left, "
                "right and prompt_id, or it would be left out unseen; redo these rows."
            )
    same = rows[rows["left"] == rows["right"]]
    if len(same):
        raise SrkitError(
            f"{len(same)} comparison(s) set {same['left'].iloc[0]!r} against itself, the first on "
            f"prompt {same['prompt_id'].iloc[0]!r}. Left and right must be two different names; "
            "a model against itself is a tie by construction."
        )
    for column, values in {"first": rows["first"], "preferred": rows["preferred"].dropna()}.items():
        wrong = values[~values.isin(["left", "right"])]
        if len(wrong):
            raise SrkitError(
                f"`{column}` is {wrong.iloc[0]!r} in {len(wrong)} comparison(s). It is 'left' or "
                "'right' (`preferred` may be null: it did not parse). Correct or redo these rows."
            )
    twice = rows[rows.duplicated([*MATCH, "prompt_id", "first"])]
    if len(twice):
        raise SrkitError(
            f"{len(twice)} comparison(s) repeat an order, the first on prompt "
            f"{twice['prompt_id'].iloc[0]!r}. Each referee sees each prompt and pair once per "
            "order; keep one row of each."
        )


def _reason(sums: pd.DataFrame) -> np.ndarray:
    conditions = [sums["orders"] < 2, sums["parsed"] < 2, sums["for_left"] == 1]
    return np.select(conditions, ["incomplete", "unparsed", "disagree"], "agree")


def _verdict(sums: pd.DataFrame) -> pd.Series:
    won = np.where(sums["for_left"] == 2, "win", "loss")
    verdict = pd.Series(np.where(_reason(sums) == "agree", won, "tie"), index=sums.index)
    return verdict.where(sums["orders"] == 2)


def _counts(match: pd.DataFrame) -> dict[str, Any]:
    n = int(match["verdict"].notna().sum())
    seen = {name: int((match["verdict"] == name).sum()) for name in ("win", "tie", "loss")}
    counts = {"wins": seen["win"], "ties": seen["tie"], "losses": seen["loss"]}
    percent = {f"{k}_percent": 100 * v / n if n else np.nan for k, v in counts.items()}
    reasons = {"disagreed": "disagree", "unparsed": "unparsed", "incomplete": "incomplete"}
    why = {name: int((match["reason"] == reason).sum()) for name, reason in reasons.items()}
    return {"n": n, **counts, **percent, **why}


def _marks(pairs: pd.DataFrame) -> pd.DataFrame:
    """Counts per verdict; `human` (+1: left is better, -1: right) adds those of accuracy."""
    won = pairs["verdict"].map({"win": 1.0, "tie": 0.5, "loss": 0.0}).astype(float)
    both, leaning = pairs["parsed"] == 2, pairs["log_odds_left"].notna()
    marks = pairs.assign(
        won=won,
        one=1,
        two=2,
        both=both,
        consistent=pairs["reason"] == "agree",
        first=pairs["first_preferred"].where(both, 0),
        presentations=2 * both,
        leaning=leaning,
    )
    if "human" not in pairs:
        return marks
    right = 0.5 + pairs["human"] * (won - 0.5)
    lean = 0.5 + pairs["human"] * np.sign(pairs["log_odds_left"]) / 2
    return marks.assign(
        right_or_half=right,
        right=right == 1,
        decided=won != 0.5,
        leaning_right=lean.fillna(0),
    )


def _human(table: pd.DataFrame, rankings: pd.DataFrame) -> pd.Series:
    """+1 where humans ranked left better, -1 right, 0 neither; joined by response id."""
    rank = stats.require(rankings, ("id", "rank"), "rankings").set_index("id")["rank"]
    unknown = sorted((set(table["left"]) | set(table["right"])) - set(rank.index))
    if unknown:
        raise SrkitError(
            f"{len(unknown)} compared response(s) are not in the rankings, the first is "
            f"{unknown[0]!r}. On a referee's card left and right are ids of ranked responses; "
            "pass the rankings that were compared."
        )
    return np.sign(table["right"].map(rank) - table["left"].map(rank)).astype(float)
