"""Candidates and preference pairs (paper section 2.2 and 3.1.3).

N responses are drawn per new prompt from M_t; the pair of a prompt is its best-scored response
against its worst-scored one, and a prompt whose best and worst tie gives none. Three other rules:
`pairs.rho` prefers short among the good and long among the bad, `pairs.within` pairs only what is
about equally long (both in characters), `pairs.anchor` lets another model's answers be rejected.

Surprising decisions: every prompt keeps its row, with the reason where it gave no pair; among
several equally good (or bad) responses the first sample stands; too few pairs stop the iteration.
Of Temporal Self-Rewarding the anchors are here, not its second phase (a future model's answers).

    python -c "from srkit.pairs import best_worst; print(best_worst([3.0, None, 1.0]))"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import pandas as pd

from srkit import human
from srkit.config import Candidates, Pairs, SrkitError
from srkit.engine import Sampling, open_engine
from srkit.health import check_health
from srkit.judge import by, mean_scores
from srkit.plan import PAPER_ARM
from srkit.prompts import user
from srkit.rows import Row, derive_seed, kept
from srkit.study import Study


def make_candidates(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/candidates`: N responses of M_t to each new prompt."""
    folder = f"{arm}/iter-{iteration}"
    config = study.config.for_arm(arm)
    if study.step(f"{folder}/candidates").same_as:
        make_candidates(study, PAPER_ARM, iteration)
        return study.copy_table(f"{folder}/candidates")
    if config.judge.source == "human":
        return human.make_candidates(study, arm, iteration)
    settings, policy = config.candidates, study.policy_before(arm, iteration)
    if config.judge.source == "seed":
        settings = settings.model_copy(update={"n": 1})  # one stands against the seed's response

    def work(part: Sequence[Row], _: list[Row]) -> list[Row]:
        rows = draw_responses(study, folder, policy, part, settings)
        return human.beside_the_seed(study, part, rows) if config.judge.source == "seed" else rows

    prompts = kept(study.read(f"{folder}/prompts"))
    return study.make_table(f"{folder}/candidates", prompts, work, chunk=settings.chunk)


def make_anchors(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/anchors`: N responses of `pairs.anchor` to each new prompt."""
    name, config = f"{arm}/iter-{iteration}/anchors", study.config.for_arm(arm)
    settings, model = config.candidates, config.pairs.anchor

    def work(part: Sequence[Row], _: list[Row]) -> list[Row]:
        rows = draw_responses(study, name, model, part, settings)
        return [{**row, "id": f"{row['prompt_id']}#{model}-{row['sample']}"} for row in rows]

    prompts = kept(study.read(f"{arm}/iter-{iteration}/prompts"))
    return study.make_table(name, prompts, work, chunk=settings.chunk)


def draw_responses(
    study: Study, seeds_of: str, model: str, prompts: Sequence[Row], settings: Candidates
) -> list[Row]:
    """N responses of a model to each prompt, as rows; `seeds_of` is where their seeds come from."""
    sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_p)
    seed, n = study.config.random_seed, settings.n
    seeds = [[derive_seed(seed, seeds_of, row["id"], i) for i in range(n)] for row in prompts]
    asked = [user(row["prompt"]) for row in prompts]
    drawn = open_engine(study, model).sample(asked, n, sampling, seeds)
    return [
        {
            "id": f"{row['id']}#{i}",
            "prompt_id": row["id"],
            "sample": i,
            "prompt": row["prompt"],
            "text": completion.text,
            "tokens": completion.tokens,
            "truncated": completion.truncated,
        }
        for row, completions in zip(prompts, drawn, strict=True)
        for i, completion in enumerate(completions)
    ]


def best_worst(scores: Sequence[float | None], min_gap: float = 0.0) -> tuple[int, int] | str:
    """Places of the best and the worst score, or why there is no pair.

    A response without a score takes no part. First places win among equals.
    """
    scored = [(score, i) for i, score in enumerate(scores) if score is not None]
    if len(scored) < 2:
        return "fewer than two scored"
    best = max(scored, key=lambda pair: (pair[0], -pair[1]))
    worst = min(scored)
    if best[0] == worst[0]:
        return "tie"
    if best[0] - worst[0] <= min_gap:
        return "gap too small"
    return best[1], worst[1]


def length_controlled(
    scores: Sequence[float | None], lengths: Sequence[int], rho: float
) -> tuple[int, int] | str:
    """Places of the shortest response among the best and the longest among the worst, or why none.

    Meta-Rewarding's length control (arXiv 2407.19594): the best are the scores in
    [(1 - rho) max + rho min, max], the worst those in [min, (1 - rho) min + rho max]. First places
    win among equal lengths. rho = 0 would still choose by length among equal scores.
    """
    found = best_worst(scores)
    if isinstance(found, str):
        return found
    high, low = (scores[place] for place in found)
    reach = rho * (high - low) + 1e-9  # the ends belong to it, however the product was rounded
    scored = [(score, i) for i, score in enumerate(scores) if score is not None]
    best = [i for score, i in scored if score >= high - reach]
    worst = [i for score, i in scored if score <= low + reach]
    return min(best, key=lambda i: lengths[i]), max(worst, key=lambda i: lengths[i])


def length_matched(
    scores: Sequence[float | None], lengths: Sequence[int], within: float
) -> tuple[int, int] | str:
    """Places of the widest gap of scores between two responses of about one length, or why none.

    Their lengths differ by at most the share `within` of the longer; 1 gives `best_worst`.
    """
    widest = best_worst(scores)
    if isinstance(widest, str):
        return widest
    places = [i for i, score in enumerate(scores) if score is not None]
    pairs = [
        (scores[a] - scores[b], scores[a], -scores[b], -a, -b)
        for a in places
        for b in places
        if scores[a] > scores[b]
        and abs(lengths[a] - lengths[b]) <= within * max(lengths[a], lengths[b])
    ]
    if not pairs:
        return "lengths too different"
    *_, chosen, rejected = max(pairs)
    return -chosen, -rejected


def anchored(
    scores: Sequence[float | None], anchors: Sequence[float | None], min_gap: float = 0.0
) -> tuple[int, int] | str:
    """Places of the best of M_t's responses and of the worst of all, or why none.

    Temporal Self-Rewarding's anchored rejection (arXiv 2508.06026, first phase). `anchors` are
    M_t's scores of another model's responses; their places follow those of `scores`. An anchor is
    rejected only where it scores below the worst of M_t's own, and is never chosen.
    """
    best = max((score for score in scores if score is not None), default=None)
    below = [s if None not in (s, best) and s < best else None for s in anchors]
    return best_worst([*scores, *below], min_gap)


def places_of(
    scores: Sequence[float | None], lengths: Sequence[int], settings: Pairs
) -> tuple[int, int] | str:
    """Places of the chosen and the rejected response by the rule of the settings, or why none."""
    if settings.rho:
        found = length_controlled(scores, lengths, settings.rho)
    elif settings.within < 1:
        found = length_matched(scores, lengths, settings.within)
    else:
        return best_worst(scores, settings.min_gap)
    if isinstance(found, str):
        return found
    chosen, rejected = found
    return found if scores[chosen] - scores[rejected] > settings.min_gap else "gap too small"


def pair_of(
    candidates: list[Row],
    scores: dict[str, float | None],
    settings: Pairs,
    anchors: Sequence[Row] = (),
) -> Row:
    """The row of one prompt: its pair, or `dropped` with the reason."""
    row = {"id": candidates[0]["prompt_id"], "prompt": candidates[0]["prompt"], "dropped": None}
    responses = [*candidates, *anchors]
    texts = [response["text"].strip() for response in responses]
    usable = [scores.get(r["id"]) if t else None for r, t in zip(responses, texts, strict=True)]
    if anchors:
        own = len(candidates)
        found = anchored(usable[:own], usable[own:], settings.min_gap)
    else:
        found = places_of(usable, [len(text) for text in texts], settings)
    if isinstance(found, str):
        return row | {"dropped": found}
    for side, place in zip(("chosen", "rejected"), found, strict=True):
        candidate = responses[place]
        row[side] = candidate["text"]
        row[f"{side}_score"] = scores[candidate["id"]]
        for name in ("id", "tokens", "truncated"):
            row[f"{side}_{name}"] = candidate[name]
    if row["chosen"].strip() == row["rejected"].strip():
        return {name: row[name] for name in ("id", "prompt")} | {"dropped": "same text"}
    return row


def at_most(rows: list[Row], most: int) -> list[Row]:
    """The rows with the first `most` pairs of them; the others are dropped, and say so."""
    counts = accumulate(not row["dropped"] for row in rows)
    return [
        {"id": row["id"], "prompt": row["prompt"], "dropped": "over the most"}
        if count > most and not row["dropped"]
        else row
        for row, count in zip(rows, counts, strict=True)
    ]


def make_pairs(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/pairs`: one row per prompt, its pair or why there is none.

    Raises: SrkitError if fewer than `pairs.min_pairs` are left, or the judge is unhealthy and
    the settings say stop. The table is written before the pairs are counted: it can be read.
    """
    folder = f"{arm}/iter-{iteration}"
    config = study.config.for_arm(arm)
    judgements = study.read(f"{folder}/judgements")
    check_health(pd.DataFrame(judgements), config, folder)
    anchors: list[Row] = []
    if config.pairs.anchor != "none":
        anchors = study.read(f"{folder}/anchors")
        judgements = judgements + study.read(f"{folder}/anchor_judgements")
    scores = mean_scores(judgements)
    others = by(anchors, "prompt_id")
    groups = list(by(study.read(f"{folder}/candidates"), "prompt_id").items())

    def work(part: Sequence[tuple[str, list[Row]]], before: list[Row]) -> list[Row]:
        rows = [pair_of(rows, scores, config.pairs, others.get(i, ())) for i, rows in part]
        return at_most(rows, config.pairs.most - len(kept(before))) if config.pairs.most else rows

    rows = study.make_table(f"{folder}/pairs", groups, work, chunk=1000)
    check_enough(rows, config.pairs, folder)
    return rows


def check_enough(rows: list[Row], settings: Pairs, where: str) -> None:
    """Stop an iteration that has too few pairs to learn from.

    Raises: SrkitError that says where the prompts went and what to change.
    """
    left = len(kept(rows))
    if left >= settings.min_pairs:
        return
    reasons = Counter(row["dropped"] for row in rows if row["dropped"])
    lost = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()) or "none dropped"
    raise SrkitError(
        f"{where} has {left} pairs of {len(rows)} prompts, fewer than pairs.min_pairs = "
        f"{settings.min_pairs} ({lost}). Nothing is invented to fill them up. More ties: raise "
        "judge.samples or use judge.method=expected; not scored: see the judge's parse rate; "
        "otherwise raise instruct.prompts or candidates.n, or lower pairs.min_pairs. New settings "
        "for this study need --change."
    )
