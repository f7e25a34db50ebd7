"""Benchmarks: what is counted, that contestants do the same work, and what the tables say."""

import json
import math
from itertools import pairwise

import pytest
import torch

from srkit import bench
from srkit.bench import OURS, Contestant, Size, Work
from srkit.chat import encode_prompt, stop_token_ids
from srkit.config import Model, SrkitError, resolve

SMALL = Size(prompts=4, samples=2, tokens=6, batch=2, single=1, sweep=(2, 4))


@pytest.fixture(scope="module")
def policy():
    return bench.endless(Model(name="tiny", device="cpu"))


@pytest.fixture(scope="module")
def record():
    return bench.measure_generation("judge", "tiny", rounds=2, size=SMALL)


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_every_contestant_writes_every_token(policy):
    prompts = [_chat("Hi"), _chat("Why do ships made of steel float on water?")]
    for one in bench.contestants(policy, SMALL).values():
        assert one.write(prompts, 3, 70) == 2 * 3 * 70


def test_the_model_can_draw_anything_but_an_end(policy):
    ids = torch.tensor([encode_prompt(policy.tokenizer, _chat("Hi"))])
    logits = policy.model(ids).logits[0, -1]
    never = (logits == -math.inf).nonzero()[:, 0].tolist()
    assert set(never) == stop_token_ids(policy.tokenizer, policy.model)


def test_the_first_prompts_have_about_the_lengths_of_all(policy):
    prompts = bench.workload("judge", policy, 32)
    lengths = [len(encode_prompt(policy.tokenizer, prompt)) for prompt in prompts]
    assert len({json.dumps(prompt) for prompt in prompts}) == 32
    mean = sum(lengths) / 32
    assert abs(sum(lengths[:4]) / 4 - mean) < 0.06 * mean
    assert abs(sum(lengths[:8]) / 8 - mean) < 0.03 * mean
    assert min(lengths) < 0.93 * mean  # so that the first few could be of other lengths


def test_least_work_counts_a_shared_prefix_once(policy):
    prompts = [_chat("Say one"), _chat("Say two words")]
    a, b = (encode_prompt(policy.tokenizer, prompt) for prompt in prompts)
    shared = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    assert shared > 2
    assert Work.of(policy, prompts, 3) == Work(len(a) + len(b), len(a) + len(b) - shared, 6)


def test_weights_of_the_linear_layers(policy):
    hidden, layers = 64, 2
    attention = hidden * hidden * 2 + hidden * (hidden // 2) * 2  # q and o; k and v, half the heads
    vocabulary = policy.model.config.vocab_size
    output = hidden * vocabulary
    assert bench.weights(policy.model) == (
        layers * (attention + 3 * hidden * 2 * hidden) + output,
        output,
    )


def test_rates_are_scaled_from_the_rows_that_were_written():
    size, work = Size(8, 4, 10, batch=2, single=1), Work(800, 400, 32)
    limits = {"written_tokens": 100.0, "read_tokens": 200.0}
    one = Contestant(None, 2, 4)  # 8 of 32 rows, 80 of 320 tokens
    row = bench._row("x", one, size, work, 80, {("x", 10): 5.0, ("x", 1): 1.0}, limits)
    assert (row["rows"], row["of_rows"], row["tokens_per_row"]) == (8, 32, 10)
    assert row["seconds"] == 20
    assert row["output_tokens"] == 16
    assert row["prefill_tokens"] == 200
    assert row["decode_tokens"] == (320 - 32) / 16
    assert row["share_of_limit"] == (400 / 200 + 320 / 100) / 20
    assert row["prefill_share_of_limit"] == 400 / 4 / 200


def test_a_record_says_what_was_measured(record):
    names = [row["name"] for row in record["rows"]]
    assert names == ["generate, one at a time", "generate, batched", OURS]
    assert [row["rows"] for row in record["rows"]] == [1, 4, 8]
    assert {row["tokens_per_row"] for row in record["rows"]} == {6}
    own = bench.by_name(record["rows"], OURS)
    assert own["srkit_is_faster"] == 1
    for row in record["rows"]:
        assert len(row["seconds_of_rounds"]) == 2
        assert row["output_tokens"] == pytest.approx(48 / row["seconds"], rel=2e-3)
        ratio = own["output_tokens"] / row["output_tokens"]
        assert row["srkit_is_faster"] == pytest.approx(ratio, rel=2e-3)
        assert 0 < row["share_of_limit"] < 1
    assert [point["rows"] for point in record["sweep"]] == [2, 4]
    assert record["expected"]["responses"] == pytest.approx(4 / record["expected"]["seconds"], 2e-3)
    assert json.loads(json.dumps(record)) == record


def test_a_table_holds_the_latest_run_of_each_kind(record, tmp_path):
    bench.append(record | {"date": "2001-01-01"}, tmp_path)
    bench.append(record | {"date": "2002-02-02"}, tmp_path)
    bench.append(record | {"date": "2003-03-03", "kind": "generate"}, tmp_path)
    text = bench.table(tmp_path)
    assert "2001-01-01" not in text
    assert text.index("**Judging**: 4 prompts") < text.index("2002-02-02")
    assert text.index("2002-02-02") < text.index("**Candidates**") < text.index("2003-03-03")
    own = bench.by_name(record["rows"], OURS)
    assert f"| {OURS} | 8 of 8 | {own['output_tokens']:.0f} |" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert columns == {7}


def test_no_benchmark_yet(tmp_path):
    with pytest.raises(SrkitError, match="srkit bench judge"):
        bench.table(tmp_path)


def test_put_replaces_what_stands_between_the_marks(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("a\n<!-- bench -->\nold\n<!-- /bench -->\nb\n")
    bench.put("new", file)
    bench.put("newer", file)
    assert file.read_text() == "a\n<!-- bench -->\nnewer\n<!-- /bench -->\nb\n"
    file.write_text("no marks")
    with pytest.raises(SrkitError, match="bench"):
        bench.put("new", file)
    assert file.read_text() == "no marks"


def test_trl_and_srkit_train_the_same():
    from srkit import bench_train

    record = bench_train.measure_training("tiny", rounds=1, pairs=6)
    theirs, kept, own = record["rows"]
    assert record["batch"] == 3
    assert theirs["tokens_trained"] == kept["tokens_trained"] == own["tokens_trained"] > 500
    assert theirs["losses"][0] == pytest.approx(math.log(2), abs=1e-4)
    assert abs(theirs["losses"][1] - math.log(2)) > 1e-3  # the first step moved it
    for other in (kept, own):
        assert other["losses"] == pytest.approx(theirs["losses"], abs=1e-4)
    assert record["largest_loss_difference"] < 1e-4
    assert own["tokens"] == pytest.approx(own["tokens_trained"] / own["seconds"], rel=2e-3)
    assert "| TRL, defaults |" in bench.render(record)


def test_settings_keep_the_presets_micro_batch_where_it_divides():
    from srkit.bench_train import _settings

    dpo = resolve("cpu").dpo
    assert dpo.micro_batch == 4
    sizes = [(_settings(dpo, batch).micro_batch, batch) for batch in (8, 6, 3)]
    assert sizes == [(4, 8), (2, 6), (1, 3)]


def test_lengths_differ_in_the_order_of_van_der_corput():
    order = sorted(range(8), key=bench._bits_reversed)
    assert order == [0, 4, 2, 6, 1, 5, 3, 7]
    assert all(abs(a - b) > 1 for a, b in pairwise(order))
