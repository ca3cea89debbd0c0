"""Characters that do not belong: text read in the wrong encoding, lost characters, control characters, odd spaces."""

import re
import unicodedata

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, excerpt_around, observed
from sft_jax.data.texts import NOT_TEXT, repair_mojibake
from sft_jax.data.views import View

_HIDDEN = re.compile("[\u200b\u2060\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")  # zero width, reordering, tags
_WITH_NON_ASCII = re.compile(r"[^ \t\r\n]*[^\x00-\x7f][^ \t\r\n]*")
_RARE = range(0x0700, 0x0900)  # Syriac to Arabic supplements: more likely a capital before a quotation mark


def mojibake(data: CheckedData) -> list[Observation]:
    """Rows with words that were UTF-8 and have been read as Windows-1252 or Latin-1 ("cafÃ©")."""
    hits = [(view, found) for view in data.views if (found := _misread_word(view.text)) is not None]
    return _rows(
        data,
        [(view, at) for view, (at, _) in hits],
        "words read in the wrong encoding",
        data.by_step(
            "fix_encoding",
            "Read the source as UTF-8; the cleaning step fix_encoding repairs texts that are misread as a whole.",
            "Read the source as UTF-8: in part misread, these texts are not repaired by fix_encoding.",
        ),
        {"words": [f"{word} -> {repair_mojibake(word)}" for _, (_, word) in hits[:10]]},
    )


def lost_characters(data: CheckedData) -> list[Observation]:
    """Rows with U+FFFD, which stands where a character could not be read."""
    hits = [(view, view.text.index("\ufffd")) for view in data.views if "\ufffd" in view.text]
    advice = "What it stood for is lost here: read the source again with its encoding, or drop the rows."
    return _rows(data, hits, "the replacement character U+FFFD", advice)


def control_characters(data: CheckedData) -> list[Observation]:
    """Rows with control characters, byte order marks, or characters nobody sees."""
    return [
        *_rows(
            data,
            _first(data, NOT_TEXT),
            "control characters or byte order marks",
            data.by_step(
                "remove_control_characters",
                "The cleaning step remove_control_characters takes them out.",
                "They stand where remove_control_characters does not reach: edit the rows.",
            ),
        ),
        *_rows(
            data,
            _first(data, _HIDDEN),
            "characters without width or that change the direction of reading",
            "Tokens that nobody sees: remove them unless the script needs them.",
        ),
    ]


def white_space(data: CheckedData) -> list[Observation]:
    """Answers with white space at an end, and rows with Windows line breaks or spaces that are no space."""
    views = data.views
    edges = [(view, 0) for view in views if view.answer != view.answer.strip()]
    one_form = lambda step: data.by_step(
        step, f"The cleaning step {step} makes it one form.", f"It stands where {step} does not reach: edit the rows."
    )
    return [
        *_rows(data, edges, "an answer that begins or ends with white space", one_form("strip_whitespace")),
        *_rows(
            data,
            _first(data, re.compile("\r|[\u00a0\u2000-\u200a\u202f\u205f]")),
            "carriage returns or spaces that are not U+0020",
            one_form("normalize_whitespace"),
        ),
    ]


def _misread_word(text: str) -> tuple[int, str] | None:
    """Where the first word stands that is proven to be misread, and the word."""
    if text.isascii():
        return None
    for match in _WITH_NON_ASCII.finditer(text):
        repaired = repair_mojibake(match[0])
        odd = (ord(letter) in _RARE or unicodedata.category(letter) in ("Mn", "Cn") for letter in repaired)
        if repaired != match[0] and not any(odd):
            return match.start(), match[0]
    return None


def _first(data: CheckedData, pattern: re.Pattern) -> list[tuple[View, int]]:
    return [(view, match.start()) for view in data.views if (match := pattern.search(view.text))]


def _rows(
    data: CheckedData, hits: list[tuple[View, int]], what: str, advice: str, numbers: dict | None = None
) -> list[Observation]:
    title = f"{counted(len(hits), 'row has', 'rows have')} {what}"
    show = lambda hit: (hit[0].id, repr(excerpt_around(hit[0].text, hit[1]))[1:-1])
    return observed(title, hits, len(data.views), show, advice, numbers)
