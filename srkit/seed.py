"""The seed data: IFT, ranked responses, held-out rankings, test prompts (paper section 3.1.1).

Sources, by `seed.source`: `kit` (data/seed/), another folder with the same three files, or Open
Assistant message rows, from a hub id or a local .jsonl, .jsonl.gz or .parquet file. Of Open
Assistant: English, first turn, reviewed, not deleted; IFT is the reply of rank 0; rankings come
from prompts with two or more ranked replies.

Surprising decisions: the split is by prompt text, so that two trees with one prompt cannot stand
on both sides of it; which prompt goes where depends on the prompt and the random seed alone. A row
that is broken stops the reading; one that is merely long or in another language is counted.

    python -c "from srkit import seed, config; print(seed.load(config.resolve('tiny')).counts)"
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from srkit.config import Config, SrkitError
from srkit.constraints import check
from srkit.prompts import one_line
from srkit.reading import decode, parse_object, read_text, shown
from srkit.rows import Row, derive_seed
from srkit.study import Study

log = logging.getLogger(__name__)
KIT = Path(__file__).resolve().parents[1] / "data" / "seed"
FILES = ("ift.jsonl", "eft.jsonl", "test_prompts.jsonl")
SUFFIXES = (".jsonl", ".gz", ".parquet", ".json", ".csv")  # a hub id may hold a dot as well
LONG_WORD = 20  # characters: a text without spaces has a word for each such piece


def _readable(value: Any) -> Any:
    """Refuse a text that no model can be asked, or that no file can hold."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("there is no text in it")
        if "\0" in value:
            raise ValueError("it holds a NUL, which is no text")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("it holds a lone surrogate, half of a character")
    return value


def _whole(value: Any) -> Any:
    """A rank as an integer: where some are null, parquet has made them 0.0, 1.0, ..."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"{shown(value)} must be 0, 1, 2, ... or null")
    return value


Text = Annotated[str, BeforeValidator(_readable)]
ExpectedLength = Literal["1 sentence", "1-3 sentences", "1 paragraph", "2 paragraphs"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    def ids(self) -> list[str]:
        """What must occur once in a file."""
        return [self.id]


class IftRow(_Record):
    """A row of ift.jsonl."""

    id: Text
    task: Text
    prompt: Text
    response: Text


class Graded(_Record):
    """One response of a row of eft.jsonl; a higher score is better, scores differ."""

    id: Text
    made: Text
    score: int = Field(ge=0, le=5)
    rationale: Text
    text: Text


class EftRow(_Record):
    """A row of eft.jsonl: a prompt with graded responses."""

    id: Text
    task: Text
    split: Literal["train", "eval"]
    prompt: Text
    responses: list[Graded] = Field(min_length=2)

    def ids(self) -> list[str]:
        return [self.id, *(response.id for response in self.responses)]

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
    id: Text
    task: Text
    prompt: Text
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
                raise ValueError(f"{shown(constraint)} cannot be checked: {error}") from None
        return constraints


class Message(_Record):
    """What is used of an Open Assistant message row."""

    model_config = ConfigDict(extra="ignore")
    message_id: Text
    parent_id: Text | None
    text: Text
    role: Literal["prompter", "assistant"]
    lang: Text
    rank: Annotated[int | None, BeforeValidator(_whole)]
    review_result: bool | None = True  # null: nobody has looked at it yet
    deleted: bool | None = False

    def ids(self) -> list[str]:
        return [self.message_id]


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
    try:
        own = folder.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise SrkitError(
            f"The seed source {shown(source)} cannot be opened: {error.strerror}. Legal are `kit`, "
            "a folder, a file, or a hub id such as OpenAssistant/oasst1."
        ) from None
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
    """Steps `seed/ift`, `seed/eft`, `seed/eft_eval`, `seed/test_prompts`: those not there yet.

    Raises: SrkitError if the source changed after some of them were made.
    """
    names = ("ift", "eft", "eft_eval", "test_prompts")
    todo = [n for n in names if study.state(f"seed/{n}") != "done"]
    _check_source(study, [f"seed/{n}" for n in names if n not in todo], bool(todo))
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


def _check_source(study: Study, made: Sequence[str], more: bool) -> None:
    """Tables of two versions of a source could share a prompt that has to be held out."""
    now, records = _hashes(study.config), study.records()
    other = [name for name in made if records[name].get("source", now) != now]
    if not now or not other:
        return
    words = (
        f"The seed source {study.config.seed.source} was changed after {', '.join(other)} of "
        f"{study.path} had been made from it."
    )
    if more:
        raise SrkitError(
            f"{words} Restore it, or delete {study.path / 'seed'}/*.jsonl: the seed tables are "
            "then made from it as it is now, and what depends on them is made again."
        )
    log.warning("%s The study keeps what it has.", words)


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
    """Words of the longest text; Chinese, or a megabyte of one letter, has more than one."""
    return max(max(len(text.split()), len(text) // LONG_WORD) for text in texts)


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
    found = len(ift) + len(ranked) + len(tests)
    ranked.sort(key=lambda row: derive_seed(config.random_seed, "seed", row.id))
    ift, tests = (_shuffled(rows, "id", config) for rows in (ift, tests))
    ift = [row for row in ift if _words(row["prompt"], row["response"]) <= limit]
    ranked = [r for r in ranked if _words(r.prompt, *(x.text for x in r.responses)) <= limit]
    tests = [row for row in tests if _words(row["prompt"]) <= limit]
    split = {
        name: [row for row in ranked if row.split == name][:most]
        for name, most in (("train", sizes.eft_prompts), ("eval", sizes.eval_prompts))
    }
    return SeedData(
        ift=ift[: sizes.ift],
        eft=[row for prompt in split["train"] for row in _flat(prompt)],
        eft_eval=[row for prompt in split["eval"] for row in _flat(prompt)],
        test_prompts=tests[: sizes.test_prompts],
        counts={"longer than seed.max_words": found - len(ift) - len(ranked) - len(tests)},
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


def _rows(file: Path, record: type[_Record]) -> list[Any]:
    return _valid(_lines(read_text(file), file), record)


def _lines(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    """The JSON objects of a file's lines, each with where it stands."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{file}, line {number}", parse_object(line, f"{file}, line {number}")


def _valid(values: Iterable[tuple[str, Any]], record: type[_Record]) -> list[Any]:
    """The values as records. Raises: SrkitError that says where, which field and why."""
    rows, seen = [], {}
    for where, value in values:
        try:
            row = record.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            name = shown(".".join(map(str, first["loc"])))[1:-1] or "the line"
            raise SrkitError(
                f"{where}: {name}: {first['msg'].removeprefix('Value error, ')}. The fields of a "
                f"row are {', '.join(record.model_fields)} (data/README.md)."
            ) from None
        for name in row.ids():
            if name in seen:
                raise SrkitError(
                    f"{where}: the id {shown(name)} occurs more than once (first in {seen[name]}); "
                    "ids are keys. Rename or remove one of the two."
                )
            seen[name] = where
        rows.append(row)
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


def ranked_prompts(source: str) -> tuple[list[Row], dict[str, int]]:
    """All ranked responses of Open Assistant messages, as `seed/eft_eval` has them; for judging.

    `source` is a file or a hub id. Of its first turns those with two or more replies of different
    ranks, in its order, whatever their length; and what was left out, by reason.

    Raises: SrkitError, as `load` does.
    """
    prompts, counts = first_turns(_messages(source), max_words=sys.maxsize)
    ranked = [p for p in prompts if len(p["replies"]) >= 2 and p["ranked"]]
    if len(prompts) > len(ranked):
        counts["fewer than two replies of different ranks"] = len(prompts) - len(ranked)
    if "no ranked reply within seed.max_words" in counts:
        counts["no ranked reply"] = counts.pop("no ranked reply within seed.max_words")
    return [row for p in ranked for row in _ranked_rows(p)], counts


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
    reviewed = row.get("review_result", True) is True
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
        read = _read_parquet if path.suffix == ".parquet" else _read_lines
        rows = read(path)
    elif path.suffix in SUFFIXES or source[0] in "./~" or source.count("/") != 1:
        raise SrkitError(
            f"The seed source {shown(source)} is neither `kit`, a folder, a file that exists, nor "
            "a hub id such as OpenAssistant/oasst1."
        )
    else:
        rows = _numbered(_from_hub(source), source)
    found = [row.model_dump() for row in _valid(rows, Message)]
    if not found:
        raise SrkitError(f"The seed source {source} is empty.")
    return found


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix != ".gz":
        return _lines(read_text(path), path)
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise SrkitError(f"{path} cannot be read as gzip: {error}. Fetch it again.") from None
    return _lines(decode(data, path), path)


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises many kinds, all meaning the same to a user
        reason = " ".join(str(error).split())
        raise SrkitError(f"{path} cannot be read as parquet: {reason}. Fetch it again.") from None
    frame = frame.astype(object).where(frame.notna(), None)
    return _numbered(frame.to_dict("records"), path)


def _numbered(rows: list[Row], source: Path | str) -> Iterator[tuple[str, Any]]:
    return ((f"{source}, row {number}", row) for number, row in enumerate(rows, 1))


def _from_hub(source: str) -> list[Row]:
    from datasets import load_dataset

    try:
        return load_dataset(source, split="train").to_list()
    except Exception as error:  # network, hub and schema errors alike
        raise SrkitError(
            f"The dataset {source} could not be read from the hub ({type(error).__name__}: "
            f"{str(error)[:200]}). Check the network and the name, give a local file of message "
            "rows as seed.source, or use seed.source=kit."
        ) from None
