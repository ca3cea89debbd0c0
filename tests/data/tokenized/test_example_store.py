"""Examples on disk: they come back as they went in, and no damage goes unseen."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sft_jax.data.tokenized import Counts, DroppedRow, Tokenized, TokenizedExamples, group_dropped
from sft_jax.data.tokenized.example_store import ABOUT, ExampleStoreError, ExampleStoreWriter, open_examples
from sft_jax.data.tokenized.record_keys import KEYS, RecordKeys
from sft_jax.data.views import PromptTemplate, View

DROPPED = [DroppedRow("t:3", "too long", "9 tokens"), DroppedRow("t:4", "weight 0"), DroppedRow("t:6", "too long")]
VIEWS = [View("", "", f"Say {number}", f"Say {number}", (str(number % 2),), "") for number in range(6)]
TEMPLATE = PromptTemplate("Say \ud800", "")
PARTS = [  # pairs, ids, groups, dropped, and of the record of each the number of its example
    ([([5, 6, 7], [0, 0, 1]), ([8, 9], [0, 1])], ["t:1", "t:2"], ["x", "y"], DROPPED[:1], [0, 1, -1]),
    ([], [], [], DROPPED[1:2], [-1]),
    ([([5, 6, 8], [0, 1, 1])], ["t:ä\ud800"], ["x"], DROPPED[2:], [-1, 0]),
]


def part(pairs, ids, groups, dropped, first_examples=(), views=()):
    counts = Counts(len(ids) + len(dropped), len(ids), len(dropped), len(ids))
    examples, keys = TokenizedExamples.from_examples(pairs, ids, groups), RecordKeys.of(views, TEMPLATE)
    return Tokenized(examples, dropped, counts, keys=keys, first_examples=np.array(first_examples, np.int64))


def write(directory, parts=PARTS):
    directory.mkdir(exist_ok=True)
    with ExampleStoreWriter(directory) as writer:
        views = iter(VIEWS)
        for each in parts:
            writer.append(part(*each, [next(views) for _ in each[-1]]))
        writer.check(sum(len(ids) + len(dropped) for _, ids, _, dropped, *_ in parts))
        writer.finish({"files": ["a"]}, {"read": ["t"]})
    return directory


def in_memory(parts=PARTS):
    return TokenizedExamples.from_examples(
        *([value for each in parts for value in each[column]] for column in range(3))
    )


def test_examples_come_back(tmp_path):
    found, examples = open_examples(write(tmp_path / "s")), in_memory()
    assert found.counts == Counts(6, 3, 3, 3)
    np.testing.assert_array_equal(found.examples.tokens, [5, 6, 7, 8, 9, 5, 6, 8])
    assert found.examples.weights.dtype == np.uint8
    assert [weights.tolist() for _, weights in map(found.examples.example, range(3))] == [[0, 0, 1], [0, 1], [0, 1, 1]]
    assert found.examples.example(0)[1].dtype == np.float32
    assert found.examples.offsets.tolist() == [0, 3, 5, 8]
    assert list(found.examples.ids) == ["t:1", "t:2", "t:ä\ud800"]
    assert [found.examples.groups[example] for example in range(3)] == ["x", "y", "x"]
    assert [found.examples.sources[example] for example in range(3)] == ["", "", ""]
    assert found.examples.fingerprint() == examples.fingerprint()
    assert found.examples.supervised.tolist() == examples.supervised.tolist() == [1, 1, 2]


def test_keys_of_records_come_back(tmp_path):
    """With the numbers of examples and dropped rows as they are in the store."""
    found, expected = open_examples(write(tmp_path / "s")), RecordKeys.of(VIEWS, TEMPLATE)
    assert found.first_examples.tolist() == [0, 1, -1, -2, -3, 2]
    assert found.keys.template == TEMPLATE
    for name in KEYS:
        assert getattr(found.keys, name).tolist() == getattr(expected, name).tolist(), name


def test_dropped_rows_come_back_by_reason(tmp_path):
    dropped = open_examples(write(tmp_path / "s")).dropped
    assert list(dropped) == DROPPED
    found = [(reason, [row.id for row in rows[:5]]) for reason, rows in group_dropped(dropped).items()]
    assert found == [("too long", ["t:3", "t:6"]), ("weight 0", ["t:4"])]


def test_weights_between_0_and_1_are_kept_exactly(tmp_path):
    """The third part has other weights than 0 and 1: what was written before is widened."""
    parts = [*PARTS, ([([1, 2, 3], [0, 0.3, 1])], ["t:7"], [""], [], [])]
    found = open_examples(write(tmp_path / "s", parts)).examples
    assert found.weights.dtype == np.float32
    np.testing.assert_array_equal(found.weights, in_memory(parts).weights)
    assert found.fingerprint() == in_memory(parts).fingerprint()


def test_how_examples_were_cut_into_parts_does_not_matter(tmp_path):
    one = (*([value for each in PARTS for value in each[column]] for column in range(4)), [0, 1, -1, -2, -3, 2])
    write(tmp_path / "a"), write(tmp_path / "b", [one])
    assert (tmp_path / "a" / ABOUT).read_bytes() == (tmp_path / "b" / ABOUT).read_bytes()


def damages():
    def cut(path):
        path.write_bytes(path.read_bytes()[:-1])

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def lengthen(path):
        path.write_bytes(path.read_bytes() + b"\0")

    return {"cut": cut, "flip": flip, "lengthen": lengthen, "remove": lambda path: path.unlink()}


@pytest.mark.parametrize("damage", damages())
def test_damage_of_any_file_is_seen(tmp_path, damage):
    names = [path.name for path in write(tmp_path / "whole").iterdir()]
    assert len(names) >= 15
    for name in names:
        directory = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"{name}_"))
        damages()[damage](directory / name)
        with pytest.raises(ExampleStoreError, match=name):
            open_examples(directory)


def test_changed_numbers_in_the_description_are_seen(tmp_path):
    about = json.loads((write(tmp_path / "s") / ABOUT).read_text())
    about["content"]["fingerprint"] = "0" * 64
    (tmp_path / "s" / ABOUT).write_text(json.dumps(about))
    with pytest.raises(ExampleStoreError, match="was changed"):
        open_examples(tmp_path / "s")


def test_unfinished_is_no_store(tmp_path):
    with ExampleStoreWriter(tmp_path) as writer:
        writer.append(part(*PARTS[0]))
    with pytest.raises(ExampleStoreError, match="cannot be read"):
        open_examples(tmp_path)


def test_examples_that_are_lost_are_noticed(tmp_path):
    with ExampleStoreWriter(tmp_path) as writer:
        writer.append(part(*PARTS[0]))
        with pytest.raises(RuntimeError, match="4 records were read and 2 examples made"):
            writer.check(4)


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "tokens").symlink_to("/dev/full")
    with (
        ExampleStoreWriter(tmp_path) as writer,
        pytest.raises(ExampleStoreError, match=r"tokens .*No space left.*data\.cache="),
    ):
        writer.append(part([(range(10**6), [0] * 10**6)], ["t:1"], [""], []))
