"""Checkpoints: the one module that knows orbax (its v1 interface still moves).

A checkpoint holds what training changes: trained parameters, their average, moments, counters, and the position in the
pack plan; and the constants of adapter methods that have some, or without adapters the model's buffers. Frozen
parameters stay in the pretrained checkpoint they come from. The layer layout is recorded and converted on restore; any
mesh and any number of processes can restore.

What is read is compared with the digests that were written when it was saved (`digests.py`): a damaged checkpoint is
an error that says which it is and what there is beside it. No other one is taken in its place.
"""

import concurrent.futures
import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sft_jax.models.layouts import to_layout
from sft_jax.runs.checkpoint_errors import CheckpointErrors, steps_in
from sft_jax.runs.digests import damage_of, damage_of_opened, has_digests, write_digests
from sft_jax.runs.workdir import check_processes_see, is_remote
from sft_jax.sharding import abstract_like, shardings_of

Tree = Any
DIRECTORY = "checkpoints"
_FAILURES = (KeyError, ValueError, OSError)  # orbax wraps whatever fails in a KeyError of its own
CONSTANTS = "constants"  # name in a checkpoint of what is frozen and yet in it, where anything is (`kept_of_frozen`)
_SLICE_BYTES = 1 << 20  # from this size on, copies of an array write a part of it each


@dataclasses.dataclass(frozen=True)
class RunPosition:
    """What a checkpoint says beside its arrays.

    Attributes:
        layout: layer layout of the arrays.
        position: bins of the pack plan consumed so far, over all processes.
        counters: examples, tokens and supervised tokens seen.
    """

    layout: str
    position: int
    counters: dict[str, int]


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(
        self,
        workdir: epath.Path,
        keep_last: int = 1,
        best_metric: str = "",
        best_is: str = "min",
        *,
        kept_step: int | None = None,
        read_only: bool = False,
    ):
        """Opens (and makes) the directory.

        Args:
            workdir: run directory.
            keep_last: how many of the latest to keep.
            best_metric: also keep the best by this metric; empty for none.
            best_is: `min` or `max`.
            kept_step: also keep the checkpoint of this step; None for none.
            read_only: True for looking at a run that may still be going on.

        Raises:
            DamagedCheckpointError: a checkpoint cannot be opened; or not read_only, and the newest is damaged.
            UnreadCheckpointError: read_only, and the run removed a checkpoint meanwhile.
            WorkdirError: not read_only, and another process finds another newest one.
        """
        from orbax.checkpoint import v1 as ocp  # slow to import

        self._workdir, self._directory = workdir, _absolute(workdir) / DIRECTORY
        self._read_only = read_only
        self._errors = CheckpointErrors(workdir, self._directory, read_only)
        self._whole: set[int] = set()  # steps whose files have been compared
        self._without_digests: set[int] = set()  # of those, which had none to compare with
        self._sealing = concurrent.futures.ThreadPoolExecutor(1, "digests")
        self._sealed: concurrent.futures.Future | None = None
        self._check_opened()
        self._metric, self._sign = best_metric, 1 if best_is == "max" else -1
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(n=keep_last)]
        if kept_step is not None:
            keep.append(policies.CustomSteps([kept_step]))
        if best_metric:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False
                )
            )
        self._policy = policy = policies.AnyPreservationPolicy(keep)
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policy,
            cleanup_tmp_directories=not read_only,  # a half-written one may be another process's, in the making
            context=_saving_small_arrays_whole(),
        )
        if not read_only:
            check_processes_see(workdir, self.latest())  # they compare its files together
            if self.latest() is not None and self.is_whole(self.latest()):
                self._prune()

    def _prune(self) -> None:
        """Removes what a process ended between saving a checkpoint and removing the one before it left behind.

        Only when the newest is known to be whole: else it would be the only one.
        """
        from orbax.checkpoint import v1 as ocp

        context = ocp.training.preservation_policies.PreservationContext()
        found = self._checkpointer.checkpoints
        for checkpoint, keep in zip(found, self._policy.should_preserve(found, context=context), strict=True):
            if not keep:
                self._checkpointer.delete(checkpoint.step)

    def is_whole(self, step: int) -> bool:
        """Whether its files are known to be those that were saved; else restoring it shows that they can be read."""
        self._check(step)
        return step not in self._without_digests

    def _check_opened(self) -> None:
        """Looks at what orbax reads of every checkpoint before one is asked for."""
        for step in steps_in(self._directory):
            if damage := damage_of_opened(self._directory / str(step)):
                raise self._errors.replaced(step, damage) or self._errors.damaged(step, damage, others_open=False)

    def _check(self, step: int) -> None:
        """Compares the files of a checkpoint with their digests, once; each process a part of them."""
        if step in self._whole:
            return
        directory = self._directory / str(step)
        without_digests = not has_digests(directory)
        damage = damage_of(directory, jax.process_index(), jax.process_count())
        elsewhere = multihost_utils.process_allgather(np.int32(len(damage))) if jax.process_count() > 1 else 0
        if damage or np.any(elsewhere):
            damage = damage or ["another process found it so"]
            raise self._errors.replaced(step, damage) or self._errors.damaged(step, damage)
        if without_digests:
            logging.warning(
                "%s has no digests: it is not sealed yet, or what saved it could not write them. It is used as it is.",
                directory,
            )
        self._whole.add(step)
        if without_digests:
            self._without_digests.add(step)

    def _described(self, step: int) -> Tree:
        """Shapes and dtypes of what a checkpoint holds."""
        try:
            described = self._checkpointer.metadata(step).metadata
        except _FAILURES as error:
            raise self._errors.not_read(step, error) from error
        if described is None:  # orbax keeps the reason to itself; reading says it
            self._load(step, None)
            raise self._errors.not_read(step, OSError("what it holds could not be found out, and then could"))
        return described

    def save(self, step: int, arrays: Tree, position: RunPosition, metrics: dict[str, float]) -> None:
        """Starts saving; arrays are copied before it returns, files are written in the background.

        Args:
            step: optimizer steps done.
            arrays: what is kept of the state, which may be donated once this returns.
            position: what goes beside them.
            metrics: latest metrics, of which the best one may be chosen by.
        """
        self._wait_for_digests()  # before an older checkpoint is removed, whose files they are of
        if step in self.steps():
            return
        # Scores are "larger is better" whatever the metric.
        value = metrics.get(self._metric, math.nan)
        score = {"score": self._sign * value} if math.isfinite(value) else None
        response = self._checkpointer.save_checkpointables_async(
            step, {"state": arrays}, metrics=score, custom_metadata=dataclasses.asdict(position), force=True
        )
        self._sealed = self._sealing.submit(self._seal, step, response)

    def _seal(self, step: int, response: Any) -> None:
        """Writes the digests of a checkpoint when it is complete; process 0 of all files."""
        response.result()
        self._write_digests(step)

    def _write_digests(self, step: int) -> None:
        """A complete checkpoint stays one without digests: it is then looked at when it is restored."""
        if jax.process_index() != 0:
            return
        try:
            write_digests(self._directory / str(step))
        except OSError as error:
            logging.warning("%s stays without digests: %s", self._directory / str(step), error)

    def _wait_for_digests(self) -> None:
        sealed, self._sealed = self._sealed, None
        if sealed is not None:
            sealed.result()

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, in order."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def latest(self) -> int | None:
        """Step of the newest checkpoint; None where there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Step of the best checkpoint by the metric; None where none has it."""
        scored = [c for c in self._checkpointer.checkpoints if c.metrics and "score" in c.metrics]
        return max(scored, key=lambda c: c.metrics["score"]).step if scored else None

    def position(self, step: int) -> RunPosition:
        """What the checkpoint says beside its arrays."""
        self._check(step)
        try:
            return RunPosition(**self._checkpointer.metadata(step).custom_metadata)
        except _FAILURES as error:
            raise self._errors.not_read(step, error) from error

    def restore(self, step: int, like: Tree, layout: str, mesh: Mesh) -> Tree:
        """The arrays that `save` was given.

        Args:
            step: which checkpoint.
            like: arrays of these shapes and dtypes, or their abstract values.
            layout: the layer layout of `like`, whatever the checkpoint's.
            mesh: where the arrays go.

        Raises:
            DamagedCheckpointError: its files are not those that were saved.
            UnreadCheckpointError: they could not be read, or hold the state of other code.
        """
        saved_layout = self.position(step).layout
        shapes = jax.eval_shape(lambda tree: convert(tree, saved_layout), like)
        abstract = abstract_like(shapes, shardings_of(shapes, mesh))
        self._errors.check_holds(step, abstract, self._described(step), whole=True)
        restored = self._load(step, abstract)
        if not self.is_whole(step):
            self._seal_restored(step)
        if saved_layout != layout:
            out = shardings_of(like, mesh)
            restored = jax.jit(lambda tree: convert(tree, layout), out_shardings=out)(restored)
        return restored

    def _seal_restored(self, step: int) -> None:
        """What could be restored is whole: it gets its digests, and what was kept beside it until then goes."""
        self._write_digests(step)
        self._without_digests.discard(step)
        if step == self.latest() and not self._read_only:
            self._prune()

    def restore_parts(self, step: int, abstract: dict[str, Tree]) -> dict[str, Tree]:
        """Only some trees of a checkpoint, without the rest.

        Args:
            step: which checkpoint.
            abstract: by path in the state (`trained`, `opt_state/z`), their shapes, dtypes and shardings in the layout
                they were saved in.

        Raises:
            DamagedCheckpointError: its files are not those that were saved.
            UnreadCheckpointError: they could not be read, or hold the state of other code.
        """
        from orbax.checkpoint import v1 as ocp

        self._check(step)
        described = self._described(step)
        self._errors.check_holds(step, _nested(abstract), described, whole=False)
        wanted = jax.tree.map(lambda _: ocp.PLACEHOLDER, described)
        for path, tree in abstract.items():
            *parents, name = path.split("/")
            _at(wanted, parents)[name] = tree
        restored = self._load(step, wanted)
        return {path: _at(restored, path.split("/")) for path in abstract}

    def _load(self, step: int, wanted: Tree) -> Tree:
        try:
            return self._checkpointer.load_checkpointables(step, {"state": wanted})["state"]
        except _FAILURES as error:
            raise self._errors.not_read(step, error) from error

    def wait(self) -> None:
        """Returns when what was saved is on disk, with its digests."""
        self._wait_for_digests()
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits, then closes."""
        try:
            self._wait_for_digests()
        finally:
            self._sealing.shutdown()
            self._checkpointer.close()


def _saving_small_arrays_whole() -> Any:
    """Each slice of another shape is another program to compile: of small arrays one copy writes the whole."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.array_options.saving.min_slice_bytes_for_replica_parallel = _SLICE_BYTES
    return context


def _absolute(path: epath.Path) -> epath.Path:
    """orbax refuses relative paths; a bucket path is absolute as it is."""
    return path if is_remote(path) else epath.Path(os.path.abspath(path))


def _nested(trees: dict[str, Tree]) -> Tree:
    """`{"a/b": tree}` -> `{"a": {"b": tree}}`."""
    nested: dict[str, Any] = {}
    for path, tree in trees.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = tree
    return nested


def _at(tree: Tree, names: list[str]) -> Tree:
    for name in names:
        tree = tree[name]
    return tree


def convert(tree: Tree, layout: str) -> Tree:
    """A state-like tree (trained parameters, moments) with every {"params": …, "adapters": …} in `layout`."""

    def is_collections(node: Any) -> bool:
        return isinstance(node, dict) and bool(node) and set(node) <= {"params", "adapters"}

    def convert_node(node: Any) -> Any:
        if is_collections(node):
            return {name: to_layout(subtree, layout, jnp.stack) for name, subtree in node.items()}
        return node

    return jax.tree.map(convert_node, tree, is_leaf=is_collections)
