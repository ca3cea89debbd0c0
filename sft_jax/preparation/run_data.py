"""Loads the data of a run: reads, cleans, renders, tokenizes and checks it, and makes its pack plan."""

import dataclasses
import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from sft_jax.audit.checks import CheckedData, LearningCurve, chosen_checks, run_checks
from sft_jax.audit.findings import Finding, most_severe_first
from sft_jax.audit.report import DataReport, data_report, token_pieces
from sft_jax.audit.verdict import verdict
from sft_jax.data.cleaning import Context, Sink, dropped_by_a_step, names_of_steps
from sft_jax.data.packing import PackingReport, packing_report, supervised_capacity
from sft_jax.data.plan import PackPlan, mixture_capacity
from sft_jax.data.plan.mixture import Mixture
from sft_jax.data.reading import held_out_reading_of
from sft_jax.data.records import Record, RecordReader
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import Tokenized, TokenizedExamples, dropped_where, group_dropped
from sft_jax.data.tokenized.cache import cache_directory
from sft_jax.data.tokenized.cache_key import file_digests
from sft_jax.data.tokenizing import NoExamplesError, nothing_left, tokenize_records
from sft_jax.models.vocabulary import with_new_tokens
from sft_jax.options import DataOptions, ModelOptions, Options
from sft_jax.preparation.benchmarks import files_of_benchmarks, read_benchmarks
from sft_jax.preparation.mixing import mixture_of, reader_of
from sft_jax.preparation.retrieved import Retriever, retriever_of
from sft_jax.preparation.train_examples import (
    CHECKED_RECORDS,
    ProgressFor,
    TrainingRecords,
    examples_key_of,
    training_examples,
    training_findings,
)
from sft_jax.progress import silent
from sft_jax.runs.base import load_base_tokenizer
from sft_jax.runs.workdir import flatten

FindingsOfRun = Callable[[Options, TokenizedExamples, PackPlan, Sequence[int]], list[Finding]]


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        renderer: chat template and tokenizer.
        examples: what is trained on, as tokens.
        plan: which of them form which batch, over the whole run.
        report: what is shown before training.
        checked: what the checks looked at; None where not all of them did.
        held_out_records: conversations kept for measuring; empty where the config names none.
        held_out: their tokens; None where there are none.
        held_out_targets: target slots of a held-out sequence.
        held_out_note: how many examples there are, and which rows are left out; empty where there are none.
        made_for: fields of the config that it was made of, by their names.
    """

    renderer: ConversationRenderer
    examples: TokenizedExamples
    plan: PackPlan
    report: DataReport
    checked: CheckedData | None
    held_out_records: list[Record]
    held_out: TokenizedExamples | None
    held_out_targets: int
    held_out_note: str
    made_for: Mapping[str, Any]

    def differs_from(self, options: Options) -> list[str]:
        """Fields of a config by which its data are other than these: of data, tokenizer, batch and seed."""
        wanted = _fields_of_data(options)
        differ = sorted(name for name in wanted.keys() | self.made_for if wanted.get(name) != self.made_for.get(name))
        date = options.data.date
        if date and date != self.renderer.now.date().isoformat():
            differ.append("data.date")
        return differ

    def check_made_for(self, options: Options) -> None:
        """Checks that it was made of a config with the same data, tokenizer, batch and seed.

        Raises:
            ValueError: it was not; names what differs.
        """
        if differ := self.differs_from(options):
            raise ValueError(
                f"the data that was given is of another config: {', '.join(f'--config.{name}' for name in differ)} "
                "differ; give load_data(options)"
            )

    def fingerprints(self) -> dict[str, str]:
        """What the numbers depend on, of the data."""
        prints = {"train": self.examples.fingerprint()}
        return prints if self.held_out is None else prints | {"held_out": self.held_out.fingerprint()}


# Sections and fields of a config that the data of a run depends on, and those within that change nothing of it.
_MADE_OF = ("data", "model", "seed", "batch.sequences", "objective.positions")
_NOT_MADE_OF = ("data.date", "data.fail_on", "data.cache")


def _fields_of_data(options: Options) -> dict[str, Any]:
    is_of = lambda name, sections: any(name == section or name.startswith(f"{section}.") for section in sections)
    fields = flatten(dataclasses.asdict(options))
    fields["data.reading.held_out_split"] = fields.pop("data.held_out_split")
    return {name: value for name, value in fields.items() if is_of(name, _MADE_OF) and not is_of(name, _NOT_MADE_OF)}


def make_renderer(model: ModelOptions, data: DataOptions) -> ConversationRenderer:
    """Tokenizer and chat template of `config.model`, with its new tokens, and what `config.data.masking` trains.

    Templates that write the time are told the beginning of `config.data.date`, or of today.

    Raises:
        ValueError: no template, neither in the checkpoint nor in the config; or a new token that is none.
    """
    tokenizer = with_new_tokens(load_base_tokenizer(model.source, model.revision or None), model)
    template = None
    if model.chat_template:
        path = epath.Path(model.chat_template)
        if not path.exists():
            raise ValueError(f"--config.model.chat_template={path} is not a file; expected a Jinja template")
        template = path.read_text()
    date = datetime.date.fromisoformat(data.date) if data.date else datetime.date.today()
    now = datetime.datetime.combine(date, datetime.time())
    return ConversationRenderer(tokenizer, template, data.masking, now)


def load_data(
    options: Options,
    progress: ProgressFor | None = None,
    *,
    thorough: bool = False,
    on_change: Sink | None = None,
    curve: LearningCurve | None = None,
    also: FindingsOfRun | None = None,
) -> Data:
    """Reads, cleans, renders, tokenizes and checks the data of a config, and makes its pack plan.

    Args:
        options: of the run.
        progress: given a title and how many there are (see `ProgressBar`), shows how far it is; None: nothing is shown.
        thorough: all checks on all records and a verdict; else the quick checks on the first records, whose findings
            are kept in the cache like the examples.
        on_change: given every record that cleaning drops or changes, as it was.
        curve: what earlier runs say of more data, for the verdict.
        also: what else to look for once there is a plan, by options, examples, plan and ids of new tokens.
    """
    if not (options.data.train or options.data.mixture):
        raise ValueError("--config.data.train is empty; give a file, a pattern, a saved data set or a name of the hub")
    show = progress or silent
    renderer, reader = make_renderer(options.model, options.data), reader_of(options.data)
    measured = _read_measured(options.data, reader.files)
    retriever = retriever_of(options.data.retrieval, cache_directory(options.data.cache))
    keep = None if thorough else CHECKED_RECORDS
    records = TrainingRecords(options.data, measured.context, keep, on_change, reader, retriever)
    cache = cache_directory(options.data.cache) if records.reader.files and not thorough else None
    cache_of_findings = None if measured.digests is None else cache
    cache_of_examples = cache_of_findings if options.data.cleaning else cache
    # Where nothing is kept, the files are not read for a key.
    key = {}
    if cache_of_examples is not None:
        key = examples_key_of(options.data, records, renderer, measured.digests or [], show)
    try:
        tokenized, origin = training_examples(options, records, renderer, show, cache_of_examples, key)
    except NoExamplesError as error:
        raise NoExamplesError(f"{error}{_too_long(options.data, error)}") from error
    examples = tokenized.examples
    _check_sources(options.data, tokenized)
    plan = _plan(options, examples)
    held_out = _held_out(options, renderer, measured, retriever)
    checked = functools.cache(lambda: _checked_data(options, renderer, records, tokenized, held_out, measured))
    look = lambda: run_checks(checked(), show("checking", len(chosen_checks(not thorough))), quick=not thorough)
    findings = look() if thorough else training_findings(cache_of_findings, key, measured.digests or [], look)
    new_ids = renderer.tokenizer.convert_tokens_to_ids(list(options.model.new_tokens))
    findings = most_severe_first([*findings, *_unread_options(tokenized.notes["unread_options"])])
    if also is not None:
        findings = most_severe_first([*findings, *also(options, examples, plan, new_ids)])
    report = data_report(
        examples,
        tokenized.dropped,
        _packing_report(options, plan, examples),
        token_pieces(*examples.example(0), renderer.tokenizer),
        read=[*tokenized.notes["read"], origin],
        cleaning=tokenized.notes["cleaning"],
        counts=tokenized.counts,
        changed=tokenized.changed,
        tokenizing=tokenized.notes["made"],
        checked=_records_per_check(len(tokenized.keys), thorough),
        findings=findings,
        verdict=verdict(checked(), findings, curve) if thorough else None,
        in_short=not thorough,
    )
    made_for = _fields_of_data(options)
    return Data(renderer, examples, plan, report, checked() if thorough else None, **held_out, made_for=made_for)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """Held-out rows and benchmark prompts, as read: training rows may be cleaned of them, and are checked for them.

    Attributes:
        reader: of the held-out rows; None where there are none.
        held_out: their records.
        benchmarks: prompts of benchmarks, by the name of their file.
        digests: of all of their files, taken before they were read; None where rows are streamed and cannot have any.
    """

    reader: RecordReader | None
    held_out: list[Record]
    benchmarks: dict[str, list[Record]]
    digests: list[list[str]] | None

    @property
    def context(self) -> Context:
        """As cleaning steps want it."""
        return Context(self.held_out, [record for records in self.benchmarks.values() for record in records])


def _read_measured(options: DataOptions, trained: Sequence[tuple[str, epath.Path]]) -> _Measured:
    """Reads both; `trained` are the training files: rows of a held-out file of the same name get ids of their own."""
    reader, files = _held_out_reader(options, trained), files_of_benchmarks(options.benchmarks)
    streamed = reader is not None and not reader.files
    digests = None if streamed else file_digests(files + (reader.files if reader else []))
    return _Measured(reader, list(reader or ()), read_benchmarks(options.benchmarks), digests)


def _unread_options(flags: Sequence[str]) -> list[Finding]:
    """Findings: options of reading that were given and that no row of its format reads."""
    return [
        Finding("unread_options", "info", f"{flag} changes nothing: no row is of a format that reads it", 0)
        for flag in flags
    ]


def _check_sources(options: DataOptions, tokenized: Tokenized) -> None:
    """Checks that something is left of every source of a mixture.

    Raises:
        NoExamplesError: nothing is; says why.
    """
    for name in options.mixture:
        if name in tokenized.examples.sources.names:
            continue
        dropped = [row for row in tokenized.dropped if row.id.startswith(f"{name}/")]
        error = nothing_left(len(dropped), dropped)
        where = f"the source {name!r} of the mixture has no row that can be trained on; mend it or remove it."
        raise NoExamplesError(f"{where} {error}{_too_long(options, error)}", error.longest)


def _plan(options: Options, examples: TokenizedExamples) -> PackPlan:
    mixture = mixture_of(options.data)
    return PackPlan(
        examples,
        sequence_length=options.data.sequence_length,
        sequence_targets=_sequence_targets(examples, options, mixture),
        sequences_per_batch=options.batch.sequences,
        seed=options.seed,
        packing=options.data.packing,
        max_examples_per_sequence=options.data.max_examples_per_sequence,
        mixture=mixture,
    )


def _packing_report(options: Options, plan: PackPlan, examples: TokenizedExamples) -> PackingReport:
    return packing_report(
        examples,
        sequence_length=plan.sequence_length,
        sequence_targets=plan.sequence_targets,
        seed=options.seed,
        packing=options.data.packing,
        max_examples_per_sequence=options.data.max_examples_per_sequence,
        bins=plan.first_block,
        is_epoch=plan.has_epochs,
    )


def _checked_data(
    options: Options,
    renderer: ConversationRenderer,
    records: TrainingRecords,
    tokenized: Tokenized,
    held_out: dict[str, Any],
    measured: _Measured,
) -> CheckedData:
    """What checks look at: texts and examples of all records or of the first, and hashes of all."""
    first = records.read_first()
    examples = tokenized.examples.of_first(first)
    dropped = dropped_where(tokenized.dropped, lambda reason: not dropped_by_a_step(reason))
    masking = options.data.masking
    return CheckedData(
        first,
        examples,
        dropped,
        renderer.tokenizer,
        sequence_length=options.data.sequence_length,
        stop_ids=renderer.stop_ids,
        held_out_records=held_out["held_out_records"],
        benchmarks=measured.benchmarks,
        end_of_turn=masking.end_of_turn,
        too_long=masking.too_long,
        whole=tokenized,
        trains_answers="assistant" in masking.roles(),
        turn_headers=renderer.turn_headers,
        trains_last=masking.train_on == "last",
        new_tokens=options.model.new_tokens,
        cleaning=names_of_steps(options.data.cleaning),
    )


def _records_per_check(records: int, thorough: bool) -> dict[str, int]:
    """How many records each check looks at."""
    of_texts = records if thorough else min(records, CHECKED_RECORDS)
    return {name: records if check.by_keys else of_texts for name, check in chosen_checks(quick=not thorough).items()}


def _held_out_reader(options: DataOptions, trained: Sequence[tuple[str, epath.Path]]) -> RecordReader | None:
    if not options.held_out:
        return None
    return RecordReader(options.held_out, held_out_reading_of(options.reading, options.held_out_split), trained)


def _held_out(
    options: Options,
    renderer: ConversationRenderer,
    measured: _Measured,
    retriever: Retriever | None,
) -> dict[str, Any]:
    """The fields of `Data` that are about held-out data."""
    reader, records = measured.reader, measured.held_out
    if reader is None:
        return {"held_out_records": [], "held_out": None, "held_out_targets": 0, "held_out_note": ""}
    notes = reader.notes
    if retriever is not None:
        records = list(retriever(records))
        found = sum(record.without_passages is not None for record in records)
        notes = [*notes, retriever.note(found, len(records), "held-out ")]
    try:
        examples, dropped = tokenize_records(records, renderer, options.data.sequence_length)
    except NoExamplesError as error:
        raise NoExamplesError(_nothing_held_out(options.data, error)) from error
    dropped = [*reader.dropped, *dropped]
    kept, trained = set(examples.ids), int(examples.supervised.sum())
    note = f"Held out: {len(examples)} examples, {trained:,} supervised tokens ({'; '.join(notes)})."
    for reason, group in group_dropped(dropped).items():
        note += f"\n  {len(group)} more dropped, {reason}: {', '.join(row.id for row in group[:5])}"
        note += ", …" if len(group) > 5 else ""
    return {
        "held_out_records": [record for record in records if record.id in kept],
        "held_out": examples,
        "held_out_targets": _sequence_targets(examples, options),
        "held_out_note": note,
    }


def _nothing_held_out(options: DataOptions, error: NoExamplesError) -> str:
    return f"{options.held_out}: no held-out row is left to measure. {error}{_too_long(options, error)}"


def _too_long(options: DataOptions, error: NoExamplesError) -> str:
    """Flags that keep examples that are too long; empty where none is."""
    if not error.longest:
        return ""
    ways = {"truncate_left": "by whole turns, where there are several", "truncate_right": "at the end"}
    flags = [f"--config.data.masking.too_long={way} ({how})" for way, how in ways.items()]
    shorter = [flag for way, flag in zip(ways, flags, strict=True) if way != options.masking.too_long]
    return (
        f"\nExamples are whole under --config.data.sequence_length={error.longest}, if the model has so many "
        f"positions; those longer than {options.sequence_length} are shortened by {' or '.join(shorter)}"
    )


def _sequence_targets(examples: TokenizedExamples, options: Options, mixture: Mixture | None = None) -> int:
    if options.objective.positions == "all":
        return options.data.sequence_length
    sizes = (options.data.sequence_length, options.data.supervised_quantile)
    how = {"packing": options.data.packing, "max_examples_per_sequence": options.data.max_examples_per_sequence}
    if mixture is None:
        return supervised_capacity(examples.lengths, examples.supervised, *sizes, **how)
    return mixture_capacity(examples, mixture, *sizes, **how)
