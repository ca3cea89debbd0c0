"""Held-out rows and benchmark prompts that are also in the training data: a score on them measures memory."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, observed
from sft_jax.data.similarity.ngrams import shared_ngrams
from sft_jax.data.similarity.shingles import words
from sft_jax.data.tokenized.record_keys import NOTHING, Hashes, RecordKeys, text_key
from sft_jax.data.views import View

_ADVICE = "Remove them from the training data, or say how much of the score is theirs."


def exact_overlap(data: CheckedData) -> list[Observation]:
    """Held-out rows and benchmark prompts that are also in the training data, apart from surrounding white space."""
    found = []
    for (one, many), measured in _measured(data):
        texts = np.array([text_key(data.main(view)) for view in measured], np.uint64)
        asking = first_asking(data.keys, texts).tolist()
        pairs = [(view, data.view(number).id) for view, number in zip(measured, asking, strict=True) if number >= 0]
        title = f"{counted(len(pairs), f'{one} is', f'{many} are')} also in the training data"
        found += _observed(data, title, pairs, measured)
    return found


def first_asking(keys: RecordKeys, texts: Hashes) -> Int64[np.ndarray, "texts"]:
    """For each text the first training record that asks it (see `asked_texts`); -1 where there is none."""
    wanted, at = np.unique(np.append(texts, np.uint64(NOTHING)), return_inverse=True)
    first = np.full(len(wanted), len(keys), np.int64)
    for asked in (keys.mains, keys.questions):
        places = np.minimum(wanted.searchsorted(asked), len(wanted) - 1)
        hits = np.flatnonzero((wanted[places] == asked) & (asked != NOTHING))
        np.minimum.at(first, places[hits], hits)
    return np.where(first < len(keys), first, -1)[at[:-1]]


def loose_overlap(data: CheckedData) -> list[Observation]:
    """Those that are in the training data but for case, punctuation and white space."""
    exact, first_with = set(), {}
    for view in data.views:
        for text in data.template.asked_texts(view):
            exact.add(text)
            first_with.setdefault(tuple(words(text)), view.id)
    first_with.pop((), None)  # nothing but punctuation
    found = []
    for (one, many), measured in _measured(data):
        texts = [(view, data.main(view)) for view in measured]
        keys = [(view, tuple(words(text))) for view, text in texts if text not in exact]
        pairs = [(view, first_with[key]) for view, key in keys if key in first_with]
        title = f"{counted(len(pairs), f'more {one} is', f'more {many} are')} trained on, but for case and punctuation"
        found += _observed(data, title, pairs, measured)
    return found


def ngram_overlap(data: CheckedData) -> list[Observation]:
    """Those that share a rare n-gram of words with a training row, and are not there as a whole."""
    whole = {tuple(words(text)) for view in data.views for text in data.template.asked_texts(view)}
    asked = [data.text(view) for view in data.views]
    found = []
    for (one, many), measured in _measured(data):
        views = [view for view in measured if tuple(words(data.main(view))) not in whole]
        shared = shared_ngrams(asked, [data.main(view) for view in views])
        hits = [(view, hit) for view, hit in zip(views, shared, strict=True) if hit is not None]
        hits.sort(key=lambda pair: -pair[1].share)
        pairs = [(view, f"{data.views[hit.text].id} ({hit.share:.0%} of its n-grams)") for view, hit in hits]
        title = (
            f"{counted(len(hits), f'more {one} shares', f'more {many} share')} an n-gram of words with a training row"
        )
        most = sum(hit.share > 0.5 for _, hit in hits)
        found += _observed(data, title, pairs, measured, {"more_than_half_shared": most})
    return found


def _measured(data: CheckedData) -> Iterator[tuple[tuple[str, str], list[View]]]:
    """What is measured, and one and many of it in a sentence."""
    if data.held_out_views:
        yield ("held-out row", "held-out rows"), data.held_out_views
    for name, views in data.benchmark_views.items():
        yield (f"prompt of {name}", f"prompts of {name}"), views


def _observed(
    data: CheckedData, title: str, pairs: list[tuple[View, str]], measured: Sequence[View], numbers: dict | None = None
) -> list[Observation]:
    show = lambda pair: (pair[0].id, f"also {pair[1]}: {data.main(pair[0])}")
    numbers = {"measured": len(measured), "found": len(pairs)} | (numbers or {})
    return observed(title, pairs, len(measured), show, _ADVICE, numbers)
