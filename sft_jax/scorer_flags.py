"""Flags of the commands that score answers: the options of a scorer, as one JSON object."""

import json
from typing import Any

from absl import flags

SCORER_OPTIONS = flags.DEFINE_string(
    "scorer_options", "", """Of --scorer, as a JSON object: '{"marker": "####"}'; docs/scorers.md lists them."""
)
MATCH_THINKING = flags.DEFINE_bool("match_thinking", False, "An exact match wants the same thinking too.")
NAMES = (SCORER_OPTIONS.name, MATCH_THINKING.name)


def scorer_options() -> dict[str, Any]:
    """The options that the flag gives.

    Raises:
        ValueError: it is no JSON object.
    """
    text = SCORER_OPTIONS.value
    if not text:
        return {}
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--{SCORER_OPTIONS.name}={text} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f'--{SCORER_OPTIONS.name}={text} must be a JSON object, such as \'{{"marker": "####"}}\'')
    return options
