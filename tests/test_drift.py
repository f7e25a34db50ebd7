"""KL to the start: against explicit softmax, against enumeration, and of a model to itself."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from srkit import drift, stats
from srkit.chat import encode_prompt, stop_token_ids
from srkit.config import Model
from srkit.engine import Completion, Sampling
from srkit.generate import sample
from srkit.models import Policy, load_base
from srkit.prompts import user
from srkit.study import Study
from srkit.tiny import tiny_model, tiny_tokenizer

PROMPT = user("Name a planet.")


def policy(noise: float = 0.0) -> Policy:
    """The tiny model, with noise on its output layer."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer).eval()
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight += noise * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return Policy(model, tokenizer, "tiny")


@torch.no_grad()
def next_logps(policy: Policy, ids: list[int]) -> torch.Tensor:
    return policy.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


def test_log_probabilities_are_those_of_one_softmax_a_token_and_of_any_end():
    one = policy(0.3)
    answer = Completion("", 3, False, (70, 71, 72))
    ids = encode_prompt(one.tokenizer, PROMPT)
    by_hand = [next_logps(one, [*ids, *answer.ids[:i]])[t] for i, t in enumerate(answer.ids)]
    stops = list(stop_token_ids(one.tokenizer, one.model))
    by_hand.append(next_logps(one, [*ids, *answer.ids])[stops].exp().sum().log())
    found = drift.answer_logps(one, PROMPT, answer)
    assert found.tolist() == pytest.approx(torch.stack(by_hand).tolist(), abs=1e-5)
    cut = drift.answer_logps(one, PROMPT, Completion("", 3, True, answer.ids))
    assert cut.tolist() == found[:3].tolist(), "what was cut has no end"
    nothing = drift.answer_logps(one, PROMPT, Completion("", 0, False, ()))
    assert nothing.tolist() == pytest.approx(
        [float(next_logps(one, ids)[stops].exp().sum().log())], abs=1e-5
    )


def test_drawn_ids_are_the_tokens_that_the_text_was_made_of():
    one = policy()
    ((answer,),) = sample(one, [PROMPT], 1, Sampling(9, 1.0, 1.0), [[3]])
    assert len(answer.ids) == answer.tokens
    assert one.tokenizer.decode(answer.ids, skip_special_tokens=True) == answer.text


def test_both_estimates_hit_the_enumerated_kl():
    """One token: the KL is a sum over the vocabulary, in which all stop tokens are one."""
    own, start = policy(0.02), policy(0.0)
    ids = encode_prompt(own.tokenizer, PROMPT)
    stops = sorted(stop_token_ids(own.tokenizer, own.model))
    others = [i for i in range(len(next_logps(own, ids))) if i not in stops]
    p, q = (
        torch.cat([logps[others], logps[stops].logsumexp(0)[None]])
        for logps in (next_logps(own, ids), next_logps(start, ids))
    )
    exact = float((p.exp() * (p - q)).sum())
    assert exact > 0.01
    n = 2000
    (answers,) = sample(own, [PROMPT], n, Sampling(1, 1.0, 1.0), [list(range(n))])
    distinct = {(a.ids, a.truncated): a for a in answers}
    sums = {
        key: drift._sums(*(drift.answer_logps(m, PROMPT, a) for m in (own, start)))
        for key, a in distinct.items()
    }
    rows = pd.DataFrame([sums[a.ids, a.truncated] for a in answers])
    plain = rows["logp_own"] - rows["logp_start"]
    for values in (plain, rows["k3"]):
        error = values.std() / math.sqrt(n)
        assert abs(values.mean() - exact) < 4 * error, (values.mean(), exact, error)
    assert rows["k3"].std() < plain.std(), "as it does while the models are near"
    assert (rows["k3"] >= 0).all()


def table(plain: list[float], k3: list[float], truncated: list[bool]) -> pd.DataFrame:
    rows = {"prompt_id": [f"p{i}" for i in range(len(plain))], "start": "M1", "tokens": 4}
    return pd.DataFrame(rows).assign(
        truncated=truncated, logp_own=-10.0, logp_start=-10.0 - np.array(plain), k3=k3
    )


def test_the_table_by_hand():
    found = drift.kl_table({"x/M2": table([1, 2, 6], [2, 3, 4], [False, True, True])}, 200)
    plain, low = found.to_dict("records")
    assert [plain["estimate"], low["estimate"]] == list(drift.ESTIMATES)
    assert (plain["model"], plain["start"], plain["n"]) == ("x/M2", "M1", 3)
    assert (plain["value"], low["value"]) == (pytest.approx(3), pytest.approx(3))
    assert plain["tokens"] == pytest.approx((5 + 4 + 4) / 3), "an end is a token"
    assert plain["truncated"] == pytest.approx(2 / 3)
    by_prompt = pd.DataFrame({"prompt_id": ["p0", "p1", "p2"], "kl": [1.0, 2, 6], "one": 1})
    assert plain["low"] == stats.bootstrap(by_prompt, ("kl", "one"), resamples=200)["low"]
    assert low["high"] - low["low"] < plain["high"] - plain["low"]


def test_what_the_start_cannot_say_leaves_the_kl_undefined():
    impossible = torch.tensor([-math.inf], dtype=torch.float64)
    row = drift._sums(torch.tensor([-1.0], dtype=torch.float64), impossible)
    assert row == {"logp_own": -1.0, "logp_start": None, "k3": None}
    one = table([1, 2], [1, 2], [False, False]).astype({"k3": object, "logp_start": object})
    one.loc[1, ["logp_start", "k3"]] = None
    found = drift.kl_table({"x/M2": one}, 50)
    assert found["value"].isna().all()
    assert drift.kl_table({}).empty


@pytest.fixture
def trained(study: Study) -> Study:
    """A study with three adapters on the tiny model: random ones, M1 another than M2."""
    from peft import LoraConfig, get_peft_model

    from srkit.models import release, save_adapter

    def scramble(seed: int):
        def work(folder):
            release()
            base, tokenizer = load_base(Model(**study.config.model.model_dump()))
            torch.manual_seed(seed)
            lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(base, lora).eval()
            model.peft_config["default"].base_model_name_or_path = ""
            for name, values in model.named_parameters():
                if "lora_B" in name:
                    values.data.normal_(std=0.05)
            save_adapter(Policy(model, tokenizer, "x"), folder)
            (folder / "training.jsonl").touch()
            release()
            return {}

        return work

    def stand_in(part, _):
        return list(part)

    folder = "self-rewarding/iter-1"
    for name in ("seed/ift", "seed/eft", "seed/eft_eval", "seed/test_prompts", "seed/eft_targets"):
        rows = [{"id": f"t{i}", "prompt": f"Name {i} planets."} for i in range(3)]
        study.make_table(name, rows, stand_in, chunk=1)
    study.make_folder("M1/adapter", scramble(1))
    for name in ("prompts", "candidates", "judgements", "pairs"):
        study.make_table(f"{folder}/{name}", [{"id": "a"}], stand_in, chunk=1)
    study.make_folder("self-rewarding/M2/adapter", scramble(2))
    return study


def test_kl_of_a_model_to_itself_is_exactly_nothing(trained):
    prompts = trained.read("seed/test_prompts")
    rows = drift.measured(trained, "M1", "M1", prompts)
    assert all(row["logp_own"] == row["logp_start"] < 0 for row in rows)
    assert [row["k3"] for row in rows] == [0, 0, 0]
    found = drift.kl_table({"M1": pd.DataFrame(rows)}, 50)
    assert found["value"].tolist() == [0, 0]


def test_the_step_draws_at_temperature_1_and_reads_twice(trained):
    trained = Study.open(trained.path, overrides="eval.kl_prompts=2", change=True)
    rows = drift.make_drift(trained, "self-rewarding/M2")
    assert [row["prompt_id"] for row in rows] == ["t0", "t1"]
    assert {row["start"] for row in rows} == {"M1"}
    assert all(row["logp_own"] != row["logp_start"] for row in rows)
    assert all(row["k3"] > 0 for row in rows)
    assert trained.state("self-rewarding/M2/drift") == "done"
    assert drift.make_drift(trained, "self-rewarding/M2") == rows
    alone = drift.measured(trained, "self-rewarding/M2", "M1", trained.read("seed/test_prompts"))
    for one, other in zip(alone, rows, strict=False):
        assert one["text"] == other["text"], "a seed belongs to its prompt"
        assert one["logp_own"] == pytest.approx(other["logp_own"], abs=1e-4)
