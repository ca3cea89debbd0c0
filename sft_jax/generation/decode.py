"""The compiled part of generation: prompts are read into slots, and all slots go on by a token at a time.

A slot holds one answer in progress, with its keys and values. When its answer has ended, `fill` puts the next prompt
there while the others stand still, so that short answers do not wait for long ones. Prompts are read packed: several in
a row, each a segment that sees itself and the beginning that all prompts share, which was read once (`read_prefix`). So
no prompt pays for the length of another, and attention while reading computes no scores against the room left for
answers.

The tokens of all answers are written at the same place of their slots, one behind the other and round again: to write
at a place of each XLA has a slow loop on CPUs. What is where, positions and segments say. There are as many places as
the longest answer has tokens, so that it has ended before its first token is overwritten. Prompts have a cache of their
own, which is not written for each token.

The text of an answer does not depend on the slots beside it: sequences do not see one another, and the randomness of
each token is folded from the identity of the answer and the number of the token.

Dimensions: B slots, R rows of prompts (each fills slots of one part of the batch), S tokens of a row, P tokens of the
shared beginning, T places of a slot, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sft_jax.generation.sampling import Sampling, choose
from sft_jax.models.cache import Cache, DeltaCache, LayerCache, init_cache, map_layers, of_attention
from sft_jax.models.decoder import Decoder
from sft_jax.models.decoder_layer import Rotations
from sft_jax.models.partitioning import BATCH_AXES, constrain

Tree = Any
PADDING, PREFIX = 0, 1  # segment ids; those of prompts follow


@flax.struct.dataclass
class Slots:
    """Where the answers in all slots stand.

    Attributes:
        prompts: keys and values of the shared beginning and of the prompt behind it; None within `decode`.
        cache: those of the answer; its length is the place where the next tokens are written. Layers with a state have
            that here, of beginning, prompt and answer together.
        token: token chosen last, not yet in the cache.
        length: tokens in both caches.
        count: tokens of the answer chosen so far, the stop token included.
        limit: at which the answer ends.
        done: the answer has ended, or there is none.
        stopped: it ended by a stop token.
        identity: (example, sample) of each answer.
        chosen: its tokens, up to `count`.
        logprobs: their log-probabilities under the model, before temperature and cuts, unless these are `tempered`.
    """

    prompts: Cache | None
    cache: Cache
    token: Int[Array, "B"]
    length: Int[Array, "B"]
    count: Int[Array, "B"]
    limit: Int[Array, "B"]
    done: Bool[Array, "B"]
    stopped: Bool[Array, "B"]
    identity: Int[Array, "B 2"]
    chosen: Int[Array, "B new"]
    logprobs: Float[Array, "B new"]


@flax.struct.dataclass
class Prompts:
    """Prompts without their shared beginning, packed into rows, and which slots they fill.

    Attributes:
        tokens: of the rows.
        positions: of each token in its prompt, the beginning included.
        segments: the prompt that each token belongs to; 0 is padding.
        start: for each slot, where its prompt begins in its row.
        length: tokens of it; 0 for a slot that is not filled.
        identity: (example, sample) of each answer.
        limit: tokens of the answer, at most.
    """

    tokens: Int[Array, "R S"]
    positions: Int[Array, "R S"]
    segments: Int[Array, "R S"]
    start: Int[Array, "B"]
    length: Int[Array, "B"]
    identity: Int[Array, "B 2"]
    limit: Int[Array, "B"]


def read_prefix(model: Decoder, variables: Tree, prefix: Int[Array, "P"]) -> Cache:
    """A full cache of one sequence: the beginning that all prompts share, which may be empty."""
    empty = init_cache(model.config, model.execution, 1, 0).replace(length=None)
    if not prefix.shape[0]:
        return empty
    _, cache = model.apply(
        variables, prefix[None], segment_ids=jnp.full((1, prefix.shape[0]), PREFIX), cache=empty, method="hidden"
    )
    return cache


def begin(model: Decoder, variables: Tree, slots: int, new: int, prompt: int) -> tuple[Cache, Slots]:
    """No beginning that prompts share, and slots without answers; for the arguments see `empty_slots`.

    They are where `variables` are.
    """
    nothing = read_prefix(model, variables, jnp.zeros(0, jnp.int32))
    return nothing, placed(empty_slots(model, nothing, slots, new, prompt))


def empty_slots(model: Decoder, prefix: Cache, slots: int, new: int, prompt: int) -> Slots:
    """Slots without answers, each with the beginning in its first places.

    Args:
        model: the decoder.
        prefix: what `read_prefix` gives.
        slots: their number.
        new: tokens of an answer, at most.
        prompt: tokens of a prompt without the beginning, at most.
    """
    prompts, cache = (
        _split(init_cache(model.config, model.execution, slots, places))
        for places in (prefix.positions.shape[1] + prompt, new)
    )

    def with_beginning(own: Array, read: Array) -> Array:
        return jax.lax.dynamic_update_slice(own, jnp.repeat(read, slots, axis=read.ndim - 4), (0,) * own.ndim)

    beginnings = jax.tree.map(with_beginning, *map(of_attention, (prompts.layers, prefix.layers)))
    return Slots(
        prompts=prompts.replace(layers=beginnings, length=None),
        cache=cache,
        token=jnp.zeros(slots, jnp.int32),
        length=jnp.zeros(slots, jnp.int32),
        count=jnp.zeros(slots, jnp.int32),
        limit=jnp.zeros(slots, jnp.int32),
        done=jnp.ones(slots, bool),
        stopped=jnp.zeros(slots, bool),
        identity=jnp.zeros((slots, 2), jnp.int32),
        chosen=jnp.zeros((slots, new), jnp.int32),
        logprobs=jnp.zeros((slots, new), jnp.float32),
    )


def placed(slots: Slots) -> Slots:
    """Slots as all programs give them, split over the mesh in force in the same way: so the program that goes on with
    them is one, whichever they come from."""
    by_slot = lambda own: constrain(own, BATCH_AXES, *[None] * (own.ndim - 1))

    def of_cache(cache: Cache) -> Cache:
        length = None if cache.length is None else constrain(cache.length)
        places = {name: by_slot(getattr(cache, name)) for name in ("positions", "segments")}
        return _split(cache).replace(**places, length=length)

    caches = {"prompts": of_cache(slots.prompts), "cache": of_cache(slots.cache)}
    others = {name: by_slot(array) for name, array in vars(slots).items() if name not in caches}
    return slots.replace(**caches, **others)


def _split(cache: Cache) -> Cache:
    """Split over the mesh in force: the batch, and heads over `tensor`."""

    def split(axes: tuple[str | None, ...], own: Array) -> Array:
        return constrain(own, *[None] * (own.ndim - len(axes) - 1), BATCH_AXES, *axes)

    return cache.replace(layers=_by_array(split, cache.layers))


_AXES = {"state": ("tensor", None, None), "inputs": (None, None), "segment": ()}  # behind that of the batch


def _by_array(function: Callable[..., Array], *layers: Tree) -> Tree:
    """`function` of the arrays of caches, and of the axes of the mesh that split theirs behind that of the batch."""

    def of_layer(first: LayerCache | DeltaCache, *others: LayerCache | DeltaCache) -> LayerCache | DeltaCache:
        arrays = {name: [getattr(layer, name) for layer in (first, *others)] for name in vars(first)}
        axes_of = lambda name: _AXES.get(name, ("tensor", None, None))
        return first.replace(**{name: function(axes_of(name), *each) for name, each in arrays.items()})

    return map_layers(of_layer, *layers)


def fill(
    model: Decoder,
    variables: Tree,
    slots: Slots,
    prefix: Cache,
    prompts: Prompts,
    seed: Int[Array, ""],
    *,
    stop_ids: tuple[int, ...],
    sampling: Sampling,
) -> Slots:
    """Reads prompts into slots, and chooses the first token of their answers; the other slots stay as they are."""
    rows = prompts.tokens.shape[0]
    repeated = prefix.replace(
        layers=_by_array(lambda axes, own: jnp.repeat(own, rows, axis=own.ndim - len(axes) - 1), prefix.layers),
        positions=jnp.repeat(prefix.positions, rows, axis=0),
        segments=jnp.repeat(prefix.segments, rows, axis=0),
    )
    parents = jnp.where(prompts.segments == PADDING, PADDING, PREFIX)
    ends = prompts.start + jnp.maximum(prompts.length - 1, 0)
    hidden, read = model.apply(
        variables,
        prompts.tokens,
        prompts.positions,
        prompts.segments,
        repeated,
        parents=parents,
        ends=ends.reshape(rows, -1),
        method="hidden",
    )
    shared, fresh = prefix.positions.shape[1], prompts.length > 0
    last = _of_slots(hidden, ends[:, None])
    begun = slots.replace(
        prompts=_with_prompts(slots.prompts, read, prompts),
        cache=_with_states(slots.cache, read, fresh),
        length=jnp.where(fresh, shared + prompts.length, slots.length),
        count=jnp.where(fresh, 0, slots.count),
        limit=jnp.where(fresh, prompts.limit, slots.limit),
        done=slots.done & ~fresh,
        stopped=slots.stopped & ~fresh,
        identity=jnp.where(fresh[:, None], prompts.identity, slots.identity),
    )
    return placed(_choose_next(model, variables, last, begun, fresh, seed, stop_ids, sampling))


def _of_slots(rows: Array, places: Int[Array, "B W"]) -> Array:
    """[R, S, …] at `places` of the row that each slot is filled from: [B, W, …]."""
    in_rows = places.reshape(rows.shape[0], -1)
    taken = jax.vmap(lambda row, index: row[index])(rows, in_rows)
    return taken.reshape(*places.shape, *rows.shape[2:])


def _with_states(cache: Cache, read: Cache, fresh: Bool[Array, "B"]) -> Cache:
    """The cache of answers, in fresh slots with the states after the prompts; what an earlier one left is unseen."""

    def of_layer(own: LayerCache | DeltaCache, new: LayerCache | DeltaCache) -> LayerCache | DeltaCache:
        if isinstance(own, LayerCache):
            return own
        new = new.replace(segment=jnp.full_like(new.segment, PREFIX))  # in its slot, an answer has no other beside it

        def chosen(axes: tuple[str | None, ...], own: Array, new: Array) -> Array:
            slots = fresh.reshape((1,) * (own.ndim - len(axes) - 1) + fresh.shape + (1,) * len(axes))
            return jnp.where(slots, new, own)

        return _by_array(chosen, own, new)

    layers = map_layers(of_layer, cache.layers, read.layers)
    return cache.replace(layers=layers, segments=jnp.where(fresh[:, None], PADDING, cache.segments))


def _with_prompts(cache: Cache, read: Cache, prompts: Prompts) -> Cache:
    """The cache of prompts, with those that were read in the slots that they fill."""
    fresh, offsets = prompts.length[:, None] > 0, jnp.arange(cache.positions.shape[1])[None]
    seen = offsets < read.positions.shape[1] - prompts.tokens.shape[1] + prompts.length[:, None]
    return cache.replace(
        layers=jax.tree.map(lambda own, new: _copied(own, new, prompts), cache.layers, of_attention(read.layers)),
        positions=jnp.where(fresh, offsets, cache.positions),
        segments=jnp.where(fresh, jnp.where(seen, PREFIX, PADDING), cache.segments),
    )


def _copied(own: Array, read: Array, prompts: Prompts) -> Array:
    """Keys or values [*L, B, K, T, N] with those of the prompts [*L, R, K, P + S, N] in the slots that they fill."""
    if own.ndim == 5:
        return jax.vmap(lambda own, read: _copied(own, read, prompts))(own, read)
    shared = read.shape[2] - prompts.tokens.shape[1]
    width = min(prompts.tokens.shape[1], own.shape[2] - shared)
    offsets = jnp.arange(width)[None]
    places = jnp.minimum(shared + prompts.start[:, None] + offsets, read.shape[2] - 1)
    is_read = (offsets < prompts.length[:, None])[:, None, :, None]
    new = jnp.moveaxis(_of_slots(jnp.moveaxis(read, 2, 1), places), 2, 1)
    return jax.lax.dynamic_update_slice(
        own, jnp.where(is_read, new, own[:, :, shared : shared + width]), (0, 0, shared, 0)
    )


def with_shorter_prompts(slots: Slots, places: int) -> Slots:
    """The slots with so many places for beginning and prompt: attention looks at all that there are."""
    cache = slots.prompts
    return slots.replace(
        prompts=cache.replace(
            layers=jax.tree.map(lambda own: own[..., :places, :], cache.layers),
            positions=cache.positions[:, :places],
            segments=cache.segments[:, :places],
        )
    )


def _choose_next(
    model: Decoder,
    variables: Tree,
    hidden: Float[Array, "B 1 D"],
    slots: Slots,
    active: Bool[Array, "B"],
    seed: Int[Array, ""],
    stop_ids: tuple[int, ...],
    sampling: Sampling,
) -> Slots:
    """Chooses a token from the hidden state of the one before, and appends it to the answers of the active slots.

    An answer whose token is at the model's last position has ended, while others go on.
    """
    logits = constrain(model.apply(variables, hidden, method="head")[:, 0], BATCH_AXES, None)
    token = choose(logits, slots.identity, slots.count, seed, sampling)
    logits = logits / sampling.temperature if sampling.tempered else logits
    best = jnp.max(logits, axis=1, keepdims=True)
    log_sum = best[:, 0] + jnp.log(jnp.sum(jnp.exp(logits - best), axis=1))
    logprob = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - log_sum
    stopped = active & jnp.any(token[:, None] == jnp.asarray(stop_ids, jnp.int32)[None], axis=1)
    here = active[:, None] & (jnp.arange(slots.chosen.shape[1])[None] == slots.count[:, None])
    count = slots.count + active
    ended = stopped | (count >= slots.limit) | (slots.length >= model.config.max_positions - 1)
    return slots.replace(
        token=jnp.where(active, token, slots.token),
        count=count,
        done=slots.done | (active & ended),
        stopped=slots.stopped | stopped,
        chosen=jnp.where(here, token[:, None], slots.chosen),
        logprobs=jnp.where(here, logprob[:, None], slots.logprobs),
    )


def decode(
    model: Decoder,
    variables: Tree,
    slots: Slots,
    enough: Int[Array, ""],
    seed: Int[Array, ""],
    *,
    steps: int,
    stop_ids: tuple[int, ...],
    sampling: Sampling,
) -> Slots:
    """At most `steps` more tokens in every slot; ends when `enough` slots are done.

    Args:
        model: the decoder.
        variables: its parameters and adapters.
        slots: where they stand.
        enough: done slots with which to end.
        seed: of the randomness.
        steps: tokens at most.
        stop_ids: tokens that end an answer.
        sampling: how tokens are chosen.
    """

    def unfinished(state: tuple[Slots, Rotations, Array]) -> Array:
        slots, _, step = state
        return (step < steps) & (jnp.sum(slots.done) < enough)

    def rotations(slots: Slots) -> Rotations:
        return model.apply(variables, slots.length[:, None], method="rotations")

    def one_token(state: tuple[Slots, Rotations, Array]) -> tuple[Slots, Rotations, Array]:
        slots, of_token, step = state
        active = ~slots.done
        segments = jnp.where(active, PREFIX, PADDING)[:, None]
        hidden, cache = model.apply(
            variables,
            slots.token[:, None],
            slots.length[:, None],
            segments,
            slots.cache,
            rotations=of_token,
            before=prompts,
            method="hidden",
        )
        cache = cache.replace(length=cache.length % places)
        slots = slots.replace(cache=cache, length=slots.length + active)
        slots = _choose_next(model, variables, hidden, slots, active, seed, stop_ids, sampling)
        return slots, rotations(slots), step + 1

    prompts, places = slots.prompts, slots.cache.positions.shape[1]
    slots = slots.replace(prompts=None)
    # Carried from token to token, rotations are computed once: else XLA computes them for each layer and head on CPUs.
    slots, *_ = jax.lax.while_loop(unfinished, one_token, (slots, rotations(slots), jnp.zeros((), jnp.int32)))
    return placed(slots.replace(prompts=prompts))
