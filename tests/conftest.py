"""Shared fixtures: a small study, a way to fill it, an engine without a model."""

import os
import types

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("srkit", deadline=None, derandomize=True)
settings.load_profile("srkit")

from srkit import blind_items, evaluate, instruct, judge, pairs, two_turn  # noqa: E402
from srkit.engine import Completion  # noqa: E402
from srkit.study import Study  # noqa: E402


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
    """An engine without a model: set `engine.reply(content, seed) -> text`, and
    `engine.score(content, option) -> log-probability`; `engine.calls` are the arguments, after the
    model's name."""
    fake = types.SimpleNamespace(calls=[], reply=lambda content, seed: "", score=lambda c, o: 0.0)

    class Fake:
        def __init__(self, study, name):
            self.name = name

        def sample(self, conversations, n, sampling, seeds):
            assert np.shape(seeds) == (len(conversations), n)
            fake.calls.append((self.name, conversations, n, sampling, seeds))
            texts = [
                [fake.reply(conversation[0]["content"], seed) for seed in row]
                for conversation, row in zip(conversations, seeds, strict=True)
            ]
            return [[Completion(text, len(text.split()), False) for text in row] for row in texts]

        def score_options(self, conversations, options):
            fake.calls.append((self.name, conversations, options))
            scores = [[fake.score(c[0]["content"], o) for o in options] for c in conversations]
            return np.array(scores)

    for module in (blind_items, evaluate, instruct, judge, pairs, two_turn):
        monkeypatch.setattr(module, "open_engine", Fake)
    return fake
