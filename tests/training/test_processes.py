"""Several processes give the numbers of one, wherever the axes of the mesh lie between them, and fail together."""

import fcntl
import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_jax.models.partitioning import MESH_AXES
from sft_jax.peers import GONE
from sft_jax.runs import workdir as workdirs
from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from sft_jax.training.gap import GAP
from tests import distillation, preferences, tiny
from tests.children import Children, Ended
from tests.models import families
from tests.ports import free_address

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
QUICK = OVERRIDES | {"evaluation.samples": 0}  # metrics are the same


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
    assert_same_lines(lines, expected_lines)
    assert len(expected_texts) == 3
    assert texts == expected_texts


def assert_same_lines(lines: list[dict], expected_lines: list[dict]) -> None:
    assert [line["step"] for line in lines] == [line["step"] for line in expected_lines] == list(range(STEPS + 1))
    for line, other in zip(lines, expected_lines, strict=True):
        assert line.keys() == other.keys()
        gap, expected_gap = line.get(GAP, 0.0), other.get(GAP, 0.0)  # small differences of two losses
        assert gap == pytest.approx(expected_gap, abs=1e-5 * line.get("held_out/loss", 0.0))
        assert line | {GAP: 0.0} == pytest.approx(other | {GAP: 0.0}, rel=1e-5), line["step"]


@pytest.fixture
def ends_of(children):
    return functools.partial(train, children)


@pytest.fixture
def start(children):
    return functools.partial(train_well, children)


def train(children: Children, root: Path, workdir: Path, processes: int, devices: int, **more) -> list[Ended]:
    """Trains on several processes; how each ended. `at_process` has what one of them is told beside."""
    at_process = more.pop("at_process", {})
    common = {
        "root": str(root),
        "workdir": str(workdir),
        "coordinator": free_address(),
        "processes": processes,
        "devices": devices,
    }
    specs = [common | more | {"process": number} | at_process.get(number, {}) for number in range(processes)]
    return children.run([("tests.training.driver:train", spec) for spec in specs])


def train_well(children: Children, *arguments, **more) -> list[dict]:
    """Trains on several processes, all of which leave in good order; at which step, and why."""
    ends = train(children, *arguments, **more)
    assert [end.status for end in ends] == [0] * len(ends), [end.output[-5000:] for end in ends]
    return [end.result for end in ends]


def mesh(**sizes: int) -> dict[str, int]:
    return {f"mesh.{axis}": sizes.get(axis, 1) for axis in MESH_AXES}


INTERLEAVED = [0, 2, 1, 3, 4, 6, 5, 7]  # of 4 processes with 2 devices, two neighbours share two groups of two
ACROSS = {
    "tensor over 2 processes": ("dense", 2, 2, mesh(tensor=4), None),
    "rows of a process lie apart": ("dense", 2, 4, mesh(fsdp=8), [0, 4, 1, 5, 2, 6, 3, 7]),
    "rows and tensor over 4 processes": ("dense", 4, 2, mesh(fsdp=4, tensor=2), INTERLEAVED),
    "replicas of a tensor axis over 4 processes": ("dense", 4, 2, mesh(replica=2, tensor=4), None),
    "experts over 2 processes": ("mixture", 2, 2, mesh(expert=4), None),
    "sequences over 2 processes": ("dense", 2, 4, mesh(context=8), None),
    "rows and sequences over 4 processes": ("dense", 4, 2, mesh(fsdp=2, context=4), INTERLEAVED),
    "sequences and tensor over 2 processes": ("dense", 2, 4, mesh(context=4, tensor=2), [0, 4, 1, 5, 2, 6, 3, 7]),
    "experts and sequences over 4 processes": ("mixture", 4, 2, mesh(expert=2, context=4), None),
    "experts and tensor over 4 processes": ("mixture", 4, 2, mesh(expert=4, tensor=2), [0, 4, 1, 5, 2, 6, 3, 7]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ACROSS)
def test_the_same_numbers_wherever_axes_lie(root, one_process, start, case):
    kind, processes, devices, sizes, order = ACROSS[case]
    workdir = root / kind / case
    more = {"overrides": OVERRIDES | sizes} | ({"device_order": order} if order else {})
    ends = start(root / kind, workdir, processes, devices, **more)
    assert [end["step"] for end in ends] == [STEPS] * processes
    assert_same(history(workdir), one_process(kind))


@pytest.mark.slow
def test_a_checkpoint_of_shared_rows_goes_on_elsewhere(root, one_process, start):
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
def test_all_end_early_together_and_find_that_they_have(root, start):
    """Process 0 decides; larger is said to be better, so that no evaluation is."""
    overrides = QUICK | {"duration": "10 steps", "checkpoint.best_is": "max", "evaluation.patience": 2}
    workdir = root / "dense" / "early"
    for _ in range(2):
        ends = start(root / "dense", workdir, 2, 1, overrides=overrides)
        assert [end["step"] for end in ends] == [4, 4]
        assert [line["step"] for line in read_metrics(workdir / "metrics.jsonl")] == list(range(5))


@pytest.mark.slow
@pytest.mark.parametrize("make", ["config", "labelled_config"])
def test_judged_answers_and_their_reference(root, ends_of, tmp_path, make):
    """2 processes: the log and the reference of one; the next run finds its values where they are kept."""
    judged = QUICK | {"checkpoint.best_metric": "", "data.sequence_length": 288, "mesh.fsdp": 4, "mesh.tensor": 2}
    kept_in = lambda name: {"overrides": judged | {"data.cache": str(tmp_path / f"{name} cache")}}
    run(getattr(preferences, make)(root / "dense", **kept_in("alone")["overrides"]), tmp_path / "alone")
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # `tensor` lies between the processes
    asked = {"config": f"tests.preferences:{make}", "device_order": order, **kept_in("together")}
    for name, source in (("together", "computed, kept in"), ("again", "from the cache")):
        ends = ends_of(root / "dense", tmp_path / name, 2, 4, **asked)
        assert [end.status for end in ends] == [0, 0], [end.output[-5000:] for end in ends]
        assert ends[0].output.count(f"log-probabilities, {source}") == 2  # of rows that are trained, and held-out ones
        assert_same_answers(history(tmp_path / name)[0], history(tmp_path / "alone")[0])
    found, expected = (reference_in(tmp_path / f"{name} cache") for name in ("together", "alone"))
    assert [len(values) for values in found] == [len(values) for values in expected]
    for values, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, other, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [0, 8])
def test_a_teacher(root, ends_of, tmp_path, top_k):
    """2 processes: its weights are spread over both, or one keeps what the next run finds."""
    taught = QUICK | {"teacher.top_k": top_k, "mesh.fsdp": 4, "mesh.tensor": 2}
    kept_in = lambda name: {"overrides": taught | {"data.cache": str(tmp_path / f"{name} cache")}}
    run(distillation.config(root / "dense", **kept_in("alone")["overrides"]), tmp_path / "alone")
    asked = {"config": "tests.distillation:config", "device_order": [0, 4, 1, 5, 2, 6, 3, 7], **kept_in("together")}
    for name, source in (("together", "computed, kept in"), ("again", "from the cache")):
        ends = ends_of(root / "dense", tmp_path / name, 2, 4, **asked)
        assert [end.status for end in ends] == [0, 0], [end.output[-5000:] for end in ends]
        assert ends[0].output.count(f" targets, {source}") == (2 if top_k else 0)  # of trained and held-out rows
        assert_same_lines(history(tmp_path / name)[0], history(tmp_path / "alone")[0])


def reference_in(cache: Path) -> list[np.ndarray]:
    """The values of each file, behind its checksum; those of fewer targets first."""
    return sorted((np.frombuffer(path.read_bytes()[64:], "<f4") for path in cache.glob("*.values")), key=len)


def assert_same_answers(lines: list[dict], expected_lines: list[dict]) -> None:
    """Rewards and what is made of them are differences of log-probabilities; where they are 0, accuracy is rounding."""
    assert [line["step"] for line in lines] == [line["step"] for line in expected_lines] == list(range(STEPS + 1))
    for line, other in zip(lines, expected_lines, strict=True):
        assert line.keys() == other.keys()
        for name, value in other.items():
            if not (name.endswith("/accuracy") and line["step"] < 2):
                bounds = {"rel": 1e-5} if name.endswith("/loss") else {"rel": 1e-4, "abs": 1e-4}
                assert line[name] == pytest.approx(value, **bounds), (line["step"], name)


def claimed(root: Path, name: str) -> Path:
    """A directory that holds the config of the run."""
    workdir = epath.Path(root / "dense" / name)
    config = tiny.config(root / "dense", **QUICK)
    workdirs.claim(workdir, workdirs.with_date(workdir, config))
    return Path(workdir)


@pytest.fixture
def assert_both_end(root, ends_of):
    def check(workdir: Path, failing: int, reason: str, **more) -> None:
        """Both leave with status 1; one says its own reason, the other whose it is."""
        ends = ends_of(root / "dense", workdir, 2, 1, **{"overrides": QUICK} | more)
        texts = [in_one_line(end) for end in ends]
        assert [end.status for end in ends] == [1, 1], texts
        assert all(reason in text for text in texts), texts
        assert f"process {failing} of 2: " in texts[1 - failing], texts
        assert f"process {failing} of 2: " not in texts[failing], texts

    return check


def in_one_line(end: Ended) -> str:
    return " ".join(end.output.strip().splitlines())


@pytest.mark.slow
def test_a_lock_that_process_0_cannot_have(root, assert_both_end):
    workdir = claimed(root, "locked")
    with (workdir / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_both_end(workdir, 0, "another process is training in")


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_row_that_one_process_cannot_read(root, assert_both_end, tmp_path, failing):
    for process, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        text = (root / "dense" / "train.jsonl").read_text()
        bad = text.replace('"completion"', '"answer', 1)
        (tmp_path / folder / "train.jsonl").write_text(bad if process == failing else text)
    places = {process: {"cwd": str(tmp_path / folder)} for process, folder in enumerate("ab")}
    overrides = {"overrides": QUICK | {"data.train": "train.jsonl"}, "at_process": places}
    assert_both_end(tmp_path / "run", failing, "train.jsonl:1", **overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_directory_that_the_hosts_do_not_share(root, one_process, ends_of, start, tmp_path):
    """Process 1 finds nothing to continue where process 0 does: each says what it found."""
    one_process("dense")
    shutil.copytree(root / "dense" / "alone", tmp_path / "a")
    shutil.copytree(root / "dense" / "alone", tmp_path / "b", ignore=shutil.ignore_patterns("checkpoints"))
    ends = ends_of(
        root / "dense",
        tmp_path / "a",
        2,
        1,
        overrides=OVERRIDES,
        at_process={1: {"workdir": str(tmp_path / "b")}},
    )
    assert [end.status for end in ends] == [1, 1], ends
    for end, found in zip(ends, (STEPS, None), strict=True):
        text = in_one_line(end)
        assert f"here the latest checkpoint is {found}; processes [1] of 2 found another one" in text
        assert "Give a --workdir that all hosts share" in text
    ends = start(root / "dense", tmp_path / "a", 2, 1, overrides=OVERRIDES)
    assert [end["step"] for end in ends] == [STEPS] * 2


@pytest.mark.slow
def test_checkpoints_that_cannot_be_opened(root, ends_of):
    """Each sees for itself that there is no directory."""
    workdir = claimed(root, "no checkpoints")
    (workdir / "checkpoints").write_text("not a directory")
    ends = ends_of(root / "dense", workdir, 2, 1, overrides=QUICK)
    assert [end.status for end in ends] == [1, 1], ends
    assert all("Not a directory" in in_one_line(end) for end in ends), ends


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing", "moment"), [(0, "before log"), (1, "dispatch"), (1, "in evaluation"), (0, "before save")]
)
def test_a_fault_in_the_middle_of_the_run(root, assert_both_end, failing, moment):
    """The other one waits for its part of a step, of an evaluation or of a checkpoint."""
    fault = {"moment": moment, "step": 2, "error": "No space left on device"}
    workdir = root / "dense" / f"{moment} {failing}"
    assert_both_end(workdir, failing, "OSError: No space left on device", at_process={failing: fault})


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "processes"), [(1, 2), (0, 2), (2, 4)])
@pytest.mark.parametrize("moment", ["dispatch", "before save"])
def test_a_process_that_is_killed(root, one_process, ends_of, start, killed, processes, moment):
    """The others notice, say so, and end; the same command goes on and gives the numbers of a run that was left alone.

    What kills it is told to one of them alone; nobody is told of it.
    """
    workdir = root / "dense" / f"{moment} without {killed} of {processes}"
    kill = {killed: {"moment": moment, "step": 2}}
    ends = ends_of(root / "dense", workdir, processes, 1, overrides=QUICK, at_process=kill)
    for process, end in enumerate(ends):
        text = in_one_line(end)
        if process == killed:
            assert end.status == -9, ends
        elif killed == 0 and end.status == -6:  # JAX was faster: it aborts when process 0 is gone
            assert "Terminating process because the JAX distributed service detected fatal errors" in text, ends
        else:
            assert end.status == GONE, ends
            assert f"error: process {killed} of {processes} is gone" in text, ends
            assert "Start the same command again" in text
    ends = start(root / "dense", workdir, processes, 1, overrides=QUICK)
    assert [end["step"] for end in ends] == [STEPS] * processes
    assert_same_lines(history(workdir)[0], one_process("dense")[0])


START_UP_SECONDS = 300  # after which JAX gives up waiting for a process that does not join


@pytest.fixture
def commands(children):
    def run_them(arguments: list[list[str]]) -> list[Ended]:
        """How the command ends on each process; all end before JAX gives up waiting for one."""
        flags = ["--config=configs/sft.py", "--distributed", f"--coordinator={free_address()}"]
        flags.append(f"--num_processes={len(arguments)}")
        calls = [["sft_jax.train", *flags, f"--process_id={n}", *more] for n, more in enumerate(arguments)]
        return children.run([("tests.children:command", call) for call in calls], patience=START_UP_SECONDS - 60)

    return run_them


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
def test_flags_of_one_process_that_are_wrong(commands, tmp_path, failing, bad, reason):
    """It joins the others to say so: both end with the reason, and nobody waits for a time-out."""
    good = [f"--workdir={tmp_path / 'run'}"]
    ends = commands([[*good, bad] if number == failing else good for number in range(2)])
    assert [end.status for end in ends] == [1, 1], ends
    assert all(reason in end.output for end in ends), ends
    assert f"error: process {failing} of 2: " in ends[1 - failing].output, ends
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_flags_that_are_wrong_on_all_processes(commands, tmp_path):
    ends = commands([[f"--workdir={tmp_path / 'run'}", "--config.batch.sequences=many"]] * 2)
    assert [end.status for end in ends] == [1, 1], ends
    assert all(end.output.startswith("error in the config: --config.batch.sequences=many") for end in ends), ends
