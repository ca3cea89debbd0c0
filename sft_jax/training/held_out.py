"""Measuring during a run: loss on held-out examples, and answers to held-out prompts."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sft_jax.data.batches import held_out_batches, held_out_bins, slices_if_several
from sft_jax.data.conversations import Chat, Preference
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.dispatch import one_late
from sft_jax.generation import MAX_NEW_TOKENS, MAX_POSITIONS, Prepared, Sampler, prepare, problem_of_prompt
from sft_jax.models.config import DecoderConfig
from sft_jax.models.decoder import Decoder
from sft_jax.models.variables import variables
from sft_jax.objectives import (
    DistillationSettings,
    PreferenceSettings,
    Settings,
    distils,
    get_objective,
    judges_answers,
    of_held_out,
    samples_groups,
)
from sft_jax.objectives.distillation import distillation, of_all_tokens
from sft_jax.objectives.head import chunk_of
from sft_jax.objectives.kl import KL_TO_BASE
from sft_jax.objectives.kto import KL
from sft_jax.objectives.slices import LOSS_BY_SLICE, means_by_slice
from sft_jax.options import EvaluationOptions, ObjectiveOptions, Options, WeightOptions
from sft_jax.preparation.run_data import Data
from sft_jax.runs.averages import for_use, parts_of
from sft_jax.sharding import data_shards, put_batch, sequences_here
from sft_jax.training.programs import Signature, shared, signature_of
from sft_jax.training.setup import in_use
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepSettings, compile_eval_step
from sft_jax.training.tasks import TaskEvaluation

Tree = Any
Evaluator = Callable[[Decoder, TrainState], Mapping[str, float]]
Evaluation = Callable[[TrainState, Callable[[int, int], None], int | None], tuple[dict[str, float], dict[str, str]]]
_CUT = {MAX_NEW_TOKENS: " (cut)", MAX_POSITIONS: " (cut at the model's last position)"}


def mean_metrics(
    step: Callable, state: TrainState, batches: Iterable[dict], mesh: Mesh, groups: Sequence[str] = ()
) -> dict[str, float]:
    """Each metric as its sum over its count, over all batches; sums are added up in float64 on the host.

    The devices do not wait for the host between batches (`one_late`). Where the step measures slices apart, `groups`
    are their names.
    """
    totals: dict[str, np.ndarray] = {}
    for metrics in one_late(step(state, put_batch(batch, mesh)) for batch in batches):
        for name, pair in jax.device_get(metrics).items():
            totals[name] = totals.get(name, 0.0) + np.array(pair, np.float64)
    sums_and_counts = totals.pop(LOSS_BY_SLICE, None)
    by_group = None if sums_and_counts is None else tuple(sums_and_counts)
    means = {name: float(total / max(count, 1e-12)) for name, (total, count) in totals.items()}
    return means | means_by_slice("loss", groups, by_group)


def held_out_metrics(
    step: Callable,
    state: TrainState,
    data: Data,
    options: Options,
    mesh: Mesh,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Loss, nll and accuracy over the held-out examples, each once, whatever the batch size; names `held_out/…`.

    Where they have groups, the loss of each is `held_out/loss/<group>`.

    `progress` is called with (batches dispatched, batches in all).
    """
    batch_sequences = _sequences_at_once(options.evaluation, mesh) * data_shards(mesh)
    sizes = (data.held_out, options.data.sequence_length, data.held_out_targets)
    how = {"packing": options.data.packing, "max_examples_per_sequence": options.data.max_examples_per_sequence}
    rounds = 2 if KL in state.hyper else 1
    total = rounds * -(-len(held_out_bins(*sizes, **how)) // batch_sequences)

    def measured(state: TrainState, done: int) -> dict[str, float]:
        batches = held_out_batches(
            *sizes,
            batch_sequences,
            **how,
            normalize="tokens" if samples_groups(options.objective.name) else options.objective.normalize,
            own=sequences_here(mesh, batch_sequences),
        )
        counted = _counted(batches, done, total, progress) if progress else batches
        return mean_metrics(step, state, counted, mesh, data.held_out.groups.names)

    if rounds > 1:  # the loss follows from the divergence over all batches
        state = with_divergence(state, measured(state, 0)[KL])
    means = measured(state, total - total // rounds)
    return {f"held_out/{name}": value for name, value in means.items()}


def with_divergence(state: TrainState, mean: float) -> TrainState:
    """The state by which examples are measured whose mean log-ratio to answers to other prompts is that."""
    kl = jax.device_put(np.float32(max(mean, 0.0)), state.hyper[KL].sharding)
    return state.replace(hyper={**state.hyper, KL: kl})


def _sequences_at_once(options: EvaluationOptions, mesh: Mesh) -> int:
    """The sequences of a batch on a device."""
    return -(-options.batch_sequences // data_shards(mesh))


def held_out_settings(options: Options, settings: StepSettings, data: Data, mesh: Mesh) -> StepSettings:
    """The settings of the evaluation step: the head's chunks are those of its own batches, groups are measured apart.

    Args:
        options: of the run.
        settings: of the train step.
        data: of the run.
        mesh: on which it runs.
    """
    groups = slices_if_several(data.held_out.groups) if data.held_out is not None else None
    at_once = _sequences_at_once(options.evaluation, mesh)
    chunk = chunk_of(options.objective.head_chunk_tokens, at_once)
    objective = get_objective(of_held_out(options.objective.name))
    slices = len(groups.names) if groups else 0
    return dataclasses.replace(settings, objective=objective, policy=None, head_chunk=chunk, slices=slices)


def check_best_metric(options: Options, data: Data, vocab_size: int, evaluators: Collection[str] = ()) -> None:
    """Checks that evaluations measure what the best checkpoint is chosen by; of evaluators, whose metrics are not
    known before they are called, the name alone. Where nothing is measured there is no best checkpoint.

    Args:
        options: of the run.
        data: of the run.
        vocab_size: of the model.
        evaluators: their names.

    Raises:
        ValueError: it is not measured; says what is. Or nothing is, and the run is to end when it gets no better.
    """
    name, patience = options.checkpoint.best_metric, options.evaluation.patience
    measures = data.held_out is not None or bool(evaluators)
    if patience and not measures:
        raise ValueError(
            f"--config.evaluation.patience={patience}: nothing is measured that could get better; give "
            "--config.data.held_out"
        )
    if not name or not measures:
        return
    if not name.startswith(tuple(f"{evaluator}/" for evaluator in evaluators)):
        measured = _held_out_names(options.objective, data, vocab_size)
        refuse_unmeasured(name, [*sorted(measured), *(f"{evaluator}/…" for evaluator in evaluators)])


def refuse_unmeasured(name: str, measured: Collection[str]) -> None:
    """Refuses a `checkpoint.best_metric` that is none of those measured; where nothing is, there is nothing to refuse.

    Raises:
        ValueError: it is not measured; says what is.
    """
    if name and measured and name not in measured:
        raise ValueError(
            f"--config.checkpoint.best_metric={name!r} is not measured; there are {', '.join(measured)}. Give one of "
            "them, or '' for none"
        )


def _held_out_names(options: ObjectiveOptions, data: Data, vocab_size: int) -> set[str]:
    """What `held_out_metrics` measures; none without held-out data."""
    if data.held_out is None:
        return set()
    groups = slices_if_several(data.held_out.groups)
    by_group = {f"held_out/loss/{group or 'other'}" for group in groups.names} if groups else set()
    return names_by_objective(options, vocab_size) | by_group


def names_by_objective(options: ObjectiveOptions, vocab_size: int = 2) -> set[str]:
    """What `held_out_metrics` measures of held-out rows, whichever they are; of rows in groups the loss of each too."""
    if judges_answers(options.name):
        return {f"held_out/{name}" for name in _preference_metrics(options)}
    objective = get_objective(of_held_out(options.name))
    if distils(options.name):
        numbers = DistillationSettings(options.temperature, options.teacher_share, options.cross_entropy_share)
        measured = functools.partial(distillation, divergence=objective, settings=numbers)
        objective = lambda logits, *rest: measured(logits, *rest, of_all_tokens(logits, logits))
    else:
        settings = Settings(options.label_smoothing or None, options.z_loss or None)
        objective = functools.partial(objective, settings=settings)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((1, 1, vocab_size), "float32"), ((1, 1), "int32"), ((1, 1), "float32"))
    ]
    of_base = {KL_TO_BASE} if options.kl_to_base else set()
    return {f"held_out/{name}" for name in {*jax.eval_shape(objective, *shapes), *of_base}}


def _preference_metrics(options: ObjectiveOptions) -> set[str]:
    slots, branches = jax.ShapeDtypeStruct((1, 2), "float32"), jax.ShapeDtypeStruct((1, 2), "int32")
    numbers = {
        name: getattr(options, name)
        for name in ("label_smoothing", "desirable_weight", "undesirable_weight", "centring")
    }
    settings = PreferenceSettings(options.beta, **numbers)
    objective = functools.partial(get_objective(options.name), settings=settings)
    return set(jax.eval_shape(objective, slots, slots, slots, branches))


def _counted(batches: Iterable[dict], done: int, total: int, progress: Callable[[int, int], None]) -> Iterator[dict]:
    """The batches, of which so many of the total are done before the first."""
    for number, batch in enumerate(batches, done):
        progress(number, total)
        yield batch


class Samples:
    """Greedy answers to the first held-out prompts, thinking and calls included, as Markdown; compiled once.

    Attributes:
        count: of the prompts.
    """

    def __init__(self, decoder: DecoderConfig, data: Data, options: EvaluationOptions):
        """Chooses the prompts."""
        answered = map(_with_chosen, data.held_out_records)
        records = list(itertools.islice((record for record in answered if last_answer(record)), options.samples))
        self.count = len(records)
        self._pairs = [split_prompt(record, data.renderer) for record in records]
        # An example that is cut to fit into a sequence has a prompt that is not.
        self._problems = [problem_of_prompt(ids, decoder) for ids, _, _ in self._pairs]
        self._written = [
            functools.partial(data.renderer.written_text, tools=record.example.tools) for record in records
        ]
        self._tokens = options.sample_tokens
        self._sampler = Sampler(data.renderer.stop_ids, slots=max(len(records), 1))

    def __call__(self, prepared: Prepared) -> dict[str, str]:
        """Markdown by name."""
        numbers = [number for number, problem in enumerate(self._problems) if not problem]
        prompts = [self._pairs[number][0] for number in numbers]
        answers = self._sampler.generate(prepared, prompts, max_new_tokens=self._tokens, example_ids=numbers)
        shown = [f"**answer**: none, the prompt {problem}" for problem in self._problems]
        for number, (answer,) in zip(numbers, answers, strict=True):
            text = self._written[number](answer.tokens)
            shown[number] = f"**answer**{_CUT.get(answer.finish_reason, '')}\n\n{_quoted(text)}"
        return {
            f"samples/{number}": "\n\n".join(
                (f"**prompt**\n\n{_quoted(prompt)}", answer, f"**reference**\n\n{_quoted(reference)}")
            )
            for number, ((_, prompt, reference), answer) in enumerate(zip(self._pairs, shown, strict=True), 1)
        }


def split_prompt(record: Record, renderer: ConversationRenderer) -> tuple[np.ndarray, str, str]:
    """Ids up to the last answer, the last question as text, and the whole answer that should follow."""
    last = last_answer(record)
    before = record.conversation[:last]
    ids = renderer.render_prompt(before, record.example.tools)
    reference = renderer.answer_text(record.conversation[: last + 1], record.example.tools)
    return ids, before[-1].content if before else "", reference


def _with_chosen(record: Record) -> Record:
    """The record; of a pair of answers, the conversation of its prompt and the chosen one."""
    pair = record.example
    if not isinstance(pair, Preference):
        return record
    return dataclasses.replace(record, example=Chat(pair.prompt + pair.chosen, pair.tools))


def last_answer(record: Record) -> int:
    """The number of the last answer; 0 where there is none to a question, as in rows that are no conversations."""
    messages = record.example.messages if isinstance(record.example, Chat) else ()
    return max((number for number, message in enumerate(messages) if message.role == "assistant"), default=0)


def _quoted(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))


def compile_for_evaluation(options: WeightOptions, state: TrainState) -> Callable[[TrainState], TrainState]:
    """The function from a state to one with what is to be measured in the place of the trained parameters.

    That is like them in dtype and layout, and the EMA where `config.ema.evaluate` asks for it.

    Args:
        options: of the run.
        state: a state of the run.
    """
    names = parts_of(options.optimizer, options.ema, "ema" if options.ema.evaluate else "trained")
    if names == ("trained",):
        return lambda state: state
    choose = _chooser(signature_of(state.trained))
    parts = lambda state: {name: _at(state, name) for name in names}
    return lambda state: state.replace(trained=choose(parts(state), state.hyper["beta1"]))


@shared
def _chooser(trained: Signature) -> Callable[..., Tree]:
    """From the arrays that `parts_of` names, and beta1, to what is measured; like the trained parameters."""

    def chosen(parts: Mapping[str, Tree], beta1: jax.Array) -> Tree:
        return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), for_use(parts, beta1), trained.dtypes)

    return jax.jit(chosen, out_shardings=trained.shardings)


def _at(state: TrainState, path: str) -> Tree:
    node = state
    for name in path.split("/"):
        node = getattr(node, name)
    return node


def compile_evaluation(
    options: Options,
    data: Data,
    model: Decoder,
    settings: StepSettings,
    state: TrainState,
    mesh: Mesh,
    evaluators: Mapping[str, Evaluator],
    tasks: TaskEvaluation,
) -> Evaluation:
    """One evaluation of the model without what only training has: held-out loss, evaluators, tasks, and samples.

    Args:
        options: of the run.
        data: of the run.
        model: as it is trained.
        settings: of the train step.
        state: a state of the run; its values are not looked at.
        mesh: where its arrays are.
        evaluators: of the user's own, by name.
        tasks: of the config.

    Returns:
        (state, progress, step) -> (scalars, texts) by name; `progress` is called with (batches dispatched, batches in
        all), tasks are measured where a step is given.
    """
    model = in_use(model)
    settings = held_out_settings(options, settings, data, mesh)
    measured, eval_step = compile_for_evaluation(options, state), compile_eval_step(model, settings, state, mesh)
    samples = Samples(model.config, data, options.evaluation)

    def evaluate(
        state: TrainState, progress: Callable[[int, int], None], step: int | None
    ) -> tuple[dict[str, float], dict[str, str]]:
        state, scalars = measured(state), {}
        if data.held_out is not None:
            scalars = held_out_metrics(eval_step, state, data, options, mesh, progress)
        for name, evaluator in evaluators.items():
            scalars |= {f"{name}/{metric}": float(value) for metric, value in evaluator(model, state).items()}
        measures_tasks = bool(tasks.names) and step is not None
        if not (measures_tasks or samples.count):
            return scalars, {}
        prepared = prepare(model, variables(state.trained, state.frozen, state.hyper))
        if measures_tasks:
            scalars |= tasks(prepared, step)
        return scalars, samples(prepared)

    return evaluate
