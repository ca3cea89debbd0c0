"""Bad values of a config, found before anything is read or written.

One table of values on their own, so that every error names its flag, and one of values that do not go together.
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
from sft_jax.data import cleaning
from sft_jax.data.batches import NORMALIZE
from sft_jax.data.files import CONTAINERS, DATA_SETS
from sft_jax.data.formats import FORMATS
from sft_jax.data.packing import PACKINGS
from sft_jax.data.reading import AUTO, LABELS, ON_BAD_ROW, PREFERENCES, TEXT_ENDS, TIES, reading_of
from sft_jax.data.records import check_reading
from sft_jax.data.rendering import masking
from sft_jax.models.adapters import METHODS
from sft_jax.models.config import ATTENTION_BACKENDS, PRODUCT_DTYPES, REMAT_POLICIES
from sft_jax.models.quantization import KINDS
from sft_jax.models.vocabulary import problems_of
from sft_jax.objectives import OBJECTIVES
from sft_jax.preparation.mixing import problems_in_mixture
from sft_jax.runs.adapting import has_adapters
from sft_jax.runs.freezing import trains_all_weights
from sft_jax.runs.saved_config import known_fields, unknown_fields
from sft_jax.training.groups import parse_groups
from sft_jax.training.optimizer import SCHEDULES
from sft_jax.training.update_rules import RULES, unread_options

Check = tuple[Callable[[Any], bool], str]


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

_TRAINED = ("float32", "bfloat16")  # float16 would need its loss scaled

CHECKS: dict[str, Check] = {
    "seed": _at_least(0),
    "model.max_positions": _at_least(0),
    "data.date": (_is_date, 'must be a date like "2026-01-31", or empty for the day of the first start'),
    "data.fail_on": _one_of(*FAIL_ON),
    "data.sequence_length": _at_least(2),
    "data.reading.format": _known(FORMATS, AUTO),
    "data.reading.container": _known(CONTAINERS, AUTO, *DATA_SETS),
    "data.reading.label": _one_of(*LABELS),
    "data.reading.ties": _one_of(*TIES),
    "data.reading.preference": _one_of(*PREFERENCES),
    "data.reading.text_end": _one_of(*TEXT_ENDS),
    "data.reading.on_bad_row": _one_of(*ON_BAD_ROW),
    "data.packing": (
        lambda value: value in PACKINGS,
        f"must be one of {', '.join(PACKINGS)} (best_fit packs, none gives each example a row of its own)",
    ),
    "data.max_examples_per_sequence": _at_least(0),
    "data.supervised_quantile": _SHARE,
    "data.masking.train_on": (masking.names_roles, masking.TRAIN_ON),
    **{f"data.masking.{name}": _one_of(*known) for name, known in masking.CHOICES.items()},
    "batch.sequences": _at_least(1),
    "batch.micro_batches": _at_least(1),
    "objective.name": _known(OBJECTIVES),
    "objective.normalize": _one_of(*NORMALIZE),
    "objective.label_smoothing": _BELOW_ONE,
    "objective.z_loss": _at_least(0),
    "objective.neftune_alpha": _at_least(0),
    "objective.positions": _one_of("supervised", "all"),
    "objective.head_chunk_tokens": _at_least(0),
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
    "optimizer.betas": _BETAS,
    "optimizer.epsilon": _ABOVE_ZERO,  # what has no gradient, as rows of absent tokens, would move by 0 / 0
    "optimizer.momentum": _BELOW_ONE,
    "optimizer.decay_power": _SHARE,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.clip_norm": _at_least(0),
    "optimizer.max_skipped_in_a_row": _at_least(1),
    "ema.decay": _BELOW_ONE,
    "precision.params": _one_of(*_TRAINED),
    "precision.frozen": _one_of(*PRODUCT_DTYPES),
    "precision.quantized": _one_of(*KINDS),
    "precision.matmul": _one_of(*_TRAINED),
    "precision.activations": _one_of(*_TRAINED),
    "execution.layer_layout": _one_of("auto", "scan", "unrolled"),
    "execution.remat": _one_of("auto", *REMAT_POLICIES),
    "execution.attention": _one_of(*ATTENTION_BACKENDS),
    "evaluation.batch_sequences": _at_least(1),
    "evaluation.samples": _at_least(0),
    "evaluation.sample_tokens": _at_least(1),
    "checkpoint.keep_last": _at_least(1),
    "checkpoint.best_is": _one_of("min", "max"),
    "log.every": _at_least(1),
    "loader.threads": _at_least(0),
    "loader.batches_ahead": _at_least(1),
    "loader.tokenize_workers": _at_least(-1),
    "profile.start": _at_least(0),
    "profile.steps": _at_least(1),
}


_FILLED = ("data.mixture",)  # a section whose fields are those of a run alone


def _unread_options(config: ml_collections.ConfigDict) -> list[str]:
    """Options that only other update rules read, and that were asked for."""
    name, defaults = config.optimizer.name, config.defaults.optimizer
    return [
        f"--config.optimizer.{option}={config.optimizer[option]!r} is not read by --config.optimizer.name={name}; "
        "leave it out"
        for option in unread_options(name)
        if config.optimizer[option] != defaults[option]
    ]


def _unread_adapter_options(config: ml_collections.ConfigDict) -> list[str]:
    """Options of adapters that were asked for, and no adapter."""
    adapter, defaults = config.adapter, config.defaults.adapter
    if adapter.method != "none":
        return []
    return [
        f"--config.adapter.{option}={adapter[option]!r} is not read under --config.adapter.method=none; leave it at "
        f"{defaults[option]!r}, or for an adapter give --config=configs/sft.py:lora"
        for option in defaults
        if option != "method" and adapter[option] != defaults[option]
    ]


def _unread_final_share(config: ml_collections.ConfigDict) -> list[str]:
    schedule, share = config.optimizer.schedule, config.optimizer.final_share
    default = config.defaults.optimizer.final_share
    if schedule != "constant" or share == default:
        return []
    return [
        f"--config.optimizer.final_share={share!r} is not read by --config.optimizer.schedule={schedule}; leave it at "
        f"{default!r}"
    ]


def _schedule_free(config: ml_collections.ConfigDict) -> list[str]:
    if config.optimizer.name != "schedule_free":
        return []
    problems = []
    if config.optimizer.schedule != "constant":
        problems.append(
            f"--config.optimizer.schedule={config.optimizer.schedule!r}: schedule_free averages in place of a "
            "schedule; give --config.optimizer.schedule=constant"
        )
    if not config.optimizer.betas[0]:
        problems.append(
            f"--config.optimizer.betas={config.optimizer.betas!r}: schedule_free trains between an iterate and its "
            "average, of which the first beta is the average's share; give one above 0, 0.9 for example"
        )
    return problems


def _average(config: ml_collections.ConfigDict) -> list[str]:
    if not config.ema.evaluate or config.ema.decay:
        return []
    return ["--config.ema.evaluate=True: there is no average to evaluate; give --config.ema.decay=0.999, for example"]


def _groups(config: ml_collections.ConfigDict) -> list[str]:
    try:
        parse_groups(config.optimizer.groups)
    except ValueError as error:
        return [str(error)]
    return []


def _trained_weights(config: ml_collections.ConfigDict) -> list[str]:
    """What is trained, where it excludes another choice."""
    weights, last = config.trained.weights, config.trained.last_layers
    problems = []
    if has_adapters(config) and (weights or last):
        method = config.adapter.method
        under = "--config.adapter.train_new_tokens" if method == "none" else f"--config.adapter.method={method}"
        problems.append(
            f"--config.trained.weights={weights!r} --config.trained.last_layers={last}: under {under} all weights are "
            "frozen; leave them at () and 0"
        )
    if last and config.execution.layer_layout == "scan":
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


def _quantized(config: ml_collections.ConfigDict) -> list[str]:
    if config.precision.quantized == "none" or has_adapters(config):
        return []
    return [
        f"--config.precision.quantized={config.precision.quantized} is for frozen weights under an adapter; give "
        "--config.adapter.method=lora too"
    ]


def _frozen_dtype(config: ml_collections.ConfigDict) -> list[str]:
    default = config.defaults.precision.frozen
    if config.precision.frozen == default or not trains_all_weights(config):
        return []
    return [
        f"--config.precision.frozen={config.precision.frozen} is of weights that are not trained, and here all are; "
        f"leave it at {default}. The trained weights are --config.precision.params"
    ]


def _params_dtype(config: ml_collections.ConfigDict) -> list[str]:
    if config.precision.params == "float32" or not has_adapters(config):
        return []
    return [
        f"--config.precision.params={config.precision.params} is of trained weights, and what is trained beside frozen "
        "ones is kept in float32; leave it at float32. The frozen weights are --config.precision.frozen"
    ]


def _cleaning(config: ml_collections.ConfigDict) -> list[str]:
    return cleaning.problems_of(tuple(config.data.cleaning))


def _new_tokens(config: ml_collections.ConfigDict) -> list[str]:
    problems = problems_of(tuple(config.model.new_tokens))
    if config.adapter.train_new_tokens and not config.model.new_tokens:
        problems.append(
            "--config.adapter.train_new_tokens=True: there are no new rows to train; give --config.model.new_tokens too"
        )
    in_contents, default = config.model.new_tokens_in_contents, config.defaults.model.new_tokens_in_contents
    if not config.model.new_tokens and in_contents != default:
        problems.append(
            f"--config.model.new_tokens_in_contents={in_contents} is not read without --config.model.new_tokens; leave "
            f"it at {default}"
        )
    return problems


def _held_out_split(config: ml_collections.ConfigDict) -> list[str]:
    split = config.data.reading.held_out_split
    if not split or config.data.held_out:
        return []
    return [
        f"--config.data.reading.held_out_split={split!r}: there are no held-out rows; give --config.data.held_out too, "
        "or leave it empty"
    ]


def _reading(config: ml_collections.ConfigDict) -> list[str]:
    try:
        check_reading(reading_of(config.data.reading))
    except ValueError as error:
        return [str(error)]
    return []


TOGETHER: tuple[Callable[[ml_collections.ConfigDict], list[str]], ...] = (
    _unread_options,
    _unread_adapter_options,
    _unread_final_share,
    _schedule_free,
    _average,
    _groups,
    _trained_weights,
    _quantized,
    _frozen_dtype,
    _params_dtype,
    _cleaning,
    _new_tokens,
    _held_out_split,
    _reading,
    problems_in_mixture,
)


def _has(config: Any, name: str) -> bool:
    section, _, rest = name.partition(".")
    here = isinstance(config, ml_collections.ConfigDict) and section in config
    return here and (not rest or _has(config[section], rest))


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks what can be known from the config alone; the rest is checked where data and devices are known.

    Raises:
        ValueError: values that no run can have; names all their flags at once.
    """
    problems = [
        f"config.{name} is missing; a config has every field of configs/sft.py"
        for name in (*known_fields(), *_FILLED)
        if not _has(config, name)
    ]
    problems += [
        f"config.{name} is no field of configs/sft.py, and the result of a run with it would be refused; add it there, "
        "at the value that changes nothing"
        for name in unknown_fields(config.to_dict())
    ]
    if problems:
        raise ValueError("\n".join(problems))
    for name, (is_good, expected) in CHECKS.items():
        value = functools.reduce(operator.getitem, name.split("."), config)
        if not is_good(value):
            problems.append(f"--config.{name}={value!r} {expected}")
    if not problems:  # what belongs together is asked of values that are good on their own
        problems = [problem for check in TOGETHER for problem in check(config)]
    if problems:
        raise ValueError("\n".join(problems))
