"""The data report: what will be trained on, shown before training starts.

It holds the numbers of examples and tokens, the supervised share, lengths, how well they pack, what cleaning changed,
what was dropped and why, one example with its trained part marked, findings, and last the verdict. It is printed on the
terminal (rich), written to TensorBoard (Markdown) and saved as numbers (JSON).
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sft_jax.audit.checks import CHECKS, Finding, Verdict
from sft_jax.audit.report.findings import (
    cell,
    finding_values,
    findings_markdown,
    findings_rich,
    verdict_markdown,
    verdict_rich,
    verdict_values,
)
from sft_jax.data.cleaning import CleaningLog, cleaning_values
from sft_jax.data.packing import PackingReport
from sft_jax.data.rendering import RenderedExample
from sft_jax.data.rendering.properties import property_lines
from sft_jax.data.tokenized import Counts, DroppedRow, TokenizedExamples, group_dropped
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
_NAMES_SHOWN = 5  # dropped rows named for each reason
_TRAINED_STYLE = "bold green"

Piece = tuple[str, bool]  # text, and whether it is trained


@dataclasses.dataclass(frozen=True)
class DataReport:
    """One report in three forms.

    Attributes:
        numbers: plain values, ready for JSON; findings and verdict among them.
        example: one example as (text, trained) runs; empty for none.
        findings: of the checks, the worst first.
        verdict: None where it was not asked for.
        in_short: show only findings that are not just for information, and no verdict.
    """

    numbers: dict
    example: Sequence[Piece] = ()
    findings: tuple[Finding, ...] = ()
    verdict: Verdict | None = None
    in_short: bool = True

    def __rich__(self) -> RenderableType:
        """For the terminal: `rich.print(report)`."""
        parts: list[RenderableType] = [_table("Training data", report_lines(self.numbers))]
        if self.numbers["cleaning"]["changed"]:
            changed = [(f"{e['records']:,} x {e['reason']}", e["step"]) for e in self.numbers["cleaning"]["changed"]]
            parts.append(_table("Changed rows", changed))
        if self.numbers["dropped"]:
            dropped = [(f"{entry['rows']} x {reason}", _names(entry)) for reason, entry in _reasons(self.numbers)]
            parts.append(_table("Dropped rows", dropped))
        if self.example:
            parts.append(Panel(coloured(self.example), title="One example; the green part is trained", expand=False))
        parts.append(findings_rich(self.findings, self.in_short))
        if self.verdict is not None:
            parts.append(verdict_rich(self.verdict))
        return Group(*parts)

    def markdown(self) -> str:
        """For TensorBoard's text tab."""
        lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in report_lines(self.numbers))]
        changed = self.numbers["cleaning"]["changed"]
        if changed:
            lines += ["", "| changed | step |", "|---|---|"]
            lines += [f"| {e['records']:,} x {cell(e['reason'])} | {e['step']} |" for e in changed]
        if self.numbers["dropped"]:
            lines += ["", "| dropped | rows |", "|---|---|"]
            lines += [
                f"| {entry['rows']} x {cell(reason)} | {cell(_names(entry))} |"
                for reason, entry in _reasons(self.numbers)
            ]
        if self.example:
            lines += ["", "One example; the trained parts stand in ⟦ ⟧:", "", *indented(bracketed(self.example))]
        lines += findings_markdown(self.findings)
        if self.verdict is not None:
            lines += verdict_markdown(self.verdict)
        return "\n".join(lines)


def data_report(
    examples: TokenizedExamples,
    dropped: Sequence[DroppedRow],
    packing: PackingReport,
    example: Sequence[Piece] = (),
    read: Sequence[str] = (),
    cleaning: dict | None = None,
    counts: Counts | None = None,
    changed: Mapping[str, int] | None = None,
    tokenizing: Mapping[str, float] | None = None,
    checked: Mapping[str, int] | None = None,
    findings: Sequence[Finding] = (),
    verdict: Verdict | None = None,
    in_short: bool = True,
    templates: Mapping[str, Mapping[str, str]] | None = None,
) -> DataReport:
    """Gathers the report.

    Args:
        examples: what is trained on.
        dropped: rows left out, from `tokenize_records`.
        packing: from `packing_report`.
        example: one to show, from `token_pieces`.
        read: what was read and where the examples come from, in words.
        cleaning: what the cleaning steps did, from `cleaning_values`.
        counts: what became of the records.
        changed: how many examples do not hold all of their record, by reason.
        tokenizing: what it took, when it was done: `records`, `tokens`, `seconds`, `workers`; None where nobody knows.
        checked: how many records each check looked at.
        findings: from `run_checks`.
        verdict: on the data; None for none.
        in_short: see `DataReport`.
        templates: properties of the chat templates by name, from `ConversationRenderer.template_properties`; None where
            they were not asked for.
    """
    lengths, supervised = examples.lengths, examples.supervised
    counts = counts or Counts(len(examples) + len(dropped), len(examples), len(dropped), len(examples))
    tokens, trained = int(lengths.sum()), int(supervised.sum())
    numbers = {
        "read": list(read),
        "records": dataclasses.asdict(counts),
        "chat_templates": {name: dict(found) for name, found in (templates or {}).items()},
        "shortened": dict(changed or {}),
        "tokenizing": _with_speed(tokenizing) if tokenizing else None,
        "examples": len(examples),
        "tokens": tokens,
        "supervised_tokens": trained,
        "supervised_share": trained / max(tokens, 1),
        "length_quantiles": _quantiles(lengths),
        "supervised_quantiles": _quantiles(supervised),
        "packing": dataclasses.asdict(packing),
        "dropped_rows": len(dropped),
        "dropped": {
            reason: {"rows": len(group), "first": [_dropped_name(row) for row in group[:_NAMES_SHOWN]]}
            for reason, group in group_dropped(dropped).items()
        },
        "cleaning": cleaning or cleaning_values(CleaningLog()),
        "checked": dict(checked or {}),
        "findings": [finding_values(finding) for finding in findings],
        "verdict": None if verdict is None else verdict_values(verdict),
    }
    return DataReport(numbers, example, tuple(findings), verdict, in_short)


def _with_speed(work: Mapping[str, float]) -> dict[str, float]:
    speeds = {f"{what}_per_second": work[what] / max(work["seconds"], 1e-9) for what in ("records", "tokens")}
    return {**work, **speeds}


def pieces(example: RenderedExample) -> list[Piece]:
    """The text of an example in runs of (text, trained), as the weights of its tokens say."""
    trained = np.zeros(len(example.text), bool)
    for (start, end), weight in zip(example.offsets.tolist(), example.weights.tolist(), strict=True):
        trained[start:end] = weight > 0
    cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(example.text)]
    return [(example.text[a:b], bool(trained[a])) for a, b in itertools.pairwise(cuts) if a < b]


def highlight(example: RenderedExample) -> Text:
    """The text of an example with its trained part coloured."""
    return coloured(pieces(example))


def coloured(runs: Sequence[Piece]) -> Text:
    """Runs of text, the trained ones coloured."""
    return Text.assemble(*((text, _TRAINED_STYLE if trained else "dim") for text, trained in runs))


def plain_highlight(example: RenderedExample) -> str:
    """The text of an example with its trained parts in ⟦ ⟧."""
    return bracketed(pieces(example))


def bracketed(runs: Sequence[Piece]) -> str:
    """Runs of text, the trained ones in ⟦ ⟧."""
    return "".join(f"⟦{text}⟧" if trained else text for text, trained in runs)


def indented(text: str) -> list[str]:
    """The lines of a text as a Markdown block of code."""
    return [f"    {line}" for line in text.split("\n")]


def token_pieces(tokens: np.ndarray, weights: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Tokens as text, in runs of (text, trained)."""
    runs = itertools.groupby(zip(weights, tokens, strict=True), key=lambda pair: bool(pair[0] > 0))
    return [
        (tokenizer.decode([int(token) for _, token in run], skip_special_tokens=False), trained)
        for trained, run in runs
    ]


def _quantiles(sizes: np.ndarray) -> dict[str, int]:
    if not len(sizes):
        return {}
    values = np.quantile(sizes, _QUANTILES, method="higher")
    return {f"{q:.0%}": int(value) for q, value in zip(_QUANTILES, values, strict=True)}


def report_lines(numbers: dict) -> list[tuple[str, str]]:
    """(name, value) of the numbers that are about examples and tokens, in words."""
    packing = numbers["packing"]
    return [
        *(("read", note) for note in numbers["read"]),
        *property_lines(numbers["chat_templates"]),
        *_tokenizing(numbers["tokenizing"]),
        ("records", _account(numbers["records"])),
        ("examples", f"{numbers['examples']:,}"),
        *((f"shortened, {reason}", f"{count:,}") for reason, count in numbers["shortened"].items()),
        ("tokens", f"{numbers['tokens']:,}"),
        ("supervised tokens", f"{numbers['supervised_tokens']:,} ({numbers['supervised_share']:.1%})"),
        ("tokens an example", _spread(numbers["length_quantiles"])),
        ("supervised tokens an example", _spread(numbers["supervised_quantiles"])),
        *_sources(packing),
        (
            "sequences an epoch" if packing["is_epoch"] else "sequences, the first",
            f"{packing['bins']:,} of {packing['sequence_length']:,} tokens",
        ),
        (
            "packing efficiency",
            f"{packing['efficiency']:.1%} ({packing['efficiency_without_bound']:.1%} if closed by tokens alone)",
        ),
        *_packing_by_length(numbers["findings"]),
        (
            "target slots a sequence",
            f"{packing['sequence_targets']:,}, {packing['target_efficiency']:.1%} of them used",
        ),
        ("dropped rows", f"{numbers['dropped_rows']:,}"),
        *_checked(numbers["checked"]),
    ]


def _tokenizing(work: Mapping[str, float] | None) -> list[tuple[str, str]]:
    """What it took, which the cache remembers."""
    if work is None:
        return []
    workers = f"{work['workers']} worker{'' if work['workers'] == 1 else 's'}" if work["workers"] else "no workers"
    speeds = f"{work['records_per_second']:,.0f} records/s, {work['tokens_per_second']:,.0f} tokens/s"
    return [("tokenized", f"{work['records']:,} records in {work['seconds']:.1f} s with {workers}: {speeds}")]


def _checked(checked: Mapping[str, int]) -> list[tuple[str, str]]:
    """Which checks looked at how many records."""
    lines = []
    for count in sorted(set(checked.values()), reverse=True):
        names = [name for name, looked_at in checked.items() if looked_at == count]
        whose = "all" if count == max(checked.values()) else "the first"
        what = "every check" if len(names) == len(CHECKS) else ", ".join(names)
        lines.append(f"{whose} {count:,} records: {what}")
    if lines and len(checked) < len(CHECKS):
        lines[-1] += "; python -m sft_jax.preview makes every check on all"
    return [("checked", line) for line in lines]


def _sources(packing: dict) -> list[tuple[str, str]]:
    return [
        (
            f"source {name}",
            f"{source['examples']:,} examples, {source['tokens']:,} tokens; {source['share_of_tokens']:.1%} of all "
            "trained on",
        )
        for name, source in packing["sources"].items()
    ]


def _packing_by_length(findings: Sequence[dict]) -> list[tuple[str, str]]:
    """From the check of sizes, where that was asked for."""
    found = [finding["numbers"]["packing"] for finding in findings if "packing" in finding["numbers"]]
    shares = (f"{length:,}: {packed['efficiency']:.1%}" for packing in found for length, packed in packing.items())
    return [("if sequences had other lengths", ", ".join(shares))] if found else []


def _account(counts: dict[str, int]) -> str:
    return f"{counts['records']:,} = {counts['kept']:,} kept + {counts['dropped']:,} dropped"


def _spread(quantiles: dict[str, int]) -> str:
    return ", ".join(f"{name}: {value:,}" for name, value in quantiles.items())


def _table(title: str, lines: Sequence[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in lines:
        table.add_row(Text(name), Text(value))
    return table


def _reasons(numbers: dict) -> list[tuple[str, dict]]:
    return list(numbers["dropped"].items())


def _names(entry: dict) -> str:
    more = entry["rows"] - len(entry["first"])
    return "; ".join(entry["first"]) + (f"; and {more} more" if more else "")


def _dropped_name(row: DroppedRow) -> str:
    return f"{row.id} ({row.detail})" if row.detail else row.id
