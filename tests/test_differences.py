"""Deviations from the paper are computed from the settings, each with its reason."""

from srkit import differences
from srkit.config import fields, resolve


def rows(preset: str, overrides: str = "") -> dict[str, list[str]]:
    table = differences.from_paper(resolve(preset, overrides))
    assert list(table) == list(differences.TABLE)
    return {row[0]: row[1:] for row in table.to_numpy().tolist()}


def test_the_paper_does_not_differ_from_itself():
    assert not rows("paper")
    assert not rows("paper", "model.dtype=float16 dpo.save_steps=7 endpoint.model=m")


def test_every_setting_that_decides_a_result_is_told_once_with_its_reason():
    found, paper, cpu = rows("cpu"), resolve("paper"), resolve("cpu")
    changed = {
        name
        for name in fields()
        for section, _, field in [name.partition(".")]
        if field
        and getattr(getattr(cpu, section), field) != getattr(getattr(paper, section), field)
    }
    assert set(found) == changed - differences.HOW
    assert found["dpo.learning_rate"] == ["0.0002", "1e-06", differences.LORA]
    assert found["model.name"][:2] == ["smollm2-135m", "meta-llama/Llama-2-70b-hf"]
    assert all(reason for *_, reason in found.values())
    assert not any("set for this study" in reason for *_, reason in found.values())


def test_what_is_not_the_presets_was_set_for_the_study():
    found = rows("cpu", "dpo.beta=0.2 candidates.max_tokens=90")
    assert found["dpo.beta"] == ["0.2", "0.1", "set for this study (preset cpu: 0.1)"]
    assert found["candidates.max_tokens"][2] == "set for this study (preset cpu: 80)"
    gone = resolve("cpu").model_copy(update={"preset": "folder/that-is-gone.yaml"})
    assert differences.from_paper(gone)["why"].eq("set for this study").all()


def test_reasons_name_settings_that_exist():
    sections = {name.partition(".")[0] for name in fields()}
    assert set(differences.REASONS) <= {*fields(), *sections}
    assert differences.HOW - {"preset"} <= set(fields())


def test_an_endpoint_counts_where_it_is_asked():
    asked = "eval.referee=endpoint endpoint.url=http://a/v1 endpoint.model=m"
    found = rows("paper", asked)
    assert set(found) == {"eval.referee", "endpoint.model"}, "an address is not told"


def test_limits_follow_from_the_settings():
    tiny, paper = (" ".join(differences.limits(resolve(p))) for p in ("tiny", "paper"))
    assert "numbers mean nothing" in tiny
    assert "numbers mean nothing" not in paper
    assert "random seed 0" in paper
    assert "first 1024 tokens" in paper
