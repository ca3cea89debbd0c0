"""Kept answers are there again, whole lines alone, on disk and in a bucket."""

import json
import re

import pytest
from etils import epath

from sft_jax.evaluation import answer_store
from sft_jax.evaluation.answer_store import AnswerStore, key_of
from tests import buckets

ONE, TWO = key_of(["generate", [1, 2], 4]), key_of(["generate", [1, 2], 5])


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path) / "answers"


def test_what_was_put_is_there_for_the_next_one(directory):
    first = AnswerStore(directory, "model")
    assert first.get(ONE) is None
    first.put(ONE, [[[5, 6], -0.5, "stop", 0.1]])
    first.put(ONE, "another")  # the first one stays
    again = AnswerStore(directory, "model")
    assert again.get(ONE) == first.get(ONE) == [[[5, 6], -0.5, "stop", 0.1]]
    assert again.get(TWO) is None
    assert len((directory / "model.jsonl").read_text().splitlines()) == 1
    assert AnswerStore(directory, "other model").get(ONE) is None


def test_keys_tell_all_apart_that_was_asked():
    asked = [["generate", [1], 4], ["generate", [1], 5], ["judge", [1], [[4]]], ["judge", [1], [[4], [5]]]]
    assert len({key_of(one) for one in asked}) == len(asked)
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})


def test_a_line_that_was_cut_is_left_out_and_goes(directory):
    store = AnswerStore(directory, "model")
    store.put(ONE, 1)
    path = directory / "model.jsonl"
    path.write_text(path.read_text() + f'["{TWO}", [[1, 2')
    reader = AnswerStore(directory, "model", writes=False)
    assert (reader.get(ONE), reader.get(TWO)) == (1, None)
    assert not path.read_text().endswith("\n")  # not for this one to mend
    again = AnswerStore(directory, "model")
    again.put(TWO, 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [[ONE, 1], [TWO, 2]]


@pytest.mark.parametrize("damage", ["\x00\x00", "12", '["a"]'])
def test_a_damaged_line_is_named(directory, damage):
    AnswerStore(directory, "model").put(ONE, 1)
    path = directory / "model.jsonl"
    path.write_text(f"{damage}\n" + path.read_text())
    with pytest.raises(ValueError, match=re.escape(f"{path}:1 is damaged")):
        AnswerStore(directory, "model")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))  # as advised
    assert AnswerStore(directory, "model").get(ONE) == 1


def test_one_process_writes(directory):
    store = AnswerStore(directory, "model", writes=False)
    store.put(ONE, 1)
    store.flush()
    assert store.get(ONE) == 1
    assert not directory.exists()


def test_in_a_bucket_answers_are_written_some_at_a_time(monkeypatch):
    monkeypatch.setattr(answer_store, "_AT_ONCE", 2)
    directory = buckets.empty("answers")
    store, path = AnswerStore(directory, "model"), directory / "model.jsonl"
    store.put(ONE, 1)
    assert not path.exists()
    store.put(TWO, 2)
    assert len(path.read_text().splitlines()) == 2
    store.put(key_of("three"), 3)
    assert AnswerStore(directory, "model").get(key_of("three")) is None
    store.flush()
    assert AnswerStore(directory, "model").get(key_of("three")) == 3
