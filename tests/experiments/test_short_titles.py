"""Short titles: what is asked is what they state, files are nested as sweeps need it, and formats spell the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.short_titles.documents import ASKED, short_title, short_titles
from experiments.short_titles.rows import (
    EVERY_FORMAT,
    FORMATS,
    HELD_OUT,
    SIZES,
    TRAIN,
    WRONG_PERCENT,
    all_files,
    held_out_of,
    of_size,
    of_wrong,
    train_of,
)

ROWS = 64


@pytest.fixture(scope="module")
def files():
    return all_files(ROWS, held_out=10, seed=0)


def asked(row):
    return [message["content"] for message in row["messages"] if message["role"] == "user"]


def answers(row):
    return [message["content"] for message in row["messages"] if message["role"] == "assistant"]


def test_a_title_states_its_facts():
    titles = short_titles(100, "test")
    assert len({title.text for title in titles}) == len({title.answer for title in titles}) == 100
    for title in titles:
        assert tuple(title.facts) == ASKED
        assert all(str(value) in title.text for value in title.facts.values() if value is not None)
        assert json.loads(title.answer) == title.facts
    absent = sum(None in title.facts.values() for title in titles)
    assert 15 <= absent <= 45
    assert short_titles(5, "test") == titles[:5]
    assert short_title("a") == short_title("a") != short_title("b")


def test_no_more_titles_than_there_are(monkeypatch):
    only = short_title("x")
    monkeypatch.setattr("experiments.short_titles.documents.short_title", lambda seed: only)
    with pytest.raises(ValueError, match="no title unlike the others found for number 1 of 2"):
        short_titles(2, "test")


def test_nothing_that_is_measured_is_trained_on(files):
    held_out = {answers(row)[0] for row in files[HELD_OUT]}
    assert held_out.isdisjoint(answers(row)[0] for row in files[TRAIN])
    titles = {asked(row)[0] for row in files[HELD_OUT]}
    for name, rows in files.items():
        if not name.endswith(HELD_OUT):
            texts = [json.dumps(row, ensure_ascii=False) for row in rows]
            assert not any(json.dumps(title, ensure_ascii=False)[1:-1] in text for title in titles for text in texts)
    general = {asked(row)[0] for row in files[held_out_of("general")]}
    assert general.isdisjoint(asked(row)[0] for row in files[train_of("general")])


def test_smaller_sets_are_the_first_rows(files):
    for size in SIZES:
        assert files[of_size(size)] == files[TRAIN][:size]
        assert len(files[of_size(size)]) == size


def test_the_share_of_wrong_answers(files):
    """Wrong is the answer to another title, of the same form; a larger share has the wrong ones of a smaller."""
    right, before = files[TRAIN], set()
    all_answers = {answers(row)[0] for row in right}
    assert of_wrong(0) == TRAIN
    for percent in WRONG_PERCENT:
        rows = files[of_wrong(percent)]
        assert [asked(row) for row in rows] == [asked(row) for row in right]
        wrong = {number for number, row in enumerate(rows) if answers(row) != answers(right[number])}
        assert len(wrong) == ROWS * percent // 100
        assert before <= wrong
        assert {answers(row)[0] for row in rows} <= all_answers
        before = wrong


def test_turns_and_lengths(files):
    for row, whole in zip(files[train_of("turns")], files[TRAIN], strict=True):
        facts = json.loads(answers(whole)[0])
        names = [question.rpartition("The ")[2].rstrip("?") for question in asked(row)]
        assert len(set(names)) == 3
        stated = ["not stated" if facts[name] is None else str(facts[name]) for name in names]
        assert answers(row) == stated
    lengths = files[train_of("lengths")]
    assert [row["source"] for row in lengths] == ["short", "long"] * (ROWS // 2)
    names = [row["messages"][0]["content"].split()[3] for row in lengths[::2]]
    assert {name: names.count(name) for name in ASKED} == dict.fromkeys(ASKED, ROWS // 8)
    assert files[held_out_of("short")] == files[held_out_of("lengths")][::2]


def test_formats_ask_the_same(files):
    of_format = {name: files[train_of(name)] for name in FORMATS}
    for number, whole in enumerate(files[TRAIN]):
        for name in FORMATS:
            question, answer = of_format[name][number]["segments"]
            assert (question["train"], answer["train"]) == (False, True)
            assert asked(whole)[0] in question["text"]
            assert answer["text"] == answers(whole)[0] + "<|im_end|>"
    mixed = files[train_of(EVERY_FORMAT)]
    assert [row["source"] for row in mixed[:4]] == [*FORMATS, FORMATS[0]]
    assert all(row == of_format[row["source"]][number] for number, row in enumerate(mixed))
    assert [row["source"] for row in files[held_out_of("formats")][:3]] == list(FORMATS)


def test_chatml_is_the_format_of_the_model(files):
    """Token for token what the chat template makes of the messages, up to the end of the answer."""
    from sft_jax.models import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    for row, whole in zip(files[train_of("chatml")][:5], files[TRAIN], strict=False):
        spelt = "".join(segment["text"] for segment in row["segments"])
        rendered = tokenizer.apply_chat_template(whole["messages"], tokenize=False)
        assert rendered == spelt + "\n"


def test_too_few_rows_or_too_many(monkeypatch):
    with pytest.raises(ValueError, match=f"expected at least {SIZES[-1]}, the largest of SIZES"):
        all_files(SIZES[-1] - 1, 2, 0)
    monkeypatch.setattr("experiments.short_titles.rows.modules", lambda count, seed: ["x" * 500] * (count - 1))
    with pytest.raises(ValueError, match=r"34 pieces of Python: this one has 33 modules; ask for fewer rows"):
        all_files(32, 2, 0)


def test_the_command(tmp_path):
    """The same files twice."""
    root = Path(__file__).parents[2]
    arguments = [sys.executable, "-m", "experiments.short_titles", f"--rows={SIZES[-1]}", "--held_out=2"]
    for name in ("a", "b"):
        subprocess.run([*arguments, f"--out={tmp_path / name}"], check=True, cwd=root, capture_output=True)
    read = lambda name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert read("a") == read("b")
    assert set(read("a")) == set(all_files(SIZES[-1], 2, 0))
