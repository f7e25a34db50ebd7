"""Foreign text: readable as written, without effect on a terminal, on reading, or as markup."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srkit.escape import block, escaped, page, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x1b[0m", "a\\x1b[31mred\\x1b[0m"),
        ("\x1b]8;;http://a/\x07link\x1b]8;;\x07", "\\x1b]8;;http://a/\\x07link\\x1b]8;;\\x07"),
        ("nul\x00, bell\x07, del\x7f, C1\x9b31m", "nul\\x00, bell\\x07, del\\x7f, C1\\x9b31m"),
        ("over\rwritten\x08", "over\\rwritten\\x08"),
        ("\u202eevil\u202c \u2066x\u2069", "\\u202eevil\\u202c \\u2066x\\u2069"),
        ("\u200f\u061c", "\\u200f\\u061c"),
        ("zero\u200bwidth\ufeff soft\xad", "zero\\u200bwidth\\ufeff soft\\xad"),
        ("tags \U000e0041", "tags \\U000e0041"),
        ("two\u2028lines\u2029", "two\\u2028lines\\u2029"),
        ("half \ud83d", "half \\ud83d"),
        ("own \ue000", "own \\ue000"),
        ("one\ntwo\tthree", "one\ntwo\tthree"),
        ("naïve 東京\u3000駅 \xa0 \u202fa ", "naïve 東京\u3000駅 \xa0 \u202fa "),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("👩\u200d👧 ✍️", "👩\u200d👧 ✍️"),
    ],
)  # fmt: skip
def test_what_commands_turns_or_hides_is_shown_as_its_code(text, shown):
    assert visible(text) == shown


@given(st.text())
def test_what_is_visible_stays_and_stays_so(text):
    shown = visible(text)
    assert visible(shown) == shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    if text.isprintable():
        assert shown == text


class Reader(HTMLParser):
    """What a page consists of: tags with attributes, and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@given(st.text() | st.from_regex(r"(</?(script|pre|b)>|[\"'&<>]|onload=|\\x3c){1,9}"))
def test_any_text_is_one_text_of_one_element(text):
    read = Reader(block(text))
    assert read.tags == [("pre", {"dir": "auto"})]
    assert read.text == visible(text)
    read = Reader(f'<i title="{escaped(text)}">')
    assert read.tags == [("i", {"title": visible(text)})]


def test_a_page_forbids_itself_scripts_and_network():
    read = Reader(page("<script>x</script>", "b {}", "<p>fine</p>"))
    (policy,) = [a["content"] for t, a in read.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'")
    assert "script" not in policy
    assert "script" not in [tag for tag, _ in read.tags]
    assert "<script>x</script>" in read.text
