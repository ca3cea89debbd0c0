"""Scripts of the text, as a sign of its language: rows in another script than the rest, words in two scripts.

Languages that share a script are not told apart: that takes a model of its own, and for a short row a wrong guess is
worse than none.
"""

import collections
import functools
import unicodedata
from collections.abc import Mapping

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, observed

_MAIN_SHARE = 0.9  # of the rows' texts in one script: then others are out of place
_FEWEST_LETTERS = 4
# Written together in one language: Japanese, Korean, Chinese with phonetic signs.
_EAST_ASIAN = {"CJK": "CJK", "HIRAGANA": "CJK", "KATAKANA": "CJK", "HANGUL": "CJK", "BOPOMOFO": "CJK"}
_LOOK_ALIKE = {  # letters that a reader takes for those of another script
    "LATIN": set("ABCEHIJKMNOPSTXYZaceijopsxyv"),
    "CYRILLIC": set("АВЕЅІЈКМНОРСТУХаеѕіјорсух"),
    "GREEK": set("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧονϲ"),
}


@functools.cache
def script_of(letter: str) -> str:
    """ "LATIN", "CYRILLIC", "CJK" …, from the Unicode name; "" for what is no letter of a script."""
    if letter.isascii():
        return "LATIN" if letter.isalpha() else ""
    if unicodedata.category(letter)[0] not in "LM":
        return ""
    first = unicodedata.name(letter, "").partition(" ")[0]
    return "" if first in ("COMBINING", "MODIFIER", "FULLWIDTH", "MICRO") else _EAST_ASIAN.get(first, first)


def script_counts(text: str) -> Mapping[str, int]:
    """Letters of a text by script."""
    counts: collections.Counter[str] = collections.Counter()
    for letter, count in collections.Counter(text).items():
        if script := script_of(letter):
            counts[script] += count
    return counts


def scripts(data: CheckedData) -> list[Observation]:
    """Letters by script, and rows whose answer is mostly in another script than nearly all answers."""
    views = data.views
    by_view = [script_counts(view.answer) for view in views]
    letters = sum((collections.Counter(counts) for counts in by_view), collections.Counter())
    if not letters:
        return []
    shares = {script: count / letters.total() for script, count in letters.most_common(10)}
    title = "Letters of the answers: " + ", ".join(f"{_name(script)} {share:.1%}" for script, share in shares.items())
    found = [Observation(title, 0, 0.0, numbers={"shares": shares})]
    mains = [max(counts, key=counts.get) if sum(counts.values()) >= _FEWEST_LETTERS else "" for counts in by_view]
    usual, count = collections.Counter(filter(None, mains)).most_common(1)[0] if any(mains) else ("", 0)
    others = [view for view, main in zip(views, mains, strict=True) if main not in ("", usual)]
    if count < _MAIN_SHARE * sum(map(bool, mains)):
        return found
    title = (
        f"{counted(len(others), 'answer is', 'answers are')} not mostly in {_name(usual)} letters, as the others are"
    )
    show = lambda view: (view.id, data.line(view))
    return found + observed(title, others, len(views), show, "Another language? Keep it on purpose, or drop it.")


def _name(script: str) -> str:
    return script if script == "CJK" else script.title()


def mixed_words(data: CheckedData) -> list[Observation]:
    """Rows with a word of letters that look alike in two scripts: a Cyrillic "а" in "bаnk"."""
    hits = [(view, word) for view in data.views if (word := _mixed_word(view.text))]
    return observed(
        f"{counted(len(hits), 'row has', 'rows have')} a word in two scripts that look alike",
        hits,
        len(data.views),
        lambda hit: (hit[0].id, f"{hit[1]!r} in: {data.line(hit[0])}"),
        "Misread by optical recognition, or meant to pass a filter: the model sees other tokens than a reader.",
    )


def _mixed_word(text: str) -> str:
    if text.isascii() or not any(script_of(letter) in ("CYRILLIC", "GREEK") for letter in set(text)):
        return ""
    for word in text.split():
        word = word.strip("\"'“”«»().,;:!?")
        if word.isalpha() and not word.isascii() and _is_mixed(word):
            return word
    return ""


def _is_mixed(word: str) -> bool:
    """Whether the letters of the script that it has fewest of look like others: "bаnk", but not "μm" or "SQLзапрос"."""
    letters = collections.defaultdict(list)
    for letter in word:
        letters[script_of(letter)].append(letter)
    fewest = min(map(len, letters.values()))
    return len(letters) > 1 and all(
        _LOOK_ALIKE.get(script, set()).issuperset(found) for script, found in letters.items() if len(found) == fewest
    )
