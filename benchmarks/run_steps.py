"""Steps of a run as `sft_jax.training.run` takes them, for the benchmarks to time: of any config that trains.

Beside the update a step has what a run does for it: it assembles the batch, or samples and judges the answers that it
is made of, and reads the metrics.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from benchmarks.workers import StepFunction


class Started:
    """A run before its first step: data, state, and the compiled step."""

    def __init__(self, config):
        import jax
        from etils import epath
        from rich.console import Console

        from sft_jax.objectives import has_reference
        from sft_jax.preparation.run_data import load_data
        from sft_jax.training.checked_run import check_run
        from sft_jax.training.durations import timetable
        from sft_jax.training.optimizer import hyperparameters
        from sft_jax.training.reference import with_reference
        from sft_jax.training.setup import init_state
        from sft_jax.training.step import compile_train_step

        self._directory = tempfile.TemporaryDirectory()  # removed with this object
        self.workdir = epath.Path(self._directory.name)
        self.checked = checked = check_run(config, self.workdir, jax.devices(), None)
        options, self.data = checked.options, load_data(checked.options)
        self.times = timetable(options, self.data.plan, measures=False)
        hyper = hyperparameters(options, self.times.warmup_steps, self.times.total_steps, self.times.decay_steps)
        self.steps = 0
        with jax.set_mesh(checked.mesh):
            self.state = init_state(options, checked.base, checked.model, checked.mesh, hyper)
            if has_reference(options.objective.name):
                self.data = with_reference(checked, self.data, self.state, Console(quiet=True), begins=True)
            self._step = compile_train_step(checked.model, checked.settings, self.state, checked.mesh)

    def update(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
        """One optimizer step on a batch; its metrics, read."""
        import jax

        from sft_jax.sharding import put_batch

        with jax.set_mesh(self.checked.mesh):
            self.state, metrics = self._step(self.state, put_batch(batch, self.checked.mesh))
        self.steps += 1
        return {name: float(total) / float(count) for name, (total, count) in jax.device_get(metrics).items()}

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Those of the data, in the order of the plan."""
        from sft_jax.data.batches import train_batches

        return train_batches(self.data.examples, self.data.plan, end_step=self.times.total_steps, threads=1)


def trained(config, answers: int, measure_reference: bool = False) -> StepFunction:
    """A step on the data, which gives the tokens of its rows: those of a prompt once for each answer.

    Args:
        config: of the run.
        answers: to a prompt.
        measure_reference: take the reference's log-probabilities of the batch in the step too, once more.
    """
    begun, numbers = Started(config), itertools.count()
    batches = begun.batches()
    measured = _of_reference(begun) if measure_reference else None

    def step() -> float:
        batch = next(batches)
        if measured is not None:
            measured(batch)
        begun.update(batch)
        bins, examples = begun.data.plan.batch_bins(next(numbers)), begun.data.examples
        return float(sum(tokens_of_rows(examples, int(row), answers) for members in bins for row in members))

    return step


def _of_reference(begun: Started) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """The reference's log-probabilities of a batch, by the program that a run measures them with before it begins."""
    import jax

    from sft_jax.sharding import put_batch
    from sft_jax.training.reference import compile_reference_step

    checked = begun.checked
    with jax.set_mesh(checked.mesh):
        program = compile_reference_step(checked.model, checked.settings, begun.state, checked.mesh)

    def measured(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        with jax.set_mesh(checked.mesh):
            return np.asarray(program(begun.state, put_batch(batch, checked.mesh)))

    return measured


def tokens_of_rows(examples, number: int, answers: int) -> int:
    """Tokens of an example up to the ends of its answers, were each of these a row with a prompt of its own."""
    trained = np.flatnonzero(examples.example(number)[1])
    return len(trained) + answers * int(trained[0])


def sampled(config, every_step: bool = True) -> StepFunction:
    """A step on answers that the model samples, which gives their number.

    Args:
        config: of the run.
        every_step: sample new ones for every step; otherwise all are trained on those of the first.
    """
    import jax

    from sft_jax.training.rollouts.rollout import Rollouts

    begun, kept = Started(config), []
    rollouts = Rollouts(begun.checked, begun.data, begun.workdir, begun.times.total_steps, writes=True)

    def step() -> float:
        if every_step or not kept:
            with jax.set_mesh(begun.checked.mesh):
                kept[:] = [rollouts(begun.state, begun.steps)]
        begun.update(kept[0].batch)
        return float(kept[0].metrics["answer_tokens"][1])

    return step
