"""Sweeps: many runs of one question, stated by a file, kept in one directory.

What a sweep file needs is here: `from sft_jax.sweeps import product, seeds, values`.
"""

from sft_jax.sweeps.combinators import chain, draws, fixed, product, seeds, subsample, values, zip_
from sft_jax.sweeps.distributions import choice, integers, log_uniform, uniform
from sft_jax.sweeps.search import Optuna, SuccessiveHalving

__all__ = [
    "Optuna",
    "SuccessiveHalving",
    "chain",
    "choice",
    "draws",
    "fixed",
    "integers",
    "log_uniform",
    "product",
    "seeds",
    "subsample",
    "uniform",
    "values",
    "zip_",
]
