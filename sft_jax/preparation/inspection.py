"""The data of a config as `python -m sft_jax.preview` shows and writes it: all checks, and what cleaning did."""

import dataclasses
from collections.abc import Sequence

from sft_jax.audit.preview.page import page_html
from sft_jax.audit.preview.selection import select_examples
from sft_jax.data.cleaning import Changed
from sft_jax.data.records import Record
from sft_jax.data.tokenized import DroppedRow
from sft_jax.options import Options
from sft_jax.preparation.earlier_runs import curve_of_runs
from sft_jax.preparation.mixing import name_of
from sft_jax.preparation.run_data import Data, FindingsOfRun, load_data
from sft_jax.preparation.train_examples import ProgressFor


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The data of a config, with the records that cleaning dropped or changed.

    Attributes:
        data: with all checks done.
        removed: records that cleaning dropped.
        changed: records as they were before each change.
    """

    data: Data
    removed: list[tuple[Record, DroppedRow]]
    changed: list[tuple[Record, Changed]]

    @property
    def kept(self) -> list[Record]:
        """Records that are trained on."""
        trained = set(self.data.examples.ids)
        return [record for record in self.data.checked.records if record.id in trained]

    @property
    def dropped(self) -> list[tuple[Record | None, DroppedRow]]:
        """Rows that are not trained on, with the reason; None for the record of one that could not be read."""
        records = {record.id: record for record in self.data.checked.records}
        later = [(records.get(row.id), row) for row in self.data.checked.dropped]
        return [*self.removed, *later]


def inspect_data(
    options: Options,
    progress: ProgressFor,
    earlier_runs: Sequence[str] = (),
    also: FindingsOfRun | None = None,
) -> Inspection:
    """Reads, cleans, tokenizes and checks.

    Args:
        options: of the run.
        progress: as for `load_data`.
        earlier_runs: directories of runs on parts of the data; see `curve_of_runs`.
        also: as for `load_data`.

    Raises:
        ValueError: bad config, bad data or no such runs; names the flag, or the file and row.
    """
    curve = curve_of_runs(earlier_runs)
    removed: list[tuple[Record, DroppedRow]] = []
    changed: list[tuple[Record, Changed]] = []

    def keep(record: Record, noted: DroppedRow | Changed) -> None:
        (removed if isinstance(noted, DroppedRow) else changed).append((record, noted))

    data = load_data(options, progress, thorough=True, on_change=keep, curve=curve, also=also)
    return Inspection(data, removed, changed)


def preview_page(inspection: Inspection, options: Options, wanted: int, progress: ProgressFor) -> str:
    """The preview as HTML.

    Args:
        inspection: what to show.
        options: of the run.
        wanted: most rows of the training data to show.
        progress: as for `load_data`.
    """
    data = inspection.data
    notes: dict[str, str] = {}
    for record, change in inspection.changed:
        before = f"{notes[record.id]}; " if record.id in notes else ""
        notes[record.id] = f"{before}{change.step}: {change.reason}"
    shown = select_examples(
        data.checked,
        data.renderer,
        inspection.removed,
        data.report.findings,
        notes,
        wanted,
        progress("rendering the page", min(wanted, len(data.examples))),
    )
    held_out = f" · held out: {options.data.held_out}" if options.data.held_out else ""
    subtitle = f"as tokens of {options.model.source}{held_out}"
    return page_html(name_of(options.data), subtitle, data.report, data.examples, shown)
