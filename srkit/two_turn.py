"""Two-turn questions, answered by every model and scored by the study's referee, turn by turn.

The paper's Tables 2 and 10 are MT-Bench: 80 questions of eight categories, each with a second turn
that builds on the first, scored from 0 to 10 by GPT-4. Here are as many categories with two
questions each, the kit's own (`data/seed/two_turn.jsonl`), off unless `eval.two_turn_questions`
says how many.

Surprising decisions: the referee (`eval.referee`) is asked as a judge, with the study's rubric, and
its expected score is read from the probabilities of the score token, so that nothing has to be
parsed; it is shown the first turn with the model's own answer when it scores the second. Answers
are greedy. Sixteen questions show very little, and a small referee's scores follow length rather
than truth (figure `score_and_length`): this is a look at second turns, no MT-Bench.

    python -c "from srkit.two_turn import questions; print(questions(1))"
"""

from __future__ import annotations

from collections.abc import Sequence

from srkit.engine import Sampling, open_engine
from srkit.judge import draw_judgements
from srkit.prompts import Conversation, user
from srkit.reading import parse_object, read_text
from srkit.rows import Row, derive_seed
from srkit.seed import KIT
from srkit.study import Study

FILE = KIT / "two_turn.jsonl"


def questions(count: int) -> list[Row]:
    """The first `count` questions: id, category, turns (two texts); eight have all categories."""
    lines = read_text(FILE).splitlines()
    return [parse_object(line, f"{FILE}, line {i}") for i, line in enumerate(lines, 1)][:count]


def make_two_turn(study: Study, model: str) -> list[Row]:
    """Step `<model>/two_turn`: a row per question and turn, with the answer and its score."""

    def work(part: Sequence[Row], _: list[Row]) -> list[Row]:
        rows = _answers(study, model, part)
        asked = study, f"{model}/two_turn", study.config.eval.referee, rows, study.config.judge
        judged = draw_judgements(*asked, method="expected")
        return [row | {"score": j["score"]} for row, j in zip(rows, judged, strict=True)]

    asked = questions(study.config.eval.two_turn_questions)
    return study.make_table(f"{model}/two_turn", asked, work, chunk=32)


def _answers(study: Study, model: str, asked: Sequence[Row]) -> list[Row]:
    """Both turns; the second continues the conversation with the model's own first answer."""
    most, seed = study.config.eval.max_tokens, study.config.random_seed
    talks: list[Conversation] = [[] for _ in asked]
    rows = []
    for turn in (1, 2):
        for talk, question in zip(talks, asked, strict=True):
            talk += user(question["turns"][turn - 1])
        seeds = [[derive_seed(seed, "two_turn", question["id"], turn)] for question in asked]
        drawn = open_engine(study, model).sample(talks, 1, Sampling(most, 0.0, 1.0), seeds)
        for talk, question, (answer,) in zip(talks, asked, drawn, strict=True):
            row = {"id": f"{question['id']}/{turn}", "prompt_id": question["id"]}
            row |= {"category": question["category"], "turn": turn, "prompt": shown_to(talk)}
            row |= {"text": answer.text, "tokens": answer.tokens, "truncated": answer.truncated}
            rows.append(row)
            talk.append({"role": "assistant", "content": answer.text})
    return rows


def shown_to(talk: Conversation) -> str:
    """A conversation that ends with the user, as one instruction for the judge."""
    *earlier, last = talk
    names = {"user": "User", "assistant": "Assistant"}
    lines = [f"{names[message['role']]}: {message['content']}" for message in earlier]
    return "\n\n".join([*lines, f"User: {last['content']}"]) if lines else last["content"]
