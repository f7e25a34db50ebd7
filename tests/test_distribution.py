"""Near and far, new and known, topics and their drift, on texts whose answers are plain."""

import numpy as np
import pandas as pd
import pytest

from srkit import distribution

SEA = ["The ship sails the sea", "A sea of ships and waves", "Waves rock the ship at sea"]
BAKE = ["Bake bread with flour", "Flour and yeast make bread", "Bread dough needs yeast and flour"]


def test_nearest_by_hand():
    found = distribution.nearest(["a red cat sat", "Dogs bark"], ["the red cat", "A RED CAT SAT!"])
    # the longest common subsequence with the second is all of it
    assert found["rouge"].tolist() == [1, 0]
    assert found["cosine"].tolist() == pytest.approx([1, 0])
    partly = distribution.nearest(["a red cat sat"], ["the red cat"])
    assert partly["rouge"][0] == pytest.approx(2 * 2 / (4 + 3)), "red cat: 2 of 4 and of 3 words"


def test_a_text_is_not_its_own_neighbour():
    found = distribution.nearest(["one two three", "one two four", "other words here"])
    assert found["rouge"].tolist() == pytest.approx([2 / 3, 2 / 3, 0])
    assert distribution.nearest(["only one"])["rouge"].tolist() == [0]


def test_texts_without_words_are_near_nothing():
    found = distribution.nearest(["???", ""], ["the of", "!"])
    assert (found == 0).all().all()
    assert distribution.nearest(["a cat"], []).to_numpy().tolist() == [[0, 0]]
    assert distribution.nearest([], ["a cat"]).empty


def test_novelty_counts_near_duplicates():
    seed = ["List five colours of the rainbow", "Explain how a zip works"]
    own = ["List six colours of the rainbow", "Write a poem about rain", *SEA]
    table = distribution.novelty(
        [("iter-1", own, "the seed", seed), ("IFT", seed, "itself", None)], 50
    ).set_index(["name", "quantity"])
    rows = table.loc["iter-1"]
    assert rows.loc["near-duplicates", "value"] == pytest.approx(1 / 5), "5 of 6 words in order"
    assert rows["n"].tolist() == [5, 5, 5]
    assert (rows["references"] == 2).all()
    assert rows.loc["nearest by ROUGE-L", "low"] < rows.loc["nearest by ROUGE-L", "value"]
    assert table.loc[("IFT", "near-duplicates"), "value"] == 0
    assert table.loc[("IFT", "near-duplicates"), "references"] == 1
    nothing = distribution.novelty([("iter-2", [], "the seed", seed)], 5)
    assert nothing["value"].isna().all()
    assert (nothing["n"] == 0).all()


def test_arms_that_copy_prompts_change_no_topic_and_no_place():
    alone = {"IFT": [*SEA, *BAKE], "a/iter-1": [f"{text} again" for text in (*SEA, *BAKE)]}
    copied = alone | {f"{arm}/iter-1": alone["a/iter-1"] for arm in "bcd"}
    few, many = distribution.assign_topics(alone), distribution.assign_topics(copied)
    assert many["topic"].tolist()[: len(few)] == few["topic"].tolist()
    assert many["topic"].tolist()[-len(SEA + BAKE) :] == few["topic"].tolist()[-len(SEA + BAKE) :]
    drawn, again = distribution.text_map(alone), distribution.text_map(copied)
    places = again[["x", "y"]].to_numpy()
    assert places[: len(drawn)].tolist() == drawn[["x", "y"]].to_numpy().tolist()


def test_topics_separate_what_shares_no_word(monkeypatch):
    monkeypatch.setattr(distribution, "TOPICS", 2)
    topics = distribution.assign_topics({"IFT": [*SEA, *BAKE[:1]], "iter-1": BAKE[1:]})
    assert topics["topic"].tolist()[:3] == [topics["topic"][0]] * 3
    assert topics["topic"].tolist()[3:] == [1 - topics["topic"][0]] * 3
    counts = distribution.topic_counts(topics).set_index(["terms", "name"])
    sea = next(terms for terms in topics["terms"] if "ship" in terms or "sea" in terms)
    bread = topics["terms"].iloc[-1]
    assert "bread" in bread
    assert counts.loc[(sea, "IFT"), ["count", "n"]].tolist() == [3, 4]
    assert counts.loc[(sea, "iter-1"), "share"] == 0
    assert counts.loc[(bread, "iter-1"), "share"] == 1
    assert counts.groupby("name")["share"].sum().tolist() == [1, 1]


def test_drift_against_chance():
    same, other = [0, 1, 2, 3] * 10, [4, 5, 6, 7] * 10
    table = pd.DataFrame(
        [("IFT", t) for t in same] + [("copy", t) for t in same] + [("far", t) for t in other],
        columns=["name", "topic"],
    )
    rows = distribution.topic_drift(table, [("copy", "IFT"), ("far", "IFT"), ("none", "IFT")])
    rows = rows.set_index("name")
    assert rows.loc["copy", "distance"] == 0
    assert rows.loc["far", "distance"] == pytest.approx(1)
    assert 0 < rows.loc["far", "by_chance"] < rows.loc["far", "by_chance_high"] < 0.5
    assert np.isnan(rows.loc["none", "distance"])
    assert rows.loc["none", "n"] == 0


def test_jensen_shannon_by_hand():
    # (1, 0) and (1/2, 1/2), mean (3/4, 1/4): half of log2 4/3, and a quarter of log2 2/3 + log2 2
    one = np.log2(4 / 3)
    other = (np.log2(2 / 3) + np.log2(2)) / 2
    expected = np.sqrt((one + other) / 2)
    found = distribution._distance(np.array([0, 0]), np.array([0, 1]))
    assert found == pytest.approx(expected)


def test_the_map_is_the_same_twice_and_keeps_like_with_like():
    sets = {"IFT": [f"{s} {i}" for i in range(6) for s in SEA], "EFT": BAKE * 6}
    table = distribution.text_map(sets, seed=3)
    assert table.equals(distribution.text_map(sets, seed=3))
    assert table["set"].value_counts().to_dict() == {"IFT": 18, "EFT": 18}
    assert (table["texts"] == 18).all()
    place = table[["x", "y"]].to_numpy()
    apart = np.linalg.norm(place[:, None] - place[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    alike = table["set"].to_numpy()[apart.argmin(axis=1)] == table["set"].to_numpy()
    assert alike.mean() > 0.9


def test_large_sets_are_sampled_and_small_ones_have_no_map(monkeypatch):
    monkeypatch.setattr(distribution, "MAPPED", 5)
    table = distribution.text_map({"IFT": [f"{word} sea" for word in "abcdefghi"], "EFT": SEA})
    assert table["set"].value_counts().to_dict() == {"IFT": 5, "EFT": 3}
    assert table["texts"].tolist() == [9] * 5 + [3] * 3
    few = distribution.text_map({"IFT": SEA, "EFT": []})
    assert few[["x", "y"]].to_numpy().tolist() == [[0, 0]] * 3
    assert distribution.text_map({}).empty
