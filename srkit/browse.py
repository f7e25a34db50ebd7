"""The pair browser: an iteration's prompts with all answers, scores, judgements, and the pair made.

`browser` is for looking around in JupyterLab (widgets). `make_page` writes its twin, `browse.html`,
with the same filters, for batch runs and for a study that is passed on. Both show cases: a prompt,
what became of it, and its candidates.

Surprising decisions:
- The twin has no script: its two menus are CSS (`:has`), so that a page of foreign texts needs no
  permission to run anything. Where CSS is stripped, all cases are listed in the table's order.
- A notebook run by papermill gets the twin instead of widgets, which are dead without a kernel.
- A page holds the first `SHOWN` cases of an iteration and says so; the widgets hold all.

    python -c "from srkit import browse, study; \\
        print(browse.cases(study.Study.open('runs/first'), 'self-rewarding/iter-1')[0]['outcome'])"
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srkit import metrics
from srkit.escape import UNTYPESET, block, escaped, page, visible
from srkit.judge import by, mean_scores
from srkit.notebook import in_batch
from srkit.rows import Row
from srkit.study import Study

if TYPE_CHECKING:
    from ipywidgets import VBox

EVERY = "all"
SHOWN = 200


def _gap(case: Row) -> float:
    return case["gap"]


def _length(case: Row) -> int:
    return len(case["chosen"]["text"])


# What a menu says, by what the cases are sorted, and whether the largest comes first.
ORDERS = {
    "as in the table": None,
    "widest gap first": (_gap, True),
    "narrowest gap first": (_gap, False),
    "longest chosen first": (_length, True),
    "shortest chosen first": (_length, False),
}


# --- cases ---------------------------------------------------------------------------------------


def cases(study: Study, folder: str) -> list[Row]:
    """Every draft of an iteration, such as `self-rewarding/iter-1`, in the order of its prompts.

    A case has `id, prompt, outcome` ("pair", "no pair: <why>" or "dropped: <why>"), `candidates`
    with `text, tokens, truncated, score` (mean, or None) and `judgements`, the candidates `chosen`
    and `rejected`, and `gap`, the difference of their scores; the last three are None without a
    pair. Raises: SrkitError naming the notebook to run first.
    """
    candidates, judgements, pairs = (
        study.read(f"{folder}/{name}") for name in ("candidates", "judgements", "pairs")
    )
    if f"{folder}/anchors" in study.steps:  # they can be rejected too
        candidates = candidates + study.read(f"{folder}/anchors")
        judgements = judgements + study.read(f"{folder}/anchor_judgements")
    scores, judged, answers = mean_scores(judgements), by(judgements, "response_id"), {}
    for row in candidates:
        more = {"score": scores.get(row["id"]), "judgements": judged.get(row["id"], [])}
        answers.setdefault(row["prompt_id"], []).append(row | more)
    pairs = {row["id"]: row for row in pairs}
    return [
        _case(draft, answers.get(draft["id"], []), pairs.get(draft["id"]))
        for draft in study.read(f"{folder}/prompts")
    ]


def _case(draft: Row, candidates: list[Row], pair: Row | None) -> Row:
    by_id = {candidate["id"]: candidate for candidate in candidates}
    chosen, rejected = (
        by_id.get((pair or {}).get(f"{side}_id")) for side in ("chosen", "rejected")
    )
    if draft.get("dropped"):
        outcome = f"dropped: {draft['dropped']}"
    elif pair is None or pair.get("dropped"):
        outcome = f"no pair: {pair['dropped'] if pair else 'not asked'}"
    else:
        outcome = "pair"
    both = chosen is not None and rejected is not None
    return {
        "id": draft["id"],
        "prompt": draft["prompt"],
        "outcome": outcome,
        "candidates": candidates,
        "chosen": chosen,
        "rejected": rejected,
        "gap": chosen["score"] - rejected["score"] if both else None,
    }


def outcomes(found: list[Row]) -> dict[str, int]:
    """How many cases ended how, the most frequent first; before them `all`."""
    counts = Counter(case["outcome"] for case in found)
    return {EVERY: len(found), **dict(counts.most_common())}


def select(found: list[Row], outcome: str = EVERY, order: str = "as in the table") -> list[Row]:
    """The cases with an outcome, in an order of `ORDERS`; those without a pair come last."""
    cases = [case for case in found if outcome in (EVERY, case["outcome"])]
    if ORDERS[order] is None:
        return cases
    key, descending = ORDERS[order]
    with_pair = [case for case in cases if case["gap"] is not None]
    others = [case for case in cases if case["gap"] is None]
    return sorted(with_pair, key=key, reverse=descending) + others


# --- HTML ----------------------------------------------------------------------------------------

STYLE = """
.srkit { max-width: 60rem; line-height: 1.45; --good: #009e73; --bad: #d55e00; --line: #8885 }
.srkit p { margin: .5rem 0 .2rem }
.srkit .note { opacity: .75; font-size: .9em }
.srkit pre { white-space: pre-wrap; overflow-wrap: anywhere; overflow: hidden; margin: 0;
  padding: .5rem .7rem; background: #8881; border-left: 3px solid var(--line); font-size: .95em }
.srkit .sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr));
  gap: .8rem }
.srkit .chosen pre { border-color: var(--good) } .srkit .rejected pre { border-color: var(--bad) }
.srkit details { margin: .3rem 0 } .srkit summary { cursor: pointer }
.srkit details details { margin-left: 1rem }
.srkit .cases { display: flex; flex-direction: column }
.srkit .cases > details { border-top: 1px solid var(--line); padding: .3rem 0 }
.srkit select { font: inherit; margin-right: 1rem }
"""
PAGE_STYLE = "body { font: 16px system-ui, sans-serif; margin: 0 auto; padding: 1rem; " + (
    "max-width: 62rem; color: #222; background: #fff }"
)


def case_html(case: Row) -> str:
    """One case in full: prompt, the pair side by side, then all answers, the best first."""
    parts = [f"<p>Prompt</p>{block(case['prompt'])}"]
    if case["gap"] is not None:
        sides = "".join(
            f'<div class="{side}"><p><b>{side}</b> {_measures(case[side])}</p>'
            f"{block(case[side]['text'])}</div>"
            for side in ("chosen", "rejected")
        )
        parts.append(f'<div class="sides">{sides}</div>')
    ranked = sorted(case["candidates"], key=lambda c: (c["score"] is None, -(c["score"] or 0)))
    opened = "" if case["gap"] is not None else " open"
    answers = "".join(_answer(candidate, case) for candidate in ranked)
    if answers:
        parts.append(
            f"<details{opened}><summary>All {len(ranked)} answers and their judgements</summary>"
            f"{answers}</details>"
        )
    return "".join(parts)


def _answer(candidate: Row, case: Row) -> str:
    side = next((s for s in ("chosen", "rejected") if case[s] is candidate), "")
    drawn = candidate["judgements"]
    told = drawn if len(drawn) > 1 or any(j["text"] for j in drawn) else []  # else it is the score
    judgements = "".join(map(_judgement, told))
    return (
        f'<div class="{side}"><p>{f"<b>{side}</b>" if side else "answer"} {_measures(candidate)}'
        f"</p>{block(candidate['text'])}{judgements}</div>"
    )


def _judgement(judgement: Row) -> str:
    score = "no score could be read" if judgement["score"] is None else f"{judgement['score']:.3f}"
    if not judgement["text"]:
        return f'<p class="note">judgement: {score}, nothing was written</p>'
    return f"<details><summary>judgement: {score}</summary>{block(judgement['text'])}</details>"


def _measures(candidate: Row) -> str:
    score = "no score" if candidate["score"] is None else f"score {candidate['score']:.3f}"
    cut = ", cut at the limit" if candidate["truncated"] else ""
    tokens = "" if candidate["tokens"] is None else f", {candidate['tokens']} tokens"
    told = f"{score}, {len(candidate['text'])} characters{tokens}{cut}"
    return f'<span class="note">{told}</span>'


def verdict(case: Row) -> str:
    """What became of a case, in a few words."""
    return case["outcome"] if case["gap"] is None else f"pair, gap {case['gap']:.3f}"


def _summary(case: Row) -> str:
    start = " ".join(case["prompt"].split())
    start = f"{start[:120]}…" if len(start) > 120 else start
    told = f'<span class="note">{escaped(verdict(case))}</span>'
    return f"<summary><bdi>{escaped(start)}</bdi> {told}</summary>"


def static_html(found: list[Row], title: str, shown: int = SHOWN) -> str:
    """An iteration's cases as HTML with two menus, a filter and an order, and without a script."""
    part = found[:shown]
    counts = outcomes(part)
    orders = {order: select(part, order=order) for order in ORDERS}
    place = {name: {c["id"]: i for i, c in enumerate(rows)} for name, rows in orders.items()}
    kinds, names = list(counts), list(ORDERS)
    items = "".join(
        f'<details class="k{kinds.index(case["outcome"])}" style="'
        + ";".join(f"--o{i}:{place[name][case['id']]}" for i, name in enumerate(names))
        + f'">{_summary(case)}{case_html(case)}</details>'
        for case in part
    )
    show = _menu("show", [f"{kind} ({count})" for kind, count in counts.items()])
    left = f" The first {shown} of {len(found)} prompts." if len(found) > shown else ""
    return (
        f'<div class="srkit {UNTYPESET}"><style>{STYLE}{_rules(len(kinds), len(names))}</style>'
        f"<h2>{escaped(title)}</h2><p>{show}{_menu('order', names)}{left}</p>"
        f'<div class="cases">{items}</div></div>'
    )


def _menu(name: str, labels: list[str]) -> str:
    options = "".join(
        f'<option value="{i}">{escaped(label)}</option>' for i, label in enumerate(labels)
    )
    return f'<label>{name} <select class="{name}">{options}</select></label>'


def _rules(kinds: int, orders: int) -> str:
    """CSS of the two menus: what is chosen hides the other kinds, and sets the place of a case."""

    def where(menu: str, i: int) -> str:
        return f'.srkit:has(> p .{menu} option[value="{i}"]:checked) > .cases >'

    hide = [f"{where('show', i)} :not(.k{i}) {{ display: none }}" for i in range(1, kinds)]
    sort = [f"{where('order', i)} * {{ order: var(--o{i}) }}" for i in range(orders)]
    return "\n".join(hide + sort)


def make_page(study: Study) -> Path:
    """Step `browse`: `browse.html`, all iterations of all arms on one page."""

    def content() -> str:
        folders = metrics.iterations(study)
        body = "".join(static_html(cases(study, folder), folder) for folder in folders)
        return page(f"Pairs of {study.path.name}", PAGE_STYLE, body)

    study.make_file("browse", content)
    return study.path / "browse.html"


# --- widgets -------------------------------------------------------------------------------------


def browser(study: Study, folder: str = "", shown: int = 20) -> Any:
    """Widgets to walk through the iterations' cases, beginning with `folder`.

    Run by papermill it is the static twin of `folder`, or of the first iteration, with the first
    `shown` cases.
    """
    from IPython.display import HTML

    folder = folder or metrics.iterations(study)[0]
    if in_batch():
        return HTML(static_html(cases(study, folder), folder, shown))
    return _widgets(study, folder)


def _widgets(study: Study, folder: str) -> VBox:
    import ipywidgets as widgets

    where = widgets.Dropdown(options=metrics.iterations(study), value=folder, description="of")
    show = widgets.Dropdown(options=[EVERY], description="show")
    order = widgets.Dropdown(options=list(ORDERS), description="order")
    back, on = widgets.Button(description="previous"), widgets.Button(description="next")
    place, text = widgets.IntSlider(min=1, description="prompt"), widgets.HTML()
    found: list[Row] = []
    listed: list[Row] = []

    def load(*_: Any) -> None:
        found[:] = cases(study, where.value)
        counts = outcomes(found)
        show.options = [(visible(f"{kind} ({n})"), kind) for kind, n in counts.items()]
        show.value = EVERY
        choose()

    def choose(*_: Any) -> None:
        listed[:] = select(found, show.value or EVERY, order.value)
        place.max, place.value = max(len(listed), 1), 1
        draw()

    def draw(*_: Any) -> None:
        if not listed:
            text.value = "<p>Nothing to show.</p>"
            return
        case = listed[place.value - 1]
        title = f"<p><b>{escaped(verdict(case))}</b></p>"
        text.value = (
            f'<div class="srkit {UNTYPESET}"><style>{STYLE}</style>{title}{case_html(case)}</div>'
        )

    where.observe(load, "value")
    for menu in (show, order):
        menu.observe(choose, "value")
    place.observe(draw, "value")
    back.on_click(lambda _: setattr(place, "value", place.value - 1))
    on.on_click(lambda _: setattr(place, "value", place.value + 1))
    load()
    menus, steps = widgets.HBox([where, show, order]), widgets.HBox([back, place, on])
    return widgets.VBox([menus, steps, text])
