"""A plan for machines: the same figures as JSON, in bytes, seconds and numbers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sft_jax.planning.planned import Plan, state_bytes


def numbers_of(plan: Plan, price: float | None = None) -> dict[str, Any]:
    """What a plan found, as JSON can say it; what is not known is null.

    Args:
        plan: the plan.
        price: of a chip and hour.
    """
    case, memory, execution = plan.case, plan.memory, plan.program.model.execution
    model, trained = plan.parameters()
    devices = plan.program.mesh.devices
    return {
        "config": case.name,
        "model": {"source": case.options.model.source, "origin": case.shape.origin},
        "parameters": {"model": model, "trained": trained},
        "topology": {
            "name": case.topology.name,
            "slices": case.topology.slices,
            "devices": devices.size,
            "device_kind": devices.flat[0].device_kind,
        },
        "mesh": dict(plan.program.mesh.shape),
        "batch": dataclasses.asdict(case.sizes)
        | {"sequences": case.options.batch.sequences, "micro_batches": case.options.batch.micro_batches},
        "execution": dataclasses.asdict(execution),
        "memory": dataclasses.asdict(memory)
        | {
            "fits": None if memory.limit is None else memory.fits,
            "over": memory.over,
            "state": state_bytes(plan.program),
        },
        "flops": dataclasses.asdict(plan.work) | {"computed": plan.work.computed},
        "traffic": dataclasses.asdict(plan.traffic),
        "collectives": _of_program(plan, plan.collectives),
        "unknown_loops": plan.unknown_loops,
        "largest_results": _of_program(plan, plan.buffers),
        "estimate": _estimate(plan),
        "run": _run(plan, price),
        "seconds": {"tracing": plan.compiled.tracing_seconds, "compiling": plan.compiled.compiling_seconds},
        "optimized": plan.compiled.optimized,
    }


def _of_program(plan: Plan, found: Sequence[Any]) -> list[dict[str, Any]] | None:
    """What was read of the compiled program; None where the compiler gave up before there was one."""
    return None if plan.compiled.program is None else [dataclasses.asdict(each) for each in found]


def _estimate(plan: Plan) -> dict[str, Any] | None:
    estimate = plan.estimate
    if estimate is None:
        return None
    names = ("seconds", "products", "attention", "memory", "exposed", "mfu", "hfu", "tokens_per_second", "bound_by")
    exchanges = [dataclasses.asdict(each) for each in estimate.exchanges]
    return {name: getattr(estimate, name) for name in names} | {"exchanges": exchanges}


def _run(plan: Plan, price: float | None) -> dict[str, Any] | None:
    if plan.amount is None:
        return None
    run: dict[str, Any] = dataclasses.asdict(plan.amount)
    if plan.estimate is not None:
        a_chip = plan.case.topology.hardware.devices_per_chip
        hours = plan.estimate.hours(plan.amount.tokens)
        run |= {"hours": hours, "chip_hours": hours * plan.estimate.devices / a_chip}
        run["cost"] = None if price is None else plan.estimate.cost(plan.amount.tokens, price, a_chip)
    return run
