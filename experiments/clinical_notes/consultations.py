"""Consultations: what doctor and patient say, and the note of the house about it. First step of making the data.

All patients are invented. What stands in a note is said in the dialogue, in other words; what a patient says of other
people, or of no matter, stands in no note.
"""

import dataclasses
import random

COMPLAINT, MEDICATION, ALLERGIES, FINDINGS, PLAN = "COMPLAINT", "MEDICATION", "ALLERGIES", "FINDINGS", "PLAN"
SECTIONS = (COMPLAINT, MEDICATION, ALLERGIES, FINDINGS, PLAN)
NONE, NOT_MEASURED = "none reported", "not measured"

# Those of held-out rows of the kind `new` are in no row that is trained.
COMPLAINTS = ("sore throat", "back pain", "headache", "cough", "knee pain", "earache", "heartburn", "dizziness")
NEW_COMPLAINTS = ("shoulder pain", "nausea", "itchy rash", "toothache")
DRUGS = ("ibuprofen", "metformin", "lisinopril", "omeprazole", "cetirizine", "amlodipine", "sertraline", "naproxen")
NEW_DRUGS = ("ramipril", "loratadine", "simvastatin", "tramadol")
ALLERGENS = ("penicillin", "latex", "peanuts", "aspirin", "bee stings", "iodine")
NEW_ALLERGENS = ("eggs", "codeine", "shellfish")

_TIMES = {1: "once a day", 2: "twice a day", 3: "three times a day"}
_DOSES = (5, 10, 20, 40, 100, 200, 250, 400, 500)
_SMALL_TALK = (
    "The parking outside is terrible today.",
    "My sister takes {drug} for years now, by the way.",
    "My neighbour is allergic to {allergen}, poor man.",
    "I nearly missed the bus.",
    "We were on holiday {number} weeks ago.",
)
# Wordings of the doctor's questions and the patient's answers; those of held-out rows are never trained.
_ASKED = {
    COMPLAINT: (
        ("What brings you here?", "I have had this {what} for {days} days now. I'd say it is a {severity} of 10."),
    ),
    MEDICATION: (("Do you take anything?", "Yes, {drug}, {dose} milligrams, {times}."), ("Any tablets?", None)),
    ALLERGIES: (("Any allergies?", "I cannot have {allergen}."), ("Are you allergic to anything?", None)),
}
_HELD_OUT_ASKED = {
    COMPLAINT: (
        ("So, tell me.", "It is this {what}. {days} days it goes on, and from 0 to 10 I'd call it {severity}."),
    ),
    MEDICATION: (("Which medicines are you on?", "Just the {drug}. {dose} milligrams, {times}."), ("Pills?", None)),
    ALLERGIES: (("Is there anything you react to?", "Oh yes, {allergen}."), ("Do you know of any allergy?", None)),
}
_NO = ("No.", "Nothing, no.", "Not that I know of.")
_MEASURED = "Let me see: your temperature is {temperature} and your pulse {pulse}."
_PLANNED = (
    "I'd like you to take {plan_drug}, {plan_dose} milligrams, {plan_times}, for {plan_days} days. Come back in "
    "{review} days."
)
_HELD_OUT_PLANNED = (
    "We try {plan_drug} now: {plan_times} {plan_dose} milligrams, and that for {plan_days} days. I see you again in "
    "{review} days."
)


@dataclasses.dataclass(frozen=True)
class Consultation:
    """A consultation.

    Attributes:
        dialogue: what is said, a line for each turn.
        facts: by section, what the note must say of it, word for word but for case; empty where nothing was reported.
    """

    dialogue: str
    facts: dict[str, tuple[str, ...]]

    @property
    def note(self) -> str:
        """The note of the house: a line for each section."""
        absent = {FINDINGS: NOT_MEASURED}
        lines = ((name, ", ".join(self.facts[name]) or absent.get(name, NONE)) for name in SECTIONS)
        return "\n".join(f"{name}: {text}" for name, text in lines)


def invent(chance: random.Random, *, held_out: bool, new: bool) -> Consultation:
    """A consultation.

    Args:
        chance: of which it is a function.
        held_out: in wordings that are never trained.
        new: with complaints, drugs and allergens that are never trained.
    """
    drugs = list(NEW_DRUGS if new else DRUGS)
    taken, planned = chance.sample(drugs, 2)
    said = {
        "what": chance.choice(NEW_COMPLAINTS if new else COMPLAINTS),
        "days": chance.randint(2, 20),
        "severity": chance.randint(1, 9),
        "drug": taken,
        "dose": chance.choice(_DOSES),
        "allergen": chance.choice(NEW_ALLERGENS if new else ALLERGENS),
        "temperature": f"{chance.randint(360, 399) / 10}",
        "pulse": chance.randint(55, 110),
        "plan_drug": planned,
        "plan_dose": chance.choice(_DOSES),
        "plan_days": chance.randint(3, 14),
        "review": chance.randint(15, 40),
    }
    times, plan_times = chance.choice(list(_TIMES)), chance.choice(list(_TIMES))
    said |= {"times": _TIMES[times], "plan_times": _TIMES[plan_times]}
    has = {name: chance.random() < 0.6 for name in (MEDICATION, ALLERGIES, FINDINGS)}
    facts = {
        COMPLAINT: (said["what"], f"{said['days']} days", f"severity {said['severity']}/10"),
        MEDICATION: (f"{taken} {said['dose']} mg", f"{times}x daily"),
        ALLERGIES: (said["allergen"],),
        FINDINGS: (f"temperature {said['temperature']} C", f"pulse {said['pulse']}/min"),
        PLAN: (
            *(f"{planned} {said['plan_dose']} mg", f"{plan_times}x daily"),
            *(f"for {said['plan_days']} days", f"review in {said['review']} days"),
        ),
    }
    facts |= {name: () for name, is_there in has.items() if not is_there}
    return Consultation("\n".join(_turns(said, has, chance, held_out)), facts)


def _turns(said: dict[str, object], has: dict[str, bool], chance: random.Random, held_out: bool) -> list[str]:
    asked = _HELD_OUT_ASKED if held_out else _ASKED
    turns = []
    for name in (COMPLAINT, *chance.sample((MEDICATION, ALLERGIES), 2)):
        question = chance.choice([question for question, _ in asked[name]])
        answer = asked[name][0][1].format(**said) if has.get(name, True) else chance.choice(_NO)
        turns += [f"Doctor: {question}", f"Patient: {answer}"]
    if chance.random() < 0.5:
        other = {"drug": chance.choice(DRUGS), "allergen": chance.choice(ALLERGENS), "number": chance.randint(41, 52)}
        turns.append(f"Patient: {chance.choice(_SMALL_TALK).format(**other)}")
    if has[FINDINGS]:
        turns.append(f"Doctor: {_MEASURED.format(**said)}")
    turns.append(f"Doctor: {(_HELD_OUT_PLANNED if held_out else _PLANNED).format(**said)}")
    return turns
