"""Bad input, and good input that looks bad: each case of `bad_input/` and `good_input/` is a test.

A bad case ends in one paragraph that holds all texts of its `says`, and changes no file. A good
case passes, and has what stands in its `gives`. The file of a case names its kind, which is a
function here; `edits` are made to a whole study, seed folder, model or adapter before it.
"""

import gzip
import hashlib
import json
import shutil
import sys
from collections import Counter
from operator import attrgetter
from pathlib import Path

import pandas as pd
import papermill.cli
import pytest
import yaml
from papermill.translators import PythonTranslator

from srkit import cli, config, seed
from srkit.config import Model, SrkitError, resolve
from srkit.engine import Sampling
from srkit.notebook import begin
from srkit.prompts import judge_prompt, user
from srkit.rows import read_jsonl
from srkit.study import Study

HERE = Path(__file__).parent
TINY = Model(name="tiny")


class Loader(yaml.SafeLoader):
    """YAML with `!repeat [prefix, text, times]`, where no prefix is legal, and `!hex "ff fe"`."""


def _repeat(loader, node):
    *prefix, text, times = loader.construct_sequence(node)
    return "".join(prefix) + text * times


Loader.add_constructor("!repeat", _repeat)
Loader.add_constructor("!hex", lambda loader, node: bytes.fromhex(node.value))


def cases(folder: str) -> list:
    files = sorted((HERE / folder).glob("*.yaml"))
    loaded = [(f.stem, case) for f in files for case in yaml.load(f.read_text("utf-8"), Loader)]
    return [pytest.param(kind, case, id=f"{kind}-{case['id']}") for kind, case in loaded]


# --- what is edited ------------------------------------------------------------------------------


def _study(folder: Path, make) -> None:
    study = Study.open(folder / "study", "tiny")
    for name in study.steps:
        make(study, name)


def _seed(folder: Path) -> None:
    (folder / "seed").mkdir()
    for name, rows in (("ift", range(6)), ("eft", (0, 1, 2, -1, -2)), ("test_prompts", range(4))):
        lines = (seed.KIT / f"{name}.jsonl").read_text("utf-8").splitlines()
        chosen = "".join(lines[i] + "\n" for i in rows)
        (folder / "seed" / f"{name}.jsonl").write_text(chosen, "utf-8")


def _messages(folder: Path) -> None:
    rows = []
    for i in range(40):
        prompt = {"message_id": f"p{i:02}", "parent_id": None, "text": f"Question {i}?"}
        rows.append(prompt | {"role": "prompter", "lang": "en", "rank": None, "deleted": False})
        for rank in (0, 1):
            reply = {"message_id": f"p{i:02}-{rank}", "parent_id": f"p{i:02}", "rank": rank}
            reply |= {"text": f"Answer {rank} to question {i}.", "role": "assistant", "lang": "en"}
            rows.append(reply | {"deleted": False})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, "utf-8")


def _model(folder: Path) -> None:
    from srkit.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "cache").mkdir()


def _adapter(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from srkit.models import Policy, load_base, save_adapter

    base, tokenizer = load_base(TINY)
    torch.manual_seed(0)
    lora = LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    save_adapter(Policy(get_peft_model(base, lora).eval(), tokenizer, "M1"), folder / "adapter")


BASES = {"study": _study, "seed": _seed, "messages": _messages, "model": _model}
BASES |= {"adapter": _adapter}


def edit(change: dict) -> None:
    """One edit of a file: see the cases for what there is."""
    file = Path(change["file"])
    match change:
        case {"write": content}:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        case {"append": content}:
            data = content if isinstance(content, bytes) else content.encode()
            file.write_bytes(file.read_bytes() + data)
        case {"cut": size}:
            file.write_bytes(file.read_bytes()[:size])
        case {"delete": True}:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        case {"rename": name}:
            file.rename(name)
        case {"encode": encoding}:
            text = file.read_text("utf-8")
            file.write_bytes(
                gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding)
            )
        case {"parquet": name}:
            pd.DataFrame(read_jsonl(file)).to_parquet(name)
        case {"tensors": values}:
            _edit_tensors(file, values)
        case {"pickle": _}:
            _pickle(file)
        case {"shards": number}:
            _shard(file, number)
        case _:
            _edit_json(file, change)


def _edit_json(file: Path, change: dict) -> None:
    """`set` fields (a dotted name goes into lists and objects), `drop` them; in line `line`."""
    lines = file.read_text("utf-8").splitlines() if file.suffix == ".jsonl" else None
    place = change.get("line", 1) - 1
    row = json.loads(lines[place] if lines else file.read_text("utf-8"))
    if not change.get("sealed"):
        row.pop("seal", None)  # a line of another version has none
    for name, value in change.get("set", {}).items():
        *path, last = [int(p) if p.isdigit() else p for p in name.split(".")]
        target = row
        for part in path:
            target = target[part]
        target[last] = value
    for name in change.get("drop", []):
        del row[name]
    if lines is None:
        file.write_text(json.dumps(row), "utf-8")
        return
    lines[place] = json.dumps(row)
    file.write_text("".join(line + "\n" for line in lines), "utf-8")


def _edit_tensors(file: Path, values: dict) -> None:
    """Tensors whose name holds a text: fill with a number, or drop (null)."""
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    for part, value in values.items():
        for name in [n for n in weights if part in n]:
            weights[name][...] = 0 if value is None else value
            if value is None:
                del weights[name]
    save_file(weights, file, metadata={"format": "pt"})


def _shard(file: Path, number: int) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    file.unlink()
    places = {name: f"model-{i % number}.safetensors" for i, name in enumerate(weights)}
    for part in set(places.values()):
        own = {name: weights[name] for name, place in places.items() if place == part}
        save_file(own, file.with_name(part), metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    file.with_name("model.safetensors.index.json").write_text(json.dumps(index))


class _Trap:
    def __reduce__(self):
        return Path.touch, (Path("the-pickle-ran"),)


def _pickle(file: Path) -> None:
    """Weights whose unpickling leaves a file behind."""
    import torch

    torch.save({"lm_head.weight": _Trap()}, file)


# --- what is called: one function a kind ---------------------------------------------------------


def overrides(case):
    return resolve(case.get("preset", "tiny"), case["input"])


def presets(case):
    return resolve(case["input"])


def preset_files(case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config.resources, "files", lambda package: Path())
        return resolve("own")


def arms(case):
    study = Study.open("study", arm=case["input"])
    return {"arms": list(study.arms)}


def study_files(case):
    study = Study.open("study", **case.get("input", {}))
    study.states()
    return study.config


def studies(case):
    study = Study.open("study", **case.get("input", {}))
    states = study.states()
    for name in case.get("read", []):
        study.read(name)
    return {name: states.get(name) for name in case.get("gives", {})}


def parameters(case):
    """As papermill passes them: `-p` values by its own rules for types, `-y` as YAML."""
    given = yaml.safe_load(case["yaml"]) if "yaml" in case else {}
    given |= {n: papermill.cli._resolve_type(v) for n, v in case.get("input", {}).items()}
    cell = f"# Parameters\n{PythonTranslator.codify(given)}"
    names = {"study": "study", "preset": "", "overrides": ""}
    if case.get("notebook") == "04_iteration":
        names |= {"arm": "self-rewarding", "iteration": 1}
    known = set(names)
    exec(cell, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("srkit.notebook._cells_run", lambda: [cell])
        return begin(**{name: names[name] for name in known}).config


def commands(case):
    """The command line; exit code 1 with the kit's paragraph, or typer's 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["srkit", *case["input"]])
        patch.setattr(cli, "_execute", lambda *_: pytest.fail("a notebook would have run"))
        try:
            cli.main()
        except SystemExit as stop:
            return {"code": stop.code or 0}
    return {"code": 0}


def seed_folders(case):
    return _counts(seed.load(resolve("tiny", f"seed.source=seed {case.get('overrides', '')}")))


def messages(case):
    source = case.get("source", "rows.jsonl")
    return _counts(seed.load(resolve("tiny", f"seed.source={source} {case.get('overrides', '')}")))


def _counts(data: seed.SeedData) -> dict:
    rows = data.ift + data.eft + data.eft_eval + data.test_prompts
    names = ("ift", "eft", "eft_eval", "test_prompts")
    numbers = {name: len(getattr(data, name)) for name in names}
    return numbers | data.counts | {"prompts": {row["prompt"] for row in rows}}


def tables(case):
    rows = read_jsonl(Path(case.get("input", "study/seed/ift.jsonl")))
    return {"rows": len(rows), "first": rows[0] if rows else None}


def models(case):
    from srkit.chat import encode_prompt
    from srkit.models import load_base

    model, tokenizer = load_base(
        Model(**{"name": "model", "cache": "cache", **case.get("input", {})})
    )
    ids = encode_prompt(tokenizer, user("What is 2 + 2?"))
    return {"text": tokenizer.decode(ids), "vocabulary": model.config.vocab_size}


def adapters(case):
    from srkit.models import Policy, attach_adapter
    from srkit.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    base = tiny_model(tokenizer, **case.get("base", {}))
    attach_adapter(Policy(base, tokenizer, "M0"), Path("adapter"))
    return {}


def wordings(case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRKIT_PROMPTS", case.get("input", "wording"))
        return {"text": judge_prompt("additive", "A question?", "An answer.")[0]["content"]}


def prompts(case):
    from srkit.generate import sample
    from srkit.models import load_policy

    policy = load_policy(TINY)
    sampling = Sampling(case.get("max_tokens", 4), 0.7, 0.9)
    ((completion,),) = sample(policy, [user(case["input"])], 1, sampling, [[0]])
    return {"tokens": completion.tokens}


# --- the tests -----------------------------------------------------------------------------------

OF_KIND = {"arms": "study", "studies": "study", "study_files": "study", "parameters": "study",
           "commands": "study", "tables": "study", "seed_folders": "seed",
           "messages": "messages", "models": "model", "adapters": "adapter"}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture
def run(bases, make, tmp_path, monkeypatch):
    """`run(kind, case)` in a folder of its own, edited as the case says."""

    def run(kind: str, case: dict, before=lambda: None):
        place = tmp_path / "here"
        if what := OF_KIND.get(kind):
            base = bases / what
            if not base.exists():
                base.mkdir()
                BASES[what](*([base, make] if what == "study" else [base]))
            shutil.copytree(base, place)
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        for change in case.get("edits", []):
            edit(change)
        before()
        return globals()[kind](case)

    return run


def tree() -> dict[str, str]:
    """All files and folders here with their hashes."""
    found = {}
    for path in sorted(Path().rglob("*")):
        data = path.read_bytes() if path.is_file() else b"a folder"
        found[str(path)] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.parametrize(("kind", "case"), cases("bad_input"))
def test_bad_input_is_one_helpful_paragraph_and_changes_nothing(run, capsys, kind, case):
    there = {}
    if kind == "commands":
        code = run(kind, case, lambda: there.update(tree()))["code"]
        message = capsys.readouterr().err
        assert code == case.get("code", 1), message
        if code == 1:
            assert message.startswith("srkit: ")
            assert message.count("\n") == 1
            message = message.removesuffix("\n")
    else:
        with pytest.raises(SrkitError) as caught:
            run(kind, case, lambda: there.update(tree()))
        message = str(caught.value)
    assert message.isprintable() or case.get("code") == 2, "one line, and no control characters"
    assert len(message) < 2500, "a long value is not repeated whole"
    assert [part for part in case["says"] if part not in message] == [], message
    assert tree() == there


@pytest.mark.parametrize(("kind", "case"), cases("good_input"))
def test_good_input_passes(run, kind, case):
    found = run(kind, case)
    for name, value in case.get("gives", {}).items():
        here = found[name] if isinstance(found, dict) else attrgetter(name)(found)
        assert value in here if isinstance(here, set) else here == value, name


def test_there_are_as_many_cases_as_promised():
    bad, good = cases("bad_input"), cases("good_input")
    assert len(bad) >= 200
    assert len(good) >= 40
    ids = [case.id for case in bad + good]
    assert len(set(ids)) == len(ids)
    told, counts = (HERE / "README.md").read_text("utf-8"), Counter(c.values[0] for c in bad)
    kept = Counter(case.values[0] for case in good)
    for kind, count in counts.items():
        assert f"| {kind} | {count} | {kept[kind]} |" in told, "tests/README.md counts them too"
    assert told.count(f"{len(bad)} bad") == 2
    assert f"| **all** | **{len(bad)}** | **{len(good)}** |" in told
