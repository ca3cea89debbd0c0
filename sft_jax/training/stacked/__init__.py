"""Several runs in one program: those that differ only in what can be a batch axis train together."""

from sft_jax.training.stacked.fields import NotStackableError, groups_of, refuse_what_cannot_be_stacked
from sft_jax.training.stacked.loop import run_stacked

__all__ = ["NotStackableError", "groups_of", "refuse_what_cannot_be_stacked", "run_stacked"]
