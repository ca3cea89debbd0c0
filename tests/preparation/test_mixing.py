"""Mixtures from the config to TensorBoard: flags, what is read, loss and tokens by source, micro-batches, resume."""

import json
import os
import signal

import numpy as np
import pytest

from configs.sft import source
from sft_jax.data.batches import assemble, train_batches
from sft_jax.data.plan import order
from sft_jax.data.records import RecordError
from sft_jax.data.tokenizing import NoExamplesError
from sft_jax.options import options_of
from sft_jax.preparation.mixing import mixture_of, reader_of
from sft_jax.preparation.run_data import load_data
from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import loop, programs, run
from sft_jax.training.checks import check_config
from tests import tiny
from tests.command_line import config_of, flags_in
from tests.training import moments

MIXTURE_FILE = """
from configs import sft


def get_config(arg="full"):
    config = sft.get_config(arg)
    with config.unlocked():
        config.data.mixture.math = sft.source("math.jsonl", weight=2)
        config.data.mixture.code = sft.source("code.jsonl", weight="0: 1, 9: 0", format="alpaca")
    return config
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("mixing")
    tiny.config(made)
    tiny.write_rows(made / "math.jsonl", 20, seed=2)
    tiny.write_rows(made / "code.jsonl", 6, seed=3)
    return made


@pytest.fixture(autouse=True, scope="module")
def short_blocks():
    """Several blocks in a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_BLOCK_BINS", 16)
        yield


def mixed(root, mixing="after", **overrides):
    """The tiny config on two sources: two rows of math to one of code."""
    config = tiny.config(root).copy_and_resolve_references().unlock()
    config.data.train = ""
    config.data.mixture.math = source(str(root / "math.jsonl"), weight=2)
    config.data.mixture.code = source(str(root / "code.jsonl"), weight=1)
    config.data.mixture_packing = mixing
    config.update_from_flattened_dict(overrides)
    return config.lock()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.train": "x.jsonl"}, "--config.data.train=x.jsonl: --config.data.mixture has code, math; give one of"),
        ({"data.mixture_packing": "later"}, "--config.data.mixture_packing='later' must be one of before, after"),
        ({"data.mixture.math.path": ""}, "--config.data.mixture.math.path is empty"),
        ({"data.mixture.math.weight": "much"}, "--config.data.mixture.math.weight: 'much' is not a weight"),
        ({"data.mixture.math.epochs": 2.0}, "--config.data.mixture.math: give either a weight or epochs"),
        (
            {"data.mixture.math.epochs": 2.0, "data.mixture.math.weight": ""},
            "--config.data.mixture: either all sources have epochs",
        ),
        ({"data.mixture.code.reading.format": "alpacca"}, "--config.data.mixture.code: "),
        (
            {"data.mixture.code.reading.held_out_split": "test"},
            "--config.data.mixture.code.reading.held_out_split='test' is not read: held-out rows are those of",
        ),
        (
            {"data.reading.text_end": "eos", "data.held_out": ""},
            "--config.data.reading.text_end='eos' is not read: each source of --config.data.mixture has options of its "
            "own, --config.data.mixture.code.reading.text_end and so on; leave it at ''",
        ),
    ],
)
def test_bad_values_name_their_flag(root, change, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared below
        check_config(mixed(root, **change))
    assert message in str(error.value)


def test_held_out_rows_beside_a_mixture_are_read_by_options_of_their_own(root):
    check_config(mixed(root, **{"data.reading.system": "Be brief.", "data.held_out": str(root / "held_out.jsonl")}))


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_source_of_which_no_row_is_left_says_why(root):
    config = mixed(root, **{"data.fail_on": "never"}).unlock()
    long = {"prompt": "a", "completion": "b" * 1000}
    config.data.mixture.long = source(write(root / "long.jsonl", long, long | {"prompt": "d"}), weight=1)
    with pytest.raises(
        NoExamplesError, match="the source 'long' of the mixture has no row that can be trained on"
    ) as error:
        load_data(options_of(config))
    assert "All 2 rows were dropped" in str(error.value)
    assert "(first: long/long.jsonl:1, " in str(error.value)


def test_pairs_in_a_source_are_refused_with_its_flag(root):
    config = mixed(root, **{"data.fail_on": "never"}).unlock()
    config.data.mixture.pref = source(write(root / "pairs.jsonl", PAIR, PAIR | {"prompt": "d"}), weight=1)
    with pytest.raises(ValueError, match=r"pref/pairs.jsonl:1: a pair of answers is not an example") as error:
        load_data(options_of(config))
    (flag,) = (flag for flag in flags_in(str(error.value)) if ".reading." in flag)
    name, _, value = flag.partition("=")
    assert name == "--config.data.mixture.pref.reading.preference"
    config.data.mixture.pref.reading.preference = value
    assert "pref" in load_data(options_of(config)).examples.sources.names


def test_the_end_of_texts_is_advised_by_the_flag_of_their_source(root):
    config = mixed(root, **{"data.fail_on": "never"}).unlock()
    config.data.mixture.prose = source(write(root / "prose.jsonl", {"text": "ab"}, {"text": "cd"}), weight=1)
    advice = lambda: {finding.check: finding.advice for finding in load_data(options_of(config)).report.findings}[
        "text_ends"
    ]
    assert flags_in(advice()) == [f"--config.data.mixture.prose.reading.text_end={end}" for end in ("eos", "none")]
    config.data.mixture.prose.reading.text_end = "eos"
    assert not advice()


def test_a_source_is_overridden_from_the_command_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MIXTURE_FILE)
    config = config_of(f"--config={path}", "--config.data.mixture.math.weight=0.5", "--config.data.mixture.math.path=m")
    check_config(config)
    code, math = mixture_of(options_of(config).data).sources
    assert (math.name, math.weight.values, math.replacement) == ("math", (0.5,), False)
    assert (code.weight.steps, code.weight.values) == ((0, 9), (1.0, 0.0))
    assert config.data.mixture.math.path == "m"
    assert config.data.mixture.code.reading.format == "alpaca"


def test_a_bad_source_says_its_name(root, tmp_path):
    with pytest.raises(RecordError, match=r"the source 'code' of the mixture: .*nowhere"):
        reader_of(options_of(mixed(root, **{"data.mixture.code.path": str(tmp_path / "nowhere.jsonl")})).data)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n{\n")
    with pytest.raises(RecordError, match=r"the source 'code' of the mixture: .*bad.jsonl:2"):
        list(reader_of(options_of(mixed(root, **{"data.mixture.code.path": str(bad)})).data))
    dropping = mixed(root, **{"data.mixture.code.path": str(bad), "data.mixture.code.reading.on_bad_row": "drop"})
    reader = reader_of(options_of(dropping).data)
    records = list(reader)
    assert [record.id for record in records[:2]] == ["code/bad.jsonl:1", "math/math.jsonl:1"]
    assert [record.source for record in records] == ["code"] + ["math"] * 20
    assert [row.id for row in reader.dropped] == ["code/bad.jsonl:2"]
    assert (reader.rows, reader.records) == (22, 21)
    assert reader.notes == ["code: bad.jsonl: JSONL, prompt_completion", "math: math.jsonl: JSONL, prompt_completion"]


def test_rows_of_a_mixture_and_their_order(root):
    data = load_data(options_of(mixed(root)))
    assert data.examples.sources.names == ("code", "math")  # sorted, as a config has them
    assert [np.count_nonzero(data.examples.sources.codes == i) for i in range(2)] == [6, 20]
    assert data.plan.sources == ("code", "math")
    assert not data.plan.has_epochs
    shown = data.report.markdown()
    assert "| source math | 20 examples, " in shown
    assert "| sequences, the first | " in shown


@pytest.mark.parametrize("mixing", ["before", "after"])
@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_and_threads_see_one_sequence_from_any_step(root, mixing, process_count):
    data = load_data(options_of(mixed(root, mixing)))
    whole = [
        assemble(
            data.examples,
            data.plan.batch_bins(step),
            sequence_length=128,
            sequence_targets=data.plan.sequence_targets,
            slices=data.examples.sources,
        )
        for step in range(12)
    ]
    for start, threads in ((0, 0), (7, 4)):
        parts = [
            train_batches(data.examples, data.plan, start, 12, own=own.tolist(), threads=threads)
            for own in np.split(np.arange(8), process_count)
        ]
        for batch, *own in zip(whole[start:], *parts, strict=True):
            for name in batch:
                np.testing.assert_array_equal(np.concatenate([part[name] for part in own]), batch[name])


@pytest.fixture(scope="module")
def uninterrupted(root, short_blocks):
    """The metrics of a run, whose step was compiled once: batches carry sources from the first to the last."""
    compiled, make = [], loop.compile_train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_train_step", lambda *a: compiled.append(make(*a)) or compiled[-1])
        programs.forget()  # runs of other tests may have compiled it for batches of other shapes
        run(mixed(root), root / "whole")
    assert [step._cache_size() for step in compiled] == [1]
    return read_metrics(root / "whole" / "metrics.jsonl")


def test_metrics_by_source(root, uninterrupted):
    plan = load_data(options_of(mixed(root))).plan
    for line in uninterrupted[1:]:
        step = line["step"]
        by_source = [line[f"progress/tokens/{name}"] for name in ("math", "code")]
        assert sum(by_source) == line["progress/tokens"] == plan.cumulative_counts(step)["tokens"]
        assert line["progress/epochs/code"] > line["progress/epochs/math"] > 0
        assert "progress/epochs" not in line
        losses = [line["train/loss/math"], line["train/loss/code"]]
        assert min(losses) <= line["train/loss"] <= max(losses)
        assert losses[0] != losses[1]
    assert not any("loss/" in name for name in uninterrupted[0])  # held-out rows have no groups


def test_loss_by_source_does_not_depend_on_micro_batches_and_devices(root, uninterrupted, tmp_path):
    config = mixed(root, **{"batch.micro_batches": 2, "batch.sequences": 8, "mesh.fsdp": 4, "mesh.tensor": 2})
    run(config, tmp_path / "run")
    for line, other in zip(read_metrics(tmp_path / "run" / "metrics.jsonl"), uninterrupted, strict=True):
        losses = [name for name in other if name.startswith("train/loss")]
        assert {name: line[name] for name in losses} == pytest.approx({name: other[name] for name in losses}, rel=1e-4)


def test_a_run_stopped_in_the_middle_of_a_mixture_goes_on(root, uninterrupted, tmp_path):
    config = mixed(root)
    with pytest.MonkeyPatch.context() as patch:
        moments.at("dispatch", 3, lambda: os.kill(os.getpid(), signal.SIGTERM), patch.setattr)
        assert run(config, tmp_path / "run").interrupted
    assert run(config, tmp_path / "run").step == 6
    same = lambda line: {name: line[name] for name in line if not name.startswith("speed/")}
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [same(line) for line in lines] == [same(line) for line in uninterrupted]


def test_held_out_loss_by_group(root, tmp_path):
    rows = [json.loads(line) for line in (root / "held_out.jsonl").read_text().splitlines()]
    groups = ["easy" if i % 3 else "hard" for i in range(len(rows))]
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps(row | {"level": level}) + "\n" for row, level in zip(rows, groups, strict=True)))
    parts = {level: tmp_path / f"{level}.jsonl" for level in ("easy", "hard")}
    for level, part in parts.items():
        part.write_text(
            "".join(json.dumps(row) + "\n" for row, name in zip(rows, groups, strict=True) if name == level)
        )
    one_step = {"duration": "1 steps", "optimizer.learning_rate": 0.0, "checkpoint.best_metric": ""}
    config = mixed(root, **one_step, **{"data.held_out": str(path), "data.reading.group_column": "level"})
    found = run(config, tmp_path / "groups").metrics
    for level, part in parts.items():
        alone = run(mixed(root, **one_step, **{"data.held_out": str(part)}), tmp_path / level).metrics
        assert found[f"held_out/loss/{level}"] == pytest.approx(alone["held_out/loss"], rel=1e-5)


def test_options_that_no_row_reads_are_said(root):
    config = mixed(root, **{"data.fail_on": "never"}).unlock()
    config.data.mixture.math.reading.text_end = "eos"
    config.data.mixture.code.reading.preference = "chosen"
    config.data.mixture.prose = source(write(root / "prose.jsonl", {"text": "ab"}), weight=1, text_end="eos")
    said = {
        finding.title for finding in load_data(options_of(config)).report.findings if finding.check == "unread_options"
    }
    assert said == {
        f"--config.data.mixture.{flag} changes nothing: no row is of a format that reads it"
        for flag in ("math.reading.text_end=eos", "code.reading.preference=chosen")
    }
