"""Benchmark of DPO: TRL's defaults and srkit, in turns, in one process; see srkit.bench.

Surprising decisions:
- Both start from one saved adapter and see the same token ids in the same batches, in srkit's
  order, with the same constant learning rate, so that their losses can be compared step by step.
- The rate that is compared is that of the whole training, building the trainer and saving the
  adapter included, without loading the base. For srkit that holds its checks and the reference's
  log-probabilities, which it computes before the first step: on few pairs this weighs heavily.
- The rate of the steps alone is given too. In TRL's the reference is part of every step, in
  srkit's it is not, so the two are not compared.
- TRL by default computes activations a second time to save memory; whether srkit does is a setting
  of the preset (`dpo.gradient_checkpointing`; not in preset cpu). TRL without it takes part too.
- A token is one of either sequence, each with its prompt, as `TrainingRun.tokens` counts.

    srkit bench train --preset tiny
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import DPOConfig, DPOTrainer

from srkit import seed
from srkit.bench import OURS, Record, by_name, head, probe_product, rounded, seconds, weights
from srkit.config import Dpo, Model, resolve
from srkit.models import Policy, load_base, placement, release, save_adapter
from srkit.prompts import user
from srkit.train import Preference, dpo_row, train_dpo
from srkit.trainers import epoch_order

SEED = 0
PAIRS = {False: (8, 4), True: (32, 8)}  # by `full`: pairs, and pairs per update


@dataclass(frozen=True)
class Trained:
    """Seconds of a training without loading the base, its tokens, and the loss of each step."""

    seconds: float
    step_seconds: float  # of the steps alone
    tokens: int  # of both sequences, each with its prompt
    trained_tokens: int  # of both answers
    losses: list[float]


def measure_training(
    preset: str = "cpu", rounds: int = 1, full: bool = False, pairs: int = 0
) -> Record:
    """DPO by TRL's defaults and by srkit: same start, pairs, batches, order and learning rate.

    `pairs`: another number than PAIRS has, in two updates. Rates are tokens per second.
    """
    config = resolve(preset)
    cfg = config.model.model_copy(update={"lora_dropout": 0.0})  # so that losses can be compared
    count, batch = (pairs, max(pairs // 2, 1)) if pairs else PAIRS[full]
    settings = _settings(config.dpo, batch)
    data, (device, dtype) = preferences(count), placement(cfg)
    runs: dict[str, list[Trained]] = defaultdict(list)
    product = 0.0
    with tempfile.TemporaryDirectory() as folder:
        counts = _make_start(cfg, Path(folder, "M1"))
        for turn in range(rounds):
            product = max(product, probe_product(torch.device(device), dtype))
            for name, train in TRAINERS.items():
                target = Path(folder, f"{name} {turn}")
                runs[name].append(train(cfg, Path(folder, "M1"), data, settings, target))
    rows = [_row(name, each, *counts, product) for name, each in runs.items()]
    for row in rows:
        row["srkit_is_faster"] = by_name(rows, OURS)["tokens"] / row["tokens"]
    losses = [each[0].losses for each in runs.values()]
    gap = max(abs(a - losses[-1][i]) for each in losses for i, a in enumerate(each))
    return rounded(
        head("train", preset, cfg, rounds, full)
        | {"pairs": count, "batch": batch, "micro_batch": settings.micro_batch}
        | {"limits": {"operations": product}, "rows": rows, "largest_loss_difference": gap}
    )


def preferences(count: int) -> list[Preference]:
    """Best against worst response to each of the first prompts of the kit's seed."""
    by_prompt: dict[str, list[Record]] = defaultdict(list)
    for row in seed.load(resolve("cpu")).eft:
        by_prompt[row["prompt"]].append(row)
    pairs = []
    for prompt, rows in by_prompt.items():
        rows.sort(key=lambda row: row["score"])
        pairs.append(Preference(user(prompt), rows[-1]["response"], rows[0]["response"]))
    return pairs[:count]


def train_by_trl(
    cfg: Model,
    adapter: Path,
    pairs: list[Preference],
    settings: Dpo,
    folder: Path,
    recompute: bool = True,
) -> Trained:
    """TRL's DPOTrainer with its own defaults, on our tokens in our order.

    Not a default: fp32 on a CPU, no checkpoints, a constant learning rate, and the start. Without
    `recompute` activations are kept instead of computed again.
    """
    release()
    base, tokenizer = load_base(cfg)
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    rows, (device, dtype) = _ordered(tokenizer, pairs, settings), placement(cfg)
    arguments = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=device == "cpu",
        activation_checkpointing=recompute,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    with warnings.catch_warnings():  # transformers and TRL still speak of it by its old name
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.*", FutureWarning)
        took, (steps, losses) = seconds(
            partial(_run_trl, model, arguments, rows, tokenizer, folder)
        )
    answers = sum(len(ids) for row in rows for ids in _answers(row))
    prompts = sum(2 * len(row["prompt_ids"]) for row in rows)
    return Trained(took, steps, prompts + answers, answers, losses)


def _run_trl(
    model: nn.Module,
    arguments: DPOConfig,
    rows: list[Record],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> tuple[float, list[float]]:
    """Seconds of the steps, and the loss of each."""
    data = Dataset.from_list(rows)
    trainer = _Tokenised(model, args=arguments, train_dataset=data, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(folder))
    log = trainer.state.log_history
    return log[-1]["train_runtime"], [row["loss"] for row in log if "loss" in row]


class _Tokenised(DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *args: Any, **more: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        pass


def train_by_srkit(
    cfg: Model, adapter: Path, pairs: list[Preference], settings: Dpo, folder: Path
) -> Trained:
    """`srkit.train.train_dpo`, with its checks and the saved adapter, without loading the base."""
    release()
    loading = seconds(partial(load_base, cfg))[0]
    took, run = seconds(lambda: train_dpo(cfg, adapter, pairs, settings, folder, SEED))
    losses = [row["loss"] for row in run.log]
    return Trained(took - loading, run.seconds, run.tokens, run.trained_tokens, losses)


TRAINERS = {
    "TRL, defaults": train_by_trl,
    "TRL, activations kept": partial(train_by_trl, recompute=False),
    OURS: train_by_srkit,
}


def _settings(dpo: Dpo, batch: int) -> Dpo:
    """The preset's, for one epoch with a constant learning rate."""
    micro = math.gcd(dpo.micro_batch, batch)
    same = {"epochs": 1, "final_learning_rate_ratio": 1.0, "warmup_steps": 0}
    return dpo.model_copy(update={**same, "batch_size": batch, "micro_batch": micro})


def _make_start(cfg: Model, folder: Path) -> tuple[int, int]:
    """Save an adapter that has an effect, as M1's has; returns `weights` of the base."""
    base, tokenizer = load_base(cfg)
    counts = weights(base)
    torch.manual_seed(SEED)
    config = LoraConfig(
        r=cfg.lora_rank,
        lora_alpha=cfg.lora_alpha,
        target_modules=cfg.lora_targets,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    save_adapter(Policy(model.eval(), tokenizer, "M1"), folder)
    return counts


def _ordered(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Preference], settings: Dpo
) -> list[Record]:
    """Token ids in the order in which srkit's trainer takes them."""
    rows = [dpo_row(tokenizer, pair) for pair in pairs]
    longest = [len(r["prompt_ids"]) + max(map(len, _answers(r))) for r in rows]
    return [rows[i] for i in epoch_order(longest, settings.batch_size, SEED, 0)]


def _answers(row: Record) -> tuple[list[int], list[int]]:
    return row["chosen_ids"], row["rejected_ids"]


def _row(name: str, runs: list[Trained], every: int, output: int, product: float) -> Record:
    """The best of a contestant's runs; the limit as in srkit.bench.

    Three passes of 2 operations per weight and token are needed: the policy forward, its gradient
    by activations, the reference forward; the output layer for answers alone.
    """
    best = min(runs, key=lambda run: run.seconds)
    least = 6 * ((every - output) * best.tokens + output * best.trained_tokens) / product
    return {
        "name": name,
        "seconds": best.seconds,
        "tokens_trained": best.tokens,
        "tokens": best.tokens / best.seconds,
        "step_tokens": best.tokens / best.step_seconds,
        "share_of_limit": least / best.seconds,
        "losses": best.losses,
        "seconds_of_rounds": [run.seconds for run in runs],
    }
