"""Blind spots: what a model gets wrong and does not see, and what iterations make of it.

An item (`srkit.blind_items`) is a blind spot of a model if its own answer is wrong and it scores
that answer at least as high as the right one. On such items a loop that learns from its own scores
has nothing to learn from, or learns what is wrong. So each model is compared with the one that its
arm started from: were the start's blind spots repaired, are they seen now, kept, or amplified? The
arms `random-judge` and `oracle`, where the study has them, say what coins and another judge do.

Surprising decisions:
- No threshold says what a high score is. Small judges hardly use their scale, and any number would
  take all of their answers or none; the right answer to the same item is what a score has to be
  above. A tie is a blind spot too: no pair would come of it.
- Scores of two models are on two scales. A blind spot is amplified where the model's own wrong
  answer is further above the key than the start's was, which noise alone does to half of what is
  kept: read it beside the controls.
- A model is also asked whether a given right answer scores above a given wrong one, in the same
  words but for the key (`prefers`). There its own style of writing cannot matter.

    python -c "from srkit.blind_spots import MEASURES; print(*MEASURES)"
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from srkit import stats

RIGHT, SEEN, BLIND = "right", "wrong, seen", "blind spot"
FATES = ("repaired", "seen", "kept", "amplified")
# measure -> unit; shares of all items, but `unseen` and `margin` of those answered wrongly
MEASURES = {
    "right": "share",
    "blind": "share",
    "unseen": "share",
    "prefers": "share",  # the key over the wrong answer, both given; a tie half
    "margin": "points",  # own wrong answer less the key
}
TABLE = ("model", "kind", "measure", "unit", "against", "value", "low", "high", "n")
TRANSITIONS = ("model", "start", "before", "after", "count", "value", "low", "high", "n")
COLUMNS = ("prompt_id", "kind", "shown", "right", "score")
Tables = Mapping[str, pd.DataFrame]


def states(table: pd.DataFrame) -> pd.DataFrame:
    """A row per item of `<model>/blind_spots`: prompt_id, kind, state, and `MEASURES`.

    An answer whose score, or the key's, did not parse has the state None unless it is right.
    """
    rows = stats.require(table, COLUMNS, "blind_spots")
    rows = rows.assign(score=pd.to_numeric(rows["score"]))
    scores = rows.pivot(index="prompt_id", columns="shown", values="score")
    own = rows[rows["shown"] == "own"].set_index("prompt_id")
    right, margin = own["right"].astype(bool), scores["own"] - scores["key"]
    gap = scores["key"] - scores["wrong"]
    scored = margin.notna()
    blind = margin.ge(0).astype(float)
    state = blind.map({1.0: BLIND, 0.0: SEEN}).astype(object).where(scored, None)
    state = state.reindex(own.index).mask(right, RIGHT)  # the scores are sorted by id
    made = {
        "kind": own["kind"],
        "state": state,
        "right": right.astype(float),
        "blind": blind.where(~right, 0.0).where(scored | right),
        "unseen": blind.where(~right & scored),
        "prefers": (gap.gt(0) + gap.eq(0) / 2).where(gap.notna()),
        "margin": margin.where(~right),
    }
    return pd.DataFrame(made, index=own.index).reset_index()


def measures(
    tables: Tables,
    starts: Mapping[str, str],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """What each model knows and sees: `TABLE`, for all items and for each kind of them.

    `tables` are `<model>/blind_spots` by model, `starts` names the model that its arm started from.
    value, low, high (95 %, by item), n (items). Rows with `against` are paired differences from
    that model on the items that both have.
    """
    options, rows = {"resamples": resamples, "seed": seed}, []
    known = {model: states(table).assign(one=1.0) for model, table in tables.items()}
    for model, items in known.items():
        for kind in ("all", *dict.fromkeys(items["kind"])):
            part = items if kind == "all" else items[items["kind"] == kind]
            for measure, unit in MEASURES.items():
                labels = {"model": model, "kind": kind, "measure": measure, "unit": unit}
                rows.append({**labels, "against": "", **_level(part, measure, unit, options)})
                if kind == "all" and starts.get(model) in known:
                    pair = [t.dropna(subset=measure) for t in (items, known[starts[model]])]
                    found = stats.paired_bootstrap(*pair, (measure, "one"), **options)
                    rows.append({**labels, "against": starts[model], **found})
    numbers = dict.fromkeys(("value", "low", "high", "n"), float)
    return pd.DataFrame(rows, columns=list(TABLE)).astype(numbers)


def _level(
    items: pd.DataFrame, measure: str, unit: str, options: Mapping[str, int]
) -> stats.Estimate:
    scored = items.dropna(subset=measure)
    if unit == "share":
        return stats.rate(scored, measure, "one", **options)
    return stats.bootstrap(scored, (measure, "one"), **options)


def transitions(tables: Tables, starts: Mapping[str, str]) -> pd.DataFrame:
    """Where the start's items are in each model of its arms: `TRANSITIONS`.

    Rows: each state `before`, at the start, with each state `after`; and for the start's blind
    spots each of `FATES`. count of n items that were in that state and have one now; value, low,
    high: its share, with Wilson's 95 % interval.
    """
    rows = []
    known = {model: states(table).set_index("prompt_id") for model, table in tables.items()}
    for model in (m for m in known if starts.get(m) in known):
        both = known[starts[model]].join(known[model], rsuffix="_after", how="inner")
        both = both.dropna(subset=["state", "state_after"])
        for before in (RIGHT, SEEN, BLIND):
            part = both[both["state"] == before]
            labels = {"model": model, "start": starts[model], "before": before}
            counts = {after: (part["state_after"] == after).sum() for after in (RIGHT, SEEN, BLIND)}
            if before == BLIND:
                counts |= _fates(part)
            rows += [
                {**labels, "after": after, "count": n, **stats.wilson(int(n), len(part))}
                for after, n in counts.items()
            ]
    numbers = dict.fromkeys(("count", "value", "low", "high", "n"), float)
    return pd.DataFrame(rows, columns=list(TRANSITIONS)).astype(numbers)


def _fates(blind: pd.DataFrame) -> dict[str, int]:
    """What became of the start's blind spots, in the order of `FATES`."""
    still = blind["state_after"] == BLIND
    grown = still & (blind["margin_after"] > blind["margin"])
    repaired, seen = (blind["state_after"] == state for state in (RIGHT, SEEN))
    found = (repaired.sum(), seen.sum(), (still & ~grown).sum(), grown.sum())
    return dict(zip(FATES, found, strict=True))


def fates(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `transitions` that tell what became of the start's blind spots."""
    return table[table["after"].isin(FATES)]
