"""Vectors of a real sentence-embedding model take TF-IDF's place, and are made once."""

import json
from itertools import takewhile

import numpy as np
import pytest

from srkit import distribution, metrics, texts
from srkit.config import SrkitError, resolve
from srkit.distribution import Vectors
from srkit.plan import plan
from srkit.study import Study
from srkit.tiny import tiny_tokenizer

POINTS = Vectors("two", {"up": np.array([0, 2.0]), "right": np.array([1.0, 0]), "half": [3.0, 3.0]})


def test_known_vectors_are_compared_as_they_are():
    found = distribution.nearest(["up"], ["right", "half"], POINTS)
    assert found["cosine"].tolist() == pytest.approx([np.sqrt(0.5)])
    assert found["rouge"].tolist() == [0], "words are not asked for their vectors"
    assert distribution.nearest(["up", "up", "right"], None, POINTS)["cosine"].tolist() == [1, 1, 0]
    assert distribution.nearest(["up"], [], POINTS).to_numpy().tolist() == [[0, 0]]
    assert distribution.nearest([], ["up"], POINTS).empty


def test_topics_and_map_follow_known_vectors(monkeypatch):
    monkeypatch.setattr(distribution, "TOPICS", 2)
    near = {f"same words {i}": [1.0, i / 100] for i in range(4)}
    far = {f"same words {i}": [-1.0, i / 100] for i in range(4, 7)}
    known = Vectors("by-hand", {**near, **far})
    topics = distribution.assign_topics({"IFT": list(near), "iter-1": list(far)}, 0, known)
    assert topics["topic"].tolist() == [0] * 4 + [1] * 3
    found = distribution.text_map({"IFT": list(near), "iter-1": list(far)}, 0, known)
    assert found["vectors"].unique().tolist() == ["by-hand"]
    words = distribution.text_map({"IFT": list(near)})
    assert words["vectors"].unique().tolist() == ["TF-IDF, SVD"]


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """A sentence-embedding model as users have them: a BERT and mean pooling, random weights."""
    modules = pytest.importorskip(
        "sentence_transformers.models",
        reason="needs sentence-transformers: pip install -e '.[embed]'",
    )
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "bert"
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(vocab_size=len(tokenizer), intermediate_size=32, **sizes)
    BertModel(bert).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = modules.Transformer(str(folder))
    path = folder.with_name("sentences")
    SentenceTransformer(modules=[words, modules.Pooling(16)], device="cpu").save(str(path))
    return path


def test_a_named_model_makes_one_vector_for_every_text(sentence_model, tmp_path, make):
    study = Study.open(tmp_path / "study", "tiny", f"eval.embedding_model={sentence_model}")
    told = {"prompt": "Why?", "response": "So.", "target": "Score: 4", "chosen": "Yes."}
    rows = [{**told, "id": str(i), "prompt": f"Why {i}?", "dropped": None} for i in range(3)]
    for name in takewhile("embeddings".__ne__, study.steps):
        make(study, name, rows)
    tables = metrics.make_data_distribution(study)
    assert study.state("embeddings") == "done"
    made = {row["text"]: row["vector"] for row in study.read("embeddings")}
    assert {"Why 0?", "Why 2?", "So.", "Score: 4", "Yes."} < set(made)
    assert len(made) == len(study.read("embeddings")), "every text once"
    (vector,) = texts.load(str(sentence_model)).encode(["Why 2?"])
    assert made["Why 2?"] == pytest.approx(vector.tolist(), abs=1e-6)
    assert tables["map"]["vectors"].unique().tolist() == [str(sentence_model)]
    near = tables["novelty"].set_index(["against", "quantity"])["value"]
    assert near["the test prompts", "nearest by cosine"].tolist() == pytest.approx([1, 1])


def test_without_a_name_nothing_is_planned_and_with_one_it_comes_first():
    assert "embeddings" not in [step.name for step in plan(resolve("tiny"))]
    steps = [step.name for step in plan(resolve("tiny", "eval.embedding_model=a/b"))]
    assert steps.index("embeddings") < steps.index("metrics/data_distribution")


def test_a_model_that_is_not_there_is_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        SrkitError, match=r"eval.embedding_model = .* cannot be loaded.*safetensors"
    ):
        texts.load(str(tmp_path))
