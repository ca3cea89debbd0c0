"""Whether an answer is JSON, and JSON of a given shape."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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

    `jsonschema` validates, by the draft that `$schema` names (default 2020-12). The reference is not looked at.

    Raises:
        ValueError: none or both are given, the file cannot be read, or the schema is none, or refers to what it does
        not
            hold itself.
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
    validator = kind(loaded, registry=Registry())  # without it, addresses in a schema would be downloaded

    def score(prediction: str, case: Case) -> Outcome:
        found = _read(prediction, allow_fence)
        is_json = found is not _NOTHING
        return {"valid_json": is_json, "matches_schema": is_json and validator.is_valid(found)}

    return score


def _read(text: str, allow_fence: bool) -> Any:
    """What the whole text says as JSON, or `_NOTHING`."""
    fenced = _FENCE.fullmatch(text) if allow_fence else None
    try:
        return json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NOTHING


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
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(
                f"json_schema: {where} refers to {reference!r}, which it does not hold; put that into its $defs"
            ) from error


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)
