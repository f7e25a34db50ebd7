"""How fast this machine is with a study's own model: half a minute of work, measured once.

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
from typing import TYPE_CHECKING

from srkit.config import Model, Sft, SrkitError, resolve
from srkit.disk import write_atomically
from srkit.memory import Shape
from srkit.prompts import Conversation, judge_prompt, user
from srkit.provenance import provenance

if TYPE_CHECKING:
    from srkit.models import Policy

# what a measured speed belongs to: another version of these is measured anew
CODE = ("generate", "kv_cache", "linears", "train", "trainers", "logps", "speed")


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

    files = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(model.name, file), str) for file in files)


def measure(model: Model) -> Speed:
    """Measure in a child process, 40 s on two cores with the embedded model, and keep it.

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
    code = [(here / f"{name}.py").read_text("utf-8") for name in CODE]
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

    from srkit.chat import encode_prompt
    from srkit.models import load_policy
    from srkit.seed import load

    load_policy(model)
    start = time.monotonic() - began
    data = load(resolve("cpu"))  # the kit's own texts
    ranked = [judge_prompt("additive", r["prompt"], r["response"]) for r in data.eft]
    asked = [user(row["prompt"]) for row in data.test_prompts]
    middle, by_length = len(ranked) // 2, sorted(ranked, key=lambda c: len(c[0]["content"]))
    alike = by_length[middle - 2 : middle + 2]  # little padding, as in a study's sorted batches
    train, training, switch = _training(model, alike, ["Score: 3"] * 4)
    policy = load_policy(model)
    encoded = [encode_prompt(policy.tokenizer, c) for c in ranked + asked]
    characters, turn = _tokens(encoded, ranked + asked)
    call, prefill = _reading(policy, ranked)
    a_pass, a_row = _writing(policy, asked, call, prefill)
    answers = [row["response"] for row in data.ift[:2]]
    train, training, switch = _training(
        model, asked[:2] + ranked[:2], [*answers, *["Score: 3"] * 2]
    )
    return Speed(
        start_seconds=start,
        switch_seconds=switch,
        call_seconds=call,
        prefill_tokens=prefill,
        pass_seconds=a_pass,
        row_seconds=a_row,
        train_tokens=train,
        training_seconds=training,
        characters=characters,
        turn=turn,
        threads=torch.get_num_threads(),
    )


def _reading(policy: Policy, prompts: list[Conversation]) -> tuple[float, float]:
    """Seconds of a call and tokens a second, from calls with few and with many prompts."""
    from srkit.generate import score_options

    def seconds(count: int) -> float:
        return _seconds(lambda: score_options(policy, prompts[:count], [" 1", " 2"]))

    seconds(2)  # the first call is slower
    few, many = min(seconds(2), seconds(2)), seconds(36)
    tokens = _new(policy, prompts[:2])
    rate = (_new(policy, prompts[:36]) - tokens) / max(many - few, 1e-6)
    return max(few - tokens / rate, 0.0), rate


def _writing(
    policy: Policy, prompts: list[Conversation], call: float, prefill: float
) -> tuple[float, float]:
    """Seconds of a pass and of a row in it, from 16 passes with few and with many rows."""
    from srkit.generate import Sampling, sample

    def run(rows: int) -> tuple[float, int]:
        asked, seeds = prompts[:rows], [[i] for i in range(rows)]
        began = time.monotonic()
        drawn = sample(policy, asked, 1, Sampling(16), seeds)
        seconds = time.monotonic() - began - call - _new(policy, asked) / prefill
        return max(seconds, 1e-6), sum(completion.tokens for (completion,) in drawn)

    return _prices(16, min(run(4), run(4)), run(48))


def _training(
    model: Model, prompts: list[Conversation], answers: list[str]
) -> tuple[float, float, float]:
    """Tokens a second (see `work`), seconds around a training, seconds to put its adapter on."""
    from srkit.models import Policy, attach_adapter, load_base
    from srkit.train import Example, train_sft

    examples = [Example(p, answer) for p, answer in zip(prompts, answers, strict=True)]
    # Both steps take all examples: the faster is what the machine does undisturbed.
    settings = Sft(epochs=2, learning_rate=1e-4, batch_size=4, micro_batch=4)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run = train_sft(model, examples, settings, Path(folder), 0)
        around = time.monotonic() - began - run.seconds
        policy = Policy(*load_base(model), "measured")
        shape = Shape.of(policy.model.config)
        switch = _seconds(lambda: attach_adapter(policy, Path(folder)))
    a_step = work(shape, run.tokens, run.trained_tokens) / run.steps
    return a_step / min(row["seconds"] for row in run.log), around, switch


def _new(policy: Policy, conversations: list[Conversation]) -> int:
    """Tokens that the engine reads: what all prompts begin with is read once."""
    from srkit.chat import encode_prompt

    ids = [encode_prompt(policy.tokenizer, c) for c in conversations]
    shared = len(os.path.commonprefix(ids))  # noqa: RUF071
    return sum(map(len, ids)) - (len(ids) - 1) * shared


def _seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _prices(passes: int, few: tuple[float, int], many: tuple[float, int]) -> tuple[float, float]:
    """Seconds per pass and per row-token, from two runs of `passes` with few and many rows."""
    row = max((many[0] - few[0]) / max(many[1] - few[1], 1), 0.0)
    return max((few[0] - few[1] * row) / passes, 0.0), row


def _tokens(encoded: list[list[int]], conversations: list[Conversation]) -> tuple[float, float]:
    """Least squares of tokens = turn + characters / (characters per token)."""
    import numpy as np

    lengths = [sum(len(m["content"]) for m in c) for c in conversations]
    slope, turn = np.polyfit(lengths, [len(ids) for ids in encoded], 1)
    return float(1 / slope), float(turn)
