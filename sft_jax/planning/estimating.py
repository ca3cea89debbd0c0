"""What the estimate of a step's time is made of: arithmetic and traffic of a config, and the compiled collectives."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from sft_jax.hardware import Hardware
from sft_jax.models import adapters
from sft_jax.options import Options
from sft_jax.planning.collectives import Collective
from sft_jax.planning.flops import Work, adapter_weights, kernel_of, recomputed_products, work_of
from sft_jax.planning.roofline import Estimate, estimate
from sft_jax.planning.traffic import Traffic, traffic_of
from sft_jax.runs.adapting import has_adapters
from sft_jax.sharding import data_shards
from sft_jax.training.memory import BatchSizes, StepProgram

Tree = Any


def _has_base_pass(options: Options) -> bool:
    """Whether a step does another forward pass, of what its run began with."""
    return options.objective.kl_to_base > 0 or options.objective.kl_weight > 0


def work_of_step(options: Options, program: StepProgram, sizes: BatchSizes) -> Work:
    """The arithmetic of a step, of all devices together.

    Args:
        options: of the run.
        program: its train step.
        sizes: of its batches.
    """
    sequences, decoder, with_branches = options.batch.sequences, program.model.config, "parents" in program.batch
    beside = flatten_dict(program.state.trained.get(adapters.COLLECTION, {}), sep="/")
    return work_of(
        decoder,
        sequences=sequences,
        length=sizes.sequence_length,
        targets=sequences * sizes.sequence_targets,
        remat=program.model.execution.remat,
        train_weights=not has_adapters(options.adapter),
        base_pass=_has_base_pass(options),
        head_again=with_branches and options.objective.head_chunk_tokens > 0 and not decoder.scores,
        adapter_weights=adapter_weights(decoder, {path: leaf.shape for path, leaf in beside.items()}),
        kernel=kernel_of(program.model.execution.attention_backend, with_branches),
    )


def traffic_of_step(options: Options, program: StepProgram, sizes: BatchSizes) -> Traffic:
    """Bytes that a step moves between a device and its memory.

    Args:
        options: of the run.
        program: its train step.
        sizes: of its batches.
    """
    mesh, model, state = program.mesh, program.model, program.state
    decoder, remat = model.config, model.execution.remat
    tensor, sequences = mesh.shape["tensor"], options.batch.sequences
    shards = data_shards(mesh) * mesh.shape["context"]
    again, full = bool(recomputed_products(decoder, remat)), not has_adapters(options.adapter)
    passes = 2 + again + full + _has_base_pass(options)
    trained = _numbers_of_a_device(state.trained)
    return traffic_of(
        decoder,
        tokens=sequences * sizes.sequence_length / shards,
        targets=sequences * sizes.sequence_targets / shards,
        tensor=tensor,
        remat=remat != "none",
        activation_bytes=np.dtype(model.execution.activation_dtype).itemsize,
        trained=trained,
        trained_bytes=max(np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state.trained)),
        moments=round(_numbers_of_a_device(state.opt_state) / trained),
        kernel_passes=passes * options.batch.micro_batches,
        kernels=sum(decoder.matmul_params()) / tensor,
    )


def estimate_of(
    options: Options, program: StepProgram, sizes: BatchSizes, collectives: Sequence[Collective], hardware: Hardware
) -> Estimate:
    """How long a step takes at least.

    Args:
        options: of the run.
        program: its train step.
        sizes: of its batches.
        collectives: of the compiled program.
        hardware: of the mesh's devices.
    """
    return estimate(
        work_of_step(options, program, sizes),
        traffic_of_step(options, program, sizes),
        collectives,
        devices=program.mesh.devices,
        axes=program.mesh.axis_names,
        hardware=hardware,
        tokens=options.batch.sequences * sizes.sequence_length,
    )


def _numbers_of_a_device(tree: Tree) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))
