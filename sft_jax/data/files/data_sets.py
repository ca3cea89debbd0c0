"""Data sets of the `datasets` library: directories it saved, and names of the hub."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from sft_jax.data.files.arrow import ROWS_AT_ONCE, numbered
from sft_jax.data.files.rows import Row, Share, SizedRows, Source
from sft_jax.data.reading import Reading, RecordError, leave_split

_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in a directory


def is_saved(path: epath.Path) -> bool:
    """Whether `save_to_disk` made this directory."""
    return any((path / name).exists() for name in _SAVED)


def saved(path: epath.Path, reading: Reading) -> Source:
    """A directory made by `save_to_disk`.

    Raises:
        RecordError: it is none, or it has several splits and none is chosen, or not that one.
    """
    import datasets  # slow to import, and rarely needed

    if not is_saved(path):
        raise RecordError(f"{path}: not a directory made by save_to_disk.")
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: the saved data set cannot be read ({error}).") from error
    name, folder = path.name, path
    if isinstance(found, datasets.DatasetDict):
        split = _chosen_split(reading, list(found), str(path))
        found, name, folder = found[split], f"{name}/{split}", path / split
    elif reading.split:
        raise RecordError(f"{path}: has no splits. {leave_split(reading)}")
    where = str(path)
    files = tuple(sorted((file for file in folder.iterdir() if file.is_file()), key=str))
    return _source(found, name, where, "saved data set", files)


def hub(name: str, reading: Reading) -> Source:
    """A data set of the hub, from its cache if it is there.

    Raises:
        RecordError: there is none of this name, it cannot be reached, or a split or configuration has to be chosen.
    """
    import datasets

    try:
        split = reading.split
        if not split:
            options = {"config_name": reading.subset or None, "revision": reading.revision or None}
            split = _chosen_split(reading, datasets.get_dataset_split_names(name, **options), name)
        found = datasets.load_dataset(
            name,
            reading.subset or None,
            split=split,
            revision=reading.revision or None,
            streaming=reading.streaming,
        )
    except RecordError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise RecordError(
            f"{name}: there is no such file or directory, and no data set of this name could be loaded from the hub: "
            f"{' '.join(str(error).split())}"
        ) from error
    where = f"{name}/{split}"
    files = () if reading.streaming else tuple(epath.Path(entry["filename"]) for entry in found.cache_files)
    return _source(found, where, where, "data set of the hub", files)


def _source(data_set: Any, name: str, where: str, title: str, files: tuple[epath.Path, ...]) -> Source:
    share = Share()

    def rows() -> Iterator[Row]:
        found = _rows(data_set, where)
        return share.of_rows(SizedRows(found, len(data_set)) if hasattr(data_set, "__len__") else found)

    return Source(name, where, title, rows, files, share)


def _chosen_split(reading: Reading, splits: list[str], where: str) -> str:
    """The split that was asked for, or the only one.

    Raises:
        RecordError: there is no such split, or several to choose from.
    """
    split = reading.split
    if not split and len(splits) == 1:
        return splits[0]
    if split in splits:
        return split
    what = f"there is no split {split!r}" if split else "there are several splits"
    raise RecordError(f"{where}: {what}; choose one by {reading.split_flag}: {', '.join(splits)}.")


def _rows(data_set: Any, where: str) -> Iterator[Row]:
    import datasets
    import pyarrow

    features = data_set.features or {}
    labels = {name: found for name, feature in features.items() if (found := _class_names(feature))}
    try:
        yield from numbered(data_set.with_format("arrow").iter(ROWS_AT_ONCE), where, labels)
    except (OSError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise RecordError(f"{where}: reading stopped ({' '.join(str(error).split())}).") from error


def _class_names(feature: Any) -> list[str] | None:
    """The names of the classes of a column, which may be lists of them; None if it has none."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return getattr(feature, "names", None)
