"""What an answer of the shop's assistant is worth: its facts, what it made up, escalation, style.

Named on the command line as `--scorer=experiments.order_support.scorer:letter`.
"""

import re

from experiments.order_support.letters import CLOSING, ESCALATION, OPENING
from experiments.order_support.shop import CARRIERS, MONTHS
from sft_jax.evaluation.scorers.cases import Case

_NUMBERS = re.compile(r"\b[A-Z]{2}-?\d{4,}\b")  # of orders and of parcels
_MONTHS = "|".join(MONTHS)
_DAY = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTHS})\b|\b({_MONTHS}) (\d{{1,2}})(?:st|nd|rd|th)?\b")
_HANDED_ON = "care team"


def letter(answer: str, case: Case) -> dict[str, bool]:
    """The outcome of an answer.

    Returns:
        `facts_right`: it says all of the row's column `facts`. `nothing_invented`: each order number, tracking number,
        carrier and day in it stands in the row's columns `record` or `messages`. `escalated_rightly`: it hands the
        matter to the care team, without naming a day, where that is the rule, and only there. `house_style`: it begins
        and ends as the house does. `exact_match`: all four.
    """
    text = with_days(answer).casefold()
    must = bool(case.row["escalated"])
    handed_on = _HANDED_ON in text
    outcome = {
        "facts_right": all(with_days(fact).casefold() in text for fact in case.row["facts"]),
        "nothing_invented": claims(answer) <= claims(f"{case.row['record']} {case.row['messages'][0]['content']}"),
        "escalated_rightly": handed_on == must and not (must and _days(answer)),
        "house_style": answer.strip().startswith(OPENING) and answer.strip().endswith(CLOSING),
    }
    if must and ESCALATION not in answer:
        outcome["house_style"] = False
    return {**outcome, "exact_match": all(outcome.values())}


def claims(text: str) -> set[str]:
    """What a text says that only a record can know: numbers, carriers, days."""
    carriers = {carrier for carrier in CARRIERS if carrier.casefold() in text.casefold()}
    return set(_NUMBERS.findall(text)) | carriers | _days(text)


def with_days(text: str) -> str:
    """The text, each day as "9 May": "May 9th" and "the 9th of May" are the same day."""
    return _DAY.sub(_day, text)


def _days(text: str) -> set[str]:
    return {_day(match) for match in _DAY.finditer(text)}


def _day(match: re.Match[str]) -> str:
    day, month, month_first, day_last = match.groups()
    return f"{int(day or day_last)} {month or month_first}"
