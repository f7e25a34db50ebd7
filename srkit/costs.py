"""What each arm took, and what it got for it: tokens, seconds, memory, energy, gain per token.

The manifest knows what every step took; here it is added up per arm and iteration, as if the arm
had been made alone: what it copies from the paper's arm counts as if it had drawn it. What all arms
share (the seed models, and what is only measured) is left out.

Surprising decisions: tokens are those that went through the model: written, read (a prompt once for
all draws from it, a beginning that prompts share each time; a pair once by DPO's reference) and
trained on (every epoch, both sides of a pair with its prompt). A token trained on costs about three
times one that is read, and a token that is written costs a pass of its own: seconds say that,
tokens do not. A sum with a part that is not known (studies of earlier versions did not count all
that was read, nor drafts of prompts) is not known. `peak_mb` is the most that a process held since
it began, on a GPU since the step began: what the process made before counts on a CPU. Joules are
those of the GPUs that the process may use, where NVML gives them, of the last attempt if a step was
interrupted. A gain is the difference from the model that the arm started from, so a gain per token
can be negative.

    python -c "from srkit import costs, study; \\
        print(costs.by_arm(costs.ledger(study.Study.open('runs/first'))))"
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from srkit.ablations import Run, last_iteration
from srkit.rows import Row

TOKENS = ("written", "read", "trained")
COUNTS = ("rows", "examples", "updates")
LEDGER = ("arm", "iteration", "model", "part", *COUNTS, *TOKENS, "seconds", "peak_mb", "joules")
SPENT = (*TOKENS, "tokens", "seconds", "peak_mb", "joules")
GAINED = ("judge accuracy", "win rate", "constraints met", "oracle's score")
GAINS = ("arm", "model", "outcome", "against", "value", "low", "high", "n", "tokens", "per_million")
LEVEL = 0.5  # a win rate is against the start already: half is no gain


def ledger(finished: Sequence[tuple[Run, str, Row]]) -> pd.DataFrame:
    """What every step of every iteration took, a row each: `LEDGER`.

    `finished` are the iteration, the part and the manifest's line of a step. `rows` are those of
    its table, `examples` and `updates` those of a training. What is not known is NaN.
    """
    rows = [{**_labels(run), "part": part, **taken(record, part)} for run, part, record in finished]
    numbers = [name for name in LEDGER if name not in ("arm", "model", "part", "iteration")]
    return pd.DataFrame(rows, columns=list(LEDGER)).astype(dict.fromkeys(numbers, float))


def _labels(run: Run) -> Row:
    return {"arm": run.arm, "iteration": run.iteration, "model": run.model}


def taken(record: Row, part: str) -> Row:
    """One manifest line in the words of the ledger; None: not known."""
    peaks, read = record["peak_memory_mb"], record.get("read")
    found = {name: record.get(name) for name in ("seconds", "joules", "examples")}
    found |= {"updates": record.get("steps"), "rows": record.get("rows")}
    found["peak_mb"] = peaks.get("cuda") or peaks.get("cpu")
    if "steps" in record:  # of a training
        return found | {"written": 0, "read": read, "trained": record.get("tokens")}
    asked = record.get("endpoint") or {}
    read = None if read is None else read + asked.get("prompt_tokens", 0)
    if "written" in record:
        written = record["written"] + asked.get("completion_tokens", 0)
    elif part == "prompts" and read != 0:  # earlier versions did not count drafts
        written = None
    else:
        written = record.get("tokens")
    return found | {"written": written, "read": read, "trained": 0}


def added(records: Sequence[Row], part: str) -> Row:
    """Seconds and tokens of all kinds that several manifest lines of one part took."""
    lines = [taken(record, part) for record in records]
    table = pd.DataFrame(lines, columns=["seconds", *TOKENS]).astype(float)
    tokens = table[list(TOKENS)].to_numpy().sum()  # NaN where one of them is not known
    return {"seconds": table["seconds"].sum(), "tokens": tokens}


def as_outcomes(ledger: pd.DataFrame) -> pd.DataFrame:
    """Seconds and tokens from an arm's start to each of its models, for `ablations.with_costs`."""
    keys, kinds = ["arm", "iteration", "model"], ["seconds", "tokens"]
    spent = ledger.assign(tokens=ledger[list(TOKENS)].sum(axis=1, skipna=False))
    sums = spent.groupby(keys, sort=False)[kinds].agg(lambda column: column.sum(skipna=False))
    table = sums.reset_index().sort_values("iteration", kind="stable")
    table[kinds] = table.groupby("arm")[kinds].transform(lambda c: c.cumsum(skipna=False))
    return table.sort_index().melt(keys, var_name="outcome", value_name="value")


def budgets(ledger: pd.DataFrame) -> pd.DataFrame:
    """What each iteration of each arm had to learn from: a row per arm and iteration.

    Columns: arm, iteration, drafts (of prompts, dropped ones included), candidates, judgements,
    examples (trained on) and updates. Arms are on one budget where these are equal; `pairs.most`
    makes the examples so.
    """
    keys, rows = (
        ["arm", "iteration"],
        ledger.pivot_table(index=["arm", "iteration"], columns="part", values="rows", sort=False),
    )
    trained = ledger[ledger["part"] == "adapter"].set_index(keys)[["examples", "updates"]]
    drawn = rows.reindex(columns=["prompts", "candidates", "judgements"])
    drawn = drawn.rename(columns={"prompts": "drafts"})
    return drawn.join(trained, how="outer", sort=False).reset_index()


def by_arm(ledger: pd.DataFrame, price_per_hour: float = 0.0) -> pd.DataFrame:
    """What each arm took in all iterations: arm, `SPENT`, price.

    `tokens` is the sum of the three kinds, `peak_mb` the highest; `price` is the seconds at a price
    per hour, NaN without one.
    """
    parts = ledger.groupby("arm", sort=False)
    sums = parts[[*TOKENS, "seconds", "joules"]].agg(lambda column: column.sum(skipna=False))
    sums["peak_mb"] = parts["peak_mb"].max()
    sums["tokens"] = sums[list(TOKENS)].sum(axis=1, skipna=False)
    sums["price"] = sums["seconds"] / 3600 * (price_per_hour or float("nan"))
    return sums[[*SPENT, "price"]].reset_index()


def gains(outcomes: pd.DataFrame, spent: pd.DataFrame) -> pd.DataFrame:
    """What each arm gained by its last iteration, and per million tokens: `GAINS`.

    `outcomes` is `ablations.compare`, `spent` is `by_arm`. `value` (with its 95 % interval) is the
    paired difference from the arm's start, a share; of a win rate what it has more than half.
    """
    rows = last_iteration(outcomes)
    rows = rows[(rows["arm"] != "") & rows["outcome"].isin(GAINED)]
    wins = rows[(rows["outcome"] == "win rate") & (rows["against"] == "")].copy()
    wins[["value", "low", "high"]] -= LEVEL
    starts = outcomes.loc[outcomes["iteration"] == 0, "model"].unique()
    table = pd.concat([rows[rows["against"].isin(starts)], wins], ignore_index=True)
    table["tokens"] = table["arm"].map(spent.set_index("arm")["tokens"]).astype(float)
    table["per_million"] = table["value"] / table["tokens"] * 1e6
    order = {name: place for place, name in enumerate(GAINED)}
    return table.sort_values("outcome", key=lambda names: names.map(order), kind="stable")[
        list(GAINS)
    ].reset_index(drop=True)
