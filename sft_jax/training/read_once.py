"""Data of several runs of one process: rows that are the same are read and tokenized once."""

import collections
import functools

from rich.console import Console

from sft_jax.options import Options
from sft_jax.preparation.run_data import Data, ReadData, read_data
from sft_jax.progress import ProgressBars
from sft_jax.training.run_findings import run_findings


class ReadOnce:
    """Gives runs their data."""

    def __init__(self, kept: int):
        """Holds nothing yet.

        Args:
            kept: so many data sets are held at a time; the one that was read first goes first.
        """
        self._read: collections.deque[ReadData] = collections.deque(maxlen=kept)

    def data(self, options: Options, device_count: int, console: Console) -> Data:
        """The data of a run, read where none before had the same rows; each has a plan of its own.

        Raises:
            ValueError: see `read_data`.
        """
        read = next((read for read in self._read if not read.differs_from(options)), None)
        if read is None:
            with ProgressBars(console) as progress:
                read = read_data(options, progress)
            self._read.append(read)
        also = functools.partial(run_findings, device_count=lambda: device_count)
        return read.planned(options, also=also)
