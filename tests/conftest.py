"""Shared fixtures: a small study, a way to fill it, an engine without a model."""

import os
import sys
import types
from collections import namedtuple

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("srkit", deadline=None, derandomize=True)
settings.load_profile("srkit")

from srkit.study import Study  # noqa: E402

Completion = namedtuple("Completion", "text tokens truncated")
Sampling = namedtuple("Sampling", "max_tokens temperature top_p stop", defaults=(None,))


@pytest.fixture
def study(tmp_path) -> Study:
    """A new study with the preset tiny."""
    return Study.open(tmp_path / "study", "tiny")


@pytest.fixture
def plain_logp():
    """`plain_logp(model, prompt, completion)`: the log-probability of a completion's tokens, by the
    plainest forward pass: one sequence, token i scored by the logits at i - 1."""

    def score(model, prompt: list[int], completion: list[int]):
        import torch

        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        targets = torch.tensor(completion)[:, None]
        return logits.float().log_softmax(-1).gather(-1, targets).sum()

    return score


@pytest.fixture
def make():
    """`make(study, step, rows)`: make any step with the given rows, or with two of its own."""

    def make(study: Study, name: str, rows: list[dict] | None = None) -> None:
        step = study.step(name)
        rows = [{"id": f"{name}-{i}"} for i in range(2)] if rows is None else rows

        def folder(path) -> dict:
            for output in step.outputs:
                (study.path / output.replace(name, str(path))).write_text(f"{name}\n")
            return {"steps": 3}

        if len(step.outputs) > 1:
            study.make_folder(name, folder)
        elif step.outputs[0].endswith(".jsonl"):
            study.make_table(name, rows, lambda part, _: list(part), chunk=1)
        else:
            study.make_file(name, lambda: f"{name}\n")

    return make


@pytest.fixture
def engine(monkeypatch):
    """Stand-ins for srkit.generate and srkit.models: set `engine.reply(content, seed) -> text`,
    and `engine.score(content, option) -> log-probability`; `engine.calls` are the arguments."""
    fake = types.SimpleNamespace(calls=[], reply=lambda content, seed: "", score=lambda c, o: 0.0)

    def sample(policy, conversations, n, sampling, seeds):
        import numpy as np

        assert np.shape(seeds) == (len(conversations), n)
        fake.calls.append((policy, conversations, n, sampling, seeds))
        texts = [
            [fake.reply(conversation[0]["content"], seed) for seed in row]
            for conversation, row in zip(conversations, seeds, strict=True)
        ]
        return [[Completion(text, len(text.split()), False) for text in row] for row in texts]

    def score_options(policy, conversations, options):
        import numpy as np

        fake.calls.append((policy, conversations, options))
        return np.array([[fake.score(c[0]["content"], o) for o in options] for c in conversations])

    for name, members in {
        "srkit.generate": {"sample": sample, "score_options": score_options, "Sampling": Sampling},
        "srkit.models": {"open_policy": lambda study, name: name},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return fake
