"""Judge, comparison and self-instruct prompts: text files, rendering, and parsing what comes back.

The wording lies in `prompts/*.txt` and is the kit's own; the five criteria, their order and the
output contract (a short rationale, then `Score: n` on the last line) are those of the paper's
Figure 2. Put another wording there, or in a folder named by the environment variable
SRKIT_PROMPTS, and every notebook uses it.

Surprising decisions: only generated text is parsed, so that the rubric's own "Score:", or one that
stands in a response, cannot count; nor does a line that the judge quotes with ">". A judge that
copies a response's score line as a line of its own cannot be told from one that judges so. What
does not parse is None, not a number.

    python -c "from srkit.prompts import parse_score; print(parse_score('Good.\\nScore: 4'))"
"""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path
from string import Template

from srkit.reading import SrkitError, read_text

Conversation = list[dict[str, str]]

SCALES = {"additive": (0, 5), "multiple_choice": (1, 5)}
# A judgement ends with its score line, and not before the line does: `Score: 10` is not a 1.
SCORE_STOP = r"(?im)^[^\w>\n]*score[^\w\n]*:.*[0-9].*\n"
_SCORE_LINE = re.compile(r"[^\w>]*score\W*:(.*[0-9].*)", re.I)
_SCORE = re.compile(
    r"""[\s*_`"'(<\[]*([0-9]+(?:\.[0-9]+)?)(?:\s*(?:/|out of)\s*5)?[\s*_`"')>\].!]*""", re.I
)


def text(name: str) -> str:
    """A prompt's text by file name without ending.

    Raises: SrkitError if there is no such file.
    """
    folder = os.environ.get("SRKIT_PROMPTS")
    if folder and not Path(folder).is_dir():
        raise SrkitError(f"SRKIT_PROMPTS is {folder!r}, which is not a folder of prompt files.")
    file = Path(folder, f"{name}.txt") if folder else None
    if file is not None and file.exists():
        return read_text(file)
    try:
        return resources.files("srkit").joinpath("prompts", f"{name}.txt").read_text("utf-8")
    except FileNotFoundError:
        raise SrkitError(f"There is no prompt file {name}.txt in srkit/prompts.") from None


def render(name: str, **values: str) -> str:
    """Fill a prompt's `$fields` once: dollar signs inside the values stay as they are.

    Raises: SrkitError if the file lacks a field or asks for an unknown one.
    """
    template = Template(text(name))
    fields = set(template.get_identifiers())
    if not template.is_valid():
        raise SrkitError(f"The prompt {name}.txt has a $ that begins no field; write it as $$.")
    if fields != set(values):
        raise SrkitError(
            f"The prompt {name}.txt must contain exactly the fields "
            f"{', '.join('$' + v for v in sorted(values))}; it has {sorted(fields) or 'none'}."
        )
    return template.substitute(values).strip()


def user(content: str) -> Conversation:
    """A conversation of one user message."""
    return [{"role": "user", "content": content}]


def judge_prompt(rubric: str, instruction: str, response: str) -> Conversation:
    """The message that asks a model to judge one response (paper Fig. 2, or Fig. 7)."""
    return user(render(f"judge_{rubric}", instruction=instruction, response=response))


def compare_prompt(instruction: str, first: str, second: str) -> Conversation:
    """The message that asks which of two responses is better; the answer A or B is forced."""
    content = render("compare", instruction=instruction, first=first, second=second)
    return [*user(content), {"role": "assistant", "content": "Better answer:"}]


def yes_no_prompt(instruction: str, response: str) -> Conversation:
    """The message that asks whether a response is good; the answer Yes or No is forced."""
    content = render("judge_yes_no", instruction=instruction, response=response)
    return [*user(content), {"role": "assistant", "content": "Answer:"}]


def meta_judge_prompt(task: str, first: str, second: str) -> Conversation:
    """The message that asks which of two judgements is better; the answer A or B is forced.

    `task` is the message that asked for them (`judge_prompt`).
    """
    content = render("meta_judge", task=task, first=first, second=second)
    return [*user(content), {"role": "assistant", "content": "Better judgement:"}]


def judgement_text(rationale: str | None, score: float) -> str:
    """A judgement in the form that the judge prompt asks for."""
    line = f"Score: {score:g}"
    return f"{rationale.strip()}\n{line}" if rationale else line


def parse_score(judgement: str, rubric: str = "additive") -> float | None:
    """The score in a generated judgement, or None.

    The last line of the form `Score: <something with a number>` decides. What is out of the scale
    (`Score: 7`, `-1`, `10`, `4/10`) or unclear there is no score, whatever stands before it.
    """
    low, high = SCALES[rubric]
    for line in reversed(judgement.splitlines()):
        if on_line := _SCORE_LINE.fullmatch(line):
            found = _SCORE.fullmatch(on_line[1])
            score = float(found[1]) if found else None
            return score if score is not None and low <= score <= high else None
    return None


def self_instruct_prompt(shots: list[str]) -> Conversation:
    """The few-shot list of requests; the model continues it at the next number."""
    numbered = "\n".join(f"{i}. {one_line(shot)}" for i, shot in enumerate(shots, 1))
    lead = text("self_instruct").strip()
    return [
        *user(f"{lead}\n\n{numbered}"),
        {"role": "assistant", "content": f"{len(shots) + 1}."},
    ]


def parse_requests(generated: str, first_number: int, finished: bool) -> list[tuple[str, bool]]:
    """The requests of a continued numbered list, each with whether it is finished.

    Only the last request of a list that was cut at the token limit is unfinished.
    """
    pieces = re.split(r"(?m)^[^\S\n]*\d+[.)](?:\s+|\Z)", f"{first_number}. {generated.strip()}")
    requests = [one_line(piece) for piece in pieces[1:]]
    last = len(requests) - 1
    return [(text, finished or i < last) for i, text in enumerate(requests) if text]


def one_line(content: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(content.split())
