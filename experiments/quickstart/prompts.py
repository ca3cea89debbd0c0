"""The quickstart's question and answer: what the model reads and what it should write. Third step of making the data.

The base model, the examples in its prompt and the training rows have the same instruction, so the comparison is fair.
"""

import json

from experiments.quickstart.titles import FIELDS, Title

LONGEST_ANSWER = 80  # tokens; reference answers have at most 72
INSTRUCTION = (
    "Read the vehicle title below and answer with one JSON object only, with these keys: "
    + ", ".join(FIELDS)
    + ". Copy the values from the title; use null for what it does not state."
)


def question(document: str) -> str:
    """The user's message for a document."""
    return f"{INSTRUCTION}\n\n{document}"


def answer(title: Title) -> str:
    """The assistant's message: one line of JSON, keys in the order of FIELDS, null for a missing field."""
    fields = {name: getattr(title, name) for name in FIELDS}
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
