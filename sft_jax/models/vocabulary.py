"""New tokens of a run: adds them to the tokenizer, and gives them embeddings, and weights in the head, in the model.

`config.model.new_tokens` are added to the tokenizer as special tokens, with the next ids that it has free. Many models
have embeddings of more ids than their tokenizer uses (the vocabulary is padded to a round number): new tokens take
those first, and the embedding grows only when there are not enough. Their embeddings start at the mean of those that
the tokenizer's tokens had before.

New tokens are recognised where the chat template writes them, and also where the content of a message spells them
unless `config.model.new_tokens_in_contents` is False. The tokenizer stores that choice, also when it is exported.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Float
from tokenizers import AddedToken

from sft_jax.data.rendering.special_tokens import count_in_contents
from sft_jax.models.config import DecoderConfig
from sft_jax.options import ModelOptions
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

Tree = Any
_FLAG = "--config.model.new_tokens"
_ROUND = 128  # as far as the old size was a multiple of it, or of a power of two below, a grown one is too
_TOKEN_AXIS = {"embedding": 0, "head": 1}


def problems_of(new_tokens: Sequence[str]) -> list[str]:
    """What is wrong with new tokens whatever the tokenizer; names each token."""
    problems = [f"{_FLAG}: {token!r} is no token; give texts that are not empty" for token in new_tokens if not token]
    twice = sorted({token for token in new_tokens if new_tokens.count(token) > 1})
    return problems + [f"{_FLAG}: {token!r} is there {new_tokens.count(token)} times; give it once" for token in twice]


def add_new_tokens(tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[str], in_contents: bool = False) -> range:
    """Adds special tokens to a tokenizer, in place.

    Args:
        tokenizer: of the base model.
        new_tokens: their texts.
        in_contents: they count also where contents spell them, and not only where the chat template writes them.

    Returns:
        Their ids, in order.

    Raises:
        ValueError: a text that is empty, there twice, or a token already; or ids that are taken.
    """
    if not new_tokens:
        return range(0)
    problems, known = problems_of(tuple(new_tokens)), tokenizer.get_vocab()
    problems += [
        f"{_FLAG}: {token!r} is a token already, with id {known[token]}; leave it out"
        for token in new_tokens
        if token in known
    ]
    if problems:
        raise ValueError("\n".join(problems))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in new_tokens], True)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in new_tokens]
    token_ids = range(ids[0], ids[0] + len(ids))
    if ids != list(token_ids) or any(number in token_ids for number in known.values()):
        raise ValueError(
            f"{_FLAG}: the tokenizer numbers them {ids}, which are taken or do not follow one another: its own ids "
            "have gaps. Add them to the tokenizer's files by hand, and resize the model there."
        )
    if in_contents:
        count_in_contents(tokenizer, new_tokens)
    return token_ids


def with_new_tokens(tokenizer: PreTrainedTokenizerBase, model: ModelOptions) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model with the new tokens of a run that starts from it.

    Raises:
        ValueError: see `add_new_tokens`.
    """
    add_new_tokens(tokenizer, model.new_tokens, model.new_tokens_in_contents)
    return tokenizer


def grown(decoder: DecoderConfig, new_token_ids: range) -> DecoderConfig:
    """The decoder with an embedding for every new token.

    Its vocabulary size stays as it is where it is enough. Otherwise it grows to a number that the same powers of two
    divide, up to 128, so that the vocabulary is split over devices as before: 49,152 with ids up to 49,153 becomes
    49,280.

    Raises:
        ValueError: tokens have a second embedding, of which new ones have none.
    """
    if decoder.per_layer_dim and new_token_ids:
        raise ValueError(
            f"{_FLAG}: this model has a second embedding of each token, with a part for each layer "
            "(hidden_size_per_layer_input, as Gemma 4 E2B and E4B); new tokens are not implemented for it. Use tokens "
            "that it has, as <unused0>"
        )
    if new_token_ids.stop <= decoder.vocab_size:
        return decoder
    unit = math.gcd(decoder.vocab_size, _ROUND)
    return dataclasses.replace(decoder, vocab_size=-(-new_token_ids.stop // unit) * unit)


def resized(
    params: Tree, decoder: DecoderConfig, new_token_ids: range, sharding: Callable[[str, tuple[int, ...]], Sharding]
) -> Tree:
    """Parameters with new tokens in the embedding [V, D], and in the head [D, V] where that is a weight of its own.

    The embeddings of the new tokens, and all that the embedding grows by, begin at the mean, taken in float32, of the
    embeddings of all tokens that the tokenizer had before, its special tokens included. Embeddings of ids that no token
    uses are left out of the mean. All others keep their bits, and the whole keeps its dtype. Likewise for the head.

    Args:
        params: in either layout; other parameters are passed on.
        decoder: the grown one.
        new_token_ids: ids of the new tokens.
        sharding: where the array of a path and shape lives.
    """
    changed = {}
    for name, axis in _TOKEN_AXIS.items():
        if name in params:
            weight = params[name]
            shape = tuple(decoder.vocab_size if i == axis else size for i, size in enumerate(weight.shape))
            changed[name] = _resize(sharding(name, shape), axis, decoder.vocab_size, new_token_ids)(weight)
    return {**params, **changed}


@functools.cache
def _resize(sharding: Sharding, axis: int, size: int, new_token_ids: range) -> Callable[[Array], Array]:
    def resize(weight: Float[Array, "..."]) -> Float[Array, "..."]:
        before = weight.shape[axis]
        known = jax.lax.slice_in_dim(weight, 0, min(new_token_ids.start, before), axis=axis)
        mean = jnp.mean(known.astype(jnp.float32), axis=axis, keepdims=True).astype(weight.dtype)
        padding = [(0, size - before if i == axis else 0) for i in range(weight.ndim)]
        ids = jax.lax.broadcasted_iota(jnp.int32, (size, 1) if axis == 0 else (1, size), axis)
        begins = ((ids >= new_token_ids.start) & (ids < new_token_ids.stop)) | (ids >= before)
        return jnp.where(begins, mean, jnp.pad(weight, padding))

    return jax.jit(resize, out_shardings=sharding)
