"""The command that shows data before training: what it prints, writes, and answers with."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sft_jax.data.reading import Reading
from sft_jax.data.records import read_records
from sft_jax.options import options_of
from sft_jax.preparation.inspection import inspect_data, preview_page
from sft_jax.preparation.run_data import load_data
from sft_jax.progress import silent
from tests import tiny
from tests.data.rendering.chat_formats import FORMATS


def preview(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "sft_jax.preview", "--config=configs/sft.py", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )


@pytest.fixture
def data(tmp_path):
    """Flags of a tiny model, and of data in which a held-out row is trained on, one row twice and one not clean."""
    tiny.write_checkpoint(tmp_path / "model")
    train = [{"prompt": f"what is {n}", "completion": f"it is {n}"} for n in range(30)]
    train += [train[0], {"prompt": "x", "completion": " padded "}, {"prompt": "long", "completion": "y" * 300}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    (tmp_path / "test.jsonl").write_text(json.dumps(train[1]) + "\n")
    values = {"model.source": "model", "data.train": "train.jsonl", "data.held_out": "test.jsonl"}
    return [
        *(f"--config.{name}={tmp_path / value}" for name, value in values.items()),
        "--config.data.sequence_length=128",
        "--config.data.cleaning=('strip_whitespace', 'drop_exact_duplicates')",
    ]


def test_the_command(data, tmp_path):
    done = preview(*data, f"--out={tmp_path / 'out'}", f"--write={tmp_path / 'clean'}")
    assert done.returncode == 3, done.stderr
    assert "ERROR" in done.stdout
    assert "1 held-out row is also in the training data" in done.stdout
    assert done.stdout.rstrip().endswith("╯")  # the verdict's frame
    page = (tmp_path / "out" / "index.html").read_text()
    assert "1 held-out row is also in the training data" in page
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert numbers["examples"] == 31
    assert numbers["chat_templates"]["default"]["earlier answers"] == "stay as they were written"
    assert "chat template, system message" in done.stdout
    assert "chat template, system message" in page
    assert numbers["cleaning"]["dropped_rows"] == 1
    assert numbers["verdict"]["decision"] == "clean_first"
    dropped = [json.loads(line) for line in (tmp_path / "clean" / "dropped.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in dropped} == {
        "train.jsonl:31": "drop_exact_duplicates: the same as a row before it",
        "train.jsonl:33": "longer than 128 tokens",
    }
    changed = [json.loads(line) for line in (tmp_path / "clean" / "changed.jsonl").read_text().splitlines()]
    assert [row["id"] for row in changed] == ["train.jsonl:32"]


NEWEST = ("Gemma 4", "Qwen 3 Next", "Qwen 3.5", "Qwen 3.6", "DeepSeek V3", "GLM", "gpt-oss")


@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith(NEWEST)])
def test_what_a_template_does_is_shown(name, tmp_path):
    """Every property of it, in the terminal and for machines, and how many rows it keeps."""
    config = tiny.config(tmp_path, **{"data.held_out": "", "data.sequence_length": 256})
    FORMATS[name].tokenizer().save_pretrained(tmp_path / "model")
    report = inspect_data(options_of(config), silent).data.report
    console = Console(width=240, file=io.StringIO())
    console.print(report)
    shown = " ".join(console.file.getvalue().split())
    assert report.numbers["dropped_rows"] == 0
    properties = report.numbers["chat_templates"]["default"]
    assert {"end of turn", "system message", "thinking", "generation prompt", "tools", "earlier answers"} <= set(
        properties
    )
    for what, words in properties.items():
        assert f"chat template, {what}" in shown
        assert " ".join(words.split()) in shown


def test_revisions_of_one_family_are_told_apart(tmp_path):
    """Of the same rows: one revision trains them in one example, the other in two, and the properties say why."""
    config = tiny.config(tmp_path, **{"data.held_out": "", "data.masking.history": "expand"})
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    Path(config.data.train).write_text(json.dumps(row) + "\n")
    FORMATS["Gemma 4"].tokenizer().save_pretrained(tmp_path / "model")
    found = []
    for name in ("Gemma 4", "Gemma 4 31B"):
        (tmp_path / "revision.jinja").write_text(FORMATS[name].template)
        config.model.chat_template = str(tmp_path / "revision.jinja")
        numbers = inspect_data(options_of(config), silent).data.report.numbers
        found.append((numbers["examples"], numbers["chat_templates"]["default"]))
    assert [examples for examples, _ in found] == [1, 2]
    (_, one), (_, other) = found
    assert {what for what in one if one[what] != other[what]} == {"generation prompt", "earlier answers"}
    assert other["generation prompt"].endswith("is not shown before answers: the last one is trained behind it")


def test_mistakes_get_a_message(data, tmp_path):
    done = preview(*data[1:], f"--config.model.source={tmp_path / 'nowhere'}")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_written_trains_the_same(tmp_path):
    """Tokens, weights and ids of the cleaned data set, read back without a step, are those of the cleaned run."""
    from etils import epath

    from sft_jax.exports.data_set import write_data_set

    config = tiny.config(tmp_path, **{"data.cleaning": ("drop_exact_duplicates", "drop_answers_shorter_than=4")})
    with config.unlocked():
        config.data.reading.on_bad_row = "drop"
    with open(config.data.train, "a") as file:
        file.write('{"prompt": "no answer"}\n')
    inspection = inspect_data(options_of(config), silent)
    out = epath.Path(tmp_path / "clean")
    write_data_set(out, inspection.kept, inspection.dropped, inspection.changed, {})
    with config.unlocked():
        config.data.train, config.data.cleaning = str(out / "data.jsonl"), ()
        config.data.reading.id_column = "id"
        config.data.held_out = ""
    assert load_data(options_of(config)).examples.fingerprint() == inspection.data.examples.fingerprint()
    kept, dropped = len(inspection.kept), len(inspection.dropped)
    assert kept + dropped == 49
    assert inspection.dropped[-1][0] is None  # could not be read
    assert inspection.dropped[-1][1].reason == "not a valid row"
    assert len(read_records(out / "data.jsonl", Reading(id_column="id"))) == kept


def test_the_page_says_what_was_changed(tmp_path):
    config = tiny.config(tmp_path, **{"data.cleaning": ("strip_whitespace",)})
    Path(config.data.train).write_text('{"prompt": "a", "completion": " b"}\n')
    page = preview_page(inspect_data(options_of(config), silent), options_of(config), 10, silent)
    assert '"note":"strip_whitespace: whitespace at the ends removed"' in page


def test_held_out_rows_of_a_file_of_the_same_name(tmp_path):
    """A finding's link leads to the row it names, not to the training row of that number."""
    config = tiny.config(tmp_path)
    held_out = tmp_path / "held_out" / Path(config.data.train).name
    held_out.parent.mkdir()
    held_out.write_text(Path(config.data.train).read_text().splitlines()[1] + "\n")
    with config.unlocked():
        config.data.held_out = str(held_out)
    inspection = inspect_data(options_of(config), silent)
    (overlap,) = [finding for finding in inspection.data.report.findings if finding.check == "exact_overlap"]
    (place,) = overlap.examples
    assert place.row_id == f"held_out/{held_out.name}:1"
    assert place.text.startswith(f"also {held_out.name}:2: ")
    page = preview_page(inspection, options_of(config), 50, silent)
    assert f'href="#row=held_out%2F{held_out.name}%3A1%0A{held_out.name}%3A2"' in page


def test_earlier_runs_are_weighed(tmp_path):
    runs = []
    for examples, loss in ((10, 3.0), (20, 2.0)):
        runs.append(tmp_path / f"run{examples}")
        runs[-1].mkdir()
        line = {"step": 1, "progress/examples": examples, "progress/epochs": 1.0, "held_out/nll": loss}
        (runs[-1] / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (runs[-1] / "environment.json").write_text('{"fingerprints": {}}')
    inspection = inspect_data(options_of(tiny.config(tmp_path)), silent, [str(run) for run in runs])
    reasons = [reason.text for reason in inspection.data.report.verdict.reasons]
    assert any("3.000 at 10 examples, 2.000 at 20 examples" in reason for reason in reasons)


def test_a_directory_that_is_no_run(data, tmp_path):
    done = preview(*data, f"--earlier_run={tmp_path}")
    assert done.returncode == 1
    assert f"{tmp_path}: there is no metrics.jsonl" in done.stderr
