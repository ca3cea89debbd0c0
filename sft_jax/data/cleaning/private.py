"""Steps that put a placeholder where e-mail addresses, phone numbers and keys stood."""

import re
from collections.abc import Callable

from sft_jax.data.cleaning.contents import edit_texts
from sft_jax.data.cleaning.steps import Outcome
from sft_jax.data.records import Record


def redacting(pattern: re.Pattern, what: str) -> Callable[[Record, str], Outcome]:
    """A step (record, placeholder) -> outcome, also in the arguments of tool calls."""

    def redact(record: Record, placeholder: str) -> Outcome:
        return edit_texts(
            record, lambda text: pattern.sub(lambda _: placeholder, text), f"{what} redacted", in_arguments=True
        )

    return redact
