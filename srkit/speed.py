"""How fast this machine is with a study's own model: some 20 seconds of work, measured once.

A child process loads the model, scores and samples a few of the kit's prompts, and trains a few
examples, with the functions that the study uses. What comes out is kept in `model.cache`, under a
key of all that it depends on: model, adapter, machine, threads, versions, and the engine's code.

Surprising decisions:
- Decoding has two prices, one per forward pass (reading the weights) and one per row in it: tokens
  per second alone would be wrong for every batch but the one that was measured.
- A token with a loss costs more than one without, by the output layer's share of the model.
- Texts are measured in characters; how many make a token is measured too. So later forecasts need
  neither the model nor its tokenizer, and take no time.

    python -c "from srkit.config import Model; from srkit.speed import *; print(measure(Model()))"
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from srkit.config import Model, Sft, SrkitError, resolve
from srkit.memory import Shape
from srkit.prompts import judge_prompt, user
from srkit.study import provenance, write_atomically


@dataclass(frozen=True)
class Speed:
    """Seconds and tokens per second of one model on one machine, and how its tokens count."""

    start_seconds: float  # to import torch and load the model, once a notebook
    switch_seconds: float  # to put an adapter on it and check it
    call_seconds: float  # to prepare a call of the engine
    prefill_tokens: float  # of prompts, a second
    pass_seconds: float  # of decoding, whatever the rows
    row_seconds: float  # of decoding, for each row
    train_tokens: float  # a second; a token with a loss counts for more, see `work`
    training_seconds: float  # around a training: adapter, trainer, fingerprint
    characters: float = 4.3  # per token
    turn: float = 30.0  # tokens that the chat template adds to a conversation
    threads: int = 1


def work(shape: Shape, tokens: float, labelled: float) -> float:
    """Trained tokens, counted so that one with a loss also pays for the output layer."""
    return tokens + labelled * shape.head / shape.linear_parameters


def cached(model: Model) -> Speed | None:
    """What was measured before, or None."""
    file = _file(model)
    return Speed(**json.loads(file.read_text("utf-8"))) if file.exists() else None


def measurable(model: Model, device: str) -> bool:
    """Whether the model lies on this machine, and the device that it is meant for is here."""
    if model.quantization == "nf4" and device == "cpu":
        return False
    if model.name in ("tiny", "smollm2-135m") or Path(model.name).expanduser().exists():
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model.name, "model.safetensors.index.json"), str)


def measure(model: Model) -> Speed:
    """Measure in a child process, about 20 s on two cores with the embedded model, and keep it.

    Raises: SrkitError if the model cannot be loaded or asked here.
    """
    call = "import sys; from srkit.speed import _child; _child(sys.argv[1], sys.argv[2])"
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "speed.json"
        command = [sys.executable, "-c", call, model.model_dump_json(), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise SrkitError(f"Could not measure {model.name} on this machine: {reason}")
        text = answer.read_text("utf-8")
    write_atomically(_file(model), text)
    return Speed(**json.loads(text))


def _file(model: Model) -> Path:
    here = Path(__file__).parent
    code = [(here / name).read_bytes().hex() for name in ("generate.py", "train.py")]
    facts = {k: v for k, v in provenance().items() if k != "commit"}
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    facts |= {name: os.environ.get(name) for name in names}
    text = json.dumps([model.model_dump(exclude={"cache"}), facts, code], sort_keys=True)
    return Path(model.cache) / f"speed-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def _child(model: str, answer: str) -> None:
    """What the child process does: measure, and write a Speed as JSON."""
    Path(answer).write_text(json.dumps(asdict(_measured(Model.model_validate_json(model)))))


def _measured(model: Model) -> Speed:
    began = time.monotonic()
    import torch

    from srkit.generate import Sampling, sample, score_options
    from srkit.models import attach_adapter, encode_prompt, load_base, load_policy
    from srkit.seed import load
    from srkit.train import Example, train_sft

    policy = load_policy(model)
    start = time.monotonic() - began
    data = load(resolve("cpu"))  # the kit's own texts
    ranked = [judge_prompt("additive", r["prompt"], r["response"]) for r in data.eft]
    asked = [user(row["prompt"]) for row in data.test_prompts]
    characters, turn = _tokens([encode_prompt(policy.tokenizer, c) for c in ranked + asked],
                               ranked + asked)  # fmt: skip

    def new(conversations: list) -> int:
        ids = [encode_prompt(policy.tokenizer, c) for c in conversations]
        shared = len(os.path.commonprefix(ids))  # noqa: RUF071
        return sum(map(len, ids)) - (len(ids) - 1) * shared

    def scored(count: int) -> float:
        return _seconds(lambda: score_options(policy, ranked[:count], [" 1", " 2"]))

    def sampled(rows: int, tokens: int) -> tuple[float, int]:
        drawn = []
        seconds = _seconds(
            lambda: drawn.extend(
                sample(policy, asked[:rows], 1, Sampling(tokens), [[i] for i in range(rows)])
            )
        )
        known = call + new(asked[:rows]) / prefill
        return max(seconds - known, 1e-6), sum(c.tokens for (c,) in drawn)

    scored(2)  # the first call is slower
    few, many = scored(2), scored(16)
    prefill = (new(ranked[:16]) - new(ranked[:2])) / max(many - few, 1e-6)
    call = max(few - new(ranked[:2]) / prefill, 0.0)
    a_pass, a_row = _prices(16, sampled(4, 16), sampled(32, 16))

    mixed = [Example(user(r["prompt"]), r["response"]) for r in data.ift[:4]]
    mixed += [Example(prompt, "Score: 3") for prompt in ranked[:4]]
    settings = Sft(epochs=1, learning_rate=1e-4, final_learning_rate_ratio=0.1, batch_size=4)
    settings = settings.model_copy(update={"micro_batch": 4})
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        around = _seconds(lambda: runs.append(train_sft(model, mixed, settings, Path(folder), 0)))
        run = runs[0]
        base = load_base(model)
        switch = _seconds(lambda: attach_adapter(_policy(base), Path(folder)))
        shape = Shape.of(base[0].config)
    return Speed(
        start_seconds=start,
        switch_seconds=switch,
        call_seconds=call,
        prefill_tokens=prefill,
        pass_seconds=a_pass,
        row_seconds=a_row,
        train_tokens=work(shape, run.tokens, run.trained_tokens) / run.seconds,
        training_seconds=around - run.seconds,
        characters=characters,
        turn=turn,
        threads=torch.get_num_threads(),
    )


def _policy(base: tuple):
    from srkit.models import Policy

    return Policy(*base, "measured")


def _seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _prices(passes: int, few: tuple[float, int], many: tuple[float, int]) -> tuple[float, float]:
    """Seconds per pass and per row-token, from two runs of `passes` with few and many rows."""
    row = max((many[0] - few[0]) / max(many[1] - few[1], 1), 0.0)
    return max((few[0] - few[1] * row) / passes, 0.0), row


def _tokens(encoded: list[list[int]], conversations: list) -> tuple[float, float]:
    """Least squares of tokens = turn + characters / (characters per token)."""
    import numpy as np

    lengths = [sum(len(m["content"]) for m in c) for c in conversations]
    slope, turn = np.polyfit(lengths, [len(ids) for ids in encoded], 1)
    return float(1 / slope), float(turn)
