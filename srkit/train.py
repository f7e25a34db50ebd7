"""Training: supervised fine-tuning of LoRA adapters, and DPO that starts at and refers to M_t.

`train_sft` makes the baseline and M1 from M0; `train_dpo` makes M(t+1) from M_t (paper sections
2.1 and 2.4); `train_reward` makes a frozen reward model, which the paper has none of. All run TRL's
trainers on token ids made by srkit.chat, so that training sees the tokens that generation sees.
The steps are `srkit.trainers`', the losses `srkit.losses`'.

Surprising decisions:
- M(t+1) starts as a copy of M_t's adapter, and a frozen copy of the same adapter is the reference.
  TRL makes that copy when it gets a PeftModel and no `peft_config`; with one, the reference would
  silently be M0. It is checked: copy equal, frozen and separate, first loss ln 2.
- A candidate that was cut off gets no end-of-turn token; examples over `max_tokens` are left out
  and counted, never cut.
- Adapters are trained in float32 even on a 4-bit base: TRL rounds them to bfloat16, which is
  coarser than the updates at the paper's learning rates.
- A run that was killed goes on from its last whole checkpoint and ends with the same bytes.

    python -c "from srkit.train import *; from srkit.tiny import tiny_tokenizer; print( \\
        loss_mask_table(tiny_tokenizer(), Example([{'role': 'user', 'content': 'Hi'}], 'Hello')))"
"""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedTokenizerBase, PrinterCallback, set_seed

from srkit.chat import context_of, encode_completion, encode_prompt
from srkit.config import SrkitError
from srkit.disk import writing
from srkit.distributed import first, world
from srkit.logps import IGNORED, completion_logps, fast_layers, fast_training
from srkit.losses import preference_loss
from srkit.memory import needed
from srkit.models import (
    Policy,
    attach_adapter,
    load_base,
    placement,
    release,
    save_adapter,
    with_reward_head,
)
from srkit.prompts import Conversation
from srkit.trainers import (
    WHOLE,
    DpoSteps,
    Progress,
    RewardSteps,
    SftSteps,
    epoch_order,
    quiet_and_deterministic,
    row_lengths,
    with_blank,
)

if TYPE_CHECKING:
    from srkit.config import Dpo, Model, Sft

Row = dict[str, Any]
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
    read: int  # tokens, by DPO's reference before the first step
    tokens: int
    trained_tokens: int
    seconds: float  # of the steps, summed over interrupted runs
    log: list[Row]  # the rows of training.jsonl, and the seconds of each step
    first_loss: float | None = None  # of DPO, before any step and without dropout
    earlier_seconds: float = 0.0  # of them, those of interrupted runs
    computed: Row = field(default_factory=dict)  # device, dtype, optimizer: what `auto` meant

    def record(self) -> Row:
        """What the manifest keeps of it."""
        names = ("steps", "examples", "left_out", "read", "tokens", "trained_tokens")
        found = {name: getattr(self, name) for name in (*names, "earlier_seconds")}
        return found | self.computed


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


def _usable(rows: list[Row], max_tokens: int) -> list[Row]:
    """Rows that fit and have something to learn."""
    kept = [row for row in rows if row_lengths(row)[0] <= max_tokens and row_lengths(row)[2] > 0]
    if not kept:
        raise SrkitError(
            f"None of {len(rows)} examples can be trained on: all are longer than {max_tokens} "
            "tokens (max_tokens, or the model's context) or empty. Raise max_tokens, or check the "
            "table they come from."
        )
    return kept


def _tokens_seen(rows: list[Row], settings: Sft | Dpo, seed: int, steps: int) -> tuple[int, int]:
    """Tokens and trained tokens in the first `steps` batches."""
    sizes = [row_lengths(row) for row in rows]
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
    return _train(SftSteps, policy, rows, cfg, settings, folder, seed, len(examples))


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
    return _train(DpoSteps, policy, rows, cfg, settings, folder, seed, len(pairs))


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
    return _train(RewardSteps, policy, rows, cfg, settings, folder, seed, len(pairs))


def _new_adapter(base: torch.nn.Module, cfg: Model, task: str = "CAUSAL_LM") -> PeftModel:
    config = LoraConfig(
        r=cfg.lora_rank,
        lora_alpha=cfg.lora_alpha,
        lora_dropout=cfg.lora_dropout,
        target_modules=cfg.lora_targets,
        task_type=task,
    )
    head = base.get_output_embeddings() if task == "CAUSAL_LM" else None
    heads = {name for name, module in base.named_modules() if module is head}
    if not isinstance(cfg.lora_targets, str) and heads & set(cfg.lora_targets):
        raise SrkitError(
            f"model.lora_targets = {cfg.lora_targets} names the output layer ({', '.join(heads)}), "
            "which is trained by nothing here: losses read its weights as they are. Leave it out; "
            "all-linear takes all linear layers but this one."
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
    arguments = kind(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulated,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.final_learning_rate_ratio},
        warmup_steps=settings.warmup_steps,
        optim=_computed(cfg, settings)["optimizer"],
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
        disable_tqdm=True,  # it prints every log line; Progress does not
        seed=seed,
        **more,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # the model is on the first GPU; the trainer would refuse the others
    return arguments


def _computed(cfg: Model, settings: Sft | Dpo) -> dict[str, str]:
    """What `auto` means here; a checkpoint that was computed otherwise is not continued."""
    device, dtype = placement(cfg)
    auto = "paged_adamw_8bit" if device == "cuda" else "adamw_torch_fused"
    optimizer = auto if settings.optimizer == "auto" else settings.optimizer
    return {"device": device, "dtype": str(dtype).split(".")[1], "optimizer": optimizer}


def _trainer(
    kind: type, policy: Policy, rows: list[Row], cfg: Model, settings: Sft | Dpo, *where: Any
) -> Any:
    """A TRL trainer of ours; `where` are folder and seed."""
    trainer = kind(
        model=policy.model,
        args=_arguments(kind.config, cfg, settings, *where, **kind.options(settings)),
        data_collator=kind.collate,
        train_dataset=Dataset.from_list(rows if world() == 1 else with_blank(rows)),
        processing_class=policy.tokenizer,
    )
    trainer.settings = settings  # what TRL's arguments have no word for
    return trainer


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
    computed = _computed(cfg, settings)
    with quiet_and_deterministic(), writing(folder), needed("training", advice):
        start = _adapter_values(policy.model)
        with (fast_layers if kind is RewardSteps else fast_training)(policy.model):
            trainer = _trainer(kind, policy, rows, cfg, settings, folder, seed)
            _restore(policy.model, start)
            first_loss = _check_start(trainer, start) if kind is DpoSteps else None
            trainer.remove_callback(PrinterCallback)
            mark = ", ".join(computed.values())
            checkpoint = first(lambda: _last_checkpoint(folder / "checkpoints", mark))
            with closing(Progress(mark)) as progress:  # whatever is said next has a line of its own
                trainer.add_callback(progress)
                trainer.train(resume_from_checkpoint=checkpoint)
        log = _log_rows(trainer.state.log_history)
        _check_end(policy.model, start, log)
        if kind is DpoSteps:
            policy.model.delete_adapter("ref")
        first(lambda: _save(policy, log, folder))
    steps, seconds = trainer.state.global_step, round(sum(row["seconds"] for row in log), 3)
    resumed = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    earlier = sum(row["seconds"] for row in log if row["step"] <= resumed)
    counts = _tokens_seen(rows, settings, seed, steps)
    del trainer
    gc.collect()
    read = sum(row_lengths(row)[1] for row in rows) if kind is DpoSteps else 0
    used = (len(rows), given - len(rows), read)
    if computed["device"] == "cuda":
        computed["device"] = torch.cuda.get_device_name()
    return TrainingRun(steps, *used, *counts, seconds, log, first_loss, earlier, computed)


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


def _check_start(trainer: DpoSteps, start: dict[str, torch.Tensor]) -> float:
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


def _first_loss(trainer: DpoSteps) -> float:
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


def _last_checkpoint(folder: Path, mark: str) -> str | None:
    """The newest checkpoint that was written to its end, and computed as this run computes.

    If there is none, what lies there is removed: the trainer would keep it instead of its own.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1]))
    for checkpoint in found:
        if (checkpoint / WHOLE).exists() and (checkpoint / WHOLE).read_text("utf-8") == mark:
            return str(checkpoint)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _log_rows(history: list[Row]) -> list[Row]:
    """Rows of training.jsonl out of the trainer's log; its last entry is a summary without loss."""
    return [
        {"step": entry["step"]} | {ours: entry[key] for ours, key in LOGGED.items() if key in entry}
        for entry in history
        if "loss" in entry
    ]
