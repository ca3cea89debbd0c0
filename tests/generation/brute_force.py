"""What a model says of a whole text, read in one piece and without a cache: generating and judging agree with it."""

import functools

import jax
import numpy as np

from sft_jax.models import Decoder


@functools.partial(jax.jit, static_argnums=0)
def _log_probabilities(model: Decoder, variables: dict, tokens: np.ndarray) -> jax.Array:
    return jax.nn.log_softmax(model.apply(variables, tokens))


def log_probabilities(model: Decoder, variables: dict, tokens: np.ndarray, size: int = 96) -> np.ndarray:
    """Of each token of the vocabulary behind each token of a text: float32 [tokens, vocabulary].

    The text is filled up to `size`, so that all texts are read by one program: what comes later tells nothing.
    """
    padded = np.zeros((1, size), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_log_probabilities(model, variables, padded))[0, : len(tokens)]
