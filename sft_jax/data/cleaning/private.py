"""Steps that put a placeholder where e-mail addresses, phone numbers and keys stood."""

import re
from collections.abc import Callable

from sft_jax.data.cleaning.contents import edit_texts
from sft_jax.data.cleaning.steps import Outcome
from sft_jax.data.records import Record

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b")
# International, or grouped as people write them: a plain run of digits is an order number as likely as not.
PHONE = re.compile(
    r"(?<![\w.-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[ .-]\d{3}[ .-]\d{4})(?![\w-])"
)
KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.|\n)*?-----END [A-Z ]*PRIVATE KEY-----"
    r"|\b(?:sk|pk|rk)[-_](?:live|test|proj|ant)?[-_]?[A-Za-z0-9_-]{20,}"
    r"|\b(?:ghp|gho|ghs|ghu|ghr)_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{40,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{35}|\bhf_[A-Za-z0-9]{30,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
)


def redacting(pattern: re.Pattern, what: str) -> Callable[[Record, str], Outcome]:
    """A step (record, placeholder) -> outcome, also in the arguments of tool calls."""

    def redact(record: Record, placeholder: str) -> Outcome:
        return edit_texts(
            record, lambda text: pattern.sub(lambda _: placeholder, text), f"{what} redacted", in_arguments=True
        )

    return redact
