"""Training examples of a config: made once, read again from the cache, few records in memory."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sft_jax.audit.checks import run_checks
from sft_jax.audit.report import report_lines
from sft_jax.data.records import RecordReader
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import DroppedRow
from sft_jax.options import options_of
from sft_jax.preparation import run_data, train_examples
from sft_jax.preparation.run_data import load_data
from tests import clock, tiny


@pytest.fixture
def count(monkeypatch):
    """How often records are read and rendered."""
    calls = {"passes": 0, "rendered": 0}
    iterate, render = RecordReader.__iter__, ConversationRenderer.render_many

    def counted_iterate(self):
        calls["passes"] += 1
        return iterate(self)

    def counted_render(self, *arguments):
        calls["rendered"] += 1
        return render(self, *arguments)

    monkeypatch.setattr(RecordReader, "__iter__", counted_iterate)
    monkeypatch.setattr(ConversationRenderer, "render_many", counted_render)
    return calls


def config(root, **overrides):
    return tiny.config(root, **{"data.cache": str(root / "cache"), "data.held_out": "", **overrides})


def test_without_a_cache_nothing_is_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(train_examples, "examples_key", lambda *_, **__: pytest.fail("hashes files"))
    assert len(load_data(options_of(config(tmp_path, **{"data.cache": ""}))).examples)


def test_the_second_run_reads_and_renders_nothing(tmp_path, count):
    first = load_data(options_of(config(tmp_path)))
    assert count == {"passes": 1, "rendered": 1}
    second = load_data(options_of(config(tmp_path)))
    assert count == {"passes": 1, "rendered": 1}
    assert first.fingerprints() == second.fingerprints()
    np.testing.assert_array_equal(first.examples.tokens, second.examples.tokens)
    numbers = [data.report.numbers | {"read": data.report.numbers["read"][:1]} for data in (first, second)]
    assert numbers[0] == numbers[1]
    assert "from the cache" in second.report.numbers["read"][1]
    assert second.report.example == first.report.example


def test_the_cache_changes_no_number(tmp_path):
    cached, plain = (
        load_data(options_of(config(tmp_path))),
        load_data(options_of(config(tmp_path, **{"data.cache": ""}))),
    )
    assert cached.fingerprints() == plain.fingerprints()
    assert cached.report.findings == plain.report.findings


CHANGES = {
    "data.sequence_length": 64,
    "data.cleaning": ("strip_whitespace",),
    "data.masking.train_on": "last",
    "data.reading.system": "Be brief.",
}


def test_options_that_examples_depend_on_make_other_entries(tmp_path, count):
    for number, (name, value) in enumerate([("data.packing", "none"), *CHANGES.items()], 1):
        load_data(options_of(config(tmp_path, **{name: value})))
        assert count["rendered"] == number, name
    load_data(options_of(config(tmp_path, **{"data.packing": "first_fit", "loader.tokenize_workers": 0})))
    assert count["rendered"] == 1 + len(CHANGES)  # rows do not depend on those


@pytest.fixture
def dated(tmp_path):
    """A config whose template begins every example with the date, ten characters of a token each."""
    path = tmp_path / "dated.jinja"
    path.write_text("{{ strftime_now('%Y-%m-%d') }}" + tiny.CHATML)
    return lambda **overrides: config(tmp_path, **{"model.chat_template": str(path), **overrides})


def dates_in(data):
    firsts = (data.examples.example(number)[0][:10] for number in range(len(data.examples)))
    return {data.renderer.tokenizer.decode(tokens) for tokens in firsts}


def test_examples_bear_one_date_though_midnight_passes(dated, monkeypatch):
    clock.tell(monkeypatch, (f"2026-{1 + day // 28:02d}-{1 + day % 28:02d}" for day in range(336)))
    assert dates_in(load_data(options_of(dated()))) == {"2026-01-01"}


def test_examples_of_another_date_are_another_entry(dated, count):
    for date, passes in (("2026-01-01", 1), ("2026-01-02", 2), ("2026-01-01", 2)):
        assert dates_in(load_data(options_of(dated(**{"data.date": date})))) == {date}
        assert count["passes"] == passes


def test_the_date_is_not_in_the_key_of_examples_without_one(tmp_path, count):
    for date in ("2026-01-01", "2026-01-02"):
        load_data(options_of(config(tmp_path, **{"data.date": date})))
    assert count["passes"] == 1


@pytest.mark.parametrize("name", ["benchmarks.py", "mixing.py", "retrieved.py", "run_data.py", "train_examples.py"])
def test_code_that_joins_the_data_layer_to_the_config_counts(tmp_path, name):
    folder = tmp_path / "preparation"
    shutil.copytree(Path(train_examples.__file__).parent, folder)
    assert train_examples.wiring_digest(folder) == train_examples.wiring_digest()
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert train_examples.wiring_digest(folder) != train_examples.wiring_digest()


def test_other_wiring_makes_other_entries(tmp_path, count, monkeypatch):
    load_data(options_of(config(tmp_path)))
    monkeypatch.setattr(train_examples, "wiring_digest", lambda: "0")
    load_data(options_of(config(tmp_path)))
    assert count["passes"] == 2


def test_changed_bytes_of_the_same_size_and_time_are_seen(tmp_path):
    made = config(tmp_path)
    before, file = load_data(options_of(made)), Path(made.data.train)
    times = file.stat()
    file.write_text(file.read_text().replace("red", "der"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_data(options_of(made)).fingerprints() != before.fingerprints()


def test_a_file_that_changes_while_it_is_read_makes_no_entry(tmp_path, monkeypatch):
    made = config(tmp_path)
    file = Path(made.data.train)
    before, write_examples = file.read_text(), train_examples.write_examples

    def write_late(*arguments):
        file.write_text(before + '{"prompt": "new", "completion": "row"}\n')
        return write_examples(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_examples, "write_examples", write_late)
        with pytest.raises(ValueError, match=r"train\.jsonl was changed while it was read"):
            load_data(options_of(made))
    file.write_text(before)
    assert load_data(options_of(made)).report.numbers["records"]["records"] == 48
    with monkeypatch.context() as patch:  # nothing is kept that could be stale
        patch.setattr(train_examples, "write_examples", write_late)
        assert load_data(options_of(config(tmp_path, **{"data.cache": ""}))).report.numbers["records"]["records"] == 49


@pytest.mark.parametrize(("cleaning", "origin"), [((), "from the cache"), (("drop_held_out_overlap",), "not cached")])
def test_what_is_compared_with_rows_without_files_is_not_cached(tmp_path, monkeypatch, cleaning, origin):
    """Nobody knows whether held-out rows that are streamed are still the same."""
    made = config(tmp_path, **{"data.held_out": str(tmp_path / "held_out.jsonl"), "data.cleaning": cleaning})
    files = RecordReader.files.fget
    monkeypatch.setattr(
        RecordReader, "files", property(lambda self: [file for file in files(self) if "held_out" not in file[0]])
    )
    for _ in range(2):
        data = load_data(options_of(made))
    assert origin in data.report.numbers["read"][1]
    assert list((tmp_path / "cache").glob("*.json")) == []  # findings


def test_findings_are_looked_for_again_where_held_out_rows_change(tmp_path, count):
    made = config(tmp_path, **{"data.held_out": str(tmp_path / "held_out.jsonl")})
    load_data(options_of(made))
    passes = count["passes"]
    load_data(options_of(made))
    assert count["passes"] == passes + 1  # of the held-out rows
    held_out = Path(made.data.held_out)
    held_out.write_text(held_out.read_text() + Path(made.data.train).read_text().split("\n")[0] + "\n")
    with_overlap = load_data(options_of(made))
    assert "exact_overlap" in [finding.check for finding in with_overlap.report.findings]


@pytest.fixture
def few_in_memory(monkeypatch):
    """Checks have the texts of five records."""
    for module in (run_data, train_examples):
        monkeypatch.setattr(module, "CHECKED_RECORDS", 5)


BY_KEYS = ("exact_overlap", "exact_duplicates", "contradictions")


def chosen(findings, names=BY_KEYS):
    return {finding.check: finding for finding in findings if finding.check in names}


def many_rows(root):
    """Forty rows; whatever is wrong with them stands behind the fifth."""
    made = config(
        root,
        **{
            "data.held_out": str(root / "held_out.jsonl"),
            "data.benchmarks": (str(root / "ours.jsonl"),),
            "data.fail_on": "never",
        },
    )
    pairs = [(f"Name the {word}?", word) for word in map(str, range(40))]
    pairs[20], pairs[30], pairs[31] = pairs[10], ("Name the 12?", "twelve"), ("x" * 300, "too long")
    pairs[33], pairs[34] = pairs[31], ("Name the 7?", "")
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    Path(root / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held_out = [{"prompt": f"Name the {number}?", "completion": "-"} for number in (3, 39, 99)]
    Path(root / "held_out.jsonl").write_text("\n".join(map(json.dumps, held_out)))
    Path(root / "ours.jsonl").write_text(json.dumps({"prompt": "Name the 38?"}) + "\n")
    return made


def test_equal_texts_are_found_among_all_records(tmp_path, few_in_memory):
    """As many as the preview finds, from the cache too, and with their names."""
    made = many_rows(tmp_path)
    cold, warm, preview = (
        load_data(options_of(made)),
        load_data(options_of(made)),
        load_data(options_of(made), thorough=True),
    )
    assert cold.report.findings == warm.report.findings
    assert cold.report.numbers["checked"] == {
        "dropped_rows": 40,
        "end_of_turn": 5,
        "text_ends": 5,
        "rendered_text": 5,
        "split_turns": 5,
        "new_tokens": 5,
        "ends_in_contents": 5,
        "exact_overlap": 40,
        "exact_duplicates": 40,
        "contradictions": 40,
        "empty_answers": 5,
    }
    assert set(preview.report.numbers["checked"].values()) == {40}
    by_texts = run_checks(dataclasses.replace(preview.checked, whole=None))
    found = chosen(cold.report.findings)
    assert set(found) == set(BY_KEYS)
    for thorough in (chosen(preview.report.findings), chosen(by_texts)):
        for name, finding in found.items():
            other = thorough[name]
            assert (finding.title, finding.count, finding.severity) == (other.title, other.count, other.severity)
            assert finding.numbers == other.numbers
            assert [place.row_id for place in finding.examples] == [place.row_id for place in other.examples]
    assert (found["exact_duplicates"].count, found["contradictions"].count) == (2, 4)


def test_examples_behind_those_in_memory_show_what_is_trained(tmp_path, few_in_memory):
    found = chosen(load_data(options_of(many_rows(tmp_path))).report.findings)
    copy, dropped = found["exact_duplicates"].examples
    assert copy.row_id == "train.jsonl:11"
    assert copy.text.startswith("also train.jsonl:21: ")
    assert "Name the 10?" in copy.text
    assert "-> 10" in copy.text
    assert dropped == ("train.jsonl:32", "also train.jsonl:34: ")  # too long: there are no tokens to show
    says = "train.jsonl:13: '12' | train.jsonl:31: 'twelve', asked: "
    assert found["contradictions"].examples[1].text.startswith(says)


def test_which_check_looked_at_how_many_records_is_said(tmp_path, few_in_memory):
    lines = [
        value
        for name, value in report_lines(load_data(options_of(many_rows(tmp_path))).report.numbers)
        if name == "checked"
    ]
    assert lines == [
        "all 40 records: dropped_rows, exact_overlap, exact_duplicates, contradictions",
        "the first 5 records: end_of_turn, text_ends, rendered_text, split_turns, new_tokens, ends_in_contents, "
        "empty_answers; python -m sft_jax.preview makes every check on all",
    ]
    preview = load_data(options_of(many_rows(tmp_path)), thorough=True).report.numbers
    assert [value for name, value in report_lines(preview) if name == "checked"] == ["all 40 records: every check"]


def test_few_records_are_kept_for_the_checks(tmp_path, few_in_memory):
    made = many_rows(tmp_path)
    data = load_data(options_of(made))
    assert "empty_answers" not in [finding.check for finding in data.report.findings]  # it stands in row 35
    assert data.checked is None
    assert len(load_data(options_of(made), thorough=True).checked.records) == 40


def test_what_cannot_be_read_is_among_the_dropped_rows(tmp_path):
    made = config(tmp_path, **{"data.reading.on_bad_row": "drop"})
    file = Path(made.data.train)
    file.write_text(file.read_text() + '{"prompt": 3, "completion": "b"}\n')
    for _ in range(2):
        data = load_data(options_of(made))
        assert data.report.numbers["records"] == {"records": 49, "kept": 48, "dropped": 1, "examples": 48}
        assert data.report.numbers["dropped_rows"] == 1
        assert list(data.report.numbers["dropped"]) == ["not a valid row"]
    assert isinstance(load_data(options_of(made), thorough=True).checked.dropped[0], DroppedRow)


def test_weights_of_rows(tmp_path):
    """Multiplied into those of tokens; 0 drops the row."""
    made = config(tmp_path, **{"data.reading.weight_column": "w"})
    lines = [f'{{"prompt": "a", "completion": "{n}", "w": {weight}}}' for n, weight in enumerate((1, 0.5, 0, 1e-60))]
    Path(made.data.train).write_text("\n".join(lines))
    data = load_data(options_of(made))
    assert [weights.max() for _, weights in map(data.examples.example, range(2))] == [1, 0.5]
    assert data.report.numbers["dropped"]["weight 0"]["rows"] == 2  # 1e-60 is 0 where it is multiplied
    Path(made.data.train).write_text(lines[0].replace("1}", "-1}"))
    with pytest.raises(ValueError, match=r"train\.jsonl:1.*-1"):
        load_data(options_of(made))
