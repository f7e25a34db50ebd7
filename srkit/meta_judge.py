"""Pairs that teach judging: M_t writes judgements, compares them itself, and learns from the best.

Meta-Rewarding (arXiv 2407.19594) adds a third role to the model. Of each prompt the response is
taken whose written judgements vary most; M_t reads every two of them, in both orders, and says
which is better (`prompts/meta_judge.txt`); the best against the worst is a pair for DPO, trained
together with those of responses.

Surprising decisions:
- The judgements are drawn for this alone (`pairs.judge_draws` of each response): the responses are
  scored and paired as in the paper's arm, whatever the method, so that the pairs of judgements are
  all that differs.
- A comparison is read as log-odds of A and B, as the referee's are. Their mean over both orders is
  free of a constant preference for a place, which Meta-Rewarding removes by weighing wins by their
  place; and the mean over all rivals, which all have met, is the least-squares Bradley-Terry
  strength, where it computes Elo scores.
- Judgements that do not parse take no part, equal ones count once. Where none differ there is no
  pair: a judge that always says the same has nothing to teach itself. Long judgements stay in;
  `judge.max_tokens` bounds them (Meta-Rewarding drops chosen ones above 1,000 characters or so).

    python -c "from srkit.meta_judge import *; print(strengths(['a', 'b'], [ \\
        dict(left='a', right='b', log_odds_left=x) for x in (3.0, 1.0)]))"
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from statistics import pvariance

from srkit.evaluate import Match, compare
from srkit.judge import by, make_judgements
from srkit.pairs import best_worst
from srkit.prompts import judge_prompt, meta_judge_prompt
from srkit.rows import Row
from srkit.study import Study


def make_judge_draws(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/judge_draws`: K written judgements by M_t of each of its candidates."""
    folder, judge = f"{arm}/iter-{iteration}", study.policy_before(arm, iteration)
    responses, draws = study.read(f"{folder}/candidates"), study.config.for_arm(arm).pairs
    step = f"{folder}/judge_draws"
    return make_judgements(study, step, judge, responses, draws.judge_draws, "sampled")


def make_meta_judgements(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/meta_judgements`: M_t compares judgements of one response a prompt.

    Two rows for every two judgements, one per order, as comparisons of answers have them; left and
    right are ids of judgements.
    """
    folder, judge = f"{arm}/iter-{iteration}", study.policy_before(arm, iteration)
    tasks, matches = _tasks(study, arm, iteration), []
    for prompt, draws in by(study.read(f"{folder}/judge_draws"), "prompt_id").items():
        judgements = most_varied(draws)
        for left, right in () if isinstance(judgements, str) else combinations(judgements, 2):
            ids, texts = (left["id"], right["id"]), (left["text"].strip(), right["text"].strip())
            matches.append(Match(prompt, tasks[left["response_id"]], *ids, *texts))
    work = partial(compare, study, judge, meta_judge_prompt)
    return study.make_table(f"{folder}/meta_judgements", matches, work, chunk=32)


def make_judge_pairs(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/judge_pairs`: a row per prompt, its pair of judgements or why not.

    A pair's `prompt` is the message that asks for a judgement, so that it is trained on like any.
    """
    folder = f"{arm}/iter-{iteration}"
    tasks = _tasks(study, arm, iteration)
    draws = by(study.read(f"{folder}/judge_draws"), "prompt_id")
    compared = by(study.read(f"{folder}/meta_judgements"), "prompt_id")

    def work(part: Sequence[str], _: list[Row]) -> list[Row]:
        return [judge_pair_of(i, draws[i], compared.get(i, []), tasks) for i in part]

    return study.make_table(f"{folder}/judge_pairs", list(draws), work, chunk=1000)


def most_varied(draws: Sequence[Row]) -> list[Row] | str:
    """Different readable judgements of the response of a prompt whose scores vary most, or why
    there are none. The first among equals stands, of responses and of judgements."""
    read = by([row for row in draws if row["score"] is not None], "response_id")
    spread = {i: pvariance(row["score"] for row in rows) for i, rows in read.items()}
    widest = max(spread, key=spread.get, default=None)
    if widest is None:
        return "no judgement can be read"
    if spread[widest] == 0:
        return "judgements agree"
    different: dict[str, Row] = {}
    for row in read[widest]:
        different.setdefault(row["text"].strip(), row)
    return list(different.values())


def strengths(judgements: Sequence[str], comparisons: Sequence[Row]) -> list[float]:
    """Least-squares Bradley-Terry strengths in nats, whose sum is 0, from comparisons of each two.

    With d(i, j) the log-odds of i against j, mean of both orders, the strength of i is the sum of
    d(i, j) over its rivals, divided by the number of judgements. A match in which one order gave no
    answer counts as even.
    """
    totals = dict.fromkeys(judgements, 0.0)
    matches: dict[tuple[str, str], list[float | None]] = {}
    for row in comparisons:
        matches.setdefault((row["left"], row["right"]), []).append(row["log_odds_left"])
    for (left, right), odds in matches.items():
        if None not in odds:
            totals[left] += sum(odds) / len(odds)
            totals[right] -= sum(odds) / len(odds)
    return [total / len(totals) for total in totals.values()]


def judge_pair_of(
    prompt: str, draws: Sequence[Row], comparisons: Sequence[Row], tasks: dict[str, str]
) -> Row:
    """The row of one prompt: its best judgement against its worst, or `dropped` with the reason.

    `tasks` are the messages that ask for a judgement, by response id.
    """
    judgements = most_varied(draws)
    if isinstance(judgements, str):
        return {"id": prompt, "dropped": judgements}
    found = strengths([row["id"] for row in judgements], comparisons)
    places = best_worst(found)
    if isinstance(places, str):
        return {"id": prompt, "dropped": places}
    response = judgements[0]["response_id"]
    row = {"id": prompt, "response_id": response, "prompt": tasks[response], "dropped": None}
    for side, place in zip(("chosen", "rejected"), places, strict=True):
        judgement = judgements[place]
        row |= {side: judgement["text"].strip(), f"{side}_strength": round(found[place], 6)}
        row |= {f"{side}_{name}": judgement[name] for name in ("id", "score", "tokens")}
        row[f"{side}_truncated"] = judgement["truncated"]
    return row


def _tasks(study: Study, arm: str, iteration: int) -> dict[str, str]:
    rubric, rows = study.config.for_arm(arm).judge.rubric, f"{arm}/iter-{iteration}/candidates"
    return {
        row["id"]: judge_prompt(rubric, row["prompt"], row["text"])[0]["content"]
        for row in study.read(rows)
    }
