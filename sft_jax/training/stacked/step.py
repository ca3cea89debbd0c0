"""The step of several runs in one program.

The step of a single run is mapped over the axis of trials. Products with frozen weights become one product for all
runs; adapters, gradients, clipping, optimizer and the test whether all is finite are each run's own.
"""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.data.batches import PER_SLOT, Batch
from sft_jax.models.decoder import Decoder
from sft_jax.models.partitioning import BATCH_AXES
from sft_jax.sharding import dealt_batch, shardings_of
from sft_jax.training.programs import Signature, shared, signature_of
from sft_jax.training.stacked.lanes import Frozen, Lanes, own_part, whole
from sft_jax.training.state import TrainState
from sft_jax.training.step import Metrics, StepSettings, method_of, train_step
from sft_jax.training.update_rules import RULES, Rule

Tree = Any
StackedStep = Callable[[TrainState, Tree, Tree], tuple[TrainState, list[Metrics]]]


def stacked_step(
    model: Decoder,
    settings: StepSettings,
    constrain: Callable[[Tree], Tree],
    lanes: TrainState,
    frozen: Tree,
    batch: Tree,
) -> tuple[TrainState, list[Metrics]]:
    """One optimizer step of each run.

    Args:
        model: the decoder.
        settings: what is static.
        constrain: lays the gradients of one run out like what they are of.
        lanes: what is each run's own, with a leading axis of trials.
        frozen: what they share, without one.
        batch: a batch of each, [K, sequences, …].

    Returns:
        The new `lanes`, and the metrics of each run.
    """

    def one(own: TrainState, batch: Tree) -> tuple[TrainState, Metrics]:
        state, metrics = train_step(model, settings, constrain, whole(own, frozen), batch)
        return own_part(state), metrics

    lanes, metrics = jax.vmap(one)(lanes, batch)
    of_run = lambda number: jax.tree.map(lambda of_all: of_all[number], metrics)
    return lanes, [of_run(number) for number in range(lanes.step.shape[0])]


def compile_stacked_step(
    model: Decoder, settings: StepSettings, lanes: Lanes, frozen: Frozen, mesh: Mesh
) -> StackedStep:
    """The jitted step (lanes, frozen arrays, batch) -> (lanes, metrics of each): `lanes` is donated, all shardings are
    given. The same function for all groups of a process whose steps are the same program.

    Call it inside `jax.set_mesh(mesh)`.
    """
    arrays = frozen.arrays
    return _shared_step(
        model,
        settings,
        RULES[settings.optimizer.rule],
        method_of(model),
        lanes.signature,
        _signature(lanes.widest, mesh),
        signature_of(arrays),
        mesh,
    )


def _signature(tree: Tree, mesh: Mesh) -> Signature:
    return signature_of(tree, shardings_of(tree, mesh))


@shared
def _shared_step(
    model: Decoder,
    settings: StepSettings,
    rule: Rule,
    method: ModuleType | None,
    lanes: Signature,
    of_one: Signature,
    frozen: Signature,
    mesh: Mesh,
) -> StackedStep:
    del rule, method  # what the step looks up by name
    constrain = functools.partial(jax.lax.with_sharding_constraint, shardings=of_one.shardings.trained)
    return jax.jit(
        functools.partial(stacked_step, model, settings, constrain),
        donate_argnums=0,
        in_shardings=(lanes.shardings, frozen.shardings, stacked_batch_sharding(mesh)),
        out_shardings=(lanes.shardings, NamedSharding(mesh, P())),
        compiler_options=settings.compiler_options,
    )


def stacked_batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sequences of all runs' batches, and what they consist of, over the axes that split one run's."""
    return NamedSharding(mesh, P(None, BATCH_AXES, "context"))


def put_batches(batches: Sequence[Batch], mesh: Mesh) -> dict[str, jax.Array]:
    """The batches of all runs as one, [K, sequences, …], on the devices; of one process.

    Runs on other data may have fewer slots for targets: theirs are filled up with slots of weight 0.
    """
    slots, parts = max(batch["weights"].shape[1] for batch in batches), mesh.shape["context"]

    def filled(name: str, array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, 0), (0, slots - array.shape[1])]) if name in PER_SLOT else array

    dealt = [dealt_batch({name: filled(name, array) for name, array in batch.items()}, parts) for batch in batches]
    return {
        name: jax.device_put(np.stack([batch[name] for batch in dealt]), stacked_batch_sharding(mesh))
        for name in dealt[0]
    }
