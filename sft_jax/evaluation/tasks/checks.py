"""What is wrong with the entries of `config.evaluation.tasks`, before any file is read."""

import dataclasses

import ml_collections

from sft_jax.data.reading import OPTIONS
from sft_jax.data.records import check_reading, under_flags_of
from sft_jax.evaluation.scorers import make_scorer
from sft_jax.evaluation.scorers.imported import imported
from sft_jax.generation import Sampling
from sft_jax.options import TaskOptions

FLAG = "--config.evaluation.tasks"
KINDS = ("generate", "choose", "recite", "prefer")
CHOOSE_BY = ("logprob", "per_token", "unconditional")
# Of one kind, with the defaults that mean that they were not asked for.
_OF_GENERATE = (
    *("scorer", "scorer_options", "match_thinking", "max_new_tokens", "samples", "temperature", "top_k", "top_p"),
)
_OF_CHOOSE = ("choices", "choices_column", "choose_by")


def malformed_tasks(config: ml_collections.ConfigDict) -> list[str]:
    """Entries of which no options can be made; each problem names its flag."""
    fields = {field.name for field in dataclasses.fields(TaskOptions)}
    problems = []
    for name in config.evaluation.tasks:
        section = config.evaluation.tasks[name]
        is_section = isinstance(section, ml_collections.ConfigDict) and set(section) == fields
        if not is_section or not set(OPTIONS) <= set(section.reading):
            problems.append(f"{FLAG}.{name} must be what task(path, scorer=…) of configs/sft.py makes")
        elif section.reading.get("held_out_split"):
            problems.append(
                f"{FLAG}.{name}.reading.held_out_split={section.reading.held_out_split!r} is not read: the split of a "
                f"task is {FLAG}.{name}.reading.split"
            )
    return problems


def problems_in_task(name: str, options: TaskOptions, flag: str = FLAG) -> list[str]:
    """What is wrong with the options of a task; each problem names its flag."""
    start, problems = f"{flag}.{name}." if flag == FLAG else flag, []
    if not options.path:
        problems.append(f"{start}path is empty, and so is --config.data.held_out: there are no rows to measure")
    if options.kind not in KINDS and ":" not in options.kind:
        problems.append(f"{start}kind={options.kind!r} must be one of {', '.join(KINDS)}, or package.module:Class")
    if options.choose_by not in CHOOSE_BY:
        problems.append(f"{start}choose_by={options.choose_by!r} must be one of {', '.join(CHOOSE_BY)}")
    for field, least in (("max_new_tokens", 1), ("samples", 1), ("rows", 0)):
        if getattr(options, field) < least:
            problems.append(f"{start}{field}={getattr(options, field)} must be at least {least}")
    problems += _unread(start, options)
    checks = (
        lambda: Sampling(options.temperature, options.top_k, options.top_p),
        lambda: options.kind == "generate" and make_scorer(options.scorer, options.scorer_options),
        lambda: ":" in options.kind and imported(options.kind, "task"),
    )
    for check in checks:
        try:
            check()
        except ValueError as error:
            problems.append(f"{start.rstrip('.')}: {error}")
    try:
        with under_flags_of(options.reading):
            check_reading(options.reading)
    except ValueError as error:
        problems.append(str(error))
    return problems


def _unread(start: str, options: TaskOptions) -> list[str]:
    """Options that were asked for, and that nothing would read."""
    defaults = {field.name: field.default for field in dataclasses.fields(TaskOptions)} | {"scorer_options": {}}
    asked = {name for name, value in defaults.items() if getattr(options, name) != value}
    by_kind = {"generate": _OF_CHOOSE, "choose": _OF_GENERATE, "recite": (*_OF_GENERATE, *_OF_CHOOSE)}
    by_kind["prefer"] = by_kind["recite"]
    problems = [
        f"{start}{name}={getattr(options, name)!r} is not read by kind={options.kind}; leave it out"
        for name in by_kind.get(options.kind, ())
        if name in asked
    ]
    if options.samples > 1 and not options.temperature:
        problems.append(f"{start}samples={options.samples}: all are the same at temperature=0; give one above 0")
    if not options.temperature and asked & {"top_k", "top_p"} and options.kind == "generate":
        problems.append(f"{start}top_k and top_p are not read at temperature=0; give one above 0")
    if options.choices and options.choices_column:
        problems.append(f"{start}choices and choices_column: give one of the two")
    return problems
