"""Where most answers are JSON: those that do not parse, and objects that lack a key that nearly all others have."""

import collections
import json
from collections.abc import Sequence
from typing import Any

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, observed
from sft_jax.data.views import View

_MOSTLY = 0.5  # from this share of answers that begin like JSON on, all are meant to be
_USUAL_KEY = 0.95  # a key that more objects than this have is expected in all of them


def json_answers(data: CheckedData) -> list[Observation]:
    """Answers that are not JSON where most are meant to be, and objects that lack a usual key."""
    if not json_expected(data.views):
        return []
    broken, objects = [], []
    for view in (view for view in data.views if view.answer.strip()):
        try:
            value = json.loads(view.answer, parse_constant=_refuse)
        except (json.JSONDecodeError, RecursionError) as error:
            broken.append((view, error))
            continue
        if isinstance(value, dict):
            objects.append((view, value))
    return [*_broken(data, broken), *_missing_keys(data, objects)]


def json_expected(views: Sequence[View]) -> bool:
    """Whether more than half of the answers begin like an object or a list."""
    answers = [view.answer.lstrip() for view in views if view.answer.strip()]
    return sum(answer[0] in "{[" for answer in answers) > _MOSTLY * len(answers)


def _refuse(name: str) -> None:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


def _broken(data: CheckedData, broken: list[tuple[View, Exception]]) -> list[Observation]:
    return observed(
        f"{counted(len(broken), 'answer is', 'answers are')} not valid JSON, most others are",
        broken,
        len(data.views),
        lambda pair: (pair[0].id, f"{_reason(pair[1])}: {pair[0].answer.strip()}"),
        data.by_step(
            "drop_invalid_json_answers",
            "Repair or drop them (drop_invalid_json_answers): the model learns to leave brackets open.",
            "Repair or remove them: the model learns to leave brackets open.",
        ),
    )


def _reason(error: Exception) -> str:
    return (
        f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
    )


def _missing_keys(data: CheckedData, objects: list[tuple[View, dict[str, Any]]]) -> list[Observation]:
    counts = collections.Counter(key for _, value in objects for key in value)
    usual = {key for key, count in counts.items() if count > _USUAL_KEY * len(objects)}
    lacking = [(view, sorted(usual - set(value))) for view, value in objects if not usual <= set(value)]
    return observed(
        f"{counted(len(lacking), 'JSON answer lacks', 'JSON answers lack')} a key that nearly all others have",
        lacking,
        len(data.views),
        lambda pair: (pair[0].id, f"no {', '.join(map(repr, pair[1]))}: {pair[0].answer.strip()}"),
        "Give every answer the same keys, null where there is nothing to say.",
        {"usual_keys": sorted(usual)},
    )
