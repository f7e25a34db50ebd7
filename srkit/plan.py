"""The study as a graph of steps: what each makes, from what, by which settings, where.

This list is the one place that knows the order of the series. `Study` uses it to decide what is
finished and what is stale, the CLI to decide which notebook to run, errors to say which notebook
to run first, and `srkit status` to list everything.

A step's name is the path of what it makes, without its ending. Paper section 2.4 gives the order.

    python -c "from srkit import plan, config; print(*plan.plan(config.resolve('tiny')), sep='\\n')"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from srkit.config import Config

ADAPTER_FILES = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "fingerprint.json",
    "training.jsonl",
)
PAPER_ARM = "self-rewarding"
REWARD_MODEL = "reward-model"  # the frozen one, by its name among the models; its arm's name too
SEED_MODELS = ("baseline", "M1")
COMPARE = ("compare",)
SEEDED = ("human", "seed")  # values of judge.source whose prompts are the seed's
REFINING = "16_self_refine"
HACKING = "22_reward_hacking"
NOTEBOOKS = {  # of the analyses
    "reward_accuracy": "10_reward_accuracy",
    "length_drift": "11_length_drift",
    "win_rates": "12_win_rates",
    "benchmarks": "13_benchmarks",
    "data_distribution": "14_data_distribution",
    "breakdowns": "15_breakdowns",
    "refine": REFINING,
    "ablations": "20_ablations",
    "reward_hacking": HACKING,
    "rivals": "21_rivals",
    "successors": "23_successors",
}
BY_ORACLE = ("win_rates", "refine", "ablations", "reward_hacking")  # analyses with its score
TEXTS = ("seed/ift", "seed/eft", "seed/eft_targets", "seed/test_prompts")
WRITTEN_JUDGEMENT = (
    "judge.rubric",
    "judge.temperature",
    "judge.top_p",
    "judge.max_tokens",
    "judge.chunk",
)


@dataclass(frozen=True)
class Step:
    """One thing that a study makes.

    `inputs` are names of steps; `settings` of config sections, or of single fields where the
    others of their section change nothing.
    """

    name: str
    inputs: tuple[str, ...]
    settings: tuple[str, ...]
    notebook: str
    outputs: tuple[str, ...]  # files, relative to the study
    arm: str = PAPER_ARM  # whose settings apply
    wording: tuple[str, ...] = ()  # prompt files whose text it uses
    same_as: str = ""  # the paper arm's table, of which this is a copy


def plan(config: Config, arms: tuple[str, ...] = (PAPER_ARM,)) -> list[Step]:
    """All steps of a study with these arms, in an order that respects their inputs."""
    steps = [*_seed(config), _responses("M0", PAPER_ARM, "03_judge")]
    steps += _model_measures("baseline", (), config, PAPER_ARM, "03_judge")
    steps += _model_measures("M1", ("baseline",), config, PAPER_ARM, "03_judge")
    referee = _referee(config)
    settings = (*(_endpoint(config.eval.referee) or ("model",)), "eval.referee")
    inputs = ("seed/eft_eval", *referee)
    steps.append(_table("referee/comparisons", inputs, settings, "03_judge", wording=COMPARE))
    for arm in arms:
        steps += _arm(config, arm)
    models = [m for arm in arms for m in model_names(config.for_arm(arm), arm)]
    steps += _analyses(config, list(dict.fromkeys(models)), arms)
    once: dict[str, Step] = {}  # several arms may name the tables that they share
    for step in steps:
        once.setdefault(step.name, step)
    return list(once.values())


def model_names(config: Config, arm: str) -> list[str]:
    """The trained models of an arm, in order: baseline, M1, <arm>/M2, ... (ift-only has no M1)."""
    first = ["baseline"] if config.start == "baseline" else list(SEED_MODELS)
    return first + [model_after(config, arm, t) for t in range(1, config.iterations + 1)]


def model_after(config: Config, arm: str, iteration: int) -> str:
    """Name of the model that iteration t leaves; t = 0 is where the arm starts."""
    return f"{arm}/M{iteration + 1}" if iteration else config.start


def model_before(config: Config, model: str) -> str:
    """The model that a model was trained from, and DPO's reference: M0, M1, <arm>/M2, ..."""
    arm, _, name = model.rpartition("/")
    if not arm:
        return "M0"
    return model_after(config.for_arm(arm), arm, int(name[1:]) - 2)


def judge_before(config: Config, arm: str, iteration: int) -> str:
    """Who judged before M_t did, for CREAM: M_(t-1); before M1 the baseline, before that M0."""
    names = ["M0", *model_names(config, arm)]
    return names[names.index(model_after(config, arm, iteration - 1)) - 1]


def judged_in_ways(config: Config, model: str) -> bool:
    """Whether `eval.ways_of` names a model."""
    return _names(config.eval.ways_of, config, model)


def refines(config: Config, model: str) -> bool:
    """Whether `eval.refined_of` names a model."""
    return _names(config.eval.refined_of, config, model)


def probed(config: Config, model: str) -> bool:
    """Whether `eval.probes_of` names a model."""
    return "all" in config.eval.probes_of or _names(config.eval.probes_of, config, model)


def _names(named: list[str], config: Config, model: str) -> bool:
    last = model_after(config, PAPER_ARM, config.iterations)
    return model in [last if name == "last" else name for name in named]


def arrived(config: Config, arms: tuple[str, ...], model: str) -> list[str]:
    """The last model of each arm: those that a model's refined answers are compared with."""
    last = [model_names(config.for_arm(arm), arm)[-1] for arm in arms]
    return [name for name in last if name != model]


def frozen_judges(config: Config, arms: tuple[str, ...]) -> list[str]:
    """Judges of the held-out rankings beside the models: the reward model, if an arm uses it."""
    used = {config.for_arm(arm).judge.source for arm in arms}
    return [REWARD_MODEL] if REWARD_MODEL in used else []


def compares(config: Config) -> bool:
    """Whether an arm's candidates are compared two by two instead of scored one by one."""
    return config.judge.source == "external" and config.arms.external_method == "pairwise"


def shares(config: Config, arm: str, iteration: int, table: str) -> bool:
    """Whether an arm uses the `prompts`, `candidates` or `judgements` of the paper's arm.

    It does where it would draw them with the same settings from the same model: what differs
    between arms is then what their names say alone, and nothing is drawn twice.
    """
    mine = config.for_arm(arm)
    if arm == PAPER_ARM or {mine.judge.source, config.judge.source} & set(SEEDED):
        return False
    same_model = iteration == 1 and mine.start == config.start
    same_writer = same_model or config.instruct.writer != "current"
    same_prompts = same_writer and mine.instruct == config.instruct
    if table == "prompts":
        return same_prompts
    same_candidates = same_prompts and same_model and mine.candidates == config.candidates
    return same_candidates and (table == "candidates" or mine.judge == config.judge)


def notebooks(config: Config, arms: tuple[str, ...] = (PAPER_ARM,)) -> list[str]:
    """Names of the runs of the series, in order: `04_iteration-self-rewarding-1`, ..."""
    runs = dict.fromkeys(step.notebook for step in plan(config, arms))
    return ["00_start_here", *runs]


def _table(name: str, inputs: tuple[str, ...], settings: tuple[str, ...], notebook: str, **more):
    return Step(name, inputs, settings, notebook, (f"{name}.jsonl",), **more)


def _adapter(model: str, inputs: tuple[str, ...], settings: tuple[str, ...], notebook: str, **more):
    name = f"{model}/adapter"
    outputs = tuple(f"{name}/{file}" for file in ADAPTER_FILES)
    return Step(name, inputs, ("model", *settings), notebook, outputs, **more)


def _seed(config: Config) -> list[Step]:
    tables = ("seed/ift", "seed/eft", "seed/eft_eval", "seed/test_prompts")
    steps = [_table(name, (), ("seed",), "01_seed_data") for name in tables]
    steps.append(_adapter("baseline", ("seed/ift",), ("sft",), "02_seed_sft"))
    target_inputs = ("seed/eft",)
    if config.sft.eft_targets == "self":
        own = _table(
            "baseline/eft_judgements",
            ("baseline/adapter", "seed/eft"),
            (*WRITTEN_JUDGEMENT, "sft.eft_samples"),
            "02_seed_sft",
            wording=_rubric(config),
        )
        steps.append(own)
        target_inputs += (own.name,)
    settings = ("sft.eft_targets", "sft.eft_modal_share", "judge.rubric")
    steps.append(_table("seed/eft_targets", target_inputs, settings, "02_seed_sft"))
    learned, rubric = ("seed/ift", "seed/eft_targets"), _rubric(config)
    return [*steps, _adapter("M1", learned, ("sft",), "02_seed_sft", wording=rubric)]


def _rubric(config: Config) -> tuple[str, ...]:
    return (f"judge_{config.judge.rubric}",)


def _model_measures(
    model: str, rivals: tuple[str, ...], config: Config, arm: str, notebook: str
) -> list[Step]:
    """The model as a judge of held-out rankings, its answers to the test prompts, comparisons."""
    adapter = f"{model}/adapter"
    steps = [
        _table(
            f"{model}/judgements",
            (adapter, "seed/eft_eval"),
            (*WRITTEN_JUDGEMENT, "judge.method", "eval.judge_samples"),
            notebook,
            arm=arm,
            wording=_rubric(config),
        ),
        _responses(model, arm, notebook),
    ]
    if judged_in_ways(config, model):
        before = model_before(config, model)
        reference = () if before == "M0" else (f"{before}/adapter",)
        drawn = ("judge.temperature", "judge.top_p", "judge.max_tokens")
        drawn += ("eval.ways_draws", "eval.ways_prompts")
        inputs = (adapter, *reference, "seed/eft_eval")
        more = {"arm": arm, "wording": ("judge_additive", "judge_multiple_choice", "judge_yes_no")}
        steps.append(_table(f"{model}/ways", inputs, drawn, notebook, **more))
    if rivals:
        answers = tuple(f"{m}/responses" for m in (model, *rivals))
        inputs = (*answers, *_referee(config))
        settings = ("eval.referee", "eval.compared_prompts", *_endpoint(config.eval.referee))
        name = f"{model}/comparisons"
        steps.append(_table(name, inputs, settings, notebook, arm=arm, wording=COMPARE))
    return steps


def _responses(model: str, arm: str, notebook: str) -> Step:
    """The model's answers to the test prompts; M0's show what all training did to it."""
    inputs = (*_adapter_of(model), "seed/test_prompts")
    settings = ("eval.temperature", "eval.top_p", "eval.max_tokens")
    settings += ("model",) if model == "M0" else ()
    return _table(f"{model}/responses", inputs, settings, notebook, arm=arm)


def _referee(config: Config) -> tuple[str, ...]:
    """The adapter that the comparisons need."""
    return _adapter_of(config.eval.referee)


def _endpoint(role: str) -> tuple[str, ...]:
    """What of an endpoint decides a result: which model it is, not where or how fast it answers."""
    return ("endpoint.model",) if role == "endpoint" else ()


def _arm(study: Config, arm: str) -> list[Step]:
    config, steps = study.for_arm(arm), []
    names = model_names(config, arm)
    if config.judge.source == REWARD_MODEL:
        steps += _reward_model(f"04_iteration-{arm}-1")
    for t in range(1, config.iterations + 1):
        notebook, folder = f"04_iteration-{arm}-{t}", f"{arm}/iter-{t}"
        policy, trained = model_after(config, arm, t - 1), model_after(config, arm, t)
        start = f"{policy}/adapter"
        candidates, judgements = f"{folder}/candidates", f"{folder}/judgements"
        for table in ("prompts", "candidates", "judgements"):
            steps += _drawn(study, arm, t, table, notebook)
        more = _beside(config, arm, t, notebook)
        beside = {step.name.rpartition("/")[2]: step.name for step in more}
        anchors = tuple(beside[n] for n in ("anchors", "anchor_judgements") if n in beside)
        inputs = (candidates, judgements, *anchors)
        steps += [*more, _table(f"{folder}/pairs", inputs, ("pairs",), notebook, arm=arm)]
        learned, settings = (f"{folder}/pairs",), ("dpo",)
        if "judgements_before" in beside:
            learned += (judgements, beside["judgements_before"])
        if "judge_pairs" in beside:
            learned += (beside["judge_pairs"],)
        if config.update == "sft":
            learned = (candidates, judgements)
            settings = ("sft", "judge.method", "judge.rubric", "arms.positive_share")
        steps.append(_adapter(trained, (*learned, start), settings, notebook, arm=arm))
        rivals = tuple(names[: names.index(trained)])
        steps += _model_measures(trained, rivals, config, arm, notebook)
        inputs = (f"{trained}/adapter", f"{config.start}/adapter", "seed/test_prompts")
        settings = ("eval.kl_prompts", "eval.max_tokens")
        steps.append(_table(f"{trained}/drift", inputs, settings, notebook, arm=arm))
    return steps


def _reward_model(notebook: str) -> list[Step]:
    """The frozen reward model, and its scores of the held-out rankings."""
    adapter = _adapter(REWARD_MODEL, ("seed/eft",), ("sft",), notebook)
    inputs = (adapter.name, "seed/eft_eval")
    return [adapter, _table(f"{REWARD_MODEL}/judgements", inputs, (), notebook)]


def _beside(config: Config, arm: str, iteration: int, notebook: str = "") -> list[Step]:
    """What single arms make of an iteration beside the usual tables, before its pairs."""
    folder, steps = f"{arm}/iter-{iteration}", []
    policy, candidates = (
        _adapter_of(model_after(config, arm, iteration - 1)),
        f"{folder}/candidates",
    )

    def add(name: str, inputs: tuple[str, ...], settings: tuple[str, ...], *wording: str) -> str:
        made = _table(f"{folder}/{name}", inputs, settings, notebook, arm=arm, wording=wording)
        steps.append(made)
        return made.name

    if config.dpo.label_smoothing == "consistency":
        judge = _adapter_of(judge_before(config, arm, iteration))
        own = () if judge else ("model",)
        add("judgements_before", (candidates, *judge), ("judge", *own), *_rubric(config))
    if config.pairs.anchor != "none":
        writer = _adapter_of(config.pairs.anchor)
        own = () if writer else ("model",)
        inputs = (f"{folder}/prompts", *writer)
        anchors = add("anchors", inputs, ("candidates", "pairs.anchor", *own))
        judges, settings, wording = _judging(config, policy)
        add("anchor_judgements", (anchors, *judges), settings, *wording)
    if config.pairs.judge_draws:
        rubric = _rubric(config)
        settings = (*WRITTEN_JUDGEMENT, "pairs.judge_draws")
        draws = add("judge_draws", (candidates, *policy), settings, *rubric)
        inputs, settings = (candidates, draws, *policy), ("judge.rubric",)
        compared = add("meta_judgements", inputs, settings, *rubric, "meta_judge")
        add("judge_pairs", (candidates, draws, compared), settings, *rubric)
    return steps


def _adapter_of(model: str) -> tuple[str, ...]:
    """The adapter that a step needs of a model: M0 and an endpoint have none."""
    return () if model in ("M0", "endpoint") else (f"{model}/adapter",)


def _drawn(study: Config, arm: str, iteration: int, table: str, notebook: str) -> list[Step]:
    """The step of what an arm draws or judges, after that of the paper's arm if it copies it."""
    name = f"{arm}/iter-{iteration}/{table}"
    if shares(study, arm, iteration, table):
        source = _drawn(study, PAPER_ARM, iteration, table, notebook)
        of = source[-1].name
        return [*source, _table(name, (of,), (), notebook, arm=arm, same_as=of)]
    config = study.for_arm(arm)
    policy = _adapter_of(model_after(config, arm, iteration - 1))
    prompts = f"{arm}/iter-{iteration}/prompts"
    earlier = (f"{arm}/iter-{iteration - 1}/prompts",) if iteration > 1 else ()
    wording = ()
    if table == "judgements":
        judges, settings, wording = _judging(config, policy)
        inputs = (f"{arm}/iter-{iteration}/candidates", *judges)
    elif config.judge.source == "human":
        inputs, settings = ("seed/eft",), ("judge.source", "iterations")
        if table == "candidates":
            inputs, settings = (prompts, *inputs), ("judge.source",)
    elif config.judge.source == "seed":
        inputs, settings = ("seed/ift",), ("judge.source", "instruct.prompts")
        if table == "candidates":
            inputs, settings = (prompts, *inputs, *policy), ("judge.source", "candidates")
    elif table == "candidates":
        inputs, settings = (prompts, *policy), ("candidates",)
    else:
        writer = policy if config.instruct.writer == "current" else ()
        inputs, wording = ("seed/ift", *writer, *earlier), ("self_instruct",)
        settings = (*(_endpoint(config.instruct.writer) or ("model",)), "instruct")
    return [_table(name, inputs, settings, notebook, arm=arm, wording=wording)]


def _judging(config: Config, policy: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Adapter, settings and wording of who judges an arm's candidates."""
    source, fixed = config.judge.source, config.arms.external_judge
    if source in (*SEEDED, "oracle"):
        return (), ("judge.source", *(("arms.oracle",) if source == "oracle" else ())), ()
    if source == REWARD_MODEL:
        return (f"{REWARD_MODEL}/adapter",), ("judge.source",), ()
    if source != "external":
        return policy, ("judge",), _rubric(config)
    model = _endpoint(fixed) or ("model",)
    settings = ("judge", "arms.external_judge", *model)
    if compares(config):
        return _adapter_of(fixed), (*settings, "arms.external_method"), COMPARE
    return _adapter_of(fixed), settings, _rubric(config)


def _benchmarks(config: Config, models: list[str]) -> list[Step]:
    """What is measured of M0 and of every model where it is asked for: two-turn questions by the
    referee, tasks by lm-eval."""
    judged = ("eval.two_turn_questions", "eval.max_tokens", "eval.referee", "judge.rubric")
    judged += _endpoint(config.eval.referee)
    tasks = ("eval.benchmarks", "eval.benchmark_items", "eval.benchmark_tasks")
    kinds = []
    if config.eval.two_turn_questions:
        kinds.append(("two_turn", _referee(config), judged, _rubric(config)))
    if config.eval.benchmarks:
        kinds.append(("benchmarks", (), tasks, ()))
    steps = []
    for kind, needed, settings, wording in kinds:
        for model in ("M0", *models):
            inputs = (f"{model}/adapter",) if model != "M0" else ()
            inputs = tuple(dict.fromkeys((*inputs, *needed)))
            own = (*settings, "model") if model == "M0" else settings
            more = {"arm": model.partition("/")[0] if "/" in model else PAPER_ARM}
            name = f"{model}/{kind}"
            steps.append(_table(name, inputs, own, "13_benchmarks", wording=wording, **more))
    return steps


def _refining(config: Config, models: list[str], arms: tuple[str, ...]) -> list[Step]:
    """Answers refined by the models that are to do so, the best of N, and who is better."""
    written = ("judge.rubric", "judge.temperature", "judge.top_p", "judge.max_tokens")
    judged = (*written, "judge.method", "judge.samples")
    drawn = ("candidates.temperature", "candidates.top_p", "eval.max_tokens")
    refined = ("eval.refined_prompts", "judge.max_tokens", *drawn)
    compared = ("eval.referee", *_endpoint(config.eval.referee))
    turns, rubric, steps = ("self_feedback", "self_refine"), _rubric(config), []
    for model in (m for m in models if refines(config, m)):
        own = (f"{model}/adapter", f"{model}/responses")
        ways = (f"{model}/refined", f"{model}/best_of")
        others = tuple(f"{name}/responses" for name in arrived(config, arms, model))
        measured = (f"{model}/responses", *ways, *others)
        tables = [
            ("refined", own, refined, turns),
            ("best_of", (*own, ways[0]), (*judged, *drawn), rubric),
            ("refined_judgements", (own[0], *measured), judged, rubric),
            ("refined_comparisons", (*measured, *_referee(config)), compared, COMPARE),
        ]
        more = {"arm": model.partition("/")[0] if "/" in model else PAPER_ARM}
        steps += [
            _table(f"{model}/{name}", inputs, settings, REFINING, wording=wording, **more)
            for name, inputs, settings, wording in tables
        ]
    return steps


def _hacking(config: Config, models: list[str]) -> list[Step]:
    """Probes of the models that are named as judges, and what they know of items with a key."""
    judged, steps = (*WRITTEN_JUDGEMENT, "judge.method", "eval.judge_samples"), []
    for model in (m for m in models if probed(config, m)):
        adapter, arm = f"{model}/adapter", model.partition("/")[0] if "/" in model else PAPER_ARM
        tables = [("probes", (adapter, "seed/eft_eval"), "eval.probe_prompts")]
        if config.eval.blind_spot_items:
            tables.append(("blind_spots", (adapter,), "eval.blind_spot_items"))
        for name, inputs, size in tables:
            settings = (*judged, size) if name == "probes" else (*judged, size, "eval.max_tokens")
            more = {"arm": arm, "wording": _rubric(config.for_arm(arm))}
            steps.append(_table(f"{model}/{name}", inputs, settings, HACKING, **more))
    return steps


def _of(owners: Iterable[str], table: str) -> tuple[str, ...]:
    """The steps that make one table of each model or iteration."""
    return tuple(f"{owner}/{table}" for owner in owners)


def _analyses(config: Config, models: list[str], arms: tuple[str, ...]) -> list[Step]:
    """What is made of all models and iterations together, ending with the report."""
    made = _made(config, models, arms)
    measured, refining = _benchmarks(config, models), _refining(config, models, arms)
    hacking, embedded = _hacking(config, models), []
    if config.eval.embedding_model:
        of, by = (*TEXTS, *made["prompts"], *made["pairs"]), ("eval.embedding_model",)
        embedded = [_table("embeddings", of, by, "14_data_distribution")]
    extra = {
        "benchmarks": measured,
        "data_distribution": embedded,
        "refine": refining,
        "reward_hacking": hacking,
    }
    steps = []
    for name, inputs in _analysed(made, extra).items():
        settings = ("eval.resamples", *(("arms.oracle",) if name in BY_ORACLE else ()))
        output = f"metrics/{name}.json"
        steps.append(Step(f"metrics/{name}", inputs, settings, NOTEBOOKS[name], (output,)))
    shown = (*made["prompts"], *made["candidates"], *made["own"], *made["pairs"], *made["beside"])
    browse = Step("browse", shown, (), "05_browse_pairs", ("browse.html",))
    inputs = (*(s.name for s in steps), *shown, *made["drift"])
    series = [browse, *measured, *embedded, *refining, *hacking, *steps]
    series.sort(key=lambda step: step.notebook)
    return [*series, Step("report", inputs, (), "30_report", ("report.html",))]


def _made(config: Config, models: list[str], arms: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The steps of all models and iterations, by what they make."""
    iterations = [(a, t) for a in arms for t in range(1, config.iterations + 1)]
    folders = [f"{arm}/iter-{t}" for arm, t in iterations]
    trained = [m for m in models if m not in SEED_MODELS]
    frozen = frozen_judges(config, arms)
    beside = [step.name for a, t in iterations for step in _beside(config.for_arm(a), a, t)]
    return {
        "judgements": _of(models, "judgements"),
        "responses": _of(models, "responses"),
        "comparisons": _of((m for m in models if m != "baseline"), "comparisons"),
        "ways": _of((m for m in models if judged_in_ways(config, m)), "ways"),
        "drift": _of(trained, "drift"),
        "adapters": _of((*trained, *frozen), "adapter"),
        "frozen": _of(frozen, "judgements"),
        "prompts": _of(folders, "prompts"),
        "candidates": _of(folders, "candidates"),
        "own": _of(folders, "judgements"),
        "pairs": _of(folders, "pairs"),
        "beside": tuple(beside),
    }


def _analysed(
    made: dict[str, tuple[str, ...]], extra: dict[str, list[Step]]
) -> dict[str, tuple[str, ...]]:
    """The inputs of each analysis: of what was `made` of all, and its `extra` steps."""

    def every(*kinds: str) -> tuple[str, ...]:
        return tuple(name for kind in kinds for name in made[kind])

    own = {name: tuple(step.name for step in steps) for name, steps in extra.items()}
    refined = dict.fromkeys(i for step in extra["refine"] for i in (*step.inputs, step.name))
    probes = [name for name in own["reward_hacking"] if name.endswith("/probes")]
    dressed = _of((name.removesuffix("/probes") for name in probes), "judgements")
    ranked, asked = "seed/eft_eval", "seed/test_prompts"
    answered = (asked, ranked, *every("responses", "judgements", "comparisons"))
    length = every("responses", "candidates", "own", "pairs", "judgements", "comparisons")
    spent = every("prompts", "candidates", "own", "pairs", "beside", "adapters")
    hacked = (*own["reward_hacking"], *dressed, ranked, *every("candidates", "drift"))
    shown = "metrics/ablations"
    return {
        "reward_accuracy": (ranked, *every("judgements", "frozen", "own", "ways")),
        "length_drift": (*length, ranked),
        "win_rates": (*every("responses", "comparisons"), "referee/comparisons", ranked),
        "benchmarks": ("M0/responses", *made["responses"], *own["benchmarks"]),
        "data_distribution": (*TEXTS, *every("prompts", "pairs"), *own["data_distribution"]),
        "breakdowns": answered,
        "refine": (asked, *(name for name in refined if not name.endswith("/adapter"))),
        "ablations": (*answered, *every("own", "pairs")),
        "reward_hacking": (*hacked, shown),
        "rivals": (shown, *spent),
        "successors": (shown, *every("own", "pairs", "beside")),
    }
