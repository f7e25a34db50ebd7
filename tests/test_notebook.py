"""What notebooks begin and end with: parameters are checked as papermill passes them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from srkit.config import SrkitError
from srkit.notebook import begin, finish, show


@pytest.fixture
def path(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "runs" / "first")


@pytest.fixture
def cells(monkeypatch):
    """Pretend that an IPython kernel ran these cells."""

    def cells(*sources: str) -> None:
        shell = SimpleNamespace(user_ns={"In": ["", *sources]})
        monkeypatch.setattr("IPython.get_ipython", lambda: shell)

    return cells


def test_begin_makes_a_study_and_opens_it_again(path):
    made = begin(path, "tiny", "dpo.beta=0.2", "self-rewarding", 2)
    assert made.config.dpo.beta == 0.2
    assert begin(path).config == made.config
    assert begin(path, arm="ift-only", iteration=1).arms == ("ift-only",)


def test_a_notebook_may_bring_a_preset_for_a_study_that_is_not_there(path):
    with pytest.raises(SrkitError, match="no study at"):
        begin(path)
    assert begin(path, create="tiny").config.preset == "tiny"
    assert begin(path, create="cpu").config.preset == "tiny", "only where there is none"
    assert begin(f"{path}-2", preset="cpu", create="tiny").config.preset == "cpu"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"study": ""}, "The parameter study is empty"),
        ({"study": 3}, "The parameter study is 3; it must be text"),
        ({"study": False}, "The parameter study is False"),
        ({"preset": "false"}, "no preset 'false'"),
        ({"preset": True}, "The parameter preset is True; it must be text"),
        ({"preset": None}, "The parameter preset is None"),
        ({"preset": "tyni"}, "Did you mean 'tiny'"),
        ({"overrides": 0.2}, "The parameter overrides is 0.2; it must be text"),
        ({"overrides": {"dpo.beta": 0.2}}, "The parameter overrides is {'dpo.beta': 0.2}"),
        ({"overrides": "false"}, "'false' is not of the form section.field=value"),
        ({"arm": "false"}, "no arm 'false'"),
        ({"arm": None}, "The parameter arm is None"),
        ({"arm": "ift_only"}, "Did you mean 'ift-only'"),
        ({"iteration": "1"}, "The parameter iteration is '1'; it must be a whole number"),
        ({"iteration": 1.0}, "The parameter iteration is 1.0; it must be a whole number"),
        ({"iteration": True}, "The parameter iteration is True; it must be a whole number"),
        ({"iteration": "false"}, "The parameter iteration is 'false'"),
        ({"iteration": 0}, "this study has iterations 1 to 2"),
        ({"iteration": 3}, "The parameter iteration is 3; this study has iterations 1 to 2"),
    ],
)
def test_wrong_parameters_are_named_with_their_value(path, parameters, message):
    with pytest.raises(SrkitError) as caught:
        begin(**({"study": path, "preset": "tiny"} | parameters))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("stduy = 'x'", "no parameter 'stduy'. Did you mean 'study'?"),
        (
            "study = 'x'\noverride = 'dpo.beta=1'",
            "no parameter 'override'. Did you mean 'overrides'?",
        ),
        ("dry_run = 'false'", "no parameter 'dry_run'"),
        ("beta = 0.2", 'overrides="dpo.beta=0.2'),
        ("iteration = 1", "no parameter 'iteration'. Legal are: study, preset, overrides."),
    ],
)
def test_an_injected_name_that_the_notebook_does_not_know_is_refused(path, cells, cell, message):
    cells("import os", f"# Parameters\n{cell}\n", "from srkit.notebook import begin")
    with pytest.raises(SrkitError) as caught:
        begin(path, "tiny")
    assert message in str(caught.value)
    assert not Path(path).exists()


def test_injected_names_that_the_notebook_knows_are_fine(path, cells):
    cells("x = 3  # a cell of the reader", f"# Parameters\nstudy = {path!r}\npreset = 'tiny'\n")
    assert begin(path, "tiny").config.preset == "tiny"
    cells("# Parameters\nstudy = 'x'\narm = 'self-rewarding'\niteration = 1\noverrides = ''\n")
    assert begin(path, arm="self-rewarding", iteration=1).config.iterations == 2


def test_the_project_s_root_is_found_from_the_notebooks_folder(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert begin("runs/first", "tiny").path == Path("runs/first")
    assert (tmp_path / "runs/first/study.yaml").exists()
    assert Path.cwd() == tmp_path


def test_another_folder_named_notebooks_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    begin("first", "tiny")
    assert (tmp_path / "notebooks/first/study.yaml").exists()


def test_finish_writes_the_numbers(study):
    finish(study, "04_iteration", {"first_loss": 0.6931, "who": "M\u2082"})
    text = (study.path / "metrics/04_iteration.json").read_text("utf-8")
    assert json.loads(text) == {"notebook": "04_iteration", "first_loss": 0.6931, "who": "M\u2082"}


def test_show_interprets_nothing(capsys):
    show("a title", "one\n\x1b[31mtwo\x07 <b>ü</b>")
    assert capsys.readouterr().out == (
        "--- a title " + "-" * 67 + "\none\n\\x1b[31mtwo\\x07 <b>ü</b>\n\n"
    )


def test_an_error_in_a_notebook_is_its_message_alone():
    assert SrkitError("what to do")._render_traceback_() == ["SrkitError: what to do"]
