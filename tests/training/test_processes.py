"""Several processes give the numbers of one, wherever the axes of the mesh lie between them."""

import functools
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_jax.training import run
from sft_jax.training.metric_log import read_metrics
from tests import tiny
from tests.models import families

DRIVER = Path(__file__).with_name("driver.py")
STEPS = 4
OVERRIDES = {
    "duration": f"{STEPS} steps",
    "batch.rows": 8,
    "data.row_tokens": 96,
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
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    names = [name for name in events.Tags()["tensors"] if name.startswith("samples/")]
    return lines, {name: events.Tensors(name)[-1].tensor_proto.string_val[0].decode() for name in names}


def assert_same(found: tuple[list[dict], dict[str, str]], expected: tuple[list[dict], dict[str, str]]) -> None:
    (lines, texts), (expected_lines, expected_texts) = found, expected
    assert [line["step"] for line in lines] == [line["step"] for line in expected_lines] == list(range(STEPS + 1))
    for line, other in zip(lines, expected_lines, strict=True):
        assert line.keys() == other.keys()
        assert line == pytest.approx(other, rel=1e-5), line["step"]
    assert len(expected_texts) == 3
    assert texts == expected_texts


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start(root: Path, workdir: Path, processes: int, devices: int, **more) -> list[dict]:
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
    running = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), json.dumps([spec])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for spec in specs
    ]
    outputs = [process.communicate(timeout=500)[0] for process in running]
    ends = [output.strip().splitlines()[-2:] for output in outputs]
    assert [end[-1:] for end in ends] == [["[0]"]] * processes, "\n".join(outputs)[-6000:]
    return [json.loads(end[0]) for end in ends]


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
