"""Which way of asking a judge is worth its cost? One model's judgements in several ways, compared.

A table of `srkit.judge_ways` holds the same responses judged in every way; here each way becomes a
judge of its own and is measured as models are (`reward_accuracy`): pairwise accuracy under three
conventions for ties, ties, parse rate, rank correlations, and differences on the same prompts to
the paper's way (the mean of K additive draws) and to length alone.

Surprising decisions: the median and the mode of K draws stand beside their mean, since few draws of
whole numbers tie often; several modes are averaged. Cost is in tokens, which any machine can
repeat; seconds are in the manifest and are shown beside it, never in a metric's file.

    python -c "from srkit.ways import *; print(*draws_shown(11))"
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from srkit import reward_accuracy, stats

DRAWS = (1, 3, 5, 11)
MEASURES = (
    *(name for name in reward_accuracy.METRICS if name.startswith("pairwise")),
    "tie_rate",
    "parse_rate",
    "spearman",
    "kendall",
)
# ways that are one number per response, by their name in the table
SINGLE = {
    "expected_additive": "expected score, additive",
    "expected_multiple_choice": "expected score, multiple choice",
    "yes_no": "probability of Yes",
    "likelihood_sum": "likelihood, sum",
    "likelihood_mean": "likelihood, per token",
    "implicit_reward": "implicit DPO reward",
}
# the chunk of the step whose seconds a way takes; draws are timed for all K together
TIMED = {"likelihood_sum": "likelihood", "likelihood_mean": "likelihood"}
COLUMNS = ("response_id", "prompt_id", "way", "sample", "score", "read", "tokens", "truncated")
TABLE = ("of", *reward_accuracy.TABLE)
COSTS = ("of", "model", "way", "responses", "read", "written", "tokens")
DIFFERENCES = ("of", *reward_accuracy.DIFFERENCES)


def draws_shown(k: int) -> list[int]:
    """Of how many draws the mean is shown: 1, 3, 5, 11, as far as there are, and all K."""
    return sorted({n for n in DRAWS if n < k} | {k})


def judges(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The judgements of each way by its name, cheapest draws first; `table` is `<model>/ways`."""
    rows = stats.require(table, COLUMNS, "ways")
    rows = rows.assign(score=pd.to_numeric(rows["score"]))
    by_way = dict(iter(rows.groupby("way", sort=False)))
    found: dict[str, pd.DataFrame] = {}
    for way in ("additive", "multiple_choice"):
        if way in by_way:
            found |= _of_draws(way.replace("_", " "), by_way[way])
    return found | {name: by_way[way] for way, name in SINGLE.items() if way in by_way}


def reference(table: pd.DataFrame) -> str:
    """The name of the paper's way among `judges`: the mean of all additive draws."""
    return _mean_of("additive", int(table["sample"].max()) + 1)


def ways_table(
    rankings: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """`MEASURES` of every way of each model, and of length alone: `reward_accuracy.TABLE`.

    `tables` maps a model's name (column `of`) to its table; `model` is the way.
    """
    parts = []
    for of, table in tables.items():
        asked = _asked(rankings, table)
        found = reward_accuracy.accuracy_table(asked, judges(table), resamples, seed, MEASURES)
        parts.append(found.assign(of=of))
    return _stacked(parts, TABLE)


def ways_differences(
    rankings: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Each way less the paper's, and less length alone, on the same prompts; of `MEASURES`.

    Columns: of, then `reward_accuracy.DIFFERENCES`.
    """
    parts = []
    for of, table in tables.items():
        asked = _asked(rankings, table)
        alone = reward_accuracy.length_judgements(asked)
        named = {**judges(table), reward_accuracy.LENGTH_ALONE: alone}
        first, last = reference(table), reward_accuracy.LENGTH_ALONE
        pairs = [(name, first) for name in named if name != first]
        pairs += [(name, last) for name in named if name != last]
        options = (resamples, seed, MEASURES)
        found = reward_accuracy.paired_differences(asked, named, pairs, *options)
        parts.append(found.assign(of=of))
    return _stacked(parts, DIFFERENCES)


def ways_costs(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tokens per response of every way: read, written, both (`tokens`). Length alone costs none.

    Columns: of, model (the way), way (in the step's table), responses, read, written, tokens.
    """
    rows = []
    for of, table in tables.items():
        for name, part in judges(table).items():
            n = part["response_id"].nunique()
            read, written = part["read"].sum() / n, part["tokens"].sum() / n
            cost = {"responses": n, "read": read, "written": written, "tokens": read + written}
            rows.append({"of": of, "model": name, "way": part["way"].iloc[0], **cost})
        nothing = dict.fromkeys(("read", "written", "tokens"), 0.0)
        alone = {"of": of, "model": reward_accuracy.LENGTH_ALONE, "way": "", **nothing}
        rows.append({**alone, "responses": table["response_id"].nunique()})
    return pd.DataFrame(rows, columns=list(COSTS))


def with_seconds(costs: pd.DataFrame, seconds: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """`ways_costs` with the column `seconds`, per response; `seconds` is by model and chunk.

    Unknown (NaN) for fewer draws than were timed. The implicit reward needs both likelihoods.
    """

    def per_response(row: pd.Series) -> float:
        spent = seconds.get(row["of"], {})
        chunk = TIMED.get(row["way"], row["way"])
        if row["way"] in ("additive", "multiple_choice") and not row["all_draws"]:
            return float("nan")
        total = spent.get(chunk, float("nan"))
        if chunk == "implicit_reward":
            total += spent.get("likelihood", float("nan"))
        return total / row["responses"] if chunk else 0.0

    most = costs.groupby(["of", "way"])["written"].transform("max")
    marked = costs.assign(all_draws=costs["written"] >= most)
    found = marked.apply(per_response, axis=1) if len(costs) else pd.Series(dtype=float)
    return costs.assign(seconds=found)


def _of_draws(rubric: str, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    k = int(rows["sample"].max()) + 1
    found = {_mean_of(rubric, n): rows[rows["sample"] < n] for n in draws_shown(k)}
    if k > 2:  # of two, all three are one
        for name, of in (("median", _median), ("mode", _mode)):
            found[f"{rubric}, {name} of {k}"] = _settled(rows, of)
    return found


def _mean_of(rubric: str, n: int) -> str:
    return f"{rubric}, one draw" if n == 1 else f"{rubric}, mean of {n}"


def _median(scores: pd.Series) -> float:
    return scores.median()


def _mode(scores: pd.Series) -> float:
    return scores.mode().mean()


def _settled(rows: pd.DataFrame, of) -> pd.DataFrame:
    """One judgement per response: a statistic of the draws that parsed, at the cost of all."""
    groups = rows.groupby(["response_id", "prompt_id", "way"], sort=False)
    sums = {"read": ("read", "sum"), "tokens": ("tokens", "sum"), "truncated": ("truncated", "any")}
    return groups.agg(score=("score", of), **sums).reset_index().assign(sample=0)


def _asked(rankings: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The rankings of the prompts that were judged: length alone is measured on the same ones."""
    return rankings[rankings["prompt_id"].isin(table["prompt_id"])]


def _stacked(parts: list[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    if not parts:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(parts, ignore_index=True)[list(columns)]
