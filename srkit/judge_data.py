"""Judge ranked responses of any data by models of a study, which stays as it is.

The data are Open Assistant messages (a file or a hub id), read as seed data are: English first
turns with at least two replies of different ranks. Judgements go to a folder of their own, a file
per model, and an interrupted run goes on where it stopped.

Surprising decisions: a reply whose judge prompt does not fit the model's context is left out for
every model, and counted; none is cut, since half a reply is another reply. `seed.max_words` does
not apply: what is asked is how the judge does on this data. A file's name holds a hash of all that
decides what is in it, so other settings, data or training make another file. Always plain
transformers.

    srkit judge runs/first --data messages.jsonl.gz --models M0,M1 --method expected
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from srkit import metrics, reward_accuracy
from srkit.config import Judge, SrkitError, build, legal_names
from srkit.disk import append_line, write_atomically
from srkit.judge import judge_responses
from srkit.prompts import judge_prompt, text
from srkit.rows import Row, complete_lines
from srkit.seed import ranked_prompts
from srkit.study import Study

if TYPE_CHECKING:
    from srkit.models import Policy

EXPECTED = 8  # tokens that a forced "Score:" and its digit take at most


@dataclass(frozen=True)
class Judged:
    """What was judged, and how well: `table` is `reward_accuracy.accuracy_table`."""

    about: Row
    table: pd.DataFrame

    def record(self) -> Row:
        """As JSON."""
        rows = json.loads(self.table.to_json(orient="records"))
        return {**self.about, "metrics": rows}


def judge_data(
    study: Study,
    source: str,
    models: Sequence[str] = (),
    method: str = "",
    samples: int = 0,
    prompts: int = 0,
    out: Path | None = None,
) -> Judged:
    """Judge `source` by models of the study (`M0`, `M1`, ...; none named: all that are trained).

    `method` and `samples` are the study's own unless given; of `prompts` more than 0 only the first
    so many are judged. Judgements are kept in `out`, or beside the study in `<study>-judged`.

    Raises: SrkitError for data that cannot be read or has no ranking, an unknown model or setting.
    """
    models = list(models) or ["M0", *_trained(study)]
    for model in models:
        if model not in (legal := ["M0", *metrics.models(study)]):
            raise SrkitError(f"There is no model {model!r}. {legal_names(model, legal)}")
    settings = _settings(study, method, samples)
    ranked, skipped = ranked_prompts(source)
    names = list(dict.fromkeys(row["prompt_id"] for row in ranked))
    wanted = set(names[:prompts] if prompts else names)
    rows = [{**r, "response_id": r["id"]} for r in ranked if r["prompt_id"] in wanted]
    if not rows:
        raise SrkitError(
            f"{source} has no English first turn with two or more replies of different ranks, so "
            "there is nothing that a judge could agree with. Left out: "
            f"{', '.join(f'{n} {why}' for why, n in skipped.items()) or 'nothing'}."
        )
    folder = out or study.path.with_name(f"{study.path.name}-judged")
    fitting, about = _fitting(study, models[0], rows, settings)
    judged = {name: _judgements(study, name, fitting, settings, folder) for name in models}
    about = {"data": source, "prompts": len(wanted), **about, "folder": str(folder)}
    about |= {"rubric": settings.rubric, "method": settings.method, "not_ranked": skipped}
    about |= {"samples": 1 if settings.method == "expected" else settings.samples}
    options = {"resamples": study.config.eval.resamples, "seed": study.config.random_seed}
    found = reward_accuracy.accuracy_table(pd.DataFrame(fitting), judged, **options)
    write_atomically(folder / "last.json", json.dumps(Judged(about, found).record(), indent=1))
    return Judged(about, found)


def lines(table: pd.DataFrame) -> list[str]:
    """The table as text: every measure of every judge with its interval and n."""
    told = []
    for row in table.to_dict("records"):
        known = pd.notna(row["value"])
        ends = f"[{row['low']:.3f}, {row['high']:.3f}]" if pd.notna(row["low"]) else "[no interval]"
        value = f"{row['value']:.3f} {ends}" if known else "undefined"
        n = f"n = {row['n']} {row['unit']}, {row['left_out']} left out, {row['prompts']} prompts"
        told.append(f"{row['model']:<20} {row['metric']:<28} {value:<24} {n}")
    return told


def _trained(study: Study) -> list[str]:
    return [name for name in metrics.models(study) if study.has(f"{name}/adapter")]


def _settings(study: Study, method: str, samples: int) -> Judge:
    given = study.config.judge.model_dump() | {"source": "model"}
    given |= {"method": method} if method else {}
    given |= {"samples": samples} if samples else {}
    return build({"judge": given}, {}, "srkit judge").judge


def _fitting(study: Study, model: str, rows: list[Row], settings: Judge) -> tuple[list[Row], Row]:
    """Rows whose judge prompt fits the context, and counts; all models have one tokenizer."""
    from srkit.chat import context_of, encode_prompt
    from srkit.models import open_policy

    policy = open_policy(study, model)
    room = context_of(policy.model)
    room -= EXPECTED if settings.method == "expected" else settings.max_tokens
    asked = [judge_prompt(settings.rubric, row["prompt"], row["response"]) for row in rows]
    lengths = [len(encode_prompt(policy.tokenizer, prompt)) for prompt in asked]
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= room]
    if not fitting:
        raise SrkitError(
            f"No judge prompt fits the context of {context_of(policy.model)} tokens: the shortest "
            f"has {min(lengths)}. Lower judge.max_tokens, or use a model with a longer context."
        )
    counts = {"replies": len(rows), "judged": len(fitting), "too_long": len(rows) - len(fitting)}
    longest = {"longest_prompt": max(lengths), "context": context_of(policy.model)}
    return fitting, counts | longest


def _judgements(
    study: Study, model: str, rows: list[Row], settings: Judge, folder: Path
) -> pd.DataFrame:
    """A model's judgements of the rows; what an earlier run wrote is read, not made again."""
    file = folder / f"{model.replace('/', '-')}-{_digest(study, model, rows, settings)}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    made = [row for chunk in complete_lines(file) for row in chunk["rows"]]
    done = {row["response_id"] for row in made}
    left = [row for row in rows if row["id"] not in done]
    for start in range(0, len(left), settings.chunk):
        part = left[start : start + settings.chunk]
        new = _judge(_open(study, model), part, settings, study.config.random_seed)
        # one write for the chunk, so that no response has only some of its judgements
        append_line(file, json.dumps({"rows": new}, ensure_ascii=False))
        made += new
    return pd.DataFrame(made)


def _open(study: Study, model: str) -> Policy:
    from srkit.models import open_policy

    return open_policy(study, model)


def _judge(policy: Policy, rows: list[Row], settings: Judge, seed: int) -> list[Row]:
    more = {"temperature": settings.temperature, "top_p": settings.top_p}
    more |= {"max_tokens": settings.max_tokens}
    about = (settings.rubric, settings.samples, settings.method)
    return judge_responses(policy, rows, *about, seed, **more)


def _digest(study: Study, model: str, rows: list[Row], settings: Judge) -> str:
    """A hash of what decides the judgements: the model, the texts, the settings, the rubric."""
    weights = "" if model == "M0" else study.fingerprint(model)["adapter_sha256"]
    names = ("rubric", "method", "samples", "temperature", "top_p", "max_tokens")
    parts: list[Any] = [study.config.model.model_dump(), weights, study.config.random_seed]
    parts += [{name: getattr(settings, name) for name in names}]
    parts += [text(f"judge_{settings.rubric}")]
    parts += [[(row["id"], row["prompt"], row["response"]) for row in rows]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
