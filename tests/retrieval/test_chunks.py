"""Chunks: where they are cut, what they overlap, which headings they bear, and ids that others do not change."""

import itertools
import random

import pytest

from sft_jax.retrieval.chunks import chunks_of, count_words
from sft_jax.retrieval.corpus import Document

CUT = {  # name -> (text, most words, overlap, chunks)
    "short": ("one two", 4, 0, ["one two"]),
    "paragraphs": ("a b c\n\nd e f\n\ng", 6, 0, ["a b c\n\nd e f", "g"]),
    "a paragraph's end before a sentence's": ("a. b c\n\nd. e f", 4, 0, ["a. b c", "d. e f"]),
    "sentences": ("A b. C d e. F g.", 5, 0, ["A b. C d e.", "F g."]),
    "a sentence's end in the first half, where there is no other": ("A. b c d e f", 4, 0, ["A.", "b c d e", "f"]),
    "no end at all": ("a b c d e f g", 3, 0, ["a b c", "d e f", "g"]),
    "overlap within a sentence": ("a b c d e f g", 5, 2, ["a b c d e", "d e f g"]),
    "overlap by a sentence": ("A b c. D. E f g. H i.", 7, 3, ["A b c. D. E f g.", "E f g. H i."]),
    "a last sentence longer than the overlap": ("A b c. D e f.", 4, 1, ["A b c.", "D e f."]),
    "white space stays": ("a\n  b\tc", 9, 0, ["a\n  b\tc"]),
    "characters without spaces": ("我们去。他们来。", 4, 0, ["我们去。", "他们来。"]),
    "headings": (
        "intro\n# A\n\none\n## B\ntwo\n# C\nthree",
        9,
        0,
        ["intro", "# A\n\none", "# A\n## B\n\ntwo", "# C\n\nthree"],
    ),
    "headings count as words": ("# A\na b c d", 5, 0, ["# A\n\na b c", "# A\n\nd"]),
    "the innermost headings": ("# A b c\n## D\na", 5, 0, ["## D\n\na"]),
    "a heading with nothing below it": ("# A\n# B\na", 5, 0, ["# A", "# B\n\na"]),
    "comments in code": ("```\n# no heading\n```\n# A\na", 9, 0, ["```\n# no heading\n```", "# A\n\na"]),
}


@pytest.mark.parametrize("case", CUT)
def test_where_chunks_are_cut(case):
    text, most, overlap, expected = CUT[case]
    assert [chunk.text for chunk in chunks_of([Document("d", text)], most, overlap)] == expected


@pytest.mark.parametrize("seed", range(20))
def test_chunks_are_small_enough_and_hold_every_word(seed):
    rng = random.Random(seed)
    words = [f"w{i}{rng.choice(['', '', '', '.', '!'])}" for i in range(rng.randint(1, 300))]
    text = "".join(word + rng.choice([" ", " ", " ", "\n", "\n\n", "\n\n# H1 x\n"]) for word in words)
    most = rng.randint(5, 40)
    chunks = chunks_of([Document("d", text)], most, rng.randint(0, (most - 1) // 2))
    assert all(0 < count_words(chunk.text) <= most for chunk in chunks)
    found = [word for chunk in chunks for word in chunk.text.split() if word.startswith("w")]
    assert [word for word, _ in itertools.groupby(dict.fromkeys(found))] == words
    assert len({chunk.id for chunk in chunks}) == len(chunks)


def test_ids_are_those_of_content_and_document():
    first, second = Document("a", "one\n\ntwo"), Document("b", "one")
    ids = lambda documents: [chunk.id for chunk in chunks_of(documents, 9, 0)]
    assert ids([first, second]) == ids([first]) + ids([second])
    assert len({*ids([first]), *ids([second]), *ids([Document("a", "one")])}) == 3


def test_the_same_words_twice_in_a_document():
    chunks = chunks_of([Document("a", "x y\n\nx y")], 2, 0)
    assert [chunk.text for chunk in chunks] == ["x y", "x y"]
    assert chunks[0].id != chunks[1].id


@pytest.mark.parametrize(("most", "overlap"), [(4, 2), (1, 1), (4, -1), (0, 0)])
def test_an_overlap_of_half_a_chunk_is_refused(most, overlap):
    with pytest.raises(ValueError, match=f"an overlap of {overlap} words is not less than half of a chunk of {most}"):
        chunks_of([Document("a", "x")], most, overlap)
