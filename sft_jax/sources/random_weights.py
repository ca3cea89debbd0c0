"""Sources `random:SOURCE?key=value&…`: the config of SOURCE with values replaced, its tokenizer, and random weights."""

import dataclasses
import hashlib
import json
from urllib.parse import parse_qsl

from sft_jax.sources.tensors import SourceError, is_whole

PREFIX = "random:"


@dataclasses.dataclass(frozen=True)
class RandomSource:
    """What such a name asks for.

    Attributes:
      source: where config and tokenizer come from.
      overrides: fields of config.json to replace.
      seed: of the weights.
    """

    source: str
    overrides: dict[str, object]
    seed: int


def parse(name: str) -> RandomSource | None:
    """The parts of a name that begins with `random:`; None for any other.

    `random:smollm2-135m-instruct?num_hidden_layers=4&seed=1` has the source `smollm2-135m-instruct`, one override and
    the seed 1. Values are JSON; what is not JSON is a string.

    Raises:
      SourceError: an entry without a value, or a seed that is not a number.
    """
    if not name.startswith(PREFIX):
        return None
    source, _, query = name.removeprefix(PREFIX).partition("?")
    try:
        entries = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise SourceError(f"{name!r}: expected {PREFIX}SOURCE?key=value&key=value ({error}).") from error
    fields = {key: _value(text) for key, text in entries}
    seed = fields.pop("seed", 0)
    if not source or isinstance(seed, bool) or not isinstance(seed, int):
        raise SourceError(f"{name!r}: expected {PREFIX}SOURCE?key=value&…, with a whole number for seed.")
    return RandomSource(source, fields, seed)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def overridden(config: dict, overrides: dict[str, object]) -> dict:
    """A config.json with fields replaced; of fewer layers than it has, the types are those of the first."""
    made, count = config | overrides, overrides.get("num_hidden_layers")
    for field in ("layer_types", "mlp_layer_types"):
        kinds = config.get(field)
        if field not in overrides and isinstance(kinds, list) and is_whole(count, 1, len(kinds)):
            made[field] = kinds[:count]
    return made


def fingerprint(config: dict, seed: int) -> str:
    """Sha256 (hex) of what the weights are made from."""
    return hashlib.sha256(json.dumps([config, seed], sort_keys=True).encode()).hexdigest()
