"""Several processes give the numbers of one, wherever the axes of the mesh lie between them, and fail together."""

import fcntl
import functools
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_jax.runs import workdir as workdirs
from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from sft_jax.training.gap import GAP
from tests import tiny
from tests.models import families

DRIVER = Path(__file__).with_name("driver.py")
STEPS = 4
OVERRIDES = {
    "duration": f"{STEPS} steps",
    "optimizer.learning_rate": 1e-3,  # so that what differs by rounding is not blown up from step to step
    "batch.sequences": 8,
    "data.sequence_length": 96,
    "execution.layer_layout": "scan",
    "evaluation.every": "2 steps",
    "evaluation.samples": 3,
    "evaluation.sample_tokens": 4,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Inputs of a dense model and of a mixture of experts."""
    made = tmp_path_factory.mktemp("processes")
    families.save(families.torch_model("mixtral"), made / "mixture" / "model")
    tiny.tokenizer().save_pretrained(made / "mixture" / "model")
    tiny.write_rows(made / "mixture" / "train.jsonl", 48)
    tiny.write_rows(made / "mixture" / "held_out.jsonl", 12, seed=1)
    (made / "dense").mkdir()
    tiny.config(made / "dense")
    return made


@pytest.fixture(scope="module")
def one_process(root):
    """What a run in this process says, by the kind of model."""

    @functools.cache
    def said(kind: str) -> tuple[list[dict], dict[str, str]]:
        run(tiny.config(root / kind, **OVERRIDES), root / kind / "alone")
        return history(root / kind / "alone")

    return said


def history(workdir: Path) -> tuple[list[dict], dict[str, str]]:
    """The lines of the metrics but for speeds, and the last texts by their names."""
    lines = [
        {name: value for name, value in line.items() if not name.startswith("speed/")}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]
    events = EventAccumulator(str(workdir))
    events.Reload()
    names = [name for name in events.Tags()["tensors"] if name.startswith("samples/")]
    return lines, {name: events.Tensors(name)[-1].tensor_proto.string_val[0].decode() for name in names}


def assert_same(found: tuple[list[dict], dict[str, str]], expected: tuple[list[dict], dict[str, str]]) -> None:
    (lines, texts), (expected_lines, expected_texts) = found, expected
    assert [line["step"] for line in lines] == [line["step"] for line in expected_lines] == list(range(STEPS + 1))
    for line, other in zip(lines, expected_lines, strict=True):
        assert line.keys() == other.keys()
        gap, expected_gap = line.get(GAP, 0.0), other.get(GAP, 0.0)  # small differences of two losses
        assert gap == pytest.approx(expected_gap, abs=1e-5 * line.get("held_out/loss", 0.0))
        assert line | {GAP: 0.0} == pytest.approx(other | {GAP: 0.0}, rel=1e-5), line["step"]
    assert len(expected_texts) == 3
    assert texts == expected_texts


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def outputs_of(root: Path, workdir: Path, processes: int, devices: int, **more) -> list[list[str]]:
    """Trains on several processes; the lines each wrote. `at_process` has what one of them is told beside."""
    at_process = more.pop("at_process", {})
    common = {
        "root": str(root),
        "workdir": str(workdir),
        "coordinator": free_address(),
        "processes": processes,
        "devices": devices,
    }
    specs = [common | more | {"process": number} | at_process.get(number, {}) for number in range(processes)]
    running = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), json.dumps([spec])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for spec in specs
    ]
    return [process.communicate(timeout=500)[0].strip().splitlines() for process in running]


def start(root: Path, workdir: Path, processes: int, devices: int, **more) -> list[dict]:
    """Trains on several processes, all of which leave in good order; how each ended."""
    outputs = outputs_of(root, workdir, processes, devices, **more)
    assert [lines[-1:] for lines in outputs] == [["[0]"]] * processes, [lines[-60:] for lines in outputs]
    return [json.loads(lines[-2]) for lines in outputs]


def mesh(**sizes: int) -> dict[str, int]:
    return {f"mesh.{axis}": sizes.get(axis, 1) for axis in ("replica", "fsdp", "expert", "tensor")}


INTERLEAVED = [0, 2, 1, 3, 4, 6, 5, 7]  # of 4 processes with 2 devices, two neighbours share two groups of two
ACROSS = {
    "tensor over 2 processes": ("dense", 2, 2, mesh(tensor=4), None),
    "rows of a process lie apart": ("dense", 2, 4, mesh(fsdp=8), [0, 4, 1, 5, 2, 6, 3, 7]),
    "rows and tensor over 4 processes": ("dense", 4, 2, mesh(fsdp=4, tensor=2), INTERLEAVED),
    "replicas of a tensor axis over 4 processes": ("dense", 4, 2, mesh(replica=2, tensor=4), None),
    "experts over 2 processes": ("mixture", 2, 2, mesh(expert=4), None),
    "experts and tensor over 4 processes": ("mixture", 4, 2, mesh(expert=4, tensor=2), [0, 4, 1, 5, 2, 6, 3, 7]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ACROSS)
def test_the_same_numbers_wherever_axes_lie(root, one_process, case):
    kind, processes, devices, sizes, order = ACROSS[case]
    workdir = root / kind / case
    more = {"overrides": OVERRIDES | sizes} | ({"device_order": order} if order else {})
    ends = start(root / kind, workdir, processes, devices, **more)
    assert [end["step"] for end in ends] == [STEPS] * processes
    assert_same(history(workdir), one_process(kind))


@pytest.mark.slow
def test_a_checkpoint_of_shared_rows_goes_on_elsewhere(root, one_process):
    """4 processes that share rows leave early; this process goes on with its 8 devices."""
    workdir = root / "dense" / "left early"
    sizes = mesh(fsdp=4, tensor=2)
    leave = {1: {"moment": "dispatch", "step": 2, "signal": "SIGTERM"}}
    more = {"overrides": OVERRIDES | sizes, "device_order": INTERLEAVED, "at_process": leave}
    ends = start(root / "dense", workdir, 4, 2, **more)
    assert {end["step"] for end in ends} < set(range(2, STEPS)), ends
    assert run(tiny.config(root / "dense", **OVERRIDES), workdir).step == STEPS
    assert_same(history(workdir), one_process("dense"))


@pytest.mark.slow
def test_all_end_early_together_and_find_that_they_have(root):
    """Process 0 decides; larger is said to be better, so that no evaluation is."""
    overrides = OVERRIDES | {"duration": "10 steps", "checkpoint.best_is": "max", "evaluation.patience": 2}
    workdir = root / "dense" / "early"
    for _ in range(2):
        ends = start(root / "dense", workdir, 2, 1, overrides=overrides)
        assert [end["step"] for end in ends] == [4, 4]
        assert [line["step"] for line in read_metrics(workdir / "metrics.jsonl")] == list(range(5))


def claimed(root: Path, name: str) -> Path:
    """A directory that holds the config of the run."""
    workdir = epath.Path(root / "dense" / name)
    config = tiny.config(root / "dense", **OVERRIDES)
    workdirs.claim(workdir, workdirs.with_date(workdir, config))
    return Path(workdir)


def assert_both_end(root: Path, workdir: Path, failing: int, reason: str, **more) -> None:
    """Both leave with status 1; one says its own reason, the other whose it is."""
    outputs = outputs_of(root / "dense", workdir, 2, 1, **{"overrides": OVERRIDES} | more)
    texts = [" ".join(lines) for lines in outputs]
    assert [lines[-1] for lines in outputs] == ["[1]", "[1]"], texts
    assert all(reason in text for text in texts), texts
    assert f"process {failing} of 2: " in texts[1 - failing], texts
    assert f"process {failing} of 2: " not in texts[failing], texts


@pytest.mark.slow
def test_a_lock_that_process_0_cannot_have(root):
    workdir = claimed(root, "locked")
    with (workdir / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_both_end(root, workdir, 0, "another process is training in")


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_row_that_one_process_cannot_read(root, tmp_path, failing):
    for process, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        text = (root / "dense" / "train.jsonl").read_text()
        bad = text.replace('"completion"', '"answer', 1)
        (tmp_path / folder / "train.jsonl").write_text(bad if process == failing else text)
    places = {process: {"cwd": str(tmp_path / folder)} for process, folder in enumerate("ab")}
    overrides = {"overrides": OVERRIDES | {"data.train": "train.jsonl"}, "at_process": places}
    assert_both_end(root, tmp_path / "run", failing, "train.jsonl:1", **overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_directory_that_the_hosts_do_not_share(root, one_process, tmp_path):
    """Process 1 finds nothing to continue where process 0 does: each says what it found."""
    one_process("dense")
    shutil.copytree(root / "dense" / "alone", tmp_path / "a")
    shutil.copytree(root / "dense" / "alone", tmp_path / "b", ignore=shutil.ignore_patterns("checkpoints"))
    outputs = outputs_of(
        root / "dense",
        tmp_path / "a",
        2,
        1,
        overrides=OVERRIDES,
        at_process={1: {"workdir": str(tmp_path / "b")}},
    )
    assert [lines[-1] for lines in outputs] == ["[1]", "[1]"], outputs
    for lines, found in zip(outputs, (STEPS, None), strict=True):
        text = " ".join(lines)
        assert f"here the latest checkpoint is {found}; processes [1] of 2 found another one" in text
        assert "Give a --workdir that all hosts share" in text
    ends = start(root / "dense", tmp_path / "a", 2, 1, overrides=OVERRIDES)
    assert [end["step"] for end in ends] == [STEPS] * 2


@pytest.mark.slow
def test_checkpoints_that_cannot_be_opened(root):
    """Each sees for itself that there is no directory."""
    workdir = claimed(root, "no checkpoints")
    (workdir / "checkpoints").write_text("not a directory")
    outputs = outputs_of(root / "dense", workdir, 2, 1, overrides=OVERRIDES)
    assert [lines[-1] for lines in outputs] == ["[1]", "[1]"], outputs
    assert all("Not a directory" in " ".join(lines) for lines in outputs), outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing", "moment"), [(0, "before log"), (1, "dispatch"), (1, "in evaluation"), (0, "before save")]
)
def test_a_fault_in_the_middle_of_the_run(root, failing, moment):
    """The other one waits for its part of a step, of an evaluation or of a checkpoint."""
    fault = {"moment": moment, "step": 2, "error": "No space left on device"}
    workdir = root / "dense" / f"{moment} {failing}"
    assert_both_end(root, workdir, failing, "OSError: No space left on device", at_process={failing: fault})


ROOT = Path(__file__).parents[2]
START_UP_SECONDS = 300  # after which JAX gives up waiting for a process that does not join


def commands(arguments: list[list[str]]) -> list[tuple[int, str]]:
    """Exit status and errors of the command on each process; all end before JAX gives up waiting for one."""
    address = free_address()
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "sft_jax.train", "--config=configs/sft.py", "--distributed"),
                *(f"--coordinator={address}", f"--num_processes={len(arguments)}", f"--process_id={number}", *more),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, more in enumerate(arguments)
    ]
    try:
        errors = [process.communicate(timeout=START_UP_SECONDS - 60)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, errors, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (
            "--config.batch.sequences=many",
            "error in the config: --config.batch.sequences=many: expected a whole number",
        ),
        (
            "--config.batch.row=8",
            "error in the config: --config.batch.row=8: the section config.batch has no field 'row",
        ),
        ("--wrkdir=x", "error in the flags: Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        ("stray", "error in the flags: unexpected argument 'stray'; flags look like --name=value"),
        ("--config.batch.sequences=0", "--config.batch.sequences=0 must be at least 1"),
    ],
)
@pytest.mark.parametrize("failing", [0, 1])
def test_flags_of_one_process_that_are_wrong(tmp_path, failing, bad, reason):
    """It joins the others to say so: both end with the reason, and nobody waits for a time-out."""
    good = [f"--workdir={tmp_path / 'run'}"]
    ends = commands([[*good, bad] if number == failing else good for number in range(2)])
    assert [status for status, _ in ends] == [1, 1], ends
    assert reason in ends[failing][1], ends
    assert f"error: process {failing} of 2: " in ends[1 - failing][1], ends
    assert reason in ends[1 - failing][1], ends
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_flags_that_are_wrong_on_all_processes(tmp_path):
    ends = commands([[f"--workdir={tmp_path / 'run'}", "--config.batch.sequences=many"]] * 2)
    assert [status for status, _ in ends] == [1, 1], ends
    assert all(text.startswith("error in the config: --config.batch.sequences=many") for _, text in ends), ends
