"""Prints a title as a document: state forms, layout families, labels, noise. Second step of making the data.

What varies, as in real titles: heading and title number form by state, order of the fields, wording of the
labels, separators, one field a line or two, forms with the label above its box, tables, running text,
capitals, fields that are absent, blank or struck out, other people's names (lien holder, seller), numbers
that are not asked for (odometer, plate, dates), legal text, stamps, and scanning errors in labels and legal
text. The six values are always printed without error, so that the right answer is certain: it is what the
document says.
"""

import dataclasses
from collections.abc import Callable

from faker import Faker

from experiments.quickstart.titles import FIELDS, LAST_YEAR, Title

Line = tuple[str, str]  # label, value

LABELS: dict[str, tuple[str, ...]] = {
    "title_number": ("Title No.", "Title Number", "Certificate No.", "Title #", "Document No."),
    "vin": ("VIN", "Vehicle Identification No.", "Vehicle ID Number", "V.I.N.", "Identification Number"),
    "year": ("Year", "Model Year", "Yr", "Year Model"),
    "make": ("Make", "Vehicle Make", "Manufacturer", "Mk"),
    "model": ("Model", "Mdl", "Model Name", "Series"),
    "owner": ("Owner", "Registered Owner", "Owner Name", "Titled To", "Name of Owner"),
}
SEPARATORS = (": ", ": ", " - ", " = ", " ... ", ":\t")
BLANKS = ("", "N/A", "----", "not stated")
LEGAL = (
    "Any alteration voids this title.",
    "Keep in a safe place.",
    "Not valid without seal.",
    "Issued under the motor vehicle code.",
    "Federal law requires odometer disclosure.",
)
STAMPS = ("*** DUPLICATE ***", "[STAMP: RECEIVED]", "** COPY **", "[SEAL]", "Page 1 of 1", "<< SCANNED >>")
SCAN_ERRORS = {"o": "0", "O": "0", "l": "1", "I": "l", "e": "c", "i": "1", "S": "5", "t": "f"}


@dataclasses.dataclass(frozen=True)
class StateForm:
    """What one state's titles have in common; `families` are names in `FAMILIES`."""

    heading: str
    title_pattern: str
    families: tuple[str, ...]


STATES: tuple[StateForm, ...] = (
    StateForm("STATE OF OHIO\nCertificate of Title", "##-####-###", ("lines", "two_columns")),
    StateForm("TEXAS DEPT OF MOTOR VEHICLES\nCertificate of Title", "########", ("boxes", "lines")),
    StateForm("Florida Certificate of Title", "1########", ("two_columns", "table")),
    StateForm("STATE OF CALIFORNIA - CERTIFICATE OF TITLE", "CA#######", ("numbered", "boxes")),
    StateForm("New York State DMV\nTitle", "######?", ("prose", "lines")),
    StateForm("Commonwealth of Pennsylvania\nCERTIFICATE OF TITLE FOR A VEHICLE", "########", ("table", "prose")),
    StateForm("Illinois Vehicle Title", "X#######", ("lines", "numbered")),
    StateForm("GEORGIA TITLE HISTORY", "77#######", ("prose", "two_columns")),
)


def print_title(fake: Faker, title: Title, form: StateForm) -> tuple[str, Title]:
    """The document's text, and the title as the document states it (missing fields None, capitals as printed)."""
    title = _without_some_fields(fake, title)
    if fake.boolean(50):
        title = dataclasses.replace(
            title, **{name: value.upper() for name, value in _values(title).items() if isinstance(value, str)}
        )
    blocks = [form.heading, *FAMILIES[fake.random_element(form.families)](fake, title)]
    for noise in _noise_lines(fake):
        # Between blocks only: never between a label and its value.
        blocks.insert(fake.random_int(1, len(blocks)), noise)
    return "\n".join(blocks), title


def _without_some_fields(fake: Faker, title: Title) -> Title:
    absent = fake.random_element((0, 0, 0, 1, 1, 2))
    names = fake.random_elements(FIELDS, length=absent, unique=True)
    return dataclasses.replace(title, **dict.fromkeys(names))


def _values(title: Title) -> dict[str, str | int | None]:
    return {name: getattr(title, name) for name in FIELDS}


def _label(fake: Faker, name: str) -> str:
    label = fake.random_element(LABELS[name])
    return _scanned(fake, label.upper() if fake.boolean(30) else label)


def _labelled(fake: Faker, title: Title) -> list[Line]:
    """Labels and values in random order; a missing field is left out or has a blank for its value."""
    names = fake.random_elements(FIELDS, length=len(FIELDS), unique=True)
    lines = []
    for name in names:
        value = getattr(title, name)
        if value is not None:
            lines.append((_label(fake, name), str(value)))
        elif fake.boolean(50):
            lines.append((_label(fake, name), fake.random_element(BLANKS)))
    return lines


def _lines(fake: Faker, title: Title) -> list[str]:
    separator = fake.random_element(SEPARATORS)
    return [f"{label}{separator}{value}".rstrip() for label, value in _labelled(fake, title)]


def _two_columns(fake: Faker, title: Title) -> list[str]:
    gap = fake.random_element(("   ", " | "))
    cells = _lines(fake, title)
    return [gap.join(cells[start : start + 2]) for start in range(0, len(cells), 2)]


def _boxes(fake: Faker, title: Title) -> list[str]:
    """The label stands above its value, as in a form of boxes."""
    return [f"{label}\n  {value or '----'}" for label, value in _labelled(fake, title)]


def _numbered(fake: Faker, title: Title) -> list[str]:
    mark = fake.random_element(("{}. ", "({}) ", "[{}] "))
    return [mark.format(number) + line for number, line in enumerate(_lines(fake, title), start=1)]


def _table(fake: Faker, title: Title) -> list[str]:
    """Two rows of labels with their values underneath."""
    cells = [(label, value or "----") for label, value in _labelled(fake, title)]
    half = (len(cells) + 1) // 2
    rows = (cells[:half], cells[half:])
    return ["\n".join(" | ".join(column) for column in zip(*row, strict=True)) for row in rows if row]


def _prose(fake: Faker, title: Title) -> list[str]:
    vehicle = " ".join(str(part) for part in (title.year, title.make, title.model) if part is not None)
    owner = title.owner or "the person on file"
    sentences = [
        fake.random_element(
            (
                f"This certifies that {owner} is the registered owner of a {vehicle or 'vehicle'}.",
                f"The {vehicle or 'vehicle'} described herein is titled to {owner}.",
            )
        )
    ]
    if title.vin is not None:
        opening = fake.random_element(("Its VIN is {}.", "Vehicle identification number {}."))
        sentences.append(opening.format(title.vin))
    if title.title_number is not None:
        opening = fake.random_element(("Title number {}.", "Recorded under title no. {}."))
        sentences.insert(fake.random_int(0, len(sentences)), opening.format(title.title_number))
    return sentences


# Each gives the blocks of a document's body; a block may have several lines.
FAMILIES: dict[str, Callable[[Faker, Title], list[str]]] = {
    "lines": _lines,
    "two_columns": _two_columns,
    "boxes": _boxes,
    "numbered": _numbered,
    "table": _table,
    "prose": _prose,
}


def _noise_lines(fake: Faker) -> list[str]:
    bank = f"{fake.last_name()} {fake.random_element(('Bank', 'Credit Union', 'Auto Finance'))}"
    candidates = (
        f"Lien holder: {bank}",
        f"Seller: {fake.first_name()} {fake.last_name()}",
        f"Odometer: {fake.random_int(1_000, 180_000)} mi",
        f"Plate: {fake.bothify('???-####').upper()}",
        f"Issued {fake.random_int(1, 12):02}/{fake.random_int(1, 28):02}/{fake.random_int(LAST_YEAR, LAST_YEAR + 1)}",
        f"Color: {fake.random_element(('white', 'black', 'silver', 'blue', 'red', 'gray'))}",
        f"Address: {fake.building_number()} {fake.street_name()}",
        _scanned(fake, fake.random_element(LEGAL)),
        fake.random_element(STAMPS),
    )
    return list(fake.random_elements(candidates, length=fake.random_int(1, 3), unique=True))


def _scanned(fake: Faker, text: str) -> str:
    """One letter misread in one of eight texts."""
    places = [place for place, letter in enumerate(text) if letter in SCAN_ERRORS]
    if not places or not fake.boolean(12):
        return text
    place = fake.random_element(tuple(places))
    return text[:place] + SCAN_ERRORS[text[place]] + text[place + 1 :]
