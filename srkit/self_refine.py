"""Better answers at inference time, weights unchanged: Self-Refine, and the best of N drafts.

Self-Refine (Madaan et al. 2023, arXiv 2303.17651) lets a model criticise its own answer and write
it again, up to four times. Beside it stands the plainest other use of the same tokens: draw more
drafts, judge them as the loop does, keep the best. Both start from the model's answer to a test
prompt (`<model>/responses`), so that one answer, one refined and one chosen differ in that alone.
`srkit.refine` compares them with each other and with the models that the loop has trained.

Surprising decisions:
- The conversation is the history: question, answer, feedback, answer, ... as turns of one chat, so
  that every refinement sees all that came before (section 3 there). No examples are shown; the
  paper shows some for each task.
- It ends with the stop phrase in the feedback, after `ROUNDS` refinements, or where the next turn
  would not fit the context (`ended`). Feedback that says nothing is counted, not repaired.
- Feedback and drafts are drawn as candidates are (temperature 0.7, as in the paper): greedy drafts
  would all be the same.
- Tokens are those read and written, call by call: a prompt counts once for all draws from it, and
  a conversation that grows counts anew with each turn, though an engine may still hold its
  beginning. That is refining's budget. N is the most drafts whose drawing and judging it holds, at
  least one; one draft needs no judge.
- Always plain transformers, also where vLLM answers: tokens are counted by one program.

    python -c "from srkit import self_refine, study; \\
        print(self_refine.make_refined(study.Study.open('runs/first'), 'M1')[0])"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from srkit.config import Judge
from srkit.engine import Completion, Engine, Sampling
from srkit.evaluate import Match, compare
from srkit.judge import judge_responses, make_judgements, mean_scores
from srkit.judge_ways import FORCED, plain_engine, plain_policy, prompt_lengths
from srkit.plan import arrived
from srkit.prompts import Conversation, compare_prompt, judge_prompt, text, user
from srkit.rows import Row, derive_seed
from srkit.study import Study

ROUNDS = 4  # refinements at most
STOP = "nothing to improve"
DRAFTS = 4  # drawn at once, until the budget is spent
COUNTED = ("read", "tokens")
REFINED, BEST = "refined", "best of N"


@dataclass(frozen=True)
class Asked:
    """Who is asked, and how: an engine, what counts a conversation's tokens, the context's size."""

    engine: Engine
    lengths: Callable[[list[Conversation]], list[int]]
    context: int
    feedback: Sampling
    answer: Sampling
    seed: int

    def draw(
        self, talks: list[Conversation], sampling: Sampling, of: list[tuple[int | str, ...]]
    ) -> list[Completion]:
        """One completion of each conversation; `of` are the coordinates of their seeds."""
        seeds = [[derive_seed(self.seed, *place)] for place in of]
        drawn = self.engine.sample(talks, 1, sampling, seeds) if talks else []
        return [one for (one,) in drawn]


def _asked(study: Study, model: str) -> Asked:
    from srkit.chat import context_of

    policy, config = plain_policy(study, model), study.config
    drawn = config.candidates.temperature, config.candidates.top_p
    return Asked(
        plain_engine(policy),
        lambda talks: prompt_lengths(policy, talks),
        context_of(policy.model),
        Sampling(config.judge.max_tokens, *drawn),
        Sampling(config.eval.max_tokens, *drawn),
        config.random_seed,
    )


# --- refining ------------------------------------------------------------------------------------


def make_refined(study: Study, model: str) -> list[Row]:
    """Step `<model>/refined`: a row per prompt and round, of the first `eval.refined_prompts`.

    Rows: id, prompt_id, round (0: the model's answer as it was); text, with text_read (tokens) and
    text_tokens (written), truncated; feedback on it (None where none was asked), feedback_read,
    feedback_tokens, feedback_truncated; ended (why there is no further round: stop phrase, rounds,
    context; else None); tokens (written by this step).
    """
    answers = study.read(f"{model}/responses")[: study.config.eval.refined_prompts]

    def work(part: Sequence[Row], _: list[Row]) -> list[Row]:
        return refine(_asked(study, model), part)

    return study.make_table(f"{model}/refined", answers, work, chunk=32)


def refine(asked: Asked, answers: Sequence[Row]) -> list[Row]:
    """The rounds of each answer (a row with prompt_id, prompt, text, tokens, truncated), in order.

    Prompts go through the rounds together, so that each turn is one call of the engine.
    """
    first = [user(row["prompt"]) for row in answers]
    talks = {
        a["prompt_id"]: [*q, _assistant(a["text"])] for q, a in zip(first, answers, strict=True)
    }
    open_ = [
        _round(a["prompt_id"], 0, Completion(a["text"], a["tokens"], a["truncated"]), read)
        for a, read in zip(answers, asked.lengths(first), strict=True)
    ]
    for row in open_:
        row["tokens"] = 0  # the step `responses` has written it
    rows = list(open_)
    for t in range(ROUNDS):
        for row, feedback, read in _turn(asked, talks, open_, "self_feedback", t):
            _criticise(row, feedback, read)
        open_ = [row for row in open_ if row["ended"] is None]
        written = _turn(asked, talks, open_, "self_refine", t)
        open_ = [_round(row["prompt_id"], t + 1, *answer) for row, *answer in written]
        rows += open_
    for row in open_:
        row["ended"] = "rounds"
    places = {name: place for place, name in enumerate(talks)}
    return sorted(rows, key=lambda row: (places[row["prompt_id"]], row["round"]))


def _turn(
    asked: Asked, talks: dict[str, Conversation], rows: list[Row], prompt: str, t: int
) -> list[tuple[Row, Completion, int]]:
    """One more turn in the conversation of every row: the row, the reply, the tokens read for it.

    A conversation without room for a reply has ended and is left out.
    """
    sampling = asked.feedback if prompt == "self_feedback" else asked.answer
    longer = [[*talks[row["prompt_id"]], *user(text(prompt).strip())] for row in rows]
    going = []
    for row, talk, length in zip(rows, longer, asked.lengths(longer), strict=True):
        if length + sampling.max_tokens > asked.context:
            row["ended"] = "context"
        else:
            going.append((row, talk, length))
    of = [(prompt, row["prompt_id"], t) for row, *_ in going]
    replies = asked.draw([talk for _, talk, _ in going], sampling, of)
    for (row, talk, _), reply in zip(going, replies, strict=True):
        talks[row["prompt_id"]] = [*talk, _assistant(reply.text)]
    return [(row, reply, read) for (row, _, read), reply in zip(going, replies, strict=True)]


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _round(prompt_id: str, t: int, answer: Completion, read: int) -> Row:
    """A row of the table whose answer was not criticised yet."""
    return {
        "id": f"{prompt_id}/{t}",
        "prompt_id": prompt_id,
        "round": t,
        "text": answer.text,
        "text_read": read,
        "text_tokens": answer.tokens,
        "truncated": answer.truncated,
        "feedback": None,
        "feedback_read": 0,
        "feedback_tokens": 0,
        "feedback_truncated": False,
        "ended": None,
        "tokens": answer.tokens,
    }


def _criticise(row: Row, feedback: Completion, read: int) -> None:
    row |= {"feedback": feedback.text, "feedback_tokens": feedback.tokens}
    row |= {"feedback_truncated": feedback.truncated, "feedback_read": read}
    row["tokens"] += feedback.tokens
    row["ended"] = "stop phrase" if STOP in feedback.text.lower() else None


# --- the best of N -------------------------------------------------------------------------------


def make_best_of(study: Study, model: str) -> list[Row]:
    """Step `<model>/best_of`: a row per prompt and draft, as many as refining's tokens hold.

    Rows: id, prompt_id, sample (0: the model's answer as it was), text, text_tokens, truncated;
    score (its own; None for a single draft, or where it cannot be read), judge_tokens (written),
    read (for drafting and judging), tokens (written by this step), chosen, budget (of the prompt).
    """
    step = f"{model}/best_of"
    settings = study.settings(study.step(step)).judge
    budgets: dict[str, int] = {}
    for row in study.read(f"{model}/refined"):
        spent = sum(row[f"{text}_{how}"] for text in ("text", "feedback") for how in COUNTED)
        budgets[row["prompt_id"]] = budgets.get(row["prompt_id"], 0) + spent
    answers = study.read(f"{model}/responses")[: len(budgets)]

    def work(part: Sequence[Row], _: list[Row]) -> list[Row]:
        asked = _asked(study, model)
        return best_of(asked, part, budgets, lambda rows: _judged(asked, rows, settings))

    return study.make_table(step, answers, work, chunk=32)


def best_of(
    asked: Asked,
    answers: Sequence[Row],
    budgets: Mapping[str, int],
    judged: Callable[[list[Row]], list[Row]],
) -> list[Row]:
    """The drafts of each prompt that its budget of tokens holds, and which one is chosen.

    `judged` adds score, judge_tokens and the tokens read to rows of id, prompt_id, prompt, text.
    """
    asking = dict(zip((a["prompt_id"] for a in answers), answers, strict=True))
    read = asked.lengths([user(row["prompt"]) for row in answers])
    prompt_read = dict(zip(asking, read, strict=True))
    first = [_draft(a, 0, Completion(a["text"], a["tokens"], a["truncated"])) for a in answers]
    drafts = {row["prompt_id"]: [row] for row in judged(first)}
    open_ = list(asking)
    while open_:
        places = [(name, len(drafts[name]) + i) for name in open_ for i in range(DRAFTS)]
        talks = [user(asking[name]["prompt"]) for name, _ in places]
        drawn = asked.draw(talks, asked.answer, [("best_of", *place) for place in places])
        new = [_draft(asking[n], i, one) for (n, i), one in zip(places, drawn, strict=True)]
        for row in judged(new):
            drafts[row["prompt_id"]].append(row)
        spent = {name: prompt_read[name] + sum(map(_cost, drafts[name])) for name in open_}
        open_ = [name for name in open_ if spent[name] < budgets[name]]
    return [
        row
        for name, rows in drafts.items()
        for row in _within(rows, prompt_read[name], budgets[name])
    ]


def _within(drafts: list[Row], prompt_read: int, budget: int) -> list[Row]:
    """The first N drafts of a prompt, with the best one marked."""
    spent, n = prompt_read, 0
    for row in drafts:
        spent += _cost(row)
        if spent > budget:
            break
        n += 1
    held = drafts[: max(n, 1)]
    if len(held) == 1:
        held[0] |= {"score": None, "judge_tokens": 0, "read": 0}  # nothing to choose from
    scores = [-1.0 if row["score"] is None else row["score"] for row in held]
    best = scores.index(max(scores))
    for i, row in enumerate(held):
        row["tokens"] = row["judge_tokens"] + (row["text_tokens"] if i else 0)
        row |= {"chosen": i == best, "budget": budget}
    held[0]["read"] += prompt_read
    return [{name: value for name, value in row.items() if name != "prompt"} for row in held]


def _cost(row: Row) -> int:
    return row["text_tokens"] + row["read"] + row["judge_tokens"]


def _draft(of: Row, i: int, answer: Completion) -> Row:
    return {
        "id": f"{of['prompt_id']}#{i}",
        "prompt_id": of["prompt_id"],
        "sample": i,
        "prompt": of["prompt"],
        "text": answer.text,
        "text_tokens": answer.tokens,
        "truncated": answer.truncated,
    }


def _judged(asked: Asked, rows: list[Row], settings: Judge) -> list[Row]:
    """The rows with their own model's scores, by the study's rubric and method."""
    named = [{**row, "response_id": row["id"], "response": row["text"]} for row in rows]
    how = {n: getattr(settings, n) for n in ("rubric", "samples", "method", "temperature", "top_p")}
    how |= {"max_tokens": settings.max_tokens, "seed": derive_seed(asked.seed, "best_of judged")}
    judgements = judge_responses(asked.engine, named, **how)
    scores, written = mean_scores(judgements), Counter()
    for judgement in judgements:
        written[judgement["response_id"]] += judgement["tokens"]
    forced = [FORCED] if settings.method == "expected" else []
    prompts = [[*judge_prompt(settings.rubric, r["prompt"], r["text"]), *forced] for r in rows]
    return [
        {**row, "score": scores[row["id"]], "read": read, "judge_tokens": written[row["id"]]}
        for row, read in zip(rows, asked.lengths(prompts), strict=True)
    ]


# --- who is measured -----------------------------------------------------------------------------


def make_refined_judgements(study: Study, model: str) -> list[Row]:
    """Step `<model>/refined_judgements`: the model's own scores of every contestant's answers.

    A response's id is `<contestant>|<prompt>`; the rounds of refining are contestants too.
    """
    asking = {row["prompt_id"]: row["prompt"] for row in study.read(f"{model}/responses")}
    rounds = [(f"round {row['round']}", row) for row in study.read(f"{model}/refined")]
    others = {n: rows for n, rows in contestants(study, model).items() if n != f"{model} {REFINED}"}
    others.pop(model)  # round 0
    rows = rounds + [(name, row) for name, rows in others.items() for row in rows.values()]
    responses = [
        {
            "id": f"{name}|{row['prompt_id']}",
            "prompt_id": row["prompt_id"],
            "prompt": asking[row["prompt_id"]],
            "text": row["text"],
        }
        for name, row in rows
    ]
    return make_judgements(study, f"{model}/refined_judgements", model, responses)


def make_refined_comparisons(study: Study, model: str) -> list[Row]:
    """Step `<model>/refined_comparisons`: by the study's referee, in both orders.

    Each contestant against the one answer, and the refined one against each of the others.
    """
    asking = {row["prompt_id"]: row["prompt"] for row in study.read(f"{model}/responses")}
    answers = contestants(study, model)
    alone, refined, *others = answers
    pairs = [(name, alone) for name in (refined, *others)] + [(refined, name) for name in others]
    matches = [
        Match(of, asking[of], left, right, row["text"], answers[right][of]["text"])
        for left, right in pairs
        for of, row in answers[left].items()
    ]
    work = partial(compare, study, study.config.eval.referee, compare_prompt)
    return study.make_table(f"{model}/refined_comparisons", matches, work, chunk=32)


def contestants(study: Study, model: str) -> dict[str, dict[str, Row]]:
    """Answers by contestant and prompt: the model's one answer, refined, best of N, then the
    models that the arms have arrived at. All of the same prompts."""
    rounds = study.read(f"{model}/refined")
    drafts = study.read(f"{model}/best_of")
    found = {
        model: {row["prompt_id"]: row for row in rounds if row["round"] == 0},
        f"{model} {REFINED}": {row["prompt_id"]: row for row in rounds},  # the last round stays
        f"{model} {BEST}": {row["prompt_id"]: row for row in drafts if row["chosen"]},
    }
    for name in arrived(study.config, study.arms, model):
        answers = {row["prompt_id"]: row for row in study.read(f"{name}/responses")}
        found[name] = {prompt: answers[prompt] for prompt in found[model]}
    return found
