"""Text of models and data sets made harmless to show: in a terminal, in a notebook, in HTML.

`visible` is for plain text: what would command a terminal, turn the direction of reading or hide
is shown as its code, `\\x1b`. `escaped` is the same for HTML. Everything that srkit shows of texts
that it did not write goes through one of them.

Surprising decisions:
- Joiners (U+200C, U+200D) stay: Persian, Hindi and emoji are misspelt without them.
- A page of the kit also forbids itself scripts and network (`page`): an escape that was forgotten
  somewhere would then still run nothing and fetch nothing.
- Formulas stay text: MathJax, which notebooks let loose on all HTML, skips the class `UNTYPESET`.

    python -c "from srkit.escape import visible; print(visible('\\x1b[31mred'))"
"""

from __future__ import annotations

import html
import unicodedata

JOINERS = "\u200c\u200d"
# MathJax 2, and MathJax 3 as JupyterLab has it
UNTYPESET = "tex2jax_ignore mathjax_ignore"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'"


def visible(text: str) -> str:
    """The text with control, bidirectional and other invisible characters as their codes."""
    return "".join(c if _harmless(c) else repr(c)[1:-1] for c in text)


def _harmless(character: str) -> bool:
    if character.isprintable() or character in "\n\t" or character in JOINERS:
        return True
    return unicodedata.category(character) == "Zs"  # spaces of all widths


def escaped(value: object) -> str:
    """The value as text for HTML, also inside a quoted attribute."""
    return html.escape(visible(str(value)))


def block(text: str) -> str:
    """A text in full as HTML, on its own lines and in its own direction of reading."""
    return f'<pre dir="auto">{escaped(text)}</pre>'


def page(title: str, style: str, body: str) -> str:
    """A self-contained page of escaped parts, which may run no script and load nothing."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{style}</style></head>"
        f"<body><h1>{escaped(title)}</h1>{body}</body></html>\n"
    )
