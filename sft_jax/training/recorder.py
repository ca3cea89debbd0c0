"""Turns the metrics of a step into log lines and the progress line, and counts skipped steps."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from sft_jax.agreement import agreed
from sft_jax.data.plan import PackPlan
from sft_jax.hardware import peak_flops
from sft_jax.models.decoder import Decoder
from sft_jax.objectives import samples_groups
from sft_jax.objectives.slices import LOSS_BY_SLICE, means_by_slice
from sft_jax.options import Options
from sft_jax.preparation.run_data import Data
from sft_jax.progress import figures
from sft_jax.runs.adapting import has_adapters
from sft_jax.runs.freezing import trains_all_weights
from sft_jax.runs.metric_log import MetricLog
from sft_jax.training.flops import forward_flops, train_flops
from sft_jax.training.gap import LOSS_WEIGHT, Gap

SKIPPED = "skipped_steps.jsonl"
STEP_METRICS = ("train/", "progress/", "speed/")  # what every step measures; the rest is from evaluations


class DivergedError(RuntimeError):
    """Too many steps in a row had no finite loss and gradient."""


def counters_at(plan: PackPlan, step: int) -> dict[str, float]:
    """What was seen in the first `step` steps: examples, tokens, epochs where data come in some; of each source too."""
    values: dict[str, float] = dict(plan.cumulative_counts(step))
    if plan.has_epochs:
        values["epochs"] = plan.epochs_at(step)
    for name, by_source in (("tokens", plan.tokens_by_source(step)), ("epochs", plan.epochs_by_source(step))):
        values |= {f"{name}/{source}": value for source, value in by_source.items()}
    return values


class Recorder:
    """Writes what a run measures. On processes without a log it only watches over skipped steps."""

    def __init__(
        self,
        options: Options,
        data: Data,
        model: Decoder,
        devices: Sequence[jax.Device],
        workdir: epath.Path,
        log: MetricLog | None,
        resume_step: int = -1,
        history: Sequence[Mapping[str, Any]] = (),
        teacher: Decoder | None = None,
    ):
        """Prepares the recorder.

        Args:
            options: of the run.
            data: of the run.
            model: as it is trained.
            devices: of the run.
            workdir: run directory.
            log: where metrics are written; None on all processes but one.
            resume_step: see `MetricLog`; skipped steps noted after it are forgotten.
            history: the lines of the log up to `resume_step`.
            teacher: that is in the step.
        """
        self._options, self._plan, self._log, self._workdir = options, data.plan, log, workdir
        # How much work a step needs where some of the weights are frozen is not worked out: no MFU then.
        # Where answers are sampled, most of the time goes into what is no part of the step.
        known = has_adapters(options.adapter) or trains_all_weights(options.adapter, options.trained)
        known = known and not samples_groups(options.objective.name)
        self._peak = peak_flops(devices[0].device_kind, len(devices)) if known else None
        sizes = [options.batch.sequences * size for size in (options.data.sequence_length, data.plan.sequence_targets)]
        sizes.append(options.data.sequence_length)
        trains = not has_adapters(options.adapter)
        base_pass = options.objective.kl_to_base > 0
        self._flops = train_flops(model.config, *sizes, train_weights=trains, base_pass=base_pass)
        self._flops += 0 if teacher is None else forward_flops(teacher.config, *sizes)
        self._gap = Gap(history)
        self._skipped: list[str] = []
        if log is not None and (workdir / SKIPPED).exists():
            before = (workdir / SKIPPED).read_text().splitlines(keepends=True)
            self._skipped = [line for line in before if json.loads(line)["step"] <= resume_step]
            log.write(SKIPPED, "".join(self._skipped))
        self._clock = time.perf_counter()
        self._stopped: float | None = None

    @property
    def tensorboard_dir(self) -> Path | None:
        """Where a profile goes; None on processes without a log."""
        return None if self._log is None else self._log.tensorboard_dir

    def stop_clock(self) -> None:
        """Ends the time of the step that is recorded next; what follows (an evaluation) is not part of it."""
        self._stopped = time.perf_counter()

    def start_clock(self) -> None:
        """Leaves out of the throughput what came before (evaluation, saving)."""
        self._clock = time.perf_counter()

    def record(self, step: int, metrics: Any, evaluation: dict[str, float] | None = None) -> str:
        """Reads the metrics of `step` from the devices (waits for them), logs them, and gives the progress line.

        Raises:
            DivergedError: the steps skipped in a row reached `optimizer.max_skipped_in_a_row`.
        """
        line = self._line(jax.device_get(metrics))
        now = time.perf_counter()
        seconds, self._clock = (now if self._stopped is None else self._stopped) - self._clock, now
        self._stopped = None
        in_a_row = int(line.pop("train/skipped_in_a_row"))
        if line["train/skipped"]:
            self._note_skipped(step)
        speeds = self._speeds(step, seconds, line)
        if evaluation or step % self._options.log.every == 0:
            line |= evaluation or {}
            self._gap.add(line)
            if self._log is not None:
                self._log.scalars(step, line | self._progress(step) | speeds)
        if in_a_row >= self._options.optimizer.max_skipped_in_a_row:
            with agreed():  # all of them count the same
                self._stop_diverged(step, in_a_row)
        return figures(
            (
                ("loss", f"{line['train/loss']:.4f}"),
                ("", f"{speeds['speed/tokens_per_second']:,.0f} tok/s"),
                ("", f"({speeds['speed/supervised_tokens_per_second']:,.0f} supervised)"),
            )
        )

    def gap(self, metrics: Any, evaluation: Mapping[str, float]) -> dict[str, float]:
        """`held_out/gap` of an evaluation after the step of these metrics, which is recorded after it; see `Gap`."""
        return self._gap.at(self._line(jax.device_get(metrics)), evaluation)

    def _line(self, pairs: Mapping[str, Any]) -> dict[str, float]:
        """What is logged of the metrics of a step."""
        by_source = pairs.get(LOSS_BY_SLICE)
        means = {
            name: float(total) / max(float(count), 1e-12)
            for name, (total, count) in pairs.items()
            if name != LOSS_BY_SLICE
        }
        means |= means_by_slice("loss", self._plan.sources, by_source)
        named = lambda name: name if name.startswith("speed/") else f"train/{name}"
        return {named(name): value for name, value in means.items()} | {LOSS_WEIGHT: float(pairs["loss"][1])}

    def _stop_diverged(self, step: int, in_a_row: int) -> None:
        self.flush()
        raise DivergedError(
            f"{in_a_row} steps in a row, up to step {step}, had a loss or gradient that is not finite; the rows of "
            f"their batches are listed in {self._workdir / SKIPPED}. Look at those examples; lower "
            "--config.optimizer.learning_rate, or raise --config.optimizer.max_skipped_in_a_row, with another "
            "--workdir."
        )

    def _progress(self, step: int) -> dict[str, float]:
        return {f"progress/{name}": value for name, value in counters_at(self._plan, step).items()}

    def _speeds(self, step: int, seconds: float, line: Mapping[str, float]) -> dict[str, float]:
        counts = self._plan.counts(step - 1)
        if samples_groups(self._options.objective.name):  # the plan knows prompts alone
            counts = {"tokens": line["train/tokens"], "supervised_tokens": line["train/sampled_tokens"]}
        speeds = {
            "speed/seconds_per_step": seconds,
            "speed/tokens_per_second": counts["tokens"] / seconds,
            "speed/supervised_tokens_per_second": counts["supervised_tokens"] / seconds,
        }
        if self._peak is not None:
            speeds["speed/mfu"] = self._flops / seconds / self._peak
        return speeds

    def _note_skipped(self, step: int) -> None:
        if self._log is not None:
            self._skipped.append(json.dumps({"step": step, "example_ids": self._plan.example_ids(step - 1)}) + "\n")
            self._log.write(SKIPPED, "".join(self._skipped))  # whole each time: there are few

    def evaluation_at_start(self, step: int, scalars: dict[str, float], texts: dict[str, str]) -> None:
        """Logs the evaluation before the first step of the run, when so many are done: 0, but in a branch."""
        if self._log is not None and scalars:
            self._log.scalars(step, scalars)
        self.texts(step, texts)

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text for TensorBoard."""
        if self._log is not None:
            self._log.text(step, name, markdown)

    def texts(self, step: int, texts: dict[str, str]) -> None:
        """Several of them."""
        for name, markdown in texts.items():
            self.text(step, name, markdown)

    def profile_written(self) -> None:
        """There is a new profile in `tensorboard_dir`."""
        if self._log is not None:
            self._log.profile_written()

    def flush(self, wait: bool = False) -> None:
        """Makes the log durable on this machine; with `wait`, in the run directory, wherever that is."""
        if self._log is None:
            return
        if wait:
            self._log.sync()
        else:
            self._log.flush()
