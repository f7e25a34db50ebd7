"""The pair browser: what it finds in the tables, in which order it shows it, with which words."""

import re

import pytest

from srkit import browse
from srkit.config import SrkitError

FOLDER = "self-rewarding/iter-1"
# prompt: why it was dropped, scores of its answers, and why there is no pair
DRAFTS = {
    "p0": (None, [3.0, 1.0, 2.0], None),
    "p1": ("too similar", [], None),
    "p2": (None, [2.0, 2.0], "tie"),
    "p3": (None, [4.5, 4.25], None),
    "p4": (None, [5.0, None], "fewer than two scored"),
    "p5": (None, [0.0, 4.0], None),
}


def rows() -> dict[str, list[dict]]:
    """The four tables of an iteration; answer i of a prompt is i + 1 words long."""
    tables = {name: [] for name in ("prompts", "candidates", "judgements", "pairs")}
    for prompt, (dropped, scores, why) in DRAFTS.items():
        text = f"What is {prompt}?"
        tables["prompts"].append({"id": prompt, "prompt": text, "dropped": dropped})
        for i, score in enumerate(scores):
            name = f"{prompt}#{i}"
            answer = {"id": name, "prompt_id": prompt, "prompt": text, "tokens": i + 1}
            tables["candidates"].append(
                answer | {"text": f"{prompt}a " * (i + 1), "truncated": i == 2}
            )
            judged = {"id": f"{name}@0", "response_id": name, "score": score}
            tables["judgements"].append(judged | {"text": f"Fine.\nScore: {score}"})
        if dropped is None:
            pair = {"id": prompt, "prompt": text, "dropped": why}
            if why is None:
                best, worst = scores.index(max(scores)), scores.index(min(scores))
                pair |= {"chosen_id": f"{prompt}#{best}", "rejected_id": f"{prompt}#{worst}"}
            tables["pairs"].append(pair)
    return tables  # fmt: skip


@pytest.fixture
def made(study, make):
    """A study whose first iteration has these tables; what is before them is filled in."""
    tables = rows()
    for name in study.steps:
        folder, _, table = name.rpartition("/")
        make(study, name, tables[table] if folder == FOLDER and table in tables else None)
        if name == f"{FOLDER}/pairs":
            return study
    raise AssertionError


@pytest.fixture
def found(made):
    return browse.cases(made, FOLDER)


def test_a_case_holds_all_that_became_of_a_draft(found):
    assert [case["id"] for case in found] == list(DRAFTS)
    first = found[0]
    assert [c["score"] for c in first["candidates"]] == [3.0, 1.0, 2.0]
    assert first["candidates"][1]["judgements"][0]["text"] == "Fine.\nScore: 1.0"
    assert (first["chosen"]["id"], first["rejected"]["id"], first["gap"]) == ("p0#0", "p0#1", 2.0)
    assert [case["gap"] for case in found] == [2.0, None, None, 0.25, None, 4.0]
    assert found[1]["candidates"] == []


def test_outcomes_are_counted_and_sum_up(found):
    counts = browse.outcomes(found)
    assert counts == {
        "all": 6,
        "pair": 3,
        "dropped: too similar": 1,
        "no pair: tie": 1,
        "no pair: fewer than two scored": 1,
    }
    assert [case["id"] for case in browse.select(found, "no pair: tie")] == ["p2"]


@pytest.mark.parametrize(
    ("order", "ids"),
    [
        ("as in the table", "p0 p1 p2 p3 p4 p5"),
        ("widest gap first", "p5 p0 p3 p1 p2 p4"),
        ("narrowest gap first", "p3 p0 p5 p1 p2 p4"),
        ("longest chosen first", "p5 p0 p3 p1 p2 p4"),
        ("shortest chosen first", "p0 p3 p5 p1 p2 p4"),
    ],
)
def test_orders(found, order, ids):
    assert [case["id"] for case in browse.select(found, order=order)] == ids.split()


def test_a_case_shows_both_sides_then_all_answers_the_best_first(found):
    html = browse.case_html(found[0])
    assert html.index("chosen") < html.index("rejected") < html.index("All 3 answers")
    below = html[html.index("All 3 answers") :]
    assert re.findall(r"score (\d\.\d+)", below) == ["3.000", "2.000", "1.000"]
    assert below.count("cut at the limit") == 1
    tie = browse.case_html(found[2])
    assert "<details open>" in tie, "without a pair, the answers are what there is to see"
    assert "no score could be read" in browse.case_html(found[4])
    assert "answers" not in browse.case_html(found[1])


def test_a_study_without_the_tables_says_what_to_run(study):
    with pytest.raises(SrkitError, match="Run notebook 04_iteration"):
        browse.cases(study, FOLDER)


def test_the_page_holds_every_case_once_with_its_places(found):
    html = browse.static_html(found, FOLDER)
    assert re.findall(r'<details class="k\d" style="([^"]*)"', html)[5] == (
        "--o0:5;--o1:0;--o2:2;--o3:0;--o4:2"
    )
    assert html.count("<option") == len(browse.outcomes(found)) + len(browse.ORDERS)
    cut = browse.static_html(found, FOLDER, shown=2)
    assert "The first 2 of 6 prompts." in cut
    assert cut.count("<details class=") == 2


def test_widgets_walk_through_what_is_asked_for(made, found, monkeypatch):
    monkeypatch.setattr(browse, "cases", lambda study, folder: found)
    root = browse.browser(made)
    (_, show, order), (back, place, on) = root.children[0].children, root.children[1].children
    text = root.children[2]
    assert "What is p0?" in text.value
    on.click()
    assert "What is p1?" in text.value
    back.click()
    back.click()
    assert "What is p0?" in text.value, "the first one is the first one"
    order.value = "widest gap first"
    assert (place.value, place.max) == (1, 6)
    assert "What is p5?" in text.value
    show.value = "no pair: tie"
    assert "What is p2?" in text.value
    assert place.max == 1
    show.value = "pair"
    place.value = 3
    assert "What is p3?" in text.value


def test_an_iteration_without_drafts_has_nothing_to_walk_through(made, monkeypatch):
    monkeypatch.setattr(browse, "cases", lambda study, folder: [])
    assert "Nothing" in browse.browser(made).children[2].value


def test_papermill_gets_the_page_and_not_widgets(made, monkeypatch):
    monkeypatch.setattr(browse, "in_batch", lambda: True)
    assert "What is p5?" in browse.browser(made, FOLDER).data
