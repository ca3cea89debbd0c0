"""Looks for the fastest steps that fit: over meshes, remat, micro-batches and chunks of the head.

Of steps that fit those are shown of which none other is both faster and smaller (the Pareto front). What cannot be
among them is not compiled: what is too large by the formula, what is larger than something that did not fit, and what
is slower without its collectives, and larger by the formula, than something that fits.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft_jax.evaluation.report.tables import duration_text
from sft_jax.models.partitioning import MESH_AXES
from sft_jax.models.remat import SAVED
from sft_jax.planning.apart import Figures
from sft_jax.planning.compiled import bytes_of_a_device
from sft_jax.planning.estimating import estimate_of
from sft_jax.planning.planned import Case
from sft_jax.planning.report import bytes_text
from sft_jax.planning.topologies import devices_of
from sft_jax.progress import ProgressBar
from sft_jax.training.memory import StepProgram
from sft_jax.training.step_memory import step_memory

REMAT = (*SAVED, "none")  # from what saves the least to what saves the most
HEAD_CHUNKS = (512, 2048, 0)
_TENSOR = _CONTEXT = (1, 2, 4, 8)
_EXPERT = (1, 2, 4, 8, 16)
_LONG_TOKENS = 16_384  # of a sequence, from which on it is worth splitting
# Of the formula's bytes, what a step takes at least: compilers were within 15 % of it, and quick ones within 18 % of
# themselves.
_SURE = 0.7


OUTDONE = "slower and larger than another, at best"
ENDED = "the compiler ended its process"

Compiles = Callable[[Case], Figures | None]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What was tried.

    Attributes:
        changes: value by field of the config.
        peak: bytes of a device; of what was not compiled at least so many.
        fits: whether a device has so much; None where that was not found out.
        compiled: whether it was.
        seconds: of a step, by the estimate; None where it does not fit.
        mfu: likewise.
        bound_by: likewise.
        reason: why it was not found out whether it fits: OUTDONE or ENDED.
    """

    changes: dict[str, Any]
    peak: int
    fits: bool | None
    compiled: bool
    seconds: float | None = None
    mfu: float | None = None
    bound_by: str = ""
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """The same, for a line of a table."""
        names = ("peak", "fits", "compiled", "seconds", "mfu", "bound_by", "reason")
        return self.changes | {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        case: that was asked for.
        trials: all of them.
        front: those that fit, of which none other is both faster and smaller; the fastest first.
    """

    case: Case
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]

    def numbers(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "config": self.case.name,
            "topology": self.case.topology.name,
            "front": [trial.row() for trial in self.front],
            "trials": [trial.row() for trial in self.trials],
        }


def search(case: Case, console: Console, compiles: Compiles) -> Found:
    """Compiles what may fit, quickly (O0): first all meshes, remat policies and micro-batches, then head chunks.

    Args:
        case: what is asked for; other fields of its config stay.
        console: where it is shown how far that is.
        compiles: a case; None where the compiler ended the process in which that was done.

    Raises:
        ValueError: there is no estimate for such devices, or nothing divides as it must.
    """
    if case.topology.hardware is None:
        raise ValueError(f"--search: times of {case.topology.name} are not known; give --topology of a TPU or GPU")
    case = dataclasses.replace(case, quick=True, plan=None, tokens=None)  # steps alone are timed
    groups = list(_groups(case))
    if not groups:
        raise ValueError("--search: no mesh of these devices goes with the config's sequences and its model")
    trials: list[Trial] = []
    with ProgressBar("search", sum(len(rows) for group in groups for rows in group), console=console) as bar:
        done = 0
        for group in groups:
            for number, trial in enumerate(_tried(case, group, trials, compiles), start=1):
                trials.append(trial)
                bar.update(done + number, _best_text(trials))
            done += sum(map(len, group))
            bar.update(done, _best_text(trials))
    front = pareto(trials)
    chunks = [chunk for chunk in HEAD_CHUNKS if chunk != case.options.objective.head_chunk_tokens]
    with ProgressBar("head chunks", len(front) * len(chunks), console=console) as bar:
        for number, (trial, chunk) in enumerate(itertools.product(front, chunks), start=1):
            trials.append(_try(case, trial.changes | {"objective.head_chunk_tokens": chunk}, trials, compiles))
            bar.update(number, _best_text(trials))
    return Found(case, tuple(trials), tuple(pareto(trials)))


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those that fit, of which none other is both at most as slow and at most as large; the fastest first.

    Args:
        trials: with their seconds and bytes.
    """
    front: list[Trial] = []
    for trial in sorted((trial for trial in trials if trial.fits), key=lambda trial: (trial.seconds, trial.peak)):
        if not front or trial.peak < front[-1].peak:
            front.append(trial)
    return front


def show(found: Found, console: Console) -> None:
    """Prints the front, and the flags of the fastest.

    Args:
        found: by a search.
        console: of the terminal.
    """
    compiled = sum(trial.compiled for trial in found.trials)
    console.print(f"{len(found.trials)} combinations, {compiled} of them compiled (O0).", highlight=False)
    for trial in found.trials:
        if trial.reason == ENDED:
            text = f"Left out with all that is larger on its mesh, as {ENDED}: {flags_of(trial)}"
            console.print(Text(text), soft_wrap=True)
    if not found.front:
        known = [trial for trial in found.trials if trial.fits is False]
        smallest = min(known, key=lambda trial: trial.peak, default=None)
        text = smallest and f" The smallest takes {bytes_text(smallest.peak)}: {flags_of(smallest)}"
        console.print(Text(f"None fits.{text or ''}"), soft_wrap=True)
        return
    table = Table("step", "memory", "MFU", "mesh", "remat", "micro", "head chunk", "bound by", box=box.SIMPLE)
    for trial in found.front:
        changes = trial.changes
        mesh = " ".join(f"{axis}={changes[f'mesh.{axis}']}" for axis in MESH_AXES if changes[f"mesh.{axis}"] > 1)
        chunk = changes.get("objective.head_chunk_tokens", found.case.options.objective.head_chunk_tokens)
        cells = (
            duration_text(trial.seconds),
            bytes_text(trial.peak),
            f"{trial.mfu:.1%}",
            mesh,
            changes["execution.remat"],
        )
        table.add_row(*map(Text, [*cells, str(changes["batch.micro_batches"]), str(chunk or "all"), trial.bound_by]))
    console.print(table)
    console.print(Text(f"The fastest: {flags_of(found.front[0])}"), soft_wrap=True)


def flags_of(trial: Trial) -> str:
    """How it is given on the command line."""
    return " ".join(f"--config.{name}={value}" for name, value in trial.changes.items())


def meshes(case: Case) -> Iterator[dict[str, int]]:
    """Sizes by axis that make the devices: `replica` of 1 or the slices, `tensor` that divides heads, the rest `fsdp`.

    Of a mixture also `expert` that divides its experts. Of sequences that are long, or fewer than the devices, also
    `context`. Both also have the config's size, and no other elsewhere.
    """
    count, decoder = len(devices_of(case.topology)), case.shape.decoder
    replicas = sorted({1, case.topology.slices})
    kv_heads = {decoder.of_layer(number).num_kv_heads for number in range(decoder.num_layers)}
    for sizes in itertools.product(replicas, _expert_sizes(case), _context_sizes(case, count), _TENSOR):
        replica, expert, context, tensor = sizes
        known = replica * expert * context * tensor
        if count % known == 0 and all(heads % tensor == 0 for heads in kv_heads):
            yield {"replica": replica, "fsdp": count // known, "expert": expert, "context": context, "tensor": tensor}


def _expert_sizes(case: Case) -> list[int]:
    experts = case.shape.decoder.num_experts
    tried = {size for size in _EXPERT if experts % size == 0} if experts else set()
    return sorted(tried | {max(1, case.options.mesh.get("expert", 1))})


def _context_sizes(case: Case, devices: int) -> list[int]:
    length = case.options.data.sequence_length
    worthwhile = length >= _LONG_TOKENS or case.options.batch.sequences < devices
    tried = {size for size in _CONTEXT if size == 1 or length % (2 * size) == 0} if worthwhile else set()
    return sorted(tried | {max(1, case.options.mesh.get("context", 1))})


def _groups(case: Case) -> Iterator[list[list[dict[str, Any]]]]:
    """For each mesh, micro-batches from many to few, and for each of these remat from what saves least to most."""
    sequences = case.options.batch.sequences
    for mesh in meshes(case):
        shards = mesh["replica"] * mesh["fsdp"] * mesh["expert"]
        if sequences % shards:
            continue
        most = sequences // shards
        parts = [2**power for power in reversed(range(most.bit_length())) if most % 2**power == 0]
        named = {f"mesh.{axis}": size for axis, size in mesh.items()}
        yield [
            [named | {"batch.micro_batches": number, "execution.remat": remat} for remat in REMAT] for number in parts
        ]


def _tried(
    case: Case, group: list[list[dict[str, Any]]], before: Sequence[Trial], compiles: Compiles
) -> Iterator[Trial]:
    """Tries a group; what comes after something that does not fit is larger, and is left out.

    So is what comes after something at which the compiler ended its process, which is the mesh's doing.
    """
    for by_remat in group:
        for number, changes in enumerate(by_remat):
            trial = _try(case, changes, before, compiles)
            yield trial
            if trial.reason == ENDED or (trial.fits is False and number == 0):
                return
            if trial.fits is False:
                break


def _try(case: Case, changes: dict[str, Any], before: Sequence[Trial], compiles: Compiles) -> Trial:
    changed = case.changed(changes)
    program = changed.program()
    least = least_bytes(changed, program)
    if least > case.topology.hardware.usable_bytes:
        return Trial(changes, least, False, False)
    seconds = estimate_of(changed.options, program, case.sizes, (), case.topology.hardware).seconds
    if outdone(least, seconds, before):
        return Trial(changes, least, None, False, reason=OUTDONE)
    figures = compiles(changed)
    if figures is None:
        return Trial(changes, least, None, False, reason=ENDED)
    memory, estimate = figures.memory, figures.estimate
    if not memory.fits:
        return Trial(changes, memory.peak, False, True)
    return Trial(changes, memory.peak, True, True, estimate.seconds, estimate.mfu, estimate.bound_by)


def outdone(least: int, seconds: float, trials: Sequence[Trial]) -> bool:
    """Whether one of these that fits is both at most as slow and at most as large as something can be at best.

    Args:
        least: bytes that it takes at least.
        seconds: that it takes at least.
        trials: so far.
    """
    return any(trial.fits and trial.seconds <= seconds and trial.peak <= least for trial in trials)


def least_bytes(case: Case, program: StepProgram) -> int:
    """What a step takes of a device at least, before it is compiled.

    Args:
        case: whose step it is.
        program: the step.
    """
    estimate = step_memory(case.options, case.shape.decoder, program.mesh, program.model.execution)
    return max(bytes_of_a_device((program.state, program.batch)), int(_SURE * estimate.total))


def _best_text(trials: Sequence[Trial]) -> str:
    front = pareto(trials)
    return f"best {duration_text(front[0].seconds)}" if front else ""
