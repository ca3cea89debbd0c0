"""Runs side by side and each by itself, and what both have written."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from sft_jax.runs.base import open_run
from sft_jax.runs.metric_log import read_metrics
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from sft_jax.training.stacked import run_stacked


def alone(configs, root, name="alone"):
    """Directories of the runs, each trained by itself."""
    workdirs = [root / f"{name} {number}" for number in range(len(configs))]
    for config, workdir in zip(configs, workdirs, strict=True):
        run(config, workdir)
    return workdirs


def stacked(configs, root, name="stacked", **given):
    """Directories of the runs, trained in one program, and how they ended."""
    workdirs = [root / f"{name} {number}" for number in range(len(configs))]
    return workdirs, run_stacked(configs, workdirs, **given)


def lines_of(workdir):
    """What is logged, without what depends on the clock."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


def trained_of(workdir):
    """The trained arrays of the last checkpoint, by path, each layer by itself."""
    tree = open_run(str(workdir)).trained("unrolled", inference_mesh(jax.devices()))
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def assert_same_history(workdir, other, rtol=1e-5, atol=1e-6):
    """The same steps, with the same figures."""
    ours, theirs = lines_of(workdir), lines_of(other)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for our, their in zip(ours, theirs, strict=True):
        for name, value in our.items():
            np.testing.assert_allclose(value, their[name], rtol=rtol, atol=atol, err_msg=f"{our['step']} {name}")


def assert_same_weights(workdir, other, rtol=1e-5):
    """The same trained arrays, of the same shapes: the norm of the difference relative to that of the array."""
    ours, theirs = trained_of(workdir), trained_of(other)
    assert {path: leaf.shape for path, leaf in ours.items()} == {path: leaf.shape for path, leaf in theirs.items()}
    for path, leaf in ours.items():
        difference, size = np.linalg.norm(leaf - theirs[path]), np.linalg.norm(theirs[path])
        assert difference <= rtol * size, f"{path}: {difference / size:.1e}"
