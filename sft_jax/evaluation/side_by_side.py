"""Methods side by side: measures every task with every method. What comes of it is put together in `results.py`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from sft_jax.data.records import Record
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.data.tokenizing import tokenize_records
from sft_jax.evaluation.answer_store import AnswerStore
from sft_jax.evaluation.divergence import divergence_scores, example_divergences
from sft_jax.evaluation.held_out_loss import example_losses
from sft_jax.evaluation.measuring import Entry, Measured, measure, read_entry
from sft_jax.evaluation.methods import (
    BASE,
    FEW_SHOT,
    PROMPTED,
    RAG,
    TUNED,
    Changed,
    Method,
    Prompting,
    describe,
    solved_examples,
)
from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.responding import ProgressFor, Respondent
from sft_jax.evaluation.scorers import Outcome
from sft_jax.evaluation.scoring import aggregate, metrics_of
from sft_jax.generation import prepare
from sft_jax.models.sizes import check_sizes
from sft_jax.options import EvaluationOptions
from sft_jax.preparation.retrieved import Retriever
from sft_jax.runs.restore import Loaded

Load = Callable[[bool], Loaded]  # with the tuned weights, or the base's -> the model


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all methods of an evaluation share.

    Attributes:
        options: `config.evaluation`.
        examples_from: rows that solved examples are taken from.
        cache: directory below which the index of the corpus is kept; None: it is not.
        store: directory of the answers; None: they are not kept.
        seed: of drawn examples, sampling and the bootstrap.
        writes: False for all processes but one.
        progress: makes a progress callback.
    """

    options: EvaluationOptions
    examples_from: Sequence[Record] = ()
    cache: epath.Path | None = None
    store: epath.Path | None = None
    seed: int = 0
    writes: bool = True
    progress: ProgressFor | None = None


@dataclasses.dataclass(frozen=True)
class ByMethod:
    """What was measured.

    Attributes:
        tasks: task -> method -> what was measured.
        descriptions: method -> what it is, in words, with the model that it uses.
    """

    tasks: Mapping[str, Mapping[str, Measured]]
    descriptions: Mapping[str, Mapping[str, str]]

    @property
    def rows(self) -> dict[str, dict[str, tuple[dict[str, Any], ...]]]:
        """task -> method -> what is kept of each record for people."""
        return {task: {name: one.lines for name, one in methods.items()} for task, methods in self.tasks.items()}


def measure_methods(entries: Sequence[Entry], methods: Sequence[Method], load: Load, setting: Setting) -> ByMethod:
    """Every task by every method; call it inside `jax.set_mesh`. One model is in memory at a time.

    Args:
        entries: the tasks.
        methods: in the order of the tables.
        load: the model.
        setting: what they share.

    Raises:
        ValueError: a record that cannot be asked about or scored, too few rows for solved examples, no instruction, or
            a corpus that cannot be read.
    """
    prompting = _prompting(entries, methods, setting)
    measured: dict[tuple[str, str], Measured] = {}
    descriptions: dict[str, Mapping[str, str]] = {}
    for is_tuned in (False, True):
        group = [method for method in methods if method.is_tuned == is_tuned]
        chooses = not is_tuned and _has_choice(methods, setting)
        if not group and not chooses:
            continue
        loaded = load(is_tuned)
        respondent = _respondent(loaded, setting)
        if chooses:
            best = best_instruction(entries[0], respondent, setting)
            prompting = {name: dataclasses.replace(one, instruction=best) for name, one in prompting.items()}
        for method in group:
            words = describe(method, prompting[entries[0].name], setting.options)
            descriptions[method.name] = {"description": words, "model": loaded.name}
            for entry in _asked_by(method, entries):
                found = _measured(entry, method, prompting[entry.name], respondent, setting)
                if entry.options.loss and set(method.parts) <= {BASE, TUNED}:
                    found = _with_loss(found, entry, loaded, setting)
                measured[entry.name, method.name] = found
    of_task = lambda entry: [method.name for method in methods if (entry.name, method.name) in measured]
    return ByMethod(
        {entry.name: {name: measured[entry.name, name] for name in of_task(entry)} for entry in entries},
        {method.name: descriptions[method.name] for method in methods},
    )


def _asked_by(method: Method, entries: Sequence[Entry]) -> list[Entry]:
    """The tasks of a method: probes are about weights, and are measured without anything in the prompt."""
    of_weights = set(method.parts) <= {BASE, TUNED}
    return [entry for entry in entries if of_weights or not entry.options.probe]


def check_probes(entries: Sequence[Entry], methods: Sequence[Method]) -> None:
    """Checks that probes have something to be measured with.

    Raises:
        ValueError: there are probes, and no method that is weights alone.
    """
    probes = [entry.name for entry in entries if entry.options.probe]
    if probes and not any(set(method.parts) <= {BASE, TUNED} for method in methods):
        raise ValueError(
            f"--methods: {', '.join(probes)} measure what weights forgot, with {BASE} and {TUNED}; give these methods"
        )


def divergence(entries: Sequence[Entry], load: Load, setting: Setting) -> dict[str, dict[str, float]] | None:
    """How far the predictions of the tuned model are from the base's on the rows of probes; both are in memory.

    None where there are no probes.
    """
    records = [record for entry in entries if entry.options.probe for record in entry.records]
    if not records:
        return None
    base, tuned = load(False), load(True)
    examples = _tokenized(records, tuned)
    progress = setting.progress and setting.progress("divergence from the base", len(examples))
    outcomes = example_divergences(base, tuned, examples, jax.sharding.get_mesh(), progress=progress or None)
    return {name: score.as_dict() for name, score in divergence_scores(outcomes, setting.seed).items()}


def _respondent(loaded: Loaded, setting: Setting) -> Respondent:
    store = setting.store and AnswerStore(setting.store, loaded.fingerprint, writes=setting.writes)
    return Respondent(
        prepare(loaded.model, loaded.variables),
        loaded.renderer,
        slots=setting.options.slots,
        seed=setting.seed,
        store=store or None,
        progress=setting.progress,
    )


def _measured(entry: Entry, method: Method, prompting: Prompting, respondent: Respondent, setting: Setting) -> Measured:
    positions = respondent.prepared.model.config.max_positions
    changed = Changed(method, prompting, respondent.prompt_tokens, positions)
    return measure(entry, respondent, changed, f"{method.name}, {entry.name}")


def _prompting(entries: Sequence[Entry], methods: Sequence[Method], setting: Setting) -> dict[str, Prompting]:
    """What methods put into prompts, for each task: solved examples must not be among what it measures."""
    parts = {part for method in methods for part in method.parts}
    options, retriever = setting.options, None
    if RAG in parts:
        if not options.retrieval.corpus:
            raise ValueError("method rag: give the corpus, --config.evaluation.retrieval.corpus or --corpus")
        retriever = Retriever(options.retrieval, setting.cache)
    instructions = options.prompting.instructions
    if PROMPTED in parts:
        if not instructions:
            raise ValueError(
                "method prompted: give the instruction, --config.evaluation.prompting.instructions or --instruction"
            )
        if len(instructions) > 1 and not options.prompting.development:
            raise ValueError(
                f"method prompted: there are {len(instructions)} instructions, and the best is chosen on rows that "
                "are not measured; give them as --config.evaluation.prompting.development"
            )
    made = {}
    for entry in entries:
        solved = None
        if FEW_SHOT in parts:
            solved = solved_examples(options.few_shot, setting.examples_from, entry.records, setting.seed)
        made[entry.name] = Prompting(instructions[0] if instructions else "", solved, retriever)
    return made


def _has_choice(methods: Sequence[Method], setting: Setting) -> bool:
    is_prompted = any(PROMPTED in method.parts for method in methods)
    return is_prompted and len(setting.options.prompting.instructions) > 1


def best_instruction(entry: Entry, respondent: Respondent, setting: Setting) -> str:
    """The instruction with which the base model does best on development rows, by the task's first metric.

    Raises:
        ValueError: a development row is one that is measured.
    """
    path = setting.options.prompting.development
    development = read_entry(entry.name, dataclasses.replace(entry.options, path=path))
    asked = {record.conversation[:-1] for record in entry.records}
    shared = [record.id for record in development.records if record.conversation[:-1] in asked]
    if shared:
        raise ValueError(
            f"--config.evaluation.prompting.development={path}: {', '.join(shared[:5])} ask what rows of task "
            f"{entry.name} ask; an instruction must not be chosen on what it is measured on"
        )
    scores = {}
    for number, instruction in enumerate(setting.options.prompting.instructions, 1):
        prompting = Prompting(instruction)
        method = Method(f"instruction {number}", (PROMPTED,))
        outcomes = _measured(development, method, prompting, respondent, setting).outcomes
        metric = metrics_of(outcomes)[0]
        sign = -1 if higher_is_better(metric) is False else 1
        scores[instruction] = sign * aggregate(outcomes, setting.seed)[metric].value
    return max(scores, key=scores.get)  # of equally good ones the first


def _with_loss(found: Measured, entry: Entry, loaded: Loaded, setting: Setting) -> Measured:
    """What was measured, with the loss of each reference in its outcome."""
    examples = _tokenized(entry.records, loaded)
    progress = setting.progress and setting.progress(f"held-out loss, {entry.name}", len(examples))
    losses = example_losses(
        loaded.model, loaded.variables, examples, jax.sharding.get_mesh(), progress=progress or None
    )
    joined: list[Outcome] = [{**outcome, **loss} for outcome, loss in zip(found.outcomes, losses, strict=True)]
    lines = tuple({**line, "outcome": outcome} for line, outcome in zip(found.lines, joined, strict=True))
    return dataclasses.replace(found, outcomes=tuple(joined), lines=lines)


def _tokenized(records: Sequence[Record], loaded: Loaded) -> TokenizedExamples:
    """The records with their references, as tokens.

    Raises:
        ValueError: a record cannot be rendered, or has more tokens than the model has positions. It is not left out:
            the examples of two models could then not be paired.
    """
    examples, dropped = tokenize_records(list(records), loaded.renderer, max_example_tokens=2**30)
    if dropped:
        raise ValueError(f"{dropped[0].id}: {dropped[0].reason} {dropped[0].detail}".strip())
    check_sizes(loaded.model.config, examples, remedy="Measure without such rows, or without the loss")
    return examples
