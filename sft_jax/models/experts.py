"""Mixture of experts: a router chooses some of many feed-forward layers for each token.

Dimensions as in `decoder`, and E experts, X experts a token takes, C places of an expert. Without a bound (the default)
every token reaches every expert it chose: tokens are sorted by expert, and those of one expert are multiplied with its
weights together. Devices along the mesh axis `expert` hold a part of the experts each and exchange their tokens. With a
bound (`expert_capacity`; GShard, Lepikhin et al. 2020) an expert has C places for the tokens of a sequence, and a token
that finds no place skips that expert.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from sft_jax.models import adapters
from sft_jax.models.config import AdapterSpec, DecoderConfig, Execution
from sft_jax.models.layers import Linear, Matmul, adapted, gated, stored_kernel
from sft_jax.models.matmul import einsum, grouped_matmul
from sft_jax.models.partitioning import BATCH_AXES, constrain, fit_spec
from sft_jax.models.quantization import dequantized

ROUTING = "routing"  # the collection that holds a `Routing` of each layer, where `apply` is asked for it

Weights = dict[str, dict[str, Array]]  # projection -> its kernel [E, I, O], and what an adapter has beside it
Keys = dict[str, PRNGKeyArray]  # projection -> key of adapter dropout; empty without


@flax.struct.dataclass
class Routing:
    """How the tokens of a layer were spread: sums over tokens, padding left out.

    Attributes:
        chosen: how many tokens chose each expert.
        probability: sum of the router's probabilities of each expert.
    """

    chosen: Float[Array, "*L E"]
    probability: Float[Array, "*L E"]


def total_routing(collection: Any) -> Routing:
    """The sums of all layers together, from the collection `ROUTING`, in either layer layout."""
    layers = jax.tree.leaves(collection, is_leaf=lambda node: isinstance(node, Routing))
    over_layers = lambda *parts: sum(jnp.sum(part.reshape(-1, part.shape[-1]), axis=0) for part in parts)
    return jax.tree.map(over_layers, *layers)


class _ExpertKernel(nn.Module):
    """One projection of all experts."""

    shape: tuple[int, int, int]
    dtype: str  # in which it is read where it is stored in few bits

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        kernel = stored_kernel(self)
        if kernel is None:
            kernel = self.param("kernel", nn.initializers.lecun_normal(batch_axis=0), self.shape)
        return {"kernel": dequantized(kernel, self.dtype), **self.variables.get(adapters.COLLECTION, {})}


class Experts(nn.Module):
    """Feed-forward layers of which each token takes some, weighted by the router's probabilities."""

    config: DecoderConfig
    execution: Execution
    adapter: AdapterSpec | None

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], used: Bool[Array, "B S"]) -> Float[Array, "B S D"]:
        """Acts on each position alone; `used` is False for padding, which is not counted."""
        config, keys, dtype = self.config, {}, self.execution.matmul_dtype
        weights, chosen = self._route(x, used)
        inward = (config.num_experts, config.model_dim, config.ffn_dim)
        shapes = {"gate": inward, "up": inward, "down": (config.num_experts, config.ffn_dim, config.model_dim)}
        params = {name: _ExpertKernel(shape, dtype, name=name)() for name, shape in shapes.items()}
        if self.adapter is not None and self.adapter.dropout:
            keys = {name: self.make_rng("dropout") for name in shapes}
        parts = (config, self.execution, self.adapter)
        if config.expert_capacity:
            return _bounded(parts, params, keys, x, chosen, weights, used)
        return _unbounded(parts, params, keys, x, chosen, weights)

    def _route(self, x: Array, used: Array) -> tuple[Float[Array, "B S X"], Int[Array, "B S X"]]:
        """Weights and numbers of the experts that each token takes; computed in float32."""
        config = self.config
        logits = Linear(config.num_experts, False, Execution(), self.adapter, name="router")(x.astype(jnp.float32))
        probabilities = jax.nn.softmax(logits, axis=-1)
        weights, chosen = jax.lax.top_k(probabilities, config.experts_per_token)
        if config.normalize_expert_weights:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        ones = jnp.sum(jax.nn.one_hot(chosen, config.num_experts, dtype=jnp.float32), axis=2)
        sums = (jnp.sum(jnp.where(used[..., None], part, 0.0), axis=(0, 1)) for part in (ones, probabilities))
        self.sow(ROUTING, "sums", Routing(*sums), reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return weights, chosen


def _feed_forward(parts, matmul: Matmul, params: Weights, keys: Keys, x: Float[Array, "*B D"]) -> Array:
    """down(activation(gate(x)) * up(x)), where `matmul` multiplies each token by the weights of its expert."""
    config, execution, adapter = parts

    def project(name: str, x: Array) -> Array:
        arrays = dict(params[name])
        kernel = arrays.pop("kernel")
        output = matmul(x, kernel).astype(execution.activation_dtype)
        if adapter is None or not arrays:
            return output
        return adapted(adapter, x, kernel, output, arrays, matmul, keys.get(name))

    return project("down", gated(project("gate", x), project("up", x), config.activation))


# Without a bound.


def _unbounded(parts, params, keys, x, chosen, weights):
    """Each device serves the experts it holds, for its own tokens and for those of the devices along `expert`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _serve(parts, params, keys, x, chosen, weights, 0)
    sizes = dict(mesh.shape)
    tokens = fit_spec(P(BATCH_AXES, None, None), x.shape, sizes)
    specs = {name: _weight_specs(name, arrays, sizes) for name, arrays in params.items()}
    held, _, inner = specs["up"]["kernel"]
    exchanged = held if tokens[0] else None

    def on_device(params, keys, x, chosen, weights):
        if exchanged:
            gather = functools.partial(jax.lax.all_gather, axis_name=exchanged, axis=0, tiled=True)
            x, chosen, weights = gather(x), gather(chosen), gather(weights)
        first = jax.lax.axis_index(held) * params["up"]["kernel"].shape[0] if held else 0
        mixed = _serve(parts, params, _own_keys(keys, mesh.axis_names), x, chosen, weights, first)
        if inner:
            mixed = jax.lax.psum(mixed, inner)
        if exchanged:
            return jax.lax.psum_scatter(mixed, exchanged, scatter_dimension=0, tiled=True)
        return jax.lax.psum(mixed, held) if held else mixed

    # What is equal on several devices is not tracked: kernels and tokens differ in where they are split.
    in_specs = (specs, P(), tokens, tokens, tokens)
    return jax.shard_map(on_device, in_specs=in_specs, out_specs=tokens, check_vma=False)(
        params, keys, x, chosen, weights
    )


def _weight_specs(name: str, arrays: dict[str, Array], sizes: dict[str, int]) -> dict[str, P]:
    """Experts over `expert`, their inner width over `tensor`; `a` [E, I, r] and `b` [E, r, O] follow their kernel.

    So do the constants of both that an adapter may have.
    """
    inner = {"kernel": 1, "a": 1, "constant_a": 1} if name == "down" else {"kernel": 2, "b": 2, "constant_b": 2}
    axes = {label: ["expert"] + [None] * (array.ndim - 1) if array.ndim else [] for label, array in arrays.items()}
    for label, axis in inner.items():
        if label in axes:
            axes[label][axis] = "tensor"
    return {label: fit_spec(P(*axes[label]), array.shape, sizes) for label, array in arrays.items()}


def _own_keys(keys: Keys, axis_names: tuple[str, ...]) -> Keys:
    """Other keys on every device."""
    for axis in axis_names:
        keys = {name: jax.random.fold_in(key, jax.lax.axis_index(axis)) for name, key in keys.items()}
    return keys


def _serve(parts, params, keys, x, chosen, weights, first):
    """What the experts `first`, `first + 1`, … whose weights are in `params` contribute to the tokens `x`."""
    (batch, length, width), takes = x.shape, chosen.shape[-1]
    count, matmul_dtype = params["up"]["kernel"].shape[0], parts[1].matmul_dtype
    number = chosen.reshape(-1) - first
    number = jnp.where((number >= 0) & (number < count), number, count)  # those held elsewhere are sorted to the end
    order = jnp.argsort(number, stable=True)
    sizes = jnp.bincount(number, length=count).astype(jnp.int32)

    def matmul(inputs: Array, kernels: Array) -> Array:
        return grouped_matmul(inputs, kernels, sizes, matmul_dtype, "float32")

    served = _feed_forward(parts, matmul, params, keys, jnp.take(x.reshape(-1, width), order // takes, axis=0))
    served = jnp.take(served, jnp.argsort(order), axis=0).reshape(batch, length, takes, width)
    return _weighted(served, weights, x.dtype)


def _weighted(served: Float[Array, "B S X D"], weights: Float[Array, "B S X"], dtype) -> Float[Array, "B S D"]:
    return jnp.sum(served.astype(jnp.float32) * weights[..., None], axis=2).astype(dtype)


# With a bound.


def _bounded(parts, params, keys, x, chosen, weights, used):
    """Tokens go to places [B, E, C] and back; first choices before second ones, earlier tokens before later ones."""
    config, execution, _ = parts
    batch, length, width = x.shape
    share = length * config.experts_per_token / config.num_experts
    places = min(length, math.ceil(config.expert_capacity * share))
    place = _places(chosen, used, config.num_experts)  # [B, S, X]
    found = used[..., None] & (place < places)
    slot = jnp.where(found, chosen * places + place, config.num_experts * places)
    tokens = jnp.broadcast_to(jnp.arange(length)[None, :, None], slot.shape)
    sequences = jnp.arange(batch)[:, None, None]
    table = jnp.full((batch, config.num_experts * places), length)  # an empty place reads zeros
    table = table.at[sequences, slot].set(tokens, mode="drop")
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    taken = jnp.take_along_axis(padded, table[..., None], axis=1)
    taken = taken.reshape(batch, config.num_experts, places, width)

    def matmul(inputs: Array, kernels: Array) -> Array:
        return einsum("ebci,eio->ebco", inputs, kernels, execution.matmul_dtype, "float32")

    # Experts first: with another axis before theirs, CPUs have no matrix product in bfloat16.
    taken = constrain(jnp.moveaxis(taken, 1, 0), "expert", ("replica", "fsdp"), None, None)
    served = _feed_forward(parts, matmul, params, keys, taken)
    served = jnp.moveaxis(served, 0, 1).reshape(batch, -1, width)
    back = jnp.take_along_axis(served, jnp.minimum(slot, served.shape[1] - 1).reshape(batch, -1, 1), axis=1)
    back = back.reshape(*slot.shape, width)
    return _weighted(back, jnp.where(found, weights, 0.0), x.dtype)


def _places(chosen: Int[Array, "B S X"], used: Bool[Array, "B S"], num_experts: int) -> Int[Array, "B S X"]:
    """How many choices of the same expert, in the same sequence, come first: higher choices, then earlier tokens."""
    in_order = jnp.moveaxis(chosen, 2, 1).reshape(chosen.shape[0], -1)  # [B, X S]
    counted = jnp.tile(used, (1, chosen.shape[2]))[..., None]
    ones = jax.nn.one_hot(in_order, num_experts, dtype=jnp.int32) * counted
    before = jnp.cumsum(ones, axis=1) - ones
    place = jnp.take_along_axis(before, in_order[..., None], axis=2)[..., 0]
    return jnp.moveaxis(place.reshape(chosen.shape[0], chosen.shape[2], -1), 1, 2)
