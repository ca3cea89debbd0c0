"""Losses of pairs: functions of the scores of the preferred answer and of the other one."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_ALMOST_CERTAIN = -1e-10  # the highest mean log-probability, so that odds are finite


@flax.struct.dataclass
class PreferenceSettings:
    """Numbers of a method, as scalars: arrays in the compiled step. A term whose number is None is left out of it.

    Attributes:
        beta: factor of the scores' difference; of ORPO, of its term in the loss.
        margin: by how much the scores are to differ (SimPO's gamma).
        label_smoothing: share of pairs whose label is taken to be wrong (Mitchell 2023, cDPO).
        tail_weight: weight of tokens beyond the length of the shorter answer, on policy and reference (LD-DPO, Liu et
            al. 2024, https://arxiv.org/abs/2409.06411).
        sft_weight: factor of the chosen answer's negative log-likelihood a token (RPO, Pang et al. 2024).
        desirable_weight: of KTO, factor of the losses of answers that are wanted.
        undesirable_weight: of KTO, factor of those of others.
        centring: of a reward model, factor of the square of the sum of both scores (Eisenstein et al. 2023).
        kl: of KTO, the point of reference of the whole step, where this is a part of one; None: of what is at hand.
        per_token: scores are means over tokens.
    """

    beta: Any
    margin: Any = None
    label_smoothing: Any = None
    tail_weight: Any = None
    sft_weight: Any = None
    desirable_weight: Any = None
    undesirable_weight: Any = None
    centring: Any = None
    kl: Any = None
    per_token: bool = flax.struct.field(pytree_node=False, default=False)


Scores = Float[Array, "B pairs"]
Loss = Callable[[Scores, Scores, PreferenceSettings], Scores]


def sigmoid(chosen: Scores, rejected: Scores, settings: PreferenceSettings) -> Scores:
    """-ln sigmoid(beta (chosen - rejected) - margin): DPO (Rafailov et al. 2023), CPO (Xu et al. 2024), SimPO (Meng et
    al. 2024), by what the scores are."""
    margins = settings.beta * (chosen - rejected) - (0.0 if settings.margin is None else settings.margin)
    if settings.label_smoothing is None:
        return -jax.nn.log_sigmoid(margins)
    wrong = settings.label_smoothing
    return -(1 - wrong) * jax.nn.log_sigmoid(margins) - wrong * jax.nn.log_sigmoid(-margins)


def robust(chosen: Scores, rejected: Scores, settings: PreferenceSettings) -> Scores:
    """Unbiased where that share of the labels is wrong, below a half (Chowdhury et al. 2024, rDPO)."""
    margins, wrong = settings.beta * (chosen - rejected), settings.label_smoothing
    right, turned = jax.nn.log_sigmoid(margins), jax.nn.log_sigmoid(-margins)
    return (wrong * turned - (1 - wrong) * right) / (1 - 2 * wrong)


def hinge(chosen: Scores, rejected: Scores, settings: PreferenceSettings) -> Scores:
    """max(0, 1 - beta (chosen - rejected)) (SLiC, Zhao et al. 2023; as a loss of log-ratios, Liu et al. 2024, RSO)."""
    return jax.nn.relu(1 - settings.beta * (chosen - rejected))


def ipo(chosen: Scores, rejected: Scores, settings: PreferenceSettings) -> Scores:
    """(chosen - rejected - 1 / (2 beta))^2, of means over tokens (Azar et al. 2023)."""
    return (chosen - rejected - 1 / (2 * settings.beta)) ** 2


def odds_ratio(chosen: Scores, rejected: Scores, settings: PreferenceSettings) -> Scores:
    """-beta ln sigmoid(ln(odds(chosen) / odds(rejected))), odds(p) = p / (1 - p), of means (ORPO, Hong et al. 2024)."""

    def log_odds(score: Scores) -> Scores:
        score = jnp.minimum(score, _ALMOST_CERTAIN)
        return score - jnp.log(-jnp.expm1(score))

    return -settings.beta * jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))
