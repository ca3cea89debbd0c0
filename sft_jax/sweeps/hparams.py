"""TensorBoard's HParams tab of a sweep, without TensorFlow: one experiment in the sweep's root, a session in each run.

A session is two event files beside those of the run. `events.out.tfevents.0.session` says what the run has; its name
stands before those of the run. `events.out.tfevents.session_end` stands behind them, and is there from the end of the
run on: how it ended, and its figures under tags of their own (`final/…`, `best/…`, `cost/…`), because a cell of the
table is the last value of a tag. Every file is written whole. Runs that differ in their seed alone are one row.

Only the first experiment that TensorBoard finds counts, and it keeps what it read: after runs were added to a sweep it
has to be started again.
"""

import contextlib
import datetime
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from sft_jax.runs.result import RunEnd, read_result
from sft_jax.runs.workdir import SESSION, SESSION_END, WorkdirError, write_whole
from sft_jax.sweeps.names import short_keys
from sft_jax.sweeps.settings import Stated, exact_text, read_stated, setting_name
from sft_jax.sweeps.status import RunStatus, read_status

EXPERIMENT = "events.out.tfevents.experiment"
_STEP_METRICS = ("train/", "progress/", "speed/")  # of training steps; of these the last loss alone is shown
_TRAIN_LOSS = "train/loss"
_GOES_ON = ("waiting", "running", "paused")
_MOST_VALUES = 12  # of a number that are listed one by one; of more there is an interval
# The page shows the first few columns: what one looks for stands first.
_IN_ORDER = ("best/", "final/tasks/", "final/held_out/", "final/train/", "final/", "cost/")


def write_experiment(root: epath.PathLike) -> None:
    """Writes the experiment of a sweep anew: which fields differ, in which values, and which metrics there are.

    Metrics are those of the runs that came to their end; before the first has, there is no experiment, and TensorBoard
    shows what sessions say.

    Raises:
        WorkdirError: the directory holds no sweep, or a file of it is damaged.
    """
    root = epath.Path(root)
    stated = read_stated(root)
    ends = filter(None, (read_result(root / name) for name in stated.overrides))
    tags = dict.fromkeys(tag for end in ends for tag in _figures(end))
    if not tags:
        (root / EXPERIMENT).unlink(missing_ok=True)
        return
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2  # slow to import

    keys = short_keys(stated.factors)
    experiment = api_pb2.Experiment(
        description=f"{stated.sweep}: {len(stated.overrides)} runs",
        hparam_infos=[
            _hparam_info(keys[field], [stated.value(run, field) for run in stated.overrides])
            for field in stated.factors
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in sorted(tags, key=_place)],
    )
    data = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    write_whole(root / EXPERIMENT, _event_file([_event(0.0, 0, [_hparams_value(metadata.EXPERIMENT_TAG, data)])]))


def write_session(root: epath.PathLike, run: str) -> None:
    """Writes what HParams shows of a run as it is now; of one that was never started, nothing.

    Call it when the run ends, however it did; and when it begins, to have it listed while it runs.

    Args:
        root: of the sweep.
        run: its name.

    Raises:
        WorkdirError: the directory holds no sweep, or a file of it or of the run is damaged.
    """
    _write_session(epath.Path(root), read_stated(root), run)


def show_session(root: epath.PathLike, run: str) -> None:
    """`write_session` in the process that executes the run, the first of several."""
    if jax.process_index() == 0:
        with not_failing(lambda text: print(text, file=sys.stderr)):
            write_session(root, run)


@contextlib.contextmanager
def not_failing(say: Callable[[str], object]) -> Iterator[None]:
    """What cannot be written for TensorBoard in here is said, and runs go on."""
    try:
        yield
    except (OSError, WorkdirError) as error:
        say(f"TensorBoard's HParams are not up to date: {error}")


def write_hparams(root: epath.PathLike) -> None:
    """Writes the experiment and the sessions of all runs, those included whose launcher was killed.

    Raises:
        WorkdirError: the directory holds no sweep, or a file of it or of a run is damaged.
    """
    root = epath.Path(root)
    stated = read_stated(root)
    for run in stated.overrides:
        _write_session(root, stated, run)
    write_experiment(root)


def _write_session(root: epath.Path, stated: Stated, run: str) -> None:
    directory = root / run
    if not directory.exists():
        return
    status, end = read_status(directory), read_result(directory)
    if status.state == "waiting" and end is None:
        return
    write_whole(directory / SESSION, _event_file(_session_start(stated, run, status)))
    if status.state in _GOES_ON and not (end and end.done):
        (directory / SESSION_END).unlink(missing_ok=True)
    else:
        write_whole(directory / SESSION_END, _event_file(_session_end(status, end)))


def _session_start(stated: Stated, run: str, status: RunStatus) -> list[Any]:
    """Its step is below all of the run: TensorBoard's own reader drops what an earlier file has from the step on at
    which the run began."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    keys, values = short_keys(stated.factors), stated.setting(run)
    start = plugin_data_pb2.SessionStartInfo(group_name=setting_name(values), start_time_secs=_seconds(status.started))
    for field, value in values.items():
        _set_value(start.hparams[keys[field]], value)
    data = plugin_data_pb2.HParamsPluginData(session_start_info=start)
    return [_event(_seconds(status.started), -1, [_hparams_value(metadata.SESSION_START_INFO_TAG, data)])]


def _session_end(status: RunStatus, end: RunEnd | None) -> list[Any]:
    """How the run ended, and its figures if it came to its end."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    done, ended = end is not None and end.done, _seconds(status.ended)
    ended_as = api_pb2.STATUS_SUCCESS if done else api_pb2.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=ended_as, end_time_secs=ended)
    data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
    events = [_event(ended, end.step if end else 0, [_hparams_value(metadata.SESSION_END_INFO_TAG, data)])]
    for tag, (step, value) in (_figures(end) if end else {}).items():
        events.append(_event(ended, step, [summary_pb2.Summary.Value(tag=tag, simple_value=value)]))
    return events


def _figures(end: RunEnd) -> dict[str, tuple[int, float]]:
    """Tag -> (step, value) of what is shown of a run; of one that did not come to its end, nothing: the mean over
    seeds would mix it with others."""
    if not end.done:
        return {}
    kept = {
        name: value for name, value in end.metrics.items() if not name.startswith(_STEP_METRICS) or name == _TRAIN_LOSS
    }
    found = {f"final/{name}": (end.step, value) for name, value in kept.items()}
    if end.best is not None:
        metric, step = end.best["metric"], int(end.best["step"])
        found[f"best/{metric}"] = (step, end.best["metrics"].get(metric, math.nan))
    costs = {
        "tokens": end.counters.get("tokens"),
        "seconds": end.seconds,
        "peak_memory_bytes": end.peak_memory_bytes,
    }
    found |= {f"cost/{name}": (end.step, value) for name, value in costs.items() if value is not None}
    return {tag: (step, float(value)) for tag, (step, value) in found.items() if math.isfinite(value)}


def _place(tag: str) -> int:
    return next(place for place, prefix in enumerate(_IN_ORDER) if tag.startswith(prefix))


def _hparam_info(name: str, values: Sequence[Any]) -> Any:
    from google.protobuf import struct_pb2
    from tensorboard.plugins.hparams import api_pb2

    made = [_set_value(struct_pb2.Value(), value) for value in values if value is not None]
    kinds = {one.WhichOneof("kind") for one in made}
    types = {"number_value": api_pb2.DATA_TYPE_FLOAT64, "bool_value": api_pb2.DATA_TYPE_BOOL}
    info = api_pb2.HParamInfo(name=name, differs=len({str(value) for value in values}) > 1)
    info.type = types.get(next(iter(kinds)), api_pb2.DATA_TYPE_STRING) if len(kinds) == 1 else api_pb2.DATA_TYPE_STRING
    if info.type == api_pb2.DATA_TYPE_FLOAT64:
        numbers = sorted({one.number_value for one in made})
        if len(numbers) > _MOST_VALUES:
            info.domain_interval.min_value, info.domain_interval.max_value = numbers[0], numbers[-1]
        else:
            info.domain_discrete.extend(numbers)
    elif info.type == api_pb2.DATA_TYPE_BOOL:
        info.domain_discrete.extend(sorted({one.bool_value for one in made}))
    else:
        info.domain_discrete.extend(sorted({one.string_value for one in made}))
    return info


def _set_value(made: Any, value: Any) -> Any:
    """Sets a `google.protobuf.Value`; what is neither number, bool nor text is shown as text."""
    if isinstance(value, bool):
        made.bool_value = value
    elif isinstance(value, int | float):
        made.number_value = value
    elif value is not None:
        made.string_value = exact_text(value)
    return made


def _seconds(time: str | None) -> float:
    """Since the epoch; 0 where it is not known, so that what is written depends on the run's files alone."""
    return 0.0 if time is None else datetime.datetime.fromisoformat(time).timestamp()


def _hparams_value(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import metadata

    value = summary_pb2.Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))
    value.tensor.CopyFrom(metadata.NULL_TENSOR)
    return value


def _event(wall_time: float, step: int, values: Sequence[Any]) -> Any:
    from tensorboard.compat.proto import event_pb2, summary_pb2

    return event_pb2.Event(wall_time=wall_time, step=step, summary=summary_pb2.Summary(value=values))


def _event_file(events: Sequence[Any]) -> bytes:
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    writer = RecordWriter(file)
    for event in (event_pb2.Event(wall_time=events[0].wall_time, file_version="brain.Event:2"), *events):
        writer.write(event.SerializeToString())
    return file.getvalue()
