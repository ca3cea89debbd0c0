"""Where the values come from that were given for fields which the document does not state."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sft_jax.evaluation.json_answers import comparable_fields, comparable_name, comparable_value, parse_object
from sft_jax.evaluation.report.tables import TextTable

OTHER_FIELD, ELSEWHERE, MADE_UP = "the value of another field", "elsewhere in the document", "not in the document"


def origins_of(
    rows: Iterable[Mapping[str, Any]], documents: Mapping[str, str], fields: Iterable[str]
) -> Counter[tuple[str, str]]:
    """How many of a method's invented values have which origin.

    Args:
        rows: its answers, with `id`, `answer` and `reference`.
        documents: the text of each, by id. A value is in it where its letters are, in any case, within a word too.
        fields: that are asked for; what is given under another name is left out.

    Returns:
        By (field, one of `OTHER_FIELD`, `ELSEWHERE` and `MADE_UP`).
    """
    found: Counter[tuple[str, str]] = Counter()
    names = {comparable_name(field): field for field in fields}
    for row in rows:
        right = comparable_fields(parse_object(row["reference"]) or {})
        given = comparable_fields(parse_object(row["answer"]) or {})
        text = comparable_value(documents[row["id"]])
        for name in given.keys() & names.keys() - right.keys():
            origin = OTHER_FIELD if given[name] in right.values() else ELSEWHERE if given[name] in text else MADE_UP
            found[names[name], origin] += 1
    return found


def origin_table(found: Mapping[str, Counter[tuple[str, str]]], fields: Iterable[str]) -> TextTable:
    """A line for each method, and one for each field of the last of them."""
    origins, fields, last = (OTHER_FIELD, ELSEWHERE, MADE_UP), tuple(fields), list(found)[-1]
    summed = lambda counts, wanted: [sum(counts[field, origin] for field in wanted) for origin in origins]
    lines = {name: summed(counts, fields) for name, counts in found.items()}
    lines |= {f"{last}, {field}": summed(found[last], (field,)) for field in fields}
    rows = tuple((name, str(sum(counts)), *map(str, counts)) for name, counts in lines.items())
    return TextTable("Where invented values come from", ("method", "invented", *origins), rows)
