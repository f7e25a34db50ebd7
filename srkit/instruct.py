"""New prompts by few-shot prompting (paper section 3.1.3), with Self-Instruct's filters.

Each round asks the writer (M0 by default, as the paper's writer is fixed) to continue several
lists of requests, each of 6 from IFT and 2 of its own earlier ones. What comes back passes the
filters of Self-Instruct (arXiv 2212.10560 and its code): length, keywords, first character, and
ROUGE-L F1 with anything earlier. Dropped drafts stay in the table with the reason.

Surprising decision: ROUGE-L F1 on token lists equals the normalised Indel similarity, which
rapidfuzz computes about a hundred times faster (tested against rouge-score).

    python -c "from srkit.instruct import *; print(drop_reason('Draw me a cat', [], Instruct()))"
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from rapidfuzz import process
from rapidfuzz.distance import Indel

from srkit import human
from srkit.config import Instruct, SrkitError
from srkit.engine import Sampling, open_engine
from srkit.plan import PAPER_ARM, SEEDED
from srkit.prompts import parse_requests, self_instruct_prompt
from srkit.rows import Row, derive_seed, kept
from srkit.study import Study

KEYWORDS = ("image", "graph", "picture", "file", "map", "draw", "plot", "go to")
_KEYWORD = re.compile(rf"\b(?:{'|'.join(f'{word}s?' for word in KEYWORDS)})\b", re.I)


def rouge_tokens(text: str) -> list[str]:
    """Lower-case runs of letters and digits: the tokens of rouge-score without stemming."""
    return re.findall(r"[a-z0-9]+", text.lower())


def max_rouge(tokens: list[str], earlier: Sequence[list[str]]) -> float:
    """Largest ROUGE-L F1, in [0, 1], of a token list with earlier ones; 0 if there are none."""
    if not tokens or not earlier:
        return 0.0
    return float(process.extractOne(tokens, earlier, scorer=Indel.normalized_similarity)[1])


def drop_reason(draft: str, earlier: Sequence[list[str]], settings: Instruct) -> str | None:
    """Why the filters drop a draft, or None if they keep it; `earlier` are token lists."""
    words = len(draft.split())
    if words < settings.min_words:
        return "too short"
    if words > settings.max_words:
        return "too long"
    if _KEYWORD.search(draft):
        return "keyword"
    if draft.lower().startswith("write a program"):
        return "program"
    if not (draft[0].isascii() and draft[0].isalnum()):
        return "first character"
    if max_rouge(rouge_tokens(draft), earlier) > settings.max_rouge:
        return "too similar"
    return None


def few_shots(
    seed: list[str], generated: list[str], settings: Instruct, rng: random.Random
) -> list[str]:
    """Shuffled examples: 6 seed and 2 generated; seeds stand in while too few are generated."""
    new = min(settings.generated_shots, len(generated))
    own = min(settings.seed_shots + settings.generated_shots - new, len(seed))
    shots = rng.sample(seed, own) + rng.sample(generated, new)
    rng.shuffle(shots)
    return shots


def filter_drafts(
    drafts: Sequence[tuple[str, bool]], earlier: list[list[str]], settings: Instruct, room: int
) -> list[Row]:
    """Rows `prompt, dropped` for drafts `(text, finished)`: at most `room` are kept."""
    seen, rows = list(earlier), []
    for draft, finished in drafts:
        reason = drop_reason(draft, seen, settings)
        if not finished and not settings.keep_unfinished:
            reason = "unfinished"
        if reason is None and room == 0:
            reason = "enough already"
        if reason is None:
            seen.append(rouge_tokens(draft))
            room -= 1
        rows.append({"prompt": draft, "dropped": reason})
    return rows


def make_prompts(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/prompts`: new prompts for iteration t, dropped drafts included.

    Raises: SrkitError if no draft survives the filters.
    """
    name = f"{arm}/iter-{iteration}/prompts"
    config = study.config.for_arm(arm)
    if study.step(name).same_as:
        make_prompts(study, PAPER_ARM, iteration)
        return study.copy_table(name)
    if config.judge.source in SEEDED:
        return human.make_prompts(study, arm, iteration)
    settings = config.instruct
    own = settings.writer == "current"
    writer = study.policy_before(arm, iteration) if own else settings.writer
    source = config.endpoint.model if writer == "endpoint" else writer
    sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_p)

    def one_round(rounds: Sequence[int], rows: list[Row]) -> list[Row]:
        seeds, earlier = _known(study, arm, iteration)
        mine = earlier + [row["prompt"] for row in kept(rows)]
        coordinates = (config.random_seed, name, rounds[0])
        rng = random.Random(derive_seed(*coordinates))
        lists = [few_shots(seeds, mine, settings, rng) for _ in range(settings.lists_per_round)]
        streams = [[derive_seed(*coordinates, i)] for i in range(len(lists))]
        prompts = [self_instruct_prompt(shots) for shots in lists]
        completions = open_engine(study, writer).sample(prompts, 1, sampling, streams)
        drafts = [
            draft
            for shots, (completion,) in zip(lists, completions, strict=True)
            for draft in parse_requests(completion.text, len(shots) + 1, not completion.truncated)
        ]
        tokens = [rouge_tokens(p) for p in seeds + mine]
        new = filter_drafts(drafts, tokens, settings, settings.prompts - len(kept(rows)))
        where = {"round": rounds[0], "source": source}
        return [
            {"id": f"{arm}-{iteration}-{rounds[0]:03d}-{i:02d}", **where, **row}
            for i, row in enumerate(new)
        ]

    rows = study.make_table(
        name,
        range(settings.max_rounds),
        one_round,
        chunk=1,
        until=lambda rows: len(kept(rows)) >= settings.prompts,
    )
    if not kept(rows):
        raise SrkitError(
            f"No new prompt survived the filters in {name} ({len(rows)} drafts). Look at the "
            "`dropped` column there; raise instruct.max_rounds or instruct.max_tokens, loosen "
            "instruct.max_rouge, or use a model that can continue a list."
        )
    return rows


def _known(study: Study, arm: str, iteration: int) -> tuple[list[str], list[str]]:
    """Prompts of IFT, and those of the arm's earlier iterations."""
    earlier = [f"{arm}/iter-{t}/prompts" for t in range(1, iteration)]
    seeds = [row["prompt"] for row in study.read("seed/ift")]
    return seeds, [row["prompt"] for name in earlier for row in kept(study.read(name))]
