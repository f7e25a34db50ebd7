"""How far a model's answers have moved from those of the model that its arm started from: KL.

KL(M_t || M1) is an expectation over M_t's own answers, so they are drawn here for that purpose: one
a prompt, at temperature 1 and from the whole vocabulary, whatever the study's other answers are
(greedy ones are no samples, and those at a lower temperature are another model's). Each is then
read once by both models. The paper has no such measure; the length of this way is the x axis of
over-optimisation curves (Gao et al. 2023, arXiv 2210.10760).

Surprising decisions:
- Both models read the token ids that were drawn. A text that is encoded again may become other
  tokens, whose log-probabilities are not those of the draw.
- An answer that ended is one token longer than its text: the end, which is any of the tokens that
  stop generation, so its probability is the sum of theirs.
- An answer that is cut at `eval.max_tokens` counts as far as it goes. What is estimated is thus the
  KL of the first so many tokens, without bias; that of whole answers is the same or larger.
- Two estimates of the same number are kept: the log-ratio, `logp_own - logp_start`, and `k3`, the
  sum of r - 1 - ln r over the tokens, r = p_start / p_own (Schulman 2020). As E[r] = 1, k3 is as
  free of bias; it is never negative, and scatters less while the models are near, more once they
  are far apart. Where the two disagree neither is to be believed: rare answers carry the mean.
- A start that gives no probability to what was drawn makes neither finite: the row says None.
- Always plain transformers, also where vLLM answers: both models are to be read by one program.

    python -c "from srkit import drift, study; \\
        print(drift.make_drift(study.Study.open('runs/first'), 'self-rewarding/M2')[0])"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from srkit import stats
from srkit.distributed import share, together
from srkit.engine import Completion, Sampling
from srkit.prompts import user
from srkit.rows import Row, derive_seed
from srkit.study import Study

if TYPE_CHECKING:
    from torch import Tensor

    from srkit.models import Policy

ESTIMATES = ("log-ratio", "k3")


def make_drift(study: Study, model: str) -> list[Row]:
    """Step `<model>/drift`: own answers to the first `eval.kl_prompts` test prompts, read twice.

    Rows: prompt_id, start, text, tokens and truncated as of other answers, `logp_own` and
    `logp_start` (nats, the whole answer), `k3`.
    """
    step = f"{model}/drift"
    start = study.settings(study.step(step)).start
    prompts = study.read("seed/test_prompts")[: study.config.eval.kl_prompts]

    def work(part: Sequence[Row], _: list[Row]) -> list[Row]:
        parts = together(lambda: measured(study, model, start, share(part)))
        return [row for rows in parts for row in rows]

    return study.make_table(step, prompts, work, chunk=32)


def measured(study: Study, model: str, start: str, prompts: Sequence[Row]) -> list[Row]:
    """One answer of `model` to each prompt, and what it and `start` give it: rows of the table."""
    from srkit.generate import HfEngine
    from srkit.models import open_policy, release

    if study.config.model.engine == "vllm":
        release()  # its server holds the memory
    config = study.config
    sampling = Sampling(config.eval.max_tokens, temperature=1, top_p=1)
    seeds = [[derive_seed(config.random_seed, "drift", row["id"])] for row in prompts]
    asked = [user(row["prompt"]) for row in prompts]
    policy = open_policy(study, model)
    answers = [one for (one,) in HfEngine(policy).sample(asked, 1, sampling, seeds)]
    own = [answer_logps(policy, *pair) for pair in zip(asked, answers, strict=True)]
    policy = open_policy(study, start)
    other = [answer_logps(policy, *pair) for pair in zip(asked, answers, strict=True)]
    return [
        {
            "id": row["id"],
            "prompt_id": row["id"],
            "start": start,
            "text": answer.text,
            "tokens": answer.tokens,
            "truncated": answer.truncated,
            **_sums(*logps),
        }
        for row, answer, *logps in zip(prompts, answers, own, other, strict=True)
    ]


def answer_logps(policy: Policy, conversation: list, answer: Completion) -> Tensor:
    """Log-probability (natural, temperature 1) of each token of an answer, float64 (tokens,).

    An answer that was not cut has one more: that it ends there, by whichever stop token.
    """
    import torch

    from srkit.chat import encode_prompt, stop_token_ids
    from srkit.linears import exact_head

    prompt, tokens = encode_prompt(policy.tokenizer, conversation), list(answer.ids)
    ids = torch.tensor([prompt + tokens], device=policy.model.device)
    with torch.inference_mode(), exact_head(policy.model):
        logits = policy.model(input_ids=ids, logits_to_keep=len(tokens) + 1).logits[0]
    logps = logits.float().log_softmax(-1).double().cpu()  # (tokens + 1, vocabulary)
    found = logps[:-1].gather(1, torch.tensor(tokens, dtype=torch.long)[:, None])[:, 0]
    if answer.truncated:
        return found
    stops = sorted(stop_token_ids(policy.tokenizer, policy.model))
    return torch.cat([found, logps[-1:, stops].logsumexp(-1)])


def _sums(own: Tensor, start: Tensor) -> Row:
    """The sums of an answer's tokens; what is infinite is None."""
    ratio = start - own
    k3 = ratio.exp() - 1 - ratio
    sums = {"logp_own": own.sum(), "logp_start": start.sum(), "k3": k3.sum()}
    return {
        name: round(float(value), 6) if math.isfinite(value) else None
        for name, value in sums.items()
    }


def kl_table(
    drifts: dict[str, pd.DataFrame], resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """KL of each model to the start of its arm, in nats an answer, with 95 % intervals by prompt.

    `drifts` maps a model's name to its table `drift`. Columns: model, start, estimate (`ESTIMATES`,
    both of the same number), value, low, high, n (answers, one a prompt), tokens (mean, with the
    end), truncated (share). One answer whose KL is not finite makes a model's undefined.
    """
    rows = [
        {"model": model, **row}
        for model, table in drifts.items()
        for row in kl_estimates(table, resamples, seed)
    ]
    names = ("model", "start", "estimate", "value", "low", "high", "n", "tokens", "truncated")
    return pd.DataFrame(rows, columns=list(names))


def kl_estimates(table: pd.DataFrame, resamples: int = stats.RESAMPLES, seed: int = 0) -> list[Row]:
    """The rows of `kl_table` for one model's table, without its name."""
    used = stats.require(
        table,
        ("prompt_id", "start", "tokens", "truncated", "logp_own", "logp_start", "k3"),
        "drift",
    )
    if used.empty:
        return []
    plain = used["logp_own"].astype(float) - used["logp_start"].astype(float)
    kinds = zip(ESTIMATES, (plain, used["k3"].astype(float)), strict=True)
    common = {
        "start": used["start"].iloc[0],
        "tokens": float((used["tokens"] + ~used["truncated"].astype(bool)).mean()),
        "truncated": float(used["truncated"].mean()),
    }
    rows = []
    for name, values in kinds:
        sums = used[["prompt_id"]].assign(kl=values, one=1)
        found = stats.bootstrap(sums, ("kl", "one"), resamples=resamples, seed=seed)
        if values.isna().any():
            found |= {"value": None, "low": None, "high": None}
        rows.append({"estimate": name, **common, **found})
    return rows
