"""A signal before a run trains ends the process, in good order.

`SystemExit` alone would not do: Python drops what is raised while it runs a finalizer, and some libraries drop what is
raised while they are imported. So the signal is kept, and the loop of training, once it begins, leaves at once.
"""

import signal
import sys
from types import FrameType
from typing import NoReturn

_came: list[int] = []


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leaves with `SystemExit`, once: what is in progress shall get to its end. A handler of signals."""
    signal.signal(number, signal.SIG_IGN)
    _came.append(number)
    sys.exit(128 + number)


def came() -> int | None:
    """The signal on which this process was to leave; None where none came."""
    return _came[0] if _came else None
