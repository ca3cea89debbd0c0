"""Invents the facts of a vehicle title: vehicle, owner, title number. First step of making the quickstart's data.

Names come from Faker; VINs follow the North American scheme: manufacturer, model year letter and check digit agree
(49 CFR 565). All of it is drawn from one seeded Faker instance, so a title is a pure function of its seed.
"""

import dataclasses

from faker import Faker

# Make -> (world manufacturer identifier, models)
MAKES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Toyota": ("4T1", ("Camry", "Corolla", "RAV4", "Tacoma", "Sienna")),
    "Honda": ("1HG", ("Civic", "Accord", "CR-V", "Pilot", "Fit")),
    "Ford": ("1FT", ("F-150", "Focus", "Escape", "Ranger", "Explorer")),
    "Chevrolet": ("1G1", ("Malibu", "Impala", "Silverado", "Equinox", "Tahoe")),
    "Nissan": ("1N4", ("Altima", "Sentra", "Rogue", "Frontier")),
    "Subaru": ("4S3", ("Outback", "Legacy", "Forester", "Impreza")),
    "Volkswagen": ("3VW", ("Jetta", "Passat", "Golf", "Tiguan")),
    "Hyundai": ("KMH", ("Elantra", "Sonata", "Tucson", "Santa Fe")),
    "Kia": ("KNA", ("Optima", "Sorento", "Soul", "Forte")),
    "Jeep": ("1C4", ("Wrangler", "Cherokee", "Compass", "Patriot")),
    "Dodge": ("2B3", ("Charger", "Durango", "Caravan", "Dart")),
    "Mazda": ("JM1", ("Mazda3", "CX-5", "MX-5 Miata", "Mazda6")),
    "BMW": ("WBA", ("328i", "X3", "530i", "X5")),
    "Mercedes-Benz": ("WDD", ("C300", "E350", "GLC 300")),
    "GMC": ("1GT", ("Sierra", "Yukon", "Acadia", "Canyon")),
    "Lexus": ("JTH", ("RX 350", "ES 350", "IS 250")),
    "Volvo": ("YV1", ("XC90", "S60", "V70")),
    "Buick": ("2G4", ("LaCrosse", "Enclave", "Regal")),
}
FIRST_YEAR, LAST_YEAR = 1996, 2024

_VIN_CHARACTERS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789"  # without I, O, Q
_YEAR_CHARACTERS = "ABCDEFGHJKLMNPRSTVWXY123456789"  # from 1980 on, again from 2010 on
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
_VIN_VALUES = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", "12345678123457923456789", strict=True))


@dataclasses.dataclass(frozen=True)
class Title:
    """The six facts to be extracted; None where the document will not state one."""

    title_number: str | None
    vin: str | None
    year: int | None
    make: str | None
    model: str | None
    owner: str | None


FIELDS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Title))


def invent_title(fake: Faker, title_pattern: str) -> Title:
    """A complete title; `title_pattern` has `#` for a digit and `?` for a letter."""
    make = fake.random_element(tuple(MAKES))
    manufacturer, models = MAKES[make]
    year = fake.random_int(FIRST_YEAR, LAST_YEAR)
    return Title(
        title_number=fake.bothify(title_pattern, letters="ABCDEFGHJKLMNPRSTUVWXYZ"),
        vin=invent_vin(fake, manufacturer, year),
        year=year,
        make=make,
        model=fake.random_element(models),
        owner=invent_owner(fake),
    )


def invent_owner(fake: Faker) -> str:
    """A person (with or without middle initial), two persons of one family, or a company."""
    first, last = fake.first_name(), fake.last_name()
    kind = fake.random_int(1, 100)
    if kind <= 45:
        return f"{first} {last}"
    if kind <= 80:
        return f"{first} {fake.random_uppercase_letter()} {last}"
    if kind <= 90:
        return f"{first} and {fake.first_name()} {last}"
    return f"{last} {fake.random_element(('Motors', 'Transport', 'Rentals', 'Farms'))} LLC"


def invent_vin(fake: Faker, manufacturer: str, year: int) -> str:
    """17 characters: manufacturer (3), description (5), check digit, year, plant, serial number (6)."""
    description = "".join(fake.random_elements(tuple(_VIN_CHARACTERS), length=5))
    plant = fake.random_element(tuple("ABCEFHKLMNPRSTUVXZ"))
    year_character = _YEAR_CHARACTERS[(year - 1980) % 30]
    return with_check_digit(f"{manufacturer}{description}0{year_character}{plant}{fake.numerify('######')}")


def with_check_digit(vin: str) -> str:
    """The VIN with its ninth character set to the check digit of the other sixteen (49 CFR 565.15 (c))."""
    values = (int(_VIN_VALUES.get(character, character)) for character in vin)
    remainder = sum(value * weight for value, weight in zip(values, _VIN_WEIGHTS, strict=True)) % 11
    return vin[:8] + ("X" if remainder == 10 else str(remainder)) + vin[9:]
