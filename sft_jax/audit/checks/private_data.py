"""Rows with e-mail addresses, phone numbers or keys: a model trained on them may repeat them to anybody."""

import re

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, excerpt_around, observed
from sft_jax.data.texts import EMAIL, KEY, PHONE, find_private


def contact_details(data: CheckedData) -> list[Observation]:
    """E-mail addresses and phone numbers, in prompts or answers."""
    return [
        *_matching(data, EMAIL, "what looks like an e-mail address", "the cleaning step redact_emails"),
        *_matching(data, PHONE, "what looks like a phone number", "the cleaning step redact_phones"),
    ]


def keys(data: CheckedData) -> list[Observation]:
    """Private keys and access tokens of known forms."""
    return _matching(data, KEY, "what looks like a key", "the cleaning step redact_keys, and revoke them")


def _matching(data: CheckedData, pattern: re.Pattern, what: str, remedy: str) -> list[Observation]:
    hits = [(view.id, view.text, match.start()) for view in data.views if (match := find_private(view.text, pattern))]
    return observed(
        f"{counted(len(hits), 'row holds', 'rows hold')} {what}",
        hits,
        len(data.views),
        lambda hit: (hit[0], excerpt_around(hit[1], hit[2])),
        f"If they are real: {remedy}.",
    )
