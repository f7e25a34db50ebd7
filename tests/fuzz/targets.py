"""What is fuzzed: each target takes any bytes, and fails if a property of its parser does not hold.

`run.py` drives them with a coverage-guided fuzzer; `tests/test_fuzz.py` replays what it found.
"""

import json
from collections import Counter
from pathlib import Path

from srkit.prompts import SCALES, parse_score
from srkit.reading import SrkitError, decode
from srkit.rows import parse_jsonl
from srkit.seed import Message, _lines, _valid, first_turns

FILE = Path("table.jsonl")


def score(data: bytes) -> None:
    """A score is None or on its scale and in the text; a clear last line always decides."""
    judgement = data.decode("utf-8", "surrogateescape")
    for rubric, (low, high) in SCALES.items():
        found = parse_score(judgement, rubric)
        assert found is None or low <= found <= high
        if found is not None:
            assert "score" in judgement.casefold()
            assert str(int(found)) in judgement
        assert parse_score(f"{judgement}\nScore: 3", rubric) == 3
        assert parse_score(f"{judgement}\nScore: 77", rubric) is None


def messages(data: bytes) -> None:
    """Rows are refused in words, or become prompts with ranked replies, none lost uncounted."""
    try:
        rows = [row.model_dump() for row in _valid(_lines(decode(data, FILE), FILE), Message)]
    except SrkitError as error:
        _in_words(str(error))
        return
    assert all(n == 1 for n in Counter(row["message_id"] for row in rows).values())
    prompts, counts = first_turns(rows, max_words=50)
    first = [r for r in rows if r["role"] == "prompter" and r["parent_id"] is None]
    assert len(prompts) + sum(counts.values()) == len(first)
    for prompt in prompts:
        ranks = [reply["rank"] for reply in prompt["replies"]]
        assert ranks == sorted(ranks)
        assert prompt["best"] is None or prompt["best"]["rank"] == 0
        assert prompt["text"].encode().decode() == prompt["text"]


def table(data: bytes) -> None:
    """A table is refused in words that name the line, or its rows survive being written again."""
    try:
        rows = parse_jsonl(decode(data, FILE), FILE)
    except SrkitError as error:
        _in_words(str(error))
        return
    assert all(isinstance(row, dict) for row in rows)
    written = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    assert parse_jsonl(written, FILE) == rows


def _in_words(message: str) -> None:
    assert message.startswith("table.jsonl, line ")
    assert message.isprintable()


TARGETS = {"score": score, "messages": messages, "table": table}
