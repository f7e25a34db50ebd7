"""TRL's trainers made quiet, local and repeatable: our order, our forward pass, our loss.

`srkit.train` starts and ends a training; this is what happens in its steps.

Surprising decisions:
- TRL's trainers run the steps, but the loss is ours (`srkit.losses`): `srkit.logps` computes a
  pair's prompt once, and no logits of prompts. Parity tests compare loss and gradients with TRL's
  own trainers. The reward model's loss is TRL's own.
- Batches are drawn at random; inside a batch the longest come first, so that what does not fit
  into memory shows at once. The update is the same.
- Several processes (`srkit.distributed`) share a batch of the same examples as one process has:
  a blank example of weight 0 stands in where one has none left, and a micro-batch draws its
  dropout by what is in it. With the same micro_batch only the order of sums differs.

    python -c "from srkit.trainers import epoch_order; print(epoch_order([3, 1, 2], 2, 0, 0))"
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset, disable_progress_bars
from torch.nn import functional
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import use_adapter

from srkit.disk import sync_files, write_atomically
from srkit.distributed import rank, share, together
from srkit.logps import IGNORED, completion_logps, pack
from srkit.losses import length_handicap, likelihood_loss, preference_loss
from srkit.rows import derive_seed

if TYPE_CHECKING:
    from srkit.config import Dpo, Sft

Row = dict[str, Any]
# A file in a checkpoint whose other files are on the disk, come a power cut: how it was computed.
WHOLE = "whole"


# --- rows and their order ------------------------------------------------------------------------


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[int]:
    """Indices in the order of one epoch: random batches, longest first inside each batch."""
    order = list(range(len(lengths)))
    random.Random(f"{seed} {epoch}").shuffle(order)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [i for batch in batches for i in sorted(batch, key=lambda i: -lengths[i])]


def row_lengths(row: Row) -> tuple[int, int, int]:
    """Longest sequence of a row, all its tokens, those with a loss."""
    if "labels" in row:
        trained = sum(label != IGNORED for label in row["labels"])
        return len(row["labels"]), len(row["labels"]), trained
    prompt, *completions = (len(row[k]) for k in ("prompt_ids", "chosen_ids", "rejected_ids"))
    answers = sum(completions) if all(completions) else 0
    return prompt + max(completions), 2 * prompt + sum(completions), answers


def with_blank(rows: list[Row]) -> list[Row]:
    """Rows of weight 1, and at the end one of weight 0, the shortest, for who has no other."""
    blank = min(rows, key=lambda row: row_lengths(row)[0])
    return [*({**row, "weight": 1.0} for row in rows), {**blank, "weight": 0.0}]


def weighed(rows: list[Row]) -> tuple[list[Row], torch.Tensor]:
    """The rows of a micro-batch without blanks, or one blank if there is nothing else; weights."""
    rows = [row for row in rows if row.get("weight", 1.0)] or rows[:1]
    return rows, torch.tensor([row.get("weight", 1.0) for row in rows])  # (rows,)


# --- the steps -----------------------------------------------------------------------------------


class Progress(TrainerCallback):
    """A progress bar, the seconds of each step in the log, and a mark on whole checkpoints."""

    bar: tqdm | None = None

    def __init__(self, mark: str) -> None:
        self.mark = mark

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
            write_atomically(checkpoint / WHOLE, self.mark)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Order(Sampler):
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


class Local:
    """What both trainers do our way: our order, our forward pass, no telemetry.

    `items` of a micro-batch is what its loss is a mean over: trained tokens, or pairs. Each process
    divides by its part of the whole batch's, since DDP takes the mean of the processes' gradients.
    """

    loss_is_scaled_for_ga = True

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Order:
        rows = self.train_dataset if train_dataset is None else train_dataset
        longest = [row_lengths(row)[0] for row in rows if row.get("weight", 1.0)]
        processes, micro = self.args.world_size, self.args.per_device_train_batch_size
        batch_size = micro * self.args.gradient_accumulation_steps * processes
        fill = micro * processes if processes > 1 else 1
        return Order(longest, batch_size, self.args.seed, fill)

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


class SftSteps(Local, SFTTrainer):
    config = SFTConfig

    @staticmethod
    def options(settings: Sft) -> Row:
        return {"dataset_kwargs": {"skip_prepare_dataset": True}}

    @staticmethod
    def collate(rows: list[Row]) -> Row:
        """A micro-batch."""
        rows, weights = weighed(rows)
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


class DpoSteps(Local, DPOTrainer):
    config = DPOConfig

    @staticmethod
    def options(settings: Dpo) -> Row:
        dropout = {"disable_dropout": False}  # the adapter's own; the paper trains with 0.1
        return {"beta": settings.beta, "precompute_ref_log_probs": True, **dropout}

    @staticmethod
    def collate(rows: list[Row]) -> Row:
        """A micro-batch. `reference`: log-probabilities, (pairs, 2), once they are computed."""
        rows, weights = weighed(rows)
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


class RewardSteps(Local, RewardTrainer):
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
        rows, weights = weighed(rows)
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
def quiet_and_deterministic() -> Iterator[None]:
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
