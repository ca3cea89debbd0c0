"""Mixture of experts: a router chooses some of many feed-forward layers for each token.

Dimensions as in `decoder`, and E experts, X experts a token takes, C places of an expert. Without a bound (the default)
every token reaches every expert it chose: tokens are sorted by expert, and those of one expert are multiplied with its
weights together. Devices along the mesh axis `expert` hold a part of the experts each and exchange their tokens. With a
bound (`expert_capacity`; GShard, Lepikhin et al. 2020) an expert has C places for the tokens of a sequence, and a token
that finds no place skips that expert.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from sft_jax.models import adapters
from sft_jax.models.config import AdapterSpec, DecoderConfig, Execution
from sft_jax.models.context import dealt, natural
from sft_jax.models.layers import Linear, adapted, gated, probe_of_kernel, stored_kernel, unscaled_norm, weight_of
from sft_jax.models.matmul import Weight, einsum, grouped_matmul
from sft_jax.models.partitioning import BATCH_AXES, constrain, context_parts, fit_spec, gather_own
from sft_jax.models.quantization import dequantized, is_quantized
from sft_jax.models.remat import saving_policy
from sft_jax.models.variables import CORRECTION

ROUTING = "routing"  # the collection that holds a `Routing` of each layer, where `apply` is asked for it

_SMALLEST_SUM = 1e-20  # added where weights are divided by their sum: sigmoids may all be 0

# projection -> its kernel [E, I, O], its probe and bias [E, O] where there are any, and what an adapter has beside it
Weights = dict[str, dict[str, Array]]
Keys = dict[str, PRNGKeyArray]  # projection -> key of adapter dropout; empty without


@flax.struct.dataclass
class Routing:
    """How the tokens of a layer were spread: sums over tokens, padding left out.

    Attributes:
        chosen: how many tokens chose each expert.
        probability: sum of the router's probabilities of each expert: its scores, divided by their sum over experts
            where they are sigmoids (DeepSeek-AI 2024, https://arxiv.org/abs/2412.19437, eq. 17 to 20).
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
    use_bias: bool

    @nn.compact
    def __call__(self) -> dict[str, Array | dict[str, Array]]:
        kernel = stored_kernel(self)
        if kernel is None:
            kernel = self.param("kernel", nn.initializers.lecun_normal(batch_axis=0), self.shape)
        probe = probe_of_kernel(self)
        kernels = {"kernel": kernel} | ({} if probe is None else {"probe": probe})
        if self.use_bias:
            kernels["bias"] = self.param("bias", nn.initializers.zeros_init(), (self.shape[0], self.shape[2]))
        return {**kernels, **self.variables.get(adapters.COLLECTION, {})}


class Experts(nn.Module):
    """Feed-forward layers of which each token takes some, weighted by the router's probabilities."""

    config: DecoderConfig
    execution: Execution
    adapter: AdapterSpec | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], used: Bool[Array, "B S"], routed: Float[Array, "B S D"] | None = None
    ) -> Float[Array, "B S D"]:
        """Acts on each position alone.

        Args:
            x: what experts read.
            used: False for padding, which is not counted.
            routed: what the router reads; by default `x`.
        """
        config, keys = self.config, {}
        weights, chosen = self._route(x if routed is None else routed, used)
        inward = (config.num_experts, config.model_dim, config.ffn_dim)
        shapes = {"gate": inward, "up": inward, "down": (config.num_experts, config.ffn_dim, config.model_dim)}
        params = {name: _ExpertKernel(shape, config.ffn_bias, name=name)() for name, shape in shapes.items()}
        if self.adapter is not None and self.adapter.dropout:
            keys = {name: self.make_rng("dropout") for name in shapes}
        lie = {name: weight_of(self, f"{name}/kernel", shape) for name, shape in shapes.items()}
        parts = (config, self.execution, self.adapter, lie)
        serve = functools.partial(_from_few_bits, _bounded if config.expert_capacity else _unbounded, parts)
        if any(is_quantized(arrays["kernel"]) for arrays in params.values()):
            serve = jax.checkpoint(serve, policy=saving_policy("products"))  # which are all else that takes long
        return serve(params, keys, x, chosen, weights, used)

    def _route(self, x: Array, used: Array) -> tuple[Float[Array, "B S X"], Int[Array, "B S X"]]:
        """Weights and numbers of the experts that each token takes; computed in float32."""
        config = self.config
        exactly = Execution(gathers_weights=self.execution.gathers_weights)
        x = x.astype(jnp.float32)
        if config.router_scales:
            scale = self._scale("router_scale", config.model_dim) * config.model_dim**-0.5
            x = unscaled_norm(x, config.norm_eps) * scale[None, None]
        logits = Linear(config.num_experts, config.router_bias, exactly, self.adapter, name="router")(x)
        scores = jax.nn.softmax(logits, axis=-1) if config.router_scoring == "softmax" else jax.nn.sigmoid(logits)
        weights, chosen = taken_experts(config, scores, self._correction())
        if config.router_scales:
            weights = weights * jnp.take(self._scale("expert_scale", config.num_experts), chosen)
        probabilities = scores
        if config.router_scoring == "sigmoid":
            probabilities = scores / (jnp.sum(scores, axis=-1, keepdims=True) + _SMALLEST_SUM)
        ones = jnp.sum(jax.nn.one_hot(chosen, config.num_experts, dtype=jnp.float32), axis=2)
        sums = (jnp.sum(jnp.where(used[..., None], part, 0.0), axis=(0, 1)) for part in (ones, probabilities))
        self.sow(ROUTING, "sums", Routing(*sums), reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return weights, chosen

    def _scale(self, name: str, width: int) -> Float[Array, "width"]:
        return self.param(name, nn.initializers.ones_init(), (width,)).astype(jnp.float32)

    def _correction(self) -> Float[Array, "E"] | None:
        if not self.config.router_correction:
            return None
        zeros = nn.initializers.zeros_init()
        return jax.lax.stop_gradient(self.param(CORRECTION, zeros, (self.config.num_experts,), jnp.float32))


def taken_experts(
    config: DecoderConfig, scores: Float[Array, "B S E"], correction: Float[Array, "E"] | None
) -> tuple[Float[Array, "B S X"], Int[Array, "B S X"]]:
    """Weights and numbers of the experts that each token takes, by the router's scores.

    Args:
        config: how many, of how many groups, and what becomes of their scores.
        scores: float32.
        correction: added to the scores for the choice alone; None is nothing.
    """
    offered = scores if correction is None else scores + correction.astype(jnp.float32)[None, None]
    if config.expert_groups_taken < config.expert_groups:
        offered = _of_best_groups(offered, config.expert_groups, config.expert_groups_taken)
    _, chosen = jax.lax.top_k(offered, config.experts_per_token)
    weights = jnp.take_along_axis(scores, chosen, axis=-1)
    if config.normalize_expert_weights:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + _SMALLEST_SUM)
    return weights * config.expert_weight_scale, chosen


def _of_best_groups(scores: Float[Array, "B S E"], groups: int, taken: int) -> Float[Array, "B S E"]:
    """-inf outside of the groups whose two best scores have the largest sum."""
    by_group = scores.reshape(*scores.shape[:2], groups, -1)
    best = jnp.sum(jax.lax.top_k(by_group, 2)[0], axis=-1)
    is_taken = jnp.any(jax.nn.one_hot(jax.lax.top_k(best, taken)[1], groups, dtype=bool), axis=2)
    return jnp.where(is_taken[..., None], by_group, -jnp.inf).reshape(scores.shape)


def _feed_forward(
    parts,
    matmul: Callable,
    biased: Callable[[Array, Array], Array],
    params: Weights,
    keys: Keys,
    x: Float[Array, "*B D"],
    whole: Callable | None = None,
) -> Array:
    """down(activation(gate(x)) * up(x)), where `matmul` multiplies each token by the weights of its expert.

    Its third argument says how these lie, where they are the kernels, and its fourth is their probe; `biased` adds to
    each token the bias of its expert; the second of
    `whole`, which gathers a kernel of which this device has a part, for adapters that read it, is as the third.
    """
    config, execution, adapter, lie = parts

    def project(name: str, x: Array) -> Array:
        arrays = dict(params[name])
        kernel, probe, bias = arrays.pop("kernel"), arrays.pop("probe", None), arrays.pop("bias", None)
        output = matmul(x, kernel, lie[name], probe).astype(execution.activation_dtype)
        if adapter is not None and arrays:
            kernel = kernel if whole is None else whole(kernel, lie[name])
            output = adapted(adapter, x, kernel, output, arrays, matmul, keys.get(name))
        output = output if bias is None else biased(output, bias)
        return checkpoint_name(output, name)  # for `remat.SAVED`

    return project("down", gated(project("gate", x), project("up", x), config))


def _from_few_bits(serve: Callable, parts, params: dict[str, dict], *args) -> Array:
    """`serve` with `params` in which no kernel is in few bits any more, but as products read it."""
    dtype = parts[1].matmul_dtype
    params = {name: {**arrays, "kernel": dequantized(arrays["kernel"], dtype)} for name, arrays in params.items()}
    return serve(parts, params, *args)


# Without a bound.


def _unbounded(parts, params, keys, x, chosen, weights, used):
    """Each device serves the experts it holds, for its own tokens and for those of the devices along `expert`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _serve(parts, params, keys, x, chosen, weights, 0)
    sizes = dict(mesh.shape)
    tokens = fit_spec(P(BATCH_AXES, "context", None), x.shape, sizes)
    specs = {name: _weight_specs(name, arrays, sizes) for name, arrays in params.items()}
    held, _, inner = specs["up"]["kernel"]
    for name, weight in parts[-1].items():
        if weight is not None:  # each device has what it stores, and gathers the rest for the product
            specs[name] |= {label: weight.stored for label in ("kernel", "probe") if label in specs[name]}
    exchanged = held if tokens[0] else None

    def on_device(params, keys, x, chosen, weights):
        if exchanged:
            gather = functools.partial(jax.lax.all_gather, axis_name=exchanged, axis=0, tiled=True)
            x, chosen, weights = gather(x), gather(chosen), gather(weights)
        if inner and "bias" in params["down"]:  # counted once, on one of the devices that share the inner width
            own = jnp.where(jax.lax.axis_index(inner) == 0, params["down"]["bias"], 0)
            params = params | {"down": params["down"] | {"bias": own}}
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

    So do the constants of both that an adapter may have, and biases [E, O].
    """
    inner = {"kernel": 2, "b": 2, "constant_b": 2, "bias": 1}
    inner = {"kernel": 1, "a": 1, "constant_a": 1} if name == "down" else inner
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
    count, execution = params["up"]["kernel"].shape[0], parts[1]
    number = chosen.reshape(-1) - first
    number = jnp.where((number >= 0) & (number < count), number, count)  # those held elsewhere are sorted to the end
    order = jnp.argsort(number, stable=True)
    sizes = jnp.bincount(number, length=count).astype(jnp.int32)

    def matmul(inputs: Array, kernels: Array, weight: Weight | None = None, probe: Array | None = None) -> Array:
        return grouped_matmul(inputs, kernels, sizes, execution.matmul_dtype, execution.product_dtype, weight, probe)

    def biased(outputs: Array, biases: Array) -> Array:
        rows = jnp.take(number, order)  # those held elsewhere stay zero
        return outputs + jnp.take(biases.astype(outputs.dtype), rows, axis=0, mode="fill", fill_value=0)

    whole = lambda kernel, weight: kernel if weight is None else gather_own(kernel, weight.stored)
    taken = jnp.take(x.reshape(-1, width), order // takes, axis=0)
    served = _feed_forward(parts, matmul, biased, params, keys, taken, whole)
    served = jnp.take(served, jnp.argsort(order), axis=0).reshape(batch, length, takes, width)
    return _weighted(served, weights, x.dtype)


def _weighted(served: Float[Array, "B S X D"], weights: Float[Array, "B S X"], dtype) -> Float[Array, "B S D"]:
    return jnp.sum(served.astype(jnp.float32) * weights[..., None], axis=2).astype(dtype)


# With a bound.


def _bounded(parts, params, keys, x, chosen, weights, used):
    """Tokens go to places [B, E, C] and back; first choices before second ones, earlier tokens before later ones."""
    config, execution, *_ = parts
    batch, length, width = x.shape
    share = length * config.experts_per_token / config.num_experts
    places = min(length, math.ceil(config.expert_capacity * share))
    dealt_to = context_parts()
    # Which token comes first is a matter of the sequence, not of how it is dealt out.
    in_order = (natural(x, dealt_to) for x in (chosen, used))
    place = dealt(_places(*in_order, config.num_experts), dealt_to)  # [B, S, X]
    found = used[..., None] & (place < places)
    slot = jnp.where(found, chosen * places + place, config.num_experts * places)
    tokens = jnp.broadcast_to(jnp.arange(length)[None, :, None], slot.shape)
    sequences = jnp.arange(batch)[:, None, None]
    table = jnp.full((batch, config.num_experts * places), length)  # an empty place reads zeros
    table = table.at[sequences, slot].set(tokens, mode="drop")
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    taken = jnp.take_along_axis(padded, table[..., None], axis=1)
    taken = taken.reshape(batch, config.num_experts, places, width)

    def matmul(inputs: Array, kernels: Array, weight: Weight | None = None, probe: Array | None = None) -> Array:
        dtypes = execution.matmul_dtype, execution.product_dtype
        return einsum("ebci,eio->ebco", inputs, kernels, *dtypes, weight, probe)

    def biased(outputs: Array, biases: Array) -> Array:
        return outputs + biases.astype(outputs.dtype)[:, None, None]

    # Experts first: with another axis before theirs, CPUs have no matrix product in bfloat16.
    taken = constrain(jnp.moveaxis(taken, 1, 0), "expert", ("replica", "fsdp"), "context", None)
    served = _feed_forward(parts, matmul, biased, params, keys, taken)
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
