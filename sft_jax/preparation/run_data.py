"""Loads the data of a run: reads, cleans, renders, tokenizes and checks it, and makes its pack plan."""

import dataclasses
import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from sft_jax.agreement import agreed
from sft_jax.audit.checks import CheckedData, LearningCurve, chosen_checks, run_checks
from sft_jax.audit.findings import Finding, most_severe_first
from sft_jax.audit.report import DataReport, data_report, token_pieces
from sft_jax.audit.verdict import verdict
from sft_jax.data.cleaning import Sink, dropped_by_a_step, names_of_steps
from sft_jax.data.packing import PackingReport, packing_report, supervised_capacity
from sft_jax.data.plan import PackPlan, mixture_capacity
from sft_jax.data.plan.mixture import Mixture
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import Counts, Tokenized, TokenizedExamples, dropped_where
from sft_jax.data.tokenized.cache import cache_directory
from sft_jax.data.tokenizing import NoExamplesError, nothing_left
from sft_jax.models.vocabulary import with_new_tokens
from sft_jax.objectives import samples_groups
from sft_jax.options import DataOptions, ModelOptions, Options
from sft_jax.preparation.judged import examples_for, left_out_note
from sft_jax.preparation.measured import Measured, held_out_of, read_measured, too_long_advice
from sft_jax.preparation.mixing import mixture_of, reader_of
from sft_jax.preparation.retrieved import retriever_of
from sft_jax.preparation.together import read_the_same
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
from sft_jax.runs.workdir import flatten, is_under

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
        train_records: what is trained on, as conversations; empty where answers are not sampled.
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
    train_records: Sequence[Record] = ()

    def differs_from(self, options: Options) -> list[str]:
        """Fields of a config by which its data are other than these: of data, tokenizer, batch and seed."""
        return _differences(_fields_of_data(options, _MADE_OF), self.made_for, options, self.renderer)

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
_READ_OF = ("data", "model")  # of them, those that its rows and their tokens depend on
_MADE_OF = (
    *(*_READ_OF, "seed", "batch.sequences", "objective.positions"),
    *("objective.name", "rollouts.prompts"),
)
_NOT_MADE_OF = ("data.date", "data.fail_on", "data.cache")


def _differences(
    wanted: Mapping[str, Any], made_for: Mapping[str, Any], options: Options, renderer: ConversationRenderer
) -> list[str]:
    """Fields by which data are not those that are wanted, the date that their templates are told among them."""
    differ = sorted(name for name in wanted.keys() | made_for if wanted.get(name) != made_for.get(name))
    date = options.data.date
    return [*differ, "data.date"] if date and date != renderer.now.date().isoformat() else differ


def _fields_of_data(options: Options, made_of: Sequence[str]) -> dict[str, Any]:
    fields = flatten(dataclasses.asdict(options))
    fields["data.reading.held_out_split"] = fields.pop("data.held_out_split")
    return {
        name: value for name, value in fields.items() if is_under(name, made_of) and not is_under(name, _NOT_MADE_OF)
    }


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
    return read_data(options, progress, thorough=thorough, on_change=on_change).planned(options, curve, also)


@dataclasses.dataclass(frozen=True)
class ReadData:
    """The data of a run but for what batch and seed make of them: runs that differ in these read them once.

    Attributes:
        renderer: chat template and tokenizer.
        tokenized: what is trained on, and what became of the other rows.
        origin: where it comes from, in words.
        held_out_records: conversations kept for measuring.
        held_out: their tokens; None where there are none.
        held_out_note: see `Data`.
        findings: of the checks.
        checked: what the checks looked at; None where not all of them did.
        made_for: fields of the config that it was made of, by their names.
        train_records: what is trained on, as conversations; empty where answers are not sampled.
    """

    renderer: ConversationRenderer
    tokenized: Tokenized
    origin: str
    held_out_records: list[Record]
    held_out: TokenizedExamples | None
    held_out_note: str
    findings: Sequence[Finding]
    checked: CheckedData | None
    made_for: Mapping[str, Any]
    train_records: Sequence[Record] = ()

    def differs_from(self, options: Options) -> list[str]:
        """Fields of a config by which what it reads is other than this."""
        return _differences(_fields_of_data(options, _READ_OF), self.made_for, options, self.renderer)

    def planned(self, options: Options, curve: LearningCurve | None = None, also: FindingsOfRun | None = None) -> Data:
        """The data of a run that reads this; `curve` and `also` as in `load_data`."""
        tokenized, thorough = examples_for(options, self.tokenized), self.checked is not None
        examples, held_out, note = tokenized.examples, self.held_out, self.held_out_note
        if held_out is not None:
            found = examples_for(options, Tokenized(held_out, [], Counts()), held_out=True)
            held_out, note = found.examples, note + left_out_note(found.dropped)
        plan = _plan(options, examples)
        findings = list(self.findings)
        if also is not None:
            new_ids = self.renderer.tokenizer.convert_tokens_to_ids(list(options.model.new_tokens))
            findings = most_severe_first([*findings, *also(options, examples, plan, new_ids)])
        report = data_report(
            examples,
            tokenized.dropped,
            _packing_report(options, plan, examples),
            token_pieces(*examples.example(0), self.renderer.tokenizer),
            read=[*tokenized.notes["read"], self.origin],
            cleaning=tokenized.notes["cleaning"],
            counts=tokenized.counts,
            changed=tokenized.changed,
            tokenizing=tokenized.notes["made"],
            checked=_records_per_check(len(tokenized.keys), thorough),
            findings=findings,
            verdict=verdict(self.checked, findings, curve) if thorough else None,
            in_short=not thorough,
            templates=self.renderer.template_properties() if thorough else None,
        )
        return Data(
            self.renderer,
            examples,
            plan,
            report,
            self.checked,
            self.held_out_records,
            held_out,
            0 if held_out is None else _sequence_targets(held_out, options),
            note,
            made_for=_fields_of_data(options, _MADE_OF),
            train_records=self.train_records,
        )


def read_data(
    options: Options,
    progress: ProgressFor | None = None,
    *,
    thorough: bool = False,
    on_change: Sink | None = None,
) -> ReadData:
    """Reads, cleans, renders, tokenizes and checks the data of a config; for the arguments see `load_data`."""
    if not (options.data.train or options.data.mixture):
        raise ValueError("--config.data.train is empty; give a file, a pattern, a saved data set or a name of the hub")
    show = progress or silent
    with agreed():  # what one process cannot read ends all, before they need one another
        renderer, reader = make_renderer(options.model, options.data), reader_of(options.data)
        measured = read_measured(options.data, reader.files)
        retriever = retriever_of(options.data.retrieval, cache_directory(options.data.cache))
        keep = None if thorough else CHECKED_RECORDS
        records = TrainingRecords(options.data, measured.context, keep, on_change, reader, retriever)
    cache = cache_directory(options.data.cache) if records.reader.files and not thorough else None
    cache_of_findings = None if measured.digests is None else cache
    cache_of_examples = cache_of_findings if options.data.cleaning else cache
    shared = read_the_same(records.reader.files)
    # Where nothing is kept, the files are not read for a key.
    key = {}
    if cache_of_examples is not None:
        key = examples_key_of(options.data, records, renderer, measured.digests or [], show, shared)
    try:
        tokenized, origin = training_examples(options, records, renderer, show, cache_of_examples, key, shared)
    except NoExamplesError as error:
        raise NoExamplesError(f"{error}{too_long_advice(options.data, error)}") from error
    _check_sources(options.data, tokenized)
    held_out = held_out_of(options.data, renderer, measured, retriever)
    checked = functools.cache(lambda: _checked_data(options, renderer, records, tokenized, held_out, measured))
    look = lambda: run_checks(checked(), show("checking", len(chosen_checks(not thorough))), quick=not thorough)
    findings = look() if thorough else training_findings(cache_of_findings, key, measured.digests or [], look)
    findings = most_severe_first([*findings, *_unread_options(tokenized.notes["unread_options"])])
    return ReadData(
        renderer,
        tokenized,
        origin,
        **held_out,
        findings=findings,
        checked=checked() if thorough else None,
        made_for=_fields_of_data(options, _READ_OF),
        train_records=_kept_records(options, records),
    )


def _kept_records(options: Options, records: TrainingRecords) -> list[Record]:
    """All training records, where their answers are sampled and judged."""
    if not samples_groups(options.objective.name):
        return []
    return [record for record in records if isinstance(record, Record)]


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
        raise NoExamplesError(f"{where} {error}{too_long_advice(options, error)}", error.longest)


def _plan(options: Options, examples: TokenizedExamples) -> PackPlan:
    """The order; where answers are sampled, a bin is a row that a step asks about."""
    mixture, sampled = mixture_of(options.data), samples_groups(options.objective.name)
    return PackPlan(
        examples,
        sequence_length=options.data.sequence_length,
        sequence_targets=_sequence_targets(examples, options, mixture),
        sequences_per_batch=options.rollouts.prompts if sampled else options.batch.sequences,
        seed=options.seed,
        packing="none" if sampled else options.data.packing,
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
    measured: Measured,
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


def _sequence_targets(examples: TokenizedExamples, options: Options, mixture: Mixture | None = None) -> int:
    if options.objective.positions == "all":
        return options.data.sequence_length
    slots = _slots_of_targets(examples, options, mixture)
    # Where slot i would be position i, the last of a trunk would have one slot for all branches.
    is_every_position = slots == options.data.sequence_length
    return slots + 1 if is_every_position and examples.branches is not None else slots


def _slots_of_targets(examples: TokenizedExamples, options: Options, mixture: Mixture | None) -> int:
    sizes = (options.data.sequence_length, options.data.supervised_quantile)
    how = {"packing": options.data.packing, "max_examples_per_sequence": options.data.max_examples_per_sequence}
    if mixture is None:
        return supervised_capacity(examples.lengths, examples.supervised, *sizes, **how)
    return mixture_capacity(examples, mixture, *sizes, **how)
