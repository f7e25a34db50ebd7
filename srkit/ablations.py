"""What each choice changes: the arms of a study side by side, outcome by outcome.

An arm is the paper's method with one choice changed, so the table has a row for each arm, iteration
and outcome: as it is, as a paired difference from the model that the arm started from, and as a
paired difference from the paper's arm after the same iteration. Prompts are resampled, the same for
both sides.

The controls say how to read it. `random-judge` learned from coins: what its rows differ by is what
DPO does to a model without any preference behind it, and a change of that size is no effect of a
choice. `oracle` learned what a program checks: if its own score does not rise, nothing else here
could have shown. An interval is over prompts, of one training each: it does not know how another
seed would have come out.

Surprising decisions: a model is compared with the one that its arm started from, and nothing
compares two arms' answers directly, so a win rate against the paper's arm is the difference of two
win rates against the start, and there is none where the starts differ. `own score` is what M_t
gives its own candidates of iteration t. Models that judge by another rubric or method have another
scale: their own scores and their accuracy as judges have a level and no difference, which would be
the rubric's. Where another judges there is no own score at all. `pairs` is the share of prompts
that gave one. Seconds and tokens (`costs`) come from the manifest, differ from run to run and have
no interval; a table that arms share is counted for each, as if the arm had been made alone.

    python -c "from srkit.ablations import OUTCOMES; print(*OUTCOMES)"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from srkit import constraints, headtohead, reward_accuracy, stats
from srkit.plan import PAPER_ARM

CONTROLS = ("random-judge", "oracle")
ROOM = 12  # models or iterations that can be told one by one, or drawn side by side
# outcome -> unit; shares are in [0, 1]
OUTCOMES = {
    "judge accuracy": "share",
    "win rate": "share",
    "constraints met": "share",
    "oracle's score": "share",
    "length": "characters",
    "own score": "points",
    "pairs": "share",
    "seconds": "seconds",
    "tokens": "tokens",
}
OF_ITERATION = ("own score", "pairs")  # the rest is of the model that the iteration leaves
COSTS = ("seconds", "tokens")
TABLE = ("arm", "iteration", "model", "outcome", "unit", "against", "value", "low", "high", "n")
Sums = Mapping[str, Mapping[str, pd.DataFrame]]


@dataclass(frozen=True)
class Run:
    """One iteration of an arm; iteration 0 is where arms start.

    `scale` says how its model judges: only equal ones can be compared.
    """

    arm: str
    iteration: int
    model: str
    start: str = ""
    folder: str = ""
    scale: str = ""

    def owner(self, outcome: str) -> str:
        """Whose table an outcome is measured on."""
        return self.folder if outcome in OF_ITERATION else self.model


def compare(
    runs: Sequence[Run], sums: Sums, resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Every outcome of every run, tidy: as it is, against the start, against the paper's arm.

    `sums` are from `sums_of`. Columns: arm, iteration, model, outcome, unit, against ("" or the
    other model), value, low, high (95 %, by prompt), n (prompts; those that both sides have).
    """
    options = {"resamples": resamples, "seed": seed}
    paper = {run.iteration: run for run in runs if run.arm == PAPER_ARM}
    starts = {run.model: run for run in runs if not run.arm}
    rows = []
    for run in runs:
        for outcome, tables in sums.items():
            mine = tables.get(run.owner(outcome))
            if mine is None:
                continue
            labels = {"arm": run.arm, "iteration": run.iteration, "model": run.model}
            labels |= {"outcome": outcome, "unit": OUTCOMES[outcome]}
            rows.append({**labels, "against": "", **_level(mine, OUTCOMES[outcome], options)})
            start = starts.get(run.start)
            for other, owner in _others(run, start, paper.get(run.iteration), outcome):
                if owner in tables:
                    pair = (mine, tables[owner], ("sum", "count"))
                    found = stats.paired_bootstrap(*pair, **options)
                    rows.append({**labels, "against": other, **found})
    numbers = dict.fromkeys(("value", "low", "high"), float)
    return pd.DataFrame(rows, columns=list(TABLE)).astype(numbers)


def _others(run: Run, start: Run | None, paper: Run | None, outcome: str) -> list[tuple[str, str]]:
    """Names of the models to compare with, and whose tables they are measured on."""
    others = []
    # new prompts each iteration; and a win rate is against the start already
    if start and outcome not in (*OF_ITERATION, "win rate") and _comparable(run, start, outcome):
        others.append((run.start, run.start))
    if paper and run.arm != PAPER_ARM and _comparable(run, paper, outcome):
        others.append((paper.model, paper.owner(outcome)))
    return others


def _comparable(run: Run, other: Run, outcome: str) -> bool:
    """Whether an outcome is measured alike: judging by the rubric, win rates by the opponent."""
    same = {"win rate": run.start == other.start}
    same |= dict.fromkeys(("own score", "judge accuracy"), run.scale == other.scale)
    return same.get(outcome, True)


def _level(sums: pd.DataFrame, unit: str, options: dict[str, int]) -> stats.Estimate:
    if unit == "share":
        return stats.rate(sums, "sum", "count", **options)
    return stats.bootstrap(sums, ("sum", "count"), **options)


# --- what is measured ----------------------------------------------------------------------------


def sums_of(
    rankings: pd.DataFrame,
    judgements: Mapping[str, pd.DataFrame],
    answers: Mapping[str, pd.DataFrame],
    comparisons: pd.DataFrame,
    starts: Mapping[str, str],
    oracle: Sequence[constraints.Constraint],
    own: Mapping[str, pd.DataFrame],
    pairs: Mapping[str, pd.DataFrame],
) -> dict[str, dict[str, pd.DataFrame]]:
    """Each outcome's frames by owner, with prompt_id, sum and count: an outcome is sum / count.

    `judgements` of the held-out `rankings` and `answers` are by model, `own` judgements and `pairs`
    by iteration, `starts` names the model that each model's arm started from.
    """
    return {
        "judge accuracy": {m: _accuracy(rankings, table) for m, table in judgements.items()},
        "win rate": _wins(comparisons, starts),
        "constraints met": _constraints(answers),
        "oracle's score": {m: _points(table, oracle) for m, table in answers.items()},
        "length": {m: _lengths(table) for m, table in answers.items()},
        "own score": {name: _scores(table) for name, table in own.items()},
        "pairs": {name: _kept(table) for name, table in pairs.items()},
    }


def _sums(prompts: pd.Series, total: pd.Series, count: pd.Series | int = 1) -> pd.DataFrame:
    return pd.DataFrame({"prompt_id": prompts, "sum": total, "count": count})


def _accuracy(rankings: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    scored = reward_accuracy.score_rankings(rankings, judgements)
    ledger = reward_accuracy.per_prompt(scored).reset_index()
    above, below, *_ = reward_accuracy.METRICS["pairwise_accuracy"]
    return _sums(ledger["prompt_id"], ledger[above], ledger[below])


def _wins(comparisons: pd.DataFrame, starts: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    table = headtohead.verdicts(comparisons).dropna(subset="verdict")
    won = table["verdict"].map({"win": 1.0, "tie": 0.5, "loss": 0.0})
    sums = _sums(table["prompt_id"], won)
    mine = table["left"].map(starts) == table["right"]
    return {model: sums[mine & (table["left"] == model)] for model in table["left"][mine].unique()}


def _constraints(answers: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    table = constraints.outcomes(answers)
    table = table[table["kind"] == constraints.EVERY]
    found = {model: table[table["model"] == model] for model in answers}
    return {m: _sums(f["prompt_id"], f["passed"].astype(float)) for m, f in found.items()}


def _points(answers: pd.DataFrame, oracle: Sequence[constraints.Constraint]) -> pd.DataFrame:
    met = [constraints.points(str(text), oracle) for text in answers["text"]]
    return _sums(answers["prompt_id"], pd.Series(met, index=answers.index), len(oracle))


def _lengths(answers: pd.DataFrame) -> pd.DataFrame:
    return _sums(answers["prompt_id"], answers["text"].astype(str).str.len())


def _scores(judgements: pd.DataFrame) -> pd.DataFrame:
    scores = reward_accuracy.mean_scores(judgements).dropna(subset="score")
    return _sums(scores["prompt_id"], scores["score"])


def _kept(pairs: pd.DataFrame) -> pd.DataFrame:
    return _sums(pairs["id"], pairs["dropped"].isna().astype(float))


# --- what is shown -------------------------------------------------------------------------------


def foremost(names: Sequence[str], most: int = ROOM, whole: bool = False) -> list[str]:
    """The models or iterations of a study with many arms that there is room for, at most `most`.

    All, if there is room. Or else the seed models, the paper's arm (without it, the first one), and
    of the other arms, or of the controls alone, the last model and iteration (`whole`: all of the
    controls'); or none of them.
    """
    arms = {name: name.rpartition("/")[0] for name in names}
    first = PAPER_ARM if PAPER_ARM in arms.values() else next(filter(None, arms.values()), "")
    last = set({(arm, "/iter-" in name): name for name, arm in arms.items()}.values())
    main = [name for name, arm in arms.items() if arm in ("", first)]
    ends = [name for name in names if whole or name in last]
    controls = [name for name in ends if arms[name] in CONTROLS]
    choices = [[*main, *more] for more in (names, ends, controls, ())]
    fits = (choice for choice in choices if len(set(choice)) <= most)
    chosen = next(fits, main[:most])
    return [name for name in names if name in chosen]


def with_costs(table: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """`compare`'s table with rows of seconds and tokens: arm, iteration, model, outcome, value."""
    rows = costs.assign(unit=costs["outcome"], against="")
    both = pd.concat([table, rows.reindex(columns=list(TABLE))], ignore_index=True)
    return both.astype(dict.fromkeys(("value", "low", "high", "n"), float))


def last_iteration(table: pd.DataFrame) -> pd.DataFrame:
    """Where the arms have arrived: their last iteration, and what they started from."""
    return table[table["iteration"].isin((0, table["iteration"].max()))]


def against_paper(table: pd.DataFrame) -> pd.DataFrame:
    """The differences from the paper's arm."""
    return table[table["against"].str.startswith(f"{PAPER_ARM}/")]


def differs(rows: pd.DataFrame) -> pd.Series:
    """Whether a difference's interval leaves out zero; one without an interval does not."""
    return (rows["low"] > 0) | (rows["high"] < 0)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Outcomes of the last iteration in words: a row per arm, what arms start from first.

    "61.4 % [54.3, 68.8]"; a star where the difference from the paper's arm leaves out zero.
    """
    table = last_iteration(table)
    levels = table[table["against"] == ""]
    shown = against_paper(table)
    stars = set(map(tuple, shown[differs(shown)][["model", "outcome"]].to_numpy()))
    rows: dict[str, dict[str, str]] = {}
    for row in levels.to_dict("records"):
        name = row["model"] if row["iteration"] == 0 else row["arm"]
        star = " *" if (row["model"], row["outcome"]) in stars else ""
        rows.setdefault(name, {})[row["outcome"]] = _words(row) + star
    names = [name for name in OUTCOMES if name in set(levels["outcome"])]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=names).fillna("")
    return frame.rename_axis("arm").reset_index()


def _words(row: Mapping) -> str:
    factor, sign, digits = {
        "share": (100, " %", 1),
        "points": (1, "", 2),
        "characters": (1, "", 0),
    }.get(row["unit"], (1, "", 0))
    numbers = [row[name] for name in ("value", "low", "high")]
    if pd.isna(numbers[0]):
        return ""
    value, low, high = (f"{factor * x:,.{digits}f}" for x in numbers)
    return f"{value}{sign}" if pd.isna(numbers[1]) else f"{value}{sign} [{low}, {high}]"
