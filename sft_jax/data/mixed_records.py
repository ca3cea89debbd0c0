"""The records of several sources, as a mixture reads them: one stream, in which ids begin with the source's name."""

import dataclasses
from collections.abc import Iterator, Mapping

from etils import epath

from sft_jax.data.reading import Reading
from sft_jax.data.records import DroppedRow, Record, RecordError, RecordReader


class MixedReader:
    """Reads one source after the other, each as `RecordReader` does; ids begin with the name of the source."""

    def __init__(self, sources: Mapping[str, tuple[str, Reading]]):
        """Finds the files.

        Args:
            sources: path and options of each source, by name.

        Raises:
            RecordError: a source has no files, or it cannot be told what they are; names the source.
            ValueError: an option of a reading that has no meaning; names the source.
        """
        self._readers: dict[str, RecordReader] = {}
        self._begun: list[RecordReader] = []  # in the latest pass
        for name, (path, reading) in sources.items():
            try:
                self._readers[name] = RecordReader(path, reading)
            except ValueError as error:
                raise type(error)(_of_source(name, error)) from error

    def __iter__(self) -> Iterator[Record]:
        self._begun = []
        for name, reader in self._readers.items():
            self._begun.append(reader)
            try:
                for record in reader:
                    yield dataclasses.replace(record, id=f"{name}/{record.id}", source=name)
            except RecordError as error:
                raise RecordError(_of_source(name, error)) from error

    @property
    def files(self) -> list[tuple[str, epath.Path]]:
        """Name and path of every file that is read; empty where some rows are not from files."""
        files = {name: reader.files for name, reader in self._readers.items()}
        if not all(files.values()):
            return []
        return [(f"{name}/{file}", path) for name, found in files.items() for file, path in found]

    @property
    def share(self) -> float | None:
        """How much the latest pass has read, from 0 to 1, by the bytes of files; None where nobody knows."""
        sizes = [reader.size for reader in self._readers.values()]
        shares = [reader.share for reader in self._begun]
        if not all(sizes) or None in shares:
            return None
        return sum(size * share for size, share in zip(sizes, shares, strict=False)) / sum(sizes)

    @property
    def rows(self) -> int:
        """Rows read."""
        return sum(reader.rows for reader in self._readers.values())

    @property
    def records(self) -> int:
        """Records among them."""
        return sum(reader.records for reader in self._readers.values())

    @property
    def dropped(self) -> list[DroppedRow]:
        """The rows that could not be read, of sources that drop such rows."""
        return [
            dataclasses.replace(row, id=f"{name}/{row.id}")
            for name, reader in self._readers.items()
            for row in reader.dropped
        ]

    @property
    def notes(self) -> list[str]:
        """What was read, in a line each: "math: train.jsonl: JSONL, messages". Complete once all is read."""
        return [f"{name}: {note}" for name, reader in self._readers.items() for note in reader.notes]

    @property
    def unread_options(self) -> list[str]:
        """The flags of sources that were given and that no format of their rows reads. Complete once all is read."""
        return [flag for reader in self._readers.values() for flag in reader.unread_options]


def _of_source(name: str, error: Exception) -> str:
    return f"the source {name!r} of the mixture: {error}"
