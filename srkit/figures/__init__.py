"""The figures: tidy frame in, `Figure` out; `save` writes it as PNG, SVG and PDF beside its csv.

One function per figure of the paper or of the study, a module per question: `judging`, `ways`,
`calibration`, `lengths`, `length_control`, `matches`, `controls`, `benchmarks`, `ablations`,
`rivals`, `texts`, `groups`, `hacking`, `loop`, `refine` and `signals`; how all of them look is in
`style`.

    python -c "from srkit.figures import empty; empty('no pair was left').savefig('none.png')"
"""

from srkit.figures.ablations import ablations
from srkit.figures.benchmarks import alignment_tax, instruction_following
from srkit.figures.calibration import judge_agreement, judge_calibration
from srkit.figures.controls import controls
from srkit.figures.groups import breakdown, judging_breakdown
from srkit.figures.hacking import blind_spots, judge_probes, overoptimisation_curve
from srkit.figures.judging import reward_accuracy, score_histograms
from srkit.figures.length_control import equal_length, score_and_length
from srkit.figures.lengths import (
    answer_form,
    chosen_rejected_lengths,
    length_distributions,
    length_trend,
)
from srkit.figures.loop import funnel_counts, iteration_funnel, training_curves
from srkit.figures.matches import constraint_pass_rates, head_to_head, strengths
from srkit.figures.refine import refine_or_train, refine_rounds
from srkit.figures.rivals import gain_per_token
from srkit.figures.signals import loop_signals
from srkit.figures.style import empty, save
from srkit.figures.texts import data_map, prompt_novelty, prompt_topics
from srkit.figures.ways import judge_ways

__all__ = [
    "ablations",
    "alignment_tax",
    "answer_form",
    "blind_spots",
    "breakdown",
    "chosen_rejected_lengths",
    "constraint_pass_rates",
    "controls",
    "data_map",
    "empty",
    "equal_length",
    "funnel_counts",
    "gain_per_token",
    "head_to_head",
    "instruction_following",
    "iteration_funnel",
    "judge_agreement",
    "judge_calibration",
    "judge_probes",
    "judge_ways",
    "judging_breakdown",
    "length_distributions",
    "length_trend",
    "loop_signals",
    "overoptimisation_curve",
    "prompt_novelty",
    "prompt_topics",
    "refine_or_train",
    "refine_rounds",
    "reward_accuracy",
    "save",
    "score_and_length",
    "score_histograms",
    "strengths",
    "training_curves",
]
