"""Measuring a model on held-out rows by what it writes: prompts, answers, scores, and the loss of the references."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from jax.sharding import Mesh

from sft_jax.data.conversations import Conversation
from sft_jax.data.records import Record
from sft_jax.data.rendering import RowError
from sft_jax.data.tokenized import tokenize_records
from sft_jax.evaluation.baselines import with_examples
from sft_jax.evaluation.held_out_loss import row_losses
from sft_jax.evaluation.scoring import Outcome, aggregate, score_rows
from sft_jax.generation import Generated, Generator, Sampling
from sft_jax.training.restore import Loaded

ProgressFor = Callable[[str, int], Callable[[int, int], None]]  # (title, in all) -> callback (done, in all)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        records: held-out rows; each ends with the reference answer.
        scorer: name of the scorer.
        max_new_tokens: longest answer.
        batch_size: prompts at a time.
        sampling: how tokens are chosen.
        seed: of the bootstrap.
    """

    records: Sequence[Record]
    scorer: str
    max_new_tokens: int = 256
    batch_size: int = 32
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0


def question_of(record: Record) -> Conversation:
    """The conversation without its final answer.

    Raises:
        ValueError: it does not end with an assistant's answer.
    """
    if not record.conversation or record.conversation[-1].role != "assistant":
        raise ValueError(f"{record.id}: a held-out row must end with the assistant's answer, the reference")
    return record.conversation[:-1]


def generate_answers(
    loaded: Loaded, task: Task, examples: Sequence[Conversation] = (), progress: ProgressFor | None = None
) -> list[Generated]:
    """The model's answers to all held-out prompts; call it inside `jax.set_mesh`.

    Args:
        loaded: the model.
        task: what is measured.
        examples: solved conversations put before each question.
        progress: makes a progress callback.

    Raises:
        ValueError: a row without a reference answer, or one whose prompt the chat template refuses.
    """
    prompts = []
    for record in task.records:
        try:
            prompts.append(loaded.renderer.render_prompt(with_examples(question_of(record), examples)))
        except RowError as error:
            raise ValueError(f"{record.id}: {error}") from error
    generator = Generator(
        loaded.model,
        loaded.renderer.tokenizer,
        loaded.renderer.stop_ids,
        max_new_tokens=task.max_new_tokens,
        batch_size=min(task.batch_size, len(prompts)),
        sampling=task.sampling,
    )
    callback = progress("generating", len(prompts)) if progress else None
    return generator(loaded.variables, prompts, progress=callback)


def score_answers(task: Task, answers: Sequence[Generated]) -> list[Outcome]:
    """Outcomes of the answers, row by row."""
    references = [record.conversation[-1].content for record in task.records]
    ids = [record.id for record in task.records]
    return score_rows(task.scorer, [answer.text for answer in answers], references, ids)


def measure_loss(loaded: Loaded, task: Task, mesh: Mesh, progress: ProgressFor | None = None) -> list[Outcome]:
    """Loss of the reference answers, row by row.

    Raises:
        ValueError: a row cannot be rendered (rows of two models could not be paired).
    """
    rows, dropped = tokenize_records(list(task.records), loaded.renderer, max_tokens_per_row=2**30)
    if dropped:
        raise ValueError(f"{dropped[0].id}: {dropped[0].reason} {dropped[0].detail}".strip())
    callback = progress("held-out loss", len(rows)) if progress else None
    return row_losses(loaded.model, loaded.variables, rows, mesh, progress=callback)


def write_evaluation(
    directory: epath.Path,
    task: Task,
    answers: Sequence[Generated],
    outcomes: Sequence[Outcome],
    losses: Sequence[Outcome],
) -> dict[str, Any]:
    """Writes `predictions.jsonl` (a row each) and then `scores.json`; returns the scores."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for record, answer, outcome, loss in zip(task.records, answers, outcomes, losses, strict=True):
        prompt = [{"role": m.role, "content": m.content} for m in question_of(record)]
        line = {"id": record.id, "prompt": prompt, "answer": answer.text, "ended": answer.stopped}
        line |= {"reference": record.conversation[-1].content, "outcome": outcome, "loss": loss}
        lines.append(json.dumps(line, ensure_ascii=False))
    (directory / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    scores = aggregate(outcomes, task.seed) | aggregate(losses, task.seed)
    result = {"rows": len(outcomes)} | {name: score.as_dict() for name, score in scores.items()}
    (directory / "scores.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def read_outcomes(directory: epath.Path) -> tuple[list[str], list[Outcome], list[Outcome]]:
    """Row ids, outcomes and losses of an evaluation written before.

    Raises:
        ValueError: the directory holds none.
    """
    path = directory / "predictions.jsonl"
    if not path.exists() or not (directory / "scores.json").exists():
        raise ValueError(f"{directory} holds no finished evaluation (predictions.jsonl and scores.json)")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["id"] for row in rows], [row["outcome"] for row in rows], [row["loss"] for row in rows]


def comparable(first: epath.Path, second: epath.Path) -> tuple[list[Outcome], list[Outcome]]:
    """Outcomes of two evaluations of the same rows, each with its loss, in the same order.

    Raises:
        ValueError: the rows differ.
    """
    ids_first, outcomes_first, losses_first = read_outcomes(first)
    ids_second, outcomes_second, losses_second = read_outcomes(second)
    if ids_first != ids_second:
        raise ValueError(f"{first} and {second} are evaluations of different rows; a paired test needs the same rows")
    return (
        [outcome | loss for outcome, loss in zip(outcomes_first, losses_first, strict=True)],
        [outcome | loss for outcome, loss in zip(outcomes_second, losses_second, strict=True)],
    )
