"""The new tokens of a run (`config.model.new_tokens`) in its data: how many examples hold each, and where."""

import numpy as np

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, excerpt_around, observed
from sft_jax.data.rendering.special_tokens import tokens_in_contents
from sft_jax.data.views import View

_KEPT_AS_TEXT = "--config.model.new_tokens_in_contents=False keeps new tokens text wherever contents spell them."


def new_tokens(data: CheckedData) -> list[Observation]:
    """For each new token the examples that hold it, those where it is trained, and the rows whose contents spell it."""
    return [_examples_with(data, token) for token in data.new_tokens]


def ends_in_contents(data: CheckedData) -> list[Observation]:
    """Rows whose contents spell a new token that ends a turn, and that counts there."""
    if data.tokenizer is None:
        return []
    ends = [token for token in _counting(data) if _id(data, token) in data.stop_ids]
    hits = [(view, token) for view in data.views for token in ends if token in view.text]
    return observed(
        f"{counted(len(hits), 'row spells', 'rows spell')} a new token in a content that ends a turn there",
        hits,
        max(len(data.views), 1),
        lambda hit: (hit[0].id, f"{hit[1]} in: {excerpt_around(hit[0].text, hit[0].text.index(hit[1]))}"),
        f"The model sees the turn end in the middle. {_KEPT_AS_TEXT}",
    )


def _examples_with(data: CheckedData, token: str) -> Observation:
    examples, number = data.examples, _id(data, token)
    holds = examples.tokens == number
    example_of = np.repeat(np.arange(len(examples)), np.diff(examples.offsets))
    held, trained = (len(np.unique(example_of[where])) for where in (holds, holds & (examples.weights > 0)))
    spelt = [view for view in data.views if token in view.text]
    as_text = "" if token in _counting(data) else ", where it is text"
    title = (
        f"The new token {token!r} (id {number}) stands in {held:,} of {len(examples):,} examples, trained in "
        f"{trained:,}; {counted(len(spelt), 'row spells', 'rows spell')} it in contents{as_text}"
    )
    numbers = {"token": token, "id": number, "examples": held, "trained": trained, "in_contents": len(spelt)}
    (seen,) = observed(title, spelt, max(len(data.views), 1), lambda view: _place(view, token), "", numbers) or [
        Observation(title, 0, 0.0, numbers=numbers)
    ]
    return seen


def _place(view: View, token: str) -> tuple[str, str]:
    return view.id, excerpt_around(view.text, view.text.index(token))


def _counting(data: CheckedData) -> tuple[str, ...]:
    """The new tokens that count in contents."""
    return tuple(token for token in tokens_in_contents(data.tokenizer) if token in data.new_tokens)


def _id(data: CheckedData, token: str) -> int:
    return data.tokenizer.convert_tokens_to_ids(token)
