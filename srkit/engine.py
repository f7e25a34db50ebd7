"""Who answers: the two questions that a step may put to a model, and the engines that answer them.

`sample` draws texts, `score_options` reads probabilities. A step opens an engine for a model of its
study and knows nothing else of it. The study's own models are run by `srkit.generate` (`hf`) or
`srkit.vllm_engine` (`vllm`), as `model.engine` says; a model behind a server, under the name
`endpoint`, by `srkit.endpoint`. Under a launcher every process has an engine of its own, and the
conversations are dealt out to them (`Dealt`).

    python -c "from srkit.engine import *; from srkit.prompts import user; \\
        from srkit.study import Study; e = open_engine(Study.open('runs/first'), 'M1'); \\
        print(e.sample([user('Hi')], 2, Sampling(8), [[0, 1]]))"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from srkit.config import SrkitError
from srkit.distributed import share, together, world
from srkit.prompts import Conversation

if TYPE_CHECKING:
    from srkit.study import Study


@dataclass(frozen=True)
class Sampling:
    """How to draw: at most `max_tokens`; `temperature` 0 is greedy; `top_p` in (0, 1].

    `stop` is a regular expression; a row ends once its text matches, and keeps the match.
    """

    max_tokens: int
    temperature: float = 0.7
    top_p: float = 0.9
    stop: str | None = None


@dataclass(frozen=True)
class Completion:
    """Generated text without special tokens; `tokens` leaves out the end token.

    `truncated`: the row reached `max_tokens` with neither an end token nor a stop match. `ids` are
    the tokens where the engine is `hf`, else empty.
    """

    text: str
    tokens: int
    truncated: bool
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)


class Engine(Protocol):
    """What answers for one model."""

    def sample(
        self,
        conversations: Sequence[Conversation],
        n: int,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Completion]]:
        """Draw `n` completions of each of P conversations; `seeds` (P, n) gives each its stream.

        A final assistant message is a prefix that generation continues. Returns (P, n).
        """

    def score_options(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> np.ndarray:
        """Log-probabilities (natural, temperature 1) of options as continuations.

        Returns float64 (P, options); a row of NaN where an engine cannot say.
        """


@dataclass
class Dealt:
    """An engine that every process has, of which each is asked its share."""

    engine: Engine

    def sample(
        self,
        conversations: Sequence[Conversation],
        n: int,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Completion]]:
        """As the engine's own."""
        mine = share(conversations), n, sampling, share(seeds)
        return [row for part in together(lambda: self.engine.sample(*mine)) for row in part]

    def score_options(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> np.ndarray:
        """As the engine's own."""
        mine = share(conversations)
        return np.concatenate(together(lambda: self.engine.score_options(mine, options)))


def open_engine(study: Study, name: str) -> Engine:
    """The engine that answers for a model of the study (`M0`, `baseline`, `M1`, `<arm>/M2`).

    `endpoint` is the model of `endpoint.model` behind its server; nothing else uses a network.
    Raises: SrkitError, also naming the notebook that trains a missing adapter.
    """
    return _open(study, name) if world() == 1 else Dealt(_open(study, name))


def _open(study: Study, name: str) -> Engine:
    if name == "endpoint":
        from srkit.endpoint import EndpointEngine

        return EndpointEngine(study.config.endpoint, study.spent)
    if study.config.model.engine == "vllm":
        if world() > 1:
            raise SrkitError(
                "model.engine = vllm is for one process. Make the tables without a launcher "
                "(`srkit make`), and only the adapters with one; or set model.engine=hf."
            )
        from srkit import vllm_engine

        return vllm_engine.open_engine(study, name)
    from srkit.generate import HfEngine
    from srkit.models import open_policy

    return HfEngine(open_policy(study, name), study.spent)
