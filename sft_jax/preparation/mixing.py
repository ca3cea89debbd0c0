"""What `config.data` reads and how it is mixed: one data set, or the sources of `config.data.mixture`."""

import dataclasses
from collections.abc import Sequence

import ml_collections

from sft_jax.data.mixed_records import MixedReader
from sft_jax.data.plan.mixture import Mixture, Schedule, Source, problems_of
from sft_jax.data.reading import DEFAULT, FLAGS, OPTIONS, Reading, flags_of_source, under_flags_of
from sft_jax.data.records import RecordReader, check_reading
from sft_jax.options import DataOptions, SourceOptions

FIELDS = ("path", "weight", "epochs", "replacement", "reading")
_FLAG = "--config.data.mixture"


def reader_of(options: DataOptions) -> RecordReader | MixedReader:
    """What reads the training rows.

    Raises:
        RecordError: there are no such files; in a mixture, names the source.
    """
    if not options.mixture:
        return RecordReader(options.train, options.reading)
    return MixedReader({name: (source.path, source.reading) for name, source in options.mixture.items()})


def name_of(options: DataOptions) -> str:
    """A name of the training data, for people: the data set's path, or the names of the sources."""
    return options.train or ", ".join(options.mixture)


def ignored_columns(options: DataOptions) -> list[str]:
    """The keys and columns that `reading.ignore` leaves out, of the data set or of any source."""
    readings = [options.reading, *(source.reading for source in options.mixture.values())]
    return list(dict.fromkeys(name for reading in readings for name in reading.ignore))


def readings_of_sources(options: DataOptions) -> dict[str, dict]:
    """What the examples of each source depend on beside the bytes of its files; shares are not among it."""
    return {name: dataclasses.asdict(source.reading) for name, source in options.mixture.items()}


def mixture_of(options: DataOptions) -> Mixture | None:
    """How sources are mixed; None where there is one data set.

    Raises:
        ValueError: see `problems_in_mixture`.
    """
    sources = tuple(_source(name, source) for name, source in options.mixture.items())
    return Mixture(sources, options.mixture_packing) if sources else None


def _source(name: str, options: SourceOptions) -> Source:
    weight = Schedule.parse(options.weight) if options.weight else None
    return Source(name, weight, options.epochs, options.replacement)


def malformed_sources(config: ml_collections.ConfigDict) -> list[str]:
    """Sources of `config.data.mixture` of which no options can be made; each problem names its flag."""
    problems = []
    for name in config.data.mixture:
        flag, section = f"{_FLAG}.{name}", config.data.mixture[name]
        is_section = isinstance(section, ml_collections.ConfigDict) and set(section) == set(FIELDS)
        if not is_section or not set(config.data.reading) <= set(section.reading):
            problems.append(
                f"{flag} must be what source(path, weight=…) or source(path, epochs=…) of configs/sft.py makes"
            )
        elif section.reading.held_out_split:
            problems.append(
                f"{flag}.reading.held_out_split={section.reading.held_out_split!r} is not read: held-out rows are "
                f"those of --config.data.held_out, and {FLAGS}held_out_split is their split"
            )
    return problems


def problems_in_mixture(options: DataOptions) -> list[str]:
    """What is wrong with the sources of a mixture and with what does not go with them; each problem names its flag."""
    names, problems = list(options.mixture), []
    if not names:
        return []
    if options.train:
        problems.append(f"--config.data.train={options.train}: {_FLAG} has {', '.join(names)}; give one of the two")
    for name in names:
        problems += _problems_in_source(name, options.mixture[name])
    if not options.held_out:
        problems += _unread_options(options.reading, names)
    if not problems:
        mixed = problems_of(tuple(_source(name, source) for name, source in options.mixture.items()))
        of_a_source = tuple(f"{name}{mark}" for name in names for mark in ":.")
        problems += [f"{_FLAG}{'.' if text.startswith(of_a_source) else ': '}{text}" for text in mixed]
    return problems


def _unread_options(reading: Reading, names: Sequence[str]) -> list[str]:
    """Problems: options of `config.data.reading` that nothing reads, since sources have their own."""
    return [
        f"{FLAGS}{option}={getattr(reading, option)!r} is not read: each source of {_FLAG} has options of its own, "
        f"{flags_of_source(names[0])}{option} and so on; leave it at {getattr(DEFAULT, option)!r}"
        for option in OPTIONS
        if getattr(reading, option) != getattr(DEFAULT, option)
    ]


def _problems_in_source(name: str, options: SourceOptions) -> list[str]:
    flag = f"{_FLAG}.{name}"
    problems = [] if options.path else [f"{flag}.path is empty; give a file, a pattern or a data set"]
    try:
        with under_flags_of(options.reading):
            check_reading(options.reading)
    except ValueError as error:
        problems.append(f"{flag}: {error}")
    try:
        _source(name, options)
    except ValueError as error:
        problems.append(f"{flag}.weight: {error}")
    return problems
