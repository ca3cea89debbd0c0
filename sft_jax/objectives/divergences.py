"""How far a student's distribution of the next token is from its teacher's: what distillation minimises.

Both are given by their log-probabilities of the same outcomes: of all tokens, or of the teacher's most likely ones and
one outcome for the rest (`top_k.py`). A new divergence is one function here plus its line in `DIVERGENCES`.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from sft_jax.objectives.kl import kl_of_log_probabilities


@flax.struct.dataclass
class DistillationSettings:
    """Numbers of distillation, as scalars: arrays in the compiled step. A term whose number is None is left out of it.

    Attributes:
        temperature: by which the logits of both are divided; the divergence is multiplied by its square.
        teacher_share: of `jensen_shannon`, share of the teacher in the mixture.
        cross_entropy_share: share of the cross-entropy in the loss; the rest is the divergence's.
    """

    temperature: Any = None
    teacher_share: Any = None
    cross_entropy_share: Any = None


LogProbabilities = Float[Array, "*slots outcomes"]
Divergence = Callable[[LogProbabilities, LogProbabilities, DistillationSettings], Float[Array, "*slots"]]


def forward_kl(
    teacher: LogProbabilities, student: LogProbabilities, settings: DistillationSettings
) -> Float[Array, "*slots"]:
    """KL(teacher || student) (Hinton et al. 2015, https://arxiv.org/abs/1503.02531): what the teacher thinks likely,
    the student is to think likely too.

    Teacher 1/2, 1/4, 1/8, 1/8 and student 0.4, 0.3, 0.2, 0.1: 0.035134.
    """
    del settings
    return kl_of_log_probabilities(teacher, student)


def reverse_kl(
    teacher: LogProbabilities, student: LogProbabilities, settings: DistillationSettings
) -> Float[Array, "*slots"]:
    """KL(student || teacher) (Gu et al. 2023, https://arxiv.org/abs/2306.08543): what the teacher thinks unlikely, the
    student is to think unlikely too. Of the example above: 0.037125."""
    del settings
    return kl_of_log_probabilities(student, teacher)


def jensen_shannon(
    teacher: LogProbabilities, student: LogProbabilities, settings: DistillationSettings
) -> Float[Array, "*slots"]:
    """b KL(teacher || m) + (1 - b) KL(student || m) with m = b teacher + (1 - b) student, b being `teacher_share`: the
    generalised Jensen-Shannon divergence of Agarwal et al. 2023 (https://arxiv.org/abs/2306.13649).

    Of the example above, at 1/2: 0.008984.
    """
    share = settings.teacher_share
    mixed = jnp.logaddexp(jnp.log(share) + teacher, jnp.log1p(-share) + student)
    return share * kl_of_log_probabilities(teacher, mixed) + (1 - share) * kl_of_log_probabilities(student, mixed)


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
}
READS = {"jensen_shannon": ("teacher_share",)}  # fields of `config.objective` that not all divergences read
