"""One typed configuration: sections, presets, overrides, and errors that help.

A study's settings are one frozen `Config`. They come from a preset (a YAML file in `presets/`) and
overrides (`"dpo.beta=0.2 judge.samples=5"`), and are stored, resolved, in the study's `study.yaml`.
An arm is a named set of overrides (`ARMS`), so that comparing arms is comparing rows.

Surprising decisions: values of overrides arrive as text and take the type of their field, so that
`5e-7` is a number and `"false"` is never a true boolean; every unknown name is an error that names
the nearest legal one; defaults are the paper's where it gives a number, presets state the rest.

    python -c "from srkit.config import resolve; print(resolve('cpu', 'dpo.beta=0.2').dpo)"
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shlex
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from srkit.reading import SrkitError, parse_yaml, read_text, shown

JudgeSource = Literal["model", "external", "reward-model", "human", "seed", "random", "oracle"]


class Section(BaseModel):
    """Base of all sections: unknown fields are errors, values are checked and then frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_it_is_written(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `yes` and `true` would pass for 1; a NUL would break a path or a log later."""
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("true and false are not legal here")
        if isinstance(value, str) and not value.isprintable():
            raise ValueError("line breaks, control characters and half characters are not legal")
        return value


class Model(Section):
    """Which model is M0, and how it is held in memory and adapted."""

    name: str = Field(
        "smollm2-135m", min_length=1, description="hub id, folder, .gguf file, smollm2-135m, tiny"
    )
    quantization: Literal["none", "nf4"] = Field("none", description="nf4: QLoRA, for GPUs")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on a CPU, bfloat16 on GPUs that have it, else float16"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one"
    )
    engine: Literal["hf", "vllm"] = Field(
        "hf",
        description="what draws and scores: srkit.generate; or vLLM, to be installed beside srkit",
    )
    lora_rank: PositiveInt = Field(16, description="columns of the adapter's matrices")
    lora_alpha: PositiveInt = Field(32, description="the adapter is scaled by alpha / rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="the paper's dropout is 0.1")
    lora_targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear", description="which linear layers; a list of names such as [q_proj,v_proj]"
    )
    cache: str = Field("data/models", description="where the embedded default is unpacked")


class Seed(Section):
    """The data that everything starts from (paper sections 2.1 and 3.1.1)."""

    source: str = Field(
        "kit",
        min_length=1,
        description="kit, a folder like data/seed, or Open Assistant messages: a hub id or a file",
    )
    ift: PositiveInt = Field(3200, description="instruction fine-tuning rows at most")
    eft_prompts: PositiveInt = Field(600, description="prompts with ranked responses for M1's EFT")
    eval_prompts: PositiveInt = Field(190, description="held-out prompts with ranked responses")
    test_prompts: PositiveInt = Field(256, description="prompts for head-to-head comparisons")
    max_words: PositiveInt = Field(1000, description="longer prompts or responses are left out")


class Training(Section):
    """What SFT and DPO have in common; a batch is counted in examples or pairs."""

    epochs: float = Field(3, gt=0, description="passes over the examples")
    learning_rate: float = Field(gt=0, lt=1, description="at the start of the decay")
    final_learning_rate_ratio: float = Field(ge=0, le=1, description="of the cosine decay")
    batch_size: PositiveInt = Field(16, description="effective, per update; the paper's is 16")
    micro_batch: PositiveInt = Field(1, description="per step on the device; divides batch_size")
    max_tokens: PositiveInt = Field(2048, description="longer examples are left out and counted")
    warmup_steps: int = Field(0, ge=0, description="updates; must be fewer than the run has")
    optimizer: Literal["auto", "adamw_torch", "adamw_torch_fused", "paged_adamw_8bit"] = Field(
        "auto", description="auto: fused AdamW on a CPU, paged 8-bit AdamW on a GPU"
    )
    gradient_checkpointing: bool = Field(False, description="less memory for a third more time")
    save_steps: PositiveInt = Field(50, description="checkpoint interval: what a kill can lose")

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Training:
        if self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch must divide batch_size ({self.batch_size})")
        return self


class Sft(Training):
    """Seed fine-tuning: the SFT baseline on IFT, M1 on IFT + EFT (paper section 3.1.2)."""

    learning_rate: float = Field(5.5e-6, gt=0, lt=1, description="the paper's, all weights of 70B")
    final_learning_rate_ratio: float = Field(0.2, ge=0, le=1, description="5.5e-6 to 1.1e-6")
    eft_targets: Literal["self", "reference", "score", "rank"] = Field(
        "self",
        description="self: the baseline writes them, kept where its order is the human order "
        "(the paper); reference: the seed's own judgements; score: its scores, without rationale; "
        "rank: a score from the human rank, without rationale",
    )
    eft_samples: PositiveInt = Field(1, description="judgements drawn per response for `self`")
    eft_modal_share: float = Field(0.4, gt=0, le=1, description="most common score is thinned to")


class Instruct(Section):
    """New prompts by few-shot prompting (paper section 3.1.3; filters of Self-Instruct)."""

    prompts: PositiveInt = Field(5000, description="new prompts per iteration")
    writer: Literal["M0", "current", "endpoint"] = Field(
        "M0", description="the paper's is fixed, not M_t; endpoint: the model of endpoint.model"
    )
    seed_shots: PositiveInt = Field(6, description="examples from IFT in a few-shot list")
    generated_shots: int = Field(2, ge=0, description="examples the writer wrote itself")
    temperature: float = Field(0.6, gt=0, description="of sampling")
    top_p: float = Field(0.9, gt=0, le=1, description="share of probability sampled from")
    max_tokens: PositiveInt = Field(256, description="per list of new tasks")
    max_rouge: float = Field(0.7, gt=0, le=1, description="ROUGE-L F1 with any earlier prompt")
    min_words: PositiveInt = Field(4, description="Self-Instruct drops 3 words and fewer")
    max_words: PositiveInt = 150
    keep_unfinished: bool = Field(False, description="for models that never end a request")
    lists_per_round: PositiveInt = Field(8, description="few-shot lists asked for at once")
    max_rounds: PositiveInt = Field(2000, description="then the step stops with what it has")


class Candidates(Section):
    """N responses per prompt from M_t."""

    n: int = Field(4, ge=2, description="N: responses per prompt")
    temperature: float = Field(0.7, gt=0, description="of sampling")
    top_p: float = Field(0.9, gt=0, le=1, description="share of probability sampled from")
    max_tokens: PositiveInt = Field(1024, description="a longer response is cut and marked")
    chunk: PositiveInt = Field(16, description="prompts per write; what an interruption repeats")


class Judge(Section):
    """M_t as the judge: K judgements per response, score = mean of those that parse."""

    source: JudgeSource = Field(
        "model",
        description="M_t itself; external: arms.external_judge; reward-model: trained once on the "
        "seed's rankings, then frozen; human: the ranked responses of the seed; seed: the seed's "
        "response beats M_t's (SPIN, 2401.01335); random: negative control; oracle: arms.oracle, "
        "positive control",
    )
    rubric: Literal["additive", "multiple_choice"] = Field(
        "additive", description="the paper's Fig. 2 (0 to 5 points) or its Fig. 7 (1 of 5)"
    )
    method: Literal["sampled", "expected"] = Field(
        "sampled", description="expected: mean score under the score token's probabilities"
    )
    samples: PositiveInt = Field(3, description="K; an expected score needs one")
    temperature: float = Field(0.7, gt=0, description="of sampling")
    top_p: float = Field(0.9, gt=0, le=1, description="share of probability sampled from")
    max_tokens: PositiveInt = Field(256, description="per judgement")
    chunk: PositiveInt = Field(32, description="responses per write")
    min_parse_rate: float = Field(0.5, ge=0, le=1, description="below: the judge is unhealthy")
    max_modal_share: float = Field(0.9, ge=0, le=1, description="above: it always says the same")
    max_flat_rate: float = Field(0.9, ge=0, le=1, description="above: few pairs will be left")
    when_unhealthy: Literal["warn", "stop"] = Field(
        "warn", description="stop: no pairs are made from an unhealthy judge"
    )


class Pairs(Section):
    """Preference pairs: best against worst score of a prompt, ties dropped."""

    min_gap: float = Field(0.0, ge=0, description="chosen - rejected must exceed this")
    min_pairs: PositiveInt = Field(16, description="fewer: the iteration stops and says why")
    most: int = Field(
        0,
        ge=0,
        description="pairs that are used at most, so that arms have equally many; 0: all",
    )
    rho: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="length control of Meta-Rewarding (2407.19594): chosen is the shortest answer "
        "in the top rho of the prompt's range of scores, rejected the longest in the bottom rho",
    )
    within: float = Field(
        1.0,
        gt=0,
        le=1,
        description="lengths of a pair differ by at most this share of the longer; 1: by anything",
    )

    anchor: Literal["none", "M0", "baseline", "M1"] = Field(
        "none",
        description="anchored rejection of Temporal Self-Rewarding (2508.06026): this model "
        "answers too, and M_t rejects its worst answer where it scores below M_t's own",
    )
    judge_draws: int = Field(
        0,
        ge=0,
        description="Meta-Rewarding (2407.19594): written judgements of each answer, of which M_t "
        "compares those that differ most: pairs that teach judging, beside the others; 0: none",
    )

    @field_validator("judge_draws")
    @classmethod
    def _two_can_be_compared(cls, draws: int) -> int:
        if draws == 1:
            raise ValueError("one judgement has nothing to be compared with: 0, or 2 and more")
        return draws

    @model_validator(mode="after")
    def _most_are_enough(self) -> Pairs:
        if self.most and self.most < self.min_pairs:
            raise ValueError(f"most must be 0 (all) or at least min_pairs ({self.min_pairs})")
        return self

    @model_validator(mode="after")
    def _one_rule(self) -> Pairs:
        if self.rho and self.within < 1:
            raise ValueError(
                "rho and within are two rules for the same lengths: leave rho at 0 or within at 1"
            )
        if self.anchor != "none" and (self.rho or self.within < 1):
            raise ValueError(
                "anchor and a rule for lengths would both choose what is rejected: leave anchor at "
                "none, or rho at 0 and within at 1"
            )
        return self


class Dpo(Training):
    """Direct preference optimisation from M_t, reference M_t (paper section 3.1.2)."""

    epochs: float = Field(1, gt=0)
    learning_rate: float = Field(1e-6, gt=0, lt=1, description="the paper's, all weights of 70B")
    final_learning_rate_ratio: float = Field(0.1, ge=0, le=1, description="1e-6 to 1e-7")
    beta: float = Field(0.1, gt=0, description="how dearly leaving the reference is paid")
    nll: float = Field(
        0.0,
        ge=0,
        description="alpha of IRPO (2404.19733): weight of the chosen response's negative "
        "log-likelihood per token, added to the loss",
    )
    label_smoothing: Literal["consistency"] | Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0,
        description="share of the pairs taken to be the wrong way round; consistency: 1 - C of "
        "CREAM (2410.12735), from how alike M_t and the judge before it rank",
    )
    length_penalty: float = Field(
        0.0,
        ge=0,
        description="alpha of R-DPO (2403.19159), per token: alpha (|chosen| - |rejected|) is "
        "added to the margin: a longer chosen response teaches less",
    )


class Eval(Section):
    """Measurements after each model: held-out judging, test responses, comparisons."""

    judge_samples: PositiveInt = Field(3, description="K on the held-out rankings")
    temperature: float = Field(0.7, ge=0, description="of test responses; 0 is greedy")
    top_p: float = Field(0.9, gt=0, le=1, description="share of probability sampled from")
    max_tokens: PositiveInt = Field(1024, description="per test response")
    compared_prompts: PositiveInt = Field(256, description="test prompts in head-to-head")
    kl_prompts: PositiveInt = Field(
        256, description="test prompts whose answers are drawn anew for KL to the arm's start"
    )
    referee: Literal["M0", "baseline", "M1", "endpoint"] = Field(
        "M1", description="who compares responses; endpoint: the model of endpoint.model"
    )
    resamples: PositiveInt = Field(2000, description="bootstrap resamples, by prompt")
    ways_of: list[str] = Field(
        ["M1", "last"],
        description="models that judge in several ways, such as M1 or self-rewarding/M2; last: the "
        "last one of arm self-rewarding; []: none",
    )
    ways_prompts: PositiveInt = Field(190, description="held-out prompts they judge so, at most")
    ways_draws: PositiveInt = Field(11, description="judgements drawn per response, by a rubric")
    refined_of: list[str] = Field(
        [],
        description="models that also refine their answers, and choose the best of N drafts for "
        "the same tokens (srkit.self_refine); names as in ways_of; []: none",
    )
    refined_prompts: PositiveInt = Field(256, description="test prompts they do so for, at most")
    probes_of: list[str] = Field(
        ["M1", "last"],
        description="models whose judging is probed with dressed up answers, and whose blind spots "
        "are looked for; names as in ways_of; all: those of every arm; []: none",
    )
    probe_prompts: PositiveInt = Field(
        40, description="held-out prompts whose worst answer is dressed up in twelve ways, at most"
    )
    blind_spot_items: int = Field(
        72, ge=0, le=72, description="of the kit's questions with a key (srkit.blind_items)"
    )
    two_turn_questions: int = Field(
        0, ge=0, description="of the kit's 16 (srkit.two_turn), scored by the referee; 0: none"
    )
    benchmarks: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="tasks of lm-eval, such as [arc_easy,piqa]; srkit.harness lists the paper's"
    )
    benchmark_items: int = Field(0, ge=0, description="of each of these tasks at most; 0: all")
    benchmark_tasks: str = Field("", description="a folder with lm-eval task files of your own")
    price_per_hour: float = Field(
        0.0,
        ge=0,
        description="of this machine, in any currency, to price arms by; 0: no price",
    )
    embedding_model: str = Field(
        "",
        description="hub id or folder of a sentence-embedding model for the map, novelty and "
        "topics of texts; empty: TF-IDF, no download",
    )


class Arms(Section):
    """What single arms need beside the settings that all arms share."""

    oracle: Annotated[list[str], Field(min_length=1)] = Field(
        ["min_words=8", "max_words=20", "sentences=1", "list_items=0", "ends_with=."],
        description="constraints, kind=value as in srkit.constraints; a point for each that is met",
    )
    external_judge: Literal["M0", "baseline", "M1", "endpoint"] = Field(
        "M0", description="the fixed judge of that arm; endpoint: the model of endpoint.model"
    )
    external_method: Literal["score", "pairwise"] = Field(
        "score",
        description="pairwise: it compares a prompt's candidates two by two, each pair in both "
        "orders (n (n - 1) questions for n); a score is the share won; score: by judge.method",
    )
    positive_share: float = Field(
        0.25, gt=0, le=1, description="of the responses, for expected scores: no 5 is ever reached"
    )

    @field_validator("oracle")
    @classmethod
    def _constraints_can_be_checked(cls, constraints: list[str]) -> list[str]:
        from srkit.constraints import parse  # which needs pandas: not for every --help

        parse(constraints)
        return constraints


class Endpoint(Section):
    """A model behind an OpenAI-compatible server: `eval.referee`, `instruct.writer`, or the judge
    of an arm (`arms.external_judge`).

    Keys are no settings: they come from the environment and are written nowhere.
    """

    # repr=False: what may hold a secret is not repeated in errors.
    url: str = Field("", repr=False, description="such as http://localhost:8000/v1; no key in it")
    model: str = Field("", description="the model's name at that server")
    key_variable: str = Field(
        "OPENAI_API_KEY", repr=False, description="the environment variable with the key, if any"
    )
    concurrency: PositiveInt = Field(8, description="requests under way at once, of one process")
    timeout: float = Field(600, gt=0, description="seconds without an answer, then it is retried")
    retries: int = Field(5, ge=0, description="with growing pauses; then the step stops")
    max_tokens: int = Field(
        0, ge=0, description="prompt and completion tokens that one process may spend; 0: no limit"
    )

    @field_validator("url")
    @classmethod
    def _address_alone(cls, url: str) -> str:
        """An address is stored and shown; whatever else a URL can carry could be a secret."""
        if url and not re.fullmatch(r"https?://[^\s@?#]+", url):
            raise ValueError("an http(s) address without user, password or query is legal")
        return url.rstrip("/")

    @field_validator("model")
    @classmethod
    def _printable(cls, model: str) -> str:
        """It is shown in figures and terminals."""
        if not model.isprintable():
            raise ValueError("a name of printable characters is legal")
        return model

    @field_validator("key_variable")
    @classmethod
    def _name_of_a_variable(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise ValueError("the name of an environment variable is legal, never the key itself")
        return name


class Config(Section):
    """All settings of a study. `preset` only records where they came from."""

    preset: str = "paper"
    random_seed: int = Field(0, ge=0, description="another seed, another draw of everything")
    iterations: PositiveInt = Field(2, description="2: M1 to M3")
    start: Literal["M1", "baseline"] = Field("M1", description="baseline: no EFT (App. A.3)")
    update: Literal["dpo", "sft"] = Field(
        "dpo", description="of M_t: DPO on pairs; sft: on its best responses alone (App. A.4)"
    )
    model: Model = Model()
    seed: Seed = Seed()
    sft: Sft = Sft()
    instruct: Instruct = Instruct()
    candidates: Candidates = Candidates()
    judge: Judge = Judge()
    pairs: Pairs = Pairs()
    dpo: Dpo = Dpo()
    eval: Eval = Eval()
    endpoint: Endpoint = Endpoint()
    arms: Arms = Arms()

    @model_validator(mode="after")
    def _an_endpoint_has_an_address(self) -> Config:
        roles = (self.eval.referee, self.instruct.writer, self.arms.external_judge)
        asked = "endpoint" in roles
        if asked and not (self.endpoint.url and self.endpoint.model):
            raise ValueError("an endpoint is asked for: set endpoint.url and endpoint.model")
        return self

    @model_validator(mode="after")
    def _pairs_are_trained_on(self) -> Config:
        asked = [name for name, value in LATER.items() if self._value(name) != value]
        if self.update == "sft" and asked:
            raise ValueError(
                f"update=sft (arm positive-only) trains on the best responses alone, without "
                f"pairs, so {', '.join(asked)} would do nothing: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _there_is_something_to_judge(self) -> Config:
        source = self.judge.source
        if self.dpo.label_smoothing == "consistency" and source != "model":
            raise ValueError(
                "dpo.label_smoothing=consistency (arm cream) asks whether M_t judges as the model "
                f"before it does, and judge.source={source} asks neither: set judge.source=model"
            )
        if self.pairs.anchor != "none" and source in ("human", "seed"):
            raise ValueError(
                f"pairs.anchor={self.pairs.anchor} needs a judge of its answers, and "
                f"judge.source={source} ranks those of the seed alone: leave one of them out"
            )
        compared = source == "external" and self.arms.external_method == "pairwise"
        if self.pairs.anchor != "none" and compared:
            raise ValueError(
                f"pairs.anchor={self.pairs.anchor} needs scores of its answers, and "
                "arms.external_method=pairwise only compares candidates: set it to score"
            )
        return self

    @model_validator(mode="after")
    def _models_that_are_named_can_be(self) -> Config:
        mine = [f"M{t + 2}" for t in range(self.iterations)]
        trained = ["baseline", "M1", "last", *(f"{arm}/{name}" for arm in ARMS for name in mine)]
        legal = {"ways_of": trained, "refined_of": trained, "probes_of": [*trained, "all"]}
        for field, names in legal.items():
            if wrong := [name for name in getattr(self.eval, field) if name not in names]:
                told = f"eval.{field}: {shown(wrong[0])}. {legal_names(wrong[0], names)}"
                raise ValueError(told.removesuffix("."))
        return self

    def for_arm(self, arm: str) -> Config:
        """The settings of one arm: these, with the arm's overrides on top."""
        if arm not in ARMS:
            raise SrkitError(f"There is no arm {shown(arm)}. {legal_names(arm, ARMS)}")
        return build({**self.model_dump()}, ARMS[arm], f"arm {arm}") if ARMS[arm] else self

    def digest(self, *names: str) -> str:
        """Hash of the named sections or fields and the random seed: what makes a step stale.

        Fields in LIMITS are left out: they decide whether and how to go on, not what comes out.
        So are those in LATER while they ask for what was done before there was such a setting.
        """
        dump = self.model_dump(mode="json")
        unused = [name for name, value in LATER.items() if self._value(name) == value]
        for name in (*LIMITS, *unused):
            section, field = name.split(".")
            del dump[section][field]
        part = {}
        for name in sorted({"random_seed", *names}):
            section, _, field = name.partition(".")
            part[name] = dump[section][field] if field else dump[section]
        return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]

    def _value(self, name: str) -> Any:
        section, _, field = name.partition(".")
        return getattr(getattr(self, section), field)


LIMITS = (
    "model.cache",
    "model.engine",
    "judge.min_parse_rate",
    "judge.max_modal_share",
    "judge.max_flat_rate",
    "judge.when_unhealthy",
    "pairs.min_pairs",
)

# Fields that studies were finished without, and the value that says the same: these stay finished.
LATER = {
    "pairs.most": 0,
    "pairs.rho": 0.0,
    "pairs.within": 1.0,
    "pairs.anchor": "none",
    "pairs.judge_draws": 0,
    "dpo.nll": 0.0,
    "dpo.label_smoothing": 0.0,
    "dpo.length_penalty": 0.0,
}

ARMS: dict[str, dict[str, str]] = {
    "self-rewarding": {},
    "ift-only": {"start": "baseline"},
    "positive-only": {"update": "sft"},
    "multiple-choice": {"judge.rubric": "multiple_choice"},
    "judged-once": {"judge.method": "sampled", "judge.samples": "1"},
    "two-candidates": {"candidates.n": "2"},
    "length-control": {"pairs.rho": "0.32"},
    "length-matched": {"pairs.within": "0.25"},
    "nll": {"dpo.nll": "1"},
    "high-beta": {"dpo.beta": "0.5"},
    "length-penalty": {"dpo.length_penalty": "0.02"},
    "cream": {"dpo.label_smoothing": "consistency"},
    "anchored": {"pairs.anchor": "M0"},
    "meta-judge": {"pairs.judge_draws": "5"},
    "spin": {"judge.source": "seed"},
    "human": {"judge.source": "human"},
    "reward-model": {"judge.source": "reward-model"},
    "external-judge": {"judge.source": "external"},
    "random-judge": {"judge.source": "random"},
    "oracle": {"judge.source": "oracle"},
}


def presets() -> list[str]:
    """Names of the presets that ship, smallest machine first."""
    order = ["tiny", "cpu", "gpu-8gb", "gpu-12gb", "gpu-16gb", "gpu-24gb", "gpu-80gb", "paper"]
    here = {
        p.name[:-5]
        for p in resources.files("srkit").joinpath("presets").iterdir()
        if _is_yaml(p.name)
    }
    return [n for n in order if n in here] + sorted(here - set(order))


def resolve(preset: str, overrides: str = "") -> Config:
    """A preset with overrides on top.

    Raises: SrkitError on an unknown preset, an unknown field, or an illegal value.
    """
    if preset not in presets():
        raise SrkitError(f"There is no preset {shown(preset)}. {legal_names(preset, presets())}")
    file = resources.files("srkit").joinpath("presets").joinpath(f"{preset}.yaml")
    values = parse_yaml(read_text(file), str(file))
    config = build(values, parse_overrides(overrides), f"preset {preset}")
    return config.model_copy(update={"preset": preset})


def parse_overrides(text: str) -> dict[str, str]:
    """`"dpo.beta=0.2 judge.samples=5"` as a dict; later entries win."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SrkitError(
            f"The overrides {shown(text)} have an open quote or end ({error})."
        ) from None
    for word in words:
        if "=" not in word or word.startswith("="):
            raise SrkitError(
                f"The override {shown(word)} is not of the form section.field=value, "
                'for example "dpo.beta=0.2 judge.samples=5".'
            )
    return dict(word.split("=", 1) for word in words)


def build(values: dict[str, Any], overrides: dict[str, str], where: str) -> Config:
    """Apply overrides to nested values and validate; errors speak of `where`.

    Raises: SrkitError on values that are no mapping, an unknown field, or an illegal value.
    """
    try:
        merged = json.loads(json.dumps(_mapping(values, "settings", where), default=str))
    except (TypeError, ValueError) as error:  # a date as a name, an anchor inside itself
        raise SrkitError(f"Bad settings in {where}: {error}. Names are words.") from None
    for dotted, value in overrides.items():
        _check_name(dotted)
        section, _, field = dotted.rpartition(".")
        target = merged.setdefault(section, {}) if section else merged
        _mapping(target, section, where)[field] = _parse_list(value)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise SrkitError(_explain(error, where)) from None


def fields() -> dict[str, Any]:
    """Every legal dotted name with its pydantic field (sections themselves left out)."""
    found: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= {f"{name}.{f}": info for f, info in field.annotation.model_fields.items()}
        else:
            found[name] = field
    return found


def differences(old: Config, new: Config) -> list[str]:
    """Lines such as `dpo.beta: 0.1 -> 0.2` for every field that differs (preset left out)."""

    def flat(config: Config) -> dict[str, Any]:
        dump = config.model_dump(mode="json")
        return {n: dump[n.split(".")[0]][n.split(".")[1]] if "." in n else dump[n] for n in names}

    names = [n for n in fields() if n != "preset"]
    a, b = flat(old), flat(new)
    return [f"{n}: {a[n]} -> {b[n]}" for n in names if a[n] != b[n]]


def legal_names(name: str, legal: Any) -> str:
    """`Did you mean 'x'? Legal are: ...` for a name that is not in `legal`."""
    near = difflib.get_close_matches(name[:80], list(legal), n=1, cutoff=0.5)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return f"{guess}Legal are: {', '.join(legal)}."


def _is_yaml(name: str) -> bool:
    return name.endswith(".yaml")


def _parse_list(value: str) -> str | list[str]:
    """`[a,b]` becomes a list; everything else stays text and takes its field's type."""
    if value.startswith("[") and value.endswith("]"):
        return [item.strip() for item in value[1:-1].split(",") if item.strip()]
    return value


def _mapping(values: Any, name: str, where: str) -> dict[str, Any]:
    if isinstance(values, dict):
        return values
    raise SrkitError(
        f"Bad settings in {where}: {name} = {shown(values)} is not a mapping such as "
        "`dpo: {beta: 0.1}`."
    )


def _check_name(dotted: str) -> None:
    legal = fields()
    if dotted == "preset":
        raise SrkitError(
            "A preset is not a setting: give it as --preset, or as the parameter preset."
        )
    if dotted in legal:
        return
    section, _, field = dotted.partition(".")
    inside = [n for n in legal if n.startswith(f"{section}.")]
    if inside and field:
        hint = legal_names(field, [n.split(".")[1] for n in inside])
        raise SrkitError(f"There is no setting {shown(field)} in section {section!r}. {hint}")
    near = difflib.get_close_matches(dotted[:80], list(legal), n=3, cutoff=0.4)
    guess = f"Near it: {', '.join(near)}. " if near else ""
    sections = ", ".join(dict.fromkeys(n.split(".")[0] for n in legal))
    raise SrkitError(
        f"There is no setting {shown(dotted)}. {guess}Sections and settings: {sections}."
    )


def _explain(error: ValidationError, where: str) -> str:
    """One sentence per problem: field, value, what is legal, nearest spelling."""
    lines = []
    for problem in error.errors():
        # Pydantic's path also holds list places and the members of a union, which are no names.
        name = ".".join(part for part in map(str, problem["loc"]) if part.isidentifier())
        if problem["type"] == "extra_forbidden":
            *sections, field = name.split(".")
            prefix = ".".join(sections) + "." if sections else ""
            names = [n[len(prefix) :] for n in fields() if n.startswith(prefix)]
            lines.append(f"unknown setting {shown(name)}. {legal_names(field, names)}")
            continue
        field = fields().get(name)
        reason = f" ({field.description})" if field is not None and field.description else ""
        hidden = isinstance(problem["input"], dict) or (field is not None and not field.repr)
        given = "" if hidden else f" = {shown(problem['input'])}"
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{name or 'settings'}{given}: {message}{reason}.")
    return f"Bad settings in {where}: " + " ".join(lines)
