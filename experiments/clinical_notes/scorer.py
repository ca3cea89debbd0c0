"""What a note is worth: its sections, the facts that are kept, what was invented, and the house's wording.

Named on the command line as `--scorer=experiments.clinical_notes.scorer:note`.
"""

import re

from experiments.clinical_notes import consultations as house
from sft_jax.evaluation.scorers.cases import Case, Outcome

_HEADING = re.compile(r"^([A-Z]+):[ \t]*", re.MULTILINE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TERMS = (
    *(house.COMPLAINTS + house.NEW_COMPLAINTS + house.DRUGS + house.NEW_DRUGS),
    *(house.ALLERGENS + house.NEW_ALLERGENS),
)


def note(answer: str, case: Case) -> Outcome:
    """The outcome of a note, against the reference and the row's column `facts`, by section.

    Returns:
        `sections_complete`: it has the house's sections, each once, in their order, and nothing before. `facts_kept`:
        of each section the facts that stand in it, and how many there are. `nothing_invented`: each number, complaint,
        drug and allergen in it stands in the reference. `house_wording`: what was not reported is said in the words of
        the house; None where all was. `exact_match`: all of that.
    """
    found = sections(answer)
    facts = case.row["facts"]
    kept = {
        name: [sum(_has(found.get(name, ""), fact) for fact in expected), len(expected)]
        for name, expected in facts.items()
        if expected
    }
    absent = {name: text for name, text in sections(case.reference).items() if not facts[name]}
    headings = _HEADING.findall(answer)
    outcome = {
        "sections_complete": headings == list(house.SECTIONS) and _HEADING.match(answer.strip()) is not None,
        "nothing_invented": claims(answer) <= claims(case.reference),
        "house_wording": all(found.get(name) == text for name, text in absent.items()) if absent else None,
    }
    right = all(value for value in outcome.values() if value is not None)
    return {**outcome, "facts_kept": kept, "exact_match": right and all(have == of for have, of in kept.values())}


def sections(text: str) -> dict[str, str]:
    """The text of each section; of a heading that comes twice the first one counts."""
    _, *parts = _HEADING.split(text)
    found: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        found.setdefault(name, body.strip())
    return found


def claims(text: str) -> set[str]:
    """What a text says that only the consultation can know: numbers, complaints, drugs, allergens."""
    return set(_NUMBER.findall(text)) | {term for term in _TERMS if _has(text, term)}


def _has(text: str, part: str) -> bool:
    """As words of their own: 5 days are not in 15 days."""
    return re.search(rf"(?<![\w.]){re.escape(part)}(?!\w)", text, re.IGNORECASE) is not None
