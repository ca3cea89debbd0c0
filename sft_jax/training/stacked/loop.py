"""Several runs in one program: `run_stacked(configs, workdirs)` does what as many calls of `run` would do.

One base is in memory, beside it the adapters of all, and one program takes a step of each. A run's rows, metrics,
checkpoints, evaluations and end are its own: they go through the same `Trial` as those of a run by itself, so that its
directory tells nothing of the others, and either way of training goes on with it.

A lane is the place of a run in the program. Lanes know nothing of one another, not even at which step the others are:
each has its own count of steps, its own batches and its own end. So runs that were killed at different steps go on from
their own checkpoints side by side. The lane of a run that is over stays in the program with nobody looking at it, until
half of the lanes are empty and there is enough left to do for a smaller program.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence

import jax
import ml_collections
from etils import epath
from rich.console import Console

from sft_jax import emulation
from sft_jax.data.batches import Batch
from sft_jax.models.decoder import Decoder
from sft_jax.options import Options
from sft_jax.preparation.run_data import Data
from sft_jax.progress import ProgressBar
from sft_jax.runs.base import Base
from sft_jax.runs.result import FAILED, RunEnd
from sft_jax.training.checked_run import CheckedRun, check_run
from sft_jax.training.gradient_check import check_micro_batches
from sft_jax.training.held_out import Evaluator
from sft_jax.training.interrupt import StopRequest
from sft_jax.training.read_once import ReadOnce
from sft_jax.training.setup import init_state, make_model, step_settings
from sft_jax.training.stacked.fields import NotStackableError, options_of_all, refuse_what_cannot_be_stacked
from sft_jax.training.stacked.lanes import Frozen, Lanes, frozen_of
from sft_jax.training.stacked.step import compile_stacked_step, put_batches
from sft_jax.training.state import TrainState
from sft_jax.training.step import Metrics, StepSettings
from sft_jax.training.trial import Trial

SMALLER_FROM_STEPS = 100  # so many have to be left for a program of fewer lanes to be worth its compilation


class _Member:
    """A run among others: its trial, and what it holds open. An error of its own ends it alone.

    Attributes:
        trial: the run.
        open_things: closed at its end.
        end: how it ended; None while it goes on.
        batch: its latest.
    """

    def __init__(self, trial: Trial, console: Console):
        self.trial, self._console = trial, console
        self.open_things = contextlib.ExitStack()
        self.end: RunEnd | None = None
        self.batch: Batch | None = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """In here, an error ends this run and no other."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  it is written down as this run's own
            self._console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            self._close(error)

    def close(self) -> None:
        """Ends the run, whose trial has said how."""
        with self.alone():
            self._close()

    def _close(self, error: Exception | None = None) -> None:
        if error is None:
            self.open_things.close()
        else:
            with contextlib.suppress(Exception):  # what its log or its checkpoints say after the first error
                self.open_things.__exit__(type(error), error, error.__traceback__)
        trial = self.trial
        failed = RunEnd(FAILED, trial.step, trial.times.total_steps, {}, None, {}, 0.0, None, str(error))
        self.end = trial.end or failed  # that could not even claim its directory
        text = f"{trial.workdir}: {self.end.state} at step {self.end.step} of {self.end.total_steps}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def run_stacked(
    configs: Sequence[ml_collections.ConfigDict],
    workdirs: Sequence[epath.PathLike],
    evaluators: Mapping[str, Evaluator] | None = None,
    console: Console | None = None,
    *,
    data: Sequence[Data] | None = None,
    base: Base | None = None,
    devices: Sequence[jax.Device] | None = None,
    stop_after: int | None = None,
) -> list[RunEnd]:
    """Trains several runs in one program; each continues where its directory holds it.

    A run that fails, diverges or comes to its end does not touch the others.

    Args:
        configs: of the runs, which differ only in what `stacked/fields.py` says may differ.
        workdirs: of each run its directory.
        evaluators: as for `run`.
        console: where progress is shown; by default the terminal.
        data: of each run what `load_data` made of its options; by default read here, equal rows once.
        base: what `base_of` made of the `model` options, which are the same in all.
        devices: to train on; by default all of this process.
        stop_after: as for `run`, of each of them.

    Returns:
        How each run ended, as its `result.json` says.

    Raises:
        NotStackableError: the runs differ in what cannot be a batch axis; names the fields.
        WorkdirError: a directory holds another run.
        ValueError: bad config or bad data of any of the runs. Until then nothing is written.
        WrongGradientError: on these devices gradients of micro-batches do not add up.
    """
    emulation.reserve_threads()
    devices = jax.devices() if devices is None else devices
    workdirs, console, evaluators = [epath.Path(path) for path in workdirs], console or Console(), evaluators or {}

    # ---- Check: each run by itself, then that they are one program -------------------------------------------------
    _check_call(configs, workdirs, data)
    refuse_what_cannot_be_stacked(configs)
    checked: list[CheckedRun] = []
    for config, workdir in zip(configs, workdirs, strict=True):
        checked.append(check_run(config, workdir, devices, base))
        base = checked[0].base
    refuse_what_cannot_be_stacked([run.config for run in checked])  # those that go on may have dtypes of their own
    _check_experts(checked[0])
    mesh = checked[0].mesh
    base = dataclasses.replace(base, params=functools.cache(base.params))  # weights are read for the first run

    # ---- Data: of each run, read once where equal ------------------------------------------------------------------
    if data is None:
        read = ReadOnce(len(configs))
        data = [read.data(run.options, len(devices), console) for run in checked]
    trials: list[Trial] = []
    for run, workdir, of_run in zip(checked, workdirs, data, strict=True):
        seen = any(trial.data.examples is of_run.examples for trial in trials)
        trials.append(Trial(run, workdir, evaluators, console, of_run, show_data=not seen))
    _check_batches(trials)
    together = options_of_all([run.options for run in checked])
    model = _model_of_all(together, checked[0], len(checked))
    settings = dataclasses.replace(step_settings(together, mesh), slices=len(trials[0].data.plan.sources))

    members = [_Member(trial, console) for trial in trials]
    with contextlib.ExitStack() as open_things:
        open_things.enter_context(jax.set_mesh(mesh))
        check_micro_batches(together, base, model, settings, mesh)
        for member in members:
            open_things.enter_context(member.open_things)

        # ---- Directories and states: each run as if it were alone --------------------------------------------------
        states = [_state_at_start(member, base, model, stop_after) for member in members]
        starting = [(member, state) for member, state in zip(members, states, strict=True) if state is not None]
        del base, states  # the weights are in the first state
        stop = open_things.enter_context(StopRequest())
        if starting:
            group = _Group([member for member, _ in starting], [state for _, state in starting], model, settings)
            del starting
            most = max(member.trial.times.total_steps for member in group.members)
            bar = open_things.enter_context(ProgressBar(f"training {len(configs)} runs", most, group.step, console))
            _train(group, bar, stop, stop_after)
    return [member.end for member in members]


def _check_call(configs: Sequence, workdirs: Sequence[epath.Path], data: Sequence | None) -> None:
    if jax.process_count() > 1:
        raise NotStackableError(
            f"runs are stacked in one process, and there are {jax.process_count()}: start one process, with all "
            "devices of its machine"
        )
    lengths = {"configs": len(configs), "workdirs": len(workdirs)} | ({} if data is None else {"data": len(data)})
    if not configs or len(set(lengths.values())) > 1:
        raise ValueError(f"expected as many workdirs (and data) as configs, and at least one; got {lengths}")
    if len(set(workdirs)) < len(workdirs):
        raise ValueError(f"each run needs a directory of its own; got {', '.join(map(str, workdirs))}")


def _check_experts(first: CheckedRun) -> None:
    """Checks that the decoder can be mapped over runs: JAX has no such form of products in groups of unequal sizes.

    Raises:
        NotStackableError: it has experts that take all tokens that come.
    """
    decoder = first.model.config
    if decoder.num_experts and not decoder.expert_capacity:
        raise NotStackableError(
            "--config.experts.capacity=0.0: experts that take all tokens that come cannot be trained for several runs "
            "in one program. Give a bound (1.25, for example, which changes what is trained), or train each run by "
            "itself"
        )


def _check_batches(trials: Sequence[Trial]) -> None:
    """Checks what the configs do not say: that batches of all runs are arrays of one program.

    Raises:
        NotStackableError: they are not.
    """
    sources = {max(1, len(trial.data.plan.sources)) for trial in trials}
    if len(sources) > 1:
        raise NotStackableError(
            f"--config.data.mixture: the runs have {sorted(sources)} sources, whose losses are measured apart; "
            "expected as many in each"
        )
    length = trials[0].options.data.sequence_length
    slots = {trial.data.plan.sequence_targets for trial in trials}
    if len(slots) > 1 and length in slots:
        raise NotStackableError(
            f"the sequences of these runs have {sorted(slots)} slots for targets: where every one of {length} tokens "
            "has a slot the head is computed otherwise. Give --config.objective.positions=all to all of them"
        )


def _model_of_all(together: Options, first: CheckedRun, runs: int) -> Decoder:
    """The decoder of the step of all runs, which is executed as suits a step of so many sequences and states."""
    base = first.base
    model = make_model(together, base.decoder, first.mesh, base.new_token_ids, runs)
    if model.adapter is None or not model.adapter.dropout:
        return model
    # What is left out depends on the layout of the layers: it is what a run by itself leaves out.
    layout = first.model.execution.layer_layout
    return model.clone(execution=dataclasses.replace(model.execution, layer_layout=layout))


def _state_at_start(member: _Member, base: Base, model: Decoder, stop_after: int | None) -> TrainState | None:
    """The state that a run begins or goes on with; None where it is over or paused, or cannot begin."""
    trial, options = member.trial, member.trial.options
    with member.alone():
        trial.claim(member.open_things)
        if not trial.is_over and stop_after is not None and trial.step >= stop_after:
            trial.paused()
            member.close()
            return None
        if not (trial.is_over and trial.is_known_whole):
            trial.describe_start(model)
            initial, mesh = trial.checked.initial, trial.checked.mesh
            state = init_state(options, base, model, mesh, trial.hyper, initial)
            trial.compile_evaluation(model, trial.checked.settings, state, mesh)
            state = trial.restored(state)
        if trial.is_over:
            trial.found_over()
            member.close()
            return None
        trial.open_log(model, state, member.open_things)
        return state
    return None


class _Group:
    """The runs that are in a program now, with their states.

    Attributes:
        members: by lane.
    """

    def __init__(self, members: list[_Member], states: list[TrainState], model: Decoder, settings: StepSettings):
        self.members, self._model, self._settings = members, model, settings
        self._mesh = members[0].trial.checked.mesh
        self._frozen: Frozen = frozen_of(states[0])
        self._enter(states)

    def _enter(self, states: list[TrainState]) -> None:
        self._lanes = Lanes(states, self._mesh)
        self._step = compile_stacked_step(self._model, self._settings, self._lanes, self._frozen, self._mesh)
        self._state = self._lanes.stack(states)

    @property
    def running(self) -> list[tuple[int, _Member]]:
        """Those that are not over, with their lanes."""
        return [(lane, member) for lane, member in enumerate(self.members) if member.end is None]

    @property
    def step(self) -> int:
        """Of the run that is furthest behind."""
        return min((member.trial.step for _, member in self.running), default=0)

    def state_of(self, lane: int) -> TrainState:
        """The state of one run."""
        return self._lanes.take(self._state, lane, self._frozen)

    def take_step(self) -> list[Metrics]:
        """A step of each run; an empty lane gets a batch that was there before."""
        spare = next(member.batch for member in self.members if member.batch is not None)
        batches = [spare if member.batch is None else member.batch for member in self.members]
        self._state, metrics = self._step(self._state, self._frozen.arrays, put_batches(batches, self._mesh))
        return metrics

    def close_ranks(self) -> None:
        """Goes on with a smaller program where half of the lanes are empty and much is left to do."""
        running = self.running
        left = max((member.trial.times.total_steps - member.trial.step for _, member in running), default=0)
        if running and 2 * len(running) <= len(self.members) and left >= SMALLER_FROM_STEPS:
            states = [self.state_of(lane) for lane, _ in running]
            self.members = [member for _, member in running]
            self._enter(states)


def _train(group: _Group, bar: ProgressBar, stop: StopRequest, stop_after: int | None) -> None:
    """Batch, step, record, evaluate, save, stop: the loop of `run`, for each of the runs that go on."""
    for lane, member in group.running:
        with member.alone():
            member.trial.begin(group.state_of(lane))
    while group.running:
        for _, member in group.running:
            with member.alone():
                member.batch = member.trial.next_batch()
        if not group.running:
            return
        metrics = group.take_step()
        for lane, member in group.running:
            with member.alone():
                member.trial.dispatched(metrics[lane])
                if member.trial.looks_at_effect:
                    member.trial.look_at_effect(group.state_of(lane))
        signalled = stop.requested(group.step)
        stopping = {lane for lane, member in group.running if signalled or member.trial.step == stop_after}
        if stopping or any(member.trial.is_due() for _, member in group.running):
            _settle(group, stopping, stop)
            group.close_ranks()
        bar.update(group.step, f"{len(group.running)} go on")


def _settle(group: _Group, stopping: Collection[int], stop: StopRequest) -> None:
    """Evaluates and saves those that are due, or are to stop; some of them may be over then.

    No run's time has in it what is done for the others.
    """
    running = group.running
    for _, member in running:
        member.trial.stop_clock()
    for lane, member in running:
        with member.alone():
            if lane in stopping or member.trial.is_due():
                member.trial.settle(group.state_of(lane), stopping=lane in stopping)
            else:
                member.trial.record()
            if member.trial.is_over:
                member.trial.finish()
                member.close()
            elif lane in stopping:
                member.trial.interrupted(stop.signal) if stop.signal else member.trial.paused()
                member.close()
    for _, member in group.running:
        member.trial.start_clock()
