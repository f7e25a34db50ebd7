"""One model, several ways to let it judge: the held-out responses judged in each.

What a model thinks of a response can be asked for in text (either rubric, K draws), read from the
probabilities of a score or of a "Yes", or from those of the response itself: its likelihood, and
how much likelier training has made it, which is DPO's implicit reward (CREAM, arXiv 2410.12735,
judges by it). `srkit.ways` says how well each does and what it costs.

Surprising decisions:
- A way is a chunk, so that the manifest says how long each took (`seconds_of`). The first holds the
  loading of the model, and `implicit_reward` that of the reference, which takes its turn.
- `read` counts the tokens of a prompt once for all draws from it, and a beginning that prompts
  share each time, though the engine reads it once. A response whose likelihood is asked is read.
- A response's likelihood includes its end, as in training. The implicit reward is not scaled by
  beta, which orders nothing.
- Always plain transformers, also where vLLM answers: all ways are to be read by one program.

    python -c "from srkit import judge_ways, study; \\
        print(judge_ways.make_ways(study.Study.open('runs/first'), 'M1')[0])"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from srkit.distributed import share, together, world
from srkit.engine import Dealt, Engine
from srkit.judge import judge_responses
from srkit.plan import model_before
from srkit.prompts import Conversation, judge_prompt, user, yes_no_prompt
from srkit.rows import Row, derive_seed
from srkit.study import Study

if TYPE_CHECKING:
    from srkit.models import Policy

# the chunks of the table, in order; `likelihood` makes two kinds of rows
RUBRICS = {
    "additive": ("additive", "sampled"),
    "multiple_choice": ("multiple_choice", "sampled"),
    "expected_additive": ("additive", "expected"),
    "expected_multiple_choice": ("multiple_choice", "expected"),
}
CHUNKS = (*RUBRICS, "yes_no", "likelihood", "implicit_reward")
FORCED = {"role": "assistant", "content": "Score:"}


def make_ways(study: Study, model: str) -> list[Row]:
    """Step `<model>/ways`: a row per response (to the first `eval.ways_prompts` held-out prompts),
    way and draw.

    Rows: id, response_id, prompt_id, way, sample, score (None where there is none), text (of drawn
    judgements), read and tokens (written; both in tokens), truncated. Ways are `CHUNKS`, but for
    `likelihood_sum` and `likelihood_mean` (nats, of a response and of its tokens).
    """
    ranked = study.read("seed/eft_eval")
    first = list(dict.fromkeys(row["prompt_id"] for row in ranked))[
        : study.config.eval.ways_prompts
    ]
    rows = [{**row, "response_id": row["id"]} for row in ranked if row["prompt_id"] in first]

    def work(part: Sequence[str], before: list[Row]) -> list[Row]:
        (way,) = part
        if way in RUBRICS:
            return _by_rubric(study, model, way, rows)
        if way == "yes_no":
            return _by_yes(study, model, rows)
        if way == "likelihood":
            return _by_likelihood(study, model, rows)
        return _by_implicit_reward(study, model, rows, before)

    return study.make_table(f"{model}/ways", CHUNKS, work, chunk=1, named=CHUNKS)


def plain_policy(study: Study, model: str) -> Policy:
    """A model of the study in plain transformers, whatever the study's engine is."""
    from srkit.models import open_policy, release

    if study.config.model.engine == "vllm":
        release()  # its server holds the memory
    return open_policy(study, model)


def plain_engine(policy: Policy) -> Engine:
    """The engine of such a policy, for any number of processes."""
    from srkit.generate import HfEngine

    return HfEngine(policy) if world() == 1 else Dealt(HfEngine(policy))


def _by_rubric(study: Study, model: str, way: str, rows: list[Row]) -> list[Row]:
    """Draws by either rubric, or the score expected under the probabilities of its digits."""
    (rubric, method), judge = RUBRICS[way], study.config.judge
    policy = plain_policy(study, model)
    judged = judge_responses(
        plain_engine(policy),
        rows,
        rubric,
        study.config.eval.ways_draws,
        method,
        derive_seed(study.config.random_seed, f"{model}/ways", way),
        temperature=judge.temperature,
        top_p=judge.top_p,
        max_tokens=judge.max_tokens,
    )
    forced = [FORCED] if method == "expected" else []
    prompts = [[*judge_prompt(rubric, r["prompt"], r["response"]), *forced] for r in rows]
    read = dict(zip((r["id"] for r in rows), prompt_lengths(policy, prompts), strict=True))
    return [
        _row(j, way, j["score"], 0 if j["sample"] else read[j["response_id"]], j) for j in judged
    ]


def _by_yes(study: Study, model: str, rows: list[Row]) -> list[Row]:
    """The probability of "Yes" among "Yes" and "No"."""
    policy = plain_policy(study, model)
    prompts = [yes_no_prompt(row["prompt"], row["response"]) for row in rows]
    yes, no = plain_engine(policy).score_options(prompts, [" Yes", " No"]).T  # (responses,)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = 1 / (1 + np.exp(no - yes))
    read = prompt_lengths(policy, prompts)
    return [
        _row(row, "yes_no", score, length)
        for row, score, length in zip(rows, scores, read, strict=True)
    ]


def _by_likelihood(study: Study, model: str, rows: list[Row]) -> list[Row]:
    made = []
    for row, logp, tokens, read in _logps(plain_policy(study, model), rows):
        made += [_row(row, "likelihood_sum", logp, read)]
        made += [_row(row, "likelihood_mean", logp / tokens, read)]
    return made


def _by_implicit_reward(study: Study, model: str, rows: list[Row], before: list[Row]) -> list[Row]:
    """log p(response) less that of the model before, which was the reference; both are read."""
    own = {r["response_id"]: r["score"] for r in before if r["way"] == "likelihood_sum"}
    reference = model_before(study.config, model)
    return [
        _row(row, "implicit_reward", _less(own[row["id"]], logp), 2 * read)
        for row, logp, _, read in _logps(plain_policy(study, reference), rows)
    ]


def _less(own: float | None, reference: float) -> float:
    return math.nan if own is None else own - reference


def _logps(policy: Policy, rows: list[Row]) -> list[tuple[Row, float, int, int]]:
    """Each row with its response's log-probability, its tokens, and those with its prompt."""
    from srkit.generate import score_answers

    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    groups = list(by_prompt.values())
    asked = [user(group[0]["prompt"]) for group in groups]
    answers = [[row["response"] for row in group] for group in groups]
    parts = together(lambda: score_answers(policy, share(asked), share(answers)))
    scored = [found for part in parts for found in part]
    return [
        (row, logp, tokens, length + tokens)
        for group, found, length in zip(groups, scored, prompt_lengths(policy, asked), strict=True)
        for row, (logp, tokens) in zip(group, found, strict=True)
    ]


def prompt_lengths(policy: Policy, prompts: list[Conversation]) -> list[int]:
    """Tokens of each conversation, as the model reads it."""
    from srkit.chat import encode_prompt

    return [len(encode_prompt(policy.tokenizer, prompt)) for prompt in prompts]


def _row(of: Row, way: str, score: float | None, read: int, drawn: Row | None = None) -> Row:
    """A row of the table; `drawn` is a judgement that was written."""
    drawn = drawn or {"sample": 0, "text": None, "tokens": 0, "truncated": False}
    known = score is not None and math.isfinite(score)
    return {
        "id": f"{of['response_id']}@{way}@{drawn['sample']}",
        "response_id": of["response_id"],
        "prompt_id": of["prompt_id"],
        "way": way,
        "sample": drawn["sample"],
        "score": round(float(score), 6) if known else None,
        "text": drawn["text"],
        "read": read,
        "tokens": drawn["tokens"],
        "truncated": drawn["truncated"],
    }
