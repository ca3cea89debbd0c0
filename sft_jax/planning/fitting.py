"""What would make a step fit that does not: changes of the config, or more devices, each shown by compiling it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console

from sft_jax.options import Options
from sft_jax.planning import topologies
from sft_jax.planning.compiled import bytes_of_a_device, compile_step
from sft_jax.planning.planned import Case, Plan
from sft_jax.planning.report import bytes_text
from sft_jax.runs.adapting import has_adapters
from sft_jax.sharding import data_shards

_HEAD_CHUNK = 128  # target slots of a device; fewer make products too small
_DOUBLINGS = 4  # of the devices, that are tried

Changes = dict[str, Any]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Way:
    """Something that makes it fit.

    Attributes:
        changes: value by field of the config.
        topology: for which it was compiled.
        peak: bytes of a device then.
    """

    changes: Changes
    topology: topologies.Topology
    peak: int

    def flags(self, before: topologies.Topology) -> str:
        """As it is given on the command line; the topology where it is another than before."""
        given = [f"--config.{name}={value}" for name, value in self.changes.items()]
        return " ".join([*([f"--topology={self.topology.name}"] if self.topology != before else []), *given])

    def numbers(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"topology": self.topology.name, "changes": self.changes, "peak": self.peak}


@dataclasses.dataclass(frozen=True)
class Ways:
    """What was found for a plan that does not fit; empty where nothing was."""

    plan: Plan
    found: tuple[Way, ...]

    def __iter__(self) -> Iterator[Way]:
        return iter(self.found)


def ways_to_fit(plan: Plan, console: Console) -> Ways:
    """Looks for changes on the same devices, and for more devices without changes; compiles quickly (O0).

    Args:
        plan: that does not fit.
        console: where it is shown how far that is.
    """
    case = dataclasses.replace(plan.case, quick=True)
    with console.status("Looking for what would fit …") as status:
        say = lambda what: status.update(f"Looking for what would fit: {what} …")
        found = [way for way in (_by_changes(case, plan, say), _by_devices(case, say)) if way is not None]
    return Ways(plan, tuple(found))


def text_of(ways: Ways) -> str:
    """What was found, in words."""
    plan = ways.plan
    if not ways.found:
        return "Nothing that was tried makes it fit: fewer tokens in a sequence, or other devices, are left."
    lines = [
        "It would fit, as compiled, with either of:" if len(ways.found) > 1 else "It would fit, as compiled, with:"
    ]
    lines += [f"  {way.flags(plan.case.topology)}   ({bytes_text(way.peak)})" for way in ways]
    return "\n".join(lines)


def candidates(options: Options, plan: Plan) -> Iterator[Changes]:
    """Changes that save memory, those first that leave what is trained as it is.

    Args:
        options: of the run.
        plan: its plan.
    """
    mesh, execution = plan.program.mesh, plan.program.model.execution
    if execution.remat != "full":
        yield {"execution.remat": "full"}
    most = options.batch.sequences // data_shards(mesh)
    if most > options.batch.micro_batches:
        yield {"batch.micro_batches": most}
    if not 0 < options.objective.head_chunk_tokens <= _HEAD_CHUNK:
        yield {"objective.head_chunk_tokens": _HEAD_CHUNK}
    if mesh.shape["replica"] > 1:
        yield {"mesh.replica": 1, "mesh.fsdp": -1}
    if execution.activation_dtype != "bfloat16":
        yield {"precision.activations": "bfloat16"}
    adapted = has_adapters(options.adapter)
    if options.precision.gradients != "bfloat16" and not adapted:
        yield {"precision.gradients": "bfloat16"}
    if adapted:
        yield {"precision.frozen": "bfloat16"}
        yield {"precision.quantized": "nf4"}
        return
    if options.optimizer.name == "adamw":
        yield {"optimizer.name": "adam8bit"}
    yield {"precision.params": "bfloat16"}
    as_asked = {"optimizer.name": options.optimizer.name, "precision.params": options.precision.params}
    yield {"adapter.method": "lora", "precision.frozen": "bfloat16", **as_asked}


def _by_changes(case: Case, plan: Plan, say: Say) -> Way | None:
    """Changes one after the other until it fits, without those that turn out not to be needed."""
    taken: list[Changes] = []
    for changes in candidates(case.options, plan):
        taken.append(changes)
        peak = _peak(case, _joined(case, taken), say)
        if peak is None:
            taken.pop()
        elif peak <= plan.memory.limit:
            break
    else:
        return None
    for changes in taken[:-1]:
        without = [each for each in taken if each is not changes]
        less = _peak(case, _joined(case, without), say)
        if less is not None and less <= plan.memory.limit:
            taken, peak = without, less
    return Way(_joined(case, taken), case.topology, peak)


def _by_devices(case: Case, say: Say) -> Way | None:
    """The first of twice, four times … as many devices that have room for the same."""
    topology = case.topology
    for _ in range(_DOUBLINGS):
        topology = topologies.doubled(topology)
        if topology is None:
            return None
        more = dataclasses.replace(case, topology=topology)
        changes: Changes = {}
        while (peak := _peak(more, changes, say)) is None:
            sequences = changes.get("batch.sequences", case.options.batch.sequences)
            if sequences >= len(topologies.devices_of(topology)):
                return None
            changes = {"batch.sequences": 2 * sequences}
        if peak <= topology.hardware.usable_bytes:
            return Way(changes, topology, peak)
    return None


def _joined(case: Case, changes: list[Changes]) -> Changes:
    """All of them, the later ones in the place of earlier ones, without what the config has already."""
    joined = {name: value for each in changes for name, value in each.items()}
    asked = lambda name: functools.reduce(getattr, name.split("."), case.config)
    return {name: value for name, value in joined.items() if asked(name) != value}


def _peak(case: Case, changes: Mapping[str, Any], say: Say) -> int | None:
    """Bytes of a device with these changes; None where they do not go with the config.

    What its arguments alone show not to fit is not compiled.
    """
    try:
        changed = case.changed(changes)
        program = changed.program()
    except ValueError:
        return None
    arguments = bytes_of_a_device((program.state, program.batch))
    if arguments > case.topology.hardware.usable_bytes:
        return arguments
    say(" ".join(f"{name}={value}" for name, value in changes.items()) or case.topology.title)
    return compile_step(program, case.topology, quick=True).memory.peak
