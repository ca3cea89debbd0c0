"""How many held-out examples show a difference that is hoped for: asked before an evaluation, not after."""

import math

from sft_jax.evaluation.statistics import CONFIDENCE

POWER = 0.8
MOST_EXAMPLES = 10_000_000


def examples_needed(
    difference: float,
    *,
    discordant: float | None = None,
    deviation: float | None = None,
    power: float = POWER,
    significance: float = 1 - CONFIDENCE,
) -> int:
    """Examples with which a paired, two-sided test shows a difference of two systems with a probability of `power`.

    Of proportions, give `discordant`, the expected share of examples that just one of the two gets right:
    n = (z_a sqrt(d) + z_b sqrt(d - difference^2))^2 / difference^2, the McNemar test's (Connor 1987, Biometrics 43:207;
    z_a and z_b are the normal quantiles of 1 - significance / 2 and of the power). The exact McNemar test, which
    `compare` uses, is somewhat conservative: with the 155 examples below its power is 0.76.

    Of means, give `deviation`, the standard deviation of the differences between the two within an example: the
    smallest n with which the paired t test has the power, by the noncentral t distribution (Cohen 1988).

    >>> examples_needed(0.1, discordant=0.2)
    155
    >>> examples_needed(0.05, deviation=0.1)
    34

    Raises:
        ValueError: none or both are given, or a number is out of its range: a difference of 0 is never shown, and it
            cannot be larger than the discordant share.
    """
    if (discordant is None) == (deviation is None):
        raise ValueError("examples_needed: give discordant (of proportions) or deviation (of means), and not both")
    if not (0 < power < 1 and 0 < significance < 1):
        raise ValueError(f"examples_needed: power and significance lie between 0 and 1, got {power} and {significance}")
    effect = abs(difference)
    if effect == 0:
        raise ValueError("examples_needed: no number of examples shows a difference of 0")
    if discordant is not None:
        if not effect <= discordant <= 1:
            raise ValueError(
                f"examples_needed: the discordant share must lie between the difference, {effect}, and 1, "
                f"got {discordant}"
            )
        return _of_proportions(effect, discordant, power, significance)
    if not deviation > 0:
        raise ValueError(f"examples_needed: the deviation must be above 0, got {deviation}")
    return _of_means(effect / deviation, power, significance)


def _of_proportions(effect: float, discordant: float, power: float, significance: float) -> int:
    from scipy import special

    z_significance, z_power = special.ndtri(1 - significance / 2), special.ndtri(power)
    root = z_significance * math.sqrt(discordant) + z_power * math.sqrt(discordant - effect**2)
    return math.ceil(root**2 / effect**2)


def _of_means(effect: float, power: float, significance: float) -> int:
    """Bisection: the power grows with the number of examples."""
    low, high = 1, 2
    while _power_of_t_test(effect, high, significance) < power:
        low, high = high, 2 * high
        if high > MOST_EXAMPLES:
            raise ValueError(f"examples_needed: more than {MOST_EXAMPLES:,} for {effect:.3g} of a standard deviation")
    while high - low > 1:
        middle = (low + high) // 2
        if _power_of_t_test(effect, middle, significance) < power:
            low = middle
        else:
            high = middle
    return high


def _power_of_t_test(effect: float, examples: int, significance: float) -> float:
    """Of a paired, two-sided test; `effect` is in standard deviations of the differences."""
    from scipy import special

    freedom, shift = examples - 1, effect * math.sqrt(examples)
    limit = special.stdtrit(freedom, 1 - significance / 2)
    return float(1 - special.nctdtr(freedom, shift, limit) + special.nctdtr(freedom, shift, -limit))
