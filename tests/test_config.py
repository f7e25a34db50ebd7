"""Presets, overrides, and what a wrong setting says."""

from pathlib import Path

import pytest
import yaml

import srkit
from srkit.config import (
    ARMS,
    LATER,
    Config,
    SrkitError,
    build,
    differences,
    fields,
    parse_overrides,
    presets,
    resolve,
)

FILES = sorted(Path(srkit.__file__).parent.joinpath("presets").glob("*.yaml"))
GPU = [name for name in presets() if name.startswith("gpu")]


def flat(config: Config) -> dict:
    dump = config.model_dump(mode="json")
    return {n: dump[n.split(".")[0]][n.split(".")[1]] if "." in n else dump[n] for n in fields()}


def test_every_preset_file_is_listed_smallest_first():
    assert sorted(presets()) == [file.stem for file in FILES]
    sizes = [int(name.removeprefix("gpu-").removesuffix("gb")) for name in GPU]
    assert sizes == sorted(sizes)
    assert presets()[0] == "tiny"
    assert presets()[-1] == "paper"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_preset_resolves_to_what_its_file_says(file):
    config = resolve(file.stem)
    assert config.preset == file.stem
    values = yaml.safe_load(file.read_text())
    for section, body in values.items():
        for name, value in body.items():
            assert flat(config)[f"{section}.{name}"] == value, f"{section}.{name}"
    stored = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert build(stored, {}, "study.yaml") == config


@pytest.mark.parametrize("name", presets())
def test_what_presets_must_hold_to_be_run(name):
    config = resolve(name)
    for part in (config.sft, config.dpo):
        assert part.batch_size % part.micro_batch == 0
        assert part.final_learning_rate_ratio < 1
    assert config.candidates.max_tokens <= config.dpo.max_tokens
    if config.seed.source != "kit":
        assert config.sft.eft_targets != "reference", "Open Assistant has no reference judgements"


def test_effective_batch_is_the_same_on_all_gpus_and_in_the_paper():
    batches = {(resolve(n).sft.batch_size, resolve(n).dpo.batch_size) for n in [*GPU, "paper"]}
    assert batches == {(16, 16)}


def test_the_paper_preset_has_the_numbers_of_the_paper():
    config = resolve("paper")
    assert config.sft.learning_rate == 5.5e-6
    assert config.sft.learning_rate * config.sft.final_learning_rate_ratio == pytest.approx(1.1e-6)
    assert config.dpo.learning_rate * config.dpo.final_learning_rate_ratio == pytest.approx(1e-7)
    assert (config.dpo.learning_rate, config.dpo.beta, config.model.lora_dropout) == (
        1e-6,
        0.1,
        0.1,
    )
    assert (config.candidates.n, config.candidates.temperature, config.candidates.top_p) == (
        4,
        0.7,
        0.9,
    )
    assert (config.judge.samples, config.judge.method, config.judge.rubric) == (
        3,
        "sampled",
        "additive",
    )
    assert (config.instruct.seed_shots, config.instruct.generated_shots) == (6, 2)
    assert (config.instruct.temperature, config.instruct.top_p, config.instruct.writer) == (
        0.6,
        0.9,
        "M0",
    )
    assert (config.seed.ift, config.sft.eft_targets, config.iterations) == (3200, "self", 2)


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("dpo.beta=0.2", "dpo.beta", 0.2),
        ("dpo.learning_rate=5e-7", "dpo.learning_rate", 5e-7),
        ("judge.samples=3 judge.samples=5", "judge.samples", 5),
        ("sft.gradient_checkpointing=false", "sft.gradient_checkpointing", False),
        ("sft.gradient_checkpointing=True", "sft.gradient_checkpointing", True),
        ("iterations=3", "iterations", 3),
        ("model.name='my folder/m'", "model.name", "my folder/m"),
        ("seed.source=a=b", "seed.source", "a=b"),
        ('"model.lora_targets=[q_proj, v_proj]"', "model.lora_targets", ["q_proj", "v_proj"]),
        ("model.lora_targets=[q_proj]", "model.lora_targets", ["q_proj"]),
        ("model.lora_targets=all-linear", "model.lora_targets", "all-linear"),
    ],
)
def test_overrides_take_the_type_of_their_field(override, name, value):
    found = flat(resolve("tiny", override))[name]
    assert found == value
    assert type(found) is type(value)


def test_an_override_changes_nothing_else():
    assert differences(resolve("tiny"), resolve("tiny", "dpo.beta=0.2")) == ["dpo.beta: 0.1 -> 0.2"]
    assert differences(resolve("tiny"), resolve("tiny", "dpo.beta=0.1")) == []


def test_yaml_numbers_without_a_point_are_numbers():
    assert yaml.safe_load("a: 5e-7") == {"a": "5e-7"}, "this is why text must become a number"
    values = yaml.safe_load("dpo: {learning_rate: 5e-7}\nsft: {gradient_checkpointing: 'false'}")
    config = build(values, {}, "a file")
    assert config.dpo.learning_rate == 5e-7
    assert config.sft.gradient_checkpointing is False


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ("dpo.bta=0.2", ["'bta'", "'dpo'", "Did you mean 'beta'?", "learning_rate"]),
        ("judges.samples=3", ["'judges.samples'", "judge.samples"]),
        ("betta=1", ["'betta'", "dpo.beta"]),
        ("dpo=1", ["'dpo'", "Sections and settings"]),
        ("dpo.beta.x=1", ["'beta.x'", "'dpo'"]),
        ("preset=cpu", ["--preset"]),
        ("model.lora_targets=[a, b]", ["'b]'", "section.field=value"]),
        ("dpo.beta", ["'dpo.beta'", "section.field=value"]),
        ("=3", ["'=3'", "section.field=value"]),
        ("dpo.beta='0.2", ["open quote"]),
        ("dpo.beta=nan", ["dpo.beta", "'nan'", "finite"]),
        ("sft.epochs=inf", ["sft.epochs", "finite"]),
        ("dpo.beta=true", ["dpo.beta", "'true'", "number"]),
        ("dpo.beta=", ["dpo.beta", "''", "number"]),
        ("dpo.beta=0", ["dpo.beta", "greater than 0"]),
        ("iterations=0", ["iterations", "'0'", "greater than 0", "M1 to M3"]),
        ("iterations=2.5", ["iterations", "'2.5'", "integer"]),
        ("candidates.n=1", ["candidates.n", "greater than or equal to 2"]),
        ("random_seed=-1", ["random_seed"]),
        ("judge.method=sampeld", ["judge.method", "'sampeld'", "'sampled' or 'expected'"]),
        ("sft.gradient_checkpointing=maybe", ["sft.gradient_checkpointing", "boolean"]),
        ("sft.micro_batch=3", ["sft", "micro_batch must divide batch_size (8)"]),
        ("model.lora_targets=q_proj", ["model.lora_targets = 'q_proj'", "'all-linear'", "list"]),
        ("model.lora_targets=[]", ["model.lora_targets", "at least 1"]),
        ("judge.samples=3 dpo.beta=x eval.top_p=2", ["dpo.beta", "eval.top_p"]),
    ],
)
def test_a_wrong_override_names_field_value_and_what_is_legal(overrides, parts):
    with pytest.raises(SrkitError) as caught:
        resolve("tiny", overrides)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert "literal[" not in message, "pydantic's own paths mean nothing to a user"


def test_unknown_presets_and_arms_name_the_nearest():
    with pytest.raises(SrkitError, match=r"no preset 'gpu-25gb'. Did you mean 'gpu-24gb'"):
        resolve("gpu-25gb")
    with pytest.raises(SrkitError, match=r"no arm 'ift_only'. Did you mean 'ift-only'"):
        resolve("tiny").for_arm("ift_only")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (None, ["settings = None", "not a mapping"]),
        ([1], ["settings = [1]", "not a mapping"]),
        ("tiny", ["not a mapping"]),
        ({"dpo": None}, ["dpo"]),
        ({"dpo": 3}, ["dpo", "3"]),
        ({"dpo": {"beta": True}}, ["dpo.beta = True", "true and false"]),
        ({"iterations": True}, ["iterations = True"]),
        ({"dpo": {"beta": float("nan")}}, ["dpo.beta", "finite"]),
        ({"dpo": {"beta": [0.1]}}, ["dpo.beta = [0.1]"]),
        ({"dpo": {"betta": 0.1}}, ["unknown setting 'dpo.betta'", "Did you mean 'beta'"]),
        ({"judges": {"samples": 1}}, ["unknown setting 'judges'", "judge.samples"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(values, parts):
    with pytest.raises(SrkitError, match=r"x/study.yaml") as caught:
        build(values, {}, "x/study.yaml")
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("values", [None, [1], {"dpo": None}, {"dpo": 3}, {"dpo": [0.1]}])
def test_an_override_of_what_is_no_mapping_is_an_error_of_the_kit(values):
    with pytest.raises(SrkitError, match=r"x/study.yaml.*not a mapping"):
        build(values, {"dpo.beta": "0.2"}, "x/study.yaml")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        resolve("tiny").dpo.beta = 3


def test_parse_overrides_keeps_spaces_and_the_last_word():
    assert parse_overrides("") == {}
    assert parse_overrides("a.b=1 'c.d=x y' a.b=2") == {"a.b": "2", "c.d": "x y"}


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("max_word=3", "no constraint 'max_word'. Did you mean 'max_words'"),
        ("max_words=few", "'max_words=few' has no legal value"),
        ("lowercase=perhaps", "'lowercase=perhaps' has no legal value"),
    ],
)
def test_an_oracle_that_cannot_check_is_refused(constraint, message):
    with pytest.raises(SrkitError, match=message) as caught:
        resolve("tiny", f"arms.oracle=[sentences=1,{constraint}]")
    assert "Bad settings in preset tiny: arms.oracle" in str(caught.value)


def test_an_external_judge_behind_an_endpoint_needs_its_address():
    with pytest.raises(SrkitError, match=r"endpoint.url and endpoint.model"):
        resolve("tiny", "arms.external_judge=endpoint")


@pytest.mark.parametrize("arm", ARMS)
def test_arms_are_their_overrides_and_nothing_else(arm):
    config = resolve("tiny", "judge.samples=3")
    changed = {line.split(":")[0] for line in differences(config, config.for_arm(arm))}
    assert changed == set(ARMS[arm])
    assert config.for_arm(arm).preset == "tiny"


def test_digest_follows_its_sections_and_the_seed_only():
    def digest(*names, overrides=""):
        return resolve("tiny", overrides).digest(*names)

    assert digest("dpo") == resolve("tiny").digest("dpo")
    assert digest("dpo") != digest("dpo", overrides="dpo.beta=0.2")
    assert digest("dpo") == digest("dpo", overrides="judge.samples=7")
    assert digest("dpo") != digest("dpo", overrides="random_seed=1")
    assert digest() != digest(overrides="random_seed=1")
    assert digest("model", "dpo") == digest("dpo", "model")
    assert digest("model") == digest("model", overrides="model.cache=/elsewhere")
    assert digest("model") != digest("model", overrides="model.lora_rank=8")
    assert digest("judge") == digest("judge", overrides="judge.when_unhealthy=stop")
    assert digest("judge") != digest("judge", overrides="judge.samples=9")
    assert digest("judge.rubric") == digest("judge.rubric", overrides="judge.samples=9")
    assert digest("judge.rubric") != digest(
        "judge.rubric", overrides="judge.rubric=multiple_choice"
    )
    assert digest("eval.top_p") != digest("judge.top_p"), "equal values of other fields"


def test_settings_that_came_later_leave_finished_studies_finished():
    """Digests as they were before there were the settings of `LATER`."""
    config = resolve("tiny")
    assert config.digest("pairs") == "67fabc3fcf32870f"
    assert config.digest("dpo") == "22dc3665dea4b684"
    for name in LATER:
        section = name.partition(".")[0]
        value = "M1" if name == "pairs.anchor" else 7 if isinstance(LATER[name], int) else 0.3
        assert resolve("tiny", f"{name}={value}").digest(section) != config.digest(section)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("pairs.rho=0.3 pairs.within=0.5", "rho and within are two rules"),
        ("pairs.rho=0.5", "less than 0.5"),
        ("pairs.within=0", "greater than 0"),
        ("pairs.most=1", "most must be 0 (all) or at least min_pairs (2)"),
        ("dpo.nll=-1", "greater than or equal to 0"),
        ("dpo.label_smoothing=0.5", "less than 0.5"),
        ("dpo.label_smoothing=constancy", "should be 'consistency'"),
        ("dpo.length_penalty=-1", "greater than or equal to 0"),
        ("pairs.judge_draws=1", "one judgement has nothing to be compared with"),
        ("pairs.anchor=M1 pairs.rho=0.3", "would both choose what is rejected"),
        ("pairs.anchor=M1 pairs.within=0.3", "would both choose what is rejected"),
        ("pairs.anchor=M1 judge.source=seed", "needs a judge of its answers"),
        ("dpo.label_smoothing=consistency judge.source=oracle", "set judge.source=model"),
        ("update=sft dpo.nll=1", "without pairs, so dpo.nll would do nothing"),
        ("update=sft pairs.within=0.5 dpo.nll=1", "pairs.within, dpo.nll would do nothing"),
    ],
)
def test_rules_for_pairs_that_cannot_be_are_refused(overrides, says):
    with pytest.raises(SrkitError) as caught:
        resolve("tiny", overrides)
    assert says in str(caught.value)


def test_an_arm_without_pairs_refuses_a_rule_for_them():
    with pytest.raises(SrkitError, match=r"in arm positive-only: .*dpo.nll would do nothing"):
        resolve("tiny", "dpo.nll=1").for_arm("positive-only")
    with pytest.raises(SrkitError, match=r"in arm cream: .*judge.source=random asks neither"):
        resolve("tiny", "judge.source=random").for_arm("cream")
