"""Documents cut into chunks, the texts that are searched and shown: whole paragraphs and sentences where they fit.

The step between corpus.py and index.py.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence

from sft_jax.data.texts import UNSPACED
from sft_jax.retrieval.corpus import Document

_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]*_]*\Z")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_HEADING = re.compile(r"^(#{1,6})[ \t]+(\S.*?)[ \t]*#*[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"^[ ]{0,3}(```+|~~~+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A piece of a document.

    Attributes:
        id: a hash of the document's id and of the text, which other documents do not change.
        document_id: of its document.
        text: the Markdown headings it stands under, a line each, an empty line, and the piece as it stands there.
    """

    id: str
    document_id: str
    text: str


@dataclasses.dataclass(frozen=True)
class _Section:
    """Characters [start, end) of a document below its headings, the outermost first."""

    headings: tuple[str, ...]
    start: int
    end: int


def chunks_of(documents: Sequence[Document], most_words: int, overlap_words: int) -> list[Chunk]:
    """The chunks of documents, in order.

    A chunk ends at the last end of a paragraph in its second half, else at the last end of a sentence there, else at
    the last end of a sentence or of a paragraph at all, else where it is full. The next begins at most `overlap_words`
    before that, with the first sentence that begins there; behind a chunk that ends within a sentence, at that many
    words where none begins. No chunk reaches over a heading of Markdown; the headings that a chunk stands under are
    put before it, the innermost ones where they would be more than half of it. A character of a language written
    without spaces is a word.

    Args:
        documents: with ids of their own.
        most_words: of a chunk, headings included.
        overlap_words: of a chunk with the one before it in the same section, at most.

    Raises:
        ValueError: the overlap is not less than half of a chunk.
    """
    check_sizes(most_words, overlap_words)
    return [chunk for document in documents for chunk in _chunks(document, most_words, overlap_words)]


def check_sizes(most_words: int, overlap_words: int) -> None:
    """Checks the sizes of chunks.

    Raises:
        ValueError: the overlap is not less than half of a chunk.
    """
    if not 0 <= 2 * overlap_words < most_words:
        raise ValueError(f"an overlap of {overlap_words} words is not less than half of a chunk of {most_words}")


def count_words(text: str) -> int:
    """Words as chunks count them."""
    return len(_WORD.findall(text))


def _chunks(document: Document, most_words: int, overlap_words: int) -> Iterator[Chunk]:
    seen: dict[str, int] = {}
    for section in _sections(document.text):
        headings = _fitting(section.headings, most_words // 2)
        room = most_words - sum(map(count_words, headings))
        words = [match.span() for match in _WORD.finditer(document.text, section.start, section.end)]
        for first, last in _pieces(document.text, words, room, overlap_words):
            piece = document.text[words[first][0] : words[last - 1][1]]
            text = "\n\n".join(part for part in ("\n".join(headings), piece) if part)
            seen[text] = seen.get(text, 0) + 1  # the same words may stand in a document twice
            digest = hashlib.sha256(json.dumps([document.id, text, seen[text]]).encode()).hexdigest()
            yield Chunk(digest[:32], document.id, text)


def _sections(text: str) -> Iterator[_Section]:
    """The parts of a text between its headings; what has no heading of Markdown is one part."""
    fences = [match.start() for match in _FENCE.finditer(text)]
    in_code = lambda at: bisect.bisect_left(fences, at) % 2  # a comment there begins like a heading
    found = [match for match in _HEADING.finditer(text) if not in_code(match.start())]
    begin = found[0].start() if found else len(text)
    if text[:begin].strip():
        yield _Section((), 0, begin)
    headings: list[tuple[int, str]] = []
    for match, after in itertools.zip_longest(found, found[1:]):
        depth, end = len(match[1]), after.start() if after else len(text)
        headings = [*(heading for heading in headings if heading[0] < depth), (depth, match[0].strip())]
        lines = tuple(line for _, line in headings)
        if text[match.end() : end].strip():
            yield _Section(lines, match.end(), end)
        elif after is None or len(after[1]) <= depth:  # nothing below it, not even a subheading: it is the text
            yield _Section(lines[:-1], match.start(), match.end())


def _fitting(headings: tuple[str, ...], most_words: int) -> tuple[str, ...]:
    """The innermost headings that have no more words than that."""
    while headings and sum(map(count_words, headings)) > most_words:
        headings = headings[1:]
    return headings


def _pieces(text: str, words: Sequence[tuple[int, int]], room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """First and one behind the last word of each piece."""
    gaps = [text[end:start] for (_, end), (start, _) in itertools.pairwise(words)]
    paragraphs = [number for number, gap in enumerate(gaps, 1) if _PARAGRAPH.search(gap)]
    ends_sentence = lambda number: _SENTENCE_END.search(text[slice(*words[number - 1])])
    ends = sorted({*paragraphs, *(number for number in range(1, len(words)) if ends_sentence(number))})
    start = 0
    while len(words) - start > room:
        full = start + room
        least = start + overlap + 1  # so that the next piece begins later than this one
        half = max(start + room // 2, least)
        end = _last_in(paragraphs, half, full) or _last_in(ends, half, full) or _last_in(ends, least, full) or full
        yield start, end
        number = bisect.bisect_left(ends, end - overlap)
        start = ends[number] if number < len(ends) and ends[number] <= end else end - overlap
    if start < len(words):
        yield start, len(words)


def _last_in(places: Sequence[int], least: int, most: int) -> int | None:
    """The last of some ascending places that lies in [least, most]."""
    number = bisect.bisect_right(places, most) - 1
    return places[number] if number >= 0 and places[number] >= least else None
