"""Refining an answer, or training on one's own scores: the difference, and what each costs.

Self-Refine (arXiv 2303.17651) spends tokens on every prompt and leaves the weights as they are; the
loop spends them once. Here one model's single answer, its refined one, the best of N drafts for the
same tokens, and the models that the arms have arrived at answer the same test prompts (tables of
`srkit.self_refine`), and each is measured by what needs no judge (the oracle's constraints, those
that the prompts state), by the refined model's own scores, and by the study's referee.

Surprising decisions:
- A self-score is the opinion of the model that was refined, also of the other models' answers. It
  is what the best of N is chosen by, so there it rises by construction: it is no evidence.
- A round that a prompt did not reach has the answer that it stopped with, so that every round is
  measured on all prompts; `reached` says how many got there.
- Feedback is read by a program alone: is it empty, is it the answer once more, was it cut, does it
  ever stop? Small models fail here first (the paper's Vicuna-13B did). Whether it is good is open.
- Tokens are those read and written (see `srkit.self_refine`). What training took (written, read and
  trained on: `srkit.costs`) is in the manifest and is added where it is shown.

    python -c "from srkit.refine import MEASURES; print(*MEASURES)"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from rapidfuzz import fuzz

from srkit import constraints, costs, headtohead, stats
from srkit.reward_accuracy import mean_scores

ONE, REFINED, BEST = "one answer", "refined", "best of N"
# measure -> unit
MEASURES = {
    "oracle's score": "share",
    "constraints stated": "share",
    "self-score": "points",
    "length": "characters",
    "tokens": "tokens",
    "tokens written": "tokens",
    "drafts": "drafts",
}
QUALITY = ("oracle's score", "constraints stated", "self-score")
ALIKE = 90  # per cent of two texts that are the same (rapidfuzz's ratio): one repeats the other

ESTIMATE = ("value", "low", "high", "n")
ANSWERS = ("of", "way", "measure", "unit", "against", *ESTIMATE)
ROUNDS = ("of", "round", "reached", "measure", "unit", *ESTIMATE)
FEEDBACK = ("of", "what", *ESTIMATE, "count", "cases", "unit")
MATCHES = ("of", *headtohead.MATCH)
TRAINING = ("of", "way", *costs.TOKENS)
NUMBERS = dict.fromkeys(("value", "low", "high"), float)


@dataclass(frozen=True)
class Refined:
    """The tables of one model that refines: `<model>/refined`, `best_of`, `refined_judgements`,
    `refined_comparisons`, and the `responses` of the models that it is compared with, by name."""

    rounds: pd.DataFrame
    drafts: pd.DataFrame
    judgements: pd.DataFrame
    comparisons: pd.DataFrame
    others: Mapping[str, pd.DataFrame]


# --- answers, and what they took -----------------------------------------------------------------


def spent(rounds: pd.DataFrame) -> pd.DataFrame:
    """The rounds with `tokens` (read and written) and `tokens written` up to each answer.

    An answer is paid for by all feedback before it. `... in all` of a last answer also has that
    which ended the rounds.
    """
    rows = rounds.sort_values(["prompt_id", "round"], kind="stable").reset_index(drop=True)
    last = ~rows.duplicated("prompt_id", keep="last")
    for name, parts in (("tokens", ("read", "tokens")), ("tokens written", ("tokens",))):
        text, said = (sum(rows[f"{of}_{part}"] for part in parts) for of in ("text", "feedback"))
        upto = (text + said).groupby(rows["prompt_id"]).cumsum() - said
        rows = rows.assign(**{name: upto, f"{name} in all": upto + said.where(last, 0)})
    return rows.assign(
        response_id=[f"round {row.round}|{row.prompt_id}" for row in rows.itertuples()]
    )


def answers(model: str, tables: Refined) -> pd.DataFrame:
    """One row per way and prompt: what was answered, and what it took.

    Columns: way, prompt_id, response_id (of the judgements), text, tokens, tokens written, drafts.
    Another model is taken to read a prompt as the first one does.
    """
    rounds, drafts = spent(tables.rounds), tables.drafts
    first, last = rounds[rounds["round"] == 0], _paid_in_all(rounds.groupby("prompt_id").tail(1))
    drafts = drafts.assign(paid=drafts["text_tokens"] + drafts["judge_tokens"], n=1)
    paid = drafts.groupby("prompt_id")[["read", "paid", "n"]].sum()
    best = drafts[drafts["chosen"].astype(bool)].set_index("prompt_id")[["text"]].join(paid)
    best = best.reset_index().assign(tokens=lambda t: t["read"] + t["paid"])
    best = best.rename(columns={"paid": "tokens written", "n": "drafts"})
    parts = {ONE: first.assign(drafts=1), REFINED: last.assign(drafts=1)}
    parts[BEST] = best.assign(response_id=f"{model} {BEST}|" + best["prompt_id"])
    asked = first.set_index("prompt_id")["text_read"]
    for name, table in tables.others.items():
        mine = table[table["prompt_id"].isin(asked.index)].assign(drafts=1)
        both = mine["tokens"] + mine["prompt_id"].map(asked)
        mine = mine.assign(**{"tokens written": mine["tokens"], "tokens": both})
        parts[name] = mine.assign(response_id=f"{name}|" + mine["prompt_id"])
    columns = ["prompt_id", "response_id", "text", "tokens", "tokens written", "drafts"]
    found = [part[columns].assign(way=way) for way, part in parts.items()]
    return pd.concat(found, ignore_index=True)


def _paid_in_all(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(**{name: rows[f"{name} in all"] for name in ("tokens", "tokens written")})


def measured(
    rows: pd.DataFrame,
    prompts: pd.DataFrame,
    judgements: pd.DataFrame,
    oracle: Sequence[constraints.Constraint],
) -> pd.DataFrame:
    """The rows with a column per measure; None where a prompt states no constraint.

    `rows` have prompt_id, response_id and text; `prompts` are seed/test_prompts.
    """
    stated = prompts.set_index("id")["constraints"]
    scores = mean_scores(judgements).set_index("response_id")["score"]
    texts = rows["text"].astype(str)
    met = [
        all(constraints.check(text, one) for one in stated[of]) if stated[of] else None
        for text, of in zip(texts, rows["prompt_id"], strict=True)
    ]
    found = {
        "oracle's score": [constraints.points(text, oracle) / len(oracle) for text in texts],
        "constraints stated": pd.Series(met, index=rows.index, dtype=float),
        "self-score": rows["response_id"].map(scores).astype(float),
        "length": texts.str.len(),
    }
    return rows.assign(**found)


# --- the tables ----------------------------------------------------------------------------------


def ways_table(
    models: Mapping[str, Refined],
    prompts: pd.DataFrame,
    oracle: Sequence[constraints.Constraint],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Every measure of every way, as it is and as a paired difference from the one answer.

    Columns: of (the model that refines), way (`ONE`, `REFINED`, `BEST`, or a trained model),
    measure, unit, against ("" or `ONE`), value, low, high (95 %, by prompt), n (prompts).
    """
    options, rows = {"resamples": resamples, "seed": seed}, []
    for of, tables in models.items():
        table = measured(answers(of, tables), prompts, tables.judgements, oracle).assign(one=1)
        alone = table[table["way"] == ONE]
        for way, mine in table.groupby("way", sort=False):
            for measure, unit in MEASURES.items():
                if measure == "drafts" and way != BEST:
                    continue
                labels = {"of": of, "way": way, "measure": measure, "unit": unit}
                rows.append({**labels, "against": "", **_mean(mine, measure, unit, options)})
                if way != ONE:
                    pair = (_known(mine, measure), _known(alone, measure), (measure, "one"))
                    rows.append(
                        {**labels, "against": ONE, **stats.paired_bootstrap(*pair, **options)}
                    )
    return pd.DataFrame(rows, columns=list(ANSWERS)).astype(NUMBERS)


def rounds_table(
    models: Mapping[str, Refined],
    prompts: pd.DataFrame,
    oracle: Sequence[constraints.Constraint],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Every measure after each round, over all prompts: those that stopped keep their answer, and
    have paid for the feedback that ended it.

    Columns: of, round (0: before any feedback), reached (prompts that wrote an answer in it),
    measure, unit, value, low, high (95 %, by prompt), n (prompts).
    """
    options, rows = {"resamples": resamples, "seed": seed}, []
    for of, tables in models.items():
        table = measured(spent(tables.rounds), prompts, tables.judgements, oracle).assign(one=1)
        for t in range(int(table["round"].max()) + 1):
            so_far = table[table["round"] <= t].groupby("prompt_id").tail(1)
            so_far = pd.concat(
                [so_far[so_far["round"] == t], _paid_in_all(so_far[so_far["round"] < t])]
            )
            reached = int((table["round"] == t).sum())
            for measure, unit in MEASURES.items():
                if measure in table:
                    labels = {"of": of, "round": t, "reached": reached}
                    found = _mean(so_far, measure, unit, options)
                    rows.append({**labels, "measure": measure, "unit": unit, **found})
    return pd.DataFrame(rows, columns=list(ROUNDS)).astype(NUMBERS)


def feedback_table(
    models: Mapping[str, Refined], resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """What becomes of the feedback, and of what is written after it: shares.

    Columns: of, what, value, low, high (95 %, by prompt), n (prompts), count (of cases), cases,
    unit (feedbacks, refinements or prompts).
    """
    rows = []
    for of, tables in models.items():
        table = spent(tables.rounds)
        for what, unit, cases in _cases(table):
            found = stats.rate(cases, "hit", "one", resamples=resamples, seed=seed)
            counts = {"count": int(cases["hit"].sum()), "cases": len(cases), "unit": unit}
            rows.append({"of": of, "what": what, **found, **counts})
    return pd.DataFrame(rows, columns=list(FEEDBACK)).astype(NUMBERS)


def matches_table(
    models: Mapping[str, Refined], resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """The referee's comparisons: `headtohead.head_to_head` of each model's, with column `of`."""
    parts = [
        headtohead.head_to_head(tables.comparisons, resamples, seed).assign(of=of)
        for of, tables in models.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(MATCHES))


def amortised(ways: pd.DataFrame, training: pd.DataFrame, answered: Sequence[int]) -> pd.DataFrame:
    """Tokens per prompt of each way, its training included, when so many prompts are answered.

    `training` has a row per trained model, `TRAINING`; NaN where one of them is not known. Columns:
    of, way, prompts, tokens.
    """
    means = ways[(ways["measure"] == "tokens") & (ways["against"] == "")]
    table = means.merge(_once(training), on=["of", "way"], how="left", indicator="trained")
    table["once"] = table["once"].where(table["trained"] == "both", 0)
    table = table.merge(pd.DataFrame({"prompts": list(answered)}), how="cross")
    tokens = table["value"] + table["once"] / table["prompts"]
    return table.assign(tokens=tokens)[["of", "way", "prompts", "tokens"]]


def breaks_even(ways: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """After how many answered prompts a trained model, training included, has taken fewer tokens.

    Than refining every answer. Columns: of, way, prompts; models that never do are left out.
    """
    means = ways[(ways["measure"] == "tokens") & (ways["against"] == "")]
    refined = means[means["way"] == REFINED].set_index("of")["value"]
    table = _once(training).dropna().merge(means[["of", "way", "value"]], on=["of", "way"])
    saved = table["of"].map(refined).astype(float) - table["value"]
    table = table.assign(prompts=table["once"] / saved)
    return table.loc[saved > 0, ["of", "way", "prompts"]]


def _once(training: pd.DataFrame) -> pd.DataFrame:
    """All tokens of each training, as `once`: they are paid once."""
    tokens = training[list(costs.TOKENS)].sum(axis=1, skipna=False)
    return training[["of", "way"]].assign(once=tokens)


def _cases(table: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """What is counted, in which unit, and its cases: prompt_id, hit, one."""
    said, again = table[table["feedback"].notna()], table[table["round"] > 0]
    before = table.set_index(["prompt_id", "round"])["text"]
    earlier = [before[row.prompt_id, row.round - 1] for row in again.itertuples()]
    ended = table[table["ended"].notna()]
    feedback = said["feedback"].fillna("").str.strip()
    found = [
        ("feedback is empty", "feedbacks", said, feedback == ""),
        ("feedback repeats the answer", "feedbacks", said, _alike(feedback, said["text"])),
        ("feedback is cut", "feedbacks", said, said["feedback_truncated"]),
        ("refined answer is empty", "refinements", again, again["text"].str.strip() == ""),
        ("refined answer is the one before", "refinements", again, _alike(again["text"], earlier)),
        ("refined answer is cut", "refinements", again, again["truncated"]),
        ("stops at once", "prompts", ended, (ended["round"] == 0) & _ended(ended, "stop phrase")),
        ("never stops", "prompts", ended, _ended(ended, "rounds")),
        ("does not fit the context", "prompts", ended, _ended(ended, "context")),
    ]
    return [
        (
            what,
            unit,
            rows[["prompt_id"]].assign(hit=pd.Series(hit, rows.index).astype(float), one=1),
        )
        for what, unit, rows, hit in found
    ]


def _alike(left: pd.Series, right: Sequence[str]) -> list[bool]:
    """Whether texts say the same, up to a tenth of their characters; empty ones say nothing."""
    pairs = zip(left.str.strip(), right, strict=True)
    return [bool(a) and fuzz.ratio(a, b.strip()) >= ALIKE for a, b in pairs]


def _ended(rows: pd.DataFrame, how: str) -> pd.Series:
    return rows["ended"] == how


def _known(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    return rows[["prompt_id", measure, "one"]].dropna()


def _mean(rows: pd.DataFrame, measure: str, unit: str, options: dict[str, int]) -> dict:
    estimate = stats.rate if unit == "share" else stats.bootstrap
    columns = (measure, "one") if unit == "share" else ((measure, "one"),)
    return estimate(_known(rows, measure), *columns, **options)
