"""Judging other data by models of a study: what is left out, resume, and nothing changed."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from srkit import cli, judge_data
from srkit.config import Model, SrkitError
from srkit.models import load_policy
from srkit.seed import ranked_prompts


def message(name: str, text: str, parent: str | None = None, rank: int | None = None) -> dict:
    role = "assistant" if parent else "prompter"
    row = {"message_id": name, "parent_id": parent, "text": text, "role": role, "lang": "en"}
    return {**row, "rank": rank, "message_tree_id": parent or name}


MESSAGES = [
    message("p", "Name a planet."),
    message("p0", "Mars is a planet.", "p", 0),
    message("p1", "A dog.", "p", 1),
    message("q", "Name a colour."),
    message("q0", "Red.", "q", 0),
    message("q1", "It is " + "very " * 3000 + "red.", "q", 1),
    message("q2", "No.", "q", 2),
    message("alone", "Why?"),
    message("a0", "Because.", "alone", 0),
]


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "messages.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in MESSAGES))
    return file


@pytest.fixture
def judged(study, monkeypatch):
    """The study, and the counts of what its M0, the tiny model, was asked."""
    policy = load_policy(Model(name="tiny", device="cpu"))
    asked = Counter()
    plain = judge_data.judge_responses

    def counted(policy, rows, *more, **settings):
        asked.update(row["id"] for row in rows)
        return plain(policy, rows, *more, **settings)

    monkeypatch.setattr("srkit.models.open_policy", lambda study, name: policy)
    monkeypatch.setattr(judge_data, "judge_responses", counted)
    return study, asked


def test_ranked_replies_of_any_length_are_read(data):
    rows, counts = ranked_prompts(str(data))
    assert [(row["id"], row["rank"]) for row in rows] == [
        ("p0", 0), ("p1", 1), ("q0", 0), ("q1", 1), ("q2", 2)
    ]  # fmt: skip
    assert counts == {"fewer than two replies of different ranks": 1}


def test_a_reply_too_long_for_the_context_is_left_out_and_counted(judged, data):
    study, asked = judged
    before = sorted(study.path.rglob("*"))
    found = judge_data.judge_data(study, str(data), ["M0"], "expected")
    about = found.about
    assert (about["prompts"], about["replies"], about["judged"], about["too_long"]) == (2, 5, 4, 1)
    assert about["context"] < about["longest_prompt"]
    assert asked == {"p0": 1, "p1": 1, "q0": 1, "q2": 1}
    rates = found.table[found.table["metric"] == "pairwise_accuracy"].set_index("model")
    assert rates["n"].to_dict() == {"M0": 2, "length alone": 2}
    assert rates["value"]["length alone"] == 1
    assert sorted(study.path.rglob("*")) == before, "the study stays as it is"


def test_what_was_judged_is_not_judged_again(judged, data):
    study, asked = judged
    study.config.__dict__["judge"] = study.config.judge.model_copy(update={"chunk": 1})
    first = judge_data.judge_data(study, str(data), ["M0"], "expected")
    assert judge_data.judge_data(study, str(data), ["M0"], "expected").table.equals(first.table)
    assert set(asked.values()) == {1}
    (file,) = (study.path.parent / "study-judged").glob("M0-*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:20])  # cut in the third chunk
    assert judge_data.judge_data(study, str(data), ["M0"], "expected").table.equals(first.table)
    assert sorted(asked.values()) == [1, 1, 2, 2]
    assert file.read_text() == "".join(lines)
    judge_data.judge_data(study, str(data), ["M0"], "sampled", samples=2)
    assert len(list(file.parent.glob("M0-*.jsonl"))) == 2, "other settings, another file"


def test_the_command_prints_intervals_and_length_alone(judged, data, tmp_path):
    words = ["judge", str(judged[0].path), "--data", str(data), "--models", "M0", "--prompts", "1"]
    words += ["--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(cli.app, words)
    assert shown.exit_code == 0, shown.output
    assert "replies: 2" in shown.output
    (line,) = [
        x for x in shown.output.splitlines() if x.startswith("length alone") and "wrong" in x
    ]
    assert "1.000" in line
    assert "n = 1 pairs" in line
    record = json.loads(CliRunner().invoke(cli.app, [*words, "--json"]).output)
    assert {row["model"] for row in record["metrics"]} == {"M0", "length alone"}
    assert record["judged"] == 2


def test_what_cannot_be_judged_says_why(judged, data, tmp_path):
    study, _ = judged
    with pytest.raises(SrkitError, match="There is no model 'M7'"):
        judge_data.judge_data(study, str(data), ["M7"])
    with pytest.raises(SrkitError, match=r"judge\.method = 'guess'"):
        judge_data.judge_data(study, str(data), ["M0"], "guess")
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text(json.dumps(MESSAGES[0]) + "\n")
    with pytest.raises(SrkitError, match="no English first turn with two or more replies"):
        judge_data.judge_data(study, str(nothing), ["M0"])
