"""The vllm engine against the hf engine, on a tiny model whose heads are as large as vLLM's."""

import json
import multiprocessing
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from srkit import models, vllm_engine
from srkit.config import Model, SrkitError
from srkit.engine import Sampling
from srkit.generate import HfEngine
from srkit.models import Policy, save_adapter
from srkit.prompts import user
from srkit.tiny import tiny_model, tiny_tokenizer
from srkit.vllm_engine import inner_nodes

TOKENIZER = tiny_tokenizer()
RUBRIC = "Review the response and give it a score from 0 to 5. " * 4
CHATS = [user(RUBRIC + body) for body in ("a", "Dear friend, I hope that you are well.", "7 + 8")]
CHATS += [CHATS[1], [*CHATS[2], {"role": "assistant", "content": "Score:"}]]
GREEDY = Sampling(max_tokens=24, temperature=0)
OPTIONS = [" 1", " 5", " A clear answer", " A clear reply"]


def base() -> torch.nn.Module:
    return tiny_model(TOKENIZER, hidden=256)


def test_options_that_begin_alike_share_a_request():
    nodes = inner_nodes([(1, 2), (1, 3), (4,), (1, 2)])
    assert nodes == {(): [1, 4], (1,): [2, 3]}


@pytest.mark.parametrize(("name", "value"), [("quantization", "nf4"), ("name", "tiny")])
def test_what_vllm_cannot_read_is_refused(name, value):
    with pytest.raises(SrkitError, match=f"{value}.*model.engine=hf"):
        vllm_engine.Server(Model(**{name: value}, engine="vllm"))


def test_a_missing_vllm_says_how_to_install_it(monkeypatch, folder):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SrkitError, match="pip install vllm"):
        vllm_engine.Server(Model(name=str(folder), engine="vllm"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "base"
    base().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapted(folder) -> HfEngine:
    """The hf engine with a random adapter, which lies in `folder.parent / "M1"`."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(base(), config).eval()
        for name, values in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(values, std=0.1)
    policy = Policy(model, TOKENIZER, "M1")
    save_adapter(policy, folder.parent / "M1")
    return HfEngine(policy)


@pytest.fixture(scope="module")
def plain() -> HfEngine:
    return HfEngine(Policy(base(), TOKENIZER, "M0"))


@pytest.fixture(scope="module")
def study(folder, adapted):
    """As much of a study as an engine asks for; its server is closed afterwards."""
    pytest.importorskip("vllm", reason="needs vLLM: install it as srkit/vllm_engine.py says")
    config = SimpleNamespace(model=Model(name=str(folder), engine="vllm", lora_rank=8))
    yield SimpleNamespace(config=config, adapter=lambda name: folder.parent / name, spent=Counter())
    models.release()


@pytest.fixture(params=["M0", "M1"])
def pair(request, study, plain, adapted):
    """vLLM and the hf engine for the same model."""
    return vllm_engine.open_engine(study, request.param), {"M0": plain, "M1": adapted}[
        request.param
    ]


def seeds(n: int) -> list[list[int]]:
    return [[100 * p + k for k in range(n)] for p in range(len(CHATS))]


def test_greedy_texts_are_those_of_the_hf_engine(pair):
    ours, theirs = (engine.sample(CHATS, 2, GREEDY, seeds(2)) for engine in pair)
    assert ours == theirs
    assert ours[0][0].tokens > 5


def test_a_row_ends_where_its_text_matches(pair):
    whole = pair[1].sample(CHATS, 1, GREEDY, seeds(1))
    stop = f"[{''.join(set(whole[0][0].text[8:12]) - {'^', ']', chr(92), '-'})}]"
    sampling = Sampling(max_tokens=24, temperature=0, stop=stop)
    ours, theirs = (engine.sample(CHATS, 1, sampling, seeds(1)) for engine in pair)
    assert ours == theirs
    assert ours[0][0].tokens < whole[0][0].tokens
    assert not ours[0][0].truncated


def test_options_score_as_with_the_hf_engine(pair):
    ours, theirs = (engine.score_options(CHATS, OPTIONS) for engine in pair)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert pair[0].score_options([], OPTIONS).shape == (0, 4)


def test_the_adapter_changes_what_vllm_says(study):
    without, worn = (
        vllm_engine.open_engine(study, name).score_options(CHATS, OPTIONS) for name in ("M0", "M1")
    )
    assert np.abs(worn - without).max() > 0.5


def test_draws_follow_their_seeds_and_the_nucleus(study, plain):
    """400 first tokens: only tokens of the nucleus, as often as the model says."""
    engine = vllm_engine.open_engine(study, "M0")
    sampling = Sampling(max_tokens=1, temperature=0.7, top_p=0.8)
    streams = [list(range(400))]
    drawn, again = (engine.sample(CHATS[:1], 400, sampling, streams)[0] for _ in range(2))
    assert drawn == again
    ids = torch.tensor([models.encode_prompt(TOKENIZER, CHATS[0])])
    with torch.no_grad():
        mass = (plain.policy.model(ids).logits[0, -1] / 0.7).softmax(-1)
    mass, tokens = mass.sort(descending=True)
    kept = (mass.cumsum(0) - mass < 0.8).sum()
    mass = mass[:kept] / mass[:kept].sum()
    expected: dict[str, float] = {}
    for token, share in zip(tokens[:kept].tolist(), mass.tolist(), strict=True):
        text = TOKENIZER.decode([token], skip_special_tokens=True)
        expected[text] = expected.get(text, 0) + share
    assert {c.text for c in drawn} <= set(expected)
    for text, share in expected.items():
        observed = sum(c.text == text for c in drawn) / 400
        assert observed == pytest.approx(share, abs=4 * (share * (1 - share) / 400) ** 0.5 + 0.01)


def test_prompts_that_fill_many_passes_are_drawn_with_seeds(study):
    """32 prompts of 250 tokens are more than vLLM reads at once, even on a GPU."""
    chats = [user(f"{i}. {RUBRIC * 4}") for i in range(32)]
    streams = [[i] for i in range(32)]
    drawn = vllm_engine.open_engine(study, "M0").sample(chats, 1, Sampling(max_tokens=2), streams)
    assert all(1 <= row[0].tokens + (not row[0].truncated) <= 2 for row in drawn)


def test_an_adapter_that_is_not_what_was_trained_is_refused(study, folder):
    shutil.copytree(folder.parent / "M1", folder.parent / "M2", dirs_exist_ok=True)
    file = folder.parent / "M2" / "fingerprint.json"
    recorded = json.loads(file.read_text())
    file.write_text(json.dumps(recorded | {"logits": recorded["base_logits"]}))
    vllm_engine.open_engine(study, "M0").server.adapters.clear()
    with pytest.raises(SrkitError, match="answers the probes differently"):
        vllm_engine.open_engine(study, "M2")


def test_a_prompt_that_does_not_fit_is_refused(study):
    with pytest.raises(SrkitError, match="do not fit the context of 4096"):
        vllm_engine.open_engine(study, "M0").sample(CHATS[:1], 1, Sampling(max_tokens=4096), [[0]])


def test_release_ends_the_server(study):
    engine = vllm_engine.open_engine(study, "M0")
    assert multiprocessing.active_children()
    models.release()
    assert not multiprocessing.active_children()
    with pytest.raises(SrkitError, match="open_engine again"):
        engine.score_options(CHATS, OPTIONS)
