"""Several processes tokenize a share of the rows each, and all have the data of one process."""

import functools
import json
from pathlib import Path

import pytest

from tests import tiny
from tests.children import Children
from tests.ports import free_address
from tests.preparation.together_driver import prepared

ROWS = 1500  # six chunks, the last of which is shorter


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("together")
    tiny.config(made)
    tiny.write_rows(made / "train.jsonl", ROWS)
    lines = (made / "train.jsonl").read_text().splitlines()
    lines[700] = json.dumps({"prompt": "red", "completion": ""})  # dropped
    lines[900] = json.dumps({"prompt": "blue " * 200, "completion": "too long"})
    (made / "train.jsonl").write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture
def said(root, children):
    return functools.partial(what_they_say, children, root)


def what_they_say(
    children: Children, root: Path, processes: int, runs: list[dict], at_process: dict | None = None
) -> list[list[dict]]:
    """What each of several processes says of the runs it prepared, one after the other: by run, then by process."""
    common = {"root": str(root), "coordinator": free_address(), "processes": processes}
    specs = [common | {"process": number, "runs": (at_process or {}).get(number, runs)} for number in range(processes)]
    ended = children.run([("tests.preparation.together_driver:prepare", spec) for spec in specs])
    assert [end.status for end in ended] == [0] * processes, [end.output[-3000:] for end in ended]
    return list(map(list, zip(*(end.result for end in ended), strict=True)))


CASES = {
    "no cache": {},
    "cleaning that compares rows": {"data.cleaning": ("drop_exact_duplicates", "strip_whitespace")},
    "workers": {"loader.tokenize_workers": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_all_have_the_data_of_one_process_and_each_tokenized_its_share(root, said, processes):
    runs = [{"overrides": overrides} for overrides in CASES.values()]
    for run, of_run in zip(runs, said(processes, runs), strict=True):
        alone = prepared({"root": str(root)} | run)
        for of_process in of_run:
            assert of_process["data"] == alone["data"]
        if "loader.tokenize_workers" in run["overrides"]:
            continue  # they tokenize, not the process
        assert sum(of_process["tokenized"] for of_process in of_run) == alone["tokenized"] == ROWS
        assert max(of_process["tokenized"] for of_process in of_run) <= -(-6 // processes) * 256


@pytest.mark.slow
def test_a_cache_is_written_once_and_files_are_hashed_once(root, said, tmp_path):
    """Both processes share a cache; then each has its own, and only one of them has the entry."""
    caches = {name: {"overrides": {"data.cache": str(tmp_path / name)}} for name in ("shared", "of 0", "of 1")}
    own = {number: [caches["shared"], caches["shared"], caches[f"of {number}"]] for number in (0, 1)}
    first, again, apart = said(2, [], own)
    alone = prepared({"root": str(root), "overrides": {}})
    size = (root / "train.jsonl").stat().st_size
    for of_run in (first, again, apart):
        assert [of_process["data"] for of_process in of_run] == [alone["data"]] * 2
    held_out = 2 * (root / "held_out.jsonl").stat().st_size  # each takes the digests of what it measures
    assert sum(of_process["hashed"] for of_process in first) == 2 * size + held_out, "before and after it is read"
    assert sum(of_process["tokenized"] for of_process in first) == ROWS
    assert [of_process["tokenized"] for of_process in again] == [0, 0]
    assert sum(of_process["hashed"] for of_process in again) == size + held_out
    for cache in tmp_path.iterdir():
        left = [path.name for path in cache.iterdir() if path.is_dir() or path.suffix not in (".json", ".lock")]
        assert len(left) == 1, left
    missing = {0: [caches["of 0"]], 1: [{"overrides": {"data.cache": str(tmp_path / "empty")}}]}
    (filled,) = said(2, [], missing)
    assert [of_process["data"] for of_process in filled] == [alone["data"]] * 2
    assert sum(of_process["tokenized"] for of_process in filled) == ROWS, "who has the examples helps who has not"


@pytest.mark.slow
@pytest.mark.parametrize("row", [100, 400])
def test_a_row_that_one_process_refuses_ends_all(root, said, tmp_path, row):
    """Row 100 is tokenized by process 0, row 400 by process 1."""
    lines = (root / "train.jsonl").read_text().splitlines()[:600]
    lines[row] = json.dumps({"prompt": "blue " * 200, "completion": "too long"})
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    overrides = {"data.train": str(tmp_path / "train.jsonl"), "data.masking.too_long": "error"}
    (of_run,) = said(2, [{"overrides": overrides}])
    alone = prepared({"root": str(root), "overrides": overrides})
    assert f"train.jsonl:{row + 1}: " in alone["error"]
    owner = row // 256
    assert of_run[owner]["error"] == alone["error"]
    assert of_run[1 - owner]["error"] == f"OtherProcessError: process {owner} of 2: {alone['error']}"


@pytest.mark.slow
def test_processes_whose_files_differ_each_read_their_own(root, said, tmp_path):
    """That their data differ is found by what comes of them, as it is elsewhere."""
    runs = {}
    for number in (0, 1):
        path = tmp_path / str(number) / "train.jsonl"
        path.parent.mkdir()
        tiny.write_rows(path, 300, seed=number)
        runs[number] = [{"overrides": {"data.train": str(path)}}]
    (of_run,) = said(2, [], runs)
    assert [of_process["tokenized"] for of_process in of_run] == [300, 300]
    assert of_run[0]["data"]["fingerprints"] != of_run[1]["data"]["fingerprints"]
