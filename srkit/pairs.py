"""Candidates and preference pairs (paper section 2.2 and 3.1.3).

N responses are drawn per new prompt from M_t; the pair of a prompt is its best-scored response
against its worst-scored one, and a prompt whose best and worst tie gives none.

Surprising decisions: every prompt keeps its row, with the reason where it gave no pair; among
several equally good (or bad) responses the first sample stands; too few pairs stop the iteration.

    python -c "from srkit.pairs import best_worst; print(best_worst([3.0, None, 1.0]))"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from srkit import human
from srkit.config import Pairs, SrkitError
from srkit.engine import Sampling, open_engine
from srkit.health import check_health
from srkit.judge import mean_scores
from srkit.plan import PAPER_ARM
from srkit.prompts import user
from srkit.study import Row, Study, derive_seed, kept


def make_candidates(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/candidates`: N responses of M_t to each new prompt."""
    folder = f"{arm}/iter-{iteration}"
    config = study.config.for_arm(arm)
    if study.step(f"{folder}/candidates").same_as:
        make_candidates(study, PAPER_ARM, iteration)
        return study.copy_table(f"{folder}/candidates")
    if config.judge.source == "human":
        return human.make_candidates(study, arm, iteration)
    settings = config.candidates
    policy = study.policy_before(arm, iteration)
    sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_p)

    def work(part: Sequence[Row], _: list[Row]) -> list[Row]:
        seeds = [
            [derive_seed(config.random_seed, folder, row["id"], i) for i in range(settings.n)]
            for row in part
        ]
        prompts = [user(row["prompt"]) for row in part]
        drawn = open_engine(study, policy).sample(prompts, settings.n, sampling, seeds)
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
            for row, completions in zip(part, drawn, strict=True)
            for i, completion in enumerate(completions)
        ]

    prompts = kept(study.read(f"{folder}/prompts"))
    return study.make_table(f"{folder}/candidates", prompts, work, chunk=settings.chunk)


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


def pair_of(candidates: list[Row], scores: dict[str, float | None], settings: Pairs) -> Row:
    """The row of one prompt: its pair, or `dropped` with the reason."""
    row = {"id": candidates[0]["prompt_id"], "prompt": candidates[0]["prompt"], "dropped": None}
    texts = [candidate["text"].strip() for candidate in candidates]
    usable = [scores.get(c["id"]) if t else None for c, t in zip(candidates, texts, strict=True)]
    found = best_worst(usable, settings.min_gap)
    if isinstance(found, str):
        return row | {"dropped": found}
    for side, place in zip(("chosen", "rejected"), found, strict=True):
        candidate = candidates[place]
        row[side] = candidate["text"]
        row[f"{side}_score"] = scores[candidate["id"]]
        for name in ("id", "tokens", "truncated"):
            row[f"{side}_{name}"] = candidate[name]
    if row["chosen"].strip() == row["rejected"].strip():
        return {name: row[name] for name in ("id", "prompt")} | {"dropped": "same text"}
    return row


def make_pairs(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/pairs`: one row per prompt, its pair or why there is none.

    Raises: SrkitError if fewer than `pairs.min_pairs` are left, or the judge is unhealthy and
    the settings say stop. The table is written before the pairs are counted: it can be read.
    """
    folder = f"{arm}/iter-{iteration}"
    config = study.config.for_arm(arm)
    judgements = study.read(f"{folder}/judgements")
    check_health(pd.DataFrame(judgements), config, folder)
    scores = mean_scores(judgements)
    groups: dict[str, list[Row]] = {}
    for row in study.read(f"{folder}/candidates"):
        groups.setdefault(row["prompt_id"], []).append(row)

    def work(part: Sequence[list[Row]], _: list[Row]) -> list[Row]:
        return [pair_of(candidates, scores, config.pairs) for candidates in part]

    rows = study.make_table(f"{folder}/pairs", list(groups.values()), work, chunk=1000)
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
