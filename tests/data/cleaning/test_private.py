"""Redaction: what looks private is replaced, what only resembles it stays."""

import pytest

from sft_jax.data.conversations import Chat, Message, ToolCall
from sft_jax.data.records import Record

NUMBERS = "order 2125550187, 2024-01-02, 3.14.15, 12 345 678"
CASES = [
    ("redact_emails", "Write to jane.doe+x@mail.example.org, or not.", "Write to [EMAIL], or not."),
    ("redact_emails=<e-mail>", "a@b.co", "<e-mail>"),
    (r"redact_emails=\1", "a@b.co", r"\1"),  # the placeholder is text, no pattern
    ("redact_emails", "x @ y.org, @handle, a@b", "x @ y.org, @handle, a@b"),
    ("redact_phones", "Call +49 30 1234567 or (212) 555-0187.", "Call [PHONE] or [PHONE]."),
    ("redact_phones", "212-555-0187", "[PHONE]"),
    (
        "redact_phones",
        "order 2125550187, 2024-01-02, 3.14.15, 12 345 678",
        "order 2125550187, 2024-01-02, 3.14.15, 12 345 678",
    ),
    ("redact_keys", "AKIAABCDEFGHIJKLMNOP", "[KEY]"),
    ("redact_keys", "key=" + "sk-" + "a1B2" * 6, "key=[KEY]"),
    ("redact_keys", "ghp_" + "a" * 36 + " hf_" + "b" * 34, "[KEY] [KEY]"),
    ("redact_keys", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "[KEY]"),
    ("redact_keys", "a task-oriented sk-learn pipeline", "a task-oriented sk-learn pipeline"),
]


@pytest.mark.parametrize(("step", "before", "after"), CASES)
def test_redaction(one, step, before, after):
    assert one(before, step) == after


def test_arguments_of_calls(clean):
    call = Message("assistant", "", tool_calls=(ToolCall("mail", {"to": ["a@b.co"]}),))
    (kept,), _ = clean([Record("t:1", Chat((Message("user", "?"), call)), {})], "redact_emails")
    assert kept.conversation[1].tool_calls[0].arguments == {"to": ["[EMAIL]"]}
