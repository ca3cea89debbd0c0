"""Text from a model: choosing tokens, decoding with a key/value cache, and prompts in, answers out."""

from sft_jax.generation.decode import Sampling
from sft_jax.generation.generator import Generated, Generator

__all__ = ["Generated", "Generator", "Sampling"]
