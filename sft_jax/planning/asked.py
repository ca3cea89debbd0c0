"""From what the command was asked for to what it shows: one plan, two side by side, or a search."""

import csv
import dataclasses
import io
import json
import math
import sys
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from rich.console import Console
from rich.text import Text

from sft_jax.objectives import samples_groups
from sft_jax.options import Options, options_of
from sft_jax.planning import comparison, fitting, report, search
from sft_jax.planning.apart import Apart
from sft_jax.planning.numbers import numbers_of
from sft_jax.planning.planned import Case, Plan, plan_of
from sft_jax.planning.shapes import ModelShape, shape_of
from sft_jax.planning.topologies import Topology, devices_of
from sft_jax.runs.base import base_of
from sft_jax.runs.precision import with_dtypes
from sft_jax.runs.workdir import write_whole
from sft_jax.training.checks import check_config
from sft_jax.training.initial_adapter import open_initial_adapter
from sft_jax.training.memory import BatchSizes, batch_sizes
from sft_jax.training.teacher import is_in_step
from sft_jax.training.trained_parameters import check_trained
from sft_jax.training.trial import load_run_data

_ROUND = 8  # target slots are a multiple of it, as `supervised_capacity` makes them


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a plan is asked of.

    Attributes:
        name: of the config, as it was given.
        config: the experiment config.
        topology: to plan for.
        share: of a sequence's tokens that are targets, where the data are not read.
        reads_data: whether they are.
        tokens: of the whole run, where the user says so.
        price: of a chip and hour.
        quick: compile with fewer optimizations.
        search: try other meshes and memory savings.
        other: name and config to compare with.
        advice: where it does not fit, look for what would.
    """

    name: str
    config: ConfigDict
    topology: Topology
    share: float
    reads_data: bool
    tokens: float | None
    price: float | None
    quick: bool
    search: bool
    other: tuple[str, ConfigDict] | None
    advice: bool


def answer(asked: Asked, console: Console, json_file: str | None, csv_file: str | None) -> bool:
    """Shows what was asked for, and writes it; whether it fits.

    Args:
        asked: what.
        console: of the terminal.
        json_file: for the figures; `-` for standard output.
        csv_file: for all that a search tried.

    Raises:
        ValueError: the config, its model and the topology do not go together; names the flag.
    """
    case = case_of(asked, asked.name, asked.config, console)
    if asked.search:
        with Apart() as compiles:
            found = search.search(case, console, compiles)
        search.show(found, console)
        if csv_file:
            _write(csv_file, _as_csv([trial.row() for trial in found.trials]))
        if json_file:
            _write(json_file, _as_json(found.numbers()))
        return bool(found.front)
    plans = [_planned(case, console)]
    if asked.other is not None:
        plans.append(_planned(case_of(asked, *asked.other, console), console))
        comparison.show(*plans, console, asked.price)
    else:
        report.show(plans[0], console, asked.price)
    numbers = [numbers_of(plan, asked.price) for plan in plans]
    for plan, figures in zip(plans, numbers, strict=True):
        if asked.advice and not plan.memory.fits:
            ways = fitting.ways_to_fit(plan, console)
            console.print(Text(fitting.text_of(ways)), soft_wrap=True)
            figures["would_fit"] = [way.numbers() for way in ways]
    if json_file:
        _write(json_file, _as_json(numbers[0] if asked.other is None else numbers))
    return all(plan.memory.fits for plan in plans)


def case_of(asked: Asked, name: str, config: ConfigDict, console: Console) -> Case:
    """A config as a case.

    Args:
        asked: what else is known.
        name: of the config.
        config: itself.
        console: where it is shown how far data are read.

    Raises:
        ValueError: its parts do not go together, or its model or data cannot be read.
    """
    check_config(config)
    config = with_dtypes(config, asked.topology.platform)
    options = options_of(config)
    if is_in_step(options):
        raise ValueError(
            f"--config.teacher.top_k=0 (--config.objective.name={options.objective.name}): a plan knows nothing of a "
            "teacher in the step. Give --config.teacher.top_k=32, for example, with which it is not in the step"
        )
    shape = shape_of(options.model)
    if options.adapter.initial:  # what it brings is in its files, and they are compared with the base's
        config = open_initial_adapter(options.adapter, base_of(options.model)).in_config(config)
        options = options_of(config)
    check_trained(options, shape.decoder)
    sizes, plan = BatchSizes(options.data.sequence_length, targets_of(options, asked.share)), None
    if asked.reads_data:
        data = load_run_data(options, len(devices_of(asked.topology)), console)
        sizes, plan = batch_sizes(data), data.plan
    if samples_groups(options.objective.name):
        sizes = BatchSizes(options.data.sequence_length, targets_of(options, asked.share))
    _check_length(sizes, shape)
    return Case(name, config, options, shape, sizes, asked.topology, plan, asked.tokens, asked.quick)


def targets_of(options: Options, share: float) -> int:
    """Target slots of a sequence without its data: a share of its tokens, as a multiple of 8.

    Of sampled answers as many as the answers of a step take at least, as long as they may be.

    Args:
        options: of the run.
        share: of the tokens that are supervised.
    """
    length, rollouts = options.data.sequence_length, options.rollouts
    if samples_groups(options.objective.name):
        answers = math.ceil(rollouts.prompts * rollouts.group / options.batch.sequences)
        return min(length, answers * rollouts.max_new_tokens)
    if options.objective.positions == "all":
        return length
    return min(length, max(_ROUND, math.ceil(share * length / _ROUND) * _ROUND))


def _check_length(sizes: BatchSizes, shape: ModelShape) -> None:
    known = shape.decoder.max_positions
    if sizes.sequence_length > known:
        raise ValueError(
            f"--config.data.sequence_length={sizes.sequence_length}: the model knows {known} positions; give fewer "
            "tokens, or --config.model.max_positions"
        )


def _planned(case: Case, console: Console) -> Plan:
    with console.status(f"Compiling {case.name} for {case.topology.title} …"):
        return plan_of(case)


def _as_json(numbers: Any) -> str:
    return json.dumps(numbers, indent=2) + "\n"


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(file: str, text: str) -> None:
    if file == "-":
        sys.stdout.write(text)
        return
    path = epath.Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
