"""Plain text: {"text"}, of which every token is trained (continued pretraining).

A column "text" beside others is often the input of a table, and training on it as it stands would leave the label out;
so it is found by itself only alone or with columns that merely describe it, and is forced otherwise.
"""

from collections.abc import Set

from sft_jax.data.conversations import Segment, Segments
from sft_jax.data.formats.values import checked_text, required
from sft_jax.data.reading import TEXT_ENDS, Reading, RecordError

FORM = '{"text": ...}'

_DESCRIBING = {"id", "url", "source", "title", "date", "timestamp", "meta", "metadata", "language", "license"}


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return "text" in columns and columns <= _DESCRIBING | {"text"}


def parse(fields: dict, where: str, reading: Reading) -> Segments:
    """The text of a row, all of it trained.

    Raises:
        RecordError: missing, not text, or empty.
    """
    text = checked_text(required(fields, "text", where, FORM), f'{where}: "text"')
    if not text:
        raise RecordError(f'{where}: "text" is empty. Remove the row.')
    return Segments((Segment(text, 1.0),), TEXT_ENDS[reading.text_end])
