"""Training rows that are also measured on: what a score on such rows shows is memory."""

import collections
from collections.abc import Iterator, Sequence

import numpy as np

from sft_jax.data.checks.findings import Observation, counted, observed
from sft_jax.data.checks.shingles import Numbers, Offsets, Shingles, Vocabulary, windows, words
from sft_jax.data.checks.subject import Subject, View

# Decontamination by n-grams as for GPT-3 (Brown et al. 2020, appendix C): 13 words, fewer for shorter prompts but at
# least 8, and n-grams that more than 10 training rows have are common phrases and prove nothing.
MOST_WORDS = 13
FEWEST_WORDS = 8
COMMON_ROWS = 10
_CHUNK_ROWS = 20_000  # training rows whose n-grams are in memory at once
_ADVICE = "Remove them from the training data, or say how much of the score is theirs."


def exact_overlap(subject: Subject) -> list[Observation]:
    """Held-out rows and benchmark prompts that are also in the training data, apart from surrounding white space."""
    first_with: dict[str, str] = {}
    for view in subject.views:
        for text in _asked(subject, view):
            first_with.setdefault(text, view.id)
    found = []
    for (one, many), measured in _measured(subject):
        pairs = [(view, first_with[text]) for view in measured if (text := subject.main(view)) in first_with]
        title = f"{counted(len(pairs), f'{one} is', f'{many} are')} also in the training data"
        found += _observed(subject, title, pairs, measured)
    return found


def loose_overlap(subject: Subject) -> list[Observation]:
    """Those that are in the training data but for case, punctuation and white space."""
    exact, first_with = set(), {}
    for view in subject.views:
        for text in _asked(subject, view):
            exact.add(text)
            first_with.setdefault(tuple(words(text)), view.id)
    first_with.pop((), None)  # nothing but punctuation
    found = []
    for (one, many), measured in _measured(subject):
        texts = [(view, subject.main(view)) for view in measured]
        keys = [(view, tuple(words(text))) for view, text in texts if text not in exact]
        pairs = [(view, first_with[key]) for view, key in keys if key in first_with]
        title = f"{counted(len(pairs), f'more {one} is', f'more {many} are')} trained on, but for case and punctuation"
        found += _observed(subject, title, pairs, measured)
    return found


def ngram_overlap(subject: Subject) -> list[Observation]:
    """Those that share a rare n-gram of words with a training row, and are not there as a whole."""
    whole = {tuple(words(text)) for view in subject.views for text in _asked(subject, view)}
    asked = [subject.text(view) for view in subject.views]
    found = []
    for (one, many), measured in _measured(subject):
        views = [view for view in measured if tuple(words(subject.main(view))) not in whole]
        shared = shared_ngrams(asked, [subject.main(view) for view in views])
        hits = [(view, hit) for view, hit in zip(views, shared, strict=True) if hit is not None]
        hits.sort(key=lambda pair: -pair[1].share)
        pairs = [(view, f"{subject.views[hit.row].id} ({hit.share:.0%} of its n-grams)") for view, hit in hits]
        title = (
            f"{counted(len(hits), f'more {one} shares', f'more {many} share')} an n-gram of words with a training row"
        )
        most = sum(hit.share > 0.5 for _, hit in hits)
        found += _observed(subject, title, pairs, measured, {"more_than_half_shared": most})
    return found


Shared = collections.namedtuple("Shared", ["row", "share"])


def shared_ngrams(train: Sequence[str], measured: Sequence[str]) -> list[Shared | None]:
    """For each measured text the first training text with one of its n-grams, and the share of n-grams found.

    An n-gram has 13 words, all words of a text that has 8 to 12; shorter texts have none (equality is what can be asked
    of them). N-grams in more than 10 training texts do not count.

    Returns:
        `Shared(row, share)`, or None where nothing is shared.
    """
    vocabulary = Vocabulary()
    numbers, offsets = vocabulary.numbers(measured)
    lengths = np.diff(offsets)
    found: list[Shared | None] = [None] * len(measured)
    sizes = np.unique(np.clip(lengths[lengths >= FEWEST_WORDS], FEWEST_WORDS, MOST_WORDS)).tolist()
    by_size = {
        size: _of_rows(windows(numbers, offsets, size), np.minimum(lengths, MOST_WORDS) == size) for size in sizes
    }
    wanted = {size: np.unique(grams.hashes) for size, grams in by_size.items()}
    counts = {size: np.zeros(len(hashes), np.int64) for size, hashes in wanted.items()}
    firsts = {size: np.full(len(hashes), len(train), np.int64) for size, hashes in wanted.items()}
    for start, chunk, bounds in _chunks(train, vocabulary):
        for size, hashes in wanted.items():
            _count(windows(chunk, bounds, size), start, hashes, counts[size], firsts[size])
    for size, grams in by_size.items():
        at = wanted[size].searchsorted(grams.hashes)
        rare = (counts[size][at] > 0) & (counts[size][at] <= COMMON_ROWS)
        for row in np.unique(grams.rows[rare]).tolist():
            mine = slice(grams.offsets[row], grams.offsets[row + 1])
            hits = at[mine][rare[mine]]
            found[row] = Shared(int(firsts[size][hits].min()), len(hits) / len(at[mine]))
    return found


def _chunks(texts: Sequence[str], vocabulary: Vocabulary) -> Iterator[tuple[int, Numbers, Offsets]]:
    for start in range(0, len(texts), _CHUNK_ROWS):
        yield start, *vocabulary.numbers(texts[start : start + _CHUNK_ROWS])


def _of_rows(grams: Shingles, chosen: np.ndarray) -> Shingles:
    return grams.where(chosen[grams.rows])


def _count(grams: Shingles, start: int, wanted: Numbers, counts: np.ndarray, firsts: np.ndarray) -> None:
    """Adds to `counts` in how many rows each wanted n-gram stands, and to `firsts` the first such row."""
    at = np.minimum(wanted.searchsorted(grams.hashes), len(wanted) - 1)
    hit = wanted[at] == grams.hashes
    pairs = np.unique(np.stack([at[hit], grams.rows[hit] + start]), axis=1)  # a row counts once
    np.add.at(counts, pairs[0], 1)
    np.minimum.at(firsts, pairs[0], pairs[1])


def _measured(subject: Subject) -> Iterator[tuple[tuple[str, str], list[View]]]:
    """What is measured, and one and many of it in a sentence."""
    if subject.held_out_views:
        yield ("held-out row", "held-out rows"), subject.held_out_views
    for name, views in subject.benchmark_views.items():
        yield (f"prompt of {name}", f"prompts of {name}"), views


def _asked(subject: Subject, view: View) -> set[str]:
    """The texts by which a training row is found: all that is asked, or what the user said last."""
    return {subject.main(view), subject.template.own(view.question)} - {""}


def _observed(
    subject: Subject, title: str, pairs: list[tuple[View, str]], measured: Sequence[View], numbers: dict | None = None
) -> list[Observation]:
    show = lambda pair: (pair[0].id, f"also {pair[1]}: {subject.main(pair[0])}")
    numbers = {"measured": len(measured), "found": len(pairs)} | (numbers or {})
    return observed(title, pairs, len(measured), show, _ADVICE, numbers)
