"""JSON, and JSON by a schema."""

import json

import pytest

from sft_jax.evaluation.scorers import make_scorer
from tests.evaluation.scored import score


@pytest.mark.parametrize(
    ("answer", "options", "valid"),
    [
        ('{"a": 1}', {}, True),
        (" [1, null]\n", {}, True),
        ("3", {}, True),
        ('{"a": 1} Done.', {}, False),
        ("{'a': 1}", {}, False),
        ("NaN", {}, False),
        ("", {}, False),
        ("[" * 100_000, {}, False),
        ("```\n" + "\n" * 50_000, {"allow_fence": True}, False),
        ('```json\n{"a": 1}\n```', {}, False),
        ('```json\n{"a": 1}\n```', {"allow_fence": True}, True),
        ('Sure: ```json\n{"a": 1}\n```', {"allow_fence": True}, False),
    ],
)
def test_valid_json(answer, options, valid):
    assert score("valid_json", answer, **options) == {"valid_json": valid}


CAR = {
    "type": "object",
    "properties": {"year": {"$ref": "#/$defs/year"}, "make": {"type": "string"}},
    "required": ["year"],
    "additionalProperties": False,
    "$defs": {"year": {"type": "integer", "minimum": 1886}},
}


@pytest.mark.parametrize(
    ("answer", "valid", "matches"),
    [
        ('{"year": 2012, "make": "Honda"}', True, True),
        ('{"year": 2012.0}', True, True),  # a whole number, by the draft
        ('{"year": "2012"}', True, False),
        ('{"year": 1800}', True, False),
        ("{}", True, False),
        ('{"year": 2012, "color": "red"}', True, False),
        ("2012", True, False),
        ("prose", False, False),
        ('{"year": 2012, "year": 2012}', True, False),  # which of the two, readers do not agree
        ('{"year": NaN}', False, False),
        ('{"year": 2012} as I said', False, False),
    ],
)
def test_json_schema(answer, valid, matches, tmp_path):
    expected = {"valid_json": valid, "matches_schema": matches}
    assert score("json_schema", answer, schema=CAR) == expected
    (tmp_path / "car.json").write_text(json.dumps(CAR))
    assert score("json_schema", answer, schema_file=str(tmp_path / "car.json")) == expected


def test_the_draft_is_the_one_that_the_schema_names():
    four = {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer"}
    assert score("json_schema", "1.0", schema=four)["matches_schema"] is False
    assert score("json_schema", "1.0", schema={"type": "integer"})["matches_schema"] is True


def test_a_schema_may_refer_to_itself():
    tree = {"$id": "https://example.org/tree", "type": "array", "items": {"$ref": "tree"}}
    assert score("json_schema", "[[], [[]]]", schema=tree)["matches_schema"] is True
    assert score("json_schema", "[[], 3]", schema=tree)["matches_schema"] is False


@pytest.mark.parametrize(
    ("answer", "matches"),
    [('"12-34"', True), ('"12"', False), ("12", True), ('"' + "1" * 300 + '"', False)],
)
def test_patterns_are_matched_in_bounded_time(answer, matches):
    """The last one would keep `re` busy for longer than anybody lives."""
    assert score("json_schema", answer, schema={"pattern": "^(\\d+)+-\\d+$"})["matches_schema"] is matches


def test_names_of_properties_have_patterns_too():
    schema = {"patternProperties": {"^x-.*$": {"type": "integer"}}, "additionalProperties": False}
    matches = [score("json_schema", answer, schema=schema)["matches_schema"] for answer in ('{"x-a": 1}', '{"y": 1}')]
    assert matches == [True, False]


def test_what_is_nested_too_deeply_to_be_validated_matches_nothing():
    tree = {"$id": "https://example.org/tree", "type": "array", "items": {"$ref": "tree"}}
    deep = "[" * 900 + "]" * 900
    assert score("json_schema", deep, schema=tree)["matches_schema"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either the option 'schema' or"),
        ({"schema": {}, "schema_file": "x"}, "either the option 'schema' or"),
        ({"schema": {"type": "integr"}}, r"option 'schema' is no valid JSON schema: 'integr' .* at \$.type"),
        ({"schema": {"$ref": "https://example.org/other"}}, "refers to 'https://example.org/other'"),
        ({"schema": {"$ref": "#/$defs/none"}}, "refers to '#/\\$defs/none'"),
        ({"schema": {"pattern": r"(a)\1"}}, r"option 'schema': pattern '\(a\).* is not taken: back references"),
        ({"schema": {"patternProperties": {"^(a+)+$": {}}}}, "where `re` matches, it may repeat once, a single"),
        ({"schema_file": "/nowhere/x.json"}, "cannot read schema_file '/nowhere/x.json': No such file"),
    ],
)
def test_schemas_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_scorer("json_schema", options)


def test_a_schema_file_that_is_no_json(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x.json' is not JSON: Expecting"):
        make_scorer("json_schema", {"schema_file": str(tmp_path / "x.json")})
