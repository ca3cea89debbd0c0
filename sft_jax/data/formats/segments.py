"""Segments: {"segments": [{"text", "train"}, ...]}, text that no template touches, trained piece by piece.

Instead of "train" a segment may have "label" (the same) or a "weight".
"""

from collections.abc import Set

from sft_jax.data.conversations import Segment, Segments
from sft_jax.data.formats.values import checked_text, flag_of, kind, refuse_lost, weight_of, without_ignored
from sft_jax.data.reading import TEXT_ENDS, Reading, RecordError

FORM = '{"segments": [{"text": ..., "train": true or false}, ...]}'

_READERS = {"train": flag_of, "label": flag_of, "weight": weight_of}


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return "segments" in columns


def parse(fields: dict, where: str, reading: Reading) -> Segments:
    """The segments of a row.

    Raises:
        RecordError: says which segment, and what was expected.
    """
    where = f'{where}: "segments"'
    value = fields.get("segments")
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else kind(value)
        raise RecordError(f"{where}: expected a list, {FORM}, got {got}.")
    parts = tuple(_segment(item, f"{where}[{number}]", reading) for number, item in enumerate(value))
    return Segments(parts, TEXT_ENDS[reading.text_end])


def _segment(item: object, where: str, reading: Reading) -> Segment:
    if not isinstance(item, dict):
        raise RecordError(f'{where}: expected {{"text": ..., "train": ...}}, got {kind(item)}.')
    item = without_ignored(item, reading)
    refuse_lost(item, {"text", *_READERS}, "segment", where)
    given = [key for key in _READERS if item.get(key) is not None]
    if len(given) != 1:
        got = " and ".join(map(repr, given)) or "none"
        raise RecordError(f'{where}: expected one of "train", "label" and "weight", got {got}.')
    text = checked_text(item.get("text"), f'{where}: "text"')
    return Segment(text, _READERS[given[0]](item[given[0]], f'{where}: "{given[0]}"'))
