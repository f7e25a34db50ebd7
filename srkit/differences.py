"""Where a study is not the paper's, which settings make it so and why, what it cannot say.

All are computed from the settings, so that none is forgotten.

The settings are held against preset `paper`. What only says how the work is cut up, where it runs
or what is cached changes last digits at most, and is left out; so is a server's address, which is
nobody's business. Reasons are those of the presets; a value that is not the preset's own was set
for the study, and the table says so.

    python -c "from srkit import config, differences; \\
        print(differences.from_paper(config.resolve('cpu')))"
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from srkit.config import Config, SrkitError, fields, resolve

# Settings that decide how a result is computed, not which.
HOW = {
    *("preset", "model.device", "model.dtype", "model.engine", "model.cache"),
    *("candidates.chunk", "judge.chunk"),
    *(f"{s}.{name}" for s in ("sft", "dpo") for name in ("micro_batch", "optimizer", "save_steps")),
    *("sft.gradient_checkpointing", "dpo.gradient_checkpointing"),
}
SMALLER = "sized for the machine and the time of the preset"
LORA = "adapters and small models learn at larger rates than all weights of a 70B"
WARMUP = "larger rates start gently"
# By a setting's name, or else by its section.
REASONS = {
    "random_seed": "another draw of everything",
    "model": "what the machine of the preset can hold and train",
    "seed": SMALLER,
    "seed.source": "other seed data",
    "sft": "chosen for the number of examples",
    "sft.max_tokens": SMALLER,
    "sft.warmup_steps": WARMUP,
    "sft.learning_rate": LORA,
    "sft.eft_targets": "a small model writes too few judgements that agree with the ranks",
    "instruct": SMALLER,
    "instruct.keep_unfinished": "a model that never ends a request",
    "candidates": SMALLER,
    "judge": SMALLER,
    "judge.method": "a small model's rationales did not help its scores (see the preset's file)",
    "judge.samples": "an expected score is the same every time",
    "judge.when_unhealthy": "the report says so; the study goes on",
    "pairs": "in proportion to the prompts",
    "dpo": "chosen for the number of pairs",
    "dpo.max_tokens": SMALLER,
    "dpo.warmup_steps": WARMUP,
    "dpo.learning_rate": LORA,
    "eval": SMALLER,
    "eval.temperature": "greedy answers: one draw less between two models",
    "eval.judge_samples": "an expected score is the same every time",
}
TABLE = ("setting", "here", "the paper's preset", "why")


def from_paper(config: Config) -> pd.DataFrame:
    """The settings that differ from preset `paper`; columns `TABLE`, values as text.

    A reason is the preset's where the value is, else that it was set for this study.
    """
    paper, preset = _flat(resolve("paper")), _preset(config.preset)
    rows = [
        (name, str(value), str(paper[name]), _reason(name, value, preset, config.preset))
        for name, value in _flat(config).items()
        if value != paper[name] and name not in HOW and _told(name, config)
    ]
    return pd.DataFrame(rows, columns=list(TABLE))


def _flat(config: Config) -> dict[str, Any]:
    """Every setting by its dotted name."""
    found = {}
    for name in fields():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        found[name] = value
    return found


def _preset(name: str) -> dict[str, Any]:
    """The settings of the study's preset; none if it is a file that is no longer there."""
    try:
        return _flat(resolve(name))
    except SrkitError:
        return {}


def _told(name: str, config: Config) -> bool:
    """Of an endpoint only which model it is, and only where it has a role."""
    roles = (config.eval.referee, config.instruct.writer, config.arms.external_judge)
    return not name.startswith("endpoint.") or (name == "endpoint.model" and "endpoint" in roles)


def _reason(name: str, value: Any, preset: dict[str, Any], of: str) -> str:
    if preset.get(name) != value:
        return "set for this study" + (f" (preset {of}: {preset[name]})" if preset else "")
    return REASONS.get(name) or REASONS.get(name.partition(".")[0], "as the preset has it")


def deviations(config: Config) -> list[str]:
    """Where a study differs from the paper, in sentences."""
    training = (
        f"batches of {config.sft.batch_size} (SFT) and {config.dpo.batch_size} (DPO), learning "
        f"rates {config.sft.learning_rate:g} and {config.dpo.learning_rate:g}; the paper: 16, "
        "5.5e-06 and 1e-06"
    )
    found = {
        f"The model is {config.model.name}; the paper's is Llama 2 70B.": True,
        f"LoRA adapters are trained, {training}.": True,
        f"{config.instruct.prompts} new prompts are asked for per iteration; the paper ended with "
        "3,964 and 6,942 pairs.": True,
        f"They are written by {_who(config.instruct.writer, config)}; the paper: a fixed Llama "
        "2-Chat 70B.": True,
        f"The referee of the comparisons is {_who(config.eval.referee, config)}; the paper's is "
        "GPT-4.": True,
        "No checkpoint is selected by an outside judge (the paper: Claude 2, 253 prompts); each "
        "model is the end of its training.": True,
        "The rubric's wording is this kit's own; its criteria and output contract are the "
        "paper's.": True,
        "The seed set is the kit's own: grades follow from how each response was made, they are "
        "not human votes; agreement with them is not agreement with people.": config.seed.source
        == "kit",
        f"EFT targets come from `{config.sft.eft_targets}`, not from the baseline.": (
            config.sft.eft_targets != "self"
        ),
        "A score is the mean of 0 to 5 under the probabilities of the score token, without a "
        "rationale (the paper: the mean of 3 sampled judgements with rationales); such scores "
        "hardly ever tie.": config.judge.method == "expected",
        f"Texts become vectors by {config.eval.embedding_model or 'TF-IDF, without a model'}; the "
        "paper's embedding model is not known.": True,
        "Tasks, complexity and expected length of the test prompts were set by hand (the paper: "
        "GPT-4).": config.seed.source == "kit",
        "Answers to the test prompts are greedy, one per prompt.": config.eval.temperature == 0,
    }
    return [text for text, applies in found.items() if applies]


def limits(config: Config) -> list[str]:
    """What the numbers of this study cannot say, whatever they are."""
    own = config.eval.referee != "endpoint"
    found = {
        f"One run, random seed {config.random_seed}: intervals are over prompts, and do not know "
        "how another draw of data, coins or weights would have come out.": True,
        "Many questions are asked at 95 % each, so about one interval in twenty misses by chance "
        "alone; no correction is made.": True,
        "The referee is a model of this study; its own exam stands beside the win rates, and says "
        "how far to trust it.": own,
        "The model is random and untrained: this is a trial of the machinery, and its numbers mean "
        "nothing.": config.model.name == "tiny",
        "KL is that of the first "
        f"{config.eval.max_tokens} tokens; whole answers may be further "
        "from the start.": True,
        "The paper's human evaluation is not part of this version.": True,
        "None of the paper's benchmarks was run (eval.benchmarks).": not config.eval.benchmarks,
    }
    return [text for text, applies in found.items() if applies]


def _who(role: str, config: Config) -> str:
    """A model of the study, or the one behind the endpoint."""
    return config.endpoint.model if role == "endpoint" else f"{role} of this study"
