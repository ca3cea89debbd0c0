"""What all commands share: starting JAX, and showing errors as one clear message instead of a traceback."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NoReturn

from absl import app, flags, logging

from sft_jax import config_flag
from sft_jax.failures import is_said_again, message_of
from sft_jax.restarting import end_with_supervisor, supervise, this_command

_DEBUG = flags.DEFINE_bool("traceback", False, "Show the whole traceback of an error.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes; found by JAX on TPU pods and SLURM.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "With --distributed, elsewhere: host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is, from 0.", lower_bound=0)
_RESTARTS = flags.DEFINE_integer(
    "restarts",
    0,
    "With --distributed, on every host: how often the run is started again when a process of it has died.",
    lower_bound=0,
)
_WHERE = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
_LISTED = "--helpfull lists them"
_PATIENCE_SECONDS = 60  # of a process that cannot start, for the others to come where they can hear why


def start_jax(several_processes: bool = False) -> None:
    """Joins the other processes of a distributed run, and enables the persistent compilation cache.

    Args:
        several_processes: True for a command that can be one of several processes.

    Raises:
        ValueError: flags that contradict one another, or --distributed for a command that runs in one process.
        OtherProcessError: another process has flags with which it cannot start.
    """
    from sft_jax import emulation
    from sft_jax.agreement import agreed
    from sft_jax.compilations import keep_compilations

    emulation.reserve_threads()
    if not several_processes:
        refuse_several_processes()
    elif _DISTRIBUTED.value:
        _join()
        with agreed():
            pass  # a process with a mistake in its flags joins to say so
    else:
        refuse_unread([holder.name for holder in (*_WHERE, _RESTARTS)], "--distributed")
    keep_compilations()


def _join(**more: int) -> None:
    from sft_jax.joining import join

    join(*(flags.FLAGS[holder.name].value for holder in _WHERE), **more)


def _tell_others(arguments: list[str], message: str) -> None:
    """Ends the other processes of a distributed run, which wait for this one to join, with the reason.

    Where the flags by which processes find one another are wrong themselves, nobody can be told.

    Args:
        arguments: of the command line; some of its flags cannot be parsed.
        message: what is wrong with them.
    """
    joining = flags.FlagValues()
    for holder in (_DISTRIBUTED, _RESTARTS, *_WHERE):
        joining[holder.name] = flags.FLAGS[holder.name]
    try:
        joining(flags.FLAGS.read_flags_from_files(arguments), known_only=True)
    except flags.Error:
        return
    if not joining["distributed"].value:
        return
    from sft_jax import emulation
    from sft_jax.agreement import agreed

    sys.stderr.flush()  # here the reason is known at once
    emulation.reserve_threads()
    with contextlib.suppress(flags.Error, RuntimeError, ValueError):  # they cannot be found, or did not come
        _join(initialization_timeout=_PATIENCE_SECONDS)
        with agreed():
            raise flags.Error(message)


def refuse_several_processes() -> None:
    """Refuses --distributed, for a command that runs in one process.

    Raises:
        ValueError: it was given.
    """
    if _DISTRIBUTED.value:
        raise ValueError("--distributed: this command runs in one process, with all devices of its host")
    refuse_unread([holder.name for holder in (*_WHERE, _RESTARTS)], "--distributed, in training")


def refuse_unread(names: Iterable[str], goes_with: str) -> None:
    """Refuses flags that were given another value than their default, where nothing reads them.

    Args:
        names: of the flags.
        goes_with: what reads them.

    Raises:
        ValueError: there are some; names them.
    """
    given = [f"--{name}" for name in names if flags.FLAGS[name].value != flags.FLAGS[name].default]
    if given:
        raise ValueError(f"{', '.join(given)}: not read here, it goes with {goes_with}; leave it out")


def run(main: Callable[[list[str]], None], several_processes: bool = False, positional: bool = False) -> None:
    """`app.run(main)`, with mistakes of the user shown as a message; `--traceback` shows where they came from.

    Args:
        main: the command.
        several_processes: it can be one of several processes, which are told of flags with which this one cannot start.
        positional: it takes arguments without a name, before, between and behind flags.
    """
    end_with_supervisor()
    flags.FLAGS.set_gnu_getopt(positional)

    def parsed(arguments: list[str]) -> list[str]:
        try:
            return _parse_flags(arguments, positional)
        except _BadFlags as error:
            shows_where = isinstance(error.__cause__, config_flag.ConfigError) and "--traceback" in arguments
            if not shows_where:
                sys.stderr.write(f"{error.text}\n")
            if several_processes:
                _tell_others(arguments, str(error))
            if shows_where:
                raise error.__cause__ from None
            sys.exit(1)

    def checked(arguments: list[str]) -> None:
        if several_processes and _DISTRIBUTED.value and _RESTARTS.value:
            sys.exit(supervise(this_command(), _RESTARTS.value))
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries announce themselves at INFO
        if not _DEBUG.value:
            logging.get_absl_logger().addFilter(lambda record: not is_said_again(record))
        try:
            main(arguments)
        except app.UsageError:
            raise
        except Exception as error:  # the end of the road: what nobody could mend is said, or raised again
            message = None if _DEBUG.value else message_of(error)
            if message is None:
                raise
            _end(f"error: {message}\n(--traceback shows where in the code)\n", 1)

    try:
        app.run(checked, flags_parser=parsed)
    except KeyboardInterrupt:
        _interrupted()


def _end(text: str, code: int) -> NoReturn:
    """Says a last thing, and leaves with this exit status."""
    sys.stderr.write(text)
    sys.exit(code)


def _interrupted() -> NoReturn:
    _end("\ninterrupted\n", 130)


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For Ctrl-C before `run`, while a command's module is imported: one line, as everywhere else."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write("\ninterrupted\n")
    sys.stderr.flush()
    os._exit(130)


sys.excepthook = _hook


class _BadFlags(Exception):
    """Flags with which the command cannot start, in one line; `text` has where to look beside."""

    def __init__(self, what: str, message: object, hint: str):
        super().__init__(f"error in the {what}: {message}")
        self.text = f"{self}\n({hint})"


def _parse_flags(arguments: list[str], positional: bool = False) -> list[str]:
    """Parses the flags.

    Raises:
        _BadFlags: something is wrong with them, or with the config that they name.
    """
    try:
        rest = flags.FLAGS(arguments)
    except config_flag.ConfigError as error:
        raise _BadFlags("config", error, "--traceback shows where in the code") from error
    except flags.UnrecognizedFlagError as error:
        message = f"{str(error).rstrip(' ?.')}. {_flags_like(error.flagname)}"
        raise _BadFlags("flags", message, _LISTED) from error
    except (flags.Error, ValueError) as error:  # a value for a flag that takes none
        raise _BadFlags("flags", error, _LISTED) from error
    if len(rest) > 1 and not positional:
        raise _BadFlags("flags", f"unexpected argument {rest[1]!r}; flags look like --name=value", _LISTED)
    return rest


def _flags_like(name: str) -> str:
    """Which flags there are in the place of one that there is not."""
    prefix, dot, _ = name.partition(".")
    here = name.removeprefix(f"{config_flag.NAME}.data.")
    if here != name and here in flags.FLAGS:
        return f"This command has no config: --{here}."
    if dot and prefix == config_flag.NAME and prefix in flags.FLAGS:
        return f"Fields of a config are set after --{prefix}=FILE, for example --{prefix}=configs/sft.py."
    of_group = [f"--{other}" for other in flags.FLAGS if dot and other.startswith(prefix + dot)]
    main = [f"--{flag.name}" for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    return f"There are: {', '.join(sorted(of_group or main))}."
