"""Several processes that work as one: who this process is, and what all of them do together.

Under a launcher (`accelerate launch`, `torchrun`) every process runs the same steps over the same
rows. Engines deal out the conversations (`engine.Dealt`), TRL's trainers the micro-batches, and
the first process alone writes. All need to see the study's folder. In one process nothing here
does anything, and torch is not imported.

Surprising decisions:
- Whatever only some processes do, or could fail in only some, goes through `together`, where all
  meet. If one failed there, it alone tells why and the others leave quietly: nobody waits for a
  process that is gone. In training, where the processes meet in DDP, the launcher ends the others.
- Shares are consecutive and fixed beforehand, so that rows come in order and can be made again.

    torchrun --standalone --nproc-per-node 2 -m srkit.cli make --preset tiny --study runs/two
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar

from srkit.config import SrkitError

T = TypeVar("T")
_MEETINGS: list[bool] = []  # that this process is in
SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


def rank() -> int:
    """Number of this process among all, from 0."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the items; the parts in order of rank are all of them."""
    return items[len(items) * rank() // world() : len(items) * (rank() + 1) // world()]


def together(work: Callable[[], T]) -> list[T]:
    """Do `work` in every process and wait for all. Returns all results, in order of rank.

    Results are pickled. `work` must not call this again: the others, which do not do the same work,
    would take that call for this one. Raises: what `work` raises, in the first process where it
    does; the others exit. SrkitError if the launcher asks for a sharded model.
    """
    if world() == 1:
        with _meeting():
            return [work()]
    _connect()
    from torch import distributed

    value, error = None, None
    try:
        with _meeting():
            value = work()
    except Exception as caught:
        error = caught
    found: list = [None] * world()
    distributed.all_gather_object(found, (error is None, value))
    failed = [number for number, (good, _) in enumerate(found) if not good]
    if failed and error is not None and failed[0] == rank():
        raise error
    if failed:
        raise SystemExit  # with 0: the launcher names the process that failed, not this one
    return [value for _, value in found]


@contextmanager
def _meeting() -> Iterator[None]:
    """Also of one process, so that a mistake shows wherever it is tried first."""
    if _MEETINGS:
        raise RuntimeError("together() inside of together(): other processes would not meet there")
    _MEETINGS.append(True)
    try:
        yield
    finally:
        _MEETINGS.pop()


def first(work: Callable[[], T]) -> T:
    """Do `work` in the first process alone; all wait for it and get its result."""
    return together(lambda: work() if rank() == 0 else None)[0]


@lru_cache(maxsize=1)
def _connect() -> None:
    """Join the other processes, on the GPU of this process's local rank where there are GPUs."""
    import torch

    if asked := [name for name in SHARDED if os.environ.get(name, "").lower() == "true"]:
        raise SrkitError(
            f"{asked[0]} is set, but every process of srkit holds the whole model: FSDP, DeepSpeed "
            "and Megatron are not used. Choose MULTI_GPU in `accelerate config`. For a model that "
            "does not fit on one GPU set model.quantization=nf4."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    # A day: to wait for another's share of a chunk is no fault, and who dies breaks the connection.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=timedelta(days=1))
    atexit.register(_leave)


def _leave() -> None:
    """At the end of a process: gloo's threads abort one that ends while they run, now and then."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
