"""The run directory: writes what identifies a run (config, environment), refuses a directory that holds another run.

Paths may be buckets: files are written whole, and nothing relies on append or rename.
"""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from sft_jax.agreement import agreed

_PARTIAL = ".partial"
CONFIG, ENVIRONMENT, TEMPLATE = "config.json", "environment.json", "chat_template.jinja"
DATA_REPORT = "data_report.json"
EVALUATIONS, TASKS = "evaluations", "tasks/"  # what tasks gave, by step; the beginning of their metrics
SAMPLES = "samples"  # answers that were trained on, a file a step
PREDICTIONS = "predictions"  # of an evaluation, by task and method
_LOCK = ".lock"
STATUS, RESULT = "status.json", "result.json"
SESSION, SESSION_END = "events.out.tfevents.0.session", "events.out.tfevents.session_end"  # of a sweep, in TensorBoard
_FIRST = (
    STATUS,
    "log.txt",
    RESULT,
    SESSION,
    SESSION_END,
)  # of a run of a sweep, which may fail before its config is written
DAMAGED = "put it back from a copy, or give another --workdir"

# What only `python -m sft_jax.evaluate` reads.
OF_OTHER_COMMANDS = tuple(f"evaluation.{name}" for name in ("few_shot", "prompting", "retrieval", "max_regression"))
# What may change when a run is continued: the numbers do not depend on it (or it is only about watching).
MAY_CHANGE = (
    "mesh",
    "execution",
    "batch.micro_batches",
    "data.fail_on",
    "data.cache",
    "defaults",
    "profile",
    "log",
    "loader",
    "checkpoint.keep_last",
    "checkpoint.keep_stable",
    "evaluation.patience",  # where a run ends; none of its steps
    "evaluation.slots",
    *OF_OTHER_COMMANDS,
)
AUTO = "auto"
# Dtypes that the platform decides where a config says `auto`. Asked for like that, they are those of the run there.
BY_PLATFORM = ("precision.activations", "precision.frozen")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "numpy")


class WorkdirError(ValueError):
    """The work directory cannot be used for this run."""


def check_config_there(workdir: epath.Path, config: ml_collections.ConfigDict) -> None:
    """Checks that the directory is free or holds this run; writes nothing.

    Raises:
        WorkdirError: it holds a run with another config (the differences are listed), or files of something else.
    """
    wanted, there = flatten(config.to_dict()), config_there(workdir)
    if there is not None:
        found = flatten(there)
        if not found.keys() & wanted.keys():
            raise WorkdirError(f"{workdir / CONFIG} has no field of a config; {DAMAGED}")
        if differ := differences(found, wanted):
            listed = "\n  ".join(differ)
            raise WorkdirError(
                f"{workdir} holds a run with a different config:\n  {listed}\n"
                "Give another --workdir, or the same config to continue that run."
                f"{_of_other_code(workdir, found, wanted)}{more_training(workdir, there)}"
            )
    elif workdir.exists() and any(not _may_be_first(child) for child in workdir.iterdir()):
        raise WorkdirError(f"{workdir} is not empty and holds no {CONFIG}: give an empty or new --workdir")


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Fields of two configs, by path, that differ and may not: `seed: 0 there, 1 asked for`."""
    return [
        f"{name}: {found.get(name, '(absent)')!r} there, {wanted.get(name, '(absent)')!r} asked for"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name) and not _may_change(name) and not _is_taken_over(name, wanted)
    ]


def _is_taken_over(name: str, wanted: Mapping[str, Any]) -> bool:
    """Whether what is asked for is whatever the run there has."""
    return name in BY_PLATFORM and wanted.get(name) == AUTO


def is_unclaimed(path: epath.Path) -> bool:
    """True for what lies in a directory that nobody made his own: a lock, or what `write_whole` left when killed."""
    return path.name == _LOCK or path.name.endswith(_PARTIAL)


def _may_be_first(path: epath.Path) -> bool:
    """True for what may lie in the directory of a run before its config does."""
    return is_unclaimed(path) or path.name in _FIRST


def _of_other_code(workdir: epath.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What to do where fields of the config came, or went, after the run was started."""
    only_in = lambda one, other: sorted(name for name in one.keys() - other.keys() if not _may_change(name))
    came, gone = only_in(wanted, found), only_in(found, wanted)
    steps = []
    if came:
        steps.append(f"add {', '.join(came)} with the value that is what the code of then did")
    if gone:
        steps.append(f"remove {', '.join(gone)} if at that value it changes nothing")
    by_hand = f" Of the fields that only one of them has, by hand in {workdir / CONFIG}: {' and '.join(steps)}."
    return by_hand if steps else ""


def more_training(workdir: epath.Path, config: Mapping) -> str:
    """How the result of a run is trained on: as the model of a new run; what then becomes of its adapter."""
    name = shlex.quote(str(workdir))
    text = f" To train its result on: --config.model.source={name} with a new --workdir"
    if config.get("adapter", {}).get("method", "none") != "none":
        text += ", which merges its adapter into the weights and begins a new one"
        if config.get("model", {}).get("new_tokens"):  # which a PEFT directory does not hold
            return text
        text += (
            f"; to train on the adapter itself: python -m sft_jax.export --checkpoint={name} --format=peft "
            "--out=ADAPTER, then --config.adapter.initial=ADAPTER beside the same --config.model.source, with a new "
            "--workdir"
        )
    return text


def with_date(workdir: epath.Path, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the date that chat templates are told; the run records it as its own.

    It is as asked for, else that of the run in the directory, else today, where process 0 is.

    Raises:
        WorkdirError: the directory's config cannot be read.
    """
    with agreed():
        there = config_there(workdir) or {}
    date = there.get("data", {}).get("date") or datetime.date.today().isoformat()
    if jax.process_count() > 1:
        day = np.int32(datetime.date.fromisoformat(date).toordinal())
        date = datetime.date.fromordinal(int(multihost_utils.broadcast_one_to_all(day))).isoformat()
    if config.data.date:
        return config
    made = config.copy_and_resolve_references()
    made.data.date = date
    return made


def config_there(workdir: epath.Path) -> dict[str, Any] | None:
    """The config that a directory keeps, as it was written; None where there is none.

    Raises:
        WorkdirError: it cannot be read.
    """
    path = workdir / CONFIG
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise WorkdirError(f"{path} is not valid JSON ({error}); {DAMAGED}") from error
    if not isinstance(found, dict):
        raise WorkdirError(f"{path} holds no object, as the config of a run is; {DAMAGED}")
    return found


def claim(workdir: epath.Path, config: ml_collections.ConfigDict) -> None:
    """Makes the directory this run's own, or checks that it is.

    Raises:
        WorkdirError: see `check_config_there`.
    """
    with agreed():  # nobody writes before all have looked
        check_config_there(workdir, config)
    with agreed():
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            write_whole(workdir / CONFIG, json.dumps(config.to_dict(), indent=2, default=list) + "\n")
            _keep_template(workdir, config)


def _keep_template(workdir: epath.Path, config: ml_collections.ConfigDict) -> None:
    """Copies a chat template of the user's own into the directory: the trained model needs it wherever it goes."""
    if config.model.chat_template:
        write_whole(workdir / TEMPLATE, epath.Path(config.model.chat_template).read_text())


def write_data_report(workdir: epath.Path, numbers: dict) -> None:
    """Writes what is known of the data: examples, tokens, what was dropped and changed, findings."""
    if jax.process_index() == 0:
        write_whole(workdir / DATA_REPORT, json.dumps(numbers, indent=2) + "\n")


@contextlib.contextmanager
def only_trainer(workdir: epath.Path) -> Iterator[None]:
    """Keeps a second training process out of the directory; the operating system lets go when this one dies.

    Buckets have no locks: there it does nothing.

    Raises:
        WorkdirError: another process trains there, or its file system has no locks.
    """
    with contextlib.ExitStack() as held:
        with agreed():
            if jax.process_index() == 0 and not is_remote(workdir):
                held.enter_context(only_one(workdir, "process is training"))
        yield


@contextlib.contextmanager
def only_one(workdir: epath.Path, what: str) -> Iterator[None]:
    """Keeps all others who ask for it out of a local directory, until it is left or this process dies.

    Args:
        workdir: the directory.
        what: who may be there once, for the error: `process is training`.

    Raises:
        WorkdirError: another one is there, or its file system has no locks.
    """
    with Path(workdir / _LOCK).open("a") as file:  # does not touch the file that is there
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkdirError(
                f"another {what} in {workdir}; wait for it, stop it, or give another --workdir"
            ) from error
        except OSError as error:
            raise WorkdirError(
                f"{workdir / _LOCK} cannot be locked ({error}), and without a lock two processes could train there. "
                "Give a --workdir on a file system with locks (flock), or in a bucket."
            ) from error
        yield


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file that is either as it was or complete, whenever the writer is killed; leaves equal files alone."""
    path = epath.Path(path)
    content = content.encode("utf-8") if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == content:
        return
    if is_remote(path):
        path.write_bytes(content)  # an object appears in a bucket when it is complete
        return
    partial = Path(f"{os.fspath(path)}{_PARTIAL}")
    partial.write_bytes(content)
    os.replace(partial, path)


def is_remote(path: epath.Path) -> bool:
    """True for a bucket path."""
    return "://" in os.fspath(path)


def _may_change(name: str) -> bool:
    return is_under(name, MAY_CHANGE)


def is_under(path: str, others: Iterable[str]) -> bool:
    """Whether a field of a config, by its path, is one of others, or lies in one of them that is a section."""
    return any(path == other or path.startswith(f"{other}.") for other in others)


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; tuples as lists, as JSON has them."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def check_inputs(workdir: epath.Path, fingerprints: dict[str, str]) -> None:
    """Refuses other data or another base model than `record_environment` noted.

    Raises:
        WorkdirError: the directory's run was started on other data or another base model.
    """
    before = recorded_fingerprints(workdir)
    changed = [name for name, value in fingerprints.items() if before.get(name, value) != value]
    if changed:
        raise WorkdirError(
            f"{workdir} holds a run on other inputs: {', '.join(changed)} changed since it started. "
            "Restore them to go on with that run, or give another directory."
        )


def recorded_fingerprints(workdir: epath.Path) -> dict[str, str]:
    """The fingerprints that `record_environment` noted; none where it has not."""
    path = workdir / ENVIRONMENT
    return json.loads(path.read_text()).get("fingerprints", {}) if path.exists() else {}


def check_processes_agree(config: ml_collections.ConfigDict, fingerprints: dict[str, str]) -> None:
    """Checks that all processes of the run have the same config and inputs: each plans the order of examples by itself.

    Raises:
        WorkdirError: they differ; raised on every process.
    """
    if jax.process_count() == 1:
        return
    fields = {name: value for name, value in flatten(config.to_dict()).items() if not _may_change(name)}
    for name, value in {"config": fields, **fingerprints}.items():
        others = _unlike_process_0(value)
        with agreed():
            if others:
                raise WorkdirError(
                    f"{name}: processes {others} of {jax.process_count()} have another one than process 0. "
                    "Give the same flags and the same files to all hosts."
                )


def check_processes_see(workdir: epath.Path, step: int | None) -> None:
    """Checks that all processes of the run found the same latest checkpoint, that of `step`.

    Raises:
        WorkdirError: they did not; raised on every process.
    """
    others = _unlike_process_0(step)
    with agreed():
        if others:
            raise WorkdirError(
                f"{workdir}: here the latest checkpoint is {step}; processes {others} of {jax.process_count()} found "
                "another one than process 0. Give a --workdir that all hosts share."
            )


def _unlike_process_0(value: Any) -> list[int]:
    """The processes on which a value, as JSON, is another one than on process 0."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).digest()
    found = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8)).reshape(jax.process_count(), -1)
    return np.flatnonzero((found != found[0]).any(axis=1)).tolist()


def record_environment(
    workdir: epath.Path,
    fingerprints: dict[str, str],
    model: dict[str, str | None],
    devices: Sequence[jax.Device],
    config: ml_collections.ConfigDict,
    chosen: Mapping[str, str],
) -> None:
    """Writes versions, devices, git commit, what the run starts from and how it is executed; keeps earlier starts'.

    Args:
        workdir: the run's directory.
        fingerprints: of data and base model.
        model: the base model's source, where it was found, and its commit on the hub if it is from there.
        devices: of the run, in all processes.
        config: the run's; that of the first start is kept: others know the run by it, whatever becomes of config.json.
        chosen: what the platform decides, where the config leaves it to it.
    """
    path = workdir / ENVIRONMENT
    before = json.loads(path.read_text()) if path.exists() else None
    first = None if before is None else before.pop("config", None)
    environment = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "devices": [str(device) for device in devices],
        "device_kind": devices[0].device_kind,
        "processes": jax.process_count(),
        "chosen": dict(chosen),
        "git": git_state(),
        "model": model,
        "fingerprints": fingerprints,
        "config": config.to_dict() if first is None else first,
        "earlier_starts": [] if before is None else [*before.pop("earlier_starts", []), before],
    }
    if jax.process_index() == 0:
        write_whole(path, json.dumps(environment, indent=2, default=list) + "\n")


def git_state() -> dict[str, Any]:
    """Commit of the code that runs and whether it was changed since; empty outside a git checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "--no-optional-locks", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
            )
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {} if commit is None else {"commit": commit, "modified": bool(git("status", "--porcelain"))}
