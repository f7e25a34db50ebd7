"""Which DPO settings let the oracle arm move? One row per setting, appended to a csv.

Starts from a finished study of preset cpu: the candidates of its first iteration are scored by the
oracle, M1 is trained on the pairs, and both models answer greedily. The prompts answered are those
of the held-out rankings, which no model was trained on and no result of the controls is reported
on (those are the test prompts): settings are chosen here, and measured there.

`--judge random` tosses coins instead, and `--judge mirror` turns the pairs of the same coins round.
An interval by prompt cannot see how much one draw of coins differs from the next, several `--draw`s
can; and what a draw and its mirror have in common was not learned from the coins.

    python tools/sweep_oracle.py runs/first --lr 2e-4 5e-4 --epochs 2 4 --out data/sweeps/oracle.csv
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
import time
from itertools import product
from pathlib import Path

import pandas as pd

from srkit import constraints, stats
from srkit.dpo import preferences
from srkit.engine import Sampling
from srkit.generate import HfEngine
from srkit.models import load_policy
from srkit.pairs import pair_of
from srkit.prompts import user
from srkit.rows import derive_seed, kept, read_jsonl
from srkit.study import Study
from srkit.train import train_dpo

NAMES = ("judge", "draw", "lr", "epochs", "beta", "pairs")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("study", type=Path)
    words.add_argument("--lr", type=float, nargs="+", default=[2e-4])
    words.add_argument("--epochs", type=float, nargs="+", default=[2])
    words.add_argument("--beta", type=float, nargs="+", default=[0.1])
    words.add_argument("--pairs", type=int, nargs="+", default=[1000], help="at most")
    words.add_argument("--judge", choices=["oracle", "random", "mirror"], default="oracle")
    words.add_argument("--draw", type=int, nargs="+", default=[0], help="seeds")
    words.add_argument("--out", type=Path, default=Path("data/sweeps/oracle.csv"))
    asked = words.parse_args()
    study = Study.open(asked.study)
    done = pd.read_csv(asked.out)[list(NAMES)].values.tolist() if asked.out.exists() else []
    before = answers(study, study.adapter("M1"))
    for draw, *setting in product(asked.draw, asked.lr, asked.epochs, asked.beta, asked.pairs):
        pairs = judged_pairs(study, asked.judge, draw)
        values = [asked.judge, draw, *setting[:3], min(setting[3], len(pairs))]
        if values not in done:
            write(asked.out, trial(study, pairs, before, dict(zip(NAMES, values, strict=True))))


def judged_pairs(study: Study, judge: str, draw: int) -> list[dict]:
    """Best against worst of the first iteration's candidates, by the oracle or by coins.

    `mirror`: worst against best, by the same coins.
    """
    groups: dict[str, list[dict]] = {}
    for row in study.read("self-rewarding/iter-1/candidates"):
        groups.setdefault(row["prompt_id"], []).append(row)
    wanted = constraints.parse(study.config.arms.oracle)

    def score(row: dict) -> float:
        if judge != "oracle":
            return random.Random(derive_seed(draw, row["id"])).randint(0, 5)
        return constraints.points(row["text"], wanted)

    settings = study.config.pairs
    rows = [pair_of(g, {c["id"]: score(c) for c in g}, settings) for g in groups.values()]
    return [turned_round(row) if judge == "mirror" else row for row in kept(rows)]


def turned_round(pair: dict) -> dict:
    """A pair with its sides exchanged."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    sides = {name: name.partition("_") for name in pair}
    return {"".join((other.get(s, s), *rest)): pair[n] for n, (s, *rest) in sides.items()}


def answers(study: Study, adapter: Path) -> pd.DataFrame:
    """Greedy answers to the prompts of the held-out rankings, with the oracle's share."""
    prompts = list(dict.fromkeys(row["prompt"] for row in study.read("seed/eft_eval")))
    engine = HfEngine(load_policy(study.config.model, adapter, str(adapter)))
    sampling = Sampling(study.config.eval.max_tokens, 0.0, 1.0)
    drawn = engine.sample([user(p) for p in prompts], 1, sampling, [[0]] * len(prompts))
    rows = [(p, c.text, c.truncated) for p, (c,) in zip(prompts, drawn, strict=True)]
    frame = pd.DataFrame(rows, columns=["prompt_id", "text", "truncated"])
    wanted = constraints.parse(study.config.arms.oracle)
    points = [constraints.points(text, wanted) for text in frame["text"]]
    return frame.assign(points=points, most=len(wanted))


def trial(study: Study, pairs: list[dict], before: pd.DataFrame, setting: dict) -> dict:
    """Train from M1 with one setting, answer, compare."""
    dpo = study.config.dpo.model_copy(
        update={
            "learning_rate": setting["lr"],
            "epochs": setting["epochs"],
            "beta": setting["beta"],
        }
    )
    chosen = preferences(pairs[: setting["pairs"]])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = train_dpo(
            study.config.model,
            study.adapter("M1"),
            chosen,
            dpo,
            Path(folder) / "M2",
            setting["draw"],
        )
        log = read_jsonl(Path(folder) / "M2" / "training.jsonl")
        seconds = time.monotonic() - began
        after = answers(study, Path(folder) / "M2")
    change = stats.paired_bootstrap(after, before, ("points", "most"))
    last = log[-1]
    return setting | {
        "steps": run.steps,
        "last_loss": last["loss"],
        "reward_accuracy": last["reward_accuracy"],
        "reward_margin": last["reward_margin"],
        "logp_chosen": last["logp_chosen"],
        "logp_rejected": last["logp_rejected"],
        "before": before["points"].sum() / before["most"].sum(),
        "after": after["points"].sum() / after["most"].sum(),
        "difference": change["value"],
        "low": change["low"],
        "high": change["high"],
        "prompts": change["n"],
        "answers_changed": (after["text"] != before["text"]).mean(),
        "words": after["text"].str.split().str.len().mean(),
        "truncated": after["truncated"].mean(),
        "seconds": seconds,
    }


def write(path: Path, row: dict) -> None:
    """Append a row, with a header if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        if new:
            table.writerow(row)
        table.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in row.values())


if __name__ == "__main__":
    main()
