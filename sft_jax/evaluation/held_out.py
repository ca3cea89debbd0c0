"""Measures a model on held-out examples: generates answers, scores them, and takes the loss of the references."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from jax.sharding import Mesh

from sft_jax.data.conversations import Conversation
from sft_jax.data.records import Record
from sft_jax.data.rendering import ExampleError
from sft_jax.data.rendering.answers import Answer
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.data.tokenizing import tokenize_records
from sft_jax.evaluation.baselines import with_examples
from sft_jax.evaluation.held_out_loss import example_losses
from sft_jax.evaluation.parts import Reference, as_fields, differing_parts, read_parts, reference_of, score_parts
from sft_jax.evaluation.scorers import Outcome, Scorer, make_scorer
from sft_jax.evaluation.scoring import aggregate, metrics_of
from sft_jax.generation import MAX_POSITIONS, Generated, Sampler, Sampling, prepare, problem_of_prompt
from sft_jax.models.sizes import check_sizes
from sft_jax.runs.restore import Loaded
from sft_jax.runs.workdir import write_whole

PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"
ProgressFor = Callable[[str, int], Callable[[int, int], None]]  # (title, in all) -> callback (done, in all)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured, and how.

    Attributes:
        records: the held-out records, each of which is an example and ends with the reference answer.
        scorer: name of the scorer, or `package.module:function`; see `make_scorer`.
        max_new_tokens: longest answer.
        batch_size: prompts at a time.
        sampling: how tokens are chosen.
        seed: of sampling and of the bootstrap.
        match_thinking: an exact match wants the thinking to be that of the reference too.
    """

    records: Sequence[Record]
    scorer: str
    max_new_tokens: int = 256
    batch_size: int = 32
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    match_thinking: bool = False


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model wrote, whole and in parts, and the references.

    Attributes:
        texts: whole answers, thinking and calls included.
        written: the same as tokens, with what ended each.
        parts: thinking, content and calls of each.
        references: the right answers.
    """

    texts: Sequence[str]
    written: Sequence[Generated]
    parts: Sequence[Answer]
    references: Sequence[Reference]

    def note(self) -> str:
        """A note for the reader if some calls could be compared as text only; else empty."""
        as_text = sum(not reference.reads_calls for reference in self.references)
        if not as_text:
            return ""
        return (
            f"The calls of {as_text} of {len(self.references)} references cannot be read back from what the chat "
            "template writes: they are compared as text, with the content."
        )


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
        ValueError: a record without a reference answer, one whose prompt the chat template refuses, or one whose prompt
            leaves no position for an answer.
    """
    prompts = []
    for record in task.records:
        try:
            turns = with_examples(question_of(record), examples)
            prompts.append(loaded.renderer.render_prompt(turns, record.example.tools))
        except ExampleError as error:
            raise ValueError(f"{record.id}: {error}") from error
        if problem := problem_of_prompt(prompts[-1], loaded.model.config):
            raise ValueError(f"the prompt of {record.id} {problem}")
    sampler = Sampler(loaded.renderer.stop_ids, sampling=task.sampling, slots=task.batch_size)
    callback = progress("generating", len(prompts)) if progress else None
    options = {"max_new_tokens": task.max_new_tokens, "seed": task.seed, "progress": callback}
    answers = sampler.generate(prepare(loaded.model, loaded.variables), prompts, **options)
    return [answer for (answer,) in answers]


def cut_note(loaded: Loaded, answers: Sequence[Generated]) -> str:
    """How many answers end at the model's last position, in words; empty where none does."""
    count = sum(answer.finish_reason == MAX_POSITIONS for answer in answers)
    if not count:
        return ""
    known = loaded.model.config.max_positions
    return f"Cut at the last of the {known} positions that the model knows: {count} of {len(answers)} answers."


def references_of(loaded: Loaded, task: Task) -> list[Reference]:
    """The right answers as the model's chat template writes them, one for each record.

    Raises:
        ValueError: the template refuses a record, the scorer cannot read its content, or there is nothing to score.
    """
    references = [reference_of(loaded.renderer, record) for record in task.records]
    parts, ids = [reference.parts for reference in references], [record.id for record in task.records]
    scorer = make_scorer(task.scorer)
    for answers in (parts, [Answer()] * len(parts)):  # a scorer of the user's may stumble over silence
        metrics_of(score_parts(scorer, answers, parts, ids, task.match_thinking))
    return references


def in_parts(loaded: Loaded, task: Task, answers: Sequence[Generated], references: Sequence[Reference]) -> Answers:
    """The answers with their parts, which the rules of the model's chat template tell apart."""
    renderer, texts, parts = loaded.renderer, [], []
    for record, answer, reference in zip(task.records, answers, references, strict=True):
        texts.append(renderer.written_text(answer.tokens, record.example.tools))
        parts.append(read_parts(renderer, texts[-1], record, reference))
    return Answers(texts, answers, parts, references)


def score_answers(task: Task, answers: Answers) -> list[Outcome]:
    """One outcome for each answer."""
    references = [reference.parts for reference in answers.references]
    ids = [record.id for record in task.records]
    return score_parts(make_scorer(task.scorer), answers.parts, references, ids, task.match_thinking)


def check_task(task: Task, compare_with: epath.Path | None = None) -> None:
    """Checks before a model is loaded that there are a scorer and references, and that they can be compared.

    Raises:
        ValueError: no such scorer, a record without a reference, or an earlier evaluation of other examples.
    """
    make_scorer(task.scorer)
    for record in task.records:
        question_of(record)
    ids = [record.id for record in task.records]
    if compare_with is not None and read_outcomes(compare_with)[0] != ids:
        raise ValueError(f"{compare_with} is an evaluation of different examples; a paired test needs the same ones")


def reference_examples(loaded: Loaded, task: Task) -> TokenizedExamples:
    """The held-out examples, reference answers included, as tokens, for `measure_loss`.

    Raises:
        ValueError: a record cannot be rendered, or has more tokens than the model has positions. It is not left out:
            the examples of two models could then not be paired.
    """
    examples, dropped = tokenize_records(list(task.records), loaded.renderer, max_example_tokens=2**30)
    if dropped:
        raise ValueError(f"{dropped[0].id}: {dropped[0].reason} {dropped[0].detail}".strip())
    check_sizes(loaded.model.config, examples, remedy="Measure without such rows, or with --noloss")
    return examples


def measure_loss(
    loaded: Loaded, examples: TokenizedExamples, mesh: Mesh, progress: ProgressFor | None = None
) -> list[Outcome]:
    """The loss of each reference answer; `examples` are those of `reference_examples`."""
    callback = progress("held-out loss", len(examples)) if progress else None
    return example_losses(loaded.model, loaded.variables, examples, mesh, progress=callback)


def write_evaluation(
    directory: epath.Path,
    task: Task,
    answers: Answers,
    outcomes: Sequence[Outcome],
    losses: Sequence[Outcome] | None = None,
) -> dict[str, Any]:
    """Writes `predictions.jsonl` (a line for each example) and then `scores.json`; returns the scores."""
    directory.mkdir(parents=True, exist_ok=True)
    lines, scorer = [], make_scorer(task.scorer)
    for index, (record, outcome) in enumerate(zip(task.records, outcomes, strict=True)):
        line = _prediction(scorer, record, answers, index) | {"outcome": outcome}
        if losses is not None:
            line["loss"] = losses[index]
        lines.append(json.dumps(line, ensure_ascii=False))
    write_whole(directory / PREDICTIONS, "\n".join(lines) + "\n")
    scores = aggregate(outcomes, task.seed) | (aggregate(losses, task.seed) if losses is not None else {})
    result = {"examples": len(outcomes)} | {name: score.as_dict() for name, score in scores.items()}
    if note := answers.note():
        result["note"] = note
    write_whole(directory / SCORES, json.dumps(result, indent=2) + "\n")
    return result


def _prediction(scorer: Scorer, record: Record, answers: Answers, index: int) -> dict[str, Any]:
    """A line of `predictions.jsonl`: the answer, its parts, and which of them differ from the reference's."""
    parts, reference = answers.parts[index], answers.references[index]
    return {
        "id": record.id,
        "prompt": [{"role": m.role, "content": m.content} for m in question_of(record)],
        "answer": answers.texts[index],
        "ended": answers.written[index].stopped,
        "finish_reason": answers.written[index].finish_reason,
        "reference": reference.text,
        "answer_parts": as_fields(parts),
        "reference_parts": as_fields(reference.parts),
        "differs": differing_parts(scorer, parts, reference.parts, record.id),
    }


def read_outcomes(directory: epath.Path) -> tuple[list[str], list[Outcome], list[Outcome]]:
    """Ids of the examples, outcomes and losses (empty where they were not measured) of an evaluation written before.

    Raises:
        ValueError: the directory holds none.
    """
    path = directory / PREDICTIONS
    if not path.exists() or not (directory / SCORES).exists():
        raise ValueError(f"{directory} holds no finished evaluation ({PREDICTIONS} and {SCORES})")
    # Only \n ends a line: str.splitlines would also cut at U+2028, which answers may hold.
    lines = [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]
    losses = [line["loss"] for line in lines if "loss" in line]
    return [line["id"] for line in lines], [line["outcome"] for line in lines], losses


def comparable(first: epath.Path, second: epath.Path) -> tuple[list[Outcome], list[Outcome]]:
    """Outcomes of two evaluations of the same examples in the same order, in the columns that both have.

    Raises:
        ValueError: the examples differ.
    """
    (ids_first, *first_parts), (ids_second, *second_parts) = read_outcomes(first), read_outcomes(second)
    if ids_first != ids_second:
        raise ValueError(
            f"{first} and {second} are evaluations of different examples; a paired test needs the same ones"
        )
    with_loss = bool(first_parts[1] and second_parts[1])
    joined = [
        [outcome | loss for outcome, loss in zip(*parts, strict=True)] if with_loss else parts[0]
        for parts in (first_parts, second_parts)
    ]
    # A template of which one model writes thinking or calls, and the other none, gives one of them alone such parts.
    shared = [column for column in joined[0][0] if column in joined[1][0]]
    in_both = [[{column: outcome[column] for column in shared} for outcome in outcomes] for outcomes in joined]
    return in_both[0], in_both[1]
