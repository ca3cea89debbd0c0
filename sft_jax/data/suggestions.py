"""How rows whose columns fit no format could be read: flags that were tried on the rows before they are advised.

Between formats/nearest.py, which knows names, and records.py, which reads rows.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from sft_jax.data.formats import FORMATS
from sft_jax.data.formats.nearest import Nearest, as_table, describes, nearest
from sft_jax.data.reading import Reading, given


def suggestion(rows: Sequence[Mapping], reading: Reading, count_read: Callable[[Reading], int]) -> str:
    """A sentence with the nearest format and its flags; else one that says which formats there are.

    Args:
        rows: some, with the columns renamed as `reading` asks.
        reading: under which none of them fits a format.
        count_read: how many of the rows can be read under other options.
    """
    own = {reading.id_column, reading.weight_column, reading.group_column}
    columns = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    columns = [column for column in columns if column not in own]

    def first_that_reads(candidates: Iterable[Nearest]) -> tuple[Nearest, dict] | None:
        for found in candidates:
            options = dict(found.options)
            if "columns" in options:
                options["columns"] = (*reading.columns, *options["columns"])
            if 2 * count_read(dataclasses.replace(reading, **options)) > len(rows):
                return found, options
        return None

    chosen = first_that_reads(nearest(columns, reading.prompts_only))
    if chosen is None:
        chosen = first_that_reads(as_table(columns))
        example = "" if chosen is None else f" A table reads any columns, for example {given(chosen[1])}"
        return f" Formats are: {', '.join(FORMATS)}; what their rows look like stands in docs/data.md.{example}"
    found, options = chosen
    unread = found.unread(columns)
    said = f" Nearest is {found.format}: {given(options)}"
    if not unread:
        return said
    said += f" (not read then: {', '.join(map(repr, unread))})"
    whole = None if all(map(describes, unread)) else first_that_reads(as_table(columns))
    return said + (f" or, with all of them in a question and its answer, {given(whole[1])}" if whole else "")
