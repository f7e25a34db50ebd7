"""Do the engines agree? Greedy texts and option log-probabilities against plain transformers.

An engine may cut every corner but this one: it must answer as the model does. `compare` asks each
the same fixed questions, for M0 and for a trained model, and names what differs. The reference is
one prompt at a time through `generate` and through the forward pass, with PEFT's adapter unmerged.

Surprising decisions:
- The failure to look for is an adapter that is silently not applied: everything runs, and every
  "iteration" is M0. So a trained model's answers are also held against M0's.
- Where the reference itself is nearly tied between two tokens, float rounding may decide
  otherwise, and the texts part for good: that is counted as a tie, not as a difference.
- A preset has no trained model. An adapter with random weights stands in: it changes every answer,
  which is all that is asked of it.
- The endpoint takes part only when it is named: mostly it is another model on purpose.

    srkit bench parity --preset cpu
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig

from srkit.chat import encode_prompt, stop_token_ids
from srkit.config import SrkitError, legal_names
from srkit.engine import Engine, Sampling, open_engine
from srkit.models import Policy, load_policy, open_policy, placement, release, save_adapter
from srkit.plan import model_names
from srkit.prompts import Conversation, compare_prompt, judge_prompt, user
from srkit.rows import Row
from srkit.study import Study

ENGINES = ("hf", "vllm", "endpoint")
TOKENS = 24
# Of a log-probability. Half precision rounds a logit near 20 by 0.1, in an order that is its own.
TOLERANCE = {"float32": 0.01, "bfloat16": 0.25, "float16": 0.1}
FLOOR = -12.0  # less likely options are as good as impossible, and all the same

TEXTS: tuple[Conversation, ...] = (
    user("Name three primary colours."),
    user("Why is the sky blue? Answer in one sentence."),
    user("Write a short letter to a friend who has moved to another town."),
    judge_prompt("additive", "Name a planet.", "Mars is a planet."),
    [*user("Write a list of three fruits."), {"role": "assistant", "content": "1. Apple\n2."}],
)
DIGITS = tuple(f" {score}" for score in range(6))
OPTIONS: tuple[tuple[Conversation, tuple[str, ...]], ...] = (
    *(
        ([*judge_prompt("additive", *pair), {"role": "assistant", "content": "Score:"}], DIGITS)
        for pair in (("Name a planet.", "Mars is a planet."), ("Name a planet.", "I do not know."))
    ),
    (compare_prompt("What is 2 + 2?", "4", "5"), (" A", " B")),
    (compare_prompt("Name a planet.", "A dog is an animal.", "Mars"), (" A", " B")),
)


@dataclass(frozen=True)
class Answers:
    """Greedy texts of TEXTS; natural log-probabilities of all OPTIONS in a row, NaN if unknown.

    `gaps` are the reference's: for each token of a text, its place in the text in characters and
    the distance of its logit from the next best one's.
    """

    texts: Sequence[str]
    logprobs: np.ndarray  # (options of all questions,)
    gaps: Sequence[Sequence[tuple[int, float]]] = ()


@dataclass(frozen=True)
class Agreement:
    """How an engine's answers for one model compare with the reference's."""

    model: str
    engine: str
    difference: float  # largest of a log-probability; NaN if none could be compared
    tolerance: float
    ties: int  # texts that part where the reference is nearly tied
    problems: tuple[str, ...]  # empty: they agree


# --- comparing -----------------------------------------------------------------------------------


def differences(found: Answers, reference: Answers, tolerance: float) -> list[str]:
    """A sentence for the first text and the largest log-probability that differ."""
    return [*_text_differences(found, reference, tolerance), *_worst(found, reference, tolerance)]


def problems(
    found: Answers, reference: Answers, base: Answers | None, tolerance: float
) -> list[str]:
    """What is wrong with an engine's answers for a model, whose M0 answers as `base`.

    Says so where they are M0's: that can hide within the tolerance if training changed little.
    """
    wrong = differences(found, reference, tolerance)
    if base is None or differences(found, base, tolerance):
        return wrong
    off, from_base = largest_difference(found, reference), largest_difference(found, base)
    if from_base < off:
        wrong.insert(
            0,
            "it looks like the base without its adapter: log-probabilities are within "
            f"{from_base:.2g} of M0's and {off:.2g} of the model's own",
        )
    return wrong


def largest_difference(found: Answers, reference: Answers) -> float:
    """Of log-probabilities, where both are known; what lies below FLOOR counts as FLOOR."""
    distances = _distances(found, reference)
    return float(np.nanmax(distances)) if np.isfinite(distances).any() else np.nan


def tied(found: Answers, reference: Answers, tolerance: float) -> list[bool]:
    """Per text: whether it parts from the reference where that is nearly tied.

    Two logits may each be off by the tolerance.
    """
    return [
        text != expected and _gap(text, expected, gaps) <= 2 * tolerance
        for text, expected, gaps in zip(found.texts, reference.texts, reference.gaps, strict=True)
    ]


def _text_differences(found: Answers, reference: Answers, tolerance: float) -> list[str]:
    excused = tied(found, reference, tolerance) if reference.gaps else [False] * len(found.texts)
    parted = [
        i
        for i, (text, expected) in enumerate(zip(found.texts, reference.texts, strict=True))
        if text != expected and not excused[i]
    ]
    if not parted:
        return []
    i = parted[0]
    at = _parting(found.texts[i], reference.texts[i])
    return [
        f"greedy text differs on {len(parted)} of {len(found.texts)} prompts, on the first after "
        f"{at} characters: {found.texts[i][at : at + 40]!r} where the reference has "
        f"{reference.texts[i][at : at + 40]!r} (prompt: {TEXTS[i][0]['content'][:40]!r})"
    ]


def _worst(found: Answers, reference: Answers, tolerance: float) -> list[str]:
    distances = _distances(found, reference)
    if np.isnan(distances).all():
        return ["no option's log-probability is known"]
    if np.nanmax(distances) <= tolerance:
        return []
    i = int(np.nanargmax(distances))
    name, over = _labels()[i], int((distances > tolerance).sum())
    return [
        f"{over} of {len(distances)} option log-probabilities are off by more than {tolerance:g}, "
        f"the most by {distances[i]:.3g}: {name} has {found.logprobs[i]:.4f} where the reference "
        f"has {reference.logprobs[i]:.4f}"
    ]


def _distances(found: Answers, reference: Answers) -> np.ndarray:
    return np.abs(np.maximum(found.logprobs, FLOOR) - np.maximum(reference.logprobs, FLOOR))


def _labels() -> list[str]:
    return [f"{o!r} of question {i}" for i, (_, options) in enumerate(OPTIONS, 1) for o in options]


def _parting(a: str, b: str) -> int:
    """The first place at which two texts differ."""
    same = (x == y for x, y in zip(a, b, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), min(len(a), len(b)))


def _gap(text: str, expected: str, gaps: Sequence[tuple[int, float]]) -> float:
    """The reference's gap at the token in which a text parts from it."""
    at = _parting(text, expected)
    return next((gap for place, gap in reversed(gaps) if place <= at), np.inf)


# --- asking --------------------------------------------------------------------------------------


def answers(engine: Engine) -> Answers:
    """Put the questions to an engine."""
    drawn = engine.sample(TEXTS, 1, Sampling(TOKENS, temperature=0), [[0]] * len(TEXTS))
    scores = [engine.score_options([conversation], options)[0] for conversation, options in OPTIONS]
    return Answers([completion.text for (completion,) in drawn], np.concatenate(scores))


def reference_answers(policy: Policy) -> Answers:
    """The same by plain transformers: `generate` and the forward pass, a prompt at a time."""
    written = [_greedy(policy, conversation) for conversation in TEXTS]
    logprobs = [
        _option_logprob(policy, conversation, option)
        for conversation, options in OPTIONS
        for option in options
    ]
    texts, gaps = zip(*written, strict=True)
    return Answers(texts, np.array(logprobs), gaps)


def _greedy(policy: Policy, conversation: Conversation) -> tuple[str, list[tuple[int, float]]]:
    """A text, and for each of its tokens (and the end) the place and the gap to the next best."""
    tokenizer, stops = policy.tokenizer, stop_token_ids(policy.tokenizer, policy.model)
    prompt = torch.tensor([encode_prompt(tokenizer, conversation)], device=policy.model.device)
    # A configuration of its own: a model's could penalise repetition.
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    with torch.inference_mode():
        out = policy.model.generate(
            inputs=prompt, attention_mask=torch.ones_like(prompt), generation_config=config
        )
    tokens = [t for t in out.sequences[0, prompt.shape[1] :].tolist() if t not in stops]

    def text(count: int) -> str:
        return tokenizer.decode(
            tokens[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    best = [logits[0].float().topk(2).values.tolist() for logits in out.logits]
    gaps = [(len(text(i)), first - second) for i, (first, second) in enumerate(best)]
    return text(len(tokens)), gaps


def _option_logprob(policy: Policy, conversation: Conversation, option: str) -> float:
    prompt = encode_prompt(policy.tokenizer, conversation)
    tokens = policy.tokenizer.encode(option, add_special_tokens=False)
    ids = torch.tensor([prompt + tokens], device=policy.model.device)
    with torch.inference_mode():
        logits = policy.model(ids).logits[0, len(prompt) - 1 : -1].float()  # (tokens, vocabulary)
    return float(logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).sum())


# --- a study's engines ---------------------------------------------------------------------------


def compare(
    study: Study, engines: Sequence[str] = (), models: Sequence[str] = ()
) -> list[Agreement]:
    """Ask the engines for M0 and for the study's last trained model, or for `models` alone.

    The endpoint serves one model, whichever is named: say which of the study's it should be. An
    engine that cannot be asked has its error as the problem. Raises: SrkitError on an unknown
    engine, or a model without an adapter.
    """
    engines = list(engines) or available()
    for engine in engines:
        if engine not in ENGINES:
            raise SrkitError(f"There is no engine {engine!r}. {legal_names(engine, ENGINES)}")
    models = list(models) or ["M0", *last_trained(study)]
    named = dict.fromkeys(["M0", *models])
    references = {model: reference_answers(open_policy(study, model)) for model in named}
    return [_agreement(study, engine, model, references) for engine in engines for model in models]


def available() -> list[str]:
    """Engines that run here, without a server."""
    return ["hf", *(["vllm"] if importlib.util.find_spec("vllm") else [])]


def last_trained(study: Study) -> list[str]:
    """The study's latest model with an adapter, if it has one."""
    names = [n for arm in study.arms for n in model_names(study.config.for_arm(arm), arm)]
    return [name for name in names if study.has(f"{name}/adapter")][-1:]


def stand_in(preset: str, folder: Path) -> Study:
    """A study of a preset whose baseline is a random adapter."""
    from peft import LoraConfig, get_peft_model  # after srkit.models, which quietens bitsandbytes

    study = Study.open(folder, preset)
    cfg = study.config.model

    def scramble(target: Path) -> Row:
        base = load_policy(cfg)
        rank = {"r": cfg.lora_rank, "lora_alpha": cfg.lora_alpha}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LoraConfig(**rank, target_modules=cfg.lora_targets, task_type="CAUSAL_LM")
            model = get_peft_model(base.model, config).eval()
            model.peft_config["default"].base_model_name_or_path = ""  # see models.load_base
            for name, values in model.named_parameters():
                if "lora_B" in name:
                    values.data.normal_(std=0.1)
        save_adapter(Policy(model, base.tokenizer, "baseline"), target)
        (target / "training.jsonl").touch()
        release()
        return {}

    study.make_table("seed/ift", [{}], lambda part, _: list(part), chunk=1)  # what the step needs
    study.make_folder("baseline/adapter", scramble)
    return study


def _agreement(study: Study, engine: str, model: str, references: dict[str, Answers]) -> Agreement:
    reference, base = references[model], None if model == "M0" else references["M0"]
    tolerance = TOLERANCE[str(placement(study.config.model)[1]).removeprefix("torch.")]
    try:
        found = answers(_open(study, engine, model))
    except SrkitError as error:
        return Agreement(model, engine, np.nan, tolerance, 0, (f"it cannot be asked: {error}",))
    return Agreement(
        model,
        engine,
        largest_difference(found, reference),
        tolerance,
        sum(tied(found, reference, tolerance)),
        tuple(problems(found, reference, base, tolerance)),
    )


def _open(study: Study, engine: str, model: str) -> Engine:
    """The engine of that name for a model, whatever the study's own is."""
    if engine == "endpoint":
        if not (study.config.endpoint.url and study.config.endpoint.model):
            raise SrkitError("the study has no endpoint: set endpoint.url and endpoint.model.")
        return replace(open_engine(study, "endpoint"), bound=False)
    cfg = study.config.model_copy(
        update={"model": study.config.model.model_copy(update={"engine": engine})}
    )
    return open_engine(Study(study.path, cfg, study.arms), model)
