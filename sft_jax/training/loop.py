"""The run: `run(config, workdir)` does from Python what `python -m sft_jax.train` does.

Reads from top to bottom: what is prepared, restore, then the loop. Metrics of a step are read after the next one is
dispatched, so that the devices never wait for the host.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh
from rich.console import Console

from sft_jax import emulation
from sft_jax.data.batch_text import batch_markdown
from sft_jax.data.batches import Batch, several, train_batches
from sft_jax.models.decoder import Decoder
from sft_jax.training import workdir as workdirs
from sft_jax.training.agreement import agreed, ending_together
from sft_jax.training.averages import compile_for_evaluation
from sft_jax.training.base import Base, base_of
from sft_jax.training.checkpoints import Checkpoints, RunPosition
from sft_jax.training.checks import check_config
from sft_jax.training.durations import in_steps, run_steps
from sft_jax.training.effect import EffectWatch
from sft_jax.training.freezing import check_trained
from sft_jax.training.held_out import Samples, check_best_metric, held_out_metrics
from sft_jax.training.initial_adapter import InitialAdapter, open_initial_adapter
from sft_jax.training.interrupt import StopRequest
from sft_jax.training.judging import check_findings
from sft_jax.training.metric_log import FILE, MetricLog, read_metrics
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.progress import ProgressBar, ProgressBars
from sft_jax.training.recorder import STEP_METRICS, Recorder
from sft_jax.training.run_data import Data, load_data
from sft_jax.training.setup import check_sizes, in_use, init_state, make_model, step_settings
from sft_jax.training.sharding import make_mesh, put_batch, rows_here
from sft_jax.training.state import TrainState
from sft_jax.training.step import Step, StepSettings, compile_eval_step, compile_train_step

Evaluator = Callable[[Decoder, TrainState], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        step: optimizer steps done.
        total_steps: of how many.
        metrics: the latest evaluation, `held_out/…` and what evaluators gave.
        interrupted: the signal that ended it early; None if it came to its end.
    """

    step: int
    total_steps: int
    metrics: dict[str, float]
    interrupted: int | None = None


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same through the loop."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    data: Data
    model: Decoder
    train_step: Step
    evaluate: Callable[[TrainState, Callable[[int, int], None]], tuple[dict[str, float], dict[str, str]]]
    total_steps: int
    measures: bool
    evaluate_every: int
    save_every: int


def run(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    evaluators: Mapping[str, Evaluator] | None = None,
    console: Console | None = None,
) -> RunResult:
    """Trains as `config` says; continues where `workdir` holds the same run.

    Args:
        config: as `configs/sft.py` makes it.
        workdir: run directory, local or in a bucket.
        evaluators: called at every evaluation with (model, state); what they return is logged as `<name>/<metric>`.
        console: where progress is shown; by default the terminal.

    Raises:
        WorkdirError: the directory holds another run.
        ValueError: bad config or bad data; names the flag, or the file and row.
        DataFindingsError: data with findings that `config.data.fail_on` does not let through.
        DivergedError: too many steps in a row without a finite loss and gradient.
        NoEffectError: the steps change nothing.
        OtherProcessError: one of several processes refused what this one would not have.
    """
    emulation.reserve_threads()
    console, workdir = console or Console(quiet=jax.process_index() > 0), epath.Path(workdir)
    with ending_together():
        ready = _prepare(config, workdir, console, list(evaluators or ()))
        with workdirs.only_trainer(workdir), jax.set_mesh(ready.mesh):
            return _continue(ready, workdir, evaluators or {}, console)


@dataclasses.dataclass(frozen=True)
class _Ready:
    """What is known before anything is on a device; `config` has its date and what an adapter to begin with says."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    settings: StepSettings
    base: Base
    initial: InitialAdapter | None
    data: Data
    model: Decoder
    total_steps: int
    hyper: dict[str, jax.Array]
    fingerprints: dict[str, str]


def _prepare(config: ml_collections.ConfigDict, workdir: epath.Path, console: Console, evaluators: list[str]) -> _Ready:
    """Finds all that is wrong with flags, data and directory; then the directory is this run's."""
    with agreed():
        check_config(config)
        mesh = make_mesh(config.mesh)
        settings = step_settings(config, mesh)
        base = base_of(config)
        initial = open_initial_adapter(config, base)
        config = config if initial is None else initial.in_config(config)
        model = make_model(config, base.decoder, base.new_rows)
        check_trained(config, base.decoder)
    config = workdirs.dated(workdir, config)
    with agreed():
        workdirs.check_config_there(workdir, config)
        data = _load_and_show(config, console)
        total_steps = run_steps(config.duration, data.plan)
        warmup = in_steps(config.optimizer.warmup, "optimizer.warmup", data.plan, total_steps)
        hyper = hyperparameters(config, warmup, total_steps)
        fingerprints = data.fingerprints() | {"model": base.fingerprint}
        if initial is not None:
            fingerprints["adapter"] = initial.fingerprint
        workdirs.check_inputs(workdir, fingerprints)
        check_sizes(model.config, data.rows, data.held_out)
        check_best_metric(config, data, base.decoder.vocab_size, evaluators)
    workdirs.check_processes_agree(config, fingerprints)
    workdirs.claim(workdir, config)  # from here on a mistake in a flag is no longer likely
    return _Ready(config, mesh, settings, base, initial, data, model, total_steps, hyper, fingerprints)


def _continue(ready: _Ready, workdir: epath.Path, evaluators: Mapping[str, Evaluator], console: Console) -> RunResult:
    """Goes on from the latest checkpoint, if there is one, to the end."""
    checkpoints = _open_checkpoints(ready.config, workdir)
    done = checkpoints.latest()
    if done == ready.total_steps and checkpoints.is_whole(done):
        return _finished(ready.config, done, checkpoints, workdir, console)
    base = ready.base
    origin = {"name": base.name, "location": base.location, "revision": base.revision}
    with agreed():
        workdirs.keep_data_report(workdir, ready.data.report.numbers)
        workdirs.record_environment(workdir, ready.fingerprints, origin)
    state = init_state(ready.config, base, ready.model, ready.mesh, ready.hyper, ready.initial)
    plan = _with_programs(ready, state, evaluators)
    return _resume_and_train(plan, state, done, checkpoints, workdir, console)


def _finished(
    config: ml_collections.ConfigDict, done: int, checkpoints: Checkpoints, workdir: epath.Path, console: Console
) -> RunResult:
    """Nothing is left to do."""
    checkpoints.close()
    console.print(f"{workdir} holds the finished run: all {done} steps are done.")
    console.print(workdirs.more_training(workdir, config.to_dict()).strip(), soft_wrap=True)
    return RunResult(done, done, _last_evaluation(workdir))


def _load_and_show(config: ml_collections.ConfigDict, console: Console) -> Data:
    with ProgressBars(console) as progress:
        data = load_data(config, progress)
    console.print(data.report, data.held_out_note)
    check_findings(data.report.findings, config.data.fail_on)
    return data


def _open_checkpoints(config: ml_collections.ConfigDict, workdir: epath.Path) -> Checkpoints:
    checkpoint = config.checkpoint
    return Checkpoints(workdir, checkpoint.keep_last, checkpoint.best_metric, checkpoint.best_is)


def _with_programs(ready: _Ready, state: TrainState, evaluators: Mapping[str, Evaluator]) -> _Run:
    """The run with its compiled step and evaluation."""
    config, mesh, data, model = ready.config, ready.mesh, ready.data, ready.model
    settings = dataclasses.replace(ready.settings, slices=len(data.plan.sources))
    return _Run(
        config=config,
        mesh=mesh,
        data=data,
        model=model,
        train_step=compile_train_step(model, settings, state, mesh),
        evaluate=_evaluation(config, data, model, ready.settings, state, mesh, evaluators),
        total_steps=ready.total_steps,
        measures=data.held_out is not None or bool(evaluators),
        evaluate_every=in_steps(config.evaluation.every, "evaluation.every", data.plan),
        save_every=in_steps(config.checkpoint.every, "checkpoint.every", data.plan),
    )


def _last_evaluation(workdir: epath.Path) -> dict[str, float]:
    """What the last line of the metrics says beside the training step's own figures."""
    last = (read_metrics(workdir / FILE) or [{}])[-1]
    figures = {name: value for name, value in last.items() if "/" in name and not name.startswith(STEP_METRICS)}
    return {name: float("nan") if value is None else value for name, value in figures.items()}


def _evaluation(config, data, model, settings, state, mesh, evaluators):
    """The function (state, progress) -> (scalars, texts) of one evaluation, of the model as it is put to use."""
    model = in_use(model)
    groups = several(data.held_out.groups) if data.held_out is not None else None
    settings = dataclasses.replace(settings, slices=len(groups.names) if groups else 0)
    measured, eval_step = compile_for_evaluation(config, state), compile_eval_step(model, settings, state, mesh)
    samples = Samples(model, data, config) if data.held_out_records and config.evaluation.samples else None

    def evaluate(state: TrainState, progress: Callable[[int, int], None]) -> tuple[dict[str, float], dict[str, str]]:
        state, scalars = measured(state), {}
        if data.held_out is not None:
            scalars = held_out_metrics(eval_step, state, data, config, mesh, progress)
        for name, evaluator in evaluators.items():
            scalars |= {f"{name}/{metric}": float(value) for metric, value in evaluator(model, state).items()}
        return scalars, samples(state) if samples else {}

    return evaluate


def _resume_and_train(
    plan: _Run,
    state: TrainState,
    done: int | None,
    checkpoints: Checkpoints,
    workdir: epath.Path,
    console: Console,
) -> RunResult:
    if done is not None:
        with agreed():
            _check_position(checkpoints.position(done), _position(plan, done), workdir)
        state = checkpoints.restore(done, state, plan.model.execution.layer_layout, plan.mesh)
        if done == plan.total_steps:  # ended before its last checkpoint had digests: that it is whole is known now
            return _finished(plan.config, done, checkpoints, workdir, console)
        console.print(f"Continuing {workdir} after step {done} of {plan.total_steps}.")
    resume_step = -1 if done is None else done
    with agreed():
        log = MetricLog(workdir, resume_step) if jax.process_index() == 0 else None
        recorder = Recorder(plan.config, plan.data, plan.model, workdir, log, resume_step)
    bar = ProgressBar("training", plan.total_steps, done or 0, console, enabled=jax.process_index() == 0)
    with contextlib.ExitStack() as closing:
        if log is not None:
            closing.callback(log.close)
        closing.callback(checkpoints.close)
        # The others are told of an error before what may wait for them is closed.
        with ending_together(), bar, StopRequest() as stop, _Profiler(plan.config.profile, recorder) as profiler:
            if done is None and log is not None:
                log.text(0, "config", "```json\n" + json.dumps(plan.config.to_dict(), indent=2, default=list) + "\n```")
                log.text(0, "data", plan.data.report.markdown())
            watch = EffectWatch(plan.config, state, _note_in(console, recorder))
            return _train(plan, state, done, checkpoints, recorder, bar, stop, watch, profiler)


def _train(
    plan: _Run,
    state: TrainState,
    done: int | None,
    checkpoints: Checkpoints,
    recorder: Recorder,
    bar: ProgressBar,
    stop: StopRequest,
    watch: EffectWatch,
    profiler: "_Profiler",
) -> RunResult:
    step = done or 0
    batches = _batches(plan, step)

    def evaluate() -> tuple[dict[str, float], dict[str, str]]:
        return plan.evaluate(state, lambda part, parts: bar.update(step, f"evaluating {part}/{parts}", within=True))

    latest = _at_start(plan, evaluate, recorder) if done is None else {}
    pending: tuple[int, Any] | None = None
    recorder.start_clock()
    while step < plan.total_steps:
        batch = next(batches)
        if step == 0:
            recorder.text(0, "first_batch", batch_markdown(batch, plan.data.renderer.tokenizer))
        profiler.before(step + 1)
        state, metrics = plan.train_step(state, put_batch(batch, plan.mesh))
        step += 1
        if pending:
            bar.update(pending[0], recorder.record(*pending))
        pending = (step, metrics)
        profiler.after(step, metrics)

        last = step == plan.total_steps
        watch.after(step, state)
        stopping = stop.requested(step)
        evaluating, saving = _due(plan, step)
        saving = saving or stopping
        if not (evaluating or saving):
            continue
        # The log is complete up to this step before a checkpoint of this step can exist.
        scalars: dict[str, float] = {}
        jax.block_until_ready(metrics)
        recorder.stop_clock()
        if evaluating:
            latest, texts = evaluate()
            scalars = latest
            recorder.texts(step, texts)
        bar.update(step, recorder.record(*pending, scalars))
        pending = None
        if last:
            watch.at_end(step, state)
        recorder.flush(wait=saving)
        if saving:
            checkpoints.save(state, _position(plan, step), scalars)
        recorder.start_clock()
        if stopping and not last:
            return RunResult(step, plan.total_steps, latest, stop.signal or 15)
    return RunResult(step, plan.total_steps, latest)


def _at_start(plan: _Run, evaluate: Callable[[], tuple], recorder: Recorder) -> dict[str, float]:
    """What is measured before the first step."""
    measured, texts = evaluate()
    recorder.evaluation_at_start(measured, texts)
    with agreed():
        _check_best_metric(plan.config.checkpoint.best_metric, measured)
    return measured


def _note_in(console: Console, recorder: Recorder) -> Callable[[int, str], None]:
    """What is to be known of a step, for the terminal and TensorBoard."""

    def note(step: int, text: str) -> None:
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        recorder.text(step, "warning", text)

    return note


def _batches(plan: _Run, step: int) -> Iterator[Batch]:
    """This process's rows of the global batches from `step` to the end."""
    return train_batches(
        plan.data.rows,
        plan.data.plan,
        start_step=step,
        end_step=plan.total_steps,
        own=rows_here(plan.mesh, plan.config.batch.rows),
        normalize=plan.config.objective.normalize,
        threads=plan.config.loader.threads,
        batches_ahead=plan.config.loader.batches_ahead,
    )


def _due(plan: _Run, step: int) -> tuple[bool, bool]:
    """Whether to evaluate and whether to save after `step`."""
    last = step == plan.total_steps
    evaluating = last or (plan.evaluate_every > 0 and step % plan.evaluate_every == 0)
    # The best checkpoint by a metric is the best of all evaluations, so each of them is saved.
    scored = evaluating and plan.measures and bool(plan.config.checkpoint.best_metric)
    return evaluating, last or scored or (plan.save_every > 0 and step % plan.save_every == 0)


def _position(plan: _Run, step: int) -> RunPosition:
    return RunPosition(
        layout=plan.model.execution.layer_layout,
        position=step * plan.config.batch.rows,
        counters=plan.data.plan.cumulative_counts(step),
    )


def _check_position(saved: RunPosition, planned: RunPosition, workdir: epath.Path) -> None:
    if (saved.position, saved.counters) != (planned.position, planned.counters):
        raise workdirs.WorkdirError(
            f"{workdir}: the checkpoint has seen {saved.counters} in {saved.position} rows of the batch, the plan says "
            f"{planned.counters} in {planned.position}: the code that packs has changed. Give another --workdir, or "
            "the code that started the run."
        )


def _check_best_metric(name: str, measured: dict[str, float]) -> None:
    if name and measured and name not in measured:
        raise ValueError(
            f"--config.checkpoint.best_metric={name!r} is not measured; there are {', '.join(sorted(measured))}. Give "
            "one of them, or '' for none"
        )


class _Profiler:
    """A trace of the steps that `config.profile` names, beside the TensorBoard events.

    A process has one trace at a time, so a run that ends within these steps, by an error or a signal, ends its trace.
    """

    def __init__(self, config: ml_collections.ConfigDict, recorder: Recorder):
        self._recorder = recorder
        self._first, self._last = config.start, config.start + config.steps - 1
        self._directory = recorder.tensorboard_dir if config.start > 0 else None
        self._running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        if self._directory is not None and step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        if self._running and step == self._last:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            self._recorder.profile_written()
