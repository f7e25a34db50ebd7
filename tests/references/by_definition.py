"""The measures as their definitions read, in plain loops: what srkit's vector code is held against.

Nothing here calls srkit, pandas or numpy, and nothing is fast. A judged table is a list of prompts,
a prompt a list of (human rank, [score or None, ...]), rank 0 the best. A comparison is one prompt's
two presentations: which side was preferred with left shown first, and with right shown first
("left", "right", or None where nothing could be read). Undefined is None.

Sources: the paper's section 3.2.4 (reward metrics) and 3.1.4 (both orders); Kendall 1945 (tau-b);
Wilson 1927; Zermelo 1929 and Hunter 2004 (Bradley-Terry by minorisation).
"""

import itertools
import math

Z = 1.959963984540054  # of the two-sided 95 % interval


def mean(values):
    return sum(values) / len(values) if values else None


def score(judgements):
    """Mean of the judgements that parsed."""
    return mean([one for one in judgements if one is not None])


def equal(a, b):
    return abs(a - b) < 1e-9


# --- reward metrics ------------------------------------------------------------------------------


def outcomes(prompt):
    """What the judge made of every pair that humans ordered: right, wrong, tied, unscored."""
    found = []
    for (rank_a, marks_a), (rank_b, marks_b) in itertools.permutations(prompt, 2):
        if rank_a >= rank_b:
            continue
        better, worse = score(marks_a), score(marks_b)
        if better is None or worse is None:
            found.append("unscored")
        elif equal(better, worse):
            found.append("tied")
        else:
            found.append("right" if better > worse else "wrong")
    return found


def pairwise_accuracy(prompts, ties="out"):
    """Share of ordered pairs in the right order; `ties` are left "out", count "half" or "wrong"."""
    points, pairs = 0.0, 0
    for prompt in prompts:
        for outcome in outcomes(prompt):
            if outcome == "unscored" or (outcome == "tied" and ties == "out"):
                continue
            pairs += 1
            points += {"right": 1, "wrong": 0, "tied": 0.5 if ties == "half" else 0}[outcome]
    return points / pairs if pairs else None


def tie_rate(prompts):
    compared = [o for prompt in prompts for o in outcomes(prompt) if o != "unscored"]
    return mean([float(o == "tied") for o in compared])


def parse_rate(prompts):
    marks = [mark for prompt in prompts for _, marks in prompt for mark in marks]
    return mean([float(mark is not None) for mark in marks])


def five_best(prompts, perfect=5.0):
    """Of the responses with a perfect score, the share that humans ranked best."""
    hits = []
    for prompt in prompts:
        best = min(rank for rank, _ in prompt)
        for rank, marks in prompt:
            given = score(marks)
            if given is not None and given > perfect - 1e-9:
                hits.append(float(rank == best))
    return mean(hits)


def exact_match(prompts):
    """Share of prompts whose ordered pairs are all right; a prompt never judged takes no part."""
    hits = []
    for prompt in prompts:
        found = outcomes(prompt)
        if found and all(marks for _, marks in prompt):
            hits.append(float(all(outcome == "right" for outcome in found)))
    return mean(hits)


def scored_points(prompt):
    """(quality, score) of each scored response; quality is minus the human rank."""
    return [(-rank, score(marks)) for rank, marks in prompt if score(marks) is not None]


def kendall(points):
    """Tau-b: concordant less discordant pairs over the mean of those untied on either side."""
    agree, untied_x, untied_y = 0, 0, 0
    for (x1, y1), (x2, y2) in itertools.combinations(points, 2):
        x = 0 if equal(x1, x2) else (1 if x1 > x2 else -1)
        y = 0 if equal(y1, y2) else (1 if y1 > y2 else -1)
        agree, untied_x, untied_y = agree + x * y, untied_x + x * x, untied_y + y * y
    return agree / math.sqrt(untied_x * untied_y) if untied_x and untied_y else None


def midranks(values):
    return [
        sum(other < v and not equal(other, v) for other in values)
        + (sum(equal(other, v) for other in values) + 1) / 2
        for v in values
    ]


def spearman(points):
    """Pearson's correlation of the midranks."""
    if not points:
        return None
    x, y = (midranks(side) for side in zip(*points, strict=True))
    mean_x, mean_y = mean(x), mean(y)
    product = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)
    return product / math.sqrt(spread) if spread > 1e-12 else None


def within(prompts, correlation):
    """Mean over the prompts in which the correlation is defined."""
    found = [correlation(scored_points(prompt)) for prompt in prompts]
    return mean([value for value in found if value is not None])


def pooled(prompts, correlation):
    return correlation([point for prompt in prompts for point in scored_points(prompt)])


REWARD_METRICS = {
    "pairwise_accuracy": pairwise_accuracy,
    "pairwise_accuracy_ties_half": lambda prompts: pairwise_accuracy(prompts, "half"),
    "pairwise_accuracy_ties_wrong": lambda prompts: pairwise_accuracy(prompts, "wrong"),
    "tie_rate": tie_rate,
    "parse_rate": parse_rate,
    "five_best": five_best,
    "five_best_rounded": lambda prompts: five_best(prompts, 4.5),
    "exact_match": exact_match,
    "spearman": lambda prompts: within(prompts, spearman),
    "kendall": lambda prompts: within(prompts, kendall),
    "spearman_pooled": lambda prompts: pooled(prompts, spearman),
    "kendall_pooled": lambda prompts: pooled(prompts, kendall),
}


# --- judge health --------------------------------------------------------------------------------


def flat_rate(prompts):
    """Of the prompts with two or more scored responses, the share where all scores are equal."""
    flat = []
    for prompt in prompts:
        scores = [given for _, given in scored_points(prompt)]
        if len(scores) > 1:
            flat.append(float(equal(min(scores), max(scores))))
    return mean(flat)


def all_pairs_tie_rate(prompts):
    """Of all pairs of scored responses of a prompt, whatever their rank, the share that ties."""
    ties = []
    for prompt in prompts:
        scores = [given for _, given in scored_points(prompt)]
        ties += [float(equal(a, b)) for a, b in itertools.combinations(scores, 2)]
    return mean(ties)


# --- intervals -----------------------------------------------------------------------------------


def wilson(successes, n):
    """The p at which the observed share lies just 1.96 standard errors away, by bisection."""
    share = successes / n

    def apart(p):
        return abs(share - p) - Z * math.sqrt(p * (1 - p) / n)

    def root(inside, outside):
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if apart(middle) <= 0 else (inside, middle)
        return inside

    return (0.0 if share == 0 else root(share, 0.0)), (1.0 if share == 1 else root(share, 1.0))


def all_resamples(clusters, statistic):
    """`statistic` of each of the n**n equally likely resamples of n clusters, sorted."""
    draws = itertools.product(clusters, repeat=len(clusters))
    return sorted(value for value in map(statistic, draws) if value is not None)


# --- comparisons ---------------------------------------------------------------------------------


def verdict(left_first, right_first):
    """+1 if both presentations prefer left, -1 if both prefer right, 0 for everything else."""
    if left_first == right_first == "left":
        return 1
    if left_first == right_first == "right":
        return -1
    return 0


def win_rate(comparisons):
    return mean([(1 + verdict(*both)) / 2 for both in comparisons])


def position_consistency(comparisons):
    """Share of prompts with both presentations read in which both prefer the same side."""
    read = [both for both in comparisons if None not in both]
    return mean([float(left_first == right_first) for left_first, right_first in read])


def first_preferred(comparisons):
    """Share of those presentations that the answer shown first won."""
    read = [both for both in comparisons if None not in both]
    return mean([float(b[i] == side) for b in read for i, side in enumerate(("left", "right"))])


# --- strengths and power -------------------------------------------------------------------------


def logistic(rows, targets, sweeps=3000):
    """Coefficients that maximise the likelihood, one at a time by Newton's rule, over and over."""
    found = [0.0] * len(rows[0])
    for _ in range(sweeps):
        for k in range(len(found)):
            slope = curve = 0.0
            for row, target in zip(rows, targets, strict=True):
                p = 1 / (1 + math.exp(-sum(b * x for b, x in zip(found, row, strict=True))))
                slope, curve = slope + row[k] * (target - p), curve + row[k] ** 2 * p * (1 - p)
            found[k] += slope / curve
    return found


def length_controlled(longer, won):
    """Win rate at equal length: half a win and half a loss for the advantage and for length."""
    centre = sum(longer) / len(longer)
    spread = math.sqrt(sum((d - centre) ** 2 for d in longer) / (len(longer) - 1))
    rows = [(1.0, math.tanh(d / spread)) for d in longer] + [(1.0, 0.0), (0.0, 1.0)]
    theta, weight = logistic(rows, [*won, 0.5, 0.5])
    return 1 / (1 + math.exp(-theta)), weight


def bradley_terry(games, sweeps=5000):
    """Log-strengths by minorisation from (left, right, points of left); a tie per pair is added."""
    pairs = {frozenset((left, right)) for left, right, _ in games}
    games = [*games, *((*sorted(pair), 0.5) for pair in pairs)]
    models = sorted({side for left, right, _ in games for side in (left, right)})
    strength = dict.fromkeys(models, 1.0)
    for _ in range(sweeps):
        new = {}
        for m in models:
            won = sum(p if m == left else 1 - p for left, right, p in games if m in (left, right))
            met = [(left, right) for left, right, _ in games if m in (left, right)]
            new[m] = won / sum(1 / (strength[left] + strength[right]) for left, right in met)
        strength = new
    return {m: math.log(strength[m]) for m in models}


def binomial(k, n, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def sign_test_power(n, p):
    """How often an exact two-sided sign test at 5 % tells games won with p from a coin."""
    shown = 0.0
    for wins in range(n + 1):
        tail = sum(binomial(k, n, 0.5) for k in range(min(wins, n - wins) + 1))
        if 2 * tail <= 0.05:
            shown += binomial(wins, n, p)
    return shown
