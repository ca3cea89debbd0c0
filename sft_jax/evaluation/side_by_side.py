"""Methods side by side: measures every task with every method. What comes of it is put together in `results.py`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from sft_jax.data.records import Record, RecordError
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.data.tokenizing import tokenize_records
from sft_jax.evaluation.answer_store import AnswerStore, key_of
from sft_jax.evaluation.baselines import questions_of, right_conversation
from sft_jax.evaluation.divergence import divergence_scores, example_divergences
from sft_jax.evaluation.held_out_loss import example_losses
from sft_jax.evaluation.measuring import Entry, Measured, measure, read_entry, task_of
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
from sft_jax.evaluation.scoring import metrics_of, score_values
from sft_jax.evaluation.search_quality import search_quality
from sft_jax.evaluation.tasks import Task
from sft_jax.evaluation.tasks.preferring import PREFER, Preferring, Reference
from sft_jax.generation import prepare
from sft_jax.models.sizes import check_sizes
from sft_jax.options import EvaluationOptions
from sft_jax.preparation.retrieved import Retriever
from sft_jax.retrieval.corpus import FLAG
from sft_jax.runs.restore import Loaded

Load = Callable[[float], Loaded]  # mix of the weights, 0 for the base's and 1 for the tuned ones -> the model


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all methods of an evaluation share.

    Attributes:
        options: `config.evaluation`.
        examples_from: rows that solved examples are taken from.
        cache: directory below which the index of the corpus is kept; None: it is not.
        store: directory of the answers and losses; None: they are not kept.
        seed: of drawn examples, sampling and the bootstrap.
        writes: False for all processes but one.
        progress: makes a progress callback.
        references: of each task of kind `prefer`, the model over which answers are compared; empty where there is none.
    """

    options: EvaluationOptions
    examples_from: Sequence[Record] = ()
    cache: epath.Path | None = None
    store: epath.Path | None = None
    seed: int = 0
    writes: bool = True
    progress: ProgressFor | None = None
    references: Mapping[str, Reference] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ByMethod:
    """What was measured.

    Attributes:
        tasks: task -> method -> what was measured.
        descriptions: method -> what it is, in words, with the model that it uses.
        search: how good the search of rag is by itself; None where that is not known.
    """

    tasks: Mapping[str, Mapping[str, Measured]]
    descriptions: Mapping[str, Mapping[str, str]]
    search: Mapping[str, Mapping[str, float]] | None = None

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
    retriever = next(iter(prompting.values())).retriever
    search = search_quality(entries, retriever, setting.seed) if retriever else None
    measured: dict[str, dict[str, Measured]] = {}
    descriptions: dict[str, Mapping[str, str]] = {}
    for weights in sorted({0.0, *(method.weights for method in methods)}):
        group = [method for method in methods if method.weights == weights]
        chooses = not weights and _has_choice(methods, setting)
        if group or chooses:
            # The model lives in this call alone, so that the next one finds its memory free.
            prompting, found, described = _measured_with(
                load(weights), entries, group, prompting, setting, chooses=chooses
            )
            measured, descriptions = measured | found, descriptions | described
    of_task = lambda entry: [method.name for method in methods if entry.name in measured[method.name]]
    return ByMethod(
        {entry.name: {name: measured[name][entry.name] for name in of_task(entry)} for entry in entries},
        {method.name: descriptions[method.name] for method in methods},
        search,
    )


def _asked_by(method: Method, entries: Sequence[Entry]) -> list[Entry]:
    """The tasks of a method: probes are about weights, and are measured without anything in the prompt."""
    of_weights = set(method.parts) <= {BASE, TUNED}
    return [entry for entry in entries if of_weights or not entry.options.probe]


def check_probes(entries: Sequence[Entry], methods: Sequence[Method], max_regression: float) -> None:
    """Checks that probes have something to be measured with, and that every method has something to measure.

    Raises:
        ValueError: there are probes, and no method that is weights alone; methods of which only probes are left; or a
            gate without probes or without both weights.
    """
    probes = [entry.name for entry in entries if entry.options.probe]
    of_weights = [method.name for method in methods if set(method.parts) <= {BASE, TUNED}]
    others = [method.name for method in methods if method.name not in of_weights]
    if probes and not of_weights:
        raise ValueError(
            f"--methods: {', '.join(probes)} measure what weights forgot, with {BASE} and {TUNED}; give these methods"
        )
    if others and len(probes) == len(entries):
        raise ValueError(
            f"--methods: all tasks are probes, which are measured with {BASE} and {TUNED} alone; leave out "
            f"{', '.join(others)}"
        )
    if max_regression and not (probes and {BASE, TUNED} <= set(of_weights)):
        raise ValueError(
            f"max_regression={max_regression} compares {BASE} and {TUNED} on probes: give both methods, and a task "
            "with probe=True"
        )


def divergence(entries: Sequence[Entry], load: Load, setting: Setting) -> dict[str, dict[str, float]] | None:
    """How far the predictions of the tuned model are from the base's on the rows of probes; both are in memory.

    None where there are no probes.
    """
    records = [record for entry in entries if entry.options.probe for record in entry.records]
    if not records:
        return None
    base, tuned = load(0.0), load(1.0)
    examples = _tokenized(records, tuned)
    progress = setting.progress and setting.progress("divergence from the base", len(examples))
    outcomes = example_divergences(base, tuned, examples, jax.sharding.get_mesh(), progress=progress)
    return {name: score.as_dict() for name, score in divergence_scores(outcomes, setting.seed).items()}


def _measured_with(
    loaded: Loaded,
    entries: Sequence[Entry],
    methods: Sequence[Method],
    prompting: Mapping[str, Prompting],
    setting: Setting,
    *,
    chooses: bool,
) -> tuple[Mapping[str, Prompting], dict[str, dict[str, Measured]], dict[str, Mapping[str, str]]]:
    """What the methods put into prompts, with the best instruction if this model chooses it; what they measure by
    method and task; and their descriptions.
    """
    store = _store(loaded, setting)
    respondent = _respondent(loaded, setting, store)
    tasks = {entry.name: _task(entry, loaded, setting.references.get(entry.name)) for entry in entries}
    if chooses:
        best = best_instruction(entries, respondent, setting)
        prompting = {name: dataclasses.replace(one, instruction=best) for name, one in prompting.items()}
    measured: dict[str, dict[str, Measured]] = {}
    descriptions: dict[str, Mapping[str, str]] = {}
    for method in methods:
        words = describe(method, prompting[entries[0].name], setting.options)
        descriptions[method.name] = {"description": words, "model": loaded.name}
        measured[method.name] = {}
        for entry in _asked_by(method, entries):
            found = _measured(entry, method, prompting[entry.name], respondent, tasks[entry.name])
            if entry.options.loss and entry.options.kind != PREFER and set(method.parts) <= {BASE, TUNED}:
                found = _with_loss(found, entry, loaded, store, setting)
            measured[method.name][entry.name] = found
    return prompting, measured, descriptions


def _store(loaded: Loaded, setting: Setting) -> AnswerStore | None:
    return None if setting.store is None else AnswerStore(setting.store, loaded.fingerprint, writes=setting.writes)


def _respondent(loaded: Loaded, setting: Setting, store: AnswerStore | None) -> Respondent:
    return Respondent(
        prepare(loaded.model, loaded.variables),
        loaded.renderer,
        slots=setting.options.slots,
        seed=setting.seed,
        store=store,
        progress=setting.progress,
    )


def _task(entry: Entry, loaded: Loaded, reference: Reference | None) -> Task:
    if reference is None:
        return task_of(entry, loaded.renderer)
    return Preferring(entry.options, entry.records, loaded.renderer, reference)


def references_of(entries: Sequence[Entry], loaded: Loaded, setting: Setting) -> dict[str, Reference]:
    """What a model says of the pairs of each task of kind `prefer`, for `Setting.references`."""
    found = {}
    respondent = _respondent(loaded, setting, _store(loaded, setting))
    for entry in (entry for entry in entries if entry.options.kind == PREFER):
        task, ids = Preferring(entry.options, entry.records, loaded.renderer), [record.id for record in entry.records]
        asked = [request for record in entry.records for request in task.requests(record)]
        responses = respondent(asked, ids, f"reference, {entry.name}")
        margins = {name: task.margin([one]) for name, one in zip(ids, responses, strict=True)}
        found[entry.name] = Reference(loaded.name, margins)
    return found


def _measured(
    entry: Entry, method: Method, prompting: Prompting, respondent: Respondent, task: Task | None = None
) -> Measured:
    positions = respondent.prepared.model.config.max_positions
    changed = Changed(method, prompting, respondent.positions_needed, positions)
    return measure(entry, respondent, changed, f"{method.name}, {entry.name}", task)


def _prompting(entries: Sequence[Entry], methods: Sequence[Method], setting: Setting) -> dict[str, Prompting]:
    """What methods put into prompts, for each task: solved examples must not be among what it measures."""
    parts = {part for method in methods for part in method.parts}
    options, retriever = setting.options, None
    if RAG in parts:
        if not options.retrieval.corpus:
            raise ValueError("method rag: give the corpus, --config.evaluation.retrieval.corpus or --corpus")
        retriever = _retriever(setting)
        _ = retriever.index  # made now: what is wrong with it is said before anything is measured
    instructions = options.prompting.instructions
    if PROMPTED in parts:
        if not instructions:
            raise ValueError(
                "method prompted: give the instruction, --config.evaluation.prompting.instructions or --instruction"
            )
        if len(instructions) > 1 and not options.prompting.development:
            raise ValueError(
                f"method prompted: there are {len(instructions)} instructions, and the best is chosen on rows that "
                "are not measured; give them as --config.evaluation.prompting.development or --development"
            )
        if len(instructions) == 1 and options.prompting.development:
            raise ValueError(
                f"--config.evaluation.prompting.development={options.prompting.development} is not read with a single "
                "instruction; leave it out"
            )
    made = {}
    for entry in entries:
        solved = None
        if FEW_SHOT in parts:
            solved = solved_examples(options.few_shot, setting.examples_from, entry.records, setting.seed)
        looks = options.few_shot.choose == "nearest" and solved is not None
        made[entry.name] = Prompting(instructions[0] if instructions else "", solved, looks, retriever)
    return made


def _retriever(setting: Setting) -> Retriever:
    """What finds passages; errors name the flags of methods, and not those of training."""
    try:
        return Retriever(setting.options.retrieval, setting.cache)
    except RecordError as error:
        raise RecordError(str(error).replace(FLAG, "--config.evaluation.retrieval.")) from error


def _has_choice(methods: Sequence[Method], setting: Setting) -> bool:
    is_prompted = any(PROMPTED in method.parts for method in methods)
    return is_prompted and len(setting.options.prompting.instructions) > 1


def best_instruction(entries: Sequence[Entry], respondent: Respondent, setting: Setting) -> str:
    """The instruction with which the model does best on development rows, by the first metric of the first task.

    Raises:
        ValueError: a development row asks what a row of a task asks, which is measured.
    """
    entry = next(entry for entry in entries if not entry.options.probe)
    path = setting.options.prompting.development
    development = read_entry(entry.name, dataclasses.replace(entry.options, path=path))
    asked = {questions_of(right_conversation(record)) for one in entries for record in one.records}
    shared = [record.id for record in development.records if questions_of(right_conversation(record)) in asked]
    if shared:
        raise ValueError(
            f"--config.evaluation.prompting.development={path}: {', '.join(shared[:5])} ask what measured rows ask; an "
            "instruction must not be chosen on what it is measured on"
        )
    scores = {}
    for number, instruction in enumerate(setting.options.prompting.instructions, 1):
        method = Method(f"instruction {number}", (PROMPTED,))
        outcomes = _measured(development, method, Prompting(instruction), respondent).outcomes
        metric = metrics_of(outcomes)[0]
        sign = -1 if higher_is_better(metric) is False else 1
        scores[instruction] = sign * score_values(outcomes)[metric]
    return max(scores, key=scores.get)  # of equally good ones the first


def _with_loss(found: Measured, entry: Entry, loaded: Loaded, store: AnswerStore | None, setting: Setting) -> Measured:
    """What was measured, with the loss of each reference in its outcome."""
    examples = _tokenized(entry.records, loaded)
    key = key_of(["loss", examples.fingerprint()])
    losses = None if store is None else store.get(key)
    if losses is None:
        progress = setting.progress and setting.progress(f"held-out loss, {entry.name}", len(examples))
        losses = example_losses(loaded.model, loaded.variables, examples, jax.sharding.get_mesh(), progress=progress)
        if store is not None:
            store.put(key, losses)
            store.flush()
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
    if examples.branches is not None:
        raise ValueError(
            f"{examples.ids[int(examples.branch_counts.argmax())]}: answers that were judged have no loss of a "
            "reference; measure without it, or read them as answers to imitate: of pairs the chosen ones, "
            "--config.data.reading.preference=chosen; of answers with labels all, "
            "--config.data.reading.ignore=\"('label',)\""
        )
    check_sizes(loaded.model.config, examples, remedy="Measure without such rows, or without the loss")
    return examples
