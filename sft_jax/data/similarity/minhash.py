"""Which texts are alike, without comparing every pair: MinHash and locality-sensitive hashing.

Used by groups.py. Two sets have the same smallest hash with the probability of their Jaccard similarity
(Broder 1997). One hash of each shingle is enough for a whole signature if shingles are distributed over bins and each
bin keeps its smallest (Li, Owen and Zhang 2012); a bin that gets none borrows from another, chosen at random
(Shrivastava 2017). Texts whose signatures agree in a whole band are compared.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int64, UInt32, UInt64

from sft_jax.data.similarity.shingles import Shingles

Signatures = UInt32[np.ndarray, "texts bins"]

# Pairs of similarity 0.8 share one of 20 bands of 6 with probability 0.998, of 0.7 with 0.92, of 0.5 with 0.27.
BANDS = 20
BAND_BINS = 6
BINS = BANDS * BAND_BINS
_EMPTY = np.uint32(0xFFFFFFFF)


def signatures(shingles: Shingles) -> Signatures:
    """Signatures of texts: the share of bins in which two are equal estimates their similarity.

    Every text must have a shingle.
    """
    bins = (shingles.hashes & np.uint64(0xFFFFFFFF)) % np.uint64(BINS)
    values = np.minimum((shingles.hashes >> np.uint64(32)).astype(np.uint32), _EMPTY - np.uint32(1))
    found = np.full(len(shingles) * BINS, _EMPTY, np.uint32)
    np.minimum.at(found, shingles.texts * BINS + bins.astype(np.int64), values)
    return _densified(found.reshape(len(shingles), BINS))


def _densified(found: Signatures) -> Signatures:
    """Empty bins take what another holds: the first that is not empty, in an order of their own."""
    order = np.random.Generator(np.random.PCG64(0)).random((BINS, BINS)).argsort(axis=1)
    full = found != _EMPTY
    texts, bins = np.nonzero(~full)
    for attempt in range(BINS):
        donors = order[bins, attempt]
        ready = full[texts, donors]
        found[texts[ready], bins[ready]] = found[texts[ready], donors[ready]]
        texts, bins = texts[~ready], bins[~ready]
    return found


def candidates(found: Signatures, least: float) -> Iterator[tuple[int, int]]:
    """Pairs (earlier text, later text) that may be alike: they share a band, and `least` of their bins.

    A text is paired with the one before it among those that share its band, and with the first of them, so that the
    number of pairs is linear in the number of texts.
    """
    pairs = np.unique(np.concatenate([_neighbours(keys) for keys in _band_keys(found)]), axis=0)
    alike = (found[pairs[:, 0]] == found[pairs[:, 1]]).mean(axis=1) >= least if len(pairs) else np.zeros(0, bool)
    yield from map(tuple, pairs[alike].tolist())


def _band_keys(found: Signatures) -> Iterator[UInt64[np.ndarray, "texts"]]:
    for band in range(BANDS):
        keys = np.zeros(len(found), np.uint64)
        for column in range(band * BAND_BINS, (band + 1) * BAND_BINS):
            keys = keys * np.uint64(0x9E3779B97F4A7C15) + found[:, column]
        yield keys


def _neighbours(keys: UInt64[np.ndarray, "texts"]) -> Int64[np.ndarray, "pairs 2"]:
    order = np.argsort(keys, kind="stable")
    same: Bool[np.ndarray, "texts"] = np.zeros(len(keys), bool)
    same[1:] = keys[order[1:]] == keys[order[:-1]]
    at = np.flatnonzero(same)
    firsts = np.maximum.accumulate(np.where(same, 0, np.arange(len(keys))))
    before = np.concatenate([order[at - 1], order[firsts[at]]])
    return np.stack([before, np.concatenate([order[at], order[at]])], axis=1)
