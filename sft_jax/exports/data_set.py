"""Writes a cleaned data set: the rows that are trained on, and every row that was left out or changed, with the reason.

    data.jsonl      the rows, in the form below; a file for each form, messages.jsonl and so on, where there are several
    dropped.jsonl   {"id", "reason", "detail", "row"}: `row` is as it was read, null for one that could not be read
    changed.jsonl   {"id", "step", "reason", "row"}: `row` is what it was before the step
    report.json     the numbers, findings and verdict of the data report

A row of data.jsonl is {"messages"} (and "tools"), {"segments"}, {"input_ids", "weights"}, {"prompt", "chosen",
"rejected"} or {"prompt", "completion", "label"}. It also has the "id" it was read under, its "weight" and "group" where
any row has them, and, unchanged, all columns that no form of record reads. A column that JSON cannot represent (bytes)
is refused, unless it is to be ignored.
"""

import dataclasses
import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from etils import epath

from sft_jax.data.cleaning import Changed
from sft_jax.data.conversations import Chat, Labelled, Preference, Segments, TokenExample
from sft_jax.data.formats.media import media_columns
from sft_jax.data.formats.values import no_json
from sft_jax.data.reading import TEXT_ENDS, given
from sft_jax.data.records import Record
from sft_jax.data.tokenized import DroppedRow
from sft_jax.data.written_rows import example_fields
from sft_jax.exports import directory
from sft_jax.exports.directory import ExportError

DATA, DROPPED, CHANGED, REPORT = "data.jsonl", "dropped.jsonl", "changed.jsonl", "report.json"
_FLAG = "--write"
# Columns that some form of record reads: what they say is in the form written here.
_READ = {"messages", "tools", "prompt", "completion", "conversations", "instruction", "input", "output", "system"}
_READ |= {"history", "text", "segments", "chosen", "rejected", "input_ids", "tokens", "labels", "weights"}
_READ |= {"loss_mask", "completion_mask", "assistant_masks", "attention_mask", "id", "functions"}
_READ |= {"chat_template_kwargs"}
_FORMS = {Chat: "messages", Segments: "segments", TokenExample: "tokens", Preference: "preference"}
_FORMS |= {Labelled: "labelled"}


def check_free(out: epath.Path, force: bool) -> None:
    """Checks that `out` may be written, before anything is read.

    Raises:
        ExportError: something is there; with `force`, something that is no earlier data set.
    """
    directory.check_free(out, force, REPORT, _FLAG)


def write_data_set(
    out: epath.Path,
    records: Sequence[Record],
    dropped: Iterable[tuple[Record | None, DroppedRow]],
    changed: Iterable[tuple[Record, Changed]],
    numbers: dict,
    force: bool = False,
    ignore: Collection[str] = (),
) -> None:
    """Writes the directory, whole or not at all.

    Args:
        out: must not exist yet.
        records: those that are trained on.
        dropped: the others, as they came to what dropped them; None for what could not be read.
        changed: as they were before each change.
        numbers: of the data report.
        force: replace what an earlier call wrote.
        ignore: columns that are left out where they hold what JSON cannot say.

    Raises:
        ExportError: something is there, or a column cannot be written such that it reads back.
    """
    dropped = list(dropped)
    unsaid = _columns_unsaid([*records, *(record for record, _ in dropped if record is not None)])
    _refuse(unsaid, ignore)
    records = [_without(record, unsaid) for record in records]
    dropped = [(record and _without(record, unsaid), row) for record, row in dropped]
    with directory.filled(out, force, REPORT, _FLAG) as staging:
        for name, of_file in data_files(records).items():
            has_weight, has_group = _has_weight(of_file), _has_group(of_file)
            _write_lines(staging / name, (row_fields(record, has_weight, has_group) for record in of_file))
        _write_lines(staging / DROPPED, (_dropped(*pair) for pair in dropped))
        _write_lines(staging / CHANGED, (_changed(*pair) for pair in changed))
        (staging / REPORT).write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")


def _columns_unsaid(records: Iterable[Record]) -> dict[str, str]:
    """The columns that JSON cannot say, of all that may be written as it was read: what the first row holds of each."""
    found: dict[str, str] = {}
    for record in records:
        for name, value in record.fields.items():
            if name not in found and (what := no_json(value)):
                found[name] = f"{record.id}: {name!r} holds {what}"
    return found


def _refuse(unsaid: dict[str, str], ignore: Collection[str]) -> None:
    problems = [text for name, text in unsaid.items() if name not in ignore]
    if problems:
        flag = given({"ignore": tuple(dict.fromkeys([*ignore, *unsaid]))})
        raise ExportError(
            f"{_FLAG}: {'; '.join(problems)}: no value of JSON, which would not read back as it is. Store it as text, "
            f"or write the rows without it by {flag}"
        )


def _without(record: Record, columns: Collection[str]) -> Record:
    if not columns:
        return record
    return dataclasses.replace(
        record, fields={name: value for name, value in record.fields.items() if name not in columns}
    )


def data_files(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each file of rows, by its name: all rows of a file are of one form."""
    forms: dict[str, list[Record]] = {}
    for record in records:
        end = "_with_end" if _ends(record) else ""
        forms.setdefault(_FORMS[type(record.example)] + end, []).append(record)
    return {f"{form}.jsonl": of_form for form, of_form in forms.items()} if len(forms) > 1 else {DATA: list(records)}


def row_fields(record: Record, has_weight: bool, has_group: bool) -> dict[str, Any]:
    """A record as a row of data.jsonl, with its weight and its group if the rows of the file have them.

    Passages of a corpus are not in it: they are put in again wherever the row is trained on with them.
    """
    about: dict[str, Any] = {"id": record.id}
    if has_weight:
        about["weight"] = record.weight
    if has_group:
        about["group"] = record.group or None
    written = example_fields(record.said) | about
    return written | {name: value for name, value in record.fields.items() if name not in _READ and name not in written}


def reading_flags(records: Sequence[Record]) -> str:
    """The flags with which a file of these records reads as the same records."""
    form = _FORMS[type(records[0].example)]
    flags = [f"--config.data.reading.format={form}", "--config.data.reading.id_column=id"]
    if _has_weight(records):
        flags.append("--config.data.reading.weight_column=weight")
    if _has_group(records):
        flags.append("--config.data.reading.group_column=group")
    end = next(name for name, ends in TEXT_ENDS.items() if ends == _ends(records[0]))
    if end:
        flags.append(f"--config.data.reading.text_end={end}")
    media = dict.fromkeys(name for record in records for name in media_columns(record.fields))
    if media:
        flags.append(f'--config.data.reading.ignore="({", ".join(map(repr, media))},)"')
    return " ".join(flags)


def _ends(record: Record) -> bool | None:
    """Whether the end-of-sequence token follows the text; None where nobody said."""
    return record.example.ends if isinstance(record.example, Segments) else None


def _has_weight(records: Sequence[Record]) -> bool:
    return any(record.weight != 1 for record in records)


def _has_group(records: Sequence[Record]) -> bool:
    return any(record.group for record in records)


def _dropped(record: Record | None, row: DroppedRow) -> dict[str, Any]:
    fields = None if record is None else record.fields
    return {"id": row.id, "reason": row.reason, "detail": row.detail, "row": fields}


def _changed(record: Record, change: Changed) -> dict[str, Any]:
    return {"id": change.id, "step": change.step, "reason": change.reason, "row": example_fields(record.example)}


def _write_lines(path: epath.Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
