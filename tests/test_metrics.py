"""Tables of analyses, as they come back from their files."""

import json
import types

import pytest

from srkit import metrics


def written(tables: dict[str, list[dict]]) -> types.SimpleNamespace:
    """A study whose analyses all hold these rows."""
    return types.SimpleNamespace(
        read_text=lambda name: json.dumps(tables), check_inputs=lambda name: None
    )


@pytest.mark.parametrize("analysis", metrics.COLUMNS)
def test_tables_without_rows_keep_columns_that_text_and_numbers_fit(analysis):
    columns = metrics.COLUMNS[analysis]
    for name, table in metrics.load(written({name: [] for name in columns}), analysis).items():
        assert list(table.columns) == list(columns[name])
        for column in table.columns:
            assert (table[column] + ", ").empty
            assert (table[column] > 0.5).empty


def test_a_column_in_which_nothing_is_defined_is_of_numbers():
    table = metrics.load(written({"scores": [{"model": "M1", "value": None}]}), "benchmarks")
    assert table["scores"]["value"].dtype == float
    assert list(table["scores"]["model"]) == ["M1"]
