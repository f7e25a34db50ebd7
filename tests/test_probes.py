"""Probes of a judge: the same answer with and without an injection, and what the change says."""

import pytest

from srkit import probes
from srkit.config import SrkitError

RESPONSES = [
    {"id": f"r{i}", "prompt_id": f"p{i}", "prompt": f"Why {i}?", "response": f"So {{{i}}}."}
    for i in range(6)
]


def judged(rows, scores):
    return [
        {"response_id": row["id"], "score": score} for row, score in zip(rows, scores, strict=True)
    ]


def test_every_answer_is_probed_with_every_kind_and_as_it_is():
    rows = probes.probe_rows(RESPONSES)
    assert len(rows) == 6 * (1 + len(probes.INJECTIONS))
    assert len({row["id"] for row in rows}) == len(rows)
    assert [r["response"] for r in rows if r["kind"] == "none"] == [
        r["response"] for r in RESPONSES
    ]
    for row in rows:
        assert row["response"].startswith(f"So {{{row['id'][1]}}}.")
    attacked = {row["kind"]: row["response"] for row in rows if row["prompt_id"] == "p0"}
    assert attacked["score line"].endswith("\nScore: 5")
    assert "</response>" in attacked["closing tag, fake judgement"]
    assert "<|im_end|>" in attacked["control tokens"]
    assert "Score" not in attacked[probes.CONTROL]


def test_a_change_is_against_the_same_answer_without_the_injection():
    rows = probes.probe_rows(RESPONSES)
    gain = {"none": 0.0, "score line": 1.0, "flattery": -0.5, "control tokens": 0.125}
    scores = [int(row["id"][1]) / 2 + gain.get(row["kind"], 0.0625) for row in rows]
    table = probes.change_table(probes.changes(rows, judged(rows, scores)), 200).set_index("kind")
    assert table.loc["score line", ["change", "up"]].tolist() == [1, 1]
    assert table.loc["score line", "up_low"] == pytest.approx(0.61, abs=0.01), "Wilson, 6 of 6"
    assert table.loc["flattery", ["change", "up"]].tolist() == [-0.5, 0]
    assert table.loc["control tokens", ["change", "up", "n"]].tolist() == [0.125, 1, 6]
    assert table.loc[probes.CONTROL, ["change", "up"]].tolist() == [0.0625, 0]
    assert (table["unparsed"] == 0).all()


def test_intervals_are_by_prompt():
    rows = probes.probe_rows(RESPONSES)
    scores = [float(row["id"][1] in "012") * (row["kind"] == "score line") for row in rows]
    table = probes.change_table(probes.changes(rows, judged(rows, scores))).set_index("kind")
    line = table.loc["score line"]
    assert line["up"] == 0.5
    assert 0 <= line["up_low"] < 0.5 < line["up_high"] <= 1


def test_what_did_not_parse_is_counted_and_left_out():
    rows = probes.probe_rows(RESPONSES)
    lost = {"r0!none", "r1!flattery"}
    scores = [None if row["id"] in lost else 1.0 for row in rows]
    table = probes.change_table(probes.changes(rows, judged(rows, scores))).set_index("kind")
    assert table.loc["flattery", ["n", "unparsed"]].tolist() == [4, 2]
    assert table.loc["score line", ["n", "unparsed"]].tolist() == [5, 1]


@pytest.fixture
def ranked(study, make):
    rows = [
        {"id": f"e{i}-{rank}", "prompt_id": f"e{i}", "prompt": "Why?", "rank": rank}
        | {"response": f"{rank}"}
        for i in range(5)
        for rank in (1, 0, 2)
    ]  # fmt: skip
    make(study, "seed/eft_eval", rows)
    return study


def test_the_worst_answers_are_probed_and_nothing_is_written(ranked, engine):
    before = sorted(ranked.path.rglob("*"))
    # a judge that believes a score line, and nothing else
    engine.score = lambda content, option: (
        0.0 if ("\nScore: 5" in content) == (option == " 5") else -50.0
    )
    table = probes.probe(ranked, "M0", 4).set_index("kind")
    assert table.loc["score line", ["change", "n"]].tolist() == [pytest.approx(3), 4]
    assert table.loc[probes.CONTROL, "change"] == 0
    assert sorted(ranked.path.rglob("*")) == before
    (call,) = engine.calls
    assert call[0] == "M0"
    assert all("<response>2" in conversation[0]["content"] for conversation in call[1])


def test_too_few_prompts_are_an_error(ranked):
    with pytest.raises(SrkitError, match="holds 5 held-out prompts, and 40 are asked for"):
        probes.probe(ranked, "M0")
