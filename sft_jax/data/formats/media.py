"""Refuses columns of images and sound: only text can be trained on, and here the text alone would be incomplete."""

from collections.abc import Collection, Mapping
from typing import Any

from sft_jax.data.reading import Reading, RecordError

_NAMES = {"image", "images", "audio", "audios", "video", "videos", "pixel_values", "input_features"}
_STORED = {"bytes", "path"}  # keys of an image or a sound of the `datasets` library


def refuse_media(fields: Mapping[str, Any], read: Collection[str], where: str, reading: Reading) -> None:
    """Refuses columns of images, sound and video, by their names or by how they are stored.

    Args:
        fields: the columns of a row.
        read: columns that something reads as text or numbers.
        where: stands in errors.
        reading: may ignore them.

    Raises:
        RecordError: names the column.
    """
    lost = [name for name in media_columns(fields) if name not in read and name not in reading.ignore]
    if lost:
        names = ", ".join(map(repr, lost))
        raise RecordError(
            f"{where}: the column {names} would be lost: only text can be trained on. Remove it or the row, or train "
            f'without it by --config.data.reading.ignore="({names},)".'
        )


def media_columns(fields: Mapping[str, Any]) -> list[str]:
    """The columns of a row that hold images, sound or video."""
    return [
        name
        for name, value in fields.items()
        if value not in (None, "", [], {}) and (name in _NAMES or _is_stored(value))
    ]


def _is_stored(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and _is_stored(value[0])
    return isinstance(value, dict) and value.keys() == _STORED
