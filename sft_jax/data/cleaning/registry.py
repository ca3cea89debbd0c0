"""The registry of cleaning steps by name; filled in the package's __init__, read by the pipeline."""

from sft_jax.data.cleaning.steps import StepKind

STEPS: dict[str, StepKind] = {}
