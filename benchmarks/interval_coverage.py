"""How often the intervals of `sft_jax/evaluation/statistics.py` hold the truth, and how often its tests find nothing.

    python -m benchmarks.interval_coverage [--repetitions=1000]

95 % intervals should cover in 95 % of evaluations, and tests at 0.05 be below it in at most 5 % of those in which two
systems do not differ. Wilson's coverage is computed; the others are simulated, with a standard error of 0.7 points
at 1,000 repetitions.
"""

from collections.abc import Callable

import numpy as np
from absl import app, flags
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from sft_jax.evaluation import statistics

_REPETITIONS = flags.DEFINE_integer("repetitions", 1_000, "Evaluations simulated for each line.", lower_bound=1)
RESAMPLES = 1_999
EXAMPLES = (100, 300, 1_000)
SHARES = np.linspace(0.02, 0.98, 97)

Draw = Callable[[np.random.Generator, int], Float[np.ndarray, "examples columns"]]


def main(_: list[str]) -> None:
    """Computes, simulates and prints."""
    console = Console()
    table = Table("examples", "mean over p", "lowest", "at p = 0.02", title="Wilson's interval, exact coverage, %")
    for examples in (50, *EXAMPLES):
        covered = [wilson_coverage(share, examples) for share in SHARES]
        figures = np.mean(covered), np.min(covered), wilson_coverage(0.02, examples)
        table.add_row(str(examples), *(f"{100 * figure:.2f}" for figure in figures))
    console.print(table)
    table = Table("what", "examples", "interval covers, %", "p < 0.05 without a difference, %", title="Simulated")
    for name, (draw, statistic, truth, maximum) in KINDS.items():
        for examples in EXAMPLES:
            covers = bca_coverage(draw, statistic, truth, maximum, examples, _REPETITIONS.value)
            false = false_positives(draw, statistic, examples, _REPETITIONS.value)
            table.add_row(name, str(examples), f"{100 * covers:.1f}", f"{100 * false:.1f}")
    console.print(table)


def wilson_coverage(share: float, examples: int) -> float:
    """Probability that Wilson's interval holds the share of which the examples are drawn: summed over all outcomes."""
    from scipy import stats

    outcomes = np.arange(examples + 1)
    intervals = [statistics.wilson(int(right), examples) for right in outcomes]
    covers = [interval.low <= share <= interval.high for interval in intervals]
    return float(stats.binom.pmf(outcomes, examples, share) @ covers)


def bca_coverage(
    draw: Draw, statistic: statistics.Statistic, truth: float, maximum: float | None, examples: int, repetitions: int
) -> float:
    """Share of simulated evaluations whose BCa interval holds the truth."""
    hits = 0
    for seed in range(repetitions):
        columns = draw(np.random.default_rng(seed), examples)
        score = statistics.bootstrap_interval(columns, statistic, seed=seed, maximum=maximum, resamples=RESAMPLES)
        hits += score.low <= truth <= score.high
    return hits / repetitions


def false_positives(draw: Draw, statistic: statistics.Statistic, examples: int, repetitions: int) -> float:
    """Share of simulated comparisons of two equally good systems in which the paired test is below 0.05."""
    hits = 0
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        pair = draw(rng, examples), draw(rng, examples)
        hits += statistics.paired_permutation(*pair, statistic, seed=seed, permutations=RESAMPLES) < 0.05
    return hits / repetitions


def draw_shares(rng: np.random.Generator, examples: int) -> Float[np.ndarray, "examples 2"]:
    """Values of Beta(8, 2), such as ROUGE-L: skewed, with the mean 0.8."""
    return statistics.mean_columns(rng.beta(8, 2, examples))


def draw_fields(rng: np.random.Generator, examples: int) -> Float[np.ndarray, "examples 3"]:
    """Six fields, all of them predicted, of documents that are easier or harder: Beta(9, 1), with the mean 0.9."""
    hits = rng.binomial(6, rng.beta(9, 1, examples)).astype(np.float64)
    return np.stack([hits, np.full(examples, 6.0), np.full(examples, 6.0)], -1)


def draw_losses(rng: np.random.Generator, examples: int) -> Float[np.ndarray, "examples 2"]:
    """Losses of Gamma(2, 1) nats a token, with the mean 2, over answers of 1 to 100 tokens: a ratio of sums."""
    tokens = rng.integers(1, 101, examples).astype(np.float64)
    return np.stack([tokens * rng.gamma(2, 1, examples), tokens], -1)


KINDS = {
    "mean of shares": (draw_shares, statistics.ratio_of_sums, 0.8, 1.0),
    "micro-F1 of fields": (draw_fields, statistics.micro_f1, 0.9, 1.0),
    "loss by tokens": (draw_losses, statistics.ratio_of_sums, 2.0, None),
}


if __name__ == "__main__":
    app.run(main)
