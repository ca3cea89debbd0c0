"""What a step needs of a device's memory, from shapes alone, and the remat policy that this leaves room for.

State and gradients are exact: they are the shards of `abstract_state`. What layers save for the backward pass is a
product of three numbers: layers, tokens of a device, and the bytes of a token and layer that `saved_bytes` says. What a
layer, and the head, need while they are computed is an estimate, which the tests hold against the compilers'.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from sft_jax.agreement import exchanged
from sft_jax.hardware import hardware_of
from sft_jax.models.config import REMAT_POLICIES, DecoderConfig, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.delta import cost
from sft_jax.models.initial import parameter_shapes
from sft_jax.models.layouts import UNROLLED, resolved
from sft_jax.models.probes import split_probed
from sft_jax.models.variables import SCORE
from sft_jax.objectives.head import chunk_of
from sft_jax.options import Options
from sft_jax.sharding import data_shards
from sft_jax.training.abstract import abstract_state
from sft_jax.training.state import TrainState

Tree = Any
# Of a device's memory, what a step may take by this estimate: the rest is for what it misses, which was at most 15 % of
# what the compilers report, and for what lies there beside the step.
SHARE = 0.85


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step needs of a device.

    Attributes:
        state: all of it, frozen weights too.
        gradients: of layers' kernels in `precision.gradients`, of all else that is trained in float32; with
            micro-batches their sum, in float32, beside them.
        saved: what layers keep for the backward pass.
        working: what the part that needs most, a layer or the head, needs while it is computed.
    """

    state: int
    gradients: int
    saved: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.gradients + self.saved + self.working


def least_recomputed(
    options: Options,
    decoder: DecoderConfig,
    mesh: Mesh,
    execution: Execution,
    runs: int = 1,
    limit: int | None = None,
    teacher: Decoder | None = None,
) -> str:
    """The remat policy that computes the least again among those whose step fits; `full` where none does, or where it
    is not known how much memory a device has.

    Args:
        options: of the run.
        decoder: that is trained.
        mesh: on which.
        execution: all else of it.
        runs: that are trained in one program.
        limit: bytes that a program can have of a device; by default those of the mesh's, as this process knows them.
        teacher: that is in the step.
    """
    limit = device_bytes(mesh.devices.flat) if limit is None else limit
    if limit is None:
        return "full"
    for remat in REMAT_POLICIES:  # from the one that computes nothing again
        policy = dataclasses.replace(execution, remat=remat)
        if step_memory(options, decoder, mesh, policy, runs, teacher).total <= SHARE * limit:
            return remat
    return "full"


def common_device_bytes(devices: Sequence[Any]) -> int | None:
    """The least `device_bytes` of all processes, which are to build the same program; None where one does not know.

    All processes come here, at the same place of the program, and none of them inside `agreed`.
    """
    said = exchanged(str(device_bytes(devices) or ""))
    return min(map(int, said)) if all(said) else None


def device_bytes(devices: Iterable[Any]) -> int | None:
    """The memory that a program can have of one of these devices; None: it is not known.

    Of devices that are here it is what JAX may take of them, of others what it would take.
    """
    devices = list(devices)
    hardware = hardware_of(devices[0].device_kind)
    known = None if hardware is None else hardware.usable_bytes
    here = [device for device in jax.local_devices() if device in devices]
    return (here[0].memory_stats() or {}).get("bytes_limit") if here else known


def step_memory(
    options: Options,
    decoder: DecoderConfig,
    mesh: Mesh,
    execution: Execution,
    runs: int = 1,
    teacher: Decoder | None = None,
) -> StepMemory:
    """What a step needs of each device.

    Args:
        options: of the run.
        decoder: that is trained.
        mesh: on which; its devices need not be there.
        execution: of the decoder.
        runs: that are trained in one program, each with a state of its own.
        teacher: that is in the step; what its forward pass needs is not counted, beside what the student's keeps.
    """
    state = abstract_state(options, decoder, mesh, resolved(execution.layer_layout, decoder), teacher)
    parts, context = options.batch.micro_batches, mesh.shape["context"]
    sequences = max(1, options.batch.sequences // (parts * data_shards(mesh)))
    length = options.data.sequence_length // context
    frozen = _shard_bytes(state.frozen)
    own = _shard_bytes(state) - frozen  # `runs` share what is frozen
    trains_layers = any(name.startswith("layers") for name in state.trained.get("params", {}))
    layers = [decoder.of_layer(number) for number in range(decoder.num_layers)]
    shapes = parameter_shapes(decoder, UNROLLED)
    kinds = [
        _layer_bytes(kind, shapes[f"layers_{layers.index(kind)}"], execution, mesh, sequences, length, trains_layers)
        for kind in dict.fromkeys(layers)
    ]
    return StepMemory(
        state=frozen + own * runs,
        gradients=_gradient_bytes(state.trained, execution, summed=parts > 1) * runs,
        saved=sequences * length * sum(saved_bytes(layer, execution, *_apart(mesh)) for layer in layers),
        working=max(*kinds, _head_bytes(options, decoder, execution, state, mesh, sequences)),
    )


def _gradient_bytes(trained: Tree, execution: Execution, *, summed: bool) -> int:
    kernels, others = split_probed(trained, execution)
    own = _shard_bytes(kernels, execution.gradient_dtype) + _shard_bytes(others, "float32")
    return own + (_shard_bytes(trained, "float32") if summed else 0)


def _apart(mesh: Mesh) -> tuple[int, int]:
    """Devices along `tensor` and `expert`."""
    return mesh.shape["tensor"], mesh.shape["expert"]


def saved_bytes(decoder: DecoderConfig, execution: Execution, tensor: int = 1, expert: int = 1) -> int:
    """Bytes that a layer keeps of a token from the forward to the backward pass.

    With D the model dimension, H and K query and key/value heads of N, F the feed-forward width, and in elements of the
    activations' dtype (with latent attention and gated delta nets what these have in place of heads, `_of_attention`):

        full                 D                  the layer's input
        attention            D + H N            and attention's output, with a float32 a head
        attention_products   2 D + 2 (H + K) N  and queries, keys, values, and the result of `out`
        products             … + 2 F            and those of `gate` and `up`, of every expert that a token takes and of
                                                what it takes beside them
        none                 … + 2 D + H N + F  and the inputs of products: normed, mixed by attention, and gated; of
                                                gated delta nets what their convolution and norms compute in float32

    A part P of a second embedding is kept with the layer's input; the projections around it count as `gate` and `out`.
    Where experts have no bound, a device along `expert` has place for all tokens of all of these devices, if they
    should choose its experts: it keeps so many times as much of what experts take and give.

    Args:
        decoder: of the layer.
        execution: of which `remat` counts, and the dtypes.
        tensor: devices over which heads and F are split.
        expert: devices that exchange tokens.
    """
    wide = jnp.dtype(execution.activation_dtype).itemsize
    read = jnp.dtype(execution.matmul_dtype).itemsize
    dim, takes = decoder.model_dim, decoder.experts_per_token if decoder.num_experts else 1
    takes *= expert if decoder.num_experts and not decoder.expert_capacity else 1
    mixed, projected, between, in_float32 = _of_attention(decoder, tensor)
    inner = (takes * decoder.ffn_dim + decoder.shared_ffn_dim) / tensor
    normed_after = decoder.norm_placement in ("post", "both")
    of_gate_and_up = inner * (2 if decoder.ffn_gated else 1)
    of_down = dim * (takes + decoder.shared_gate) if decoder.num_experts else dim * normed_after
    router = 4 * decoder.num_experts
    sorted_tokens = takes * dim * read + 4 * dim if decoder.num_experts else 0  # by expert; and what the router reads
    sorted_tokens += dim * read if decoder.shared_ffn_dim and not decoder.expert_norms else 0  # as they are, beside
    part, own_norms = decoder.per_layer_dim, dim * decoder.expert_norms
    saved = {
        "full": (dim + part) * wide,
        "attention": mixed * wide + 4 * decoder.num_heads / tensor * (decoder.mixer == "attention"),
        "attention_products": (projected + dim + dim * (part > 0)) * wide,
        "products": (of_gate_and_up + of_down + own_norms + part / tensor) * wide + router,
        "none": (2 * dim + inner) * read + (mixed + between + dim * normed_after) * wide + sorted_tokens,
    }
    saved["none"] += 4 * in_float32
    saved["none"] += (3 * own_norms + dim * (part > 0) + 2 * part / tensor) * wide
    saved["none"] += 8 * dim * decoder.router_scales  # normed, and times the scale
    upto = list(saved).index(execution.remat) + 1
    return int(sum(list(saved.values())[:upto]))


def _of_attention(decoder: DecoderConfig, tensor: int) -> tuple[float, float, float, float]:
    """Elements of what heads read, of the results of projections before that, and of what lies between the two, in the
    activations' dtype and in float32."""
    if decoder.mixer == "delta":
        keys, values = 2 * decoder.delta_key_width / tensor, decoder.delta_value_width / tensor
        # Each tap of the convolution, their sum and what is activated; queries, keys and values normed; and the gate.
        taps = (decoder.delta_conv_width + 3) * (keys + values)
        return values, keys + 2 * values, 0, taps + 3 * keys + 5 * values
    heads, kv_heads = (count * decoder.head_dim / tensor for count in (decoder.num_heads, decoder.num_kv_heads))
    if not decoder.kv_rank:
        kv_heads, gate = 0 if decoder.reads_keys else kv_heads, heads * decoder.attention_gate
        projected = heads + kv_heads * (1 if decoder.values_are_keys else 2) + gate
        normed = (heads + kv_heads) * (decoder.qk_norm != "none") + kv_heads * decoder.value_norm
        return heads, projected, normed + 2 * gate, 0  # the gate's sigmoid, and what is gated
    values, rotated = decoder.num_heads * decoder.value_width / tensor, decoder.rope_dim or decoder.head_dim
    latent = decoder.query_rank + decoder.kv_rank
    projected = latent + rotated + 2 * heads - decoder.num_heads * rotated / tensor + values
    # Latent vectors normed, and the part of keys that is rotated, beside that of each head.
    return values, projected, latent + (decoder.num_heads / tensor - 1) * rotated, 0


def _layer_bytes(
    decoder: DecoderConfig,
    shapes: Tree,
    execution: Execution,
    mesh: Mesh,
    sequences: int,
    length: int,
    trained: bool,
) -> int:
    """What the backward pass of a layer needs at a time: its weights and a gradient, and what it computes again.

    Where little is computed again it is the gradients of the widest values, or the scores of attention without kernels.
    """
    tensor, read = mesh.shape["tensor"], jnp.dtype(execution.matmul_dtype).itemsize
    everything = saved_bytes(decoder, dataclasses.replace(execution, remat="none"), *_apart(mesh))
    again = max(everything - saved_bytes(decoder, execution, *_apart(mesh)), everything / 3)
    # Experts stay where they are along `expert`, and are gathered along the other axes.
    held = sum(
        leaf.size / (mesh.shape["expert"] if "experts" in path else 1)
        for path, leaf in flatten_dict(shapes, sep="/").items()
    )
    gathered = held / tensor * read
    wide = jnp.dtype(execution.gradient_dtype).itemsize if trained else 0
    gradient = decoder.model_dim * decoder.ffn_dim / tensor * wide  # of a matrix, before it is split
    scores = _score_bytes(decoder, execution, mesh, sequences, length)
    return int(gathered + gradient + max(sequences * length * again, scores))


# Scores of a layer, in float32, that XLA has in memory at a time; kernels have none. Measured from 4,096 to 32,768
# tokens: blocks that do not depend on one another are given memory each, 0.6 to 1.3 of all scores together.
_SCORES = {"reference": 3.0, "blocked": 0.75}


def _score_bytes(decoder: DecoderConfig, execution: Execution, mesh: Mesh, sequences: int, length: int) -> float:
    """What attention, or the delta rule, needs at a time beside its inputs and results."""
    if decoder.mixer == "delta":  # where `context` splits sequences, it splits heads instead
        return sequences * length * cost.floats_of_token(decoder) / mesh.shape["tensor"] * 4
    keys = length * mesh.shape["context"]
    scores = sequences * decoder.num_heads / mesh.shape["tensor"] * length * keys * 4
    return _SCORES.get(execution.attention_backend, 0.0) * scores


def _head_bytes(
    options: Options, decoder: DecoderConfig, execution: Execution, state: TrainState, mesh: Mesh, sequences: int
) -> int:
    """Logits of a chunk with their gradient, and the head's weights with theirs, which stay split as the state is."""
    name = SCORE if decoder.scores else "embedding" if decoder.tie_embeddings else "head"
    chunk = chunk_of(options.objective.head_chunk_tokens, sequences) or options.data.sequence_length
    logits = sequences * chunk * (1 if decoder.scores else decoder.vocab_size) / mesh.shape["tensor"] * 4
    trained = name in state.trained.get("params", {})
    head = (state.trained if trained else state.frozen)["params"][name]
    wide = jnp.dtype(execution.matmul_dtype).itemsize + (4 if trained else 0)
    return int(2 * logits + math.prod(head.sharding.shard_shape(head.shape)) * wide)


def _shard_bytes(tree: Tree, dtype: str | None = None) -> int:
    """Bytes of a device's shards of described arrays, in their own dtype or in another."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(dtype or leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
