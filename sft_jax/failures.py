"""What a command says of an exception: one message that says what and where, or nothing where the code is at fault.

Errors of this project say themselves what to do. Those of libraries are cut to their first line, with the place in this
project that called them; for a full disk and for memory that runs out there is advice.
"""

import errno
import logging
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parent
_LONGEST = 300  # characters of a library's message
_FAULTS = (
    TypeError,
    AttributeError,
    AssertionError,
    NameError,
    NotImplementedError,
    RecursionError,
    ZeroDivisionError,
    StopIteration,
)
_NO_SPACE = "No space left on device"
_ADVICE = {
    errno.ENOSPC: "Free some space and start the same command again: training continues where it was.",
    errno.EDQUOT: "Free some space, of your quota, and start the same command again.",
    errno.EFBIG: "A limit on the size of files is in the way: see ulimit -f, and what the file system allows.",
    errno.EACCES: "The file or directory is not yours to use.",
    errno.EPERM: "The file or directory is not yours to use.",
    errno.EROFS: "That file system can only be read.",
    errno.EMFILE: "Too many files are open; ulimit -n raises how many may be.",
}
_MEMORY = (
    "In training less is needed with more --config.batch.micro_batches, fewer --config.data.sequence_length, "
    "--config.execution.remat=full, --config.precision.activations=bfloat16, --config.objective.head_chunk_tokens=128, "
    "an adapter (--config=configs/sft.py:lora), or more devices on --config.mesh.fsdp; for answers with a smaller "
    "--batch_size."
)


def message_of(error: Exception) -> str | None:
    """What to say of an error; None where it shows a fault in the code, whose traceback is wanted.

    Args:
        error: as it was caught, with its traceback.
    """
    for each in _chain(error):
        if (isinstance(each, OSError) and each.errno == errno.ENOSPC) or _NO_SPACE in str(each):
            return f"{_path_in(each) or 'a file'}: {_NO_SPACE}{_at(error)}. {_ADVICE[errno.ENOSPC]}"
        if _is_out_of_memory(each):
            return f"out of memory{_at(error)}: {_first_line(each)}\n{_MEMORY}"
    if _is_fault(error) or not str(error):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        advice = _ADVICE.get(error.errno, "")
        return f"{_path_in(error) or 'a file'}: {error.strerror}{_at(error)}{'. ' if advice else ''}{advice}"
    if _is_ours(error):
        return str(error)
    return f"{_first_line(error)} ({type(error).__module__}.{type(error).__qualname__}{_at(error)})"


def _is_fault(error: Exception) -> bool:
    """True for what a mistake in code raises; a KeyError of a library's own kind is none."""
    return isinstance(error, _FAULTS) or type(error) in (KeyError, IndexError)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError") and "RESOURCE_EXHAUSTED" in str(error)
    )


def _is_ours(error: Exception) -> bool:
    """True where this project raised it; what a config raises is the user's own."""
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or _own(frames[-1].filename) or "configs" in Path(frames[-1].filename).parts


def _own(filename: str) -> bool:
    return Path(filename).is_relative_to(_ROOT)


def _at(error: Exception) -> str:
    """`, at sft_jax/training/loop.py:12`: the innermost place in this project."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if _own(frame.filename) and frame.name != "checked"  # which calls the command
    ]
    return (
        f", at {_ROOT.name}/{Path(frames[-1].filename).relative_to(_ROOT).as_posix()}:{frames[-1].lineno}"
        if frames
        else ""
    )


def _path_in(error: BaseException) -> str:
    """The file of an OSError; of what other libraries raise the path that is quoted in its text."""
    if isinstance(error, OSError):
        return " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    quoted = re.search(r'"([^"]*/[^"]*)"', str(error))
    return quoted[1] if quoted else ""


def is_said_again(record: logging.LogRecord) -> bool:
    """True for the log of an error by orbax, which each of its threads writes with a traceback and then raises."""
    return bool(record.exc_info) and "orbax" in Path(record.pathname).parts


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= _LONGEST else f"{lines[0][:_LONGEST]}…"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and the parts of groups."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [other for other in (each.__cause__, each.__context__) if other is not None]
        waiting += getattr(each, "exceptions", ())
