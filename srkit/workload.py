"""What each step of a study asks of its model, in tokens, before the step is made.

Texts are the study's own tables where they are there, else the seed texts, else stand-ins whose
lengths the settings suggest; `basis` says which. They are counted in characters, at the characters
per token that were measured (`srkit.speed`), so no tokenizer is needed.

Surprising decision: expected is not the most. A trained model is taken to answer as long as the
IFT responses do, since that is what it was taught; `most` counts max_tokens for every row.

    python -c "from srkit.workload import *; from srkit.config import resolve; \\
        print(Texts(resolve('tiny')).tokens('A prompt.'))"
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from srkit import memory, prompts
from srkit.blind_items import ANSWER_TOKENS, SHOWN, items
from srkit.config import Config, Dpo, Sft
from srkit.judge import UNASKED
from srkit.plan import REWARD_MODEL, Step, compares
from srkit.probes import KINDS
from srkit.rows import Row, kept
from srkit.seed import SeedData, load
from srkit.self_refine import DRAFTS, ROUNDS
from srkit.speed import Speed
from srkit.study import Study
from srkit.two_turn import questions

WORD = 6  # characters, with the space
SCORE_TOKENS = 5.0  # of a judgement that is a score alone
ITEMS_PER_TASK = 3000  # of lm-eval's, where all are asked: 500 (openbookqa) to 14,042 (mmlu)
HARNESS_BATCH = 8
ITEM, OPTIONS = 600, 4  # characters of an item with its option, and how many options it has
KEPT_PER_LIST = 1.5  # prompts that pass Self-Instruct's filters, of one list: 0.7 to 2.5 were seen


@dataclass(frozen=True)
class Work:
    """What a step asks of the model, in tokens; `most` is what the settings allow at most."""

    kind: str = "none"  # generate, score, train or none
    calls: int = 0  # of the engine
    prompt: float = 0  # tokens read, a shared beginning once per call
    generated: float = 0
    trained: float = 0  # tokens of all epochs, of which `labelled` have a loss
    labelled: float = 0
    most: float = 0
    rows: float = 0  # written at once
    length: float = 0  # of the longest sequence, or the most tokens of a row
    held: float = 0  # tokens of prompts in the cache at once
    reference: float = 0  # tokens of pairs that DPO's reference reads
    basis: str = ""


# --- texts and tokens ----------------------------------------------------------------------------


class Texts:
    """The seed's texts, or stand-ins of the lengths that the settings suggest; lengths in tokens.

    `basis` says which. Answers are as long as IFT's, judgements as the seed's rationales.
    """

    def __init__(
        self, config: Config, speed: Speed | None = None, study: Study | None = None
    ) -> None:
        self.config, self.speed, self.study = config, speed or _UNMEASURED, study
        states = study.states() if study else {}
        self.made = {name for name, state in states.items() if state == "done"}
        names = ("ift", "eft", "eft_eval", "test_prompts")
        if self.made.issuperset(f"seed/{n}" for n in names):
            data, self.basis = SeedData(**{n: study.read(f"seed/{n}") for n in names}), "tables"
        elif config.seed.source == "kit" or Path(config.seed.source).exists():
            data, self.basis = load(config), "seed texts"
        else:
            data, self.basis = _stand_ins(config), "settings"
        self.ift, self.eft = data.ift, data.eft
        self.eval, self.tests = data.eft_eval, data.test_prompts

    def tokens(self, *texts: str, turn: bool = True) -> float:
        """Of a conversation of these texts; without `turn`, of the texts alone."""
        return sum(map(len, texts)) / self.speed.characters + (self.speed.turn if turn else 0)

    def answer(self, most: int, step: str = "") -> float:
        """Tokens of an answer: measured in the step's finished table, or as IFT's responses."""
        rows = self.study.read(step) if step in self.made else []
        if counts := [row["tokens"] for row in rows if row["tokens"]]:
            return sum(counts) / len(counts)
        lengths = [min(most, self.tokens(r["response"], turn=False)) for r in self.ift]
        return sum(lengths) / len(lengths)

    def judgement(self, most: int) -> float:
        """Tokens of a written judgement: the seed's rationales, or half of what is allowed."""
        texts = [row["rationale"] for row in self.eft if row.get("rationale")]
        if not texts:
            return most / 2
        return sum(min(most, self.tokens(t, turn=False) + 5) for t in texts) / len(texts)


_UNMEASURED = Speed(0, 0, 0, 1, 0, 0, 1, 0)


def _stand_ins(config: Config) -> SeedData:
    """Rows in the numbers asked for, with texts of a share of seed.max_words: an assumption."""
    sizes = config.seed
    prompt, answer = "x" * (WORD * sizes.max_words // 8), "x" * (WORD * sizes.max_words // 3)
    row = {"prompt": prompt, "response": answer, "prompt_id": "x"}
    ranked = [{**row, "prompt_id": str(i)} for i in range(sizes.eval_prompts) for _ in range(3)]
    return SeedData(
        [row] * sizes.ift, [row] * (3 * sizes.eft_prompts), ranked, [row] * sizes.test_prompts
    )


# --- what each step does -------------------------------------------------------------------------


def work_of(step: Step, config: Config, texts: Texts) -> Work:
    """What a step asks of the model."""
    head, _, last = step.name.rpartition("/")
    if step.same_as:  # a copy
        return Work(basis=texts.basis)
    if last == "adapter":
        of = _dpo if "dpo" in step.settings else _positive if "/" in head else _sft
        of = _reward if head == REWARD_MODEL else of
        found = of(config, texts, head)
    elif last in REFINING:
        found = REFINING[last](config, texts, step)
    elif last == "judgements" and f"{REWARD_MODEL}/adapter" in step.inputs:
        found = _rewarded(config, texts, "iter-" in head)
    elif last == "judgements":
        found = _judging(config, texts, "iter-" in head)
    elif last in ("judgements_before", "anchor_judgements"):
        found = _judging(config, texts, own=True)
    elif last == "judge_draws":
        found = _judging(config, texts, True, config.pairs.judge_draws)
    elif last == "meta_judgements":
        found = _meta_judging(config, texts)
    elif last == "eft_judgements":
        found = _judged(config, texts, texts.eft, config.sft.eft_samples, "sampled")
    elif last == "responses":
        found = _answering(config, texts, step.name)
    elif last == "drift":
        found = _drifting(config, texts, step.name)
    elif last == "ways":
        found = _ways(config, texts)
    elif last == "probes":
        found = _probing(config, texts)
    elif last == "blind_spots":
        found = _checking(config, texts, step.name)
    elif last == "comparisons":
        found = _comparing(config, texts, step)
    elif last == "two_turn":
        found = _two_turn(config, texts, step.name)
    elif last == "benchmarks" and step.settings[0] == "eval.benchmarks":
        found = _tasks(config, texts)
    elif last == "prompts" and "instruct" in step.settings:
        found = _instructing(config, texts)
    elif last in ("candidates", "anchors") and "candidates" in step.settings:
        found = _candidates(config, texts, step.name)
    else:
        return Work(basis=texts.basis)
    return replace(found, basis=texts.basis)


def _sft(config: Config, texts: Texts, model: str) -> Work:
    settings = config.sft
    rows = [(texts.tokens(r["prompt"]), texts.tokens(r["response"], turn=False)) for r in texts.ift]
    if model == "M1":
        label = SCORE_TOKENS if _scores_alone(config) else texts.judgement(10**6)
        wording = texts.tokens(prompts.text(f"judge_{config.judge.rubric}"))
        pairs = [texts.tokens(r["prompt"], r["response"], turn=False) for r in texts.eft]
        rows += [(wording + pair, label) for pair in pairs]
    return _trained(rows, settings, most_rows=len(rows))


def _positive(config: Config, texts: Texts, model: str) -> Work:
    """SFT on the best responses; how many are perfect is not known before, so the share is used."""
    answer = texts.answer(config.candidates.max_tokens)
    prompt = _mean(texts.tokens(r["prompt"]) for r in texts.ift)
    drawn = config.instruct.prompts * config.candidates.n
    count = math.ceil(config.arms.positive_share * drawn)
    return _trained([(prompt, answer)] * count, config.sft, most_rows=drawn)


def _dpo(config: Config, texts: Texts, model: str) -> Work:
    """One pair a prompt at most: two answers, each after the prompt; and one of judgements."""
    folder = f"{model.rpartition('/')[0]}/iter-{int(model.rpartition('M')[2]) - 1}"
    answer = texts.answer(config.candidates.max_tokens, f"{folder}/candidates")
    prompt = _mean(texts.tokens(r["prompt"]) for r in texts.ift)
    count = config.instruct.prompts
    if f"{folder}/pairs" in texts.made:
        count = len(kept(texts.study.read(f"{folder}/pairs")))
    rows = [(2 * prompt, 2 * answer)] * count
    # The longest pair, not the mean one, decides on memory.
    longest = max(texts.tokens(r["prompt"]) for r in texts.ift) + config.candidates.max_tokens
    if config.pairs.judge_draws:
        asked = texts.tokens(prompts.text(f"judge_{config.judge.rubric}")) + prompt + answer
        rows += [(2 * asked, 2 * _judgement(config, texts))] * count
        longest += asked - prompt - answer + config.judge.max_tokens
    found = _trained(rows, config.dpo, most_rows=len(rows))
    length = min(longest, config.dpo.max_tokens)
    return replace(found, length=length, reference=sum(map(sum, rows)))


def _reward(config: Config, texts: Texts, model: str) -> Work:
    """One epoch of every pair of ranked responses, each a text of its own with the prompt."""
    ranks: dict[str, list[Row]] = {}
    for row in texts.eft:
        ranks.setdefault(row["prompt_id"], []).append(row)
    pairs = [(a, b) for rows in ranks.values() for a, b in combinations(rows, 2)]
    lengths = [(0, sum(texts.tokens(r["prompt"], r["response"]) for r in pair)) for pair in pairs]
    found = _trained(lengths, config.sft.model_copy(update={"epochs": 1.0}), most_rows=len(pairs))
    longest = max(texts.tokens(row["prompt"], row["response"]) for row in texts.eft)
    return replace(found, labelled=0, length=min(longest, config.sft.max_tokens))


def _rewarded(config: Config, texts: Texts, own: bool) -> Work:
    """Texts that are read once, one at a time; no rubric stands before them."""
    if not own:
        lengths = [texts.tokens(row["prompt"], row["response"]) for row in texts.eval]
    else:
        answer = texts.answer(config.candidates.max_tokens)
        asked = [texts.tokens(prompt) for prompt in _new_prompts(config, texts)]
        lengths = [length + answer for length in asked for _ in range(config.candidates.n)]
    return _asked("score", 0, lengths, 1, 1, 0, 0)


def _trained(rows: list[tuple[float, float]], settings: Sft | Dpo, most_rows: int) -> Work:
    used = [r for r in rows if sum(r) <= settings.max_tokens * (2 if r[0] else 1)] or rows
    epochs = settings.epochs
    return Work(
        kind="train",
        trained=epochs * sum(map(sum, used)),
        labelled=epochs * sum(answer for _, answer in used),
        most=epochs * most_rows * settings.max_tokens,
        rows=settings.micro_batch,
        length=min(max(map(sum, used)), settings.max_tokens),
    )


def _judging(config: Config, texts: Texts, own: bool, draws: int = 0) -> Work:
    """Of held-out responses, or of a model's own; `draws` written ones of each, if any."""
    if not own:
        return _judged(config, texts, texts.eval, config.eval.judge_samples, config.judge.method)
    if config.judge.source in UNASKED and not draws:
        return Work()
    if compares(config) and not draws:
        answers = 2 * texts.answer(config.candidates.max_tokens)
        both = [texts.tokens(p, turn=False) + answers for p in _new_prompts(config, texts)]
        n = config.candidates.n
        return _compared(texts, [length for length in both for _ in range(n * (n - 1) // 2)])
    answer = _answer(config, texts)
    rows = [{"prompt": p, "response": answer} for p in _new_prompts(config, texts)]
    rows = [row for row in rows for _ in range(config.candidates.n)]
    if draws:
        return _written(config, texts, rows, draws)
    return _judged(config, texts, rows, config.judge.samples, config.judge.method)


def _written(config: Config, texts: Texts, rows: list[Row], draws: int) -> Work:
    """Judgements drawn whatever the method. A model that was taught scores alone writes little."""
    drawn = _judged(config, texts, rows, draws, "sampled")
    if _scores_alone(config):
        written = min(SCORE_TOKENS, config.judge.max_tokens)
        generated = len(rows) * draws * written
        drawn = replace(drawn, generated=generated, length=min(2 * written, drawn.length))
    return drawn


def _scores_alone(config: Config) -> bool:
    """Whether M1 learns to write scores without reasons."""
    return config.sft.eft_targets in ("score", "rank")


def _judgement(config: Config, texts: Texts) -> float:
    """Tokens of a judgement that M_t writes."""
    return SCORE_TOKENS if _scores_alone(config) else texts.judgement(config.judge.max_tokens)


def _answer(config: Config, texts: Texts) -> str:
    """A stand-in as long as a candidate."""
    return "x" * round(texts.answer(config.candidates.max_tokens) * texts.speed.characters)


def _meta_judging(config: Config, texts: Texts) -> Work:
    """Every two different judgements of one response a prompt, in both orders; 32 matches a call.

    Of scores alone about three differ.
    """
    wording = prompts.text("meta_judge") + prompts.text(f"judge_{config.judge.rubric}")
    two, answer = 2 * _judgement(config, texts), _answer(config, texts)
    lengths = [texts.tokens(wording, p, answer) + two for p in _new_prompts(config, texts)]
    draws = config.pairs.judge_draws
    different = min(3, draws) if _scores_alone(config) else draws
    return _asked("score", 0, lengths * different * (different - 1), 64, 1, 0, 0)


def _judged(config: Config, texts: Texts, rows: list[Row], samples: int, method: str) -> Work:
    wording = prompts.text(f"judge_{config.judge.rubric}")
    shared = texts.tokens(wording.partition("$")[0])
    own = texts.tokens(wording.partition("$")[2], turn=False)
    lengths = [own + texts.tokens(r["prompt"], r["response"], turn=False) for r in rows]
    judge = config.judge
    if method == "expected":
        return _asked("score", shared, lengths, judge.chunk, 1, 0, 0)
    written = texts.judgement(judge.max_tokens)
    return _asked("generate", shared, lengths, judge.chunk, samples, written, judge.max_tokens)


def _ways(config: Config, texts: Texts) -> Work:
    """Draws by two rubrics, of which each is also read once; a question; likelihoods by two models.

    Two of its seven calls write.
    """
    draws = config.eval.ways_draws
    first = list(dict.fromkeys(r["prompt_id"] for r in texts.eval))[: config.eval.ways_prompts]
    rows = [row for row in texts.eval if row["prompt_id"] in first]
    drawn = _written(config, texts, rows, draws)
    alone = sum(texts.tokens(row["prompt"], row["response"]) for row in rows)
    asked = texts.tokens(prompts.text("judge_yes_no")) * len(rows) + alone
    read = 4 * drawn.prompt + asked + 2 * alone
    written = {"generated": 2 * drawn.generated, "most": 2 * drawn.most}
    held = drawn.prompt  # of all responses, which are drawn at once
    return replace(drawn, calls=2, prompt=read, held=held, rows=len(rows) * draws, **written)


def _probing(config: Config, texts: Texts) -> Work:
    """An answer to each prompt, dressed up in every way."""
    answers = {row["prompt_id"]: row for row in texts.eval}.values()
    rows = [
        {"prompt": row["prompt"], "response": dress(row["response"])}
        for row in list(answers)[: config.eval.probe_prompts]
        for dress in KINDS.values()
    ]
    return _judged(config, texts, rows, config.eval.judge_samples, config.judge.method)


def _checking(config: Config, texts: Texts, step: str) -> Work:
    """Every item answered, which is one call more, and that answer judged beside two others."""
    asked, most = items(config.eval.blind_spot_items), min(ANSWER_TOKENS, config.eval.max_tokens)
    answer = texts.answer(most, step)
    answered = _asked(
        "generate", 0, [texts.tokens(item["prompt"]) for item in asked], 24, 1, answer, most
    )
    rows = [{"prompt": item["prompt"], "response": "The answer is 12."} for item in asked]
    rows *= len(SHOWN)
    judged = _judged(config, texts, rows, config.eval.judge_samples, config.judge.method)
    return replace(
        answered,
        prompt=answered.prompt + judged.prompt,
        generated=answered.generated + judged.generated,
        most=answered.most + judged.most,
    )


def _answering(config: Config, texts: Texts, step: str) -> Work:
    lengths = [texts.tokens(row["prompt"]) for row in texts.tests]
    most = config.eval.max_tokens
    return _asked("generate", 0, lengths, 32, 1, texts.answer(most, step), most)


def _drifting(config: Config, texts: Texts, step: str) -> Work:
    """Answers are drawn once and read twice, one at a time."""
    lengths = [texts.tokens(row["prompt"]) for row in texts.tests[: config.eval.kl_prompts]]
    most = config.eval.max_tokens
    found = _asked("generate", 0, lengths, 32, 1, texts.answer(most, step), most)
    return replace(found, prompt=found.prompt + 2 * (sum(lengths) + found.generated))


def _comparing(config: Config, texts: Texts, step: Step) -> Work:
    """Both orders of every match; 32 matches a call."""
    if step.name != "referee/comparisons":
        return _matched(config, texts, texts.tests[: config.eval.compared_prompts] * _others(step))
    firsts = list({r["prompt_id"]: r for r in texts.eval}.values())
    return _compared(
        texts, [texts.tokens(r["prompt"], 2 * r["response"], turn=False) for r in firsts]
    )


def _matched(config: Config, texts: Texts, tests: list[Row]) -> Work:
    """Two answers to each of these prompts, compared."""
    answers = 2 * texts.answer(config.eval.max_tokens)
    return _compared(texts, [texts.tokens(r["prompt"], turn=False) + answers for r in tests])


def _compared(texts: Texts, matched: list[float]) -> Work:
    wording = prompts.text("compare")
    shared = texts.tokens(wording.partition("$")[0])
    own = texts.tokens(wording.partition("$")[2], turn=False)
    lengths = [own + length for length in matched for _ in range(2)]
    return _asked("score", shared, lengths, 64, 1, 0, 0)


def _refined(config: Config, texts: Texts, step: Step) -> Work:
    """Every round is taken to happen; a conversation is read anew with each turn."""
    asked, answer, said = _to_refine(config, texts)
    turns = [texts.tokens(prompts.text(name)) for name in ("self_feedback", "self_refine")]
    lengths, talk = [], answer
    for _ in range(ROUNDS):
        for turn, reply in zip(turns, (said, answer), strict=True):
            lengths += [prompt + talk + turn for prompt in asked]
            talk += turn + reply
    most = max(config.eval.max_tokens, config.judge.max_tokens)
    return _asked("generate", 0, lengths, min(32, len(asked)), 1, (said + answer) / 2, most)


def _best_of(config: Config, texts: Texts, step: Step) -> Work:
    """As many tokens as refining took: what is not written is read to judge."""
    spent = _refined(config, texts, step)
    asked, answer, _ = _to_refine(config, texts)
    prompt = _mean(asked)
    rows = [{"prompt": "", "response": "x" * round(answer * texts.speed.characters)}]
    judging = _judged(config, texts, rows, config.judge.samples, config.judge.method)
    each = answer + judging.prompt + judging.generated + prompt
    n = max(1, round((spent.prompt + spent.generated) / len(asked) / each))
    lengths = [length for length in asked for _ in range(n)]
    found = _asked("generate", 0, lengths, 32 * DRAFTS, 1, answer, config.eval.max_tokens)
    read = found.prompt + len(lengths) * (judging.prompt + prompt)
    return replace(found, prompt=read, generated=found.generated + len(lengths) * judging.generated)


def _to_refine(config: Config, texts: Texts) -> tuple[list[float], float, float]:
    """Tokens of the prompts, of an answer, of feedback: half of what is allowed."""
    asked = [texts.tokens(r["prompt"]) for r in texts.tests[: config.eval.refined_prompts]]
    return asked, texts.answer(config.eval.max_tokens), config.judge.max_tokens / 2


def _refined_judged(config: Config, texts: Texts, step: Step) -> Work:
    """All rounds, the best of N, and the answers of other models."""
    tests = texts.tests[: config.eval.refined_prompts]
    response = "x" * round(texts.answer(config.eval.max_tokens) * texts.speed.characters)
    rows = [{"prompt": r["prompt"], "response": response} for r in tests]
    rows *= ROUNDS + 2 + _others(step)
    return _judged(config, texts, rows, config.judge.samples, config.judge.method)


def _refined_compared(config: Config, texts: Texts, step: Step) -> Work:
    """Each contestant against the one answer, the refined one against each other."""
    pairs = 3 + 2 * _others(step)
    tests = texts.tests[: config.eval.refined_prompts] * pairs
    return _matched(config, texts, tests)


def _others(step: Step) -> int:
    return sum(name.endswith("/responses") for name in step.inputs) - 1


REFINING = {
    "refined": _refined,
    "best_of": _best_of,
    "refined_judgements": _refined_judged,
    "refined_comparisons": _refined_compared,
}


def _two_turn(config: Config, texts: Texts, step: str) -> Work:
    """Both turns of every question; the second reads the first again. Scoring is small beside."""
    asked, most = questions(config.eval.two_turn_questions), config.eval.max_tokens
    answer = texts.answer(most, step)
    firsts = [texts.tokens(question["turns"][0]) for question in asked]
    lengths = firsts + [2 * first + answer for first in firsts]
    return _asked("generate", 0, lengths, 32, 1, answer, most)


def _tasks(config: Config, texts: Texts) -> Work:
    """lm-eval's tasks are taken for multiple choice; nobody knows their sizes before."""
    items = (config.eval.benchmark_items or ITEMS_PER_TASK) * len(config.eval.benchmarks)
    lengths = [texts.tokens("x" * ITEM, turn=False)] * (items * OPTIONS)
    return _asked("score", 0, lengths, HARNESS_BATCH, 1, 0, 0)


def _instructing(config: Config, texts: Texts) -> Work:
    """Rounds of few-shot lists until enough prompts pass the filters."""
    settings = config.instruct
    rounds = math.ceil(settings.prompts / (KEPT_PER_LIST * settings.lists_per_round))
    rounds = min(rounds, settings.max_rounds)
    shots = settings.seed_shots + settings.generated_shots
    mean = _mean(texts.tokens(r["prompt"], turn=False) for r in texts.ift)
    shared = texts.tokens(prompts.text("self_instruct"))
    lists = settings.lists_per_round
    written = float(settings.max_tokens)  # a list goes on until it is cut
    found = _asked(
        "generate", shared, [shots * mean] * lists * rounds, lists, 1, written, settings.max_tokens
    )
    return replace(found, most=settings.max_rounds * lists * settings.max_tokens)


def _candidates(config: Config, texts: Texts, step: str) -> Work:
    lengths = [texts.tokens(prompt) for prompt in _new_prompts(config, texts)]
    settings = config.candidates
    n = 1 if config.judge.source == "seed" else settings.n
    written = texts.answer(settings.max_tokens, step)
    return _asked("generate", 0, lengths, settings.chunk, n, written, settings.max_tokens)


def _new_prompts(config: Config, texts: Texts) -> list[str]:
    """New prompts are taken to be as long as IFT's."""
    return [texts.ift[i % len(texts.ift)]["prompt"] for i in range(config.instruct.prompts)]


def _asked(
    kind: str, shared: float, lengths: list[float], chunk: int, n: int, written: float, most: int
) -> Work:
    """Prompts of these lengths after a shared beginning, in calls of `chunk`, n rows each."""
    calls, mean = math.ceil(len(lengths) / chunk), _mean(lengths)
    together = min(chunk, len(lengths))
    return Work(
        kind=kind,
        calls=calls,
        prompt=calls * shared + sum(lengths),
        generated=len(lengths) * n * written,
        most=len(lengths) * n * most,
        rows=together * n,
        length=most,
        held=shared
        + (min(together * mean, memory.PREFILL) if kind == "score" else together * mean),
    )


def _mean(numbers: Iterable[float]) -> float:
    numbers = list(numbers)
    return sum(numbers) / max(len(numbers), 1)
