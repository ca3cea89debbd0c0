"""From `config.data` to what is read and how it is mixed: one data set, or the sources of `config.data.mixture`."""

from collections.abc import Collection, Sequence

import ml_collections

from sft_jax.data.mixed_records import MixedReader
from sft_jax.data.plan.mixture import PACKING, Mixture, Schedule, Source, problems_of
from sft_jax.data.reading import DEFAULT, FLAGS, OPTIONS, Reading, flags_of_source, reading_of, under_flags_of
from sft_jax.data.records import RecordReader, check_reading

FIELDS = ("path", "weight", "epochs", "replacement", "reading")
_FLAG = "--config.data.mixture"


def reader_of(config: ml_collections.ConfigDict) -> RecordReader | MixedReader:
    """What reads the training rows.

    Raises:
        RecordError: there are no such files; in a mixture, names the source.
    """
    if not config.data.mixture:
        return RecordReader(config.data.train, reading_of(config.data.reading))
    sources = config.data.mixture
    return MixedReader({name: (sources[name].path, _reading(name, sources[name])) for name in sources})


def _reading(name: str, section: ml_collections.ConfigDict) -> Reading:
    return reading_of(section.reading, flags=flags_of_source(name))


def name_of(config: ml_collections.ConfigDict) -> str:
    """What the training rows are called, for people: the data set's path, or the names of the sources."""
    return str(config.data.train) or ", ".join(config.data.mixture)


def ignored_columns(config: ml_collections.ConfigDict) -> list[str]:
    """The keys and columns that `reading.ignore` leaves out, of the data set or of any source."""
    readings = [config.data.reading, *(config.data.mixture[name].reading for name in config.data.mixture)]
    return list(dict.fromkeys(name for reading in readings for name in reading.ignore))


def readings_of_sources(config: ml_collections.ConfigDict) -> dict[str, dict]:
    """What the rows of each source depend on beside the bytes of its files; shares are not among it."""
    return {name: config.data.mixture[name].reading.to_dict() for name in config.data.mixture}


def mixture_of(config: ml_collections.ConfigDict) -> Mixture | None:
    """How sources are mixed; None where there is one data set.

    Raises:
        ValueError: see `problems_in_mixture`.
    """
    packing = config.data.mixture_packing
    sources = tuple(_source(name, config.data.mixture[name]) for name in config.data.mixture)
    return Mixture(sources, packing) if sources else None


def _source(name: str, section: ml_collections.ConfigDict) -> Source:
    weight = Schedule.parse(section.weight) if section.weight else None
    return Source(name, weight, section.epochs, section.replacement)


def problems_in_mixture(config: ml_collections.ConfigDict) -> list[str]:
    """What is wrong with `config.data.mixture` and with what does not go with it; each problem names its flag."""
    names, problems = list(config.data.mixture), []
    default = config.defaults.data.mixture_packing
    if config.data.mixture_packing not in PACKING:
        problems.append(
            f"--config.data.mixture_packing={config.data.mixture_packing!r} must be one of {', '.join(PACKING)}"
        )
    elif not names and config.data.mixture_packing != default:
        problems.append(
            f"--config.data.mixture_packing={config.data.mixture_packing} is not read without sources in {_FLAG}; "
            f"leave it at {default}"
        )
    if names and config.data.train:
        problems.append(f"--config.data.train={config.data.train}: {_FLAG} has {', '.join(names)}; give one of the two")
    for name in names:
        problems += _problems_in_source(name, config.data.mixture[name], config.data.reading)
    if names and not config.data.held_out:
        problems += _unread_options(config.data.reading, names)
    if names and not problems:
        mixed = problems_of(tuple(_source(name, config.data.mixture[name]) for name in names))
        of_a_source = tuple(f"{name}{mark}" for name in names for mark in ":.")
        problems += [f"{_FLAG}{'.' if text.startswith(of_a_source) else ': '}{text}" for text in mixed]
    return problems


def _unread_options(reading: ml_collections.ConfigDict, names: Sequence[str]) -> list[str]:
    """Options of the rows that are read beside a mixture, of which there are none."""
    asked = reading_of(reading)
    return [
        f"{FLAGS}{option}={getattr(asked, option)!r} is not read: each source of {_FLAG} has options of its own, "
        f"{flags_of_source(names[0])}{option} and so on; leave it at {getattr(DEFAULT, option)!r}"
        for option in OPTIONS
        if getattr(asked, option) != getattr(DEFAULT, option)
    ]


def _problems_in_source(name: str, section: ml_collections.ConfigDict, reading_fields: Collection[str]) -> list[str]:
    flag = f"{_FLAG}.{name}"
    is_section = isinstance(section, ml_collections.ConfigDict) and set(section) == set(FIELDS)
    if not is_section or not set(reading_fields) <= set(section.reading):
        return [f"{flag} must be what source(path, weight=…) or source(path, epochs=…) of configs/sft.py makes"]
    problems = [] if section.path else [f"{flag}.path is empty; give a file, a pattern or a data set"]
    if section.reading.held_out_split:
        problems.append(
            f"{flag}.reading.held_out_split={section.reading.held_out_split!r} is not read: held-out rows are those of "
            f"--config.data.held_out, and {FLAGS}held_out_split is their split"
        )
    try:
        with under_flags_of(reading := _reading(name, section)):
            check_reading(reading)
    except ValueError as error:
        problems.append(f"{flag}: {error}")
    try:
        _source(name, section)
    except ValueError as error:
        problems.append(f"{flag}.weight: {error}")
    return problems
