"""Generates text with a model: chooses tokens (`Sampling`) and answers batches of prompts (`Generator`)."""

from sft_jax.generation.decode import Sampling
from sft_jax.generation.generator import MAX_NEW_TOKENS, MAX_POSITIONS, Generated, Generator, problem_of_prompt

__all__ = ["MAX_NEW_TOKENS", "MAX_POSITIONS", "Generated", "Generator", "Sampling", "problem_of_prompt"]
