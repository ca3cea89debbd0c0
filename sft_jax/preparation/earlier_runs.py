"""Earlier runs on parts of the data: makes of their directories the learning curve that the verdict uses."""

import json
from collections.abc import Sequence

from etils import epath

from sft_jax.audit.checks import LearningCurve, RunPoint
from sft_jax.audit.learning_curve import learning_curve
from sft_jax.runs.metric_log import FILE, read_metrics
from sft_jax.runs.workdir import ENVIRONMENT

_LOSS = "held_out/nll"


def curve_of_runs(directories: Sequence[epath.PathLike]) -> LearningCurve | None:
    """The learning curve through the best held-out losses of runs; None where no directory is given.

    Raises:
        ValueError: a directory is no run, or one without held-out losses; runs of another model or with other held-out
            rows, whose losses cannot be compared; all of them on as many examples.
    """
    if not directories:
        return None
    runs = [epath.Path(directory) for directory in directories]
    points = [_point(run) for run in runs]
    for part in ("model", "held_out"):
        prints = [_fingerprints(run).get(part) for run in runs]
        other = next((run for run, found in zip(runs, prints, strict=True) if found != prints[0]), None)
        if other is not None:
            what = "held-out rows" if part == "held_out" else "model"
            raise ValueError(f"{other}: not the {what} of {runs[0]}; losses can be compared on the same ones only.")
    curve = learning_curve(points)
    if curve is None:
        raise ValueError(
            f"{', '.join(map(str, runs))}: all trained on {points[0].examples:,} examples; a learning curve needs runs "
            "on different numbers of examples."
        )
    return curve


def _point(run: epath.Path) -> RunPoint:
    """Examples seen by the step with the lowest held-out loss, each counted once, and that loss."""
    path = run / FILE
    if not path.exists():
        raise ValueError(f"{run}: there is no {FILE}; expected the work directory of a run.")
    measured = [line for line in read_metrics(path) if line.get(_LOSS) is not None and line.get("progress/epochs")]
    if not measured:
        raise ValueError(f"{path}: no step after the first has a {_LOSS}; the run had no held-out rows.")
    best = min(measured, key=lambda line: line[_LOSS])
    examples, epochs = best["progress/examples"], best["progress/epochs"]
    return RunPoint(round(examples / max(epochs, 1.0)), best[_LOSS], str(run))


def _fingerprints(run: epath.Path) -> dict[str, str]:
    path = run / ENVIRONMENT
    if not path.exists():
        raise ValueError(f"{run}: there is no {ENVIRONMENT}; expected the work directory of a run.")
    return json.loads(path.read_text())["fingerprints"]
