"""The seed data: IFT, ranked responses, held-out rankings, test prompts (paper section 3.1.1).

Sources, by `seed.source`: `kit` (data/seed/), another folder with the same three files, or Open
Assistant message rows, from a hub id or a local .jsonl, .jsonl.gz or .parquet file. Of Open
Assistant: English, first turn, reviewed, not deleted; IFT is the reply of rank 0; rankings come
from prompts with two or more ranked replies.

Surprising decisions: the split is by prompt text, so that two trees with one prompt cannot stand
on both sides of it; which prompt goes where depends on the prompt and the random seed alone.

    python -c "from srkit import seed, config; print(seed.load(config.resolve('tiny')).counts)"
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from srkit.config import Config, SrkitError
from srkit.constraints import check
from srkit.prompts import one_line
from srkit.study import Row, Study, derive_seed

KIT = Path(__file__).resolve().parents[1] / "data" / "seed"
FILES = ("ift.jsonl", "eft.jsonl", "test_prompts.jsonl")
SUFFIXES = (".jsonl", ".gz", ".parquet", ".json", ".csv")  # a hub id may hold a dot as well
ExpectedLength = Literal["1 sentence", "1-3 sentences", "1 paragraph", "2 paragraphs"]
MESSAGE_FIELDS = ("message_id", "parent_id", "text", "role", "lang", "rank")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, str_min_length=1)


class IftRow(_Record):
    """A row of ift.jsonl."""

    id: str
    task: str
    prompt: str
    response: str


class Graded(_Record):
    """One response of a row of eft.jsonl; a higher score is better, scores differ."""

    id: str
    made: str
    score: int = Field(ge=0, le=5)
    rationale: str
    text: str


class EftRow(_Record):
    """A row of eft.jsonl: a prompt with graded responses."""

    id: str
    task: str
    split: Literal["train", "eval"]
    prompt: str
    responses: list[Graded] = Field(min_length=2)

    @field_validator("responses")
    @classmethod
    def _scores_differ(cls, responses: list[Graded]) -> list[Graded]:
        if len({response.score for response in responses}) < len(responses):
            raise ValueError("two responses have the same score; a ranking needs different ones")
        return responses


class TestRow(_Record):
    """A row of test_prompts.jsonl; constraints are checked by `srkit.constraints`.

    Complexity and expected length are the labels of the paper's Fig. 11, for `srkit.breakdowns`.
    """

    __test__ = False  # not a test class for pytest
    id: str
    task: str
    prompt: str
    constraints: list[dict[str, Any]]
    complexity: int | None = Field(None, ge=1, le=10)
    expected_length: ExpectedLength | None = None

    @field_validator("constraints")
    @classmethod
    def _can_be_checked(cls, constraints: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for constraint in constraints:
            try:
                check("A text.", constraint)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{constraint} cannot be checked: {error}") from None
        return constraints


@dataclass
class SeedData:
    """The four tables, and how many rows each rule left out."""

    ift: list[Row] = field(default_factory=list)
    eft: list[Row] = field(default_factory=list)
    eft_eval: list[Row] = field(default_factory=list)
    test_prompts: list[Row] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def load(config: Config) -> SeedData:
    """The seed data of a configuration, limited to its sizes.

    Raises: SrkitError on a missing file, a broken row (file, line and field named), or a source
    that leaves one of the four tables empty.
    """
    source = config.seed.source
    folder = KIT if source == "kit" else Path(source)
    own = source == "kit" or folder.is_dir()
    data = _from_folder(folder, config) if own else _from_messages(source, config)
    for name in ("ift", "eft", "eft_eval", "test_prompts"):
        if not getattr(data, name):
            raise SrkitError(
                f"The seed source {source} gives no rows for seed/{name}: {data.counts}. Use a "
                f"larger source, or raise seed.max_words (now {config.seed.max_words})."
            )
    wanted = config.sft.eft_targets
    if wanted in ("reference", "score") and any(row["score"] is None for row in data.eft):
        raise SrkitError(
            f"sft.eft_targets = {wanted}, but the seed source {source} has no reference judgements "
            "(Open Assistant has none). Set sft.eft_targets=self, as in the paper, or =rank; for a "
            "study that is there already, add --change."
        )
    return data


def make_seed(study: Study) -> SeedData:
    """Steps `seed/ift`, `seed/eft`, `seed/eft_eval`, `seed/test_prompts`: those not there yet."""
    names = ("ift", "eft", "eft_eval", "test_prompts")
    todo = [n for n in names if study.state(f"seed/{n}") != "done"]
    data = load(study.config) if todo else SeedData()
    for name in todo:
        rows = getattr(data, name)
        study.make_table(
            f"seed/{name}",
            rows,
            lambda part, _: list(part),
            chunk=1000,
            extra={"counts": data.counts, "source": _hashes(study.config)},
        )
    return SeedData(**{n: study.read(f"seed/{n}") for n in names})


def _hashes(config: Config) -> dict[str, str]:
    """sha256 of the source's files; empty for a hub id."""
    source = config.seed.source
    path = KIT if source == "kit" else Path(source)
    files = [path / name for name in FILES] if path.is_dir() else [path]
    found = [file for file in files if file.is_file()]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def _shuffled(rows: list[Row], key: str, config: Config) -> list[Row]:
    """Rows in an order that depends on each row's own key and the random seed alone."""
    return sorted(rows, key=lambda row: derive_seed(config.random_seed, "seed", row[key]))


def _words(*texts: str) -> int:
    return max(len(text.split()) for text in texts)


# --- the kit's own files, or a folder of the same shape ------------------------------------------


def _from_folder(folder: Path, config: Config) -> SeedData:
    limit, sizes = config.seed.max_words, config.seed
    for name in FILES:
        if not (folder / name).exists():
            raise SrkitError(
                f"{folder} has no {name}. A seed folder holds {', '.join(FILES)} (fields: "
                "data/README.md); for Open Assistant rows give a file or a hub id."
            )
    ift = [row.model_dump() for row in _rows(folder / "ift.jsonl", IftRow)]
    ranked = _rows(folder / "eft.jsonl", EftRow)
    tests = [row.model_dump() for row in _rows(folder / "test_prompts.jsonl", TestRow)]
    _check_held_out(ift, ranked, tests)
    found = len(ift) + len(ranked)
    ranked.sort(key=lambda row: derive_seed(config.random_seed, "seed", row.id))
    ift, tests = (_shuffled(rows, "id", config) for rows in (ift, tests))
    ift = [row for row in ift if _words(row["prompt"], row["response"]) <= limit]
    ranked = [r for r in ranked if _words(r.prompt, *(x.text for x in r.responses)) <= limit]
    split = {
        name: [row for row in ranked if row.split == name][:most]
        for name, most in (("train", sizes.eft_prompts), ("eval", sizes.eval_prompts))
    }
    return SeedData(
        ift=ift[: sizes.ift],
        eft=[row for prompt in split["train"] for row in _flat(prompt)],
        eft_eval=[row for prompt in split["eval"] for row in _flat(prompt)],
        test_prompts=tests[: sizes.test_prompts],
        counts={"longer than seed.max_words": found - len(ift) - len(ranked)},
    )


def _check_held_out(ift: list[Row], ranked: list[EftRow], tests: list[Row]) -> None:
    """Raises: SrkitError if a held-out or a test prompt is also one to train on."""

    def key(prompt: str) -> str:
        return one_line(prompt).casefold()

    trained = {key(row["prompt"]): row["id"] for row in ift}
    trained |= {key(row.prompt): row.id for row in ranked if row.split == "train"}
    held_out = [(row.id, row.prompt) for row in ranked if row.split == "eval"]
    for name, prompt in [*held_out, *((row["id"], row["prompt"]) for row in tests)]:
        if key(prompt) in trained:
            raise SrkitError(
                f"The held-out prompt {name} has the same text as {trained[key(prompt)]}, which is "
                "trained on. Take one of the two out of the seed folder."
            )


def _rows(file: Path, record: type[BaseModel]) -> list[Any]:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SrkitError(f"{file} cannot be read as text lines: {error}.") from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(record.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "the line"
            raise SrkitError(
                f"{file}, line {number}: {name}: {first['msg']}. The fields of a row are "
                f"{', '.join(record.model_fields)} (data/README.md)."
            ) from None
    ids = [r.id for row in rows for r in (row, *getattr(row, "responses", ()))]
    repeated = [i for i, n in Counter(ids).items() if n > 1]
    if repeated:
        raise SrkitError(f"{file}: the id {repeated[0]!r} occurs more than once; ids are keys.")
    return rows


def _flat(prompt: EftRow) -> list[Row]:
    order = sorted({r.score for r in prompt.responses}, reverse=True)
    return [
        {
            "id": response.id,
            "prompt_id": prompt.id,
            "task": prompt.task,
            "prompt": prompt.prompt,
            "response": response.text,
            "rank": order.index(response.score),
            "made": response.made,
            "rationale": response.rationale,
            "score": response.score,
        }
        for response in prompt.responses
    ]


# --- Open Assistant ------------------------------------------------------------------------------


def _from_messages(source: str, config: Config) -> SeedData:
    prompts, counts = first_turns(_messages(source), config.seed.max_words)
    prompts = _shuffled(prompts, "text", config)
    sizes = config.seed
    ranked = [p for p in prompts if len(p["replies"]) >= 2 and p["ranked"]]
    evals = ranked[: min(sizes.eval_prompts, len(ranked) // 4)]
    train = ranked[len(evals) :][: min(sizes.eft_prompts, 2 * len(ranked) // 5)]
    used = {p["text"] for p in evals + train}
    rest = [p for p in prompts if p["text"] not in used]
    tests = rest[: min(sizes.test_prompts, len(rest) // 5)]
    ift = [p for p in rest[len(tests) :] if p["best"] is not None][: sizes.ift]
    return SeedData(
        ift=[
            {"id": p["id"], "task": "", "prompt": p["text"], "response": p["best"]["text"]}
            for p in ift
        ],
        eft=[row for p in train for row in _ranked_rows(p)],
        eft_eval=[row for p in evals for row in _ranked_rows(p)],
        test_prompts=[
            {"id": p["id"], "task": "", "prompt": p["text"], "constraints": []} for p in tests
        ],
        counts=counts,
    )


def first_turns(messages: list[Row], max_words: int) -> tuple[list[Row], dict[str, int]]:
    """First-turn English prompts with their replies, best first, and what was left out."""
    counts: Counter[str] = Counter()
    replies = defaultdict(list)
    for row in messages:
        if row["role"] == "assistant" and _usable(row) and row["rank"] is not None:
            replies[row["parent_id"]].append(row)
    prompts: dict[str, Row] = {}
    for row in messages:
        if row["role"] != "prompter" or row["parent_id"] is not None:
            continue
        here = sorted(replies[row["message_id"]], key=lambda r: r["rank"])
        reason = None if _usable(row) else "not English, deleted, or not reviewed"
        text = one_line(row["text"]).casefold()
        if reason is None and _words(row["text"]) > max_words:
            reason = "prompt longer than seed.max_words"
        if reason is None and text in prompts:
            reason = "the same prompt again"
        short = [r for r in here if _words(r["text"]) <= max_words]
        if reason is None and not short:
            reason = "no ranked reply within seed.max_words"
        if reason:
            counts[reason] += 1
            continue
        best = short[0] if short[0]["rank"] == 0 else None
        distinct = len({r["rank"] for r in short}) == len(short)
        prompts[text] = {"id": row["message_id"], "text": row["text"], "replies": short}
        prompts[text] |= {"best": best, "ranked": distinct}
    return list(prompts.values()), dict(counts)


def _usable(row: Row) -> bool:
    reviewed = row.get("review_result", True) is True  # null: nobody has looked at it yet
    return row["lang"] == "en" and not row.get("deleted", False) and reviewed


def _ranked_rows(prompt: Row) -> list[Row]:
    return [
        {
            "id": reply["message_id"],
            "prompt_id": prompt["id"],
            "task": "",
            "prompt": prompt["text"],
            "response": reply["text"],
            "rank": place,
            "made": None,
            "rationale": None,
            "score": None,
        }
        for place, reply in enumerate(prompt["replies"])
    ]


def _messages(source: str) -> list[Row]:
    path = Path(source)
    if path.exists():
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)
    elif path.suffix in SUFFIXES or source[0] in "./~" or source.count("/") != 1:
        raise SrkitError(
            f"The seed source {source!r} is neither `kit`, a folder, a file that exists, nor a "
            "hub id such as OpenAssistant/oasst1."
        )
    else:
        rows = _from_hub(source)
    if not rows:
        raise SrkitError(f"The seed source {source} is empty.")
    return rows


def _read_lines(path: Path) -> list[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    rows = []
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(_message(line, f"{path}, line {number}"))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise SrkitError(f"{path} cannot be read as text lines: {error}.") from None
    return rows


def _message(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SrkitError(f"{where}: not JSON ({error}).") from None
    return _check_message(row, where)


def _check_message(row: Any, where: str) -> Row:
    missing = [f for f in MESSAGE_FIELDS if not isinstance(row, dict) or f not in row]
    if missing:
        raise SrkitError(
            f"{where}: the field {missing[0]!r} is missing. A message row has "
            f"{', '.join(MESSAGE_FIELDS)} (data/README.md)."
        )
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise SrkitError(f"{where}: the field 'text' is {row['text']!r}; it must be text.")
    rank = row["rank"]
    if rank is not None and not (isinstance(rank, int | float) and rank >= 0 and rank % 1 == 0):
        raise SrkitError(f"{where}: the field 'rank' is {rank!r}; it must be 0, 1, 2, ... or null.")
    return row


def _read_parquet(path: Path) -> list[Row]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises many kinds, all meaning the same to a user
        raise SrkitError(f"{path} cannot be read as parquet: {error}.") from None
    frame = frame.astype(object).where(frame.notna(), None)
    rows = frame.to_dict("records")
    return [_check_message(row, f"{path}, row {i}") for i, row in enumerate(rows)]


def _from_hub(source: str) -> list[Row]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source, split="train").to_list()
    except Exception as error:  # network, hub and schema errors alike
        raise SrkitError(
            f"The dataset {source} could not be read from the hub ({type(error).__name__}: "
            f"{str(error)[:200]}). Check the network and the name, give a local file of message "
            "rows as seed.source, or use seed.source=kit."
        ) from None
    return [_check_message(row, f"{source}, row {i}") for i, row in enumerate(rows)]
