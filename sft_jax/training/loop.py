"""The run: `run(config, workdir)` does from Python what `python -m sft_jax.train` does.

`run` reads from top to bottom, and the order of its parts is the point: whatever can be wrong is found before the run
directory is written and before weights are read. Metrics of a step are read after the next one is dispatched, so that
the devices do not wait for the host, except where the run evaluates or saves.
"""

import contextlib
import dataclasses
import functools
import json
import signal
from collections.abc import Callable, Mapping, Sequence

import jax
import ml_collections
from etils import epath
from rich.console import Console

from sft_jax import emulation
from sft_jax.agreement import agreed, ending_together
from sft_jax.audit.batch_text import batch_markdown
from sft_jax.audit.findings import check_findings
from sft_jax.data.batches import train_batches
from sft_jax.models.sizes import check_sizes
from sft_jax.options import Options, options_of
from sft_jax.preparation.run_data import Data, load_data
from sft_jax.progress import ProgressBar, ProgressBars
from sft_jax.runs import workdir as workdirs
from sft_jax.runs.base import Base, base_of
from sft_jax.runs.checkpoints import Checkpoints, RunPosition
from sft_jax.runs.metric_log import FILE, MetricLog, read_metrics
from sft_jax.runs.training_cost import cost_up_to
from sft_jax.sharding import make_mesh, platform_of, put_batch, sequences_here
from sft_jax.training.best import BestEvaluation
from sft_jax.training.checks import check_config
from sft_jax.training.durations import timetable
from sft_jax.training.effect import EffectWatch
from sft_jax.training.held_out import Evaluator, check_best_metric, compile_evaluation, refuse_unmeasured
from sft_jax.training.initial_adapter import open_initial_adapter
from sft_jax.training.interrupt import StopRequest
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.profiler import Profiler
from sft_jax.training.recorder import STEP_METRICS, Recorder
from sft_jax.training.run_findings import run_findings
from sft_jax.training.setup import init_state, make_model, step_settings
from sft_jax.training.state import saved_arrays, with_saved
from sft_jax.training.step import compile_train_step
from sft_jax.training.tasks import TaskEvaluation
from sft_jax.training.trained_parameters import check_trained


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        step: optimizer steps done.
        total_steps: steps that the run has in all.
        metrics: the latest evaluation, `held_out/…` and what evaluators gave.
        interrupted: the signal that ended it early; None if it came to its end.
        stopped_early: whether `evaluation.patience` made an earlier step its end.
        best_step: at which `checkpoint.best_metric` was best, 0 for before the first; None where it was not measured.
    """

    step: int
    total_steps: int
    metrics: dict[str, float]
    interrupted: int | None = None
    stopped_early: bool = False
    best_step: int | None = None


def run(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    evaluators: Mapping[str, Evaluator] | None = None,
    console: Console | None = None,
    *,
    data: Data | None = None,
    base: Base | None = None,
    devices: Sequence[jax.Device] | None = None,
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

    Raises:
        WorkdirError: the directory holds another run.
        ValueError: bad config or bad data; names the flag, or the file and row. Or `data` or `base` was made of
            another config.
        DataFindingsError: data with findings that `config.data.fail_on` does not let through.
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
        with agreed():  # what one process refuses, all refuse
            check_config(config)
            options = options_of(config)
            mesh = make_mesh(options.mesh, devices)
            settings = step_settings(options, mesh)
            base = base_of(options.model) if base is None else base
            initial = open_initial_adapter(options.adapter, base)
            if initial is not None:  # it brings options of its own
                config = initial.in_config(config)
                options = options_of(config)
            model = make_model(options, base.decoder, platform_of(mesh), base.new_token_ids)
            check_trained(options, base.decoder)
        config = workdirs.with_date(workdir, config)
        options = options_of(config)

        # ---- Data: read, cleaned, tokenized, planned, checked; it fits model and directory -------------------------
        with agreed():
            workdirs.check_config_there(workdir, config)
            data = _load(options, len(devices), console) if data is None else data
            data.check_made_for(options)
            base.check_made_for(options.model)
            _show(data, options.data.fail_on, console)
            tasks = TaskEvaluation(options, data.renderer, workdir, writes=first_process)
            evaluated = [*evaluators, *tasks.names]
            times = timetable(options, data.plan, measures=data.held_out is not None or bool(evaluated))
            hyper = hyperparameters(options, times.warmup_steps, times.total_steps)
            fingerprints = data.fingerprints() | {"model": base.fingerprint}
            if initial is not None:
                fingerprints["adapter"] = initial.fingerprint
            workdirs.check_inputs(workdir, fingerprints)
            check_sizes(model.config, data.examples, data.held_out)
            check_best_metric(options, data, base.decoder.vocab_size, evaluated)
        workdirs.check_processes_agree(config, fingerprints)
        workdirs.claim(workdir, config)  # from here on a mistake in a flag is no longer likely
        open_things.enter_context(workdirs.only_trainer(workdir))
        open_things.enter_context(jax.set_mesh(mesh))
        kept = options.checkpoint
        checkpoints = Checkpoints(workdir, kept.keep_last, kept.best_metric, kept.best_is)
        done = checkpoints.latest()
        with agreed():  # all have read the log before one of them writes it
            history = _history(workdir, done)
        best = BestEvaluation(options, history)
        report = functools.partial(_report, tasks, base, options, workdir, console)
        finished = done is not None and (done == times.total_steps or best.is_final())
        if finished and checkpoints.is_whole(done):
            report(done, where_missing=True)
            return _finished(config, done, times.total_steps, best, checkpoints, workdir, console)
        with agreed():
            workdirs.write_data_report(workdir, data.report.numbers)
            workdirs.record_environment(workdir, fingerprints, base.origin, devices, config)

        # ---- State: weights, adapters and moments on their devices -------------------------------------------------
        state = init_state(options, base, model, mesh, hyper, initial)

        # ---- Compile -----------------------------------------------------------------------------------------------
        train_settings = dataclasses.replace(settings, slices=len(data.plan.sources))
        train_step = compile_train_step(model, train_settings, state, mesh)
        evaluate = compile_evaluation(options, data, model, settings, state, mesh, evaluators, tasks)

        # ---- Restore -----------------------------------------------------------------------------------------------
        planned_position = lambda step: RunPosition(
            model.execution.layer_layout, step * options.batch.sequences, data.plan.cumulative_counts(step)
        )
        if done is not None:
            with agreed():
                _check_position(checkpoints.position(done), planned_position(done), workdir)
            arrays = checkpoints.restore(done, saved_arrays(state), model.execution.layer_layout, mesh)
            state = with_saved(state, arrays)
            if finished:  # its last checkpoint had no digests; restoring it has shown that it is whole
                report(done, where_missing=True)
                return _finished(config, done, times.total_steps, best, checkpoints, workdir, console)
            console.print(f"Continuing {workdir} after step {done} of {times.total_steps}.")

        # ---- Log ---------------------------------------------------------------------------------------------------
        with agreed():
            resume_step = -1 if done is None else done
            log = MetricLog(workdir, resume_step) if first_process else None
            recorder = Recorder(options, data, model, devices, workdir, log, resume_step, history)
        if log is not None:
            open_things.callback(log.close)
        open_things.callback(checkpoints.close)
        # The others are told of an error before what may wait for them is closed.
        open_things.enter_context(ending_together())
        bar = open_things.enter_context(
            ProgressBar("training", times.total_steps, done or 0, console, enabled=first_process)
        )
        stop = open_things.enter_context(StopRequest())
        profiler = open_things.enter_context(Profiler(options.profile, recorder))
        if done is None and log is not None:
            log.text(0, "config", "```json\n" + json.dumps(config.to_dict(), indent=2, default=list) + "\n```")
            log.text(0, "data", data.report.markdown())
        effect = EffectWatch(options.optimizer, state, _note_in(console, recorder))

        def show_evaluation(part: int, parts: int) -> None:
            bar.update(step, f"evaluating {part}/{parts}", within=True)

        # ---- Loop: batch, step, record, evaluate, save, stop -------------------------------------------------------
        step, latest, pending = done or 0, {}, None
        batches = train_batches(
            data.examples,
            data.plan,
            start_step=step,
            end_step=times.total_steps,
            own=sequences_here(mesh, options.batch.sequences),
            normalize=options.objective.normalize,
            threads=options.loader.threads,
            batches_ahead=options.loader.batches_ahead,
        )
        if done is None:
            latest, texts = evaluate(state, show_evaluation, 0)
            recorder.evaluation_at_start(latest, texts)
            best.observe(0, latest)
            with agreed():
                refuse_unmeasured(options.checkpoint.best_metric, sorted(latest))
        recorder.start_clock()
        while step < times.total_steps:
            batch = next(batches)
            if step == 0:
                recorder.text(0, "first_batch", batch_markdown(batch, data.renderer.tokenizer))
            profiler.before(step + 1)
            state, metrics = train_step(state, put_batch(batch, mesh))
            step += 1
            if pending:
                bar.update(pending[0], recorder.record(*pending))
            pending = (step, metrics)
            profiler.after(step, metrics)

            last = step == times.total_steps
            effect.after(step, state)
            stopping = stop.requested(step)
            evaluating, saving = times.due(step)
            saving = saving or stopping
            if not (evaluating or saving):
                continue
            # The log is complete up to this step before a checkpoint of this step can exist.
            scalars: dict[str, float] = {}
            jax.block_until_ready(metrics)
            recorder.stop_clock()
            if evaluating:
                latest, texts = evaluate(state, show_evaluation, step if times.tasks_due(step) else None)
                latest |= recorder.gap(metrics, latest)
                best.observe(step, latest)
                scalars = latest | best.counted()
                recorder.texts(step, texts)
                last = last or best.is_final()
                saving = saving or last
            bar.update(step, recorder.record(*pending, scalars))
            pending = None
            if last:
                effect.at_end(step, state)
            recorder.flush(wait=saving)
            if saving:
                checkpoints.save(step, saved_arrays(state), planned_position(step), scalars)
            recorder.start_clock()
            if last:
                break
            if stopping:
                result = RunResult(step, times.total_steps, latest, stop.signal or signal.SIGTERM)
                return dataclasses.replace(result, best_step=best.step)
        stopped_early = step < times.total_steps
        if stopped_early:
            recorder.text(step, "early_stopping", best.reason(step, times.total_steps))
        _show_end(console, step, times.total_steps, best)
        report(step)
        return RunResult(step, times.total_steps, latest, stopped_early=stopped_early, best_step=best.step)


def _report(
    tasks: TaskEvaluation,
    base: Base,
    options: Options,
    workdir: epath.Path,
    console: Console,
    step: int,
    where_missing: bool = False,
) -> None:
    """Writes the report of the tasks; of a run that had ended before, only where it is missing."""
    if where_missing and tasks.has_report:
        return
    cost = lambda step: cost_up_to(workdir, step, options, base.decoder)
    if page := tasks.write_report(base.name, step, cost):
        console.print(f"Report: {page}", soft_wrap=True)


def _history(workdir: epath.Path, done: int | None) -> list[dict]:
    """The lines of the log up to a checkpoint; those after it are of steps that are taken again."""
    if done is None or not (workdir / FILE).exists():
        return []
    return [line for line in read_metrics(workdir / FILE) if line["step"] <= done]


def _show_end(console: Console, step: int, total_steps: int, best: BestEvaluation) -> None:
    """Why it ended, if early, and which evaluation was best."""
    if step < total_steps:
        console.print(best.reason(step, total_steps), soft_wrap=True, highlight=False)
    if text := best.text(total_steps):
        console.print(text, soft_wrap=True, highlight=False)


def _load(options: Options, device_count: int, console: Console) -> Data:
    also = functools.partial(run_findings, device_count=lambda: device_count)
    with ProgressBars(console) as progress:
        return load_data(options, progress, also=also)


def _show(data: Data, fail_on: str, console: Console) -> None:
    console.print(data.report, data.held_out_note)
    check_findings(data.report.findings, fail_on)


def _finished(
    config: ml_collections.ConfigDict,
    done: int,
    total_steps: int,
    best: BestEvaluation,
    checkpoints: Checkpoints,
    workdir: epath.Path,
    console: Console,
) -> RunResult:
    """Nothing is left to do."""
    checkpoints.close()
    stopped_early = done < total_steps
    if stopped_early:
        console.print(f"{workdir} holds the finished run.", soft_wrap=True)
    else:
        console.print(f"{workdir} holds the finished run: all {done} steps are done.")
    _show_end(console, done, total_steps, best)
    if stopped_early:
        more = "To go on with it all the same: a larger --config.evaluation.patience, or 0."
        console.print(more, soft_wrap=True, highlight=False)
    console.print(workdirs.more_training(workdir, config.to_dict()).strip(), soft_wrap=True)
    metrics = _last_evaluation(workdir)
    return RunResult(done, total_steps, metrics, stopped_early=stopped_early, best_step=best.step)


def _last_evaluation(workdir: epath.Path) -> dict[str, float]:
    """What the last line of the metrics says beside the training step's own figures."""
    last = (read_metrics(workdir / FILE) or [{}])[-1]
    figures = {name: value for name, value in last.items() if "/" in name and not name.startswith(STEP_METRICS)}
    return {name: float("nan") if value is None else value for name, value in figures.items()}


def _note_in(console: Console, recorder: Recorder) -> Callable[[int, str], None]:
    """What is to be known of a step, for the terminal and TensorBoard."""

    def note(step: int, text: str) -> None:
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        recorder.text(step, "warning", text)

    return note


def _check_position(saved: RunPosition, planned: RunPosition, workdir: epath.Path) -> None:
    if (saved.position, saved.counters) != (planned.position, planned.counters):
        raise workdirs.WorkdirError(
            f"{workdir}: the checkpoint has seen {saved.counters} in {saved.position} sequences, the plan says "
            f"{planned.counters} in {planned.position}: the code that packs has changed. Give another --workdir, or "
            "the code that started the run."
        )
