"""What a study will take, step by step, before it is made: tokens, seconds, memory, disk.

Tokens are counted from tables, texts or settings (`srkit.workload`), memory is arithmetic
(`srkit.memory`), and seconds are tokens at the speed that this machine was measured to have
(`srkit.speed`), or None.

Surprising decisions:
- A study is refused only where the lower estimate exceeds all that the machine has; where the
  expected need exceeds what is free now, the user is warned and the study goes on.
- Generation takes smaller batches where memory is short, so its peak depends on the machine;
  training needs what its settings say.
- A step's memory is its own. The manifest measures the peak of the whole process so far, an upper
  bound that stays at the highest step of a notebook.

    python -c "from srkit.forecast import *; from srkit.config import resolve; \\
        print(total(forecast(resolve('gpu-8gb'))))"
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from srkit import memory
from srkit.config import Config, Model, Sft, SrkitError, presets, resolve
from srkit.memory import SHAPES, Memory, Shape
from srkit.plan import PAPER_ARM, Step, plan
from srkit.rows import Row
from srkit.speed import Speed, cached, work
from srkit.study import Study
from srkit.workload import Texts, Work, work_of

MB = 2**20  # as the manifest counts
REFERENCE_PASS = 1 / 3  # of a training pass: DPO's reference needs no backward pass


@dataclass(frozen=True)
class Forecast:
    """One step. `seconds` is None where this machine was not measured."""

    step: str
    notebook: str
    work: Work
    memory: Memory
    disk: float  # bytes
    seconds: float | None

    def record(self) -> Row:
        """What the manifest keeps beside the measured values."""
        tokens = round(self.work.generated or self.work.trained)
        peak = round(self.memory.peak / MB)
        return {"seconds": self.seconds, "peak_memory_mb": peak, "tokens": tokens}


# --- the model and the machine -------------------------------------------------------------------


def shape_of(model: Model) -> Shape:
    """The model's shape: the table's, or from its config where that is on this machine.

    Raises: SrkitError if it is not.
    """
    if model.name in SHAPES:
        return SHAPES[model.name]
    from transformers import AutoConfig

    path = Path(model.name).expanduser()
    gguf = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    source = str(path.parent if gguf else path) if path.exists() else model.name
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True, **gguf)
    except Exception as error:  # every format's reader has errors of its own
        raise SrkitError(
            f"The config.json of {model.name} is not on this machine, so nothing can be forecast "
            f"for it. Get it once (hf download {model.name} config.json), or give a folder that "
            f"holds the model as model.name. Known without it: {', '.join(SHAPES)}."
        ) from error
    try:
        return Shape.of(config)
    except AttributeError as error:
        raise SrkitError(
            f"{model.name} is a {config.model_type}, whose memory is not counted here ({error}): "
            "forecasts are for models built as Llama is (Mistral, Qwen, SmolLM, Gemma 3)."
        ) from error


@dataclass(frozen=True)
class Machine:
    """Bytes of memory (the GPU's if there is one) and of disk."""

    device: str
    total: int
    free: int
    disk: int


def machine(folder: Path = Path(), device: str = "auto") -> Machine:
    """This machine; torch is imported only where a GPU's driver is found."""
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder).free
    if device != "cpu" and (shutil.which("nvidia-smi") or shutil.which("rocm-smi")):
        import torch

        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            return Machine("cuda", total, free, disk)
    ram = psutil.virtual_memory()
    return Machine("cpu", ram.total, ram.available, disk)


def placement(model: Model, here: Machine) -> tuple[str, str]:
    """Device and type that are forecast: a GPU's where the model is quantised, as it is meant."""
    wanted = "cuda" if model.quantization == "nf4" else here.device
    device = wanted if model.device == "auto" else model.device
    auto = "float32" if device == "cpu" else "bfloat16"
    return device, auto if model.dtype == "auto" else model.dtype


# --- the forecast --------------------------------------------------------------------------------


def seconds_of(found: Work, shape: Shape, speed: Speed, device: str = "cpu") -> float:
    """A step's seconds at a measured speed, once its model is open.

    Generation: each call prepares the model and reads its prompts; a pass takes its time whatever
    the rows, a row in it some more, and a call goes on to its longest row.
    """
    if found.kind == "none":
        return 0.0
    if found.kind == "train":
        tokens = work(shape, found.trained, found.labelled)
        tokens += REFERENCE_PASS * work(shape, found.reference, 0)
        return speed.training_seconds + tokens / speed.train_tokens
    at_once = memory.ROWS[device] * _processes(found.rows, speed, device)
    passes = found.calls * math.ceil(found.rows / at_once) * found.length
    reading = found.calls * speed.call_seconds + found.prompt / speed.prefill_tokens
    writing = passes * speed.pass_seconds + found.generated * speed.row_seconds
    return reading + (writing if found.kind == "generate" else 0)


def _processes(rows: float, speed: Speed | None, device: str) -> int:
    """How many write at once: see `srkit.parallel`."""
    threads = speed.threads if speed and device == "cpu" else 1
    return max(1, min(threads, int(rows) // memory.ROWS_EACH))


def opening_seconds(speed: Speed, step: Step, kind: str, opened: tuple[str, str]) -> float:
    """To open the model that a step asks, given notebook and model of the step before.

    A notebook is a process: its first model also waits for torch, and for the base. A training
    loads what it needs within its own seconds.
    """
    notebook, model = opened
    asked = _asked_model(step)
    start = speed.start_seconds if notebook != step.notebook else 0.0
    switch = kind != "train" and asked != "M0" and (start > 0 or model != asked)
    return start + switch * speed.switch_seconds


def _asked_model(step: Step) -> str:
    return next((name for name in step.inputs if name.endswith("/adapter")), "M0")


def memory_of(
    found: Work,
    shape: Shape,
    config: Config,
    step: Step,
    where: tuple[str, str],
    room: float,
    speed: Speed | None,
) -> Memory:
    """A step's memory on `where`, a device and a type, with `room` bytes free before it."""
    device, dtype = where
    if found.kind == "none":
        return Memory(process=memory.LIGHT)
    if found.kind == "train":
        settings: Sft = config.dpo if "dpo" in step.settings else config.sft
        share = found.labelled / max(found.trained, 1)
        labelled = share * found.length
        return memory.training(shape, config.model, settings, device, dtype, found.length, labelled)
    processes = _processes(found.rows, speed, device)
    rows = min(found.rows, memory.ROWS[device] * processes)
    held = found.held * rows / max(found.rows, 1)
    return memory.generating(
        shape, config.model, device, dtype, int(rows), held, found.length, room, processes
    )


def forecast(
    config: Config,
    arms: tuple[str, ...] = (PAPER_ARM,),
    study: Study | None = None,
    speed: Speed | None = None,
    here: Machine | None = None,
) -> list[Forecast]:
    """A forecast of every step, in order; without `speed`, what was measured before is used.

    Raises: SrkitError if the model's shape is not known here.
    """
    shape, speed = shape_of(config.model), speed or cached(config.model)
    here = here or machine(device=config.model.device)
    where = placement(config.model, here)
    room = here.free if where[0] == here.device else math.inf
    texts, opened, forecasts = Texts(config, speed, study), ("", ""), []
    for step in plan(config, arms):
        settings = config.for_arm(step.arm)
        found = work_of(step, settings, texts)
        seconds = seconds_of(found, shape, speed, where[0]) if speed else None
        if speed and found.kind != "none":
            seconds += opening_seconds(speed, step, found.kind, opened)
            opened = (step.notebook, "" if found.kind == "train" else _asked_model(step))
        need = memory_of(found, shape, settings, step, where, room, speed)
        disk = memory.disk(shape, config.model) if found.kind == "train" else 0.0
        rounded = None if seconds is None else round(seconds, 1)
        forecasts.append(Forecast(step.name, step.notebook, found, need, disk, rounded))
    return forecasts


def total(forecasts: list[Forecast]) -> Row:
    """Sums of tokens, seconds and disk; the highest memory."""
    known = [f.seconds for f in forecasts if f.seconds is not None]
    return {
        "prompt_tokens": round(sum(f.work.prompt for f in forecasts)),
        "generated_tokens": round(sum(f.work.generated for f in forecasts)),
        "trained_tokens": round(sum(f.work.trained for f in forecasts)),
        "seconds": round(sum(known), 1) if len(known) == len(forecasts) else None,
        "peak_memory_mb": round(max(f.memory.peak for f in forecasts) / MB),
        "low_memory_mb": round(max(f.memory.low for f in forecasts) / MB),
        "disk_mb": round(sum(f.disk for f in forecasts) / MB),
    }


# --- whether it fits -----------------------------------------------------------------------------


def too_much(forecasts: list[Forecast], here: Machine) -> str:
    """Why the study cannot run on a machine, and what would; empty if it can."""
    worst = max(forecasts, key=lambda f: f.memory.low)
    disk = sum(f.disk for f in forecasts)
    if worst.memory.low > here.total:
        fits = largest_that_fits(here)
        return (
            f"{worst.step} needs at least {_gb(worst.memory.low)} of memory, this machine has "
            f"{_gb(here.total)} ({here.device}). "
            + (f"Preset {fits} fits." if fits else "No preset fits.")
        )
    if disk > here.disk:
        return (
            f"the study needs {disk / 1e6:,.1f} MB of disk, {here.disk / 1e6:,.1f} MB are free. "
            "Free some space there, or give it a place on another disk."
        )
    return ""


def tight(forecasts: list[Forecast], here: Machine) -> str:
    """A warning where the expected need exceeds what is free now; empty if it does not."""
    worst = max(forecasts, key=lambda f: f.memory.required)
    if worst.memory.required <= here.free:
        return ""
    return (
        f"{worst.step} is expected to need {_gb(worst.memory.required)} of memory, "
        f"{_gb(here.free)} are free: smaller micro_batch, chunk or max_tokens need less."
    )


def largest_that_fits(here: Machine) -> str | None:
    """The largest preset whose expected need is free on a machine; 4-bit ones need a GPU."""
    for name in reversed(presets()):
        config = resolve(name)
        if config.model.quantization == "nf4" and here.device == "cpu":
            continue
        if max(f.memory.required for f in forecast(config, here=here)) <= here.free:
            return name
    return None


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def in_words(forecasts: list[Forecast]) -> str:
    """`about 2 min, 1.9 GB` for some steps together."""
    seconds = [f.seconds for f in forecasts]
    time = "time not measured" if None in seconds else duration(sum(seconds))
    return f"{time}, {_gb(max(f.memory.peak for f in forecasts))}"


def duration(seconds: float) -> str:
    """`about 40 s`, `about 2 min`, `about 3.5 h`."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def as_row(one: Forecast, shape: Shape, model: Model) -> Row:
    """All that is known of a step, for JSON: tokens, and bytes by what they are for."""
    parts = {name: round(size) for name, size in asdict(one.memory).items()}
    return {
        "step": one.step,
        "notebook": one.notebook,
        "parameters": shape.parameters,
        "adapter_parameters": shape.adapter_parameters(model),
        **{k: round(v) if isinstance(v, float) else v for k, v in asdict(one.work).items()},
        "bytes": parts,
        "low_memory_mb": round(one.memory.low / MB),
        "peak_memory_mb": round(one.memory.peak / MB),
        "disk_mb": round(one.disk / MB, 1),
        "seconds": one.seconds,
    }


def table(forecasts: list[Forecast]) -> list[str]:
    """Lines for people: a head, a line for each step that asks something of the model."""
    head = f"{'step':<36} {'prompt':>9} {'generated':>9} {'trained':>9} {'seconds':>8} {'MB':>7}"
    lines = [f"{head}  tokens from"]
    for one in forecasts:
        if one.work.kind == "none":
            continue
        counts = (one.work.prompt, one.work.generated, one.work.trained)
        numbers = " ".join(f"{round(count):>9,}" for count in counts)
        seconds = "-" if one.seconds is None else f"{one.seconds:.0f}"
        peak = round(one.memory.peak / MB)
        lines.append(f"{one.step:<36} {numbers} {seconds:>8} {peak:>7,}  {one.work.basis}")
    return lines
