"""Decoding with a key/value cache: prefill once, then blocks of tokens, both jitted.

A batch holds one sequence for each prompt: the prompt and its answer. The text of an answer does not depend on the
batch it is decoded in: sequences do not see one another, and the randomness of each token is folded from the example id
of its sequence and the number of the token, not drawn from a stream that the batch shares.

Dimensions: B sequences, T tokens of a prompt, V vocabulary.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sft_jax.models.decoder import Cache, Decoder, init_cache
from sft_jax.models.partitioning import BATCH_AXES, constrain

Tree = Any
PROMPT, PADDING = 1, 0  # segment ids


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the most likely token (greedy).
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this (Holtzman et al. 2020).
        seed: of the randomness.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must not be negative")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must not be negative; 0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]")


@flax.struct.dataclass
class DecodeState:
    """Where the decoding of a batch stands.

    Attributes:
        cache: keys and values of prompt and answer.
        token: token chosen last, not yet in the cache.
        position: its position.
        count: tokens of the answer chosen so far, the stop token included, the same in every sequence.
        done: sequences whose answer has ended: by a stop token, or because the model knows no position after it.
        stopped: sequences that have chosen a stop token.
        example_ids: from which the randomness of each sequence is folded.
        answer: chosen tokens, filled up to `count`; 0 after a sequence is done.
        lengths: tokens of each answer, without the stop token.
    """

    cache: Cache
    token: Int[Array, "B"]
    position: Int[Array, "B"]
    count: Int[Array, ""]
    done: Bool[Array, "B"]
    stopped: Bool[Array, "B"]
    example_ids: Int[Array, "B"]
    answer: Int[Array, "B new"]
    lengths: Int[Array, "B"]


def choose(
    logits: Float[Array, "B V"], example_ids: Int[Array, "B"], count: Int[Array, ""], sampling: Sampling
) -> Int[Array, "B"]:
    """Chooses one token for each sequence."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = keep_likely(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    key = jax.random.key(sampling.seed)
    keys = jax.vmap(lambda example_id: jax.random.fold_in(jax.random.fold_in(key, example_id), count))(example_ids)
    return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)


def keep_likely(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Logits with -inf outside the `top_k` most likely tokens and outside the `top_p` nucleus of those."""
    if top_k == 0 and top_p == 1.0:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    if top_k:
        kth = ordered[:, min(top_k, logits.shape[-1]) - 1, None]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
        ordered = jnp.where(ordered < kth, -jnp.inf, ordered)
    if top_p < 1.0:
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # probability of all tokens more likely
        threshold = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    return logits


def prefill(
    model: Decoder,
    variables: Tree,
    prefix: Int[Array, "shared"],
    prompts: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    example_ids: Int[Array, "B"],
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    sampling: Sampling,
) -> DecodeState:
    """Reads the prompts and chooses the first token of every answer.

    Args:
        model: the decoder.
        variables: its parameters and adapters.
        prefix: tokens that all prompts begin with, read once for all of them; may be empty.
        prompts: the rest of each prompt, at least one token, padded at the end.
        lengths: tokens of each rest; 0 for a sequence that only fills up the batch. With the prefix fewer than the
            positions that the model knows.
        example_ids: identity of each prompt, from which the randomness of its answer is folded.
        max_new_tokens: size of the answers.
        stop_ids: tokens that end an answer.
        sampling: how tokens are chosen.
    """
    batch, slots = prompts.shape
    positions = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32)[None], prompts.shape)
    segments = jnp.where(positions < lengths[:, None], PROMPT, PADDING).astype(jnp.int32)
    cache = _read_prefix(model, variables, prefix, batch, slots + max_new_tokens)
    positions = positions + prefix.shape[0]
    hidden, cache = model.apply(variables, prompts, positions, segments, cache, method="hidden")
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)
    state = DecodeState(
        cache=cache,
        token=jnp.zeros(batch, jnp.int32),
        position=prefix.shape[0] + lengths - 1,
        count=jnp.zeros((), jnp.int32),
        done=lengths == 0,
        stopped=jnp.zeros(batch, bool),
        example_ids=example_ids,
        answer=jnp.zeros((batch, max_new_tokens), jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
    )
    return _choose_next(model, variables, last, state, stop_ids, sampling)


def _read_prefix(model: Decoder, variables: Tree, prefix: Int[Array, "shared"], batch: int, more: int) -> Cache:
    """A cache for `batch` sequences that hold the prefix and have room for `more` tokens."""
    shared = prefix.shape[0]
    if not shared:
        return init_cache(model.config, model.execution, batch, more)
    cache = init_cache(model.config, model.execution, 1, shared + more)
    _, cache = model.apply(variables, prefix[None], cache=cache, method="hidden")
    # [B, T, K, N] a layer, or stacked [L, B, T, K, N]; positions and segments are [B, T].
    layers = jax.tree.map(lambda leaf: jnp.repeat(leaf, batch, axis=leaf.ndim - 4), cache.layers)
    positions, segments = (jnp.repeat(leaf, batch, axis=0) for leaf in (cache.positions, cache.segments))
    return cache.replace(layers=layers, positions=positions, segments=segments)


def _choose_next(model, variables, hidden, state: DecodeState, stop_ids, sampling) -> DecodeState:
    """Chooses a token from the hidden state [B, 1, D] of the one before, and appends it to the answers.

    A sequence whose token is at the model's last position is done, while others in the batch go on.
    """
    logits = constrain(model.apply(variables, hidden, method="head")[:, 0], BATCH_AXES, None)
    token = choose(logits, state.example_ids, state.count, sampling)
    stopped = jnp.any(token[:, None] == jnp.asarray(stop_ids, jnp.int32)[None], axis=1)
    is_text = ~state.done & ~stopped
    shown, position = jnp.where(is_text, token, 0), state.position + 1
    return state.replace(
        token=token,
        position=position,
        count=state.count + 1,
        done=~is_text | (position >= model.config.max_positions - 1),
        stopped=state.stopped | (~state.done & stopped),
        answer=jax.lax.dynamic_update_slice(state.answer, shown[:, None], (0, state.count)),
        lengths=state.lengths + is_text.astype(jnp.int32),
    )


def decode_block(
    model: Decoder,
    variables: Tree,
    state: DecodeState,
    *,
    block: int,
    stop_ids: tuple[int, ...],
    sampling: Sampling,
) -> DecodeState:
    """At most `block` more tokens in every sequence; ends early when all are done or the answers are full."""
    end = jnp.minimum(state.count + block, state.answer.shape[1])

    def unfinished(state: DecodeState):
        return (state.count < end) & ~jnp.all(state.done)

    def step(state: DecodeState) -> DecodeState:
        segments = jnp.where(state.done, PADDING, PROMPT).astype(jnp.int32)
        hidden, cache = model.apply(
            variables, state.token[:, None], state.position[:, None], segments[:, None], state.cache, method="hidden"
        )
        return _choose_next(model, variables, hidden, state.replace(cache=cache), stop_ids, sampling)

    return jax.lax.while_loop(unfinished, step, state)
