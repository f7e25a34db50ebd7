"""Questions whose answers a program can check, and what each model answers and how it judges them.

Sums, spelling and well-known facts (`data/seed/facts.jsonl`), 24 each, the same in every study. A
model answers each, greedily; then it judges, as it judges its candidates, its own answer and two
that are given: one with the key, one that is plainly wrong, in the same words but for that. Whether
an answer is right is decided by the key alone. `srkit.blind_spots` says what follows.

Surprising decisions: an answer is right if it states the key and nothing against it: no other
number than those of the question (spelled out they count where there are no digits), no other
single letter, or not the wrong answer that is kept for the item. So an answer that lists everything
is wrong, and a right one with a date too many as well. Sums and words are drawn from a fixed seed,
not the study's: items are a ruler, and it should not change.

    python -c "from srkit.blind_items import items; print(*items(3), sep='\\n')"
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import chain

from srkit.engine import Sampling, open_engine
from srkit.judge import draw_judgements, mean_scores
from srkit.prompts import user
from srkit.reading import parse_object, read_text
from srkit.rows import Row, derive_seed
from srkit.seed import KIT
from srkit.study import Study

FILE = KIT / "facts.jsonl"
KINDS = ("arithmetic", "spelling", "fact")
EACH = 24
SHOWN = ("own", "key", "wrong")  # the answers that are judged
ANSWER_TOKENS = 48  # an answer that needs more has lost its way
BRIEFLY = "Answer in one short sentence."
WORDS = (
    "garden", "window", "bridge", "planet", "rhythm", "button", "market", "silver", "candle",
    "orange", "thunder", "blanket", "harbour", "journey", "kitchen", "leather", "morning",
    "pattern", "quarter", "station", "village", "whisper", "mountain", "carpenter",
)  # fmt: skip
PLACES = {"first": 0, "second": 1, "third": 2, "last": -1}
SPELLED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


# --- the items -----------------------------------------------------------------------------------


def items(count: int = len(KINDS) * EACH) -> list[Row]:
    """The first `count` items, the kinds in turn: id, kind, prompt, key (texts), wrong (a text)."""
    rng = random.Random(derive_seed("blind spots"))
    kinds = (_sums(rng), [_spelling(i, rng) for i in range(EACH)], _facts())
    rows = chain.from_iterable(zip(*kinds, strict=True))
    return [{**row, "prompt": f"{row['prompt']} {BRIEFLY}"} for row in rows][:count]


def _sums(rng: random.Random) -> list[Row]:
    """Sums below 20, differences, products and sums of two digits in turn, each asked once."""
    asked: dict[str, Row] = {}
    while len(asked) < EACH:
        a, b = rng.randint(11, 49), rng.randint(51, 89)
        x, y = rng.randint(3, 9), rng.randint(3, 9)
        question, right = [
            (f"{x} plus {y}", x + y),
            (f"{b} minus {a}", b - a),
            (f"{x} times {y}", x * y),
            (f"{a} plus {b}", a + b),
        ][len(asked) % 4]
        wrong = right + rng.choice((-2, -1, 1, 2, 10))
        # a number of the question says nothing when it is repeated
        if not {str(right), str(wrong)} & set(question.split()):
            row = {"id": f"arithmetic-{len(asked) + 1:02d}", "kind": "arithmetic"}
            row |= {"prompt": f"What is {question}?", "key": [str(right)], "wrong": str(wrong)}
            asked.setdefault(question, row)
    return list(asked.values())


def _spelling(i: int, rng: random.Random) -> Row:
    """How many letters a word has, which one stands where, and the word from behind."""
    word = WORDS[i]
    place = rng.choice([p for p in PLACES if word[PLACES[p]] not in "ai"])  # those are words too
    letter = word[PLACES[place]]
    others = sorted(set(word) - {letter, "a", "i"})
    behind = word[::-1]
    at = next(k for k in range(len(word) - 1) if behind[k] != behind[k + 1])
    swapped = behind[:at] + behind[at + 1] + behind[at] + behind[at + 2 :]
    length = len(word)
    question, right, wrong = [
        (
            f"How many letters does the word '{word}' have?",
            str(length),
            str(length + rng.choice((-1, 1))),
        ),
        (f"Which is the {place} letter of the word '{word}'?", letter, rng.choice(others)),
        (f"How is the word '{word}' spelled backwards?", behind, swapped),
    ][i % 3]
    row = {"id": f"spelling-{i + 1:02d}", "kind": "spelling", "prompt": question}
    return {**row, "key": [right], "wrong": wrong}


def _facts() -> list[Row]:
    lines = read_text(FILE).splitlines()
    rows = [parse_object(line, f"{FILE}, line {i}") for i, line in enumerate(lines, 1)]
    return [{**row, "kind": "fact"} for row in rows[:EACH]]


# --- whether an answer is right ------------------------------------------------------------------


def is_right(answer: str, item: Row) -> bool:
    """Whether an answer states the item's key and nothing against it."""
    key = item["key"][0].lower()
    if key.isdigit():
        return _numbers(answer) - _numbers(item["prompt"]) == {float(key)}
    if len(key) == 1:
        return _letters(answer) == {key}
    return any(_says(answer, text) for text in item["key"]) and not _says(answer, item["wrong"])


def _numbers(text: str) -> set[float]:
    digits = re.findall(r"[0-9][0-9,]{0,30}(?:\.[0-9]{1,30})?", text)
    if digits:
        return {float(number.replace(",", "")) for number in digits}
    words = re.findall(r"[a-z]+", text.lower())
    return {SPELLED.index(word) + 1.0 for word in words if word in SPELLED}


def _letters(text: str) -> set[str]:
    """Letters that stand alone, but for words and what an apostrophe leaves ("it's")."""
    return set(re.findall(r"(?<!\w)(?<!\w')[a-z](?!'?\w)", text.lower())) - {"a", "i"}


def _says(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.I) is not None


# --- the step ------------------------------------------------------------------------------------


def make_blind_spots(study: Study, model: str) -> list[Row]:
    """Step `<model>/blind_spots`: three rows per item, one for each of `SHOWN`.

    Rows: id, prompt_id (the item's), kind, shown, prompt, text, right (of the text), score (mean of
    those that parse, None if none does), tokens (written) and truncated.
    """
    step = f"{model}/blind_spots"
    config = study.settings(study.step(step))
    samples = config.eval.judge_samples

    def work(part: Sequence[Row], _: list[Row]) -> list[Row]:
        rows = _answers(study, model, part)
        scores = mean_scores(draw_judgements(study, step, model, rows, config.judge, samples))
        return [{**row, "score": scores[row["id"]]} for row in rows]

    return study.make_table(step, items(config.eval.blind_spot_items), work, chunk=EACH)


def _answers(study: Study, model: str, part: Sequence[Row]) -> list[Row]:
    """The model's own answers, and those that it is given to judge."""
    most = min(ANSWER_TOKENS, study.config.eval.max_tokens)
    seeds = [[derive_seed("blind spots", item["id"])] for item in part]  # greedy: nothing is drawn
    asked = [user(item["prompt"]) for item in part]
    drawn = open_engine(study, model).sample(asked, 1, Sampling(most, 0.0, 1.0), seeds)
    rows = []
    for item, (own,) in zip(part, drawn, strict=True):
        texts = (own.text, f"The answer is {item['key'][0]}.", f"The answer is {item['wrong']}.")
        for shown, text in zip(SHOWN, texts, strict=True):
            written = shown == "own"
            rows.append(
                {
                    "id": f"{item['id']}/{shown}",
                    "prompt_id": item["id"],
                    "kind": item["kind"],
                    "shown": shown,
                    "prompt": item["prompt"],
                    "text": text,
                    "right": is_right(text, item),
                    "tokens": own.tokens if written else 0,
                    "truncated": own.truncated if written else False,
                }
            )
    return rows
