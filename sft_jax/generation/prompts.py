"""What prompts must be like to be answered, and what they have in common."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int32

from sft_jax.models import positions
from sft_jax.models.config import DecoderConfig

Prompt = Int32[np.ndarray, "_"]  # prompts differ in length

_MULTIPLE = 64  # shared beginnings are cut to multiples of this: few shapes, few compilations


def problem_of_prompt(prompt: Prompt, decoder: DecoderConfig) -> str:
    """Why this prompt cannot be answered, as the end of a sentence that begins with its name; empty where it can.

    A token has no embedding in the model, or the prompt takes all positions that the model knows.
    """
    if problem := _unknown_token(prompt, decoder):
        return problem
    if len(prompt) >= decoder.max_positions:
        return (
            f"has {len(prompt)} tokens; the model knows {decoder.max_positions} positions, which leaves none for an "
            f"answer. Give a shorter one{positions.advice(decoder)}."
        )
    return ""


def _unknown_token(prompt: Prompt, decoder: DecoderConfig) -> str:
    if prompt.max() >= decoder.vocab_size:
        return (
            f"has token {prompt.max()}; the model has embeddings of {decoder.vocab_size} tokens. Tokenizer and weights "
            "do not belong together."
        )
    return ""


def check_prompts(prompts: Sequence[Prompt], decoder: DecoderConfig) -> None:
    """Checks that all of them can be answered.

    Raises:
        ValueError: one is empty, or cannot be answered.
    """
    _check(prompts, decoder, problem_of_prompt)


def check_tokens(prompts: Sequence[Prompt], decoder: DecoderConfig) -> None:
    """Checks that all of them can be read, of whatever length they are.

    Raises:
        ValueError: one is empty, or has a token without an embedding.
    """
    _check(prompts, decoder, _unknown_token)


def _check(
    prompts: Sequence[Prompt], decoder: DecoderConfig, problem_of: Callable[[Prompt, DecoderConfig], str]
) -> None:
    empty = [index for index, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ValueError(f"prompts {empty[:5]} are empty: there is nothing to continue")
    for index, prompt in enumerate(prompts):
        if problem := problem_of(prompt, decoder):
            raise ValueError(f"prompt {index} {problem}")


def shared_tokens(prompts: Sequence[Prompt]) -> int:
    """How many tokens all prompts begin with, less what leaves each at least one; in multiples of 64."""
    if len(prompts) < 2:
        return 0
    shortest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0][:shortest]
    same = np.logical_and.reduce([prompt[:shortest] == first for prompt in prompts])
    common = shortest if same.all() else int(np.argmin(same))
    return common // _MULTIPLE * _MULTIPLE
