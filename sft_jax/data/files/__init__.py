"""Files and data sets as rows: what a path stands for, how it is opened, and what its rows hold.

The first step of the data layer, before formats/. Each container has a module; a new one is a function from a stream of
bytes to rows, and a line in CONTAINERS.
"""

from sft_jax.data.files.containers import CONTAINERS, DATA_SETS, container_of
from sft_jax.data.files.locate import file_source, files_of, named_apart, names_of, sources_of
from sft_jax.data.files.rows import Row, Source
from sft_jax.data.files.streams import COMPRESSIONS, opened

__all__ = [
    "COMPRESSIONS",
    "CONTAINERS",
    "DATA_SETS",
    "Row",
    "Source",
    "container_of",
    "file_source",
    "files_of",
    "named_apart",
    "names_of",
    "opened",
    "sources_of",
]
