"""Whether an answer is JSON, and JSON of a given shape."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sft_jax.evaluation.scorers.bounded_regex import BoundedPattern, ExceededError, check_repeats_once
from sft_jax.evaluation.scorers.cases import Case, Outcome, Scorer

_FENCE = re.compile(r"\s*```[a-zA-Z]*\n(.*)```\s*", re.DOTALL)
_NOTHING = object()


def valid_json(*, allow_fence: bool = False) -> Scorer:
    """`valid_json`: the whole answer is JSON (RFC 8259), or with `allow_fence` a code fence around JSON."""
    return lambda prediction, case: {"valid_json": _read(prediction, allow_fence) is not _NOTHING}


def json_schema(
    *, schema: Mapping[str, Any] | None = None, schema_file: str | None = None, allow_fence: bool = False
) -> Scorer:
    """`valid_json`, and `matches_schema`: it is valid by a JSON schema, given as a dict or as a file.

    `jsonschema` validates, by the draft that `$schema` names (default 2020-12). The reference is not looked at. An
    object with a name twice is JSON, but matches no schema: readers do not agree on which of the two it has. Nor does
    what is nested too deeply to be validated, or has a text on which a `pattern` takes too many steps.

    Raises:
        ValueError: none or both are given, the file cannot be read, or the schema is none, refers to what it does not
            hold itself, or has a pattern that cannot be matched in bounded time (`bounded_regex.py`).
    """
    from jsonschema import Draft202012Validator, validators  # slow to import
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    if (schema is None) == (schema_file is None):
        raise ValueError("json_schema: give either the option 'schema' or the option 'schema_file'")
    where = "option 'schema'" if schema_file is None else schema_file
    loaded = schema if schema_file is None else _read_file(schema_file)
    kind = validators.validator_for(loaded, default=Draft202012Validator)
    try:
        kind.check_schema(loaded)
    except SchemaError as error:
        raise ValueError(
            f"json_schema: {where} is no valid JSON schema: {error.message} at {error.json_path}"
        ) from error
    _check_references(loaded, kind, where)
    kind = validators.extend(kind, {"pattern": _pattern_rule(loaded, where)})
    validator = kind(loaded, registry=Registry())  # without it, addresses in a schema would be downloaded

    def score(prediction: str, case: Case) -> Outcome:
        is_json = _read(prediction, allow_fence) is not _NOTHING
        found = _read(prediction, allow_fence, object_pairs_hook=_with_names_of_their_own)
        return {"valid_json": is_json, "matches_schema": found is not _NOTHING and _is_valid(validator, found)}

    return score


def _is_valid(validator: Any, found: Any) -> bool:
    try:
        return validator.is_valid(found)
    except (RecursionError, ExceededError):
        return False


def _read(text: str, allow_fence: bool, **options: Any) -> Any:
    """What the whole text says as JSON, or `_NOTHING`; `options` are those of `json.loads`."""
    fenced = _FENCE.fullmatch(text) if allow_fence else None
    try:
        return json.loads(fenced[1] if fenced else text, parse_constant=_refuse, **options)
    except (ValueError, RecursionError):
        return _NOTHING


def _with_names_of_their_own(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _pattern_rule(schema: Any, where: str) -> Callable[..., Iterator[Exception]]:
    """The keyword `pattern`, matched in bounded time, which `re` does not promise."""
    from jsonschema.exceptions import ValidationError

    try:
        patterns = {pattern: BoundedPattern(pattern) for pattern in _values_of("pattern", schema, str)}
        for properties in _values_of("patternProperties", schema, Mapping):
            check_repeats_once("|".join(properties))  # as `jsonschema` joins them
    except ValueError as error:
        raise ValueError(f"json_schema: {where}: pattern {error}") from error

    def rule(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Exception]:
        if validator.is_type(instance, "string") and not patterns[pattern].search(instance):
            yield ValidationError(f"{instance!r} does not match {pattern!r}")

    return rule


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read_file(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"json_schema: cannot read schema_file {path!r}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"json_schema: schema_file {path!r} is not JSON: {error}") from error


def _check_references(schema: Any, kind: Any, where: str) -> None:
    """Looks up every reference within the schema, so that none fails while answers are scored."""
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    specification = specification_with(kind.META_SCHEMA["$schema"])
    resource = Resource.from_contents(schema, default_specification=specification)
    resolver = Registry().with_resource(resource.id() or "", resource).crawl().resolver(resource.id() or "")
    for reference in _values_of("$ref", schema, str):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(
                f"json_schema: {where} refers to {reference!r}, which it does not hold; put that into its $defs"
            ) from error


def _values_of(keyword: str, schema: Any, kind: type) -> Iterator[Any]:
    """The values of one kind that stand under a keyword anywhere in a schema."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get(keyword), kind):
            yield schema[keyword]
        for value in schema.values():
            yield from _values_of(keyword, value, kind)
    elif isinstance(schema, list):
        for value in schema:
            yield from _values_of(keyword, value, kind)
