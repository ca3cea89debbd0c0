"""How tokens are chosen: greedily, or drawn from the likely ones, by randomness that belongs to the token alone."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the most likely token (greedy).
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this (Holtzman et al. 2020).
        tempered: log-probabilities that are told are those at that temperature, of what tokens are drawn from; else
            they are the model's, before temperature.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    tempered: bool = False

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must not be negative")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must not be negative; 0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]")
        if self.tempered and (not self.temperature or self.top_k or self.top_p < 1):
            raise ValueError(
                "tempered log-probabilities are of all tokens at a temperature above 0: they go with neither "
                f"temperature={self.temperature}, top_k={self.top_k} nor top_p={self.top_p}"
            )


def choose(
    logits: Float[Array, "B V"],
    identities: Int[Array, "B parts"],
    counts: Int[Array, "B"],
    seed: Int[Array, ""],
    sampling: Sampling,
) -> Int[Array, "B"]:
    """Chooses one token for each sequence.

    Args:
        logits: of the next token.
        identities: numbers that name each answer (example and sample), from which its randomness is folded.
        counts: tokens of each answer so far, from which it is folded too.
        seed: of the randomness.
        sampling: how tokens are chosen.
    """
    if sampling.temperature == 0:
        return first_best(logits)
    kept = keep_likely(logits / sampling.temperature, sampling.top_k, sampling.top_p)

    def key_of(numbers: Int[Array, "numbers"]) -> Array:
        key = jax.random.key(seed)
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return key

    keys = jax.vmap(key_of)(jnp.concatenate([identities, counts[:, None]], axis=1))
    return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)


def first_best(logits: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The most likely token, of several the first: `argmax`, in two passes for which CPUs have vector instructions."""
    best = jnp.max(logits, axis=-1, keepdims=True)
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
    return jnp.min(jnp.where(logits == best, places, logits.shape[-1] - 1), axis=-1)


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
