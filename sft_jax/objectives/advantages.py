"""Advantages: by how much each sampled answer is better than what its prompt's other answers let expect.

On the host, in float64. Where all rewards of a group are equal its advantages are exactly 0, whatever rounding leaves
of a mean: a division by a standard deviation would make large numbers of that.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64

Rewards = Float64[np.ndarray, "prompts group"]
EPSILON = 1e-4  # added to standard deviations


def without_signal(rewards: Rewards) -> Bool[np.ndarray, "prompts"]:
    """Whether all rewards of a group are equal: its answers teach nothing."""
    return (rewards == rewards[:, :1]).all(axis=1)


def centred(rewards: Rewards) -> Rewards:
    """The reward less the mean of its group (Dr. GRPO, Liu et al. 2025, https://arxiv.org/abs/2503.20783)."""
    return rewards - rewards.mean(axis=1, keepdims=True)


def leave_one_out(rewards: Rewards) -> Rewards:
    """The reward less the mean of the others of its group (RLOO, Ahmadian et al. 2024)."""
    return centred(rewards) * (rewards.shape[1] / (rewards.shape[1] - 1))


def group_std(rewards: Rewards) -> Rewards:
    """`centred`, in standard deviations of the group (GRPO, Shao et al. 2024, https://arxiv.org/abs/2402.03300)."""
    return centred(rewards) / (rewards.std(axis=1, ddof=1, keepdims=True) + EPSILON)


def batch_std(rewards: Rewards) -> Rewards:
    """`centred`, in standard deviations of all rewards of the step (Liu et al. 2025,
    https://arxiv.org/abs/2508.08221)."""
    return centred(rewards) / (rewards.std(ddof=1) + EPSILON)


ADVANTAGES: dict[str, Callable[[Rewards], Rewards]] = {
    "centred": centred,
    "leave_one_out": leave_one_out,
    "group_std": group_std,
    "batch_std": batch_std,
}


def advantages(rewards: Rewards, kind: str) -> Rewards:
    """The advantage of each answer.

    Rewards 1, 0, 0, 0: `centred` 0.75 and three times -0.25; `leave_one_out` 1 and -1/3; `group_std` 1.4997 and
    -0.4999.

    Args:
        rewards: of the answers to each prompt, at least two.
        kind: a name in ADVANTAGES.
    """
    return np.where(without_signal(rewards)[:, None], 0.0, ADVANTAGES[kind](rewards))
