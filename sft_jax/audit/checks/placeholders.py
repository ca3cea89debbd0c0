"""Placeholders that nobody filled in: {{name}}, [Your Name], ${city}, Lorem ipsum."""

import re

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, excerpt_around, observed

PLACEHOLDER = re.compile(
    r"\{\{\s*[A-Za-z_][\w .|-]{0,40}\}\}|\{%-? ?[a-z]+ [^%]{0,40}%\}|\$\{[A-Za-z_]\w{0,40}\}|%\([A-Za-z_]\w{0,40}\)s"
    r"|\[(?:your|insert|enter)\b[^\]\n]{1,40}\]|<(?:your|insert|enter)[ _-][^>\n]{1,40}>|\blorem ipsum\b",
    re.IGNORECASE,
)


def placeholders(data: CheckedData) -> list[Observation]:
    """Rows whose prompt or last answer holds one."""
    hits = [(view, match) for view in data.views if (match := PLACEHOLDER.search(view.text))]
    in_answers = sum(1 for view, _ in hits if PLACEHOLDER.search(view.answer))
    return observed(
        f"{counted(len(hits), 'row holds', 'rows hold')} an unfilled placeholder, {in_answers:,} in the answer",
        hits,
        len(data.views),
        lambda hit: (hit[0].id, f"{hit[1][0]} in: {excerpt_around(hit[0].text, hit[1].start())}"),
        "Fill them in: a model trained on them writes them out as they stand.",
        {"placeholders": sorted({match[0] for _, match in hits})[:20], "in_answers": in_answers},
    )
