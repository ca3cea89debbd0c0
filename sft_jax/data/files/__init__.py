"""Files and data sets as rows: what a path stands for, how it is opened, and what its rows hold.

The first step of the data layer, before formats/. Each container has a module; a new one is a function from a stream of
bytes to rows, and a line in CONTAINERS.
"""

from sft_jax.data.files.containers import CONTAINERS, DATA_SETS
from sft_jax.data.files.locate import named_apart, sources_of
from sft_jax.data.files.rows import Row, Source

__all__ = ["CONTAINERS", "DATA_SETS", "Row", "Source", "named_apart", "sources_of"]
