"""Benchmarks: the kit's engine beside the ways that others use, in one run; records and tables.

`measure_generation` takes a workload of judging or of candidates (for DPO see srkit.bench_train).
The contestants take turns, round after round, on the same prompts with the same number of tokens;
of each the best time is kept, since other work on a machine can only add to it.

Surprising decisions:
- The model cannot end: its output layer gets a bias of minus infinity on the end tokens. So every
  row of every contestant has its full length, and nobody's stopping rule is measured.
- A contestant that would take too long writes a part of the rows, prompts of all lengths, and its
  time is scaled to all of them; the record says how many it wrote. `generate` is given one batch,
  since a second one takes as long as the first.
- Prefill is a run of its own with one token per row. Its rate counts each distinct prompt once,
  so that encoding a prompt n times, or a rubric for every prompt, shows as a lower rate.
- The limit is the machine's own, probed in the same rounds: the arithmetic that the workload needs
  at least (2 operations per weight and token; shared prefixes and prompts once; the output layer
  for written tokens alone), at the speed of one large matrix product. Attention is left out.
- All run in one process, so all profit from the way that srkit's import lets OpenMP's threads wait
  (see srkit/__init__.py). There is no adapter on the model: ours merges one before it starts,
  `generate` would carry it through every step.

    srkit bench judge --preset tiny
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from srkit import seed
from srkit.chat import encode_prompt, stop_token_ids
from srkit.config import SrkitError, resolve
from srkit.generate import Sampling, sample, score_options
from srkit.models import Policy, load_base, placement
from srkit.prompts import SCALES, Conversation, judge_prompt, user
from srkit.provenance import peak_memory_mb, provenance
from srkit.reading import shown
from srkit.rows import derive_seed, read_jsonl

if TYPE_CHECKING:
    from srkit.config import Model

Record = dict[str, Any]
FOLDER = Path(__file__).resolve().parents[1] / "data" / "benchmarks"
KINDS = ("judge", "generate", "train")
MARKS = ("<!-- bench -->", "<!-- /bench -->")
OURS = "srkit"
TEMPERATURE, TOP_P = 0.7, 0.9  # the paper's, section 3.1


@dataclass(frozen=True)
class Size:
    """A workload of `prompts` x `samples` rows of `tokens`, and the parts that the slow write."""

    prompts: int
    samples: int
    tokens: int
    batch: int  # prompts in the batch of `generate`
    single: int  # rows written one at a time
    sweep: tuple[int, ...] = ()  # rows at which our decoding is measured by itself


# Two rounds take one to one and a half minutes on two cores, one round of `full` two to three.
QUICK = {
    "judge": Size(prompts=16, samples=3, tokens=32, batch=4, single=1),
    "generate": Size(prompts=8, samples=4, tokens=48, batch=8, single=2, sweep=(8, 32, 128)),
}
FULL = {
    "judge": Size(prompts=32, samples=3, tokens=64, batch=8, single=4),
    "generate": Size(8, samples=4, tokens=96, batch=8, single=4, sweep=(8, 16, 32, 64, 128)),
}
SWEEP_TOKENS = 16
# `full` only: peak memory must not follow the number of prompts, once all rows of a batch are
# taken, which are 64 for each core, and the heaps have seen prompts of all lengths.
GROWING_PROMPTS = (384, 768)


# --- contestants ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """`write(conversations, samples, tokens)` returns the number of tokens it wrote.

    It is given the first `prompts` of the workload's prompts, and writes `samples` of each.
    """

    write: Callable[[list[Conversation], int, int], int]
    prompts: int
    samples: int


def contestants(policy: Policy, size: Size) -> dict[str, Contestant]:
    """Who takes part. Another engine joins as one more entry, if it can be imported."""
    return {
        "generate, one at a time": Contestant(partial(one_at_a_time, policy), size.single, 1),
        "generate, batched": Contestant(partial(batched, policy), size.batch, size.samples),
        OURS: Contestant(partial(ours, policy), size.prompts, size.samples),
    }


def one_at_a_time(policy: Policy, prompts: list[Conversation], samples: int, tokens: int) -> int:
    """The way of the community's repositories: a call of `generate` for every sample."""
    return sum(batched(policy, [prompt], 1, tokens) for prompt in prompts for _ in range(samples))


def batched(policy: Policy, prompts: list[Conversation], samples: int, tokens: int) -> int:
    """`generate` on one batch, padded on the left; from the same distribution as ours."""
    ids = [encode_prompt(policy.tokenizer, prompt) for prompt in prompts]
    padded = policy.tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    with torch.inference_mode():
        out = policy.model.generate(
            **padded.to(policy.model.device),
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,  # its default of 50 would be another distribution
            num_return_sequences=samples,
            max_new_tokens=tokens,
        )
    return out[:, padded["input_ids"].shape[1] :].numel()


def ours(policy: Policy, prompts: list[Conversation], samples: int, tokens: int) -> int:
    """The kit's engine."""
    seeds = [[derive_seed("bench", p, i) for i in range(samples)] for p in range(len(prompts))]
    sampling = Sampling(tokens, TEMPERATURE, TOP_P)
    return sum(c.tokens for row in sample(policy, prompts, samples, sampling, seeds) for c in row)


def endless(cfg: Model) -> Policy:
    """The base of `cfg`, unable to write an end token."""
    model, tokenizer = load_base(cfg)
    head = model.get_output_embeddings()
    bias = torch.zeros(head.out_features, dtype=head.weight.dtype, device=head.weight.device)
    bias[list(stop_token_ids(tokenizer, model))] = -torch.inf
    head.bias = nn.Parameter(bias if head.bias is None else bias + head.bias, requires_grad=False)
    return Policy(model, tokenizer, "M0")


# --- workloads -----------------------------------------------------------------------------------


def workload(kind: str, policy: Policy, prompts: int) -> list[Conversation]:
    """Conversations out of the kit's own seed, the same for every preset.

    In an order in which the first few have about the lengths of all.
    """
    data = seed.load(resolve("cpu"))
    if kind == "judge":
        texts = [judge_prompt("additive", row["prompt"], row["response"]) for row in data.eft]
    else:
        texts = [user(row["prompt"]) for row in data.ift]
    ranked = sorted(texts[:prompts], key=lambda c: len(encode_prompt(policy.tokenizer, c)))
    order = sorted(range(len(ranked)), key=_bits_reversed)
    return [ranked[i] for i in order]


def _bits_reversed(number: int) -> int:
    """Van der Corput's order, 0 8 4 12 2 10 ...: whatever is taken first lies evenly spread."""
    return int(f"{number:016b}"[::-1], 2)


@dataclass(frozen=True)
class Work:
    """The least that a workload asks of a model: tokens to read, tokens to write."""

    prompt_tokens: int  # of every prompt
    read_tokens: int  # of every prompt, without repeating the prefix that all share
    rows: int

    @classmethod
    def of(cls, policy: Policy, prompts: Sequence[Conversation], samples: int) -> Work:
        ids = [encode_prompt(policy.tokenizer, prompt) for prompt in prompts]
        every = sum(map(len, ids))
        shared = len(os.path.commonprefix(ids))  # noqa: RUF071
        return cls(every, every - (len(ids) - 1) * shared, len(ids) * samples)


# --- the machine ---------------------------------------------------------------------------------


def weights(model: nn.Module) -> tuple[int, int]:
    """Weights of all linear layers, and of the output layer alone."""
    linear = [m for m in model.modules() if hasattr(m, "in_features") and hasattr(m, "weight")]
    head = model.get_output_embeddings()
    return sum(m.in_features * m.out_features for m in linear), head.weight.numel()


def probe_product(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b)[0] for _ in range(4))


def probe_memory(device: torch.device) -> float:
    """Bytes per second when a quarter of a gigabyte is read, as the weights are in every step."""
    block = torch.ones(2**26, device=device)
    return 4 * 2**26 / min(seconds(lambda: block.sum())[0] for _ in range(4))


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, with the GPU's work in it, and what it returned."""
    _wait_for_gpu()
    began = time.perf_counter()
    result = call()
    _wait_for_gpu()
    return time.perf_counter() - began, result


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(cfg: Model) -> Record:
    """What the numbers hold for."""
    cuda = placement(cfg)[0] == "cuda"
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# --- generation ----------------------------------------------------------------------------------


def measure_generation(
    kind: str, preset: str = "cpu", rounds: int = 2, full: bool = False, size: Size | None = None
) -> Record:
    """Time all contestants on the workload `judge` or `generate`. Rates are per second."""
    cfg, size = resolve(preset).model, size or (FULL if full else QUICK)[kind]
    policy = endless(cfg)
    found: Record = head(kind, preset, cfg, rounds, full) | {"size": asdict(size)}
    if full and kind == "judge":  # before the others: a peak hides what stays below it
        found["peak_memory_mb"] = _memory(policy)
    prompts = workload(kind, policy, size.prompts)
    work, who = Work.of(policy, prompts, size.samples), contestants(policy, size)
    for one in who.values():
        one.write(prompts[:1], 1, 2)  # the first call of all pays for libraries that load late
    times: dict[Any, list[float]] = defaultdict(list)
    wrote: dict[str, int] = {}
    for _ in range(rounds):
        times["product"].append(1 / probe_product(policy.model.device, policy.model.dtype))
        times["memory"].append(1 / probe_memory(policy.model.device))
        for name, one in who.items():
            for tokens in (1, size.tokens):
                call = partial(one.write, prompts[: one.prompts], one.samples, tokens)
                took, wrote[name] = seconds(call)
                times[name, tokens].append(took)
        if kind == "judge":
            times["expected"].append(seconds(partial(_expected, policy, prompts))[0])
        for rows in size.sweep:
            for tokens in (1, SWEEP_TOKENS):
                call = partial(ours, policy, prompts[:1], rows, tokens)
                times["sweep", rows, tokens].append(seconds(call)[0])
    best = {name: min(each) for name, each in times.items()}
    limits = _limits(policy.model, best)
    rows = [
        _row(name, one, size, work, wrote[name], best, limits)
        | {"seconds_of_rounds": [round(s, 3) for s in times[name, size.tokens]]}
        for name, one in who.items()
    ]
    own = by_name(rows, OURS)
    for row in rows:
        row["srkit_is_faster"] = own["output_tokens"] / row["output_tokens"]
    found |= {"work": asdict(work), "limits": limits, "rows": rows}
    if kind == "judge":
        found["expected"] = _expected_row(size, work, best, own, limits)
    if size.sweep:
        found["sweep"] = _sweep(size, best, limits)
    return rounded(found)


def _expected(policy: Policy, prompts: list[Conversation]) -> None:
    forced = [[*prompt, {"role": "assistant", "content": "Score:"}] for prompt in prompts]
    low, high = SCALES["additive"]
    score_options(policy, forced, [f" {score}" for score in range(low, high + 1)])


def _memory(policy: Policy) -> dict[str, Any]:
    """Peak memory so far after a few and after many judge prompts."""
    peaks = {}
    for prompts in GROWING_PROMPTS:
        ours(policy, workload("judge", policy, prompts), 1, 8)
        peaks[f"{prompts} prompts"] = peak_memory_mb()
    return peaks


def _limits(model: nn.Module, best: dict[Any, float]) -> Record:
    every, head = weights(model)
    product, memory = 1 / best["product"], 1 / best["memory"]
    return {
        "operations": product,
        "memory_bytes": memory,
        "weights": every,
        "written_tokens": product / (2 * every),
        "read_tokens": product / (2 * (every - head)),
        # with one row at a time every step reads all weights
        "steps": memory / (every * model.dtype.itemsize),
    }


def _row(
    name: str,
    one: Contestant,
    size: Size,
    work: Work,
    wrote: int,
    best: dict[Any, float],
    limits: Record,
) -> Record:
    """Rates of a contestant, its times scaled from the rows it wrote to all rows."""
    rows = one.prompts * one.samples
    scale = work.rows / rows
    whole, prefill = scale * best[name, size.tokens], scale * best[name, 1]
    tokens = scale * wrote
    least = work.read_tokens / limits["read_tokens"] + tokens / limits["written_tokens"]
    return {
        "name": name,
        "rows": rows,
        "of_rows": work.rows,
        "tokens_per_row": wrote / rows,
        "seconds": whole,
        "output_tokens": tokens / whole,
        "prefill_tokens": work.prompt_tokens / prefill,
        "decode_tokens": (tokens - work.rows) / max(whole - prefill, 1e-9),
        "share_of_limit": least / whole,
        "prefill_share_of_limit": work.read_tokens / prefill / limits["read_tokens"],
    }


def _expected_row(
    size: Size, work: Work, best: dict[Any, float], sampled: Record, limits: Record
) -> Record:
    """The judge that reads the score token's probabilities: no rationale, one prefill."""
    took = best["expected"]
    return {
        "seconds": took,
        "responses": size.prompts / took,
        "sampled_responses": size.prompts / sampled["seconds"],
        "prefill_tokens": work.prompt_tokens / took,
        "share_of_limit": work.read_tokens / limits["read_tokens"] / took,
    }


def _sweep(size: Size, best: dict[Any, float], limits: Record) -> list[Record]:
    """Our decoding alone, by number of rows: the difference of two runs."""
    found = []
    for rows in size.sweep:
        took = best["sweep", rows, SWEEP_TOKENS] - best["sweep", rows, 1]
        rate = rows * (SWEEP_TOKENS - 1) / max(took, 1e-9)
        share = rate / limits["written_tokens"]
        found.append({"rows": rows, "decode_tokens": rate, "share_of_limit": share})
    return found


# --- records and tables --------------------------------------------------------------------------


def head(kind: str, preset: str, cfg: Model, rounds: int, full: bool) -> Record:
    """What every record begins with: when, by which code, where, on what."""
    return {
        "kind": kind,
        "date": time.strftime("%Y-%m-%d"),
        **{k: v for k, v in provenance().items() if k != "machine"},
        "machine": machine(cfg),
        "preset": preset,
        "model": cfg.name,
        "quantization": cfg.quantization,
        "rounds": rounds,
        "kept": "best",
        "full": full,
    }


def by_name(rows: list[Record], name: str) -> Record:
    """The row of one contestant."""
    return next(row for row in rows if row["name"] == name)


def rounded(value: Any) -> Any:
    """Six significant digits: more than a timing has, enough to compare losses."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def append(record: Record, folder: Path = FOLDER) -> Path:
    """Add a run to `<kind>.jsonl`; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{record['kind']}.jsonl"
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
    return file


def latest(folder: Path = FOLDER) -> list[Record]:
    """The last run of each kind on each machine and model.

    Raises: SrkitError if there is none.
    """
    found: dict[tuple, Record] = {}
    for kind in KINDS:
        file = folder / f"{kind}.jsonl"
        for record in read_jsonl(file) if file.exists() else []:
            if not {"kind", "machine", "model", "rows"} <= set(record):
                raise SrkitError(
                    f"{file} holds a record that this version of srkit did not write: "
                    f"{shown(record)}. Delete its line, or name another --folder."
                )
            where = record["machine"]["gpu"] or record["machine"]["cpu"]
            found[kind, where, record["model"]] = record
    if not found:
        raise SrkitError(
            f"{folder} holds no benchmark yet. Run `srkit bench judge`, `generate` or `train`."
        )
    return list(found.values())


def render(record: Record) -> str:
    """A run as a Markdown table, with what was measured and where."""
    lines = _training_lines if record["kind"] == "train" else _generation_lines
    return "\n".join([_title(record), "", *lines(record), "", _place(record)])


def _title(record: Record) -> str:
    if record["kind"] == "train":
        return f"**DPO**: {record['pairs']} pairs, {record['batch']} per update, one epoch."
    size, work = record["size"], record["work"]
    what = {"judge": "Judging", "generate": "Candidates"}[record["kind"]]
    return (
        f"**{what}**: {size['prompts']} prompts of {work['prompt_tokens'] / size['prompts']:.0f} "
        f"tokens on average, {size['samples']} samples of {size['tokens']} tokens each."
    )


def _generation_lines(record: Record) -> list[str]:
    head = ("contestant", "rows timed", "output tok/s", "prefill tok/s", "srkit is faster by")
    lines = _table_head(*head, "share of the limit")
    for row in record["rows"]:
        lines.append(
            f"| {row['name']} | {row['rows']} of {row['of_rows']} | {row['output_tokens']:.0f} "
            f"| {row['prefill_tokens']:.0f} | {row['srkit_is_faster']:.1f} "
            f"| {row['share_of_limit']:.0%} |"
        )
    return [*lines, "", *_notes(record)]


def _notes(record: Record) -> list[str]:
    limits, own = record["limits"], by_name(record["rows"], OURS)
    single = record["rows"][0]
    notes = [
        f"Limit: a matrix product runs at {limits['operations'] / 1e9:.0f} GFLOP/s, which is "
        f"{limits['written_tokens']:.0f} tokens/s written or {limits['read_tokens']:.0f} read; "
        f"memory is read at {limits['memory_bytes'] / 1e9:.1f} GB/s, which is "
        f"{limits['steps']:.0f} steps/s ({single['name']}: {single['decode_tokens']:.0f}). "
        f"Prefill of srkit reaches {own['prefill_share_of_limit']:.0%} of the limit."
    ]
    if expected := record.get("expected"):
        notes.append(
            f"By expected score srkit judges {expected['responses']:.2f} responses/s, by "
            f"{record['size']['samples']} samples {expected['sampled_responses']:.2f}."
        )
    if sweep := record.get("sweep"):
        best = max(sweep, key=lambda point: point["decode_tokens"])
        notes.append(
            f"Decoding alone, srkit writes at best {best['decode_tokens']:.0f} tokens/s "
            f"({best['rows']} rows), {best['share_of_limit']:.0%} of the limit."
        )
    for prompts, peak in record.get("peak_memory_mb", {}).items():
        sizes = ", ".join(f"{where} {size} MB" for where, size in peak.items())
        notes.append(f"Peak memory of srkit after {prompts}: {sizes}.")
    return notes


def _training_lines(record: Record) -> list[str]:
    head = ("contestant", "tokens/s", "in the steps alone", "srkit is faster by")
    lines = _table_head(*head, "share of the limit", "first loss", "last loss")
    for row in record["rows"]:
        lines.append(
            f"| {row['name']} | {row['tokens']:.0f} | {row['step_tokens']:.0f} "
            f"| {row['srkit_is_faster']:.2f} "
            f"| {row['share_of_limit']:.0%} | {row['losses'][0]:.4f} | {row['losses'][-1]:.4f} |"
        )
    gap = record["largest_loss_difference"]
    return [
        *lines,
        "",
        "Whole trainings, without loading the base. In the steps alone TRL computes the reference, "
        "which srkit has done before them: those two are not compared. Largest difference of the "
        f"losses of one step: {gap:.2g}.",
    ]


def _table_head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _place(record: Record) -> str:
    here, commit = record["machine"], record["commit"]
    where = here["gpu"] or f"{here['cpu']}, {here['threads']} threads"
    return (
        f"{record['model']}, {where}, {here['memory_gb']} GB, torch {record['versions']['torch']}, "
        f"best of {record['rounds']} rounds, {record['date']}, commit {commit}."
    )


def table(folder: Path = FOLDER) -> str:
    """The latest runs as Markdown."""
    return "\n\n".join(render(record) for record in latest(folder))


def put(text: str, file: Path) -> None:
    """Replace what stands between the marks in a Markdown file.

    Raises: SrkitError if the marks are not there.
    """
    old = file.read_text("utf-8")
    before, opening, rest = old.partition(MARKS[0])
    _, closing, after = rest.partition(MARKS[1])
    if not (opening and closing):
        raise SrkitError(f"{file} has no lines {MARKS[0]} and {MARKS[1]} to write between.")
    file.write_text(f"{before}{opening}\n{text}\n{closing}{after}", "utf-8")
