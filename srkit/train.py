"""Training: supervised fine-tuning of LoRA adapters, and DPO that starts at and refers to M_t.

`train_sft` makes the baseline and M1 from M0; `train_dpo` makes M(t+1) from M_t (paper sections
2.1 and 2.4); `train_reward` makes a frozen reward model, which the paper has none of. All run TRL's
trainers on token ids made by srkit.models, so that training sees the tokens that generation sees.
`preference_loss` is DPO's equation, tied to TRL's by a parity test.

Surprising decisions:
- M(t+1) starts as a copy of M_t's adapter, and a frozen copy of the same adapter is the reference.
  TRL makes that copy when it gets a PeftModel and no `peft_config`; with one, the reference would
  silently be M0. It is checked: copy equal, frozen and separate, first loss ln 2.
- A candidate that was cut off gets no end-of-turn token; examples over `max_tokens` are left out
  and counted, never cut.
- Batches are drawn at random; inside a batch the longest come first, so that what does not fit
  into memory shows at once. The update is the same.
- TRL's trainers run the steps, but the loss is ours: `srkit.logps` computes a pair's prompt once,
  and no logits of prompts. Parity tests compare loss and gradients with TRL's own trainers. The
  reward model's loss is TRL's own.
- Adapters are trained in float32 even on a 4-bit base: TRL rounds them to bfloat16, which is
  coarser than the updates at the paper's learning rates.
- A run that was killed goes on from its last whole checkpoint and ends with the same bytes.
- Several processes (`srkit.distributed`) share a batch of the same examples as one process has:
  a blank example of weight 0 stands in where one has none left, and a micro-batch draws its
  dropout by what is in it. With the same micro_batch only the order of sums differs.

    python -c "from srkit.train import *; from srkit.tiny import tiny_tokenizer; print( \\
        loss_mask_table(tiny_tokenizer(), Example([{'role': 'user', 'content': 'Hi'}], 'Hello')))"
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import use_adapter

from srkit.config import SrkitError
from srkit.disk import sync_files, write_atomically, writing
from srkit.distributed import first, rank, share, together, world
from srkit.logps import IGNORED, completion_logps, fast_layers, fast_training, pack
from srkit.memory import needed
from srkit.models import (
    Policy,
    attach_adapter,
    context_of,
    encode_completion,
    encode_prompt,
    load_base,
    placement,
    release,
    save_adapter,
    with_reward_head,
)
from srkit.prompts import Conversation
from srkit.study import derive_seed

if TYPE_CHECKING:
    from srkit.config import Dpo, Model, Sft

Row = dict[str, Any]
WHOLE = "whole"  # a file in a checkpoint whose other files are on the disk, come a power cut
LOGGED = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "seconds": "seconds",
    "reward_accuracy": "rewards/accuracies",
    "reward_margin": "rewards/margins",
    "logp_chosen": "logps/chosen",
    "logp_rejected": "logps/rejected",
}


@dataclass(frozen=True)
class Example:
    """What SFT learns from: the answer to a conversation. `finished`: it ended by itself."""

    conversation: Conversation
    completion: str
    finished: bool = True


@dataclass(frozen=True)
class Preference:
    """What DPO learns from: two answers to one conversation. `*_finished`: it ended by itself."""

    conversation: Conversation
    chosen: str
    rejected: str
    chosen_finished: bool = True
    rejected_finished: bool = True


@dataclass(frozen=True)
class TrainingRun:
    """What a training did. Tokens count every epoch; trained ones are those with a loss."""

    steps: int
    examples: int  # used, of those given
    left_out: int  # longer than max_tokens, or without a token to train on
    tokens: int
    trained_tokens: int
    seconds: float  # of the steps, summed over interrupted runs
    log: list[Row]  # the rows of training.jsonl, and the seconds of each step
    first_loss: float | None = None  # of DPO, before any step and without dropout
    earlier_seconds: float = 0.0  # of them, those of interrupted runs

    def record(self) -> Row:
        """What the manifest keeps of it."""
        names = ("steps", "examples", "left_out", "tokens", "trained_tokens", "earlier_seconds")
        return {name: getattr(self, name) for name in names}


# --- formulas ----------------------------------------------------------------------------------


def preference_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
    smoothing: float = 0.0,
    handicap: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """DPO's loss per pair: equation 7 of arXiv 2305.18290, before the mean.  # (batch,)

    The first four are log-probabilities of whole completions, each of shape (batch,). Where policy
    and reference agree, the loss is ln 2.

    `smoothing` is the weight of the same pair turned round (the rest is that of the pair as it is):
    1 - C in CREAM, arXiv 2410.12735. `handicap`, (batch,), is what the margin has before anything
    is learned: `length_handicap` in R-DPO.
    """
    chosen_reward = beta * (policy_chosen - reference_chosen)  # (batch,)
    rejected_reward = beta * (policy_rejected - reference_rejected)  # (batch,)
    margin = chosen_reward - rejected_reward + handicap
    kept, turned = functional.logsigmoid(margin), functional.logsigmoid(-margin)
    return -(1 - smoothing) * kept - smoothing * turned


def length_handicap(chosen: torch.Tensor, rejected: torch.Tensor, alpha: float) -> torch.Tensor:
    """alpha (|y_w| - |y_l|): R-DPO's term in the margin, arXiv 2403.19159.  # (batch,)

    Arguments are numbers of tokens, (batch,). A chosen response that is longer has a head start, so
    that the pair teaches less; a shorter one teaches more.
    """
    return alpha * (chosen - rejected)


def likelihood_loss(policy_chosen: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood per token of each chosen response: IRPO's second term, before alpha.

    arXiv 2404.19733, equation 1, adds alpha times this to DPO's loss. Arguments have shape
    (batch,): log-probabilities of whole completions, and their numbers of tokens.  # (batch,)
    """
    return -policy_chosen / tokens


# --- examples as tokens ------------------------------------------------------------------------


def sft_row(tokenizer: PreTrainedTokenizerBase, example: Example) -> Row:
    """`input_ids` of prompt and completion, `labels` with the prompt ignored."""
    prompt = encode_prompt(tokenizer, example.conversation)
    completion = encode_completion(tokenizer, example.completion, example.finished)
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def dpo_row(tokenizer: PreTrainedTokenizerBase, pair: Preference) -> Row:
    """`prompt_ids`, `chosen_ids` and `rejected_ids`, as TRL's collator for preferences wants."""
    return {
        "prompt_ids": encode_prompt(tokenizer, pair.conversation),
        "chosen_ids": encode_completion(tokenizer, pair.chosen, pair.chosen_finished),
        "rejected_ids": encode_completion(tokenizer, pair.rejected, pair.rejected_finished),
    }


def reward_row(tokenizer: PreTrainedTokenizerBase, pair: Preference) -> Row:
    """The two conversations whole, as `chosen_ids` and `rejected_ids`; they share no prompt."""
    row = dpo_row(tokenizer, pair)
    sides = ("chosen_ids", "rejected_ids")
    return {"prompt_ids": [], **{side: row["prompt_ids"] + row[side] for side in sides}}


def loss_mask_table(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[tuple[str, bool]]:
    """Every token of an example as text, and whether the loss is taken on it."""
    row = sft_row(tokenizer, example)
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return [(tokenizer.decode([token]), label != IGNORED) for token, label in pairs]


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[int]:
    """Indices in the order of one epoch: random batches, longest first inside each batch."""
    order = list(range(len(lengths)))
    random.Random(f"{seed} {epoch}").shuffle(order)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [i for batch in batches for i in sorted(batch, key=lambda i: -lengths[i])]


def planned_steps(rows: int, settings: Sft | Dpo) -> int:
    """Optimiser steps of a training on so many examples.

    Raises: SrkitError if the warm-up would not end before the training does.
    """
    steps = math.ceil(settings.epochs * math.ceil(rows / settings.batch_size))
    if settings.warmup_steps >= steps:
        raise SrkitError(
            f"warmup_steps = {settings.warmup_steps}, but {rows} examples in batches of "
            f"{settings.batch_size} for {settings.epochs:g} epochs make only {steps} steps: the "
            "learning rate would never be reached. Lower warmup_steps, or train on more."
        )
    return steps


def shared_batch(settings: Sft | Dpo) -> tuple[int, int]:
    """Examples of a micro-batch, and micro-batches per update, of each process.

    The batch is the same for any number of processes. Raises: SrkitError if they cannot share it.
    """
    each, left = divmod(settings.batch_size, world())
    micro = min(settings.micro_batch, each)
    if left:
        fair = [n for n in range(1, settings.batch_size + 1) if settings.batch_size % n == 0]
        raise SrkitError(
            f"{world()} processes cannot share batch_size = {settings.batch_size} evenly. Start "
            f"{', '.join(map(str, fair))} of them, or choose a batch_size that {world()} divides."
        )
    if each % micro:
        legal = [n for n in range(1, each + 1) if each % n == 0]
        raise SrkitError(
            f"Each of {world()} processes has {each} examples of a batch of {settings.batch_size}, "
            f"which micro_batch = {micro} does not divide. Set it to {', '.join(map(str, legal))}."
        )
    return micro, each // micro


def _lengths(row: Row) -> tuple[int, int, int]:
    """Longest sequence of a row, all its tokens, those with a loss."""
    if "labels" in row:
        trained = sum(label != IGNORED for label in row["labels"])
        return len(row["labels"]), len(row["labels"]), trained
    prompt, *completions = (len(row[k]) for k in ("prompt_ids", "chosen_ids", "rejected_ids"))
    answers = sum(completions) if all(completions) else 0
    return prompt + max(completions), 2 * prompt + sum(completions), answers


def _usable(rows: list[Row], max_tokens: int) -> list[Row]:
    """Rows that fit and have something to learn."""
    kept = [row for row in rows if _lengths(row)[0] <= max_tokens and _lengths(row)[2] > 0]
    if not kept:
        raise SrkitError(
            f"None of {len(rows)} examples can be trained on: all are longer than {max_tokens} "
            "tokens (max_tokens, or the model's context) or empty. Raise max_tokens, or check the "
            "table they come from."
        )
    return kept


def _tokens_seen(rows: list[Row], settings: Sft | Dpo, seed: int, steps: int) -> tuple[int, int]:
    """Tokens and trained tokens in the first `steps` batches."""
    sizes = [_lengths(row) for row in rows]
    order: list[list[int]] = []
    while len(order) < steps:
        epoch = len(order) // math.ceil(len(rows) / settings.batch_size)
        flat = epoch_order([s[0] for s in sizes], settings.batch_size, seed, epoch)
        order += [
            flat[i : i + settings.batch_size] for i in range(0, len(flat), settings.batch_size)
        ]
    seen = [sizes[i] for batch in order[:steps] for i in batch]
    return sum(s[1] for s in seen), sum(s[2] for s in seen)


# --- training ----------------------------------------------------------------------------------


def train_sft(
    cfg: Model,
    examples: Sequence[Example],
    settings: Sft,
    folder: Path,
    seed: int,
    adapter: Path | None = None,
) -> TrainingRun:
    """Fine-tune a new adapter on M0, with the loss on completions only (paper section 2.1).

    With `adapter`, a copy of the one in that folder is trained on.

    Writes adapter_model.safetensors, adapter_config.json, fingerprint.json and training.jsonl into
    `folder`, and checkpoints, from the last of which an interrupted run goes on.
    Loaded policies are put away first. Raises: SrkitError.
    """
    release()
    base, tokenizer = load_base(cfg)
    most = min(settings.max_tokens, context_of(base))
    rows = _usable([sft_row(tokenizer, example) for example in examples], most)
    planned_steps(len(rows), settings)
    seed = seed % 2**32  # numpy takes no more
    set_seed(seed)
    if adapter:
        policy = attach_adapter(Policy(base, tokenizer, folder.name), adapter, trainable=True)
    else:
        policy = Policy(_new_adapter(base, cfg).eval(), tokenizer, folder.name)
    return _train(_Sft, policy, rows, cfg, settings, folder, seed, len(examples))


def train_dpo(
    cfg: Model,
    adapter: Path,
    pairs: Sequence[Preference],
    settings: Dpo,
    folder: Path,
    seed: int,
) -> TrainingRun:
    """DPO from M_t, whose adapter lies in `adapter`, with M_t as the reference (paper section 2.4).

    Writes and resumes like `train_sft`. The reference's log-probabilities are computed once, before
    the first step. Raises: SrkitError, also if the start is not what DPO assumes.
    """
    release()
    base, tokenizer = load_base(cfg)
    most = min(settings.max_tokens, context_of(base))
    rows = _usable([dpo_row(tokenizer, pair) for pair in pairs], most)
    planned_steps(len(rows), settings)
    seed = seed % 2**32
    policy = attach_adapter(Policy(base, tokenizer, folder.name), Path(adapter), trainable=True)
    return _train(_Dpo, policy, rows, cfg, settings, folder, seed, len(pairs))


def train_reward(
    cfg: Model, pairs: Sequence[Preference], settings: Sft, folder: Path, seed: int
) -> TrainingRun:
    """Train a new adapter and a head on M0 to give the chosen response the higher reward.

    The loss is TRL's: -log sigmoid(reward of chosen - reward of rejected), Bradley and Terry's
    model of preferences, plus 0.01 times the mean of (their sum)^2, which holds the rewards about 0
    (arXiv 2312.09244, eq. 2): differences alone would leave their level to chance.

    Writes and resumes like `train_sft`, the head with the adapter. Raises: SrkitError.
    """
    release()
    base, tokenizer = load_base(cfg)
    most = min(settings.max_tokens, context_of(base))
    rows = _usable([reward_row(tokenizer, pair) for pair in pairs], most)
    planned_steps(len(rows), settings)
    seed = seed % 2**32
    set_seed(seed)
    model = _new_adapter(with_reward_head(base), cfg, "SEQ_CLS").eval()
    policy = Policy(model, tokenizer, folder.name)
    return _train(_Reward, policy, rows, cfg, settings, folder, seed, len(pairs))


def _new_adapter(base: torch.nn.Module, cfg: Model, task: str = "CAUSAL_LM") -> PeftModel:
    config = LoraConfig(
        r=cfg.lora_rank,
        lora_alpha=cfg.lora_alpha,
        lora_dropout=cfg.lora_dropout,
        target_modules=cfg.lora_targets,
        task_type=task,
    )
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        linear = sorted(
            {n.split(".")[-1] for n, m in base.named_modules() if hasattr(m, "in_features")}
        )
        raise SrkitError(
            f"model.lora_targets = {cfg.lora_targets} does not fit the model: {error} Its linear "
            f"layers are {', '.join(linear)}; all-linear takes all of them but the output layer."
        ) from None
    model.peft_config["default"].base_model_name_or_path = ""  # see models.load_base
    return model


def _arguments(
    kind: type, cfg: Model, settings: Sft | Dpo, folder: Path, seed: int, **more: Any
) -> Any:
    """Settings in TRL's words. What is not said here is TRL's default (AdamW without decay)."""
    device, dtype = placement(cfg)
    micro, accumulated = shared_batch(settings)
    auto = "paged_adamw_8bit" if device == "cuda" else "adamw_torch_fused"
    arguments = kind(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulated,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.final_learning_rate_ratio},
        warmup_steps=settings.warmup_steps,
        optim=auto if settings.optimizer == "auto" else settings.optimizer,
        activation_checkpointing=settings.gradient_checkpointing,
        bf16=dtype == torch.bfloat16,  # TRL's default is bfloat16, on a CPU too
        fp16=dtype == torch.float16,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        ddp_find_unused_parameters=False,  # every step uses the whole adapter
        remove_unused_columns=False,
        max_length=None,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,  # the last one may be torn
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,  # it prints every log line; _Progress does not
        seed=seed,
        **more,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # the model is on the first GPU; the trainer would refuse the others
    return arguments


def _trainer(
    kind: type, policy: Policy, rows: list[Row], cfg: Model, settings: Sft | Dpo, *where: Any
) -> Any:
    """A TRL trainer of ours; `where` are folder and seed."""
    trainer = kind(
        model=policy.model,
        args=_arguments(kind.config, cfg, settings, *where, **kind.options(settings)),
        data_collator=kind.collate,
        train_dataset=Dataset.from_list(rows if world() == 1 else _with_blank(rows)),
        processing_class=policy.tokenizer,
    )
    trainer.settings = settings  # what TRL's arguments have no word for
    return trainer


def _with_blank(rows: list[Row]) -> list[Row]:
    """Rows of weight 1, and at the end one of weight 0, the shortest, for who has no other."""
    blank = min(rows, key=lambda row: _lengths(row)[0])
    return [*({**row, "weight": 1.0} for row in rows), {**blank, "weight": 0.0}]


def _weighed(rows: list[Row]) -> tuple[list[Row], torch.Tensor]:
    """The rows of a micro-batch without blanks, or one blank if there is nothing else; weights."""
    rows = [row for row in rows if row.get("weight", 1.0)] or rows[:1]
    return rows, torch.tensor([row.get("weight", 1.0) for row in rows])  # (rows,)


def _train(
    kind: type,
    policy: Policy,
    rows: list[Row],
    cfg: Model,
    settings: Sft | Dpo,
    folder: Path,
    seed: int,
    given: int,
) -> TrainingRun:
    """Train from the last checkpoint, if there is one, and save the adapter."""
    section = type(settings).__name__.lower()
    advice = (
        f"Lower {section}.micro_batch (the batch stays as it is), set "
        f"{section}.gradient_checkpointing=true or lower {section}.max_tokens, with --set and "
        "--change."
    )
    with _quiet_and_deterministic(), writing(folder), needed("training", advice):
        start = _adapter_values(policy.model)
        with (fast_layers if kind is _Reward else fast_training)(policy.model):
            trainer = _trainer(kind, policy, rows, cfg, settings, folder, seed)
            _restore(policy.model, start)
            first_loss = _check_start(trainer, start) if kind is _Dpo else None
            trainer.remove_callback(PrinterCallback)
            checkpoint = first(lambda: _last_checkpoint(folder / "checkpoints"))
            with closing(_Progress()) as progress:  # whatever is said next has a line of its own
                trainer.add_callback(progress)
                trainer.train(resume_from_checkpoint=checkpoint)
        log = _log_rows(trainer.state.log_history)
        _check_end(policy.model, start, log)
        if kind is _Dpo:
            policy.model.delete_adapter("ref")
        first(lambda: _save(policy, log, folder))
    steps, seconds = trainer.state.global_step, round(sum(row["seconds"] for row in log), 3)
    resumed = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    earlier = sum(row["seconds"] for row in log if row["step"] <= resumed)
    counts = _tokens_seen(rows, settings, seed, steps)
    del trainer
    gc.collect()
    left_out = given - len(rows)
    return TrainingRun(steps, len(rows), left_out, *counts, seconds, log, first_loss, earlier)


def _save(policy: Policy, log: list[Row], folder: Path) -> None:
    save_adapter(Policy(policy.model.eval(), policy.tokenizer, policy.name), folder)
    # without the seconds: the same training gives the same file
    rows_out = [{k: v for k, v in row.items() if k != "seconds"} for row in log]
    text = "".join(json.dumps(row) + "\n" for row in rows_out)
    (folder / "training.jsonl").write_text(text, "utf-8")


# --- what must hold ----------------------------------------------------------------------------


def _adapter_values(model: PeftModel) -> dict[str, torch.Tensor]:
    """Copies of all values that will be trained.

    Raises: SrkitError if there are none: an adapter that is loaded frozen trains nothing.
    """
    found = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise SrkitError("The model has no trainable parameters: its adapter is frozen.")
    return found


def _restore(model: PeftModel, start: dict[str, torch.Tensor]) -> None:
    """Undo TRL's rounding of the adapter to bfloat16 on quantised bases."""
    for name, parameter in model.named_parameters():
        if name in start and parameter.dtype != start[name].dtype:
            parameter.data = start[name].clone()


def _check_start(trainer: _Dpo, start: dict[str, torch.Tensor]) -> float:
    """The policy is M_t, the reference a frozen copy of M_t, and so the first loss is ln 2.

    Returns that loss.
    """
    parameters = dict(trainer.model.named_parameters())
    for name, value in start.items():
        policy, reference = parameters[name], parameters.get(name.replace(".default.", ".ref."))
        if reference is None or reference.requires_grad or not policy.requires_grad:
            raise SrkitError("DPO needs a trainable policy and a frozen copy of it as reference.")
        same = torch.equal(policy, value) and torch.equal(reference, value)
        if not same or policy.data_ptr() == reference.data_ptr():
            raise SrkitError(f"DPO's reference is not a separate copy of the model at {name}.")
    loss, exact = _first_loss(trainer), trainer.args.bf16 is False and trainer.args.fp16 is False
    if not abs(loss - math.log(2)) <= (1e-4 if exact else 2e-2):
        raise SrkitError(
            f"DPO's first loss is {loss:.5f} and not ln 2 = 0.69315: policy and reference differ "
            "before any training."
        )
    return loss


def _first_loss(trainer: _Dpo) -> float:
    """`preference_loss` on the first micro-batch before training, without dropout."""
    count = min(trainer.args.per_device_train_batch_size, len(trainer.train_dataset))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(count)])
    trainer.model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        inputs = send_to_device(batch, trainer.accelerator.device)
        logps = completion_logps(trainer.model, inputs).view(-1, 2)  # (pairs, 2)
        loss = preference_loss(*logps.unbind(1), *inputs["reference"].unbind(1), trainer.beta)
        return float(loss.mean())


def _check_end(model: PeftModel, start: dict[str, torch.Tensor], log: list[Row]) -> None:
    bad = [row["step"] for row in log if not math.isfinite(row["loss"])]
    if bad:
        raise SrkitError(
            f"The loss stopped being a number at step {bad[0]}. Lower the learning rate, or set "
            "model.dtype=bfloat16 or float32 if it is float16."
        )
    parameters = dict(model.named_parameters())
    if all(torch.equal(parameters[name], value) for name, value in start.items()):
        raise SrkitError("Training did not change the adapter: check learning_rate and epochs.")


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1]))
    return next((str(p) for p in found if (p / WHOLE).exists()), None)


def _log_rows(history: list[Row]) -> list[Row]:
    """Rows of training.jsonl out of the trainer's log; its last entry is a summary without loss."""
    return [
        {"step": entry["step"]} | {ours: entry[key] for ours, key in LOGGED.items() if key in entry}
        for entry in history
        if "loss" in entry
    ]


# --- TRL, made quiet, local and repeatable -----------------------------------------------------


class _Progress(TrainerCallback):
    """A progress bar, the seconds of each step in the log, and a mark on whole checkpoints."""

    bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            mininterval=2.0,
            disable=rank() > 0,
        )
        self.since = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        now = time.monotonic()
        state.log_history[-1]["seconds"] = round(now - self.since, 3)
        self.since = now

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.bar.update(1)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if rank() == 0:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            sync_files(checkpoint)
            write_atomically(checkpoint / WHOLE, "")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class _Order(Sampler):
    """`epoch_order` as a sampler; accelerate announces the epochs, and deals out micro-batches.

    Blanks, the row after the last one, fill up to a multiple of `fill` rows.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, fill: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.blanks = [len(lengths)] * (-len(lengths) % fill)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(self.lengths, self.batch_size, self.seed, self.epoch)
        return iter(order + self.blanks)

    def __len__(self) -> int:
        return len(self.lengths) + len(self.blanks)


class _Local:
    """What both trainers do our way: our order, our forward pass, no telemetry.

    `items` of a micro-batch is what its loss is a mean over: trained tokens, or pairs. Each process
    divides by its part of the whole batch's, since DDP takes the mean of the processes' gradients.
    """

    loss_is_scaled_for_ga = True

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> _Order:
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = [_lengths(row)[0] for row in rows if row.get("weight", 1.0)]
        processes, micro = self.args.world_size, self.args.per_device_train_batch_size
        batch_size = micro * self.args.gradient_accumulation_steps * processes
        fill = micro * processes if processes > 1 else 1
        return _Order(lengths, batch_size, self.args.seed, fill)

    def get_batch_samples(self, *args: Any) -> tuple[list[Row], torch.Tensor]:
        """The micro-batches of an update, and its items divided by the number of processes."""
        batches, _ = super().get_batch_samples(*args)
        items = torch.stack([batch["items"] for batch in batches]).sum().to(self.args.device)
        return batches, self.accelerator.gather(items).sum() / self.args.world_size

    def training_step(self, model: torch.nn.Module, inputs: Row, *args: Any) -> torch.Tensor:
        # Whoever computes a micro-batch draws the same dropout.
        place = self.args.seed, self.state.global_step, str(inputs["input_ids"].tolist())
        torch.manual_seed(derive_seed(*place))
        return super().training_step(model, inputs, *args)

    def _send_telemetry(self) -> None:
        pass


class _Sft(_Local, SFTTrainer):
    config = SFTConfig

    @staticmethod
    def options(settings: Sft) -> Row:
        return {"dataset_kwargs": {"skip_prepare_dataset": True}}

    @staticmethod
    def collate(rows: list[Row]) -> Row:
        """A micro-batch."""
        rows, weights = _weighed(rows)
        starts = [sum(label == IGNORED for label in row["labels"]) for row in rows]
        ids = [row["input_ids"] for row in rows]
        batch = pack([(i[:start], [i[start:]]) for i, start in zip(ids, starts, strict=True)])
        trained = torch.tensor([len(i) - start for i, start in zip(ids, starts, strict=True)])
        return batch | {"weights": weights, "items": (weights * trained).sum()}

    def compute_loss(
        self, model: torch.nn.Module, inputs: Row, *_: Any, num_items_in_batch: torch.Tensor
    ) -> torch.Tensor:
        """This micro-batch's part of the mean over the trained tokens of the whole batch."""
        return -(inputs["weights"] * completion_logps(model, inputs)).sum() / num_items_in_batch


class _Dpo(_Local, DPOTrainer):
    config = DPOConfig

    @staticmethod
    def options(settings: Dpo) -> Row:
        dropout = {"disable_dropout": False}  # the adapter's own; the paper trains with 0.1
        return {"beta": settings.beta, "precompute_ref_log_probs": True, **dropout}

    @staticmethod
    def collate(rows: list[Row]) -> Row:
        """A micro-batch. `reference`: log-probabilities, (pairs, 2), once they are computed."""
        rows, weights = _weighed(rows)
        batch = pack(
            [(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in rows]
        )
        if "ref_chosen_logps" in rows[0]:
            names = ("ref_chosen_logps", "ref_rejected_logps")
            batch["reference"] = torch.tensor([[row[name] for name in names] for row in rows])
        return batch | {"weights": weights, "items": weights.sum()}

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **more: Any) -> Dataset:
        return dataset  # tokenised already; TRL has no switch for that here

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Add the reference's log-probabilities; TRL's own keeps them in a file of one process."""
        starts = share(range(0, len(dataset), batch_size))
        parts = [range(i, min(i + batch_size, len(dataset))) for i in starts]
        found = together(lambda: [self._reference(dataset.select(part)) for part in parts])
        logps = torch.cat([logps for theirs in found for logps in theirs])  # (pairs, 2)
        logps = functional.pad(logps, (0, 0, 0, len(dataset) - len(logps)))  # 0 for a blank
        for i, side in enumerate(("chosen", "rejected")):
            dataset = dataset.add_column(f"ref_{side}_logps", logps[:, i].tolist())
        return dataset

    def _reference(self, rows: Dataset) -> torch.Tensor:
        self.model.eval()  # the copy that TRL has just made is in training mode, with dropout
        inputs = send_to_device(self.collate(list(rows)), self.accelerator.device)
        with torch.no_grad(), use_adapter(self.model, "ref"), self.accelerator.autocast():
            return completion_logps(self.model, inputs).view(-1, 2).cpu()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Row,
        *_: Any,
        num_items_in_batch: torch.Tensor | None = None,
        **more: Any,
    ) -> torch.Tensor:
        """Part of the mean over the whole batch's pairs: `preference_loss`, and `dpo.nll` times
        `likelihood_loss`. (TRL's `sft` is a mean over tokens, not over pairs.)
        """
        logps = completion_logps(model, inputs).view(-1, 2)  # (pairs, 2): chosen, rejected
        reference, weights = inputs["reference"], inputs["weights"]  # (pairs, 2), (pairs,)
        settings, tokens = self.settings, torch.tensor(inputs["lengths"])[:, 1:]  # (pairs, 2)
        chosen, rejected = tokens.to(logps.device).unbind(1)
        loss = preference_loss(
            *logps.unbind(1),
            *reference.unbind(1),
            self.beta,
            settings.label_smoothing,
            length_handicap(chosen, rejected, settings.length_penalty),
        )
        if settings.nll:
            loss = loss + settings.nll * likelihood_loss(logps[:, 0], chosen)
        logps = logps.detach()
        margins = self.beta * (logps - reference).diff(dim=1).neg().squeeze(1)  # (pairs,)
        values = torch.stack([(margins > 0).float(), margins, *logps.unbind(1)], dim=1)
        names = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
        metrics = self._metrics["train" if model.training else "eval"]
        for row in gather_object(values[weights > 0].tolist()):
            for name, value in zip(names, row, strict=True):
                metrics[name].append(value)
        items = weights.sum() if num_items_in_batch is None else num_items_in_batch
        return (weights * loss).sum() / items


class _Reward(_Local, RewardTrainer):
    """Its rows are whole texts, with the prompt in both; the head reads a text's last token."""

    config = RewardConfig
    collate = None  # TRL's, which knows the padding

    @staticmethod
    def options(settings: Sft) -> Row:
        return {"center_rewards_coefficient": 0.01, "disable_dropout": False}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.padded = self.data_collator  # TRL's: all chosen, then all rejected
        self.data_collator = self._collate

    def _collate(self, rows: list[Row]) -> Row:
        rows, weights = _weighed(rows)
        return self.padded(rows) | {"items": weights.sum()}

    def compute_loss(
        self, model: torch.nn.Module, inputs: Row, *_: Any, num_items_in_batch: torch.Tensor
    ) -> torch.Tensor:
        """TRL's mean over this micro-batch as its part of the mean over the whole batch's pairs."""
        items = inputs.pop("items")
        loss = super().compute_loss(model, inputs) * items / num_items_in_batch
        seen = self._metrics["train"]
        for name, ours in (("accuracy", "rewards/accuracies"), ("margin", "rewards/margins")):
            seen[ours] += seen.pop(name)  # as DPO's are called
        return loss


@contextmanager
def _quiet_and_deterministic() -> Iterator[None]:
    """Repeatable arithmetic for the time of a training.

    Left on, deterministic algorithms would be forced on sampling later in the same process.
    """
    disable_progress_bars()  # widgets, which an executed notebook cannot show again
    # It warns of equal file times, which say nothing here: checkpoints go by their numbers.
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    was = torch.are_deterministic_algorithms_enabled()
    was_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, changes nothing
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=was_warn)
        torch.utils.deterministic.fill_uninitialized_memory = filled
