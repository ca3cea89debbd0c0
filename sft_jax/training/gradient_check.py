"""Before the first step: whether micro-batches add up on these devices, seen on a small model of the same kind.

A compiler may be wrong where arrays on the host are right: for TPUs one gave scattered gradients (those of embeddings)
wrong values as soon as they were accumulated in a loop (https://github.com/openxla/xla/issues/49143). A run would train
on, with a loss that falls. Hence the gradient of two micro-batches is compared with that of one, in a program of its
own: same mesh, dtypes, adapters, objective, attention, layout and remat, two layers (or one of each kind), small sizes.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from sft_jax.models.config import DecoderConfig
from sft_jax.models.decoder import Decoder
from sft_jax.models.initial import init_params
from sft_jax.models.loading import placed_quantized
from sft_jax.models.lookup import LANES
from sft_jax.objectives import cross_entropy
from sft_jax.options import Options
from sft_jax.runs.adapting import adapter_spec
from sft_jax.runs.base import Base
from sft_jax.sharding import data_shards, placement, platform_of, put_batch, sequences_here, shardings_of
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.setup import init_state
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepSettings, gradients

Tree = Any
LENGTH = 256  # of a sequence, in tokens: a whole block of every attention kernel
_TARGETS = LENGTH // 2
_SIZES = {"vocab_size": 1024, "model_dim": 512, "ffn_dim": 1024, "shared_ffn_dim": 1024}  # at most
_DEVIATION = 0.02  # of weights, and of what is added so that no part of an adapter is zero

# The same sums in another order. Values of 8 bits differ by half a unit in the last place, 2^-9; a few of them follow
# one another. A micro-batch that is lost, or counted twice, is a difference of about 1.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 2.0**-6}
# A gradient that is zero but for rounding (of the keys' bias, without rotation) is nothing to compare with: one below
# this share of the norm of all counts as that.
_SMALLEST = 1e-2


class WrongGradientError(RuntimeError):
    """The devices, or the compiler, accumulate gradients wrongly."""


def check_micro_batches(options: Options, base: Base, model: Decoder, settings: StepSettings, mesh: Mesh) -> None:
    """Checks, on accelerators and where there are several micro-batches, that they add up; call it under the mesh.

    Args:
        options: of the run.
        base: of the run.
        model: as it is trained.
        settings: of its step.
        mesh: on which it is trained.

    Raises:
        WrongGradientError: they do not; names the parameter that differs most.
    """
    if platform_of(mesh) == "cpu" or options.batch.micro_batches == 1:
        return
    differences = gradient_differences(options, base, model, settings, mesh)
    wrong = {path: found for path, found in differences.items() if not found <= tolerance(options)}  # NaN is wrong
    if not wrong:
        return
    worst = max(wrong, key=lambda path: np.nan_to_num(wrong[path], nan=np.inf))
    raise WrongGradientError(
        f"--config.batch.micro_batches={options.batch.micro_batches}: on {mesh.devices.flat[0].device_kind} the "
        f"gradient of two micro-batches is not that of one, in {len(wrong)} of {len(differences)} parameters of a "
        f"small model; {worst} differs by {wrong[worst]:.2g} of its norm, of which rounding explains "
        f"{tolerance(options):.2g}. The compiler is at fault, and the run would be trained with wrong gradients. Give "
        "--config.batch.micro_batches=1, with fewer --config.batch.sequences or more devices where memory is short; or "
        "take another version of JAX"
    )


def tolerance(options: Options) -> float:
    """By how much of its norm a gradient may differ."""
    precision = options.precision
    rounded = "bfloat16" in (precision.params, precision.matmul, precision.activations)
    return _TOLERANCE["bfloat16" if rounded else "float32"]


def gradient_differences(
    options: Options, base: Base, model: Decoder, settings: StepSettings, mesh: Mesh
) -> dict[str, float]:
    """By how much of its norm the gradient of two micro-batches differs from that of one, for each trained array.

    Arguments as of `check_micro_batches`.
    """
    # Sums are added up by the same code whatever the head.
    decoder = dataclasses.replace(small(model.config, mesh.size // mesh.shape["replica"]), scores=False)
    options = dataclasses.replace(
        options,
        batch=dataclasses.replace(options.batch, sequences=2 * data_shards(mesh)),
        data=dataclasses.replace(options.data, sequence_length=LENGTH),
        trained=dataclasses.replace(options.trained, last_layers=min(options.trained.last_layers, decoder.num_layers)),
    )
    base = _random_base(base, decoder)
    spec = adapter_spec(options.adapter, base.new_token_ids, training=False)
    model = Decoder(decoder, model.execution, spec)
    chunk = min(settings.head_chunk, _TARGETS // 2)
    settings = dataclasses.replace(settings, noise=False, slices=0, head_chunk=chunk)
    if settings.preference or settings.policy or settings.distillation:  # whose sums are added up by the same code
        of_logits = {"preference": None, "policy": None, "distillation": None}
        settings = dataclasses.replace(settings, objective=cross_entropy, **of_logits)
    state = init_state(options, base, model, mesh, hyperparameters(options, 0, 1))
    differences = functools.partial(_differences, model, settings, mesh)
    compare = jax.jit(differences, compiler_options=settings.compiler_options)
    found = jax.device_get(compare(state, put_batch(_batch(decoder.vocab_size, mesh), mesh)))
    return {path: float(value) for path, value in flatten_dict(found, sep="/").items()}


def _differences(model: Decoder, settings: StepSettings, mesh: Mesh, state: TrainState, batch: Tree) -> Tree:
    constrain = functools.partial(jax.lax.with_sharding_constraint, shardings=shardings_of(state.trained, mesh))
    leaves, structure = jax.tree.flatten(state.trained)
    keys = jax.random.split(jax.random.key(0), max(1, len(leaves)))
    moved = [
        leaf + (_DEVIATION * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=False)
    ]
    state = state.replace(trained=constrain(jax.tree.unflatten(structure, moved)))
    one, two = (
        gradients(model, dataclasses.replace(settings, micro_batches=parts), state, batch, constrain)[1]
        for parts in (1, 2)
    )
    squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(one)]
    smallest = _SMALLEST * jnp.sqrt(sum(squares, jnp.float32(0.0)))
    norm = lambda leaf: jnp.sqrt(jnp.sum(leaf**2))
    return jax.tree.map(lambda a, b: norm(b - a) / jnp.maximum(norm(a), smallest), one, two)


def small(decoder: DecoderConfig, devices: int) -> DecoderConfig:
    """A small decoder with the same features and heads, and a layer of each kind, but at least two.

    Args:
        decoder: that is trained.
        devices: over which a parameter is split. It is so wide that embeddings are looked up as those of the decoder
            are: in columns of each device, where these are wide enough (`lookup`), or gathered.
    """
    kinds = [decoder.of_layer(number) for number in range(decoder.num_layers)]
    layers = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    layers = layers * 2 if len(layers) == 1 else layers
    of_layers = lambda values: tuple(values[layer] for layer in layers) if values else ()
    limits = _SIZES | {"model_dim": max(_SIZES["model_dim"], LANES * devices)}
    sizes = {name: min(getattr(decoder, name), most) for name, most in limits.items()}
    return dataclasses.replace(
        decoder,
        num_layers=len(layers),
        max_positions=max(decoder.max_positions, LENGTH) if not decoder.learned_positions else LENGTH,
        rope_layers=of_layers(decoder.rope_layers),
        layer_windows=of_layers([min(window, LENGTH // 2) for window in decoder.layer_windows]),
        layer_overrides=of_layers([_limited(overrides, limits) for overrides in decoder.layer_overrides]),
        **sizes,
    )


def _limited(overrides: tuple[tuple[str, Any], ...], limits: Mapping[str, int]) -> tuple[tuple[str, Any], ...]:
    """What a layer has of its own, of sizes at most `limits`."""
    return tuple((name, min(value, limits[name]) if name in limits else value) for name, value in overrides)


def _random_base(base: Base, decoder: DecoderConfig) -> Base:
    """Random weights of a small decoder, stored as those of the run are."""

    def params(layout, dtype, mesh, quantized="none"):
        made = init_params(decoder, layout, dtype, placement(mesh), seed=0, deviation=_DEVIATION)
        return placed_quantized(made, quantized, placement(mesh))

    new = range(decoder.vocab_size - len(base.new_token_ids), decoder.vocab_size)
    return dataclasses.replace(base, decoder=decoder, params=params, new_token_ids=new)


def _batch(vocabulary: int, mesh: Mesh) -> Tree:
    """This process's part of two random sequences a shard, of two segments each; every other slot is a target's."""
    sequences, half = 2 * data_shards(mesh), LENGTH // 2
    draw = np.random.default_rng(0)
    tokens, targets = (draw.integers(0, vocabulary, (sequences, size)) for size in (LENGTH, _TARGETS))
    alike = lambda row: np.tile(row, (sequences, 1))
    batch = {
        "tokens": tokens.astype(np.int32),
        "positions": alike(np.tile(np.arange(half, dtype=np.int32), 2)),
        "segment_ids": alike(np.repeat(np.int32([1, 2]), half)),
        "target_slots": alike(np.arange(0, LENGTH, 2, dtype=np.int32)),
        "targets": targets.astype(np.int32),
        "weights": alike(np.ones(_TARGETS, np.float32)),
    }
    own = sequences_here(mesh, sequences)
    return {name: array[own] for name, array in batch.items()}
