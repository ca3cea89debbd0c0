"""Advice about a run's data: caches, templates, benchmarks and findings; what is advised loads all rows."""

import errno
import fcntl
import json
import os
import re

import datasets
import pytest

from sft_jax.audit.findings import DataFindingsError, check_findings
from sft_jax.data.records import RecordError
from sft_jax.options import options_of
from sft_jax.preparation.benchmarks import read_benchmarks
from sft_jax.preparation.run_data import load_data
from sft_jax.training.run_findings import run_findings
from tests import tiny
from tests.command_line import flags_in, taken

ROWS = 48  # that tiny.config trains on


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("data")
    tiny.config(made)
    return made


def rows_of(config):
    return load_data(options_of(config)).report.numbers["records"]["kept"]


def found(config, check):
    """The finding of a check; None where it finds nothing."""
    return next(
        (
            finding
            for finding in load_data(options_of(config), also=run_findings).report.findings
            if finding.check == check
        ),
        None,
    )


def fail_in(folder, code, monkeypatch, module, name):
    """Has a function of the system that takes a file fail below a folder."""
    works = getattr(module, name)

    def act(file, *arguments):
        number = file if isinstance(file, int) else file.fileno()
        if str(folder) in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(code, os.strerror(code))
        return works(file, *arguments)

    monkeypatch.setattr(module, name, act)


CACHE = "sft_jax/data/tokenized/cache.py"
CACHES = {  # (file, part of its advice) -> a directory that will not do, whether the advice is to have none
    (CACHE, ": must be a directory on a local disk; examples are read from it"): ("gs://bucket/rows", False),
    (CACHE, ". Give a local directory to keep tokenized examples in, or an"): ("{root}/train.jsonl/rows", True),
    (CACHE, "). Give a directory on a local disk, which has locks, or an"): ("{root}/no locks", True),
    ("sft_jax/data/tokenized/example_store.py", "). Tokenized examples need room on a local disk: free some, or"): (
        "{root}/full",
        False,
    ),
}


@pytest.mark.parametrize("key", CACHES, ids=[": ".join(key) for key in CACHES])
def test_rows_are_kept_where_it_is_advised(key, root, tmp_path, monkeypatch):
    place, or_none = CACHES[key]
    fail_in(root / "no locks", errno.ENOLCK, monkeypatch, fcntl, "flock")
    fail_in(root / "full", errno.ENOSPC, monkeypatch, os, "fsync")
    with pytest.raises(ValueError, match=r"--config\.data\.cache=") as error:
        load_data(options_of(tiny.config(root, **{"data.cache": place.format(root=root)})))
    assert ("or an empty one for n" in str(error.value)) == or_none
    for instead in (str(tmp_path / "local"), "") if or_none else (str(tmp_path / "local"),):
        assert rows_of(tiny.config(root, **{"data.cache": instead})) == ROWS
    assert any((tmp_path / "local").iterdir())


RUN_DATA = "sft_jax/preparation/run_data.py"
NO_DATA = (RUN_DATA, "--config.data.train is empty; give a file, a pattern, a saved data set or a name of the hub")


def test_what_is_trained_on_is_given(root, tmp_path):
    config = tiny.config(root).copy_and_resolve_references().unlock()
    config.data.train = ""
    with pytest.raises(ValueError, match=r"data\.train is empty; give a file, a pattern, a saved data set or"):
        load_data(options_of(config))
    rows = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for path in (root / "train.jsonl", root / "tr*.jsonl", tmp_path / "saved"):
        config.data.train = str(path)
        assert rows_of(config) == ROWS


NO_TEMPLATE = (RUN_DATA, "is not a file; expected a Jinja template")


def test_a_template_is_a_file(root, tmp_path):
    config = tiny.config(root, **{"model.chat_template": str(tmp_path / "mine.jinja")})
    with pytest.raises(ValueError, match=r"mine\.jinja is not a file; expected a Jinja template"):
        load_data(options_of(config))
    (tmp_path / "mine.jinja").write_text(tiny.CHATML)
    assert rows_of(config) == ROWS


BENCHMARK = ("sft_jax/preparation/benchmarks.py", "For a benchmark name the column of its prompts:")


def test_the_column_of_a_benchmark_is_named(root, tmp_path):
    (tmp_path / "asked.jsonl").write_text('{"question": "x", "answer": "1"}\n')
    config = tiny.config(root, **{"data.benchmarks": (str(tmp_path / "asked.jsonl"),)})
    with pytest.raises(RecordError, match="For a benchmark name the column") as error:
        read_benchmarks(options_of(config).data.benchmarks)
    (flag,) = flags_in(str(error.value))
    ((record,),) = read_benchmarks(
        options_of(taken(config, [flag.replace("COLUMN", "question")])).data.benchmarks
    ).values()
    assert record.conversation[0].content == "x"


GRAVE = (
    "sft_jax/audit/findings.py",
    "python -m sft_jax.preview with the same config shows the rows. To train on it all the same: --config",
)


def test_findings_that_stop_a_run_are_shown_and_can_be_passed(root):
    """The preview looks at the data as `thorough` does, and shows the rows that findings name."""
    config = tiny.config(root, **{"data.held_out": str(root / "train.jsonl")})
    with pytest.raises(DataFindingsError, match="are also in the training data") as error:
        check_findings(load_data(options_of(config)).report.findings, config.data.fail_on)
    preview = load_data(options_of(config), thorough=True).report.findings
    assert any(finding.check == "exact_overlap" and finding.examples for finding in preview)
    config = taken(config, flags_in(str(error.value)))
    check_findings(load_data(options_of(config)).report.findings, config.data.fail_on)
    assert rows_of(config) == ROWS


IN_CONTENTS = (
    "sft_jax/audit/checks/new_tokens.py",
    "--config.model.new_tokens_in_contents=False keeps new tokens text wherever contents spell them.",
)


def test_new_tokens_that_end_turns_in_contents_stay_text(root, tmp_path):
    (tmp_path / "mine.jinja").write_text(tiny.CHATML.replace("<|im_end|>", "<|end|>"))
    (tmp_path / "a.jsonl").write_text('{"prompt": "How does it end?", "completion": "with <|end|>, always"}\n' * 9)
    config = tiny.config(
        root, **{"model.new_tokens": ("<|end|>",), "model.chat_template": str(tmp_path / "mine.jinja")}
    )
    config = config.unlock()
    config.data.train = str(tmp_path / "a.jsonl")
    (flag,) = flags_in(found(config, "ends_in_contents").advice)
    as_text = taken(config, [flag])
    assert found(as_text, "ends_in_contents") is None
    assert rows_of(as_text) == rows_of(config) == 9


RUN_FINDINGS = "sft_jax/training/run_findings.py"
UNUSED = (
    RUN_FINDINGS,
    "Nothing is learnt of their meaning. Look at how examples that should hold them are tokenized (python",
)


def test_new_tokens_that_no_row_holds_are_left_out(root):
    given = ("<|a|>", "<|im_start|>b")
    unused = found(tiny.config(root, **{"model.new_tokens": given}), "unused_new_tokens")
    assert "leave them out of --config.model.new_tokens" in unused.advice
    left = tuple(token for token in given if token not in unused.numbers["unused"])
    config = tiny.config(root, **{"model.new_tokens": left})
    assert found(config, "unused_new_tokens") is None
    assert rows_of(config) == ROWS


RATE = (RUN_FINDINGS, "To train, give --config.optimizer.learning_rate=2e-5, or 2e-4 under an adapter.")


def test_a_learning_rate_is_given(root):
    config = tiny.config(root, **{"optimizer.learning_rate": 0.0})
    advice = found(config, "no_learning_rate").advice
    for rate in re.findall(r"\d+e-\d+", advice):
        (flag,) = flags_in(advice)
        assert found(taken(config, [f"{flag.partition('=')[0]}={rate}"]), "no_learning_rate") is None


FOLLOWED = {*CACHES, NO_DATA, NO_TEMPLATE, BENCHMARK, GRAVE, IN_CONTENTS, UNUSED, RATE}
