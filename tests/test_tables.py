"""Tables for spreadsheets, issues and papers: exact texts, and nothing that is taken for markup."""

import pandas as pd
import pytest

from srkit import tables

TABLE = pd.DataFrame(
    {
        "model": ["self_rewarding/M2", "100 % | *best*"],
        "value": [0.61449, None],
        "n": [40, 1234567],
        "told": ["61.4 % [54.3, 68.8]", "[a](http://x)\nb"],
    }
)


def test_markdown_by_hand():
    assert tables.markdown(TABLE) == (
        "| model | value | n | told |\n"
        "| --- | ---: | ---: | --- |\n"
        "| self\\_rewarding/M2 | 0.614 | 40 | 61.4 % [54.3, 68.8] |\n"
        "| 100 % \\| \\*best\\* |  | 1234567 | [a\\](http://x) b |\n"
    )


def test_latex_by_hand():
    assert tables.latex(TABLE) == (
        "\\begin{tabular}{lrrl}\n\\hline\n"
        "model & value & n & told \\\\\n\\hline\n"
        "self\\_rewarding/M2 & 0.614 & 40 & 61.4 \\% [54.3, 68.8] \\\\\n"
        "100 \\% \\textbar{} *best* &  & 1234567 & [a](http://x) b \\\\\n"
        "\\hline\n\\end{tabular}\n"
    )


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (12345.678, "12346"),
        (0.000123456, "0.000123"),
        (-3.0, "-3"),
        (True, "True"),
        (float("nan"), ""),
        (None, ""),
        ([1, 2], "1 2"),
        ("\x1b[31mred\u202e", "\\x1b[31mred\\u202e"),
    ],
)
def test_a_cell(value, cell):
    assert tables._cell(value) == cell


@pytest.mark.parametrize("start", ["[x]", "*x"])
def test_a_row_is_no_option_of_the_row_before(start):
    row = tables.latex(pd.DataFrame({"a": ["one", start]})).splitlines()[5]
    assert row == f"{{}}{start} \\\\"


def test_every_character_that_latex_would_obey_is_text():
    row = tables.latex(pd.DataFrame({"a": ["\\input{x} $y$ #1 & _", "~^<>"]})).splitlines()[4:6]
    assert row == [
        "\\textbackslash{}input\\{x\\} \\$y\\$ \\#1 \\& \\_ \\\\",
        "\\textasciitilde{}\\textasciicircum{}\\textless{}\\textgreater{} \\\\",
    ]


def test_saved_files_are_the_same_bytes_again(tmp_path):
    paths = tables.save(TABLE, tmp_path / "deep" / "table.1")
    assert [path.name for path in paths] == ["table.1.csv", "table.1.md", "table.1.tex"]
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"model,value,n,told\nself_rewarding/M2,0.61449,40,")
    assert [path.read_bytes() for path in tables.save(TABLE, tmp_path / "again")] == first
