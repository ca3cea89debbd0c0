"""The options of a run as the code reads them: one frozen dataclass for each section of the config.

`configs/sft.py` has their defaults and says what they do: there are no defaults here. `training/checks.py` refuses bad
values before a run uses them. The names and the sections are those of the config.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from sft_jax.data.reading import DEFAULT, OPTIONS, Reading, flags_of_source, held_out_reading_of, reading_of
from sft_jax.data.rendering.masking import Masking

Section = TypeVar("Section")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """`config.model`: the checkpoint to start from, and what is changed of it."""

    source: str
    revision: str
    chat_template: str
    max_positions: int
    new_tokens: tuple[str, ...]
    new_tokens_in_contents: bool
    head: str


@dataclasses.dataclass(frozen=True)
class AdapterOptions:
    """`config.adapter`: what is trained beside frozen weights."""

    method: str
    initial: str
    rank: int
    ranks: tuple[str, ...]
    alpha: float
    scaling: str
    dropout: float
    targets: tuple[str, ...]
    train_new_tokens: bool


@dataclasses.dataclass(frozen=True)
class TrainedOptions:
    """`config.trained`: which of the weights are trained."""

    weights: tuple[str, ...]
    last_layers: int


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """`config.optimizer`: the update rule, the schedule, and their numbers."""

    name: str
    learning_rate: float
    schedule: str
    warmup: str
    final_share: float
    decay: str
    decay_shape: str
    betas: tuple[float, float]
    epsilon: float
    momentum: float
    decay_power: float
    weight_decay: float
    groups: tuple[str, ...]
    clip_norm: float
    max_skipped_in_a_row: int


@dataclasses.dataclass(frozen=True)
class EmaOptions:
    """`config.ema`: the moving average of what is trained."""

    decay: float
    evaluate: bool


@dataclasses.dataclass(frozen=True)
class PrecisionOptions:
    """`config.precision`: dtypes of weights, matrix products and activations."""

    params: str
    frozen: str
    quantized: str
    matmul: str
    activations: str
    gradients: str


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """A source of `config.data.mixture`; see `source` in `configs/sft.py`."""

    path: str
    weight: str
    epochs: float
    replacement: bool
    reading: Reading


@dataclasses.dataclass(frozen=True)
class RetrievalOptions:
    """`config.data.retrieval`: passages of a corpus in prompts."""

    corpus: str
    row_template: str
    id_column: str
    chunk_words: int
    overlap_words: int
    method: str
    passages: int
    template: str
    passage_template: str


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """`config.data`: what is trained on and measured, and how it becomes sequences of tokens."""

    train: str
    mixture: Mapping[str, SourceOptions]
    mixture_packing: str
    held_out: str
    reading: Reading
    held_out_split: str  # `reading.held_out_split`
    date: str
    cleaning: tuple[str, ...]
    benchmarks: tuple[str, ...]
    retrieval: RetrievalOptions
    fail_on: str
    cache: str
    sequence_length: int
    packing: str
    max_examples_per_sequence: int
    supervised_quantile: float
    masking: Masking


@dataclasses.dataclass(frozen=True)
class BatchOptions:
    """`config.batch`: the size of an optimizer step."""

    sequences: int
    micro_batches: int


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
    """`config.objective`: the loss, and how it is computed."""

    name: str
    normalize: str
    label_smoothing: float
    z_loss: float
    kl_to_base: float
    neftune_alpha: float
    positions: str
    head_chunk_tokens: int
    beta: float
    margin: float
    per_token: bool
    tail_weight: float
    sft_weight: float
    desirable_weight: float
    undesirable_weight: float
    centring: float
    clip_low: float
    clip_high: float
    kl_weight: float
    teacher_weight: float
    temperature: float
    teacher_share: float
    cross_entropy_share: float


@dataclasses.dataclass(frozen=True)
class TeacherOptions:
    """`config.teacher`: the model that distillation imitates."""

    source: str
    revision: str
    top_k: int


@dataclasses.dataclass(frozen=True)
class RewardOptions:
    """An entry of `config.rollouts.rewards`: what an answer is worth."""

    scorer: str
    scorer_options: Mapping[str, Any]
    metric: str
    weight: float


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """`config.rollouts`: the answers that are sampled and trained on."""

    prompts: int
    group: int
    temperature: float
    max_new_tokens: int
    slots: int
    rewards: Mapping[str, RewardOptions]
    advantages: str
    truncated: str


@dataclasses.dataclass(frozen=True)
class ExpertOptions:
    """`config.experts`: of models that have some."""

    balance_loss: float
    capacity: float


@dataclasses.dataclass(frozen=True)
class ExecutionOptions:
    """`config.execution`: how the decoder's program is built."""

    layer_layout: str
    remat: str
    deterministic: bool
    attention: str


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """An entry of `config.evaluation.tasks`: what is asked about the rows of a file, and how answers are scored."""

    path: str
    reading: Reading
    kind: str = "generate"
    rows: int = 0
    scorer: str = "exact_match"
    scorer_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    match_thinking: bool = False
    max_new_tokens: int = 256
    samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    choices: tuple[str, ...] = ()
    choices_column: str = ""
    choose_by: str = "logprob"
    loss: bool = True
    probe: bool = False
    relevant_column: str = ""


@dataclasses.dataclass(frozen=True)
class FewShotOptions:
    """`config.evaluation.few_shot`: solved examples in prompts."""

    path: str
    examples: int
    choose: str


@dataclasses.dataclass(frozen=True)
class PromptingOptions:
    """`config.evaluation.prompting`: an instruction in front of prompts."""

    instructions: tuple[str, ...]
    development: str


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """`config.evaluation`: when and how a run measures itself, and what the methods beside it do."""

    every: str
    patience: int
    batch_sequences: int
    samples: int
    sample_tokens: int
    tasks: Mapping[str, TaskOptions]
    tasks_every: str
    slots: int
    max_regression: float
    few_shot: FewShotOptions
    prompting: PromptingOptions
    retrieval: RetrievalOptions


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """`config.checkpoint`: when state is saved, and what is kept."""

    every: str
    keep_last: int
    keep_stable: bool
    best_metric: str
    best_is: str


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """`config.log`: how often metrics are written."""

    every: int


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """`config.loader`: threads and processes that prepare data."""

    threads: int
    batches_ahead: int
    tokenize_workers: int


@dataclasses.dataclass(frozen=True)
class ProfileOptions:
    """`config.profile`: the steps of which a trace is written."""

    start: int
    steps: int


@dataclasses.dataclass(frozen=True)
class WeightOptions:
    """What the weights of a run follow from; the rest of a config is needed by training alone."""

    seed: int
    model: ModelOptions
    adapter: AdapterOptions
    trained: TrainedOptions
    optimizer: OptimizerOptions
    ema: EmaOptions
    precision: PrecisionOptions


@dataclasses.dataclass(frozen=True)
class Options(WeightOptions):
    """All options of a run."""

    duration: str
    branch: str
    data: DataOptions
    batch: BatchOptions
    objective: ObjectiveOptions
    teacher: TeacherOptions
    rollouts: RolloutOptions
    experts: ExpertOptions
    execution: ExecutionOptions
    mesh: Mapping[str, int]  # devices along each axis
    evaluation: EvaluationOptions
    checkpoint: CheckpointOptions
    log: LogOptions
    loader: LoaderOptions
    profile: ProfileOptions


def options_of(config: ml_collections.ConfigDict) -> Options:
    """The options of a config that `check_config` accepts."""
    return Options(
        **_weights(config),
        duration=config.duration,
        branch=config.branch,
        data=_data(config.data),
        batch=_section(BatchOptions, config.batch),
        objective=_section(ObjectiveOptions, config.objective),
        teacher=_section(TeacherOptions, config.teacher),
        rollouts=_rollouts(config.rollouts),
        experts=_section(ExpertOptions, config.experts),
        execution=_section(ExecutionOptions, config.execution),
        mesh=config.mesh.to_dict(),
        evaluation=evaluation_options(config.evaluation, _data(config.data)),
        checkpoint=_section(CheckpointOptions, config.checkpoint),
        log=_section(LogOptions, config.log),
        loader=_section(LoaderOptions, config.loader),
        profile=_section(ProfileOptions, config.profile),
    )


def weight_options(config: ml_collections.ConfigDict) -> WeightOptions:
    """What is needed of the config of an earlier run to use its result; other sections may lack fields."""
    return WeightOptions(**_weights(config))


def _data(section: ml_collections.ConfigDict) -> DataOptions:
    """The options of `config.data`."""
    return _section(
        DataOptions,
        section,
        mixture={name: _source(name, section.mixture[name]) for name in section.mixture},
        reading=reading_of(section.reading),
        held_out_split=section.reading.held_out_split,
        retrieval=_section(RetrievalOptions, section.retrieval),
        masking=Masking(**section.masking),
    )


def evaluation_options(section: ml_collections.ConfigDict, data: DataOptions) -> EvaluationOptions:
    """The options of `config.evaluation`; tasks without a path measure the held-out rows of `data`."""
    return _section(
        EvaluationOptions,
        section,
        tasks={name: _task(name, section.tasks[name], data) for name in section.tasks},
        few_shot=_section(FewShotOptions, section.few_shot),
        prompting=_section(PromptingOptions, section.prompting),
        retrieval=_section(RetrievalOptions, section.retrieval),
    )


def _rollouts(section: ml_collections.ConfigDict) -> RolloutOptions:
    """The options of `config.rollouts`."""
    of_entry = lambda entry: _section(RewardOptions, entry, scorer_options=entry.scorer_options.to_dict())
    rewards = {name: of_entry(section.rewards[name]) for name in section.rewards}
    return _section(RolloutOptions, section, rewards=rewards)


def _task(name: str, section: ml_collections.ConfigDict, data: DataOptions) -> TaskOptions:
    """The options of a task."""
    reading = reading_of(section.reading, f"--config.evaluation.tasks.{name}.reading.")
    if not section.path and all(getattr(reading, option) == getattr(DEFAULT, option) for option in OPTIONS):
        reading = held_out_reading_of(data.reading, data.held_out_split)
    path, scorer_options = section.path or data.held_out, section.scorer_options.to_dict()
    return _section(TaskOptions, section, path=path, reading=reading, scorer_options=scorer_options)


def _weights(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "model": _section(ModelOptions, config.model),
        "adapter": _section(AdapterOptions, config.adapter),
        "trained": _section(TrainedOptions, config.trained),
        "optimizer": _section(OptimizerOptions, config.optimizer),
        "ema": _section(EmaOptions, config.ema),
        "precision": _section(PrecisionOptions, config.precision),
    }


def _source(name: str, section: ml_collections.ConfigDict) -> SourceOptions:
    """The options of a source of a mixture."""
    return _section(SourceOptions, section, reading=reading_of(section.reading, flags_of_source(name)))


def _section(made: type[Section], section: ml_collections.ConfigDict, **given: Any) -> Section:
    """A section as a dataclass; lists, as JSON has them, become tuples."""
    names = [field.name for field in dataclasses.fields(made) if field.name not in given]
    plain = lambda value: tuple(value) if isinstance(value, list) else value
    return made(**{name: plain(section[name]) for name in names}, **given)
