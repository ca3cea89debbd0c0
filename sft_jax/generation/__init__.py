"""Uses a model: weights prepared once (`prepare`), answers (`Sampler`), likelihood of given ones (`loglikelihoods`)."""

from sft_jax.generation.likelihood import Likelihood, loglikelihoods
from sft_jax.generation.prepared import Prepared, prepare
from sft_jax.generation.prompts import problem_of_prompt
from sft_jax.generation.sampler import MAX_NEW_TOKENS, MAX_POSITIONS, STOP, Generated, Sampler
from sft_jax.generation.sampling import Sampling
from sft_jax.generation.sizes import Sizes

__all__ = [
    "MAX_NEW_TOKENS",
    "MAX_POSITIONS",
    "STOP",
    "Generated",
    "Likelihood",
    "Prepared",
    "Sampler",
    "Sampling",
    "Sizes",
    "loglikelihoods",
    "prepare",
    "problem_of_prompt",
]
