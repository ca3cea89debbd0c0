"""A run in progress: all of it but its arrays on the devices and the program of its step.

`run` (`loop.py`) leads one trial from its checks to its end. Where several train in one program (`stacked/`), each is
led through the same methods in the same order, so that no trace of the others is in its directory.
"""

import contextlib
import functools
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from rich.console import Console

from sft_jax.agreement import agreed, ending_together
from sft_jax.audit.batch_text import batch_markdown
from sft_jax.audit.findings import check_findings
from sft_jax.data.batches import Batch, train_batches
from sft_jax.models.decoder import Decoder
from sft_jax.models.sizes import check_sizes
from sft_jax.objectives import distils, has_reference, samples_groups, scores_texts
from sft_jax.options import Options
from sft_jax.preparation.run_data import Data, load_data
from sft_jax.progress import ProgressBar, ProgressBars, silent
from sft_jax.runs import workdir as workdirs
from sft_jax.runs.checkpoints import Checkpoints, RunPosition
from sft_jax.runs.metric_log import MetricLog
from sft_jax.runs.result import RunEnd, forget_result, read_result, write_result
from sft_jax.runs.training_cost import cost_up_to, trained_parameters
from sft_jax.sharding import platform_of, sequences_here
from sft_jax.training.best import BestEvaluation
from sft_jax.training.branch import fingerprint_of_branch, first_step
from sft_jax.training.checked_run import CheckedRun
from sft_jax.training.durations import timetable
from sft_jax.training.effect import EffectWatch
from sft_jax.training.ending import RunResult, end_of_run, last_evaluation, log_of, show_end, show_finished, state_after
from sft_jax.training.first_scores import check_begins_at_zero
from sft_jax.training.held_out import Evaluator, check_best_metric, compile_evaluation, refuse_unmeasured
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.recorder import Recorder, counters_at
from sft_jax.training.reference import with_reference
from sft_jax.training.rollouts.rollout import Rollouts
from sft_jax.training.rollouts.samples import forget_after
from sft_jax.training.run_findings import run_findings
from sft_jax.training.setup import chosen_by_platform
from sft_jax.training.state import TrainState, saved_arrays, with_saved
from sft_jax.training.step import Metrics, StepSettings
from sft_jax.training.tasks import TaskEvaluation
from sft_jax.training.teacher_values import with_teacher_values


def load_run_data(options: Options, device_count: int, console: Console) -> Data:
    """The data of a run, with what is to be known of them on so many devices."""
    also = functools.partial(run_findings, device_count=lambda: device_count)
    with ProgressBars(console) as progress:
        return load_data(options, progress, also=also)


class Trial:
    """A run in progress. Its methods are called in the order in which they stand here.

    Attributes:
        checked: its config, and what was made of it.
        options: of the run.
        workdir: its directory.
        data: of the run.
        times: its steps in all, and when it evaluates and saves.
        hyper: its numbers, as float32 scalars.
        step: optimizer steps done.
        is_over: whether it has come to its end.
        best: its best evaluation.
        end: how it ended, when it has; of the process that writes.
    """

    # ---- Before anything is written --------------------------------------------------------------------------------

    def __init__(
        self,
        checked: CheckedRun,
        workdir: epath.Path,
        evaluators: Mapping[str, Evaluator],
        console: Console,
        data: Data | None = None,
        *,
        show_data: bool = True,
    ):
        """Reads the data, and checks that they fit model and directory.

        Args:
            checked: its config, and what was made of it.
            workdir: its directory.
            evaluators: as for `run`.
            console: where progress is shown.
            data: what `load_data` made of the same options; by default read here.
            show_data: whether to show what is known of them.

        Raises:
            WorkdirError: the directory holds another run.
            ValueError: bad data, or data of another config.
            DataFindingsError: data with findings that `config.data.fail_on` does not let through.
        """
        options, base = checked.options, checked.base
        self.checked, self.options, self.workdir = checked, options, workdir
        self._evaluators, self._console, self._writes = evaluators, console, jax.process_index() == 0
        with agreed():
            workdirs.check_config_there(workdir, checked.config)
            self.data = data = load_run_data(options, len(checked.devices), console) if data is None else data
            data.check_made_for(options)
            base.check_made_for(options.model)
            if show_data:
                console.print(data.report, data.held_out_note)
            check_findings(data.report.findings, options.data.fail_on)
            self._tasks = TaskEvaluation(options, data.renderer, workdir, writes=self._writes)
            evaluated = [*evaluators, *self._tasks.names]
            self.times = timetable(options, data.plan, measures=data.held_out is not None or bool(evaluated))
            times = self.times
            self.hyper = hyperparameters(options, times.warmup_steps, times.total_steps, times.decay_steps)
            self._fingerprints = data.fingerprints() | {"model": base.fingerprint}
            if checked.initial is not None:
                self._fingerprints["adapter"] = checked.initial.fingerprint
            if checked.teacher is not None:
                self._fingerprints["teacher"] = checked.teacher.base.fingerprint
            if checked.branch is not None:
                checked.branch.check_steps(options, data.plan, self._fingerprints)
            self._fingerprints |= fingerprint_of_branch(options, checked.branch, workdir)
            workdirs.check_inputs(workdir, self._fingerprints)
            check_sizes(checked.model.config, data.examples, data.held_out)
            if checked.teacher is not None:
                checked.teacher.check_sizes(data.examples, data.held_out)
            check_best_metric(options, data, base.decoder.vocab_size, evaluated)
            self._rollouts = None
            if samples_groups(options.objective.name):
                self._rollouts = Rollouts(checked, data, workdir, self.times.total_steps, writes=self._writes)
        workdirs.check_processes_agree(checked.config, self._fingerprints)
        self.step, self.best = first_step(options), BestEvaluation(options)
        self._ended: RunResult | None = None
        self.end: RunEnd | None = None

    # ---- Directory -------------------------------------------------------------------------------------------------

    def claim(self, open_things: contextlib.ExitStack) -> None:
        """Makes the directory its own until `open_things` is closed, and looks how far the run came.

        From here on a mistake in a flag is no longer likely, and however the run ends, its directory says so.
        """
        workdirs.claim(self.workdir, self.checked.config)
        open_things.enter_context(workdirs.only_trainer(self.workdir))
        open_things.enter_context(self._noting_its_end())
        kept = self.options.checkpoint
        self.checkpoints = Checkpoints(
            self.workdir, kept.keep_last, kept.best_metric, kept.best_is, kept_step=self.times.kept_step
        )
        self._done = self.checkpoints.latest()
        self.step = first_step(self.options) if self._done is None else self._done
        with agreed():  # all have read the log before one of them writes it
            # Its lines after the checkpoint are of steps that are taken again.
            self._history = [] if self._done is None else log_of(self.workdir, self._done)
        self.best = BestEvaluation(self.options, self._history)
        self.is_over = self._done is not None and (self._done == self.times.total_steps or self.best.is_final())

    @contextlib.contextmanager
    def _noting_its_end(self) -> Iterator[None]:
        """Writes how the run ended, when log and checkpoints are closed."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            self._note_end(error)
            raise
        self._note_end()

    def _note_end(self, error: BaseException | None = None) -> None:
        if not self._writes or (error is None and self._ended is None):
            return
        there = read_result(self.workdir) if error is None else _readable(read_result, self.workdir)
        if there is not None and there.done:  # what trains has forgotten it: nothing was trained
            self.end = there
            return
        trained = trained_parameters(self.options, self.checked.base.decoder)
        self.end = end_of_run(
            self._ended.state if error is None else state_after(error),
            self.step,
            self.times.total_steps,
            counters=counters_at(self.data.plan, self.step) | {"trained_parameters": trained},
            best=(self.best.step, self.options.checkpoint.best_metric),
            lines=log_of(self.workdir) if error is None else _readable(log_of, self.workdir) or [],
            devices=self.checked.devices,
            error=error,
        )
        try:
            write_result(self.workdir, self.end)
        except OSError as problem:
            if error is None:
                raise
            logging.error("%s cannot say how its run ended: %s", self.workdir, problem)

    @property
    def is_known_whole(self) -> bool:
        """Whether the files of its last checkpoint were compared; else restoring it shows that they can be read."""
        return self.checkpoints.is_whole(self.step)

    def found_over(self) -> RunResult:
        """How the run ended that is over already; writes what is missing of its report."""
        if not self._tasks.has_report:
            self._write_report()
        self.checkpoints.close()
        total = self.times.total_steps
        show_finished(self._console, self.workdir, self.checked.config.to_dict(), self.step, total, self.best)
        return self._end_with(last_evaluation(log_of(self.workdir)))

    def describe_start(self, model: Decoder) -> None:
        """Writes what the run starts with: its data, its environment, and how it is executed.

        Args:
            model: as it is trained.
        """
        chosen = chosen_by_platform(self.options, model, platform_of(self.checked.mesh))
        listed = ", ".join(f"{name} {value}" for name, value in chosen.items())
        self._chosen_line = f"Chosen for {self.checked.devices[0].device_kind}: {listed}"
        self._console.print(self._chosen_line, markup=False, highlight=False, soft_wrap=True)
        with agreed():
            workdirs.write_data_report(self.workdir, self.data.report.numbers)
            workdirs.record_environment(
                self.workdir,
                self._fingerprints,
                self.checked.base.origin,
                self.checked.devices,
                self.checked.config,
                chosen,
            )

    # ---- Teacher and reference -------------------------------------------------------------------------------------

    def take_teacher(self) -> None:
        """Where a teacher's most likely tokens are data, gives all targets these; from the cache where it has them."""
        if distils(self.options.objective.name) and self.options.teacher.top_k:
            self.data = with_teacher_values(self.checked, self.data, self._console)

    def take_reference(self, state: TrainState) -> None:
        """Where the objective has a reference, gives all targets the log-probabilities of what the run begins with.

        What a run begins with is checked before its first step.

        A run that goes on finds them in the cache, or computes the same ones anew.

        Args:
            state: at step 0.

        Raises:
            WrongReferenceError: before the first step the policy is something else.
            WrongScoreError: before it a reward model with a fresh head prefers some answers.
        """
        begins = self._done is None
        if scores_texts(self.options.objective.name) and begins:
            check_begins_at_zero(self.checked, self.data, state)
        if has_reference(self.options.objective.name):
            self.data = with_reference(self.checked, self.data, state, self._console, begins=begins)

    # ---- State -----------------------------------------------------------------------------------------------------

    def compile_evaluation(self, model: Decoder, settings: StepSettings, state: TrainState, mesh: Mesh) -> None:
        """Prepares evaluations of states like this one."""
        self._layout, self._mesh = model.layout, mesh
        self._evaluate = compile_evaluation(
            self.options, self.data, model, settings, state, mesh, self._evaluators, self._tasks
        )

    def restored(self, state: TrainState) -> TrainState:
        """The state of its last checkpoint, or of that which it branches off from; else what is given, at step 0."""
        total, branch = self.times.total_steps, self.checked.branch
        if self._done is not None:
            state = self._restored_of(self.checkpoints, self.workdir, state)
            if not self.is_over:  # it is where its last checkpoint had no digests; restoring it shows that it is whole
                self._console.print(f"Continuing {self.workdir} after step {self._done} of {total}.")
        elif branch is not None:
            with contextlib.closing(Checkpoints(branch.directory, read_only=True)) as checkpoints:
                state = self._restored_of(checkpoints, branch.directory, state)
            self._console.print(f"Branching off from {branch.directory} after step {self.step} of {total}.")
        return state

    def _restored_of(self, checkpoints: Checkpoints, workdir: epath.Path, state: TrainState) -> TrainState:
        with agreed():
            _check_position(checkpoints.position(self.step), self._planned_position(), workdir)
        return with_saved(state, checkpoints.restore(self.step, saved_arrays(state), self._layout, self._mesh))

    def _planned_position(self) -> RunPosition:
        sequences, counts = self.options.batch.sequences, self.data.plan.cumulative_counts(self.step)
        return RunPosition(self._layout, self.step * sequences, counts)

    # ---- Log -------------------------------------------------------------------------------------------------------

    def open_log(self, model: Decoder, state: TrainState, open_things: contextlib.ExitStack) -> Recorder:
        """Opens the log, cut back to the checkpoint; it is closed, and what is saved complete, with `open_things`.

        Args:
            model: as it is trained.
            state: that it begins or goes on with.
            open_things: closed at the end of the run, however it ends.
        """
        with agreed():
            resume_step = -1 if self._done is None else self._done
            log = MetricLog(self.workdir, resume_step) if self._writes else None
            of_run = (self.options, self.data, model, self.checked.devices, self.workdir, log, resume_step)
            self._recorder = Recorder(*of_run, self._history, self.checked.teacher_in_step)
            if self._writes:
                forget_result(self.workdir)
                forget_after(self.workdir, self._done or 0)
        if log is not None:
            open_things.callback(log.close)
        open_things.callback(self.checkpoints.close)
        # The others are told of an error before what may wait for them is closed.
        open_things.enter_context(ending_together())
        if self._done is None:
            config = json.dumps(self.checked.config.to_dict(), indent=2, default=list)
            self._recorder.text(self.step, "config", "```json\n" + config + "\n```")
            self._recorder.text(self.step, "data", self.data.report.markdown())
            self._recorder.text(self.step, "chosen", self._chosen_line)
        optimizer = self.options.optimizer
        self._effect = EffectWatch(optimizer, state, self._note, waits_for_gradient=self._rollouts is not None)
        return self._recorder

    def _note(self, step: int, text: str) -> None:
        """What is to be known of a step, for the terminal and TensorBoard."""
        self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        self._recorder.text(step, "warning", text)

    # ---- Steps -----------------------------------------------------------------------------------------------------

    def begin(self, state: TrainState, bar: ProgressBar | None = None) -> None:
        """Measures the state before the first step, and has the first batches assembled.

        Args:
            state: that it begins or goes on with.
            bar: shows how far it is; None: nothing does.
        """
        self._bar, self._latest, self._pending, self._sampled = bar or silent("", 0), {}, None, {}
        options = self.options
        if self._rollouts is None:
            self._batches = train_batches(
                self.data.examples,
                self.data.plan,
                start_step=self.step,
                end_step=self.times.total_steps,
                own=sequences_here(self._mesh, options.batch.sequences),
                normalize=options.objective.normalize,
                threads=options.loader.threads,
                batches_ahead=options.loader.batches_ahead,
            )
        if self._done is None:
            self._latest, texts = self._evaluate(state, self._show_evaluation, self.step)
            self._recorder.evaluation_at_start(self.step, self._latest, texts)
            self.best.observe(self.step, self._latest)
            with agreed():
                refuse_unmeasured(options.checkpoint.best_metric, sorted(self._latest))
        self.start_clock()

    def _show_evaluation(self, part: int, parts: int) -> None:
        self._bar.update(self.step, f"evaluating {part}/{parts}", within=True)

    def _show_sampling(self, part: int, parts: int) -> None:
        self._bar.update(self.step, f"sampling {part}/{parts}", within=True)

    def next_batch(self, state: TrainState | None = None) -> Batch:
        """This process's sequences of the next step.

        Args:
            state: that the step begins with; where answers are sampled, they are those of its model.
        """
        if self._rollouts is not None:
            if self._pending:  # sampling waits for that step anyway, and is part of the time of the next one
                self.record()
            rollout = self._rollouts(state, self.step, self._show_sampling)
            batch, self._sampled = rollout.batch, rollout.metrics
        else:
            batch = next(self._batches)
        if self.step == first_step(self.options):
            self._recorder.text(self.step, "first_batch", batch_markdown(batch, self.data.renderer.tokenizer))
        return batch

    def dispatched(self, metrics: Metrics) -> None:
        """Counts a step that the devices have begun, and reads the metrics of the one before."""
        if self._pending:
            self.record()
        self.step += 1
        self._pending = (self.step, metrics | self._sampled)

    @property
    def looks_at_effect(self) -> bool:
        """Whether it is time for `look_at_effect`."""
        return self._effect.is_due(self.step)

    def look_at_effect(self, state: TrainState) -> None:
        """Stops a run in which nothing moves, once, after a few steps."""
        self._effect.after(self.step, state)

    def is_due(self) -> bool:
        """Whether the run evaluates or saves after this step."""
        return any(self.times.due(self.step))

    def stop_clock(self) -> None:
        """Waits for the step; what comes now is not part of its time."""
        jax.block_until_ready(self._pending[1])
        self._recorder.stop_clock()

    def start_clock(self) -> None:
        """What comes now is part of the time of the next step."""
        self._recorder.start_clock()

    def record(self, evaluation: Mapping[str, float] | None = None) -> None:
        """Logs the metrics of the last step that was dispatched, with an evaluation after it."""
        self._bar.update(self._pending[0], self._recorder.record(*self._pending, dict(evaluation or {})))
        self._pending = None

    def settle(self, state: TrainState, stopping: bool) -> None:
        """Evaluates, logs and saves what is due after this step; then it may be over.

        The log is complete up to this step before a checkpoint of this step can exist.

        Args:
            state: after the step.
            stopping: whether the run is to be left here.
        """
        step, scalars = self.step, {}
        evaluating, saving = self.times.due(step)
        last = step == self.times.total_steps
        if evaluating:
            tasks_at = step if self.times.tasks_due(step) else None
            self._latest, texts = self._evaluate(state, self._show_evaluation, tasks_at)
            if self._rollouts is None:  # whose loss is another one than that of held-out rows
                self._latest |= self._recorder.gap(self._pending[1], self._latest)
            self.best.observe(step, self._latest)
            scalars = self._latest | self.best.counted()
            self._recorder.texts(step, texts)
            last = last or self.best.is_final()
        saving = saving or stopping or last
        self.record(scalars)
        if last:
            self._effect.at_end(step, state)
        self._recorder.flush(wait=saving)
        if saving:
            self.checkpoints.save(step, saved_arrays(state), self._planned_position(), scalars)
        self.is_over = last

    # ---- End -------------------------------------------------------------------------------------------------------

    def interrupted(self, by: int | None) -> RunResult:
        """How the run ended that is left before its end; by which signal."""
        return self._end_with(self._latest, by or signal.SIGTERM)

    def paused(self) -> RunResult:
        """How the run ended that is left where it was asked to."""
        self.checkpoints.close()
        return self._end_with(last_evaluation(log_of(self.workdir, self.step)), paused=True)

    def finish(self) -> RunResult:
        """How the run ended that is over: says it, and writes the report."""
        if self.step < self.times.total_steps:
            self._recorder.text(self.step, "early_stopping", self.best.reason(self.step, self.times.total_steps))
        show_end(self._console, self.step, self.times.total_steps, self.best)
        self._write_report()
        return self._end_with(self._latest)

    def _write_report(self) -> None:
        base = self.checked.base
        cost = lambda step: cost_up_to(self.workdir, step, self.options, base.decoder)
        if page := self._tasks.write_report(base.name, (first_step(self.options), self.step), cost):
            self._console.print(f"Report: {page}", soft_wrap=True)

    def _end_with(self, metrics: dict[str, float], by: int | None = None, paused: bool = False) -> RunResult:
        early = by is None and not paused and self.step < self.times.total_steps
        self._ended = RunResult(self.step, self.times.total_steps, metrics, by, early, self.best.step, paused)
        return self._ended


def _readable(read: Callable[[epath.Path], Any], workdir: epath.Path) -> Any:
    """What is read of a run that has failed; None where it cannot be."""
    try:
        return read(workdir)
    except (OSError, ValueError) as problem:
        logging.error("%s: %s", workdir, problem)
        return None


def _check_position(saved: RunPosition, planned: RunPosition, workdir: epath.Path) -> None:
    if (saved.position, saved.counters) != (planned.position, planned.counters):
        raise workdirs.WorkdirError(
            f"{workdir}: the checkpoint has seen {saved.counters} in {saved.position} sequences, the plan says "
            f"{planned.counters} in {planned.position}: the code that packs has changed. Give another --workdir, or "
            "the code that started the run."
        )
