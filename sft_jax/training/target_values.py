"""What a model that is not trained gives every target of a data set, in the order of rows, however they are packed."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sft_jax import models, objectives
from sft_jax.data.batches import assemble, held_out_bins
from sft_jax.data.packing.bins import Bin
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.data.tokenized.cache_key import code_digest, source_digest
from sft_jax.dispatch import one_late
from sft_jax.generation.sizes import on_host
from sft_jax.models.decoder import Decoder
from sft_jax.sharding import platform_of, put_batch, sequences_here
from sft_jax.training.checked_run import CheckedRun

Tree = Any
Progress = Callable[[float], object]  # of the share that is done


def values_of_targets(
    step: Callable[[Tree], tuple[jax.Array, ...]],
    found: tuple[np.ndarray, ...],
    examples: TokenizedExamples,
    slots: int,
    checked: CheckedRun,
    progress: Progress,
) -> None:
    """Writes what a step gives the targets of all examples, a micro-batch at a time.

    Args:
        step: from a batch to arrays [B, P, …].
        found: an array [targets, …] for each of them.
        examples: all are measured once.
        slots: target slots of a sequence.
        checked: the run's config, and what was made of it.
        progress: called with the share that is done.
    """
    options, mesh = checked.options, checked.mesh
    length, size = options.data.sequence_length, options.batch.sequences // options.batch.micro_batches
    slots -= slots == length  # so that targets stand in order; the first token of a sequence is none
    bins = held_out_bins(examples, length, slots, options.data.packing, options.data.max_examples_per_sequence)
    parts = [[*bins[start : start + size]] for start in range(0, len(bins), size)]

    def dispatched() -> Iterator[tuple[tuple[jax.Array, ...], list[Bin]]]:
        own = sequences_here(mesh, size)
        for number, part in enumerate(parts):
            progress(number / len(parts))
            filled = part + [np.zeros(0, np.int32)] * (size - len(part))
            batch = assemble(examples, [filled[i] for i in own], sequence_length=length, sequence_targets=slots)
            yield step(put_batch(batch, mesh)), part

    for values, part in one_late(dispatched()):
        values = on_host(values)
        for row, members in enumerate(part):
            places = np.concatenate([np.arange(*examples.target_offsets[member : member + 2]) for member in members])
            for array, of_batch in zip(found, values, strict=True):
                array[places] = of_batch[row, : len(places)]


def row_without(missing: np.ndarray, examples: TokenizedExamples) -> str | None:
    """The id of the first example with a target of which something is missing; None where there is none."""
    if not missing.any():
        return None
    return examples.ids[int(examples.target_offsets.searchsorted(missing.argmax(), side="right")) - 1]


def key_of_values(
    checked: CheckedRun, examples: TokenizedExamples, slots: int, model: Decoder, files: Sequence[Path]
) -> dict[str, Any]:
    """What such values depend on beside the weights: rows, precision, how they are computed, and code.

    Args:
        checked: the run's config, and what was made of it.
        examples: all of them.
        slots: target slots of a sequence.
        model: that gives them.
        files: of this package, in which that is written.
    """
    options, here = checked.options, Path(__file__).parent
    device = checked.mesh.devices.flat[0]
    return {
        "rows": examples.fingerprint(),
        "precision": dataclasses.asdict(options.precision),
        "model": repr((model.config, model.execution, model.adapter)),
        "mesh": [dict(checked.mesh.shape), platform_of(checked.mesh), device.device_kind],
        "batches": [
            *(options.batch.sequences // options.batch.micro_batches, options.data.sequence_length, slots),
            *(options.data.packing, options.data.max_examples_per_sequence, checked.settings.head_chunk),
        ],
        "code": [
            *(code_digest(without=(), root=Path(package.__file__).parent) for package in (models, objectives)),
            source_digest([here / "forward.py", Path(__file__), *files], here),
        ],
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
    }
