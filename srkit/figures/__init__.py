"""The figures: tidy frame in, `Figure` out; `save` writes it as PNG, SVG and PDF beside its csv.

One function per figure of the paper or of the study, a module per question: `judging`, `lengths`,
`matches`, `controls` and `loop`; how all of them look is in `style`.

    python -c "from srkit.figures import empty; empty('no pair was left').savefig('none.png')"
"""

from srkit.figures.controls import controls
from srkit.figures.judging import reward_accuracy, score_histograms
from srkit.figures.lengths import chosen_rejected_lengths, length_distributions, length_trend
from srkit.figures.loop import funnel_counts, iteration_funnel, training_curves
from srkit.figures.matches import constraint_pass_rates, head_to_head, strengths
from srkit.figures.style import empty, save

__all__ = [
    "chosen_rejected_lengths",
    "constraint_pass_rates",
    "controls",
    "empty",
    "funnel_counts",
    "head_to_head",
    "iteration_funnel",
    "length_distributions",
    "length_trend",
    "reward_accuracy",
    "save",
    "score_histograms",
    "strengths",
    "training_curves",
]
