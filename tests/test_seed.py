"""The seed data: the kit's own files, folders of the same shape, Open Assistant rows."""

import gzip
import json
import re
import shutil
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from srkit.config import Config, SrkitError, resolve
from srkit.instruct import max_rouge, rouge_tokens
from srkit.prompts import judgement_text, parse_score
from srkit.seed import FILES, KIT, SeedData, first_turns, load, make_seed
from srkit.study import Study

OASST = Path(__file__).resolve().parents[2] / "shared" / "data" / "oasst1"
TABLES = ("ift", "eft", "eft_eval", "test_prompts")
WHOLE = "seed.ift=9999 seed.eft_prompts=9999 seed.eval_prompts=9999 seed.test_prompts=9999"


def config(source: str | Path = "kit", overrides: str = WHOLE, words: int = 9999) -> Config:
    return resolve("tiny", f"'seed.source={source}' seed.max_words={words} {overrides}")


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def prompts(data: SeedData) -> dict[str, set[str]]:
    return {name: {normal(row["prompt"]) for row in getattr(data, name)} for name in TABLES}


def assert_disjoint(data: SeedData) -> None:
    sets = prompts(data)
    for i, one in enumerate(TABLES):
        for other in TABLES[i + 1 :]:
            assert not sets[one] & sets[other], f"{one} and {other}"


@pytest.fixture(scope="module")
def kit() -> SeedData:
    return load(config())


def test_tables_of_two_versions_of_a_source_are_not_mixed(tmp_path, caplog):
    """A prompt that moved from the tests to IFT in between would be in both."""
    source = shutil.copytree(KIT, tmp_path / "own")
    settings = f"seed.source={source}"
    study = Study.open(tmp_path / "study", "tiny", settings)
    first = make_seed(study)
    rows = [json.loads(line) for line in (source / "ift.jsonl").read_text("utf-8").splitlines()]
    rows[0]["response"] = "Another answer."
    (source / "ift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert make_seed(study) == first
    assert "was changed after seed/ift, seed/eft, seed/eft_eval, seed/test_prompts" in caplog.text
    (study.path / "seed/ift.jsonl").unlink()
    with pytest.raises(SrkitError, match=r"was changed after seed/eft, .*delete .*seed/\*\.jsonl"):
        make_seed(study)
    for table in (study.path / "seed").glob("*.jsonl"):
        table.unlink()
    assert {row["response"] for row in make_seed(study).ift} != {r["response"] for r in first.ift}
    shutil.rmtree(source)
    assert len(make_seed(study).ift) == len(first.ift), "finished tables need no source"


# --- the kit's own files -------------------------------------------------------------------------


def test_the_kit_is_as_large_as_it_says(kit):
    assert len(kit.ift) >= 160
    assert len(kit.test_prompts) >= 64
    train, held_out = ({row["prompt_id"] for row in rows} for rows in (kit.eft, kit.eft_eval))
    assert len(train | held_out) >= 100
    assert len(held_out) == 40
    assert set(Counter(row["prompt_id"] for row in kit.eft + kit.eft_eval).values()) == {3, 4}
    readme = (KIT.parent / "README.md").read_text()
    assert f"{len(kit.ift)} prompts" in readme
    assert f"{len(train | held_out)} prompts ({len(train)} train, {len(held_out)} eval)" in readme
    assert f"{len(kit.test_prompts)} prompts" in readme


def test_ten_tasks_are_spread_evenly(kit):
    for rows in (kit.ift, kit.test_prompts):
        counts = Counter(row["task"] for row in rows)
        assert len(counts) == 10
        assert len(set(counts.values())) == 1
    for rows in (kit.eft, kit.eft_eval):
        assert {row["task"] for row in rows} == {row["task"] for row in kit.ift}


def test_no_prompt_stands_on_two_sides(kit):
    assert_disjoint(kit)
    for name, rows in (("ift", kit.ift), ("test_prompts", kit.test_prompts)):
        assert len(prompts(kit)[name]) == len(rows)
    of_prompt = {row["prompt_id"]: normal(row["prompt"]) for row in kit.eft + kit.eft_eval}
    assert len(set(of_prompt.values())) == len(of_prompt)


def test_held_out_prompts_are_not_even_nearly_those_trained_on(kit):
    trained = [rouge_tokens(p) for p in prompts(kit)["ift"] | prompts(kit)["eft"]]
    for prompt in prompts(kit)["eft_eval"] | prompts(kit)["test_prompts"]:
        assert max_rouge(rouge_tokens(prompt), trained) < 0.8, prompt


def test_ids_are_keys(kit):
    for name in TABLES:
        ids = [row["id"] for row in getattr(kit, name)]
        assert len(set(ids)) == len(ids)
    assert not {r["id"] for r in kit.eft} & {r["id"] for r in kit.eft_eval}


def test_ranks_and_reference_scores_and_grades_agree(kit):
    grade = {"complete": {5}, "minor_gap": {4}, "padded": {3, 4}, "partial": {3}, "vague": {2},
             "truncated": {2}, "wrong_format": {2}, "wrong": {1}, "echo": {1}, "refusal": {0, 1},
             "off_topic": {0}, "garbled": {0}}  # fmt: skip
    responses = defaultdict(list)
    for row in kit.eft + kit.eft_eval:
        responses[row["prompt_id"]].append(row)
        assert row["score"] in grade[row["made"]]
        assert parse_score(judgement_text(row["rationale"], row["score"])) == row["score"]
    for rows in responses.values():
        ordered = sorted(rows, key=lambda row: row["rank"])
        assert [row["rank"] for row in ordered] == list(range(len(rows)))
        assert all(a["score"] > b["score"] for a, b in pairwise(ordered))
        assert len({normal(row["response"]) for row in rows}) == len(rows)


def test_lengths_are_those_that_the_readme_promises(kit):
    assert all(10 <= len(row["response"].split()) <= 60 for row in kit.ift)
    ranked = kit.eft + kit.eft_eval
    assert all(6 <= len(row["response"].split()) <= 60 for row in ranked)
    assert all(len(row["rationale"].split()) <= 100 for row in ranked)
    assert all(row["prompt"].isascii() and row["prompt"].strip() == row["prompt"] for row in ranked)


def test_neither_length_nor_position_gives_the_grade_away(kit):
    ranked = pd.DataFrame(kit.eft + kit.eft_eval)
    both = ranked.merge(ranked, on="prompt_id")
    both = both[both["rank_x"] < both["rank_y"]]
    longer = both["response_x"].str.split().str.len() - both["response_y"].str.split().str.len()
    assert 0.4 < (longer[longer != 0] > 0).mean() < 0.6
    first = ranked["id"].str.endswith("-a")
    assert 0.15 < ranked[first]["rank"].eq(0).mean() < 0.45


def test_sizes_limit_and_the_order_depends_on_the_seed_alone(kit):
    small = load(
        config(overrides="seed.ift=5 seed.eft_prompts=3 seed.eval_prompts=2 seed.test_prompts=4")
    )
    assert small.ift == kit.ift[:5]
    assert small.test_prompts == kit.test_prompts[:4]
    assert len({row["prompt_id"] for row in small.eft}) == 3
    assert len({row["prompt_id"] for row in small.eft_eval}) == 2
    assert small.eft == kit.eft[: len(small.eft)]
    other = load(config(overrides=f"{WHOLE} random_seed=1"))
    assert other.ift != kit.ift
    assert sorted(row["id"] for row in other.ift) == sorted(row["id"] for row in kit.ift)
    assert prompts(other) == prompts(kit), "who is held out is written in the file"


def test_long_rows_are_left_out_and_counted(kit):
    short = load(config(words=30))
    assert max(len(row["response"].split()) for row in short.ift + short.eft) <= 30
    left, everything = (
        {row["id"] for row in d.ift + d.test_prompts}
        | {row["prompt_id"] for row in d.eft + d.eft_eval}
        for d in (short, kit)
    )
    assert short.counts == {"longer than seed.max_words": len(everything) - len(left)}
    assert short.counts["longer than seed.max_words"] > 0
    with pytest.raises(SrkitError, match=r"no rows for seed/ift.*seed.max_words \(now 1\)"):
        load(config(words=1, overrides=""))


def test_the_steps_write_what_load_gives(study):
    data = make_seed(study)
    assert data.ift == load(study.config).ift == study.read("seed/ift")
    assert data.eft_eval == study.read("seed/eft_eval")
    assert study.manifest()[0]["counts"] == {"longer than seed.max_words": 0}
    lines = len(study.manifest())
    make_seed(study)
    assert len(study.manifest()) == lines == 4
    (study.path / "seed/eft.jsonl").unlink()
    assert make_seed(study).eft == data.eft
    assert [row["step"] for row in study.manifest()[4:]] == ["seed/eft"]


# --- a folder of the same shape ------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in FILES:
        shutil.copy(KIT / name, tmp_path / name)
    return tmp_path


def test_a_folder_of_the_same_shape_is_the_same(folder, kit):
    assert load(config(folder)).ift == kit.ift


def test_a_missing_file_is_named(folder):
    (folder / "eft.jsonl").unlink()
    with pytest.raises(
        SrkitError, match=r"has no eft.jsonl\. .*ift.jsonl, eft.jsonl, test_prompts"
    ):
        load(config(folder))


def change(file: Path, line: int, edit) -> None:
    lines = file.read_text().splitlines()
    row = json.loads(lines[line - 1])
    lines[line - 1] = edit(row) or json.dumps(row)
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("ift", lambda r: r.pop("response") and None, "response: Field required"),
        ("ift", lambda r: r.update(response=""), "response: there is no text in it"),
        ("ift", lambda r: r.update(response=None), "response: Input should be a valid string"),
        ("ift", lambda r: r.update(output="x"), "output: Extra inputs are not permitted"),
        ("ift", lambda r: r.update(id=7), "id: Input should be a valid string"),
        ("ift", lambda r: "{'id': 1}", "not JSON"),
        ("ift", lambda r: "[]", "not a JSON object"),
        ("eft", lambda r: r.update(split="test"), "split: Input should be 'train' or 'eval'"),
        (
            "eft",
            lambda r: r["responses"][1].update(score=6),
            "responses.1.score: .*less than or equal",
        ),
        (
            "eft",
            lambda r: r["responses"][1].update(score="3"),
            "responses.1.score: .*valid integer",
        ),
        ("eft", lambda r: r["responses"][1].update(score=2.5), "responses.1.score: "),
        (
            "eft",
            lambda r: r["responses"][0].pop("text") and None,
            "responses.0.text: Field required",
        ),
        ("eft", lambda r: r.update(responses=r["responses"][:1]), "responses: .*at least 2 items"),
        ("test_prompts", lambda r: r.update(constraints=None), "constraints: .*valid list"),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_field(folder, file, edit, message):
    change(folder / f"{file}.jsonl", 7, edit)
    with pytest.raises(SrkitError, match=rf"{file}.jsonl, line 7: {message}"):
        load(config(folder))


def test_repeated_ids_are_named(folder):
    change(folder / "ift.jsonl", 7, lambda row: row.update(id="ift-003"))
    with pytest.raises(
        SrkitError, match=r"ift.jsonl, line 7: the id 'ift-003' occurs more than once .*line 3"
    ):
        load(config(folder))


def test_repeated_ids_of_responses_are_named(folder):
    change(folder / "eft.jsonl", 7, lambda row: row["responses"][1].update(id="eft-001-a"))
    with pytest.raises(
        SrkitError, match=r"eft.jsonl, line 7: the id 'eft-001-a' occurs more than once .*line 1"
    ):
        load(config(folder))


@pytest.mark.parametrize("file", ["eft", "test_prompts"])
def test_held_out_prompts_that_are_trained_on_are_refused(folder, file):
    trained = json.loads((folder / "ift.jsonl").read_text().splitlines()[4])["prompt"]
    line, name = (91, "eft-091") if file == "eft" else (7, "test-007")
    change(
        folder / f"{file}.jsonl",
        line,
        lambda r: (
            r.update(prompt=f" {trained.upper()}", split="eval")
            if file == "eft"
            else r.update(prompt=trained.replace(" ", "  "))
        ),
    )
    with pytest.raises(SrkitError, match=f"held-out prompt {name} has the same text as ift-005"):
        load(config(folder))


def test_a_file_in_another_encoding_is_an_error_of_the_kit(folder):
    (folder / "ift.jsonl").write_bytes("für".encode("latin-1"))
    with pytest.raises(SrkitError, match=r"ift.jsonl, line 1: not UTF-8"):
        load(config(folder))


# --- Open Assistant rows -------------------------------------------------------------------------


def message(name, text, parent=None, rank=None, **more):
    row = {"message_id": name, "parent_id": parent, "text": text, "rank": rank, "lang": "en"}
    row |= {"role": "assistant" if parent else "prompter", "review_result": True, "deleted": False}
    return row | {"synthetic": False, "message_tree_id": name[:3], **more}


def tree(name, text, *replies, **more):
    """A prompt and replies `(text, rank, fields)`."""
    rows = [message(name, text, **more)]
    for i, (reply, rank, fields) in enumerate(replies):
        rows.append(message(f"{name}-r{i}", reply, name, rank, **fields))
    return rows


def ranked(name, text, order=(0, 1, 2)):
    return tree(name, text, *((f"reply of rank {rank} to {text}", rank, {}) for rank in order))


ROWS = [
    *(row for i in range(20) for row in ranked(f"p{i:02d}", f"Ranked question {i}?", (2, 0, 1))),
    *(row for i in range(20, 30) for row in ranked(f"p{i}", f"Question {i}?", (0,))),
    *tree("deleted", "A deleted prompt?", ("no", 0, {}), deleted=True),
    *tree("german", "Eine Frage?", ("nein", 0, {"lang": "de"}), lang="de"),
    *tree("rejected", "A rejected prompt?", ("no", 0, {}), review_result=False),
    *tree("unseen", "A prompt that nobody reviewed?", ("no", 0, {}), review_result=None),
    *tree("few", "Which replies count?",
          ("a deleted reply", 0, {"deleted": True}),
          ("a rejected reply", 1, {"review_result": False}),
          ("a reply that nobody reviewed", 2, {"review_result": None}),
          ("eine Antwort", 3, {"lang": "de"}),
          ("an unranked reply", None, {}),
          ("the better reply", 4, {}),
          ("the worse reply", 5, {})),
    *tree("again", "  RANKED question\n3? ", ("the reply of the copy", 0, {})),
    *tree("alike", "Equal ranks?", ("one", 0, {}), ("two", 0, {})),
    *tree("unranked", "No ranks?", ("one", None, {}), ("two", None, {})),
    *tree("long", "word " * 60, ("short", 0, {})),
    *tree("wordy", "Long replies?", ("word " * 60, 0, {}), ("short", 1, {}), ("shorter", 2, {})),
    message("turn-2", "And then?", "p00-r0", role="prompter"),
    message("turn-2-r0", "Then this.", "turn-2", 0),
]  # fmt: skip


def write(path: Path, rows: list[dict]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


@pytest.fixture(scope="module", params=["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def oasst(request, tmp_path_factory) -> SeedData:
    path = write(tmp_path_factory.mktemp("oasst") / request.param, ROWS)
    return load(config(path, words=50))


def test_open_assistant_rows_in_three_formats(oasst):
    assert_disjoint(oasst)
    # Ranked: 20, `few` and `wordy`, of which a quarter is held out and two fifths are for EFT.
    assert len({row["prompt_id"] for row in oasst.eft_eval}) == 22 // 4
    assert len({row["prompt_id"] for row in oasst.eft}) == 2 * 22 // 5
    # The rest: 22 - 5 - 8, ten with one reply, `alike`; a fifth of them are test prompts.
    assert len(oasst.test_prompts) == (22 - 5 - 8 + 10 + 1) // 5
    for row in oasst.ift:
        assert row["response"].startswith(("reply of rank 0", "one")), row
    assert oasst.counts == {
        "not English, deleted, or not reviewed": 4,
        "the same prompt again": 1,
        "no ranked reply within seed.max_words": 1,
        "prompt longer than seed.max_words": 1,
    }


def test_ranks_are_counted_from_the_best_reply_that_is_left(oasst):
    turns, _ = first_turns(ROWS, 50)
    replies = {turn["id"]: [r["text"] for r in turn["replies"]] for turn in turns}
    assert replies["few"] == ["the better reply", "the worse reply"]
    assert replies["wordy"] == ["short", "shorter"]
    best = {turn["id"]: turn["best"] for turn in turns}
    assert best["few"] is None, "its reply of rank 0 is not there: not for IFT"
    assert best["wordy"] is None
    groups = defaultdict(list)
    for row in oasst.eft + oasst.eft_eval:
        groups[row["prompt_id"]].append(row)
        assert (row["made"], row["rationale"], row["score"]) == (None, None, None)
    for prompt_id, rows in groups.items():
        assert [row["rank"] for row in rows] == list(range(len(rows)))
        if prompt_id.startswith("p"):
            assert [row["response"][14] for row in rows] == ["0", "1", "2"]


def test_left_out_rows_are_nowhere(oasst):
    text = json.dumps([getattr(oasst, name) for name in TABLES])
    for gone in ("deleted", "Frage", "Antwort", "rejected", "nobody", "unranked", "copy",
                 "And then", "word word", "No ranks"):  # fmt: skip
        assert gone not in text, gone
    ranked_ids = {row["prompt_id"] for row in oasst.eft + oasst.eft_eval}
    assert "alike" not in ranked_ids, "equal ranks are no ranking"


def test_formats_give_the_same_tables(tmp_path):
    def tables(name):
        data = load(config(write(tmp_path / name, ROWS), words=50))
        return [getattr(data, table) for table in TABLES]

    assert tables("a.jsonl") == tables("a.jsonl.gz") == tables("a.parquet")


def test_which_side_a_prompt_is_on_does_not_depend_on_the_order_of_rows(tmp_path):
    rows = [row for row in ROWS if not row["message_id"].startswith(("again", "alike"))]
    one = load(config(write(tmp_path / "a.jsonl", rows), words=50))
    other = load(config(write(tmp_path / "b.jsonl", rows[::-1]), words=50))
    for name in TABLES:
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"message_id": "x"}', "parent_id: Field required"),
        ("[1]", "not a JSON object"),
        ("{", "not JSON"),
        (json.dumps(message("x", " ")), "text: there is no text in it"),
        (json.dumps(message("x", None)), "text: Input should be a valid string"),
        (json.dumps(message("x", "y", rank="0")), "rank: '0' must be 0, 1, 2"),
        (json.dumps(message("x", "y", rank=-1)), "rank: -1 must be 0"),
        (json.dumps(message("x", "y", rank=0.5)), "rank: 0.5 must be 0"),
    ],
)
def test_a_broken_message_row_is_named(tmp_path, line, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(ROWS[0])}\n\n{line}\n")
    with pytest.raises(SrkitError, match=rf"rows.jsonl, line 3: {re.escape(message)}"):
        load(config(file))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet"])
@pytest.mark.parametrize("damage", ["cut", "other bytes", "flipped", "empty"])
def test_a_damaged_file_is_an_error_of_the_kit(tmp_path, name, damage):
    file = write(tmp_path / name, ROWS)
    data = file.read_bytes()
    middle = len(data) // 2
    flipped = bytes(b ^ 255 for b in data[middle : middle + 40])
    damaged = {
        "cut": data[:middle],
        "other bytes": b"hello\n",
        "empty": b"",
        "flipped": data[:middle] + flipped + data[middle + 40 :],
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(SrkitError, match=rf"{name}"):
        load(config(file))


@pytest.mark.parametrize(
    "source", ["nowhere.jsonl", "./nowhere", "/no/where", "~/x", "word", "a/b/c"]
)
def test_a_source_that_is_nothing(source):
    with pytest.raises(
        SrkitError, match="neither `kit`, a folder, a file that exists, nor a hub id"
    ):
        load(config(source))


def test_a_hub_id_may_hold_a_dot(monkeypatch):
    import srkit.seed

    monkeypatch.setattr(srkit.seed, "_from_hub", lambda source: [message("x", source)])
    with pytest.raises(SrkitError, match=r"Org/data-v1.0 gives no rows for seed/ift"):
        load(config("Org/data-v1.0"))


def test_a_source_that_is_too_small_says_what_was_left_out(tmp_path):
    with pytest.raises(SrkitError, match=r"no rows for seed/eft: \{'not English"):
        load(
            config(
                write(tmp_path / "a.jsonl", [*ROWS[-30:], *tree("x", "X?", ("x", 0, {}))]), words=50
            )
        )


@pytest.mark.parametrize("name", ["train", "validation"])
def test_the_real_rows(name):
    file = OASST / f"{name}.messages.jsonl.gz"
    if not file.exists():
        pytest.skip(f"needs Open Assistant rows, which are not shipped: put them at {file}")
    data = load(config(file, overrides=f"{WHOLE} seed.eval_prompts=40", words=300))
    assert_disjoint(data)
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    turns, _ = first_turns(rows, 10**9)
    several = [turn for turn in turns if len(turn["replies"]) > 1]
    assert len(several) == {"train": 717, "validation": 186}[name]
    assert len({row["prompt_id"] for row in data.eft_eval}) == 40
    ranks = defaultdict(list)
    for row in data.eft + data.eft_eval:
        ranks[row["prompt_id"]].append(row["rank"])
    assert all(sorted(r) == list(range(len(r))) and len(r) >= 2 for r in ranks.values())
    assert all(len(row["response"].split()) <= 300 for row in data.ift)
    assert len(data.ift) > {"train": 1500, "validation": 50}[name]
