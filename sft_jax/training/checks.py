"""Bad values of a config, found before anything is read or written.

`CHECKS`: each value alone, so that every error names its flag. `TOGETHER`: values that do not go together. `UNREAD`:
values that were asked for and that nothing would read.
"""

import contextlib
import datetime
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from sft_jax.audit.findings import FAIL_ON
from sft_jax.data import cleaning, records
from sft_jax.data.groups import NORMALIZE
from sft_jax.data.packing import PACKINGS
from sft_jax.data.plan.mixture import MIXTURE_PACKINGS
from sft_jax.data.rendering import masking
from sft_jax.evaluation.tasks.checks import malformed_tasks, problems_in_task
from sft_jax.models.adapters import METHODS
from sft_jax.models.config import ATTENTION_BACKENDS, FLOAT_DTYPES, REMAT_POLICIES
from sft_jax.models.quantization import KINDS
from sft_jax.models.vocabulary import problems_of
from sft_jax.objectives import KNOWN
from sft_jax.objectives.advantages import ADVANTAGES
from sft_jax.options import Options, options_of
from sft_jax.preparation.mixing import malformed_sources, problems_in_mixture
from sft_jax.preparation.retrieved import problems_in_retrieval
from sft_jax.retrieval import METHODS as METHODS_OF_SEARCH
from sft_jax.runs.adapting import has_adapters
from sft_jax.runs.freezing import trains_all_weights
from sft_jax.runs.saved_config import known_fields, unknown_fields
from sft_jax.runs.workdir import AUTO, flatten
from sft_jax.training.branch import parse_branch, problems_of_branch
from sft_jax.training.groups import parse_groups
from sft_jax.training.optimizer import DECAY_SHAPES, SCHEDULES
from sft_jax.training.pair_checks import problems_of_pairs, problems_of_scores, unread_objective_options
from sft_jax.training.rollouts.checks import malformed_rewards, problems_of_rollouts, unread_rollout_options
from sft_jax.training.teacher import needs_teacher
from sft_jax.training.teacher_checks import problems_of_teacher, unread_teacher_options
from sft_jax.training.update_rules import RULES, unread_options

Check = tuple[Callable[[Any], bool], str]
Defaults = Mapping[str, Any]  # of `config.defaults`, by path


def _one_of(*names: str) -> Check:
    return (lambda value: value in names), f"must be one of {', '.join(names)}"


def _known(table: Mapping[str, Any], *more: str) -> Check:
    return (lambda value: value in table or value in more), f"must be one of {', '.join([*more, *table])}"


def _at_least(least: int) -> Check:
    return (lambda value: math.isfinite(value) and value >= least), f"must be at least {least}"


def _is_date(value: str) -> bool:
    with contextlib.suppress(ValueError):
        return not value or datetime.date.fromisoformat(value).isoformat() == value
    return False


_ABOVE_ZERO: Check = (lambda value: math.isfinite(value) and value > 0), "must be above 0"
_SHARE: Check = (lambda value: 0 <= value <= 1), "must lie between 0 and 1"
_BELOW_ONE: Check = (lambda value: 0 <= value < 1), "must lie in [0, 1)"
_BETAS: Check = (
    lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value),
    "must be two numbers in [0, 1)",
)

_COMPUTE_DTYPES = ("float32", "bfloat16")  # float16 would need its loss scaled

_OF_RETRIEVAL: dict[str, Check] = {
    "method": _one_of(*METHODS_OF_SEARCH),
    "passages": _at_least(1),
    "chunk_words": _at_least(1),
    "overlap_words": _at_least(0),
}
CHECKS: dict[str, Check] = {
    "seed": _at_least(0),
    "branch": (
        lambda value: not value or parse_branch(value) is not None,
        'must be a run directory and a step, like "runs/x:8000", or empty',
    ),
    "model.max_positions": _at_least(0),
    "model.head": _one_of("vocabulary", "score"),
    "data.date": (_is_date, 'must be a date like "2026-01-31", or empty for the day of the first start'),
    "data.fail_on": _one_of(*FAIL_ON),
    "data.sequence_length": _at_least(2),
    **{f"data.reading.{name}": _one_of(*known) for name, known in records.CHOICES.items()},
    "data.packing": (
        lambda value: value in PACKINGS,
        f"must be one of {', '.join(PACKINGS)} (best_fit packs, none gives each example a sequence of its own)",
    ),
    "data.max_examples_per_sequence": _at_least(0),
    "data.mixture_packing": _one_of(*MIXTURE_PACKINGS),
    "data.supervised_quantile": _SHARE,
    **{f"data.retrieval.{name}": check for name, check in _OF_RETRIEVAL.items()},
    "data.masking.train_on": (masking.names_roles, masking.TRAIN_ON),
    **{f"data.masking.{name}": _one_of(*known) for name, known in masking.CHOICES.items()},
    "batch.sequences": _at_least(1),
    "batch.micro_batches": _at_least(1),
    "objective.name": _known(KNOWN),
    "objective.normalize": _one_of(*NORMALIZE),
    "objective.label_smoothing": _BELOW_ONE,
    "objective.z_loss": _at_least(0),
    "objective.kl_to_base": _at_least(0),
    "objective.beta": _ABOVE_ZERO,
    "objective.margin": _at_least(0),
    "objective.tail_weight": _SHARE,
    "objective.sft_weight": _at_least(0),
    "objective.desirable_weight": _ABOVE_ZERO,
    "objective.undesirable_weight": _ABOVE_ZERO,
    "objective.centring": _at_least(0),
    "objective.clip_low": _SHARE,
    "objective.clip_high": _at_least(0),
    "objective.kl_weight": _at_least(0),
    "objective.teacher_weight": _at_least(0),
    "objective.temperature": _ABOVE_ZERO,
    "objective.teacher_share": (lambda value: 0 < value < 1, "must lie between 0 and 1, and be neither"),
    "objective.cross_entropy_share": _BELOW_ONE,
    "objective.neftune_alpha": _at_least(0),
    "objective.positions": _one_of("supervised", "all"),
    "objective.head_chunk_tokens": _at_least(0),
    "teacher.top_k": _at_least(0),
    "rollouts.prompts": _at_least(1),
    "rollouts.group": _at_least(1),
    "rollouts.temperature": _ABOVE_ZERO,  # at 0 all answers to a prompt would be the same
    "rollouts.max_new_tokens": _at_least(1),
    "rollouts.slots": _at_least(0),
    "rollouts.advantages": _one_of(*ADVANTAGES),
    "rollouts.truncated": _one_of("leave_out", "train"),
    "experts.balance_loss": _at_least(0),
    "experts.capacity": _at_least(0),
    "adapter.method": _known(METHODS, "none"),
    "adapter.rank": _at_least(1),
    "adapter.alpha": _ABOVE_ZERO,
    "adapter.scaling": _one_of("rank", "sqrt_rank"),
    "adapter.dropout": _BELOW_ONE,
    "trained.last_layers": _at_least(0),
    "optimizer.name": _known(RULES),
    "optimizer.learning_rate": _at_least(0),
    "optimizer.schedule": _one_of(*SCHEDULES),
    "optimizer.final_share": _SHARE,
    "optimizer.decay_shape": _one_of(*DECAY_SHAPES),
    "optimizer.betas": _BETAS,
    "optimizer.epsilon": _ABOVE_ZERO,  # what has no gradient, as embeddings of absent tokens, would move by 0 / 0
    "optimizer.momentum": _BELOW_ONE,
    "optimizer.decay_power": _SHARE,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.clip_norm": _at_least(0),
    "optimizer.max_skipped_in_a_row": _at_least(1),
    "ema.decay": _BELOW_ONE,
    "precision.params": _one_of(*_COMPUTE_DTYPES),
    "precision.frozen": _one_of(AUTO, *FLOAT_DTYPES),
    "precision.quantized": _one_of(*KINDS),
    "precision.matmul": _one_of(*_COMPUTE_DTYPES),
    "precision.activations": _one_of(AUTO, *_COMPUTE_DTYPES),
    "precision.gradients": _one_of(*_COMPUTE_DTYPES),
    "execution.layer_layout": _one_of(AUTO, "scan", "unrolled"),
    "execution.remat": (
        lambda value: value in (AUTO, *REMAT_POLICIES),
        f"must be one of {', '.join([AUTO, *REMAT_POLICIES])} (dots, dots_no_batch: now products)",
    ),
    "execution.attention": (
        lambda value: value in (AUTO, *ATTENTION_BACKENDS),
        f"must be one of {', '.join([AUTO, *ATTENTION_BACKENDS])} (whole: now reference)",
    ),
    "evaluation.patience": _at_least(0),
    "evaluation.batch_sequences": _at_least(1),
    "evaluation.samples": _at_least(0),
    "evaluation.sample_tokens": _at_least(1),
    "evaluation.slots": _at_least(1),
    "evaluation.max_regression": _at_least(0),
    "evaluation.few_shot.examples": _at_least(1),
    "evaluation.few_shot.choose": _one_of("seed", "first", "nearest"),
    **{f"evaluation.retrieval.{name}": check for name, check in _OF_RETRIEVAL.items()},
    "checkpoint.keep_last": _at_least(1),
    "checkpoint.best_is": _one_of("min", "max"),
    "log.every": _at_least(1),
    "loader.threads": _at_least(0),
    "loader.batches_ahead": _at_least(1),
    "loader.tokenize_workers": _at_least(-1),
    "profile.start": _at_least(0),
    "profile.steps": _at_least(1),
}


_FILLED_BY_RUN = ("data.mixture", "rollouts.rewards", "evaluation.tasks")  # sections that are empty in configs/sft.py


def _unread_optimizer_options(options: Options, defaults: Defaults) -> list[str]:
    """Options that only other update rules read, and that were asked for."""
    rule = options.optimizer.name
    asked = {option: getattr(options.optimizer, option) for option in unread_options(rule)}
    return [
        f"--config.optimizer.{option}={value!r} is not read by --config.optimizer.name={rule}; leave it out"
        for option, value in asked.items()
        if value != defaults[f"optimizer.{option}"]
    ]


def _unread_adapter_options(options: Options, defaults: Defaults) -> list[str]:
    """Options of adapters that were asked for, and no adapter."""
    if options.adapter.method != "none":
        return []
    asked = {f"adapter.{name}": value for name, value in vars(options.adapter).items() if name != "method"}
    return [
        f"--config.{name}={value!r} is not read under --config.adapter.method=none; leave it at {defaults[name]!r}, or "
        "for an adapter give --config=configs/sft.py:lora"
        for name, value in asked.items()
        if name in defaults and value != defaults[name]
    ]


def _unread_schedule_options(options: Options, defaults: Defaults) -> list[str]:
    """Options that only other schedules read, and that were asked for."""
    schedule, optimizer = options.optimizer.schedule, options.optimizer
    asked: dict[str, Any] = {}
    if schedule == "constant":
        asked["optimizer.final_share"] = optimizer.final_share
    if schedule != "wsd":
        asked["optimizer.decay"], asked["optimizer.decay_shape"] = optimizer.decay, optimizer.decay_shape
        asked["checkpoint.keep_stable"] = options.checkpoint.keep_stable
    return [
        f"--config.{name}={value!r} is not read by --config.optimizer.schedule={schedule}; leave it at "
        f"{defaults[name]!r}"
        for name, value in asked.items()
        if value != defaults[name]
    ]


def _schedule_free(options: Options) -> list[str]:
    if options.optimizer.name != "schedule_free":
        return []
    problems = []
    if options.optimizer.schedule != "constant":
        problems.append(
            f"--config.optimizer.schedule={options.optimizer.schedule!r}: schedule_free averages in place of a "
            "schedule; give --config.optimizer.schedule=constant"
        )
    if not options.optimizer.betas[0]:
        problems.append(
            f"--config.optimizer.betas={options.optimizer.betas!r}: schedule_free trains between an iterate and its "
            "average, of which the first beta is the average's share; give one above 0, 0.9 for example"
        )
    return problems


def _ema(options: Options) -> list[str]:
    if not options.ema.evaluate or options.ema.decay:
        return []
    return ["--config.ema.evaluate=True: there is no average to evaluate; give --config.ema.decay=0.999, for example"]


def _patience(options: Options) -> list[str]:
    if not options.evaluation.patience or options.checkpoint.best_metric:
        return []
    return [
        f"--config.evaluation.patience={options.evaluation.patience}: there is no metric by which an evaluation is "
        "better; give --config.checkpoint.best_metric=held_out/nll, for example"
    ]


def _groups(options: Options) -> list[str]:
    try:
        parse_groups(options.optimizer.groups)
    except ValueError as error:
        return [str(error)]
    return []


def _trained_weights(options: Options) -> list[str]:
    """What is trained, where it excludes another choice."""
    weights, last = options.trained.weights, options.trained.last_layers
    problems = []
    if has_adapters(options.adapter) and (weights or last):
        method = options.adapter.method
        under = "--config.adapter.train_new_tokens" if method == "none" else f"--config.adapter.method={method}"
        problems.append(
            f"--config.trained.weights={weights!r} --config.trained.last_layers={last}: under {under} all weights are "
            "frozen; leave them at () and 0"
        )
    if last and options.execution.layer_layout == "scan":
        problems.append(
            f"--config.trained.last_layers={last} needs layers in arrays of their own: "
            "--config.execution.layer_layout must be auto or unrolled, not scan"
        )
    for pattern in weights:
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"--config.trained.weights: {pattern!r} is not a regular expression ({error})")
    return problems


def _quantized(options: Options) -> list[str]:
    if options.precision.quantized == "none" or has_adapters(options.adapter):
        return []
    return [
        f"--config.precision.quantized={options.precision.quantized} is for frozen weights under an adapter; give "
        "--config.adapter.method=lora too"
    ]


def _unread_frozen(options: Options, defaults: Defaults) -> list[str]:
    default, read = defaults["precision.frozen"], bool(options.objective.kl_to_base or options.objective.kl_weight)
    read = read or needs_teacher(options)
    if options.precision.frozen == default or read or not trains_all_weights(options.adapter, options.trained):
        return []
    return [
        f"--config.precision.frozen={options.precision.frozen} is of weights that are not trained, and here all are; "
        f"leave it at {default}. The trained weights are --config.precision.params"
    ]


def _params_dtype(options: Options) -> list[str]:
    if options.precision.params == "float32" or not has_adapters(options.adapter):
        return []
    return [
        f"--config.precision.params={options.precision.params} is of trained weights, and what is trained beside "
        "frozen ones is kept in float32; leave it at float32. The frozen weights are --config.precision.frozen"
    ]


def _gradients_dtype(options: Options) -> list[str]:
    precision = options.precision
    if precision.gradients == "float32" or precision.matmul != "float32":
        return []
    return [
        f"--config.precision.gradients={precision.gradients} rounds what products in float32 were asked for to give "
        "exactly; leave it at float32, or give --config.precision.matmul=bfloat16"
    ]


def _cleaning(options: Options) -> list[str]:
    return cleaning.problems_of(options.data.cleaning)


def _new_tokens(options: Options) -> list[str]:
    problems = problems_of(options.model.new_tokens)
    if options.adapter.train_new_tokens and not options.model.new_tokens:
        problems.append(
            "--config.adapter.train_new_tokens=True: there are no new tokens to train; give --config.model.new_tokens "
            "too"
        )
    return problems


def _unread_in_contents(options: Options, defaults: Defaults) -> list[str]:
    in_contents, default = options.model.new_tokens_in_contents, defaults["model.new_tokens_in_contents"]
    if options.model.new_tokens or in_contents == default:
        return []
    return [
        f"--config.model.new_tokens_in_contents={in_contents} is not read without --config.model.new_tokens; leave it "
        f"at {default}"
    ]


def _unread_mixture_packing(options: Options, defaults: Defaults) -> list[str]:
    packing, default = options.data.mixture_packing, defaults["data.mixture_packing"]
    if options.data.mixture or packing == default:
        return []
    return [
        f"--config.data.mixture_packing={packing} is not read without sources in --config.data.mixture; leave it at "
        f"{default}"
    ]


def _retrieval(options: Options) -> list[str]:
    return [
        *problems_in_retrieval(options.data.retrieval),
        *problems_in_retrieval(options.evaluation.retrieval, "--config.evaluation.retrieval."),
    ]


def _tasks(options: Options) -> list[str]:
    found = options.evaluation.tasks.items()
    problems = [problem for name, task in found for problem in problems_in_task(name, task)]
    if options.evaluation.tasks_every and not options.evaluation.tasks:
        problems.append(
            f"--config.evaluation.tasks_every={options.evaluation.tasks_every!r} is not read: there are no tasks in "
            "config.evaluation.tasks; leave it empty"
        )
    return problems


def _unread_retrieval(options: Options, defaults: Defaults) -> list[str]:
    """Options of retrieval that were asked for, and no corpus."""
    if options.data.retrieval.corpus:
        return []
    asked = {f"data.retrieval.{name}": value for name, value in vars(options.data.retrieval).items()}
    return [
        f"--config.{name}={value!r} is not read without --config.data.retrieval.corpus; leave it at {defaults[name]!r}"
        for name, value in asked.items()
        if value != defaults[name]
    ]


def _held_out_split(options: Options) -> list[str]:
    split = options.data.held_out_split
    if not split or options.data.held_out:
        return []
    return [
        f"--config.data.reading.held_out_split={split!r}: there are no held-out rows; give --config.data.held_out too, "
        "or leave it empty"
    ]


def _mixture(options: Options) -> list[str]:
    return problems_in_mixture(options.data)


def _reading(options: Options) -> list[str]:
    try:
        records.check_reading(options.data.reading)
    except ValueError as error:
        return [str(error)]
    return []


UNREAD: tuple[Callable[[Options, Defaults], list[str]], ...] = (
    _unread_optimizer_options,
    _unread_adapter_options,
    unread_objective_options,
    unread_teacher_options,
    _unread_schedule_options,
    unread_rollout_options,
    _unread_frozen,
    _unread_in_contents,
    _unread_mixture_packing,
    _unread_retrieval,
)
TOGETHER: tuple[Callable[[Options], list[str]], ...] = (
    _schedule_free,
    problems_of_branch,
    _ema,
    _patience,
    problems_of_pairs,
    problems_of_scores,
    problems_of_rollouts,
    problems_of_teacher,
    _groups,
    _trained_weights,
    _quantized,
    _params_dtype,
    _gradients_dtype,
    _cleaning,
    _new_tokens,
    _held_out_split,
    _reading,
    _mixture,
    _retrieval,
    _tasks,
)


def _has(config: Any, name: str) -> bool:
    section, _, rest = name.partition(".")
    here = isinstance(config, ml_collections.ConfigDict) and section in config
    return here and (not rest or _has(config[section], rest))


def _defaults(config: ml_collections.ConfigDict) -> Defaults:
    flat = flatten(config.defaults.to_dict())
    return {name: tuple(value) if isinstance(value, list) else value for name, value in flat.items()}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks what can be known from the config alone; the rest is checked where data and devices are known.

    Raises:
        ValueError: values that no run can have; names all their flags at once.
    """
    problems = [
        f"config.{name} is missing; a config has every field of configs/sft.py"
        for name in (*known_fields(), *_FILLED_BY_RUN)
        if not _has(config, name)
    ]
    problems += [
        f"config.{name} is no field of configs/sft.py, and the result of a run with it would be refused; add it there, "
        "with a default that keeps what the code does now"
        for name in unknown_fields(config.to_dict())
    ]
    if problems:
        raise ValueError("\n".join(problems))
    for name, (is_good, expected) in CHECKS.items():
        value = functools.reduce(operator.getitem, name.split("."), config)
        if not is_good(value):
            problems.append(f"--config.{name}={value!r} {expected}")
    problems = problems or [*malformed_sources(config), *malformed_rewards(config), *malformed_tasks(config)]
    if problems:
        raise ValueError("\n".join(problems))
    # Values that are good on their own may not go together.
    options, defaults = options_of(config), _defaults(config)
    problems = [problem for check in TOGETHER for problem in check(options)]
    problems += [problem for check in UNREAD for problem in check(options, defaults)]
    if problems:
        raise ValueError("\n".join(problems))
