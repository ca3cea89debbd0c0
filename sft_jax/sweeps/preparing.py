"""What is known of runs before any starts: whether their models and data are there and fit, and their programs.

No weights are read.
"""

import dataclasses
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict
from rich.console import Console

from sft_jax.data.files.locate import sources_of
from sft_jax.data.reading import held_out_reading_of
from sft_jax.options import Options, options_of
from sft_jax.preparation.mixing import reader_of
from sft_jax.runs.base import Base
from sft_jax.runs.precision import with_dtypes
from sft_jax.sharding import make_mesh, platform_of, shards_asked
from sft_jax.sweeps.problems import Problems
from sft_jax.sweeps.runs import SweepRun
from sft_jax.sweeps.shared import Shared
from sft_jax.training.durations import run_steps
from sft_jax.training.initial_adapter import open_initial_adapter
from sft_jax.training.memory import StepProgram, batch_sizes, step_program
from sft_jax.training.setup import open_teacher, sequences_at_once, trained_decoder
from sft_jax.training.trained_parameters import check_trained

_ANY_PLATFORM = "cpu"  # by which only dtypes and execution are chosen


@dataclasses.dataclass(frozen=True)
class PreparedRun:
    """A run that could start.

    Attributes:
        run: itself.
        program: its train step; runs whose programs are equal share what is compiled.
        total_steps: that it has.
    """

    run: SweepRun
    program: StepProgram
    total_steps: int


def check_inputs(runs: Sequence[SweepRun], shared: Shared) -> None:
    """Checks that models and data of all runs are there, that what is trained fits the model, and that batches divide.

    Whether the mesh fits the devices is known where these are: in a dry run, and when a run starts.

    Args:
        runs: in the order in which they are stated.
        shared: keeps what several of them open.

    Raises:
        SweepError: names what is wrong, and in which runs.
    """
    problems, looked_at = Problems(), set()
    for number, run in enumerate(runs, start=1):
        try:
            options, base = _opened(run.config, shared, _ANY_PLATFORM)
            trained_decoder(options, base.decoder)
            sequences_at_once(options, shards_asked(options.mesh, devices=1))
            data = options.data
            if repr(data) not in looked_at:
                _check_data_there(options)
            looked_at.add(repr(data))
        except (ValueError, OSError) as error:
            problems.add(number, error)
    problems.refuse()


def prepare(
    runs: Sequence[SweepRun], shared: Shared, devices: Sequence[jax.Device], console: Console
) -> list[PreparedRun]:
    """Reads and tokenizes the data of runs, which the cache keeps for them, and describes their programs.

    Args:
        runs: in the order in which they are stated.
        shared: keeps what several of them read.
        devices: on which each would run.
        console: where it is shown how far that is.

    Raises:
        SweepError: names what is wrong, and in which runs.
    """
    problems, prepared = Problems(), []
    for number, run in enumerate(runs, start=1):
        try:
            mesh = make_mesh(run.config.mesh.to_dict(), devices)
            options, base = _opened(run.config, shared, platform_of(mesh))
            data = shared.data(options, len(devices), console)
            teacher = open_teacher(options, base, mesh)
            program = step_program(options, base.decoder, batch_sizes(data), mesh, base.new_token_ids, teacher)
            prepared.append(PreparedRun(run, program, run_steps(options.duration, data.plan)))
        except (ValueError, OSError) as error:
            problems.add(number, error)
    problems.refuse()
    return prepared


def _opened(config: ConfigDict, shared: Shared, platform: str) -> tuple[Options, Base]:
    """The options of a run, with what an adapter to begin with says of itself, and its base."""
    config = with_dtypes(config, platform)
    options = options_of(config)
    base = shared.base(options.model)
    initial = open_initial_adapter(options.adapter, base)
    if initial is not None:
        options = options_of(initial.in_config(config))
    check_trained(options, base.decoder)
    return options, base


def _check_data_there(options: Options) -> None:
    """Checks that training and held-out rows are there; reads none of them."""
    data = options.data
    if not (data.train or data.mixture):
        raise ValueError("--config.data.train is empty; give a file, a pattern, a saved data set or a name of the hub")
    reader_of(data)
    if data.held_out:
        sources_of(data.held_out, held_out_reading_of(data.reading, data.held_out_split))
