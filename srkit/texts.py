"""The texts that a study trains on: as prompts, as training examples, and as vectors.

Vectors are those of the sentence-embedding model that `eval.embedding_model` names (the paper's
Fig. 6 has a model's; which one is not known). Without one there are none, and `srkit.distribution`
takes words for meaning (TF-IDF): no download.

Surprising decisions: the model is a hub id or a folder as sentence-transformers writes them, and
its weights are read from safetensors alone. It knows English sentences of up to some hundred
tokens, mostly; the rest of a longer text is cut, so judge prompts look more alike than they are.

Needs the extra: pip install -e '.[embed]'.

    python -c "from srkit import texts, study; \\
        print(*map(len, texts.prompt_sets(study.Study.open('runs/first')).values()))"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from srkit.config import SrkitError
from srkit.distributed import first
from srkit.distribution import Vectors
from srkit.prompts import judge_prompt
from srkit.rows import Row, kept
from srkit.study import Study

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CHUNK = 256  # texts per write


def prompt_sets(study: Study) -> dict[str, list[str]]:
    """The plain prompts of IFT, of EFT and of each iteration that were kept, by name."""
    sets = {name: column(study.read(f"seed/{name.lower()}"), "prompt") for name in ("IFT", "EFT")}
    sets["EFT"] = list(dict.fromkeys(sets["EFT"]))
    loops = [f"{arm}/iter-{t}" for arm in study.arms for t in range(1, study.config.iterations + 1)]
    own = {folder: column(kept(study.read(f"{folder}/prompts")), "prompt") for folder in loops}
    return {**sets, **own}


def trained_texts(study: Study) -> dict[str, dict[str, list[str]]]:
    """What the first arm's models are trained on: instructions and responses, by set.

    EFT instructions are judge prompts and EFT responses judgements; self-made are the chosen ones.
    """
    targets, ift = kept(study.read("seed/eft_targets")), study.read("seed/ift")
    rubric, arm = study.config.judge.rubric, study.arms[0]
    asked = [judge_prompt(rubric, r["prompt"], r["response"])[0]["content"] for r in targets]
    instructions = {"IFT": column(ift, "prompt"), "EFT": asked}
    responses = {"IFT": column(ift, "response"), "EFT": column(targets, "target")}
    for t in range(1, study.config.iterations + 1):
        folder = f"{arm}/iter-{t}"
        pairs = kept(study.read(f"{folder}/pairs"))
        instructions[folder], responses[folder] = column(pairs, "prompt"), column(pairs, "chosen")
    return {"instructions": instructions, "responses": responses}


def column(rows: Sequence[Row], name: str) -> list[str]:
    """One column of a table, as text."""
    return [str(row[name]) for row in rows]


def vectors(study: Study) -> Vectors | None:
    """Step `embeddings`: the vector of every text above and of the test prompts; None if no model
    is named.

    Raises: SrkitError if sentence-transformers is not installed or cannot load the model.
    """
    name = study.config.eval.embedding_model
    if not name:
        return None
    sets = [prompt_sets(study), *trained_texts(study).values()]
    texts = [text for found in sets for part in found.values() for text in part]
    texts += column(study.read("seed/test_prompts"), "prompt")
    models: list[SentenceTransformer] = []

    def work(part: Sequence[str], _: list[Row]) -> list[Row]:
        def rows() -> list[Row]:
            if not models:
                models.append(load(name))
            found = models[0].encode(list(part), show_progress_bar=False)
            return [
                {"text": text, "vector": np.round(vector, 6).tolist()}
                for text, vector in zip(part, found.astype(float), strict=True)
            ]

        return first(rows)

    rows = study.make_table("embeddings", list(dict.fromkeys(texts)), work, chunk=CHUNK)
    return Vectors(name, {row["text"]: np.array(row["vector"]) for row in rows})


def load(name: str) -> SentenceTransformer:
    """A sentence-embedding model by hub id or folder. Raises: SrkitError as `vectors` does."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SrkitError(
            f"eval.embedding_model needs sentence-transformers, which cannot be imported ({error})."
            " Install it with `pip install -e '.[embed]'`, or leave the setting empty."
        ) from error
    try:
        return SentenceTransformer(name, model_kwargs={"use_safetensors": True})
    except Exception as error:  # of the hub, of transformers, of the files
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise SrkitError(
            f"eval.embedding_model = {name!r} cannot be loaded: {type(error).__name__}: {reason}. "
            "Give a hub id (with a network, once) or a folder of a sentence-transformers model "
            "with safetensors, or leave it empty: TF-IDF needs no model."
        ) from error
