"""A short title: four facts of a vehicle in a few lines, and what there is to answer.

Facts, labels and layouts are those of the quickstart, without headings, stamps and the two long numbers, so that a
conversation has some 100 tokens and an answer some 25.
"""

import dataclasses
import json

from faker import Faker

from experiments.quickstart.layouts import FAMILIES
from experiments.quickstart.titles import Title, invent_title

ASKED = ("year", "make", "model", "owner")
INSTRUCTION = f"Answer with one JSON object: {', '.join(ASKED)}. Use null for what the title does not state."
_FAMILIES = ("lines", "numbered", "prose", "two_columns")
_ABSENT_PERCENT = 30  # of documents, in which one of the four facts is not stated
_TRIES = 100


@dataclasses.dataclass(frozen=True)
class ShortTitle:
    """A document.

    Attributes:
        text: as it is printed.
        facts: of ASKED, what it states; None for what it does not.
    """

    text: str
    facts: dict[str, str | int | None]

    @property
    def answer(self) -> str:
        """One line of JSON, keys in the order of ASKED."""
        return json.dumps(self.facts, separators=(",", ":"), ensure_ascii=False)


def short_title(seed: str) -> ShortTitle:
    """The document of a seed, a pure function of it and of the release of Faker."""
    fake = Faker("en_US")
    fake.seed_instance(seed)
    title = dataclasses.replace(invent_title(fake, "#"), title_number=None, vin=None)
    if fake.boolean(_ABSENT_PERCENT):
        title = dataclasses.replace(title, **{fake.random_element(ASKED): None})
    text = "\n".join(FAMILIES[fake.random_element(_FAMILIES)](fake, title))
    return ShortTitle(text, _facts(title))


def short_titles(count: int, seed: str) -> list[ShortTitle]:
    """Documents that differ in text and in what they state. The first of them do not depend on `count`.

    Raises:
        ValueError: none unlike the others was found; so many there are not.
    """
    found: dict[str, ShortTitle] = {}
    for number in range(count):
        drawn = (short_title(f"{seed}/{number}/{attempt}") for attempt in range(_TRIES))
        made = next((one for one in drawn if one.answer not in found), None)
        if made is None:
            raise ValueError(f"no title unlike the others found for number {number} of {count}; ask for fewer")
        found[made.answer] = made
    return list(found.values())


def _facts(title: Title) -> dict[str, str | int | None]:
    return {name: getattr(title, name) for name in ASKED}
