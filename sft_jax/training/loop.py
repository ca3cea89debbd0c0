"""The run: `run(config, workdir)` does from Python what `python -m sft_jax.train` does.

`run` reads from top to bottom, and the order of its parts is the point: whatever can be wrong is found before the run
directory is written and before weights are read. Metrics of a step are read after the next one is dispatched, so that
the devices do not wait for the host, except where the run evaluates or saves. What belongs to the run beside its arrays
is a `Trial` (`trial.py`).
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

import jax
import ml_collections
from etils import epath
from rich.console import Console

from sft_jax import emulation
from sft_jax.agreement import ending_together
from sft_jax.preparation.run_data import Data
from sft_jax.progress import ProgressBar
from sft_jax.runs.base import Base
from sft_jax.sharding import put_batch
from sft_jax.training.checked_run import check_run
from sft_jax.training.ending import RunResult
from sft_jax.training.gradient_check import check_micro_batches
from sft_jax.training.held_out import Evaluator
from sft_jax.training.interrupt import StopRequest
from sft_jax.training.profiler import Profiler
from sft_jax.training.setup import init_state
from sft_jax.training.step import compile_train_step
from sft_jax.training.trial import Trial


def run(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    evaluators: Mapping[str, Evaluator] | None = None,
    console: Console | None = None,
    *,
    data: Data | None = None,
    base: Base | None = None,
    devices: Sequence[jax.Device] | None = None,
    stop_after: int | None = None,
) -> RunResult:
    """Trains as `config` says; continues where `workdir` holds the same run.

    Args:
        config: as `configs/sft.py` makes it.
        workdir: run directory, local or in a bucket.
        evaluators: called at every evaluation with (model, state); what they return is logged as `<name>/<metric>`.
        console: where progress is shown; by default the terminal.
        data: what `load_data` made of the same `data` options, so that many runs in one process read it once.
        base: what `base_of` made of the same `model` options.
        devices: to train on; by default all devices of all processes.
        stop_after: a step after which the run is saved and left, to go on another time; None for its end. It is no part
            of the config: the schedule is that of the whole run.

    Raises:
        WorkdirError: the directory holds another run.
        ValueError: bad config or bad data; names the flag, or the file and row. Or `data` or `base` was made of
            another config.
        DataFindingsError: data with findings that `config.data.fail_on` does not let through.
        WrongGradientError: on these devices gradients of micro-batches do not add up.
        DivergedError: too many steps in a row without a finite loss and gradient.
        NoEffectError: the steps change nothing.
        OtherProcessError: one of several processes refused what this one would not have.
    """
    emulation.reserve_threads()
    devices = jax.devices() if devices is None else devices
    workdir, evaluators, first_process = epath.Path(workdir), evaluators or {}, jax.process_index() == 0
    console = console or Console(quiet=not first_process)
    with contextlib.ExitStack() as open_things:
        open_things.enter_context(ending_together())

        # ---- Check: flags, mesh, base and model fit together -------------------------------------------------------
        checked = check_run(config, workdir, devices, base)
        options, mesh, model = checked.options, checked.mesh, checked.model

        # ---- Data: read, cleaned, tokenized, planned, checked; it fits model and directory -------------------------
        trial = Trial(checked, workdir, evaluators, console, data)

        # ---- Directory ---------------------------------------------------------------------------------------------
        trial.claim(open_things)
        open_things.enter_context(jax.set_mesh(mesh))
        if trial.is_over and trial.is_known_whole:
            return trial.found_over()
        if not trial.is_over and stop_after is not None and trial.step >= stop_after:
            return trial.paused()
        trial.describe_start(model)

        # ---- Check: gradients add up on these devices --------------------------------------------------------------
        check_micro_batches(options, checked.base, model, checked.settings, mesh)

        # ---- Teacher: its most likely tokens, where they are data ---------------------------------------------------
        trial.take_teacher()

        # ---- State: weights, adapters and moments on their devices -------------------------------------------------
        state = init_state(options, checked.base, model, mesh, trial.hyper, checked.initial, checked.teacher)

        # ---- Reference: of objectives that compare the policy with what the run begins with ------------------------
        trial.take_reference(state)

        # ---- Compile -----------------------------------------------------------------------------------------------
        train_settings = dataclasses.replace(checked.settings, slices=len(trial.data.plan.sources))
        train_step = compile_train_step(model, train_settings, state, mesh)
        trial.compile_evaluation(model, checked.settings, state, mesh)

        # ---- Restore -----------------------------------------------------------------------------------------------
        state = trial.restored(state)
        if trial.is_over:
            return trial.found_over()

        # ---- Log ---------------------------------------------------------------------------------------------------
        recorder = trial.open_log(model, state, open_things)
        total = trial.times.total_steps
        bar = open_things.enter_context(ProgressBar("training", total, trial.step, console, enabled=first_process))
        stop = open_things.enter_context(StopRequest())
        profiler = open_things.enter_context(Profiler(options.profile, recorder))

        # ---- Loop: batch, step, record, evaluate, save, stop -------------------------------------------------------
        trial.begin(state, bar)
        while not trial.is_over:
            batch = trial.next_batch(state)
            profiler.before(trial.step + 1)
            state, metrics = train_step(state, put_batch(batch, mesh))
            trial.dispatched(metrics)
            profiler.after(trial.step, metrics)
            trial.look_at_effect(state)
            stopping = stop.requested(trial.step) or trial.step == stop_after
            if stopping or trial.is_due():
                trial.stop_clock()
                trial.settle(state, stopping)
                trial.start_clock()
            if stopping and not trial.is_over:
                at_pause = trial.step == stop_after and not stop.signal
                return trial.paused() if at_pause else trial.interrupted(stop.signal)
        return trial.finish()
