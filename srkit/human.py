"""The arms `human` and `spin`: preferences that come with the seed instead of the model's own.

`human` (RLHF, as DPO): the ranked responses of the seed (`seed/eft`) stand where the other arms
have new prompts and M_t's candidates; their ranks are the judgements. `spin` (arXiv 2401.01335):
M_t answers prompts of the seed (`seed/ift`), and the seed's response is preferred to its own, as if
ranked before it. No model judges. All other steps are the same.

Surprising decisions: the ranked prompts of `human` are dealt out to the iterations, so that, as in
the paper's arm, no iteration learns from the pairs of another; it has fewer pairs than the other
arms where the seed has fewer ranked prompts than `instruct.prompts` for each iteration. `spin` asks
the same prompts in every iteration, since it ends where M_t's answers cannot be told from the
seed's; the first `instruct.prompts` of them, so that it has as many pairs as the others. SPIN also
keeps the pairs of the iteration before, which this does not.

    python -c "from srkit.human import dealt; print(dealt(['a', 'b', 'c'], 1, 2))"
"""

from __future__ import annotations

from collections.abc import Sequence

from srkit.rows import Row, kept
from srkit.study import Study

BEST = 5  # the score of rank 0, the top of the additive scale


def dealt(prompts: Sequence[str], iteration: int, iterations: int) -> list[str]:
    """What falls to iteration t of T: every T-th, each once, in order of appearance."""
    return list(dict.fromkeys(prompts))[iteration - 1 :: iterations]


def make_prompts(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/prompts`: this iteration's share of the ranked prompts, or IFT's."""
    config, name = study.config.for_arm(arm), f"{arm}/iter-{iteration}/prompts"
    if config.judge.source == "seed":
        asked = {row["id"]: row["prompt"] for row in study.read("seed/ift")}
        mine = list(asked)[: config.instruct.prompts]
    else:
        asked = {row["prompt_id"]: row["prompt"] for row in study.read("seed/eft")}
        mine = dealt(list(asked), iteration, config.iterations)
    rows = [{"id": i, "source": "seed", "prompt": asked[i], "dropped": None} for i in mine]
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


def beside_the_seed(study: Study, prompts: Sequence[Row], drawn: list[Row]) -> list[Row]:
    """Candidates of `spin`: to each prompt the seed's response, rank 0, then M_t's, rank 1."""
    responses = {row["id"]: row["response"] for row in study.read("seed/ift")}
    rows = []
    for prompt, own in zip(prompts, drawn, strict=True):
        text = responses[prompt["id"]]
        seeds = {"id": f"{prompt['id']}#seed", "text": text, "tokens": None, "truncated": False}
        rows += [{**own, **seeds, "rank": 0}, {**own, "rank": 1}]
    return rows


def score(rank: int) -> float:
    """A rank, 0 the best, as a score that orders alike."""
    return float(BEST - rank)
