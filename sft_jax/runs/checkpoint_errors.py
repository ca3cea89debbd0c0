"""Error messages for checkpoints that cannot be read: the cause, which others there are, and how to go on.

Serves checkpoints.py. Damage is what a digest or a file that cannot be parsed shows, and nothing else: only damage
comes with the advice to remove something.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from sft_jax.runs.digests import MISSING, damage_of, has_digests
from sft_jax.runs.workdir import ENVIRONMENT

Tree = Any
_LOST = "NOT_FOUND"
_DAMAGE = (_LOST, "DATA_LOSS", "OUT_OF_RANGE")  # a file that is not there, cannot be parsed, or is cut
_SHORT, _NAMED = 300, 5  # characters of an error, and names of arrays, that a message holds


class DamagedCheckpointError(ValueError):
    """Files of a checkpoint are not those that were saved. The message says which, and how to go on."""


class UnreadCheckpointError(ValueError):
    """A checkpoint could not be read, and nothing shows that its files are damaged. The message says why."""


@dataclasses.dataclass(frozen=True)
class CheckpointErrors:
    """The errors of the checkpoints of one run directory.

    Attributes:
        workdir: the run directory.
        directory: of its checkpoints.
        read_only: whether a run that may still be going on is looked at.
    """

    workdir: epath.Path
    directory: epath.Path
    read_only: bool

    def damaged(self, step: int, damage: list[str], others_open: bool = True) -> DamagedCheckpointError:
        """The error, with what there is beside this checkpoint; `others_open`: that can be read while it is there."""
        directory, others = self.directory / str(step), [s for s in steps_in(self.directory) if s != step]
        more = f" (and {len(damage) - 1} more files)" if len(damage) > 1 else ""
        said = f"the checkpoint {directory} is damaged: {damage[0]}{more}."
        whole = [other for other in others if not damage_of(self.directory / str(other))]
        if not whole:
            there = "the others are damaged too" if others else "there is no other one"
            return DamagedCheckpointError(
                f"{said}\nPut its files back from a copy if there is one; {there}: else train again, with another "
                f"--workdir or after removing {self.workdir}."
            )
        named = f"; a command that reads a run takes that one by name too, {self.workdir}:{max(whole)}"
        return DamagedCheckpointError(
            f"{said}\nOf the others that of step {max(whole)} is whole. To go on from there remove the directory "
            f"{directory} and start the same command again{named if others_open else ''}."
        )

    def replaced(self, step: int, damage: list[str]) -> UnreadCheckpointError | None:
        """The error where files are missing because a run that goes on removes the checkpoint; None where it does not.

        Args:
            step: of the checkpoint.
            damage: what is wrong with it, as lines.
        """
        directory, there = self.directory / str(step), steps_in(self.directory)
        is_removed = not directory.exists() or (max(there) > step and any(MISSING in line for line in damage))
        if not self.read_only or not is_removed:
            return None
        newer = f"that of step {max(there)} is there" if there else "no other one is there yet"
        return UnreadCheckpointError(
            f"the checkpoint {directory} was replaced while it was read, as a run that goes on does with those before "
            f"its latest; {newer}. Start the same command again; if it ends like this each time, files of the "
            "checkpoint are lost."
        )

    def not_read(self, step: int, error: Exception) -> ValueError:
        """What to say where files could not be read that were found to be as they were saved, as far as is known."""
        directory, causes = self.directory / str(step), list(_causes(error))
        damage = damage_of(directory)
        if not damage and not has_digests(directory) and any(_says(cause, *_DAMAGE) for cause in causes):
            what = f"a file of its arrays {MISSING}" if _says(causes[-1], _LOST) else "what it holds cannot be read"
            damage = [f"{what} ({_in_short(causes[-1])})"]
        if damage:
            return self.replaced(step, damage) or self.damaged(step, damage)
        return UnreadCheckpointError(
            f"the checkpoint {directory} could not be read: {_in_short(causes[-1])}. Its files are as far as is known "
            "those that were saved: start the same command again."
        )

    def check_holds(self, step: int, wanted: Tree, described: Tree, *, whole: bool) -> None:
        """Checks that a checkpoint holds arrays of these names and shapes; `whole`: and no others.

        Raises:
            UnreadCheckpointError: it was saved by code with another state; names what differs.
        """
        here, there = _by_name(wanted), _by_name(described)
        problems = []
        if lacking := sorted(here.keys() - there.keys()):
            problems.append(f"has no {_listed(lacking, here)}")
        if whole and (more := sorted(there.keys() - here.keys())):
            problems.append(f"has {_listed(more, there)}, of which this code knows nothing")
        for name in sorted(here.keys() & there.keys()):
            if tuple(here[name].shape) != tuple(there[name].shape):
                problems.append(f"has {name} of shape {tuple(there[name].shape)}, not {tuple(here[name].shape)}")
        if problems:
            raise UnreadCheckpointError(
                f"the checkpoint {self.directory / str(step)} was saved by other code: its state "
                f"{'; it '.join(problems[:3])}. Use the code that saved it (its commit is in "
                f"{self.workdir / ENVIRONMENT}), or train anew with another --workdir, on the result of that run if "
                f"you like: --config.model.source={self.workdir}."
            )


def steps_in(directory: epath.Path) -> list[int]:
    """Steps of the checkpoints in a directory, in order; they have their final name when they are complete."""
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came of, the first cause last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _says(error: BaseException, *kinds: str) -> bool:
    """Whether tensorstore found one of these: it tells its errors apart by the first word of their text alone."""
    return any(kind in str(error) for kind in kinds)


def _in_short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:_SHORT]}"


def _by_name(tree: Tree) -> dict[str, Any]:
    """Leaves by their path, which is the same for a dict and for a tuple with names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _listed(names: Sequence[str], among: Collection[str]) -> str:
    """Names of arrays in short: a part of the state where all of it is meant."""
    of = lambda part, paths: {path for path in paths if path.partition("/")[0] == part}
    parts = dict.fromkeys(name.partition("/")[0] for name in names)
    short = [name for part in parts for name in ([part] if of(part, names) == of(part, among) else of(part, names))]
    more = f" and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
    return ", ".join(f"`{name}`" for name in sorted(short)[:_NAMED]) + more
