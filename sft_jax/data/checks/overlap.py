"""Training rows that are also measured on: what a score on such rows shows is memory."""

import collections
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from sft_jax.data.checks.findings import Observation, counted, observed
from sft_jax.data.checks.shingles import Numbers, Shingles, Vocabulary, windows, words
from sft_jax.data.checks.subject import Subject
from sft_jax.data.sorting import blocks
from sft_jax.data.tokenized.record_keys import NOTHING, Hashes, RecordKeys, text_key
from sft_jax.data.views import View

# Decontamination by n-grams as for GPT-3 (Brown et al. 2020, appendix C): 13 words, fewer for shorter prompts but at
# least 8, and n-grams that more than 10 training rows have are common phrases and prove nothing.
MOST_WORDS = 13
FEWEST_WORDS = 8
COMMON_ROWS = 10
_CHUNK_ROWS = 20_000  # training rows whose n-grams are in memory at once
_ADVICE = "Remove them from the training data, or say how much of the score is theirs."


def exact_overlap(subject: Subject) -> list[Observation]:
    """Held-out rows and benchmark prompts that are also in the training data, apart from surrounding white space."""
    found = []
    for (one, many), measured in _measured(subject):
        texts = np.array([text_key(subject.main(view)) for view in measured], np.uint64)
        rows = first_asking(subject.keys, texts).tolist()
        pairs = [(view, subject.view(row).id) for view, row in zip(measured, rows, strict=True) if row >= 0]
        title = f"{counted(len(pairs), f'{one} is', f'{many} are')} also in the training data"
        found += _observed(subject, title, pairs, measured)
    return found


def first_asking(keys: RecordKeys, texts: Hashes) -> Int64[np.ndarray, "texts"]:
    """For each text the first training record that asks it (see `asked_texts`); -1 where there is none."""
    wanted, at = np.unique(np.append(texts, np.uint64(NOTHING)), return_inverse=True)
    first = np.full(len(wanted), len(keys), np.int64)
    for asked in (keys.mains, keys.questions):
        for block in blocks(len(keys)):
            places = np.minimum(wanted.searchsorted(asked[block]), len(wanted) - 1)
            hits = np.flatnonzero((wanted[places] == asked[block]) & (asked[block] != NOTHING))
            np.minimum.at(first, places[hits], hits + block.start)
    return np.where(first < len(keys), first, -1)[at[:-1]]


def loose_overlap(subject: Subject) -> list[Observation]:
    """Those that are in the training data but for case, punctuation and white space."""
    exact, first_with = set(), {}
    for view in subject.views:
        for text in asked_texts(subject, view):
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
    whole = {tuple(words(text)) for view in subject.views for text in asked_texts(subject, view)}
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
    by_size, vocabulary = _grams_of(measured)
    found: list[Shared | None] = [None] * len(measured)
    wanted = {size: np.unique(grams.hashes) for size, grams in by_size.items()}
    counts = {size: np.zeros(len(hashes), np.int64) for size, hashes in wanted.items()}
    firsts = {size: np.full(len(hashes), len(train), np.int64) for size, hashes in wanted.items()}
    for size, (grams_hit, rows_hit) in _hits(train, wanted, vocabulary):
        np.add.at(counts[size], grams_hit, 1)
        np.minimum.at(firsts[size], grams_hit, rows_hit)
    for size, grams in by_size.items():
        at = wanted[size].searchsorted(grams.hashes)
        rare = (counts[size][at] > 0) & (counts[size][at] <= COMMON_ROWS)
        for row in np.unique(grams.rows[rare]).tolist():
            mine = slice(grams.offsets[row], grams.offsets[row + 1])
            hits = at[mine][rare[mine]]
            found[row] = Shared(int(firsts[size][hits].min()), len(hits) / len(at[mine]))
    return found


def rows_with_ngrams_of(train: Sequence[str], measured: Sequence[str]) -> dict[int, int]:
    """The training texts that share a rare n-gram (see `shared_ngrams`), each with a measured text that has it too."""
    by_size, vocabulary = _grams_of(measured)
    wanted, owners = {}, {}
    for size, grams in by_size.items():
        wanted[size], firsts = np.unique(grams.hashes, return_index=True)
        owners[size] = grams.rows[firsts]
    hits = collections.defaultdict(list)
    for size, pairs in _hits(train, wanted, vocabulary):
        hits[size].append(pairs)
    found: dict[int, int] = {}
    for size, parts in hits.items():
        grams_hit, rows_hit = np.concatenate(parts, axis=1)
        rare = np.bincount(grams_hit)[grams_hit] <= COMMON_ROWS
        for row, gram in zip(rows_hit[rare].tolist(), grams_hit[rare].tolist(), strict=True):
            found.setdefault(row, int(owners[size][gram]))
    return found


def _grams_of(measured: Sequence[str]) -> tuple[dict[int, Shingles], Vocabulary]:
    """The n-grams of the measured texts by their size, of which each text has one."""
    vocabulary = Vocabulary()
    numbers, offsets = vocabulary.numbers(measured)
    lengths = np.diff(offsets)
    sizes = np.unique(np.clip(lengths[lengths >= FEWEST_WORDS], FEWEST_WORDS, MOST_WORDS)).tolist()
    own = np.minimum(lengths, MOST_WORDS)
    return {size: _of_rows(windows(numbers, offsets, size), own == size) for size in sizes}, vocabulary


def _of_rows(grams: Shingles, chosen: np.ndarray) -> Shingles:
    return grams.where(chosen[grams.rows])


def _hits(
    train: Sequence[str], wanted: Mapping[int, Numbers], vocabulary: Vocabulary
) -> Iterator[tuple[int, Int64[np.ndarray, "2 hits"]]]:
    """For each size (index of a wanted n-gram, training row that has it), chunk by chunk; a row has it once."""
    for start in range(0, len(train), _CHUNK_ROWS):
        chunk, bounds = vocabulary.numbers(train[start : start + _CHUNK_ROWS])
        for size, hashes in wanted.items():
            grams = windows(chunk, bounds, size)
            at = np.minimum(hashes.searchsorted(grams.hashes), len(hashes) - 1)
            hit = hashes[at] == grams.hashes
            yield size, np.unique(np.stack([at[hit], grams.rows[hit] + start]), axis=1)


def _measured(subject: Subject) -> Iterator[tuple[tuple[str, str], list[View]]]:
    """What is measured, and one and many of it in a sentence."""
    if subject.held_out_views:
        yield ("held-out row", "held-out rows"), subject.held_out_views
    for name, views in subject.benchmark_views.items():
        yield (f"prompt of {name}", f"prompts of {name}"), views


def asked_texts(subject: Subject, view: View) -> set[str]:
    """The texts by which a training row is found: all that is asked, or what the user said last."""
    return {subject.main(view), subject.template.own(view.question)} - {""}


def _observed(
    subject: Subject, title: str, pairs: list[tuple[View, str]], measured: Sequence[View], numbers: dict | None = None
) -> list[Observation]:
    show = lambda pair: (pair[0].id, f"also {pair[1]}: {subject.main(pair[0])}")
    numbers = {"measured": len(measured), "found": len(pairs)} | (numbers or {})
    return observed(title, pairs, len(measured), show, _ADVICE, numbers)
