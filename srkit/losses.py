"""The losses of preference training: DPO's, and the terms that later methods add to it.

Every function takes and gives one value per pair, before the mean. `preference_loss` is tied to
TRL's by a parity test.

    python -c "import torch; from srkit.losses import *; zero = torch.zeros(1); \\
        print(preference_loss(zero, zero, zero, zero, beta=0.1))"
"""

from __future__ import annotations

import torch
from torch.nn import functional


def preference_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
    smoothing: float = 0.0,
    handicap: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """DPO's loss per pair: equation 7 of arXiv 2305.18290, before the mean.  # (batch,)

    The first four are log-probabilities of whole completions, each of shape (batch,). Where policy
    and reference agree, the loss is ln 2.

    `smoothing` is the weight of the same pair turned round (the rest is that of the pair as it is):
    1 - C in CREAM, arXiv 2410.12735. `handicap`, (batch,), is what the margin has before anything
    is learned: `length_handicap` in R-DPO.
    """
    chosen_reward = beta * (policy_chosen - reference_chosen)  # (batch,)
    rejected_reward = beta * (policy_rejected - reference_rejected)  # (batch,)
    margin = chosen_reward - rejected_reward + handicap
    kept, turned = functional.logsigmoid(margin), functional.logsigmoid(-margin)
    return -(1 - smoothing) * kept - smoothing * turned


def length_handicap(chosen: torch.Tensor, rejected: torch.Tensor, alpha: float) -> torch.Tensor:
    """alpha (|y_w| - |y_l|): R-DPO's term in the margin, arXiv 2403.19159.  # (batch,)

    Arguments are numbers of tokens, (batch,). A chosen response that is longer has a head start, so
    that the pair teaches less; a shorter one teaches more.
    """
    return alpha * (chosen - rejected)


def likelihood_loss(policy_chosen: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood per token of each chosen response: IRPO's second term, before alpha.

    arXiv 2404.19733, equation 1, adds alpha times this to DPO's loss. Arguments have shape
    (batch,): log-probabilities of whole completions, and their numbers of tokens.  # (batch,)
    """
    return -policy_chosen / tokens
