"""Search: order, ties, what is not found, and indexes that are kept, reused and made anew."""

import itertools
import shutil

import numpy as np
import pytest

from sft_jax.retrieval import Chunk, index_name, open_index
from sft_jax.retrieval.index import build_index
from tests.retrieval.embedders import Counts

TEXTS = {"a": "red red blue", "b": "blue", "c": "green cat", "d": "blue"}
CHUNKS = [Chunk(name, f"{name}.md", text) for name, text in TEXTS.items()]


def embedder(method):
    return None if method == "bm25" else Counts()


def found(index, query, k=4):
    ((*passages,),) = index.search([query], k)
    assert [passage.rank for passage in passages] == list(range(1, len(passages) + 1))
    assert all(passage.score >= after.score for passage, after in itertools.pairwise(passages))
    assert all(
        (passage.text, passage.document_id) == (TEXTS[passage.chunk_id], f"{passage.chunk_id}.md")
        for passage in passages
    )
    return [passage.chunk_id for passage in passages]


CASES = [
    ("bm25", "blue", 4, ["b", "d", "a"]),  # equal ones in the order of the corpus
    ("bm25", "blue", 1, ["b"]),
    ("bm25", "cat red", 4, ["a", "c"]),  # red twice
    ("bm25", "bird", 4, []),  # no word of the corpus: nothing, not anything
    ("bm25", " \n", 4, []),
    ("dense", "red", 4, ["a", "b", "c", "d"]),  # 0.89, 0, 0, 0
    ("dense", "blue", 3, ["b", "d", "a"]),
    ("dense", "", 4, []),
    # By words c, by cosines of green c, a, b, d: 1/61 + 1/61, 1/62, 1/63, 1/64.
    ("hybrid", "green cat", 4, ["c", "a", "b", "d"]),
    # By words of bird nothing, by cosines of red a.
    ("hybrid", "red bird", 2, ["a", "b"]),
]


@pytest.mark.parametrize(("method", "query", "k", "expected"), CASES)
def test_what_is_found(method, query, k, expected):
    assert found(build_index(CHUNKS, method, embedder(method)), query, k) == expected


def test_scores():
    ((first, second),) = build_index(CHUNKS, "dense", Counts()).search(["red blue"], 2)
    assert first.score == pytest.approx(3 / 10**0.5, abs=1e-6)  # (1, 1) and (2, 1)
    assert second.score == pytest.approx(0.5**0.5, abs=1e-6)
    ((best, *_),) = build_index(CHUNKS, "hybrid", Counts()).search(["green"], 4)
    assert best.score == pytest.approx(2 / 61)


@pytest.mark.parametrize("method", ["bm25", "dense", "hybrid"])
def test_queries_are_answered_each_for_itself(method):
    index = build_index(CHUNKS, method, embedder(method))
    queries = ["blue", "", "red", "green"] * 40
    assert index.search(queries, 3) == [index.search([query], 3)[0] for query in queries]
    assert index.search([], 3) == []


def test_the_order_of_many_equal_ones_is_that_of_the_corpus():
    chunks = [Chunk(str(number), "d", "blue") for number in range(500)]
    ((*passages,),) = build_index(chunks, "bm25").search(["blue"], 7)
    assert [passage.chunk_id for passage in passages] == [str(number) for number in range(7)]


REFUSED = [
    ("words", None, CHUNKS, "'words' is no method of search; expected one of bm25, dense, hybrid"),
    ("dense", None, CHUNKS, "the method dense needs an embedder"),
    ("bm25", Counts(), CHUNKS, "the method bm25 reads no embedder"),
    ("bm25", None, [], "there are no chunks"),
    ("bm25", None, [CHUNKS[0], CHUNKS[0]], "two chunks have one id"),
]


@pytest.mark.parametrize(("method", "made_by", "chunks", "message"), REFUSED)
def test_what_is_refused(method, made_by, chunks, message):
    with pytest.raises(ValueError, match=message):
        build_index(chunks, method, made_by)
    with pytest.raises(ValueError, match="search for 0 passages: expected at least 1"):
        build_index(CHUNKS, "bm25").search(["a"], 0)


@pytest.mark.parametrize("method", ["bm25", "dense", "hybrid"])
def test_an_index_is_made_once(method, tmp_path, monkeypatch):
    first = open_index(tmp_path, CHUNKS, method, embedder(method))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [first.name]
    monkeypatch.setattr("sft_jax.retrieval.saved.build_index", lambda *_: pytest.fail("made again"))
    again = open_index(tmp_path, CHUNKS, method, embedder(method))
    assert again.name == first.name == index_name(CHUNKS, method, embedder(method))
    for query in ("blue", "red green"):
        assert again.search([query], 3) == first.search([query], 3)


def test_names_differ_in_all_that_passages_depend_on():
    others = [
        (CHUNKS[:-1], "dense", Counts()),
        (CHUNKS[::-1], "dense", Counts()),  # equal scores come in another order
        (CHUNKS, "hybrid", Counts()),
        (CHUNKS, "dense", Counts("other")),
        (CHUNKS, "bm25", None),
        (CHUNKS, "dense", Counts()),
    ]
    assert len({index_name(*other) for other in others}) == len(others)


def test_vectors_of_chunks_that_did_not_change_are_reused(tmp_path):
    open_index(tmp_path, CHUNKS, "dense", Counts())
    changed = [CHUNKS[3], CHUNKS[0], Chunk("e", "b.md", "green green")]
    again = Counts()
    index = open_index(tmp_path, changed, "dense", again)
    assert again.asked == ["green green"]
    np.testing.assert_array_equal(index.vectors, build_index(changed, "dense", Counts()).vectors)
    ((*passages,),) = index.search(["blue"], 9)
    assert [passage.chunk_id for passage in passages] == ["d", "a", "e"]  # nothing of what is gone
    other = Counts("other")
    open_index(tmp_path, changed, "dense", other)
    assert len(other.asked) == 3


def damage_manifest(directory):
    path = directory / "index.json"
    path.write_text(path.read_text().replace('"a"', '"x"'))


DAMAGES = {
    "a file cut off": lambda directory: (directory / "vectors.npy").write_bytes(b"\x93NUMPY"),
    "a byte": lambda directory: (directory / "bm25" / "vocab.index.json").write_text('{"red": 1}'),
    "a file gone": lambda directory: (directory / "vectors.npy").unlink(),
    "words gone": lambda directory: shutil.rmtree(directory / "bm25"),
    "no manifest": lambda directory: (directory / "index.json").unlink(),
    "a manifest cut off": lambda directory: (directory / "index.json").write_text('{"chunks"'),
    "another manifest": damage_manifest,
    "a file more": lambda directory: (directory / "more.npy").write_text(""),
    "no directory": lambda directory: (shutil.rmtree(directory), directory.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_made_again(damage, tmp_path):
    first = open_index(tmp_path, CHUNKS, "hybrid", Counts())
    DAMAGES[damage](tmp_path / first.name)
    again = open_index(tmp_path, CHUNKS, "hybrid", Counts())
    assert again.search(["green cat"], 4) == first.search(["green cat"], 4)
    untouched = Counts()
    assert open_index(tmp_path, CHUNKS, "hybrid", untouched).search(["green cat"], 4) == again.search(["green cat"], 4)
    assert untouched.asked == ["green cat"]


def test_vectors_of_a_damaged_index_are_not_reused(tmp_path):
    first = open_index(tmp_path, CHUNKS, "dense", Counts())
    vectors = tmp_path / first.name / "vectors.npy"
    np.save(vectors, first.vectors[::-1])
    again = Counts()
    open_index(tmp_path, CHUNKS[:2], "dense", again)
    assert again.asked == [chunk.text for chunk in CHUNKS[:2]]


def test_a_process_that_is_killed_leaves_nothing_that_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("sft_jax.retrieval.saved.shutil.rmtree", lambda *_, **__: None)  # as if it were killed
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_index(tmp_path, CHUNKS, "dense", Counts())
    monkeypatch.undo()
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert ".partial-" in left.name
    index = open_index(tmp_path, CHUNKS, "dense", Counts())
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [index.name]


def test_where_indexes_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match="gs://bucket/indexes: indexes are kept on a local disk"):
        open_index("gs://bucket/indexes", CHUNKS, "bm25")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/below: indexes cannot be kept there .*; give a directory on a local"):
        open_index(tmp_path / "file" / "below", CHUNKS, "bm25")
    assert open_index(None, CHUNKS, "bm25").search(["cat"], 1)
