"""Scorers by name: from an answer and its case to an outcome. A new one is a function here and a line in `SCORERS`.

Each entry makes a scorer from its options, which are keyword-only parameters with types, and checks them. What the
columns of an outcome mean is said in `metrics.py`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sft_jax.evaluation.scorers.cases import Case, Outcome, Scorer, ScorerFailedError, problem_of_outcome
from sft_jax.evaluation.scorers.form import length, length_ratio, repetition, style
from sft_jax.evaluation.scorers.imported import imported
from sft_jax.evaluation.scorers.instructions import instructions
from sft_jax.evaluation.scorers.json_fields import json_extraction, json_fields
from sft_jax.evaluation.scorers.json_validity import json_schema, valid_json
from sft_jax.evaluation.scorers.labels import labels
from sft_jax.evaluation.scorers.numeric import numeric
from sft_jax.evaluation.scorers.options import check_options
from sft_jax.evaluation.scorers.overlap import bleu, chrf, rouge_l
from sft_jax.evaluation.scorers.slots import slots
from sft_jax.evaluation.scorers.text import exact_match, regex

__all__ = ["SCORERS", "Case", "Outcome", "Scorer", "make_scorer", "needs_reference"]

SCORERS: dict[str, Callable[..., Scorer]] = {
    "exact_match": exact_match,
    "numeric": numeric,
    "regex": regex,
    "labels": labels,
    "valid_json": valid_json,
    "json_schema": json_schema,
    "json_extraction": json_extraction,
    "json_fields": json_fields,
    "slots": slots,
    "rouge_l": rouge_l,
    "bleu": bleu,
    "chrf": chrf,
    "instructions": instructions,
    "style": style,
    "length": length,
    "length_ratio": length_ratio,
    "repetition": repetition,
}
_WITHOUT_REFERENCE = ("valid_json", "json_schema", "instructions", "length", "repetition")


def make_scorer(spec: str, options: Mapping[str, Any] = MappingProxyType({})) -> Scorer:
    """The scorer of a name in `SCORERS`, or a function of the user's, `package.module:function`.

    A function of the user's is called with (answer, case) and the options, which must be keyword-only parameters of
    it, and returns an outcome.

    Raises:
        ValueError: there is no such scorer, module or function, an option is unknown, missing or of a wrong type, or
            the scorer refuses it. Scoring with a function of the user's: it raised (the error is the cause), or what it
            returned is no outcome.
    """
    if ":" in spec:
        return _users_scorer(spec, options)
    if spec not in SCORERS:
        raise ValueError(
            f"no scorer named {spec!r}; there are {', '.join(sorted(SCORERS))}, and functions of your own: "
            "package.module:function"
        )
    check_options(spec, SCORERS[spec], options)
    return SCORERS[spec](**options)


def needs_reference(spec: str, options: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether a scorer compares with a right answer; functions of the user's are taken to do so."""
    return spec not in _WITHOUT_REFERENCE and not (spec == "regex" and options.get("compare") is False)


def _users_scorer(spec: str, options: Mapping[str, Any]) -> Scorer:
    function = imported(spec, "scorer")
    try:
        inspect.signature(function).bind("", None, **options)
    except TypeError as error:
        check_options(spec, function, options)  # says more where it is an option
        raise ValueError(f"scorer {spec!r} must take (answer, case): {error}") from error
    check_options(spec, function, options)

    @functools.wraps(function)
    def score(prediction: str, case: Case) -> Outcome:
        try:
            outcome = function(prediction, case, **options)
        except Exception as error:  # not our code: whatever it raises is told with the row
            said = f"scorer {spec!r} raised {type(error).__name__} for row {case.id}: {error}"
            raise ScorerFailedError(said) from error
        if problem := problem_of_outcome(outcome):
            raise ValueError(f"scorer {spec!r} returned no outcome for row {case.id}: {problem}")
        return outcome

    return score
