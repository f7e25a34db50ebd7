"""lm-eval on a model of the study: a task of three items, against plain forward passes."""

import json
import sys

import pandas as pd
import pytest

from srkit import benchmarks, harness
from srkit.config import SrkitError, resolve
from srkit.study import Study

ITEMS = [
    {"question": "In 1984 there were 365", "choices": ["days", "moons"], "answer": 0},
    {"question": "7 + 8 =", "choices": ["9", "15", "twelve"], "answer": 1},
    {"question": "Mix the flour with", "choices": ["water", "letters"], "answer": 1},
]
YAML = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}, cache_dir: "{file}.cache"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.5}}
"""


@pytest.fixture
def lm_eval():
    return pytest.importorskip("lm_eval", reason="needs lm-eval: pip install -e '.[eval]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the task, whose data is a local file, and with one whose data is lost."""
    tasks = tmp_path_factory.mktemp("tasks")
    for task, text in (("three_items", "".join(json.dumps(i) + "\n" for i in ITEMS)), ("lost", "")):
        file = tasks / f"{task}.json"
        if text:
            file.write_text(text)
        (tasks / f"{task}.yaml").write_text(YAML.format(task=task, file=file))
    return tasks


@pytest.fixture(scope="module")
def policy():
    from srkit.models import load_policy

    return load_policy(resolve("tiny").model)


def best(policy, plain_logp, item: dict) -> int:
    """The choice that the model finds most likely, by the plainest forward pass."""
    encode = policy.tokenizer.encode
    prompt = encode(item["question"])
    logps = []
    for choice in item["choices"]:
        whole = encode(f"{item['question']} {choice}")
        assert whole[: len(prompt)] == prompt
        logps.append(float(plain_logp(policy.model, prompt, whole[len(prompt) :])))
    return logps.index(max(logps))


def test_items_are_scored_as_plain_forward_passes_say(lm_eval, folder, policy, plain_logp):
    rows = harness.measure(policy, "three_items", folder=str(folder))
    right = [float(best(policy, plain_logp, item) == item["answer"]) for item in ITEMS]
    assert [row["value"] for row in rows] == right
    assert rows[0] == {
        "id": "three_items/0/acc", "task": "three_items", "subtask": "three_items",
        "metric": "acc", "item": "three_items/0", "value": right[0], "version": "2.5",
    }  # fmt: skip
    few = harness.measure(policy, "three_items", 2, str(folder))
    assert few == rows[:2]


def test_log_likelihoods_are_those_of_plain_forward_passes(lm_eval, policy, plain_logp):
    from lm_eval.api.instance import Instance

    asked = [("7 + 8 =", " 15"), ("Mix the flour with", " water, salt and yeast")]
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in asked]
    found = harness.as_lm(policy).loglikelihood(instances)
    for (context, continuation), (logp, _) in zip(asked, found, strict=True):
        prompt = policy.tokenizer.encode(context)
        whole = policy.tokenizer.encode(context + continuation)
        plain = plain_logp(policy.model, prompt, whole[len(prompt) :])
        assert logp == pytest.approx(float(plain), abs=1e-3)


def test_the_step_of_a_study_and_what_is_wrong_with_a_task(lm_eval, folder, tmp_path):
    from srkit.models import open_policy

    settings = f"eval.benchmarks=[three_items] eval.benchmark_tasks={folder}"
    study = Study.open(tmp_path / "s", "tiny", settings)
    rows = harness.make_benchmarks(study, "M0")
    assert len(rows) == 3
    assert study.records()["M0/benchmarks"]["lm_eval"] == lm_eval.__version__
    table = benchmarks.scores(benchmarks.task_items({"M0": study.frame("M0/benchmarks")}), 50)
    assert table["n"].item() == 3
    assert table["value"].item() == sum(row["value"] for row in rows) / 3
    with pytest.raises(SrkitError, match=r"has a task 'three_item'\. Near it: three_items"):
        harness._check_known("three_item", ["three_items", "piqa"], str(folder))
    with pytest.raises(SrkitError, match="is no folder"):
        harness.measure(None, "three_items", folder=str(tmp_path / "none"))
    with pytest.raises(SrkitError, match="could not run the task 'lost' on M0"):
        harness.measure(open_policy(study, "M0"), "lost", folder=str(folder))


def test_without_lm_eval_it_is_said_what_to_install(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SrkitError, match=r"pip install -e '\.\[eval\]'"):
        harness.measure(None, "arc_easy")


def test_a_metric_without_a_number_per_item_is_left_out():
    sample = {"doc_id": 4, "filter": "strict", "metrics": ["acc", "f1", "nll", "hit"]}
    sample |= {"acc": 1, "f1": (1, 0), "nll": float("nan"), "hit": True}
    rows = harness._rows("mmlu", "mmlu_law", sample, "1")
    assert [(row["id"], row["value"]) for row in rows] == [
        ("mmlu_law/4/acc, strict", 1.0),
        ("mmlu_law/4/hit, strict", 1.0),
    ]


def test_items_of_tasks_become_shares_or_points():
    row = {"task": "mmlu", "metric": "acc", "item": "mmlu_law/1", "value": 1.0}
    other = {"task": "tale", "metric": "nll", "item": "tale/1", "value": 0.5}
    tables = {"M0": pd.DataFrame([row, other]), "M1": pd.DataFrame([row, other | {"value": 3.0}])}
    items = benchmarks.task_items(tables)
    assert items.groupby("benchmark")["unit"].unique().map(list).to_dict() == {
        "mmlu": ["share"],
        "tale": ["points"],
    }
    change = benchmarks.changes(items, [("M1", "M0")], 50).set_index("benchmark")
    assert change["value"].to_dict() == {"mmlu": 0.0, "tale": 2.5}
    assert benchmarks.task_items({"M0": pd.DataFrame()}).empty
    assert benchmarks.task_items({}).empty


def test_steps_are_there_only_where_tasks_are_named(tmp_path):
    without = Study.open(tmp_path / "a", "tiny").steps
    assert [name for name in without if name.endswith("benchmarks")] == ["metrics/benchmarks"]
    steps = Study.open(tmp_path / "b", "tiny", "eval.benchmarks=[piqa]").steps
    models = ["M0", "baseline", "M1", "self-rewarding/M2", "self-rewarding/M3"]
    names = [f"{model}/benchmarks" for model in models]
    assert set(names) < set(steps)
    assert set(names) < set(steps["metrics/benchmarks"].inputs)
    assert steps["M0/benchmarks"].inputs == ()
    assert "model" in steps["M0/benchmarks"].settings
    assert steps["M1/benchmarks"].inputs == ("M1/adapter",)
