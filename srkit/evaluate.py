"""What is measured of every model: its answers to the test prompts, and comparisons of them.

A comparison shows a referee two models' answers to one prompt and reads the probabilities of
"A" and "B", once in each order (paper, Fig. 3; the paper's referee is GPT-4). The model's
judging of held-out rankings is `judge.judge_held_out`.

Surprising decisions: the referee is one fixed model of the study for all comparisons, so that a
model is never measured by its own newest opinion; it answers with a probability, not with text,
so that nothing has to be parsed and a constant preference for the first place can be seen.

    python -c "from srkit.evaluate import rivals; print(rivals(['baseline', 'M1', 'x/M2'], 'x/M2'))"
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from srkit.engine import Sampling, open_engine
from srkit.plan import SEED_MODELS, model_names
from srkit.prompts import Conversation, compare_prompt, user
from srkit.rows import Row, derive_seed
from srkit.study import Study


def rivals(models: Sequence[str], model: str) -> list[str]:
    """The earlier models that a model is compared with."""
    return list(models[: list(models).index(model)])


def make_responses(study: Study, model: str) -> list[Row]:
    """Step `<model>/responses`: one answer to each test prompt."""
    step = f"{model}/responses"
    config = study.config
    sampling = Sampling(config.eval.max_tokens, config.eval.temperature, config.eval.top_p)

    def work(part: Sequence[Row], _: list[Row]) -> list[Row]:
        # The same stream for every model: differences come from the models.
        seeds = [[derive_seed(config.random_seed, "responses", row["id"])] for row in part]
        prompts = [user(row["prompt"]) for row in part]
        drawn = open_engine(study, model).sample(prompts, 1, sampling, seeds)
        return [
            {
                **row,
                "prompt_id": row["id"],
                "text": completion.text,
                "tokens": completion.tokens,
                "truncated": completion.truncated,
            }
            for row, (completion,) in zip(part, drawn, strict=True)
        ]

    return study.make_table(step, study.read("seed/test_prompts"), work, chunk=32)


@dataclass(frozen=True)
class Match:
    """Two texts for one prompt, by the names of who (or what) wrote them."""

    prompt_id: str
    prompt: str
    left: str
    right: str
    left_text: str
    right_text: str


def make_comparisons(study: Study, model: str) -> list[Row]:
    """Step `<model>/comparisons`: against every earlier model, both orders, by the referee."""
    step = f"{model}/comparisons"
    arm = study.step(step).arm
    seeds = model in SEED_MODELS
    names = SEED_MODELS if seeds else model_names(study.config.for_arm(arm), arm)
    mine = study.read(f"{model}/responses")[: study.config.eval.compared_prompts]
    matches = []
    for rival in rivals(names, model):
        theirs = {row["prompt_id"]: row["text"] for row in study.read(f"{rival}/responses")}
        for row in mine:
            texts = (row["text"], theirs[row["prompt_id"]])
            matches.append(Match(row["prompt_id"], row["prompt"], model, rival, *texts))
    work = partial(compare, study, study.config.eval.referee, compare_prompt)
    return study.make_table(step, matches, work, chunk=32)


def make_referee_comparisons(study: Study) -> list[Row]:
    """Step `referee/comparisons`: one pair of ranked held-out responses per prompt, both orders.

    The names are the responses' ids; `headtohead.referee_card` compares with their ranks.
    """
    responses: dict[str, list[Row]] = {}
    for row in study.read("seed/eft_eval"):
        responses.setdefault(row["prompt_id"], []).append(row)
    matches = []
    for prompt_id, rows in responses.items():
        rng = random.Random(derive_seed(study.config.random_seed, "referee", prompt_id))
        left, right = rng.sample(rows, 2)
        texts = (left["response"], right["response"])
        matches.append(Match(prompt_id, left["prompt"], left["id"], right["id"], *texts))
    work = partial(compare, study, study.config.eval.referee, compare_prompt)
    return study.make_table("referee/comparisons", matches, work, chunk=32)


def compare(
    study: Study,
    referee: str,
    ask: Callable[[str, str, str], Conversation],
    matches: Sequence[Match],
    _: list[Row],
) -> list[Row]:
    """Two rows per match, one per order; nothing is preferred where the referee cannot say.

    `ask` makes the message out of the prompt and both texts, the first one first.
    """
    known_as = study.config.endpoint.model if referee == "endpoint" else referee
    rows, prompts = [], []
    for match in matches:
        names = {"prompt_id": match.prompt_id, "left": match.left, "right": match.right}
        for first in ("left", "right"):
            texts = (match.left_text, match.right_text)[:: 1 if first == "left" else -1]
            prompts.append(ask(match.prompt, *texts))
            identifier = "|".join((*names.values(), first))
            rows.append({"id": identifier, **names, "first": first, "referee": known_as})
    logs = open_engine(study, referee).score_options(prompts, [" A", " B"])  # (matches * 2, 2)
    for row, (a, b) in zip(rows, logs, strict=True):
        odds = float(a - b) if row["first"] == "left" else float(b - a)
        row["preferred"] = "left" if odds > 0 else "right" if odds < 0 else None
        row["log_odds_left"] = round(odds, 6) if math.isfinite(odds) else None
    return rows
