"""A frozen reward model, as RLHF has one: trained once on the seed's rankings, then only asked.

The paper's claim is about a judge that improves with the model. This is its classical rival: M0
with a LoRA adapter and a head that gives a text one number, trained to give the better-ranked of
two responses the higher one (Bradley and Terry; InstructGPT, arXiv 2203.02155, eq. 1). The arm
`reward-model` lets it judge the candidates of all iterations; all else is the paper's arm.

Surprising decisions:
- It learns every pair of a prompt's responses of different rank, for one epoch (more overfit, says
  InstructGPT), otherwise with the settings of `sft`. It knows no rubric and no judge prompt.
- A reward has no scale of its own: a difference of two is the log-odds that the first is preferred.
  As a score it is 5 sigmoid(reward), so that tables and figures of scores read alike; 2.5 is about
  the mean of the seed's responses, since training holds the mean at 0. The order stays the same,
  and `reward` stands beside the score. It never reaches 5, so of "5-best" it has none.
- Texts are read one at a time: what one gets does not depend on its neighbours.

    python -c "from srkit import reward_model, study; \\
        print(reward_model.make_reward_model(study.Study.open('runs/first', arm='reward-model')))"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

from srkit.config import SrkitError
from srkit.distributed import share, together
from srkit.plan import REWARD_MODEL
from srkit.prompts import user
from srkit.rows import Row, derive_seed
from srkit.study import Study

if TYPE_CHECKING:
    from srkit.train import Preference


def preferences(ranked: Sequence[Row]) -> list[Preference]:
    """Every pair of a prompt's ranked responses (rank 0 is best), the better one chosen."""
    from srkit.train import Preference

    by_prompt: dict[str, list[Row]] = {}
    for row in ranked:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    return [
        Preference(user(better["prompt"]), better["response"], worse["response"])
        for rows in by_prompt.values()
        for better, worse in permutations(rows, 2)
        if better["rank"] < worse["rank"]
    ]


def make_reward_model(study: Study) -> Row:
    """Step `reward-model/adapter`: a head and an adapter on M0. Returns its manifest line."""
    step = f"{REWARD_MODEL}/adapter"

    def work(folder: Path) -> Row:
        from srkit.train import train_reward

        pairs = preferences(study.read("seed/eft"))
        settings = study.config.sft.model_copy(update={"epochs": 1.0})
        seed = derive_seed(study.config.random_seed, step)
        return train_reward(study.config.model, pairs, settings, folder, seed).record()

    study.make_folder(step, work)
    return study.records()[step]


def rewards(study: Study, rows: Sequence[Row]) -> list[float]:
    """The reward of each response: rows have `id`, `prompt`, and the text as `response` or `text`.

    Each is read with its end, also one that was cut: there alone the head has learned to read.
    Raises: SrkitError for one that does not fit the model's context.
    """
    parts = together(lambda: _rewards(study, share(rows)))
    return [reward for part in parts for reward in part]


def _rewards(study: Study, rows: Sequence[Row]) -> list[float]:
    import torch

    from srkit.chat import context_of, encode_completion, encode_prompt
    from srkit.models import open_policy, release

    if study.config.model.engine == "vllm":
        release()  # its server holds the memory
    policy = open_policy(study, REWARD_MODEL)
    found = []
    for row in rows:
        ids = encode_prompt(policy.tokenizer, user(row["prompt"]))
        ids += encode_completion(policy.tokenizer, row.get("response", row.get("text")))
        if len(ids) > context_of(policy.model):
            raise SrkitError(
                f"The response {row['id']} and its prompt have {len(ids)} tokens, more than the "
                f"context of {context_of(policy.model)}: the reward model cannot read it. Lower "
                "seed.max_words or candidates.max_tokens, or use a model with a longer context."
            )
        study.spent["read"] += len(ids)
        with torch.inference_mode():
            out = policy.model(torch.tensor([ids], device=policy.model.device))
        found.append(float(out.logits[0, 0]))
    return found


def judgement(reward: float) -> Row:
    """A reward as a judgement: its score is on the additive scale, None if it is no number."""
    known = math.isfinite(reward)
    score = round(2.5 + 2.5 * math.tanh(reward / 2), 9) if known else None  # 5 sigmoid
    base = {"text": None, "score": score, "tokens": 0, "truncated": False}
    return base | {"reward": round(reward, 6) if known else None}
