"""Training texts that share n-grams of words with measured texts."""

import collections
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from sft_jax.data.similarity.shingles import Numbers, Shingles, Vocabulary, windows

# Decontamination by n-grams as for GPT-3 (Brown et al. 2020, appendix C): 13 words, fewer for shorter prompts but at
# least 8, and n-grams that more than 10 training texts have are common phrases and prove nothing.
MOST_WORDS = 13
FEWEST_WORDS = 8
COMMON_TEXTS = 10
_CHUNK_TEXTS = 20_000  # training texts whose n-grams are in memory at once
Shared = collections.namedtuple("Shared", ["text", "share"])


def shared_ngrams(train: Sequence[str], measured: Sequence[str]) -> list[Shared | None]:
    """For each measured text the first training text with one of its n-grams, and the share of n-grams found.

    An n-gram has 13 words, all words of a text that has 8 to 12; shorter texts have none (equality is what can be asked
    of them). N-grams in more than 10 training texts do not count.

    Returns:
        `Shared(text, share)`, or None where nothing is shared.
    """
    by_size, vocabulary = _grams_of(measured)
    found: list[Shared | None] = [None] * len(measured)
    wanted = {size: np.unique(grams.hashes) for size, grams in by_size.items()}
    counts = {size: np.zeros(len(hashes), np.int64) for size, hashes in wanted.items()}
    firsts = {size: np.full(len(hashes), len(train), np.int64) for size, hashes in wanted.items()}
    for size, (grams_hit, texts_hit) in _hits(train, wanted, vocabulary):
        np.add.at(counts[size], grams_hit, 1)
        np.minimum.at(firsts[size], grams_hit, texts_hit)
    for size, grams in by_size.items():
        at = wanted[size].searchsorted(grams.hashes)
        rare = (counts[size][at] > 0) & (counts[size][at] <= COMMON_TEXTS)
        for text in np.unique(grams.texts[rare]).tolist():
            mine = slice(grams.offsets[text], grams.offsets[text + 1])
            hits = at[mine][rare[mine]]
            found[text] = Shared(int(firsts[size][hits].min()), len(hits) / len(at[mine]))
    return found


def texts_with_ngrams_of(train: Sequence[str], measured: Sequence[str]) -> dict[int, int]:
    """The training texts that share a rare n-gram (see `shared_ngrams`), each with a measured text that has it too."""
    by_size, vocabulary = _grams_of(measured)
    wanted, owners = {}, {}
    for size, grams in by_size.items():
        wanted[size], firsts = np.unique(grams.hashes, return_index=True)
        owners[size] = grams.texts[firsts]
    hits = collections.defaultdict(list)
    for size, pairs in _hits(train, wanted, vocabulary):
        hits[size].append(pairs)
    found: dict[int, int] = {}
    for size, parts in hits.items():
        grams_hit, texts_hit = np.concatenate(parts, axis=1)
        rare = np.bincount(grams_hit)[grams_hit] <= COMMON_TEXTS
        for text, gram in zip(texts_hit[rare].tolist(), grams_hit[rare].tolist(), strict=True):
            found.setdefault(text, int(owners[size][gram]))
    return found


def _grams_of(measured: Sequence[str]) -> tuple[dict[int, Shingles], Vocabulary]:
    """The n-grams of the measured texts by their size, of which each text has one."""
    vocabulary = Vocabulary()
    numbers, offsets = vocabulary.numbers(measured)
    lengths = np.diff(offsets)
    sizes = np.unique(np.clip(lengths[lengths >= FEWEST_WORDS], FEWEST_WORDS, MOST_WORDS)).tolist()
    own = np.minimum(lengths, MOST_WORDS)
    return {size: _of_texts(windows(numbers, offsets, size), own == size) for size in sizes}, vocabulary


def _of_texts(grams: Shingles, chosen: np.ndarray) -> Shingles:
    return grams.where(chosen[grams.texts])


def _hits(
    train: Sequence[str], wanted: Mapping[int, Numbers], vocabulary: Vocabulary
) -> Iterator[tuple[int, Int64[np.ndarray, "2 hits"]]]:
    """For each size (index of a wanted n-gram, training text that has it), chunk by chunk; a text has it once."""
    for start in range(0, len(train), _CHUNK_TEXTS):
        chunk, bounds = vocabulary.numbers(train[start : start + _CHUNK_TEXTS])
        for size, hashes in wanted.items():
            grams = windows(chunk, bounds, size)
            at = np.minimum(hashes.searchsorted(grams.hashes), len(hashes) - 1)
            hit = hashes[at] == grams.hashes
            yield size, np.unique(np.stack([at[hit], grams.texts[hit] + start]), axis=1)
