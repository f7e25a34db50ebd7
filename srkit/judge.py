"""The model as a judge: EFT targets, judgements of candidates and of held-out rankings.

A judgement is a rationale and a last line `Score: n` (paper section 2.2 and Figure 2), drawn K
times; a response's score is the mean of those that parse. The method `expected` asks instead for
the score token's probabilities after a forced "Score:" and takes their mean: no rationale, one
prefill, never unparsable (as d-RLAIF, arXiv 2309.00267, and G-Eval, arXiv 2303.16634). An external
judge may be asked as RLAIF asks instead: which of two is better, in both orders (`pairwise`).

Surprising decision: what does not parse has the score None. It is counted, never a number, and
so can never become the rejected response.

`judge_responses` judges plain rows, without a study; `make_judgements` makes a study's table.

    python -c "from srkit.judge import *; from srkit.models import load_policy; \\
        from srkit.config import Model; row = dict(prompt_id='p', prompt='Name a planet.'); \\
        print(judge_responses(load_policy(Model(name='tiny')), \\
        [{**row, 'response_id': 'r', 'response': 'Mars'}], method='expected'))"
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Literal

import numpy as np

from srkit import human, reward_model
from srkit.config import Judge, SrkitError, build
from srkit.constraints import parse, points
from srkit.engine import Engine, Sampling, open_engine
from srkit.plan import PAPER_ARM, REWARD_MODEL, SEEDED, compares
from srkit.prompts import (
    SCALES,
    SCORE_STOP,
    compare_prompt,
    judge_prompt,
    judgement_text,
    parse_score,
)
from srkit.reading import require_rows
from srkit.rows import Row, derive_seed, kept
from srkit.study import Study

if TYPE_CHECKING:
    from srkit.models import Policy

PLAIN = ("prompt_id", "response_id", "prompt", "response")  # what `judge_responses` reads
UNASKED = ("random", *SEEDED, "oracle")  # no model is asked
# another draw of these would say the same
ONCE = ("expected", "pairwise", *SEEDED, "oracle", REWARD_MODEL)

# --- EFT targets: what M1 learns to write --------------------------------------------------------


def rank_score(rank: int, ranks: int, rubric: str = "additive") -> int:
    """A score from a human rank: ranks 0 .. ranks-1 spread evenly from the top to 1.

    Scores are whole, so that neighbours share one where there are more ranks than scores.
    """
    top = SCALES[rubric][1]
    return top if ranks < 2 else round(top - rank * (top - 1) / (ranks - 1))


def agrees(scores: Sequence[float | None], ranks: Sequence[int]) -> bool:
    """Whether all scores are there and order the responses strictly as the ranks do."""
    if any(score is None for score in scores):
        return False
    by_rank = [s for _, s in sorted(zip(ranks, scores, strict=True), key=lambda pair: pair[0])]
    return all(better > worse for better, worse in pairwise(by_rank))


def thin_most_common(rows: list[Row], share: float, seed: int) -> None:
    """Mark rows of the most common score as dropped until its share of the kept is `share`.

    The paper discards part of the examples with the most common score (section 3.1.1); how many
    is not stated there.
    """
    used = kept(rows)
    if not used:
        return
    score, most = Counter(row["score"] for row in used).most_common(1)[0]
    others = len(used) - most
    allowed = max(int(share * others / (1 - share)), 1) if share < 1 and others else most
    common = [row for row in used if row["score"] == score]
    for row in random.Random(seed).sample(common, max(most - allowed, 0)):
        row["dropped"] = "most common score thinned"


def targets_from_reference(prompt: list[Row], rubric: str, explained: bool = True) -> list[Row]:
    """The seed's own judgements as targets; its scores alone unless `explained`.

    Raises: SrkitError if a row has none.
    """
    if any(row["score"] is None for row in prompt):
        raise SrkitError(
            f"The ranked responses to {prompt[0]['prompt_id']} have no reference judgements "
            "(Open Assistant has none). Set sft.eft_targets=self, as in the paper, or =rank."
        )
    low = SCALES[rubric][0]
    return [
        _target(row, max(row["score"], low), row["rationale"] if explained else None)
        for row in prompt
    ]


def targets_from_ranks(prompt: list[Row], rubric: str) -> list[Row]:
    """Scores spread evenly over the human ranks, without a rationale."""
    return [_target(row, rank_score(row["rank"], len(prompt), rubric), None) for row in prompt]


def targets_from_judgements(prompt: list[Row], judgements: dict[str, list[Row]]) -> list[Row]:
    """The baseline's own judgements where one draw orders all responses as the humans did.

    `judgements` are K rows by response id. The paper accepts a judgement only if its order agrees
    with the human ranking; whether of the whole prompt is not stated, and here it is.
    """
    ranks = [row["rank"] for row in prompt]
    draws = list(zip(*(judgements[row["id"]] for row in prompt), strict=True))
    for draw in draws:
        if agrees([judgement["score"] for judgement in draw], ranks):
            pairs = zip(prompt, draw, strict=True)
            return [_target(r, j["score"], None) | {"target": j["text"].strip()} for r, j in pairs]
    scored = any(all(j["score"] is not None for j in draw) for draw in draws)
    reason = "order differs from the human order" if scored else "not parsable"
    return [_target(row, None, None) | {"dropped": reason} for row in prompt]


def _target(row: Row, score: float | None, rationale: str | None) -> Row:
    target = None if score is None else judgement_text(rationale, score)
    base = {name: row[name] for name in ("id", "prompt_id", "prompt", "response", "rank")}
    return {**base, "score": score, "target": target, "dropped": None}


def make_eft_targets(study: Study) -> list[Row]:
    """Step `seed/eft_targets`: for every ranked training response the judgement that M1 learns.

    Rows that a filter dropped carry the reason: the survival report is a count of them. With
    `sft.eft_targets=self` the baseline judges first (step `baseline/eft_judgements`).
    Raises: SrkitError if no row is left, or there are no reference judgements to take.
    """
    config, name = study.config, "seed/eft_targets"
    ranked = study.read("seed/eft")
    source, rubric = config.sft.eft_targets, config.judge.rubric
    own: dict[str, list[Row]] = defaultdict(list)
    if source == "self":
        step = "baseline/eft_judgements"
        draws = config.sft.eft_samples
        for row in make_judgements(study, step, "baseline", ranked, draws, method="sampled"):
            own[row["response_id"]].append(row)

    def targets(prompts: Sequence[list[Row]], _: list[Row]) -> list[Row]:
        make = {
            "reference": lambda prompt: targets_from_reference(prompt, rubric),
            "score": lambda prompt: targets_from_reference(prompt, rubric, explained=False),
            "rank": lambda prompt: targets_from_ranks(prompt, rubric),
            "self": lambda prompt: targets_from_judgements(prompt, own),
        }[source]
        rows = [row for prompt in prompts for row in make(prompt)]
        thin_most_common(rows, config.sft.eft_modal_share, derive_seed(config.random_seed, name))
        return rows

    by_prompt = list(by(ranked, "prompt_id").values())
    rows = study.make_table(name, by_prompt, targets, chunk=len(by_prompt))
    if not kept(rows):
        raise SrkitError(
            f"No EFT target is left of {len(rows)}: {survival(rows)}. The baseline cannot judge in "
            "the form asked for; raise sft.eft_samples, use a larger model, or set "
            "sft.eft_targets=rank (or =reference with the kit's seed)."
        )
    return rows


def survival(rows: list[Row]) -> dict[str, int]:
    """How many rows each filter dropped, by reason, and how many are `kept`."""
    return dict(Counter(row["dropped"] or "kept" for row in rows))


# --- judging -------------------------------------------------------------------------------------


def judge_responses(
    policy: Policy | Engine,
    rows: Sequence[Row],
    rubric: str = "additive",
    samples: int = 3,
    method: Literal["sampled", "expected"] = "sampled",
    seed: int = 0,
    **sampling: float,
) -> list[Row]:
    """Judge plain rows by a model, without a study: K judgements per response, in order.

    `policy` is what `models.open_policy` or `models.load_policy` returns, or any engine. `rows`
    have prompt_id, response_id (of one row each), prompt and response. `sampling` may hold
    temperature, top_p and max_tokens; all defaults are those of `config.Judge`. An expected score
    needs no second draw, so it is one row per response, whatever `samples` says.

    Returns rows of response_id, prompt_id, sample (0 .. K-1), score (None where none can be read),
    text (None if expected), tokens, truncated, as a study's table has them. The same seed gives the
    same draws, whatever other rows there are.

    Raises: SrkitError for no rows, a missing column, an id that stands twice, an illegal setting.
    """
    given = {"rubric": rubric, "method": method, "samples": samples, **sampling}
    settings = build({"judge": given}, {}, "judge_responses").judge
    require_rows(rows, PLAIN, "judge_responses", unique="response_id")
    if not hasattr(policy, "score_options"):
        from srkit.generate import HfEngine

        policy = HfEngine(policy)
    named = [{**row, "id": row["response_id"]} for row in rows]
    seeds = _seeds(seed, "judge_responses", named, settings)
    return _rows(named, _ASKED[method](policy, named, seeds, settings))


def make_judgements(
    study: Study,
    step: str,
    model: str,
    responses: list[Row],
    samples: int | None = None,
    method: str | None = None,
) -> list[Row]:
    """Make a judgements table: K rows per response, in order.

    `responses` have `id, prompt_id, prompt` and the text as `response` or `text`; `model` is the
    judge's name in the study. The settings are those of the step's arm; `samples` and `method`
    take the place of its K and its method.
    """
    settings = study.settings(study.step(step)).judge
    unasked = settings.source in UNASKED and "/iter-" in step
    method = method or (settings.source if unasked else settings.method)
    if model == REWARD_MODEL:
        method = REWARD_MODEL

    def work(part: Sequence[list[Row]], _: list[Row]) -> list[Row]:
        rows = [row for group in part for row in group]
        return draw_judgements(study, step, model, rows, settings, samples, method)

    if method == "pairwise":  # a prompt's responses are judged together
        groups = list(by(responses, "prompt_id").values())
        return study.make_table(step, groups, work, chunk=max(1, settings.chunk // len(groups[0])))
    return study.make_table(step, [[row] for row in responses], work, chunk=settings.chunk)


def draw_judgements(
    study: Study,
    name: str,
    model: str,
    responses: Sequence[Row],
    settings: Judge,
    samples: int | None = None,
    method: str | None = None,
) -> list[Row]:
    """The rows of `make_judgements`, without a table; `name` is where their seeds come from."""
    method = method or settings.method
    given = {"samples": samples or settings.samples, "method": method}
    seeds = _seeds(study.config.random_seed, name, responses, settings.model_copy(update=given))
    if method == REWARD_MODEL:
        found = reward_model.rewards(study, responses)
        return _rows(responses, [[reward_model.judgement(reward)] for reward in found])
    if method in UNASKED:
        return _rows(responses, _unasked(study, method, responses, seeds, settings))
    return _rows(responses, _ASKED[method](open_engine(study, model), responses, seeds, settings))


def _seeds(seed: int, name: str, responses: Sequence[Row], settings: Judge) -> list[list[int]]:
    count = 1 if settings.method in ONCE else settings.samples
    return [[derive_seed(seed, name, row["id"], k) for k in range(count)] for row in responses]


def _rows(responses: Sequence[Row], drawn: list[list[Row]]) -> list[Row]:
    return [
        {
            "id": f"{row['id']}@{k}",
            "response_id": row["id"],
            "prompt_id": row["prompt_id"],
            "sample": k,
            **judgement,
        }
        for row, judgements in zip(responses, drawn, strict=True)
        for k, judgement in enumerate(judgements)
    ]


def _prompts(part: Sequence[Row], settings: Judge) -> list:
    return [judge_prompt(settings.rubric, row["prompt"], _text_of(row)) for row in part]


def _text_of(response: Row) -> str:
    return response.get("response", response.get("text"))


def _sampled_scores(engine: Engine, part, seeds, settings: Judge) -> list[list[Row]]:
    sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_p, SCORE_STOP)
    drawn = engine.sample(_prompts(part, settings), len(seeds[0]), sampling, seeds)
    return [
        [
            {
                "text": c.text,
                "score": parse_score(c.text, settings.rubric),
                "tokens": c.tokens,
                "truncated": c.truncated,
            }
            for c in completions
        ]
        for completions in drawn
    ]


def _expected_scores(engine: Engine, part, seeds, settings: Judge) -> list[list[Row]]:
    low, high = SCALES[settings.rubric]
    values = np.arange(low, high + 1)
    forced = {"role": "assistant", "content": "Score:"}
    prompts = [[*prompt, forced] for prompt in _prompts(part, settings)]
    logs = engine.score_options(prompts, [f" {v}" for v in values])
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))  # (responses, scores)
    expected = (weights * values).sum(axis=1) / weights.sum(axis=1)
    return [
        [
            {
                "text": None,
                "score": round(float(e), 6) if np.isfinite(e) else None,  # half precision overflows
                "tokens": 0,
                "truncated": False,
            }
        ]
        for e in expected
    ]


def _pairwise_scores(engine: Engine, part, seeds, settings: Judge) -> list[list[Row]]:
    """Five times the share of a prompt's other responses that a response is preferred to.

    Each two are compared in both orders by the probability of "A" against "B" (RLAIF, arXiv
    2309.00267, section 3.1), so that a constant preference for a place favours neither.
    """
    pairs = [
        two for rows in by(part, "prompt_id").values() for two in permutations(rows, 2)
    ]  # (comparisons,), each two twice
    prompts = [compare_prompt(a["prompt"], *(_text_of(row) for row in (a, b))) for a, b in pairs]
    logs = engine.score_options(prompts, [" A", " B"]) if pairs else np.zeros((0, 2))
    won: dict[str, list[float]] = defaultdict(list)
    for (first, second), odds in zip(pairs, logs[:, 0] - logs[:, 1], strict=True):
        if math.isfinite(odds):
            share = (1 + math.tanh(odds / 2)) / 2  # sigmoid
            won[first["id"]].append(share)
            won[second["id"]].append(1 - share)
    scores = [won[row["id"]] for row in part]
    means = [round(5 * math.fsum(s) / len(s), 6) if s else None for s in scores]
    return [[{"text": None, "score": s, "tokens": 0, "truncated": False}] for s in means]


_ASKED = {
    "expected": _expected_scores,
    "sampled": _sampled_scores,
    "pairwise": _pairwise_scores,
}


def _unasked(study: Study, method: str, part, seeds, settings: Judge) -> list[list[Row]]:
    """Coin flips, the ranks of the seed, or points for constraints."""
    if method == "random":
        low, high = SCALES[settings.rubric]
        return [[_unwritten(random.Random(s).randint(low, high)) for s in row] for row in seeds]
    if method in SEEDED:
        return [[_unwritten(human.score(row["rank"]))] for row in part]
    constraints = parse(study.config.arms.oracle)
    return [[_unwritten(points(row["text"], constraints))] for row in part]


def _unwritten(score: float) -> Row:
    """A judgement that no model wrote."""
    return {"text": None, "score": float(score), "tokens": 0, "truncated": False}


def judge_candidates(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/judgements`: M_t judges its own candidates, or who the arm says does."""
    folder = f"{arm}/iter-{iteration}"
    if study.step(f"{folder}/judgements").same_as:
        judge_candidates(study, PAPER_ARM, iteration)
        return study.copy_table(f"{folder}/judgements")
    responses, judge = study.read(f"{folder}/candidates"), _judge_of(study, arm, iteration)
    if judge == REWARD_MODEL:
        reward_model.make_reward_model(study)
        judge_held_out(study, REWARD_MODEL)
    method = "pairwise" if compares(study.config.for_arm(arm)) else None
    return make_judgements(study, f"{folder}/judgements", judge, responses, method=method)


def judge_anchors(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/anchor_judgements`: who judges the candidates judges the anchors."""
    folder = f"{arm}/iter-{iteration}"
    responses, judge = study.read(f"{folder}/anchors"), _judge_of(study, arm, iteration)
    return make_judgements(study, f"{folder}/anchor_judgements", judge, responses)


def _judge_of(study: Study, arm: str, iteration: int) -> str:
    config = study.config.for_arm(arm)
    source = config.judge.source
    judges = {"external": config.arms.external_judge, REWARD_MODEL: REWARD_MODEL}
    return judges.get(source) or study.policy_before(arm, iteration)


def judge_held_out(study: Study, model: str) -> list[Row]:
    """Step `<model>/judgements`: the model, or the reward model, judges the held-out responses."""
    samples = study.config.eval.judge_samples
    return make_judgements(
        study, f"{model}/judgements", model, study.read("seed/eft_eval"), samples
    )


# --- scores --------------------------------------------------------------------------------------


def mean_scores(judgements: list[Row]) -> dict[str, float | None]:
    """Mean of the parsable scores by response id; None where none parses."""
    scores = {
        response: [row["score"] for row in rows if row["score"] is not None]
        for response, rows in by(judgements, "response_id").items()
    }
    # fsum: the same scores in another order are a tie, to the last bit.
    return {response: math.fsum(s) / len(s) if s else None for response, s in scores.items()}


def by(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    """Rows in groups of one value, both in the order of their first appearance."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups
