"""Plans all shipped configs for the hardware they are for, and one model for 16 to 4,096 chips; writes docs/scaling.md.

    python -m benchmarks.scaling [--plans=runs/scaling] [--only=llama3.py:8b] [--quick]

Needs the compilers (requirements-plan.txt). Plans are made one after another, each by `python -m sft_jax.plan` in a
process of its own, and kept as JSON in --plans: started again, it makes those that are missing (remove a file to make
it anew), and writes the tables of all that are there between the marks of docs/scaling.md.
"""

import dataclasses
import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

_PLANS = flags.DEFINE_string("plans", "runs/scaling", "Directory of the plans.")
_ONLY = flags.DEFINE_string("only", "", "Make no other plans than those of names with this in them.")
_QUICK = flags.DEFINE_bool("quick", False, "As for sft_jax.plan.")
_PAGE = flags.DEFINE_string("page", "docs/scaling.md", "Page with the marks.")

MODULES = ("smollm2", "llama3", "mixtral")
SHIPPED, CHIPS = "shipped", "chips"  # the tables
_SLICES = ("v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16", "v5p:16x16x16")
# Shipped configs that are planned in other ways too: with less memory, and long lines without context parallelism.
_FULL = ("execution.remat", "full")
_ALSO = {
    "8b_v5e_4x4": ((_FULL,), (_FULL, ("precision.gradients", "bfloat16"))),
    "8b_32k_v5p_2x2x4": ((("mesh.context", 1), ("batch.sequences", 16)),),
}
_DOES_NOT_FIT = 3  # exit status of the plan command
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan to make.

    Attributes:
        table: that it is a row of.
        config: file and argument.
        topology: hardware.
        overrides: of the config, by field.
    """

    table: str
    config: str
    topology: str
    overrides: tuple[tuple[str, int | str], ...] = ()

    @property
    def name(self) -> str:
        """Of its row: `llama3.py:8b_v5e_4x4`."""
        return " ".join([self.config, *(f"{field}={value}" for field, value in self.overrides)])

    @property
    def file(self) -> str:
        """Of its JSON."""
        return re.sub(r"[^\w.=-]+", "_", f"{self.name} {self.topology}") + ".json"

    def command(self, json_file: Path, quick: bool) -> list[str]:
        """What makes it."""
        fields = [f"--config.{field}={value}" for field, value in self.overrides]
        more = ["--quick"] if quick else []
        given = [f"--config=configs/{self.config}", *fields, f"--topology={self.topology}", f"--json={json_file}"]
        return [sys.executable, "-m", "sft_jax.plan", *given, "--noadvice", *more]


def all_plans() -> list[Planned]:
    """Each shipped config, some in other ways too; one model on ever more chips."""
    plans = []
    for module in MODULES:
        for arg, (topology, _) in importlib.import_module(f"configs.{module}").SHIPPED.items():
            plans.append(Planned(SHIPPED, f"{module}.py:{arg}", topology))
            plans += [Planned(SHIPPED, f"{module}.py:{arg}", topology, changed) for changed in _ALSO.get(arg, ())]
    for topology in _SLICES:
        plans.append(Planned(CHIPS, "llama3.py:8b_v5p_2x2x4", topology, (("batch.sequences", chips_of(topology)),)))
    return plans


def chips_of(topology: str) -> int:
    """How many chips `v5p:2x2x4` has."""
    return math.prod(int(size) for size in topology.partition(":")[2].split("x"))


def shipped_row(name: str, plan: Mapping[str, Any]) -> list[str]:
    """Of the table of shipped configs."""
    batch, estimate = plan["batch"], plan["estimate"]
    sequences = f"{batch['sequences']} x {batch['sequence_length']:,}"
    if batch["micro_batches"] > 1:
        sequences += f" in {batch['micro_batches']}"
    flops = f"{plan['flops']['model'] / 1e12:,.0f} ({plan['flops']['computed'] / plan['flops']['model']:.2f})"
    row = [f"`{name}`", plan["topology"]["name"], sequences, plan["execution"]["remat"], memory(plan)]
    row += [exchanged(plan), flops]
    if estimate is None:
        return [*row, *["–"] * 4]
    speed = estimate["tokens_per_second"] / plan["topology"]["devices"]
    return [*row, f"{estimate['seconds']:.2f}", f"{100 * estimate['mfu']:.0f} %", f"{speed:,.0f}", estimate["bound_by"]]


def chips_row(plan: Mapping[str, Any]) -> list[str]:
    """Of the table of one model on ever more chips."""
    by_axes: dict[str, float] = {}
    for each in plan["collectives"] or ():
        axes = " x ".join(each["axes"])
        by_axes[axes] = by_axes.get(axes, 0.0) + each["bytes"] * each["count"] / _GIB
    along = ", ".join(f"{axes} {size:.1f}" for axes, size in sorted(by_axes.items(), key=lambda item: -item[1]))
    along = "–" if plan["collectives"] is None else along
    estimate = plan["estimate"]
    timed = ["–"] * 2 if estimate is None else [f"{estimate['seconds']:.2f}", f"{100 * estimate['mfu']:.0f} %"]
    state = sum(plan["memory"]["state"].values()) / _GIB
    return [plan["topology"]["name"], str(plan["topology"]["devices"]), f"{state:.2f}", memory(plan), along, *timed]


def memory(plan: Mapping[str, Any]) -> str:
    """Peak of a device, of what it has."""
    found = plan["memory"]
    peak = f"{found['peak'] / _GIB:.1f} of {found['limit'] / _GIB:.1f}"
    return peak if found["fits"] else f"{peak}: does not fit"


def exchanged(plan: Mapping[str, Any]) -> str:
    """GiB of results of collectives, of a device and step; not known where the compiler gave up."""
    if plan["collectives"] is None:
        return "–"
    return f"{sum(each['bytes'] * each['count'] for each in plan['collectives']) / _GIB:.1f}"


HEADS = {
    SHIPPED: (
        "config",
        "hardware",
        "sequences",
        "remat",
        "peak, GiB",
        "collectives, GiB",
        "model TFLOPs (computed)",
        "step, s",
        "MFU",
        "tokens/s a device",
        "bound by",
    ),
    CHIPS: ("slice", "chips", "state, GiB", "peak, GiB", "collectives, GiB", "step, s", "MFU"),
}


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with each table between its marks.

    Raises:
        ValueError: a table has no marks.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in page or end not in page:
            raise ValueError(f"the page has no marks {begin} … {end}")
        before, after = page.split(begin)[0], page.split(end)[1]
        page = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return page


def made(planned: Planned, directory: Path, quick: bool) -> None:
    """Makes a plan.

    Raises:
        RuntimeError: the command failed.
    """
    file = directory / planned.file
    print(f"{planned.name} for {planned.topology} …", flush=True)
    done = subprocess.run(planned.command(file, quick), capture_output=True, text=True)
    if done.returncode not in (0, _DOES_NOT_FIT) or not file.exists():
        raise RuntimeError(f"{planned.name}, {planned.topology}: exit status {done.returncode}\n{done.stderr[-3000:]}")


def tables_of(plans: Sequence[Planned], directory: Path) -> dict[str, str]:
    """Both tables, of the plans that are there."""
    rows: dict[str, list[list[str]]] = {SHIPPED: [], CHIPS: []}
    for planned in plans:
        file = directory / planned.file
        if file.exists():
            found = json.loads(file.read_text())
            row = shipped_row(planned.name, found) if planned.table == SHIPPED else chips_row(found)
            rows[planned.table].append(row)
    return {name: table_of(HEADS[name], found) for name, found in rows.items()}


def main(_: list[str]) -> None:
    """Makes what is missing, and writes the page."""
    directory, page = Path(_PLANS.value), Path(_PAGE.value)
    directory.mkdir(parents=True, exist_ok=True)
    plans = all_plans()
    for planned in plans:
        if _ONLY.value in planned.name and not (directory / planned.file).exists():
            made(planned, directory, _QUICK.value)
            page.write_text(with_tables(page.read_text(), tables_of(plans, directory)))
    page.write_text(with_tables(page.read_text(), tables_of(plans, directory)))


if __name__ == "__main__":
    app.run(main)
