"""What is measured of every model: its answers to the test prompts, and comparisons of them.

A comparison shows a referee two models' answers to one prompt and reads the probabilities of
"A" and "B", once in each order (paper section 3.3.1; the paper's referee is GPT-4). The model's
judging of held-out rankings is `judge.judge_held_out`.

Surprising decisions: the referee is one fixed model of the study for all comparisons, so that a
model is never measured by its own newest opinion; it answers with a probability, not with text,
so that nothing has to be parsed and a constant preference for the first place can be seen.

    python -c "from srkit.evaluate import rivals; print(rivals(['baseline', 'M1', 'x/M2'], 'x/M2'))"
"""

from __future__ import annotations

from collections.abc import Sequence

from srkit.plan import model_names
from srkit.prompts import compare_prompt, user
from srkit.study import Row, Study, derive_seed


def rivals(models: Sequence[str], model: str) -> list[str]:
    """The earlier models that a model is compared with."""
    return list(models[: list(models).index(model)])


def make_responses(study: Study, model: str) -> list[Row]:
    """Step `<model>/responses`: one answer to each test prompt."""
    from srkit.generate import Sampling, sample
    from srkit.models import open_policy

    step = f"{model}/responses"
    config = study.config
    sampling = Sampling(config.eval.max_tokens, config.eval.temperature, config.eval.top_p)

    def work(part: Sequence[Row], _: list[Row]) -> list[Row]:
        # The same stream for every model: differences come from the models.
        seeds = [[derive_seed(config.random_seed, "responses", row["id"])] for row in part]
        prompts = [user(row["prompt"]) for row in part]
        drawn = sample(open_policy(study, model), prompts, 1, sampling, seeds)
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


def make_comparisons(study: Study, model: str) -> list[Row]:
    """Step `<model>/comparisons`: against every earlier model, both orders, by the referee."""
    arm = study.step(f"{model}/comparisons").arm
    names = model_names(study.config.for_arm(arm), arm)
    mine = study.read(f"{model}/responses")[: study.config.eval.compared_prompts]
    items = []
    for rival in rivals(names, model):
        theirs = {row["prompt_id"]: row for row in study.read(f"{rival}/responses")}
        items += [(row, theirs[row["prompt_id"]], rival) for row in mine]

    def work(part: Sequence[tuple[Row, Row, str]], _: list[Row]) -> list[Row]:
        return compare(study, model, part)

    return study.make_table(f"{model}/comparisons", items, work, chunk=32)


def compare(study: Study, model: str, part: Sequence[tuple[Row, Row, str]]) -> list[Row]:
    """Two rows, one per order, for each `(answer of model, answer of rival, rival's name)`."""
    from srkit.generate import score_options
    from srkit.models import open_policy

    referee = study.config.eval.referee
    rows, prompts = [], []
    for mine, theirs, rival in part:
        for first in ("left", "right"):
            pair = (mine["text"], theirs["text"])
            prompts.append(
                compare_prompt(mine["prompt"], *(pair if first == "left" else pair[::-1]))
            )
            names = {"prompt_id": mine["prompt_id"], "left": model, "right": rival}
            identifier = f"{mine['prompt_id']}|{model}|{rival}|{first}"
            rows.append({"id": identifier, **names, "first": first, "referee": referee})
    logs = score_options(open_policy(study, referee), prompts, [" A", " B"])
    for row, (a, b) in zip(rows, logs, strict=True):
        odds = float(a - b) if row["first"] == "left" else float(b - a)
        row["preferred"] = "left" if odds > 0 else "right" if odds < 0 else None
        row["log_odds_left"] = round(odds, 6)
    return rows
