"""What is forecast, against hand-worked numbers and against real models, caches, files."""

import json
import math
from dataclasses import asdict, replace

import pytest

from srkit import forecast as module
from srkit import memory, speed, workload
from srkit.config import ARMS, Model, Sft, SrkitError, resolve
from srkit.forecast import Machine
from srkit.memory import SHAPES, Shape
from srkit.speed import Speed
from srkit.study import Study

SMALL = Shape(8, 2, 2, 1, 4, 16, 100, True)
TINY = Model(name="tiny", lora_rank=4)
LAPTOP = Machine("cpu", 16 * 10**9, 12 * 10**9, 10**11)
RATES = Speed(10, 1, 0.5, 100, 0.01, 0.001, 50, 5)


# --- arithmetic, by hand -------------------------------------------------------------------------


def test_parameters_of_a_small_shape_by_hand():
    # a layer: q 8x8, k and v 8x4, o 8x8, gate, up and down 8x16
    layer = 64 + 32 + 32 + 64 + 3 * 128
    assert SMALL.linear_parameters == 2 * layer == 1152
    assert SMALL.parameters == 1152 + 800
    assert replace(SMALL, tied=False).parameters == 1152 + 1600


def test_adapter_parameters_by_hand():
    # rank 4 x (in + out): q and o 16 each, k and v 12 each, three maps of 24
    assert SMALL.adapter_parameters(TINY) == 2 * 4 * (16 + 12 + 12 + 16 + 3 * 24) == 1024
    two = TINY.model_copy(update={"lora_targets": ["q_proj", "v_proj"]})
    assert SMALL.adapter_parameters(two) == 2 * 4 * (16 + 12)


def test_weights_by_hand():
    assert memory.weights(SMALL, 4) == 1952 * 4
    # QLoRA's 4.127 bits for the linear layers, bfloat16 for the embedding
    assert memory.weights(SMALL, 2, "nf4") == pytest.approx(1152 * 4.127 / 8 + 800 * 2, rel=1e-4)


def test_kv_cache_by_hand():
    assert memory.kv_cache(SMALL, 2, 10) == 2 * 2 * 1 * 4 * 2 * 10


def test_layer_activations_by_hand():
    by_hand = 4 * 8 + (4 * 8 + 2) + 4 * 16 + 7 * 4 + 2 + 10
    assert memory.layer_activations(SMALL, 4, 10) == by_hand == 170


def test_training_memory_by_hand():
    settings = Sft(learning_rate=1e-3, final_learning_rate_ratio=0.1, micro_batch=2)
    need = memory.training(SMALL, TINY, settings, "cpu", "float32", 10, 3)
    assert need.activations == memory.HEAP["cpu"] * 170 * 2 * 4 * 20
    assert need.logits == 3 * 4 * 100 * 2 * 3
    assert (need.adapter, need.gradients, need.optimizer) == (4096, 4096, 8192)
    on_gpu = memory.training(SMALL, TINY, settings, "cuda", "bfloat16", 10, 3)
    assert on_gpu.logits == 6 * 100 * 2 + 4 * 8 * 6, "a tile, and the gradient below it"
    saved = settings.model_copy(update={"gradient_checkpointing": True})
    less = memory.training(SMALL, TINY, saved, "cpu", "float32", 10, 3)
    assert less.activations == memory.HEAP["cpu"] * (8 * 2 + 170) * 4 * 20


def test_dpo_trains_a_prompt_and_two_answers_a_pair_and_holds_a_second_adapter():
    config = resolve("cpu")
    sft, dpo = (
        memory.training(SHAPES["smollm2-135m"], config.model, s, "cpu", "float32", 200, 50)
        for s in (config.sft, config.dpo)
    )
    assert dpo.activations == sft.activations * 250 / 200
    assert sft.logits == 3 * 4 * 49152 * 4 * 50
    assert dpo.logits == 3 * 4 * memory.HEAD, "in parts"
    assert dpo.adapter == 2 * sft.adapter
    assert dpo.optimizer == sft.optimizer


def test_generation_takes_the_room_there_is():
    shape, model = SHAPES["smollm2-135m"], Model()
    free = memory.generating(shape, model, "cpu", "float32", 64, 2000, 80, math.inf)
    short = memory.generating(shape, model, "cpu", "float32", 64, 2000, 80, 1.6e9)
    assert free.copies == (shape.linear_parameters + shape.head) * 4
    assert short.copies == 0
    assert short.kv_cache < free.kv_cache
    assert short.low == free.low


# --- against the real thing ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model trained for a step: the folder of its adapter, its base, its settings."""
    from srkit.prompts import user
    from srkit.train import Example, train_sft

    folder = tmp_path_factory.mktemp("adapter")
    settings = Sft(
        epochs=1, learning_rate=1e-2, final_learning_rate_ratio=0.1, batch_size=2, micro_batch=2
    )
    train_sft(TINY, [Example(user("Hi"), "Hello there.")] * 2, settings, folder, 0)
    return folder


def test_tiny_parameters_and_bytes_are_the_models():
    from srkit.models import load_base

    base, _ = load_base(TINY)
    shape = Shape.of(base.config)
    assert shape == SHAPES["tiny"]
    vectors = sum(p.numel() for p in base.parameters() if p.dim() == 1)
    assert shape.parameters == sum(p.numel() for p in base.parameters()) - vectors
    held = sum(p.numel() * p.element_size() for p in base.parameters())
    assert memory.weights(shape, 4) == held - 4 * vectors
    assert vectors < 0.005 * shape.parameters


@pytest.mark.parametrize("name", [n for n in SHAPES if "/" in n and "SmolLM3" not in n])
def test_the_table_makes_models_of_the_published_size(name):
    published = {
        "HuggingFaceTB/SmolLM2-1.7B": 1.711,
        "Qwen/Qwen3-4B-Base": 4.022,
        "Qwen/Qwen3-8B-Base": 8.191,
        "Qwen/Qwen3-14B-Base": 14.768,
        "meta-llama/Llama-2-70b-hf": 68.977,
    }
    assert SHAPES[name].parameters / 1e9 == pytest.approx(published[name], abs=0.002)


def test_kv_cache_is_the_size_of_a_real_one():
    import torch

    from srkit.models import load_base

    base, _ = load_base(TINY)
    with torch.no_grad():
        cache = base(input_ids=torch.randint(9, (3, 7)), use_cache=True).past_key_values
    held = sum(
        t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)
    )
    assert memory.kv_cache(SHAPES["tiny"], 4, 3 * 7) == held


def test_adapter_bytes_are_the_files(trained):
    size = (trained / "adapter_model.safetensors").stat().st_size
    header = int.from_bytes((trained / "adapter_model.safetensors").read_bytes()[:8], "little")
    assert memory.disk(SHAPES["tiny"], TINY) == size - header - 8


def test_optimizer_bytes_are_a_real_ones(trained):
    import torch

    from srkit.models import load_policy

    policy = load_policy(TINY, trained)
    learned = [p for n, p in policy.model.named_parameters() if "lora_" in n]
    for parameter in learned:
        parameter.requires_grad_(True).grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(learned, lr=1e-4)
    optimizer.step()
    moments = [v for s in optimizer.state.values() for v in s.values() if v.dim()]
    settings = resolve("tiny").sft
    need = memory.training(SHAPES["tiny"], TINY, settings, "cpu", "float32", 8, 2)
    assert need.optimizer == sum(v.numel() * v.element_size() for v in moments)
    assert need.gradients == sum(p.grad.numel() * 4 for p in learned)


def test_activations_are_what_autograd_saves(trained):
    import torch

    from srkit.models import load_policy

    model = load_policy(TINY, trained).model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    saved, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    ids, mask = torch.randint(9, 300, (4, 200)), torch.ones(4, 200, dtype=torch.long)
    mask[0, -5:] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(input_ids=ids, attention_mask=mask, logits_to_keep=1)
    assert out.logits.requires_grad
    held = sum(storage.nbytes() for storage in saved.values())
    by_hand = 2 * memory.layer_activations(SHAPES["tiny"], 4, 200) * 4 * 800
    assert by_hand == pytest.approx(held, rel=0.05)
    model.eval()


def test_the_engines_limits_are_the_forecasts():
    from srkit import generate, logps

    assert memory.HEAD == logps.LOGITS
    assert memory.ROWS == generate.ROW_LIMIT
    assert memory.ROWS_EACH == generate.ROWS_EACH
    assert memory.PREFILL == generate.PREFILL_TOKENS
    assert memory.CACHE_SHARE == generate.MEMORY_SHARE


# --- tokens and seconds --------------------------------------------------------------------------


def test_every_step_of_every_preset_has_a_forecast():
    for preset in ("tiny", "cpu", "gpu-8gb", "paper"):
        config = resolve(preset)
        found = module.forecast(config, here=LAPTOP, speed=RATES)
        assert [f.step for f in found] == [s.name for s in module.plan(config)]
        assert all(f.seconds >= 0 and f.memory.peak > 0 for f in found)
        assert all(f.work.generated <= f.work.most for f in found if f.work.kind == "generate")


def test_tokens_of_the_cpu_preset_by_hand():
    config = resolve("cpu")
    works = {f.step: f.work for f in module.forecast(config, here=LAPTOP, speed=RATES)}
    texts = workload.Texts(config, RATES)
    answers = [min(80, len(r["response"]) / RATES.characters) for r in texts.ift]
    responses = works["M1/responses"]
    assert (responses.calls, responses.rows) == (3, 32)  # 80 prompts, 32 a call
    assert responses.generated == pytest.approx(80 * sum(answers) / len(answers))
    assert responses.most == 80 * 80
    assert works["self-rewarding/iter-1/candidates"].most == 40 * 4 * 80
    assert works["baseline/judgements"].generated == 0  # scored, not written
    assert works["baseline/judgements"].basis == "seed texts"
    sft = works["baseline/adapter"]
    assert sft.labelled == pytest.approx(
        sum(len(r["response"]) / RATES.characters for r in texts.ift)
    )
    assert sft.trained == pytest.approx(
        sft.labelled + sum(30 + len(r["prompt"]) / RATES.characters for r in texts.ift)
    )


def test_measured_tables_take_the_place_of_assumptions(study, make):
    for name in ("ift", "eft", "eft_eval", "test_prompts"):
        row = {"id": "a", "prompt_id": "a", "prompt": "p" * 43, "response": "r" * 86}
        make(study, f"seed/{name}", [row] * 3)
    make(study, "baseline/adapter")
    make(study, "baseline/responses", [{"id": "a", "tokens": 7}, {"id": "b", "tokens": 9}])
    texts = workload.Texts(study.config, RATES, study)
    assert texts.basis == "tables"
    assert texts.answer(16) == 16  # 86 characters are 20 tokens, cut
    assert texts.answer(16, "baseline/responses") == 8
    assert workload.Texts(resolve("gpu-8gb"), RATES).basis == "settings"


def test_seconds_by_hand():
    train = workload.Work("train", trained=1000, labelled=100, reference=300)
    shape = replace(SMALL, vocab=144)  # its output layer has as many parameters as the rest
    assert module.seconds_of(train, shape, RATES) == pytest.approx(5 + (1100 + 100) / 50)
    score = workload.Work("score", calls=2, prompt=300)
    assert module.seconds_of(score, shape, RATES) == pytest.approx(2 * 0.5 + 300 / 100)
    write = workload.Work("generate", calls=2, prompt=300, generated=500, rows=8, length=40)
    assert module.seconds_of(write, shape, RATES) == pytest.approx(4 + 80 * 0.01 + 500 * 0.001)


def test_what_arms_share_or_a_program_judges_costs_nothing():
    config = resolve("cpu")
    found = {f.step: f for f in module.forecast(config, tuple(ARMS), here=LAPTOP, speed=RATES)}
    free = ["oracle/iter-1/prompts", "oracle/iter-1/candidates", "oracle/iter-2/prompts"]
    free += [f"{arm}/iter-1/judgements" for arm in ("oracle", "human", "random-judge", "nll")]
    for name in [*free, "human/iter-1/prompts", "human/iter-1/candidates"]:
        assert (found[name].work.kind, found[name].seconds) == ("none", 0), name
    assert found["oracle/iter-2/candidates"].work.generated > 0
    assert found["external-judge/iter-1/judgements"].work.kind == "score"
    pairwise = resolve("cpu", "arms.external_method=pairwise")
    arm = ("external-judge",)
    compared = {f.step: f for f in module.forecast(pairwise, arm, here=LAPTOP, speed=RATES)}
    # 6 pairs of 4 candidates in both orders, to 40 prompts, 64 a call
    assert compared["external-judge/iter-1/judgements"].work.calls == math.ceil(40 * 6 * 2 / 64)
    frozen = found["reward-model/iter-1/judgements"].work
    assert (frozen.kind, frozen.calls) == ("score", 160), "texts are read one at a time"
    assert 0 < frozen.prompt < found["external-judge/iter-1/judgements"].work.prompt, "no rubric"
    assert found["reward-model/adapter"].work.kind == "train"
    positive, paper = (found[f"{a}/M2/adapter"] for a in ("positive-only", "self-rewarding"))
    assert positive.work.reference == 0 < paper.work.reference, "SFT has no reference"
    # a quarter of 40 x 4 answers once, against both sides of 40 pairs twice
    assert positive.work.labelled == pytest.approx(paper.work.labelled / 4)


def test_what_the_arms_of_later_methods_ask_beside_the_papers():
    config = resolve("cpu")
    found = {f.step: f.work for f in module.forecast(config, tuple(ARMS), here=LAPTOP, speed=RATES)}
    paper = {n: found[f"self-rewarding/iter-1/{n}"] for n in ("candidates", "judgements")}
    assert found["anchored/iter-2/anchors"] == paper["candidates"]
    assert found["anchored/iter-2/anchor_judgements"] == paper["judgements"]
    assert found["cream/iter-1/judgements_before"] == paper["judgements"]
    assert found["spin/iter-1/candidates"].generated == paper["candidates"].generated / 4
    drawn, compared = (found[f"meta-judge/iter-1/{n}"] for n in ("judge_draws", "meta_judgements"))
    assert drawn.generated == 40 * 4 * 5 * workload.SCORE_TOKENS
    assert (compared.kind, compared.calls) == ("score", 4), "40 x 3 x 2 comparisons, 64 a call"
    assert found["meta-judge/iter-1/judge_pairs"].kind == "none"
    taught, plain = (found[f"{arm}/M2/adapter"] for arm in ("meta-judge", "nll"))
    assert taught.trained > 2 * plain.trained, "pairs of judgements have long prompts"
    assert taught.length > plain.length


def test_refining_reads_a_conversation_anew_with_each_turn():
    config = resolve("cpu", "eval.refined_of=[M1] eval.refined_prompts=10")
    steps = {s.name: s for s in module.plan(config)}
    texts = workload.Texts(config, RATES)

    def work(name):
        return workload.work_of(steps[f"M1/{name}"], config, texts)

    answer, said = texts.answer(80), 28
    refined, best = work("refined"), work("best_of")
    assert refined.generated == pytest.approx(10 * 4 * (answer + said))
    assert refined.prompt > 8 * 10 * answer
    spent = (refined.prompt + refined.generated) / 10
    assert best.prompt + best.generated == pytest.approx(10 * spent, rel=0.2), "the same tokens"
    one = workload.work_of(steps["M1/responses"], config, texts).prompt / len(texts.tests)
    assert work("refined_judgements").prompt > 10 * 7 * one, "five rounds, a best, a rival"
    assert work("refined_comparisons").calls == math.ceil(5 * 10 * 2 / 64)


def test_a_model_is_opened_once_for_steps_in_a_row():
    steps = {s.name: s for s in module.plan(resolve("cpu"))}

    def seconds(name, notebook, model):
        return module.opening_seconds(RATES, steps[name], "generate", (notebook, model))

    assert seconds("M1/responses", "02_seed_sft", "") == 10 + 1
    assert seconds("M1/responses", "03_judge", "baseline/adapter") == 1
    assert seconds("M1/responses", "03_judge", "M1/adapter") == 0
    assert seconds("M1/comparisons", "03_judge", "M1/adapter") == 0  # M1 is the referee
    writer = "self-rewarding/iter-1/prompts"
    assert seconds(writer, "03_judge", "M1/adapter") == 10  # M0 has no adapter


def test_two_runs_give_the_prices_of_a_pass_and_of_a_row():
    # 10 passes at 0.2 s, and 0.01 s for each of 40 and of 240 tokens
    assert speed._prices(10, (2.4, 40), (4.4, 240)) == (pytest.approx(0.2), pytest.approx(0.01))


def test_characters_per_token_and_the_templates_tokens_are_fitted():
    conversations = [[{"role": "user", "content": "x" * n}] for n in (40, 80, 400)]
    encoded = [[0] * (25 + n // 4) for n in (40, 80, 400)]
    assert speed._tokens(encoded, conversations) == (pytest.approx(4), pytest.approx(25))


def test_without_a_measurement_there_are_no_seconds(tmp_path):
    config = resolve("cpu", f"model.cache={tmp_path}")
    found = module.forecast(config, here=LAPTOP)
    assert {f.seconds for f in found} == {None}
    assert module.total(found)["seconds"] is None


def test_a_model_that_is_not_here_is_named():
    with pytest.raises(SrkitError, match=r"config.json of nobody/nothing is not on this machine"):
        module.shape_of(Model(name="nobody/nothing"))


def test_shape_from_a_folder(tmp_path):
    from srkit.models import load_base

    load_base(TINY)[0].save_pretrained(tmp_path / "model")
    assert module.shape_of(Model(name=str(tmp_path / "model"))) == SHAPES["tiny"]


# --- what does not fit ---------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_with_numbers_and_a_preset_that_fits():
    found = module.forecast(resolve("paper"), here=LAPTOP, speed=RATES)
    message = module.too_much(found, LAPTOP)
    assert "needs at least 4" in message
    assert "this machine has 16.0 GB (cpu)" in message
    assert message.endswith("Preset cpu fits.")


def test_what_might_fit_is_only_warned_of():
    found = module.forecast(resolve("cpu"), here=LAPTOP, speed=RATES)
    busy = replace(LAPTOP, total=4 * 10**9, free=10**9)
    assert module.too_much(found, busy) == ""
    assert "1.0 GB are free" in module.tight(found, busy)
    assert module.tight(found, LAPTOP) == ""


def test_presets_fit_the_cards_that_they_are_named_after():
    for size in (8, 12, 16, 24, 80):
        card = Machine("cuda", size * 10**9, int(0.95 * size * 10**9), 10**12)
        found = module.forecast(resolve(f"gpu-{size}gb"), here=card, speed=RATES)
        assert module.too_much(found, card) == ""
        assert module.tight(found, card) == ""
        assert max(f.memory.peak for f in found) < size * 10**9


def test_a_full_disk_is_refused():
    found = module.forecast(resolve("cpu"), here=LAPTOP, speed=RATES)
    refusal = module.too_much(found, replace(LAPTOP, disk=10**6))
    assert "MB of disk, 1.0 MB are free. Free some space there" in refusal


# --- in the study and on the command line --------------------------------------------------------


def test_the_manifest_keeps_the_forecast_beside_what_was_measured(study, make, caplog):
    found = module.forecast(study.config, here=LAPTOP, speed=RATES)
    study.keep_forecast({f.step: f.record() for f in found})
    with caplog.at_level("INFO", logger="srkit"):
        make(study, "seed/ift")
        make(study, "baseline/adapter")
    expected = next(f for f in found if f.step == "baseline/adapter").record()
    assert study.records()["baseline/adapter"]["forecast"] == expected
    assert set(expected) == {"seconds", "peak_memory_mb", "tokens"}
    line = f"baseline/adapter: about {expected['seconds']:.0f} s, "
    assert any(message.startswith(line) for message in caplog.messages)


def test_a_forecast_for_other_settings_does_not_count(study, make):
    found = module.forecast(study.config, here=LAPTOP, speed=RATES)
    study.keep_forecast({f.step: f.record() for f in found})
    changed = Study.open(study.path, overrides="seed.ift=12", change=True)
    make(changed, "seed/ift")
    assert "forecast" not in changed.records()["seed/ift"]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `srkit forecast ...`, or another command, here: (exit code, output, errors)."""
    from srkit import cli

    def command(*words, name="forecast"):
        monkeypatch.setattr("sys.argv", ["srkit", name, *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    monkeypatch.setattr(module, "machine", lambda *_: LAPTOP)
    monkeypatch.setattr(speed, "cached", lambda _: RATES)
    monkeypatch.setattr(module, "cached", lambda _: RATES)
    return command


def test_forecast_of_a_preset(command):
    code, out, _ = command("--preset", "cpu")
    assert code == 0
    assert out.startswith("smollm2-135m: 134 M parameters, adapter 4.9 M; float32 weights")
    assert "In all: about " in out


def test_forecast_as_json(command):
    code, out, _ = command("--preset", "tiny", "--set", "candidates.n=2", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["device"] == "cpu"
    step = next(s for s in found["steps"] if s["step"].endswith("candidates"))
    assert step["rows"] == 8  # 4 prompts a chunk, 2 each
    assert set(step["bytes"]) == set(asdict(memory.Memory()))


def test_forecast_of_a_study_is_kept_in_it(command, study):
    assert command("--study", study.path)[0] == 0
    step = study.step("M1/adapter")
    assert study.expected(step)["seconds"] > 0


def test_forecast_refuses_with_exit_code_1(command):
    code, out, errors = command("--preset", "paper")
    assert code == 1
    assert "Llama-2-70b" in out
    assert "This cannot run here: " in errors
    assert "Preset cpu fits." in errors


def test_forecast_wants_a_preset_or_a_study(command, study):
    assert "Give --preset" in command()[2]
    assert "Give --preset" in command("--preset", "tiny", "--study", study.path)[2]


def test_run_says_what_each_notebook_takes_and_refuses_what_cannot_fit(
    command, monkeypatch, tmp_path
):
    def execute(source, target, parameters):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("{}")

    monkeypatch.setattr("srkit.cli._execute", execute)
    code, out, _ = command("--preset", "tiny", "--study", tmp_path / "a", name="run")
    assert code == 0
    assert "02_seed_sft: running (not run), about " in out
    assert "03_judge: running (not run), about " in out
    code, out, errors = command("--preset", "paper", "--study", tmp_path / "b", name="run")
    assert code == 1
    assert "running" not in out
    assert "cannot run here: self-rewarding/M2/adapter needs at least 48.5 GB" in errors


def test_status_shows_forecast_beside_measured(command, study, make):
    command("--study", study.path)
    make(study, "seed/ift")
    out = command(study.path, name="status")[1].splitlines()
    assert any(line.startswith("seed/ift ") and "s (0 s forecast)" in line for line in out)
    expected = study.expected(study.step("M1/adapter"))["seconds"]
    line = next(line for line in out if line.startswith("M1/adapter "))
    assert f" ({expected:.0f} s forecast)" in line
