"""A plan for people: what a step takes of each device, what it sends, how long it takes and what that costs."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft_jax.evaluation.report.tables import duration_text
from sft_jax.hardware import Hardware
from sft_jax.planning.amounts import Amount
from sft_jax.planning.collectives import Collective
from sft_jax.planning.planned import Plan, state_bytes

_GIB = 2**30
_COLLECTIVES = 12  # lines, of those with the most bytes
_NARROW = 90  # columns below which tables leave out what can be missed
_GPU_MOST = 0.92  # of a GPU's memory, that JAX may take: the rest is for NCCL and the driver
_FUSED = ("splash", "triton")  # attention whose scores stay off the device's memory


def show(plan: Plan, console: Console, price: float | None) -> None:
    """Prints a plan.

    Args:
        plan: the plan.
        console: of the terminal.
        price: of a chip and hour; None where it is not known.
    """
    console.print(facts_table(facts(plan, price)))
    narrow = console.width < _NARROW
    if plan.buffers:
        console.print(_buffers_table(plan))
    if plan.collectives:
        console.print(_collectives_table(plan, narrow))
    for note in notes(plan):
        console.print(Text(note), soft_wrap=True)


def facts(plan: Plan, price: float | None) -> list[tuple[str, str]]:
    """(what, figure) of a plan, in the order in which they are read.

    Args:
        plan: the plan.
        price: of a chip and hour; None where it is not known.
    """
    return [
        *_of_what(plan),
        *_of_memory(plan),
        *_of_work(plan),
        *_of_time(plan, price),
        (
            "tracing, compiling",
            f"{duration_text(plan.compiled.tracing_seconds)}, "
            f"{duration_text(plan.compiled.compiling_seconds)}{'' if plan.compiled.optimized else ' (at O0)'}",
        ),
    ]


def facts_table(lines: Sequence[tuple[str, str]]) -> Table:
    """Two columns without lines between them."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, figure in lines:
        table.add_row(name, Text(figure))
    return table


def _of_what(plan: Plan) -> Iterator[tuple[str, str]]:
    case, execution = plan.case, plan.program.model.execution
    model, trained = plan.parameters()
    yield "config", case.name
    yield "model", f"{case.options.model.source} ({case.shape.origin})"
    yield "parameters", f"{count_text(model)}, trained {count_text(trained)}"
    devices = plan.program.mesh.devices
    yield "hardware", f"{case.topology.title}: {devices.size} x {devices.flat[0].device_kind}"
    yield "mesh", " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items()) or "one device"
    batch, sizes = case.options.batch, case.sizes
    parts = f" in {batch.micro_batches} micro-batches" if batch.micro_batches > 1 else ""
    yield (
        "batch",
        f"{batch.sequences} x {sizes.sequence_length:,} tokens{parts}, {sizes.sequence_targets:,} targets a sequence",
    )
    yield (
        "execution",
        f"{execution.layer_layout} layers, remat {execution.remat}, attention {execution.attention_backend}",
    )
    yield "dtypes", _dtypes(plan)


def _dtypes(plan: Plan) -> str:
    execution, state = plan.program.model.execution, plan.program.state
    parts = {
        "trained": _dtype_of(state.trained),
        "moments": _dtype_of(state.opt_state),
        "frozen": _dtype_of(state.frozen),
    }
    parts |= {"activations": execution.activation_dtype, "products": execution.matmul_dtype}
    return ", ".join(f"{name} {dtype}" for name, dtype in parts.items() if dtype)


def _dtype_of(tree: Any) -> str:
    """Of most of its numbers; empty where it has no arrays."""
    sizes: Counter[str] = Counter()
    for leaf in jax.tree.leaves(tree):
        sizes[np.dtype(leaf.dtype).name] += leaf.size
    return sizes.most_common(1)[0][0] if sizes else ""


def _of_memory(plan: Plan) -> Iterator[tuple[str, str]]:
    memory = plan.memory
    yield "memory a device", memory_text(plan)
    named = ", ".join(
        f"{name} {bytes_text(size)}" for name, size in state_bytes(plan.program).items() if size >= _GIB / 1000
    )
    yield "  arguments", f"{bytes_text(memory.arguments)}" + (f" ({named})" if named else "")
    yield "  temporaries", "not known" if memory.temporaries is None else f"{bytes_text(memory.temporaries)}"


def memory_text(plan: Plan) -> str:
    """`10.2 of 15.8 GiB: fits`, or by how much it does not."""
    memory = plan.memory
    if memory.limit is None:
        return f"{bytes_text(memory.peak)} at the peak; how much a CPU has is not known"
    verdict = "fits" if memory.fits else f"does not fit, by {bytes_text(memory.over)}"
    return f"{bytes_text(memory.peak)} of {bytes_text(memory.limit)} at the peak: {verdict}"


def _of_work(plan: Plan) -> Iterator[tuple[str, str]]:
    work = plan.work
    again = f", of which {work.recomputed:.3g} again" if work.recomputed else ""
    yield "FLOPs a step", f"{work.model:.3g} of the model, {work.computed:.3g} computed{again}"
    yield "bytes a step", _traffic_text(plan)
    if plan.collectives:
        sent = sum(collective.total for collective in plan.collectives)
        yield "collectives a step", f"{bytes_text(sent)} of results on each device"


def _traffic_text(plan: Plan) -> str:
    parts = dataclasses.asdict(plan.traffic)
    named = ", ".join(f"{name} {bytes_text(size)}" for name, size in parts.items())
    return f"{bytes_text(sum(parts.values()))} to and from each device's memory ({named})"


def _of_time(plan: Plan, price: float | None) -> Iterator[tuple[str, str]]:
    estimate = plan.estimate
    if estimate is None:
        return
    yield "time of a step", f"at least {duration_text(estimate.seconds)}, bound by {estimate.bound_by}"
    parts = [("products", estimate.products), ("attention", estimate.attention), ("memory", estimate.memory)]
    parts.append(("exposed collectives", estimate.exposed))
    yield "  of it", ", ".join(f"{name} {duration_text(seconds)}" for name, seconds in parts)
    yield "MFU, HFU", f"{estimate.mfu:.1%}, {estimate.hfu:.1%}"
    yield (
        "speed",
        f"{estimate.tokens_per_second:,.0f} tokens/s, {estimate.tokens_per_second / estimate.devices:,.0f} a device",
    )
    if plan.amount is not None:
        yield "run", run_text(plan, plan.amount, price)


def run_text(plan: Plan, amount: Amount, price: float | None) -> str:
    """`1,000 steps, 66M tokens: 2.1 h, 33 chip-hours, 41.20`."""
    estimate, hardware = plan.estimate, plan.case.topology.hardware
    hours = estimate.hours(amount.tokens)
    chips = estimate.devices / hardware.devices_per_chip
    cost = "" if price is None else f", {estimate.cost(amount.tokens, price, hardware.devices_per_chip):,.2f} to pay"
    return (
        f"{amount.steps:,} steps, {count_text(amount.tokens)} tokens: {duration_text(hours * 3600)}, "
        f"{hours * chips:,.1f} chip-hours{cost}"
    )


def notes(plan: Plan) -> Iterator[str]:
    """What a reader should know beside the figures."""
    if not plan.compiled.optimized:
        yield "Compiled with --quick (O0): the peak may be up to 18 % away from what the run's own program takes."
    if plan.case.plan is None:
        yield "Without data: full sequences of --config.data.sequence_length, targets by --supervised_share."
    if unknown := plan.unknown_loops:
        yield f"Counted as if they ran once, since it is not known how often they do: loops of {', '.join(unknown)}."
    if plan.estimate is not None and plan.amount is None:
        yield f"Duration {plan.case.options.duration!r}: give --tokens, or --data, for hours and cost."
    attention = plan.program.model.execution.attention_backend
    if plan.estimate is not None and attention not in _FUSED:
        yield f"Timed as if attention were a fused kernel, which {attention} is not: a step takes longer."
    if plan.case.topology.platform == "gpu":
        yield from share_notes(plan.memory.peak, plan.case.topology.hardware)


def share_notes(peak: int, hardware: Hardware) -> Iterator[str]:
    """What JAX may be told where a step takes more of a GPU's memory than it has, or why the step may fail."""
    if hardware.usable_bytes < peak <= _GPU_MOST * hardware.memory_bytes:
        share = hardware.usable_bytes / hardware.memory_bytes
        yield (
            f"JAX takes {share:.0%} of a GPU's memory: with XLA_PYTHON_CLIENT_MEM_FRACTION={_GPU_MOST} in the "
            "environment, of the plan and of the run, it fits."
        )
    elif _GPU_MOST * hardware.memory_bytes < peak <= hardware.usable_bytes:
        yield f"No more than about {_GPU_MOST:.0%} of a GPU's memory is JAX's: NCCL and the driver need the rest."


# ---- Tables ---------------------------------------------------------------------------------------------------------


def _buffers_table(plan: Plan) -> Table:
    table = Table(title="Largest results on a device", title_justify="left", box=box.SIMPLE)
    table.add_column("bytes", justify="right")
    table.add_column("array", overflow="fold")
    table.add_column("made by", overflow="fold")
    for buffer in plan.buffers:
        maker = " ".join(filter(None, [buffer.scope, buffer.phase, buffer.operation]))
        times = f" x {buffer.count}" if buffer.count > 1 else ""
        sizes = ", ".join(map(str, buffer.sizes))
        table.add_row(*map(Text, [bytes_text(buffer.bytes), f"{buffer.dtype}[{sizes}]{times}", maker]))
    return table


def _collectives_table(plan: Plan, narrow: bool) -> Table:
    table = Table(title="Collectives of a step", title_justify="left", box=box.SIMPLE)
    table.add_column("bytes", justify="right")
    table.add_column("kind", overflow="fold")
    table.add_column("over")
    if not narrow:
        table.add_column("one result", justify="right")
    table.add_column("times", justify="right")
    table.add_column("of", overflow="fold")
    rows = list(plan.collectives)
    for each in rows[:_COLLECTIVES]:
        kind = f"{each.stands_for} in steps" if each.stands_for else each.kind
        row = [bytes_text(each.total), kind, " ".join(each.axes)]
        row += [] if narrow else [f"{each.bytes / 2**20:,.1f} MiB {each.dtype}"]
        table.add_row(*map(Text, [*row, f"{each.count:,}{' (loop)' if each.in_loop else ''}", each.scope]))
    if rest := rows[_COLLECTIVES:]:
        table.add_row(bytes_text(_total(rest)), f"{len(rest)} more")
    return table


def _total(collectives: Sequence[Collective]) -> int:
    return sum(collective.total for collective in collectives)


# ---- Numbers --------------------------------------------------------------------------------------------------------


def bytes_text(size: float) -> str:
    """Three figures and a unit: `12.2 GiB`, `512 MiB`, `96 B`."""
    for unit, value in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= value:
            return f"{_three(size / value)} {unit}"
    return f"{size:.0f} B"


def _three(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def count_text(number: float) -> str:
    """`8.03B`, `41.9M`, `512`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
