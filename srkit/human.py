"""The arm `human`: preferences of people instead of the model's own (RLHF, as DPO).

The ranked responses of the seed (`seed/eft`) stand where the other arms have new prompts and M_t's
candidates; their ranks are the judgements. All other steps are the same.

Surprising decision: the ranked prompts are dealt out to the iterations, so that, as in the paper's
arm, no iteration learns from the pairs of another; it has fewer pairs than the other arms where
the seed has fewer ranked prompts than `instruct.prompts` for each iteration.

    python -c "from srkit.human import dealt; print(dealt(['a', 'b', 'c'], 1, 2))"
"""

from __future__ import annotations

from collections.abc import Sequence

from srkit.study import Row, Study, kept

BEST = 5  # the score of rank 0, the top of the additive scale


def dealt(prompts: Sequence[str], iteration: int, iterations: int) -> list[str]:
    """What falls to iteration t of T: every T-th, each once, in order of appearance."""
    return list(dict.fromkeys(prompts))[iteration - 1 :: iterations]


def make_prompts(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/prompts`: this iteration's share of the ranked prompts."""
    ranked = {row["prompt_id"]: row["prompt"] for row in study.read("seed/eft")}
    mine = dealt(list(ranked), iteration, study.config.iterations)
    rows = [{"id": i, "source": "seed", "prompt": ranked[i], "dropped": None} for i in mine]
    name = f"{arm}/iter-{iteration}/prompts"
    return study.make_table(name, rows, lambda part, _: list(part), chunk=1000)


def make_candidates(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/candidates`: the ranked responses to this iteration's prompts."""
    folder = f"{arm}/iter-{iteration}"
    mine = {row["id"] for row in kept(study.read(f"{folder}/prompts"))}
    rows = [
        {
            "id": row["id"],
            "prompt_id": row["prompt_id"],
            "prompt": row["prompt"],
            "text": row["response"],
            "rank": row["rank"],
            "tokens": None,  # nothing was drawn
            "truncated": False,
        }
        for row in study.read("seed/eft")
        if row["prompt_id"] in mine
    ]
    return study.make_table(f"{folder}/candidates", rows, lambda part, _: list(part), chunk=1000)


def score(rank: int) -> float:
    """A rank, 0 the best, as a score that orders alike."""
    return float(BEST - rank)
