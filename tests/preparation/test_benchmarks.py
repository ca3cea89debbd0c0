"""Prompts of benchmarks: read in any form, and looked for in the training rows."""

import json
from pathlib import Path

import pytest

from sft_jax.audit.findings import DataFindingsError
from sft_jax.data.records import RecordError
from sft_jax.options import options_of
from sft_jax.preparation.benchmarks import files_of_benchmarks, read_benchmarks
from sft_jax.preparation.run_data import load_data
from sft_jax.training import run
from tests import tiny


def test_benchmarks_of_any_columns(tmp_path):
    """Two files of one name stay apart; the prompts stand in a column that is named, or in a form that is known."""
    rows = {"a": {"question": "x", "answer": "1"}, "b": {"prompt": "y", "chosen": "1", "rejected": "2"}}
    for name, row in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(json.dumps(row) + "\n")
    benchmarks = (f"{tmp_path}/a/test.jsonl=question", f"{tmp_path}/b/test.jsonl")
    found = read_benchmarks(options_of(tiny.config(tmp_path, **{"data.benchmarks": benchmarks})).data.benchmarks)
    assert {name: [record.conversation[0].content for record in records] for name, records in found.items()} == {
        benchmarks[0]: ["x"],
        benchmarks[1]: ["y"],
    }
    one = read_benchmarks(options_of(tiny.config(tmp_path, **{"data.benchmarks": benchmarks[:1]})).data.benchmarks)
    assert list(one) == ["test.jsonl"]
    with pytest.raises(RecordError, match=r"no format fits.*\nFor a benchmark name .*/a/test\.jsonl=COLUMN"):
        read_benchmarks(
            options_of(tiny.config(tmp_path, **{"data.benchmarks": (f"{tmp_path}/a/test.jsonl",)})).data.benchmarks
        )
    with pytest.raises(RecordError, match="the row has no 'ask', which"):
        read_benchmarks(
            options_of(tiny.config(tmp_path, **{"data.benchmarks": (f"{tmp_path}/a/test.jsonl=ask",)})).data.benchmarks
        )


def test_benchmarks_are_checked_against_training_rows(tmp_path):
    prompts = tmp_path / "benchmark.jsonl"
    asked = json.loads(Path(tiny.config(tmp_path).data.train).read_text().splitlines()[0])["prompt"]
    prompts.write_text(json.dumps({"prompt": asked}) + "\n")
    config = tiny.config(tmp_path, **{"data.benchmarks": (str(prompts),)})
    with pytest.raises(DataFindingsError, match=r"1 prompt of benchmark\.jsonl is also in the training data"):
        run(config, tmp_path / "run")


def test_benchmarks_are_paths_like_any_other(tmp_path):
    """Patterns too; those of equal names stay apart."""
    for folder in "xy":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text(f'{{"prompt": "{folder}"}}\n')
    apart = tuple(str(tmp_path / folder / "test.jsonl") for folder in "xy")
    config = tiny.config(tmp_path, **{"data.benchmarks": apart, "data.cache": str(tmp_path / "cache")})
    assert [len(prompts) for prompts in read_benchmarks(options_of(config).data.benchmarks).values()] == [1, 1]
    assert [path.parent.name for _, path in files_of_benchmarks(options_of(config).data.benchmarks)] == ["x", "y"]
    config.data.benchmarks = (str(tmp_path / "*" / "test.jsonl"),)
    assert [len(prompts) for prompts in read_benchmarks(options_of(config).data.benchmarks).values()] == [2]
    assert load_data(options_of(config)).report.numbers["records"]["records"] == 48
