"""One step's answers: sampled, judged, compared with one another, and laid out as a batch.

The plan says which rows a step asks about. What is random is folded from the seed of the run, the step, the row, the
sample and the number of the token, and is data of the compiled programs: so a run that was killed, also while it
sampled, goes on with the same answers.
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from sft_jax.data.batches import Batch
from sft_jax.data.groups import NoRoomError, Sampled, Shape, fitting_targets, group_batch
from sft_jax.data.records import Record
from sft_jax.data.rendering import ExampleError
from sft_jax.generation import Generated, Sampler, Sampling, Sizes, prepare, problem_of_prompt
from sft_jax.models import rope
from sft_jax.models.config import DecoderConfig
from sft_jax.models.variables import variables
from sft_jax.objectives.advantages import advantages, without_signal
from sft_jax.preparation.run_data import Data
from sft_jax.sharding import sequences_here
from sft_jax.training.checked_run import CheckedRun
from sft_jax.training.rollouts.rewards import Reward, Rewards
from sft_jax.training.rollouts.samples import write_samples
from sft_jax.training.setup import in_use
from sft_jax.training.state import TrainState

Progress = Callable[[int, int], None]  # (answers done, answers in all)
Metrics = dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The answers of a step.

    Attributes:
        batch: this process's sequences.
        metrics: of the answers, as sums and counts.
    """

    batch: Batch
    metrics: Metrics


class Rollouts:
    """Samples the answers of each step; call it inside `jax.set_mesh`."""

    def __init__(self, checked: CheckedRun, data: Data, workdir: epath.Path, total_steps: int, *, writes: bool):
        """Renders all prompts, reads all references, and checks that the answers of every step find room.

        Args:
            checked: the run's config, and what was made of it.
            data: of the run.
            workdir: run directory.
            total_steps: of the run.
            writes: False for all processes but one.

        Raises:
            ValueError: a row that cannot be asked about or judged, or answers that find no room; names row or flag.
        """
        self._checked, self._data, self._workdir, self._writes = checked, data, workdir, writes
        options, by_id = checked.options, {record.id: record for record in data.train_records}
        self._options = options.rollouts
        self._records = [by_id[name] for name in data.examples.ids]
        self._rewards = Rewards(self._options.rewards, self._records, data.renderer)
        self._prompts = [self._prompt(record) for record in self._records]
        self.shape = self._fitting(total_steps)
        sampling = Sampling(self._options.temperature, tempered=True)
        self._sampling, self._model = sampling, in_use(checked.model)

    def _prompt(self, record: Record) -> np.ndarray:
        options, decoder = self._checked.options, self._checked.model.config
        try:
            ids = self._data.renderer.render_prompt(record.conversation[:-1], record.example.tools)
        except ExampleError as error:
            raise ValueError(f"{record.id}: {error}") from error
        if problem := problem_of_prompt(ids, decoder):
            raise ValueError(f"the prompt of {record.id} {problem}")
        longest = len(ids) + self._options.max_new_tokens
        limits = [
            (options.data.sequence_length, "--config.data.sequence_length"),
            (decoder.max_positions, "--config.model.max_positions"),
        ]
        if (teacher := self._checked.teacher_in_step) is not None:
            limits.append((teacher.config.max_positions, "the positions of --config.teacher.source"))
            _check_one_rotation(teacher.config, record, longest)
        for most, flag in limits:
            if longest > most:
                raise ValueError(
                    f"the prompt of {record.id} has {len(ids)} tokens, and an answer has up to "
                    f"--config.rollouts.max_new_tokens={self._options.max_new_tokens}: together more than "
                    f"{flag}={most}. Leave such rows out, or give other numbers"
                )
        _check_one_rotation(decoder, record, longest)
        return np.asarray(ids, np.int32)

    def _rows(self, step: int) -> list[int]:
        """Those that a step, counted from 0, asks about."""
        return [int(row) for members in self._data.plan.batch_bins(step) for row in members]

    def _fitting(self, total_steps: int) -> Shape:
        options = self._checked.options
        shape = Shape(
            group=self._options.group,
            longest=self._options.max_new_tokens,
            sequences=options.batch.sequences,
            sequence_length=options.data.sequence_length,
            sequence_targets=0,
            packing=options.data.packing,
            most_pieces=options.data.max_examples_per_sequence,
        )

        steps = [[len(self._prompts[row]) for row in self._rows(step)] for step in range(total_steps)]
        try:
            return dataclasses.replace(shape, sequence_targets=fitting_targets(shape, steps))
        except NoRoomError as error:
            raise ValueError(
                f"--config.batch.sequences={shape.sequences} of --config.data.sequence_length={shape.sequence_length} "
                f"have no room for the {self._options.prompts} x {shape.group} answers of a step "
                f"(--config.rollouts.prompts, --config.rollouts.group) of up to {shape.longest} tokens "
                f"(--config.rollouts.max_new_tokens): {error}"
            ) from error

    @functools.cached_property
    def _sampler(self) -> Sampler:
        """Compiled for the longest prompt and the longest answer there may be, and for nothing else."""
        slots = self._options.slots or self._options.prompts * self._options.group
        lengths = [len(prompt) for prompt in self._prompts]
        prompts_at_once = min(self._options.prompts, -(-slots // self._options.group))
        sizes = Sizes.for_prompts(lengths, prompts_at_once, self._options.max_new_tokens)
        return Sampler(self._data.renderer.stop_ids, sampling=self._sampling, slots=slots, sizes=sizes)

    def __call__(self, state: TrainState, step: int, progress: Progress | None = None) -> Rollout:
        """The answers of the model as it is, before step `step` + 1.

        Args:
            state: of the run.
            step: optimizer steps done.
            progress: called with (answers done, answers in all).

        Raises:
            ValueError: a reward that is not finite; names the row.
        """
        begin, rows = time.perf_counter(), self._rows(step)
        prepared = prepare(self._model, variables(state.trained, state.frozen, state.hyper))
        answers = self._sampler.generate(
            prepared,
            [self._prompts[row] for row in rows],
            max_new_tokens=self._options.max_new_tokens,
            samples=self._options.group,
            seed=seed_of_step(self._checked.options.seed, step),
            example_ids=_identities(rows, len(self._records)),
            progress=progress,
        )
        texts = [[self._text(row, answer) for answer in group] for row, group in zip(rows, answers, strict=True)]
        rewards = [
            [self._rewards(self._records[row], text) for text in group] for row, group in zip(rows, texts, strict=True)
        ]
        totals = np.array([[reward.total for reward in group] for group in rewards], np.float64)
        _check_processes_agree(totals)
        better = advantages(totals, self._options.advantages) if self._rewards.names else np.zeros_like(totals)
        groups = [
            [self._sampled(answer, advantage) for answer, advantage in zip(*pair, strict=True)]
            for pair in zip(answers, better, strict=True)
        ]
        if self._writes:
            lines = self._lines(step, rows, answers, texts, rewards, better)
            write_samples(self._workdir, step + 1, lines)
        metrics = self._metrics(rows, answers, rewards, totals)
        metrics["speed/seconds_sampling"] = (time.perf_counter() - begin, 1)
        options, own = self._checked.options, sequences_here(self._checked.mesh, self.shape.sequences)
        prompts = [self._prompts[row] for row in rows]
        return Rollout(group_batch(prompts, groups, self.shape, options.objective.normalize, own), metrics)

    def _text(self, row: int, answer: Generated) -> str:
        return self._data.renderer.written_text(answer.tokens, self._records[row].example.tools)

    def _sampled(self, answer: Generated, advantage: float) -> Sampled | None:
        if not answer.stopped and self._options.truncated == "leave_out":
            return None
        return Sampled(answer.chosen, answer.logprobs, float(advantage))

    def _lines(
        self,
        step: int,
        rows: Sequence[int],
        answers: Sequence[Sequence[Generated]],
        texts: Sequence[Sequence[str]],
        rewards: Sequence[Sequence[Reward]],
        better: np.ndarray,
    ) -> Iterator[dict[str, Any]]:
        """What is kept of each answer."""
        for row, *group in zip(rows, answers, texts, rewards, better, strict=True):
            for sample, (answer, text, reward, advantage) in enumerate(zip(*group, strict=True)):
                yield {
                    "step": step + 1,
                    "id": self._records[row].id,
                    "sample": sample,
                    "text": text,
                    "tokens": answer.chosen.tolist(),
                    "logprobs": answer.logprobs.tolist(),
                    "finish_reason": answer.finish_reason,
                    "rewards": dict(reward.parts),
                    "failed": list(reward.failed),
                    "reward": reward.total,
                    "advantage": float(advantage),
                    "trained": self._sampled(answer, advantage) is not None,
                }

    def _metrics(
        self,
        rows: Sequence[int],
        answers: Sequence[Sequence[Generated]],
        rewards: Sequence[Sequence[Reward]],
        totals: np.ndarray,
    ) -> Metrics:
        flat, judged = [answer for group in answers for answer in group], [one for group in rewards for one in group]
        total = lambda values: (float(sum(values)), float(len(flat)))
        tokens = sum(len(answer.chosen) for answer in flat)
        metrics = {
            "answer_tokens": (float(tokens), float(len(flat))),
            "truncated": total(not answer.stopped for answer in flat),
            "tokens": (float(tokens + sum(len(self._prompts[row]) for row in rows)), 1.0),
            "sampled_tokens": (float(tokens), 1.0),
        }
        if self._rewards.names:
            metrics["reward"] = total(reward.total for reward in judged)
            metrics["no_signal"] = (float(without_signal(totals).sum()), float(len(totals)))
        for name in self._rewards.names:
            metrics[f"reward/{name}"] = total(reward.parts[name] for reward in judged)
            metrics[f"scorer_failed/{name}"] = total(name in reward.failed for reward in judged)
        return metrics


def seed_of_step(seed: int, step: int) -> int:
    """The seed of all that is drawn in a step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0] >> 1)  # the sampler's are int32


def _identities(rows: Sequence[int], count: int) -> list[int]:
    """A number for each row, by which its answers are drawn; a row that comes again at the end of an epoch gets
    another one."""
    return [row + count * list(rows[:place]).count(row) for place, row in enumerate(rows)]


def _check_one_rotation(decoder: DecoderConfig, record: Record, longest: int) -> None:
    """Checks that no answer makes a text that is rotated otherwise than its prompt (LongRoPE)."""
    short = rope.short_positions(decoder)
    if short is not None and longest > short:
        raise ValueError(
            f"{record.id}: prompt and answer have up to {longest} tokens, and this model rotates texts of more than "
            f"{short} otherwise (LongRoPE), so that answers cannot share a prompt. Leave such rows out, or give fewer "
            "--config.rollouts.max_new_tokens"
        )


def _check_processes_agree(totals: np.ndarray) -> None:
    """Checks that all processes judge alike: each makes its sequences of the batch of the same answers.

    Raises:
        AssertionError: they do not.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digest = np.frombuffer(hashlib.sha256(json.dumps(totals.tolist()).encode()).digest(), np.uint8)
    multihost_utils.assert_equal(digest, "processes judge the same answers otherwise; a scorer must be a pure function")
