"""What is read as a JSON object, and what counts as equal: tables."""

import pytest

from sft_jax.evaluation.json_answers import comparable_fields, parse_object

READ = [
    ('{"vin": "1HG", "year": 2012}', {"vin": "1HG", "year": 2012}),
    ('```json\n{"vin": "1HG"}\n```', {"vin": "1HG"}),
    ('Sure! Here it is:\n{"vin": "1HG"}\nLet me know.', {"vin": "1HG"}),
    ('{"a": 1} {"a": 2}', {"a": 1}),
    ('[{"a": 1}, {"a": 2}]', {"a": 1}),
    ("{'vin': '1HG', 'owner': None}", {"vin": "1HG", "owner": None}),
    ("{'owner': \"O'Brien\", 'year': null, 'new': true}", {"owner": "O'Brien", "year": None, "new": True}),
    ('{"vin": "1HG", "year": 2012,}', {"vin": "1HG", "year": 2012}),
    ('{"owner": "A {B} C"}', {"owner": "A {B} C"}),
    ("{'owner': 'A } C'} trailing }", {"owner": "A } C"}),
    ('{"owner": "line\nbreak"}', {"owner": "line\nbreak"}),
    ('{not JSON} but {"a": 1}', {"a": 1}),
    ('{"vehicle": {"vin": "1HG", "year": 2012}}', {"vin": "1HG", "year": 2012}),
    ('{"vehicle": {"vin": "1HG"}, "owner": "A"}', {"vehicle": {"vin": "1HG"}, "owner": "A"}),
    ("{'pattern': '\\d'}", {"pattern": "\\d"}),
    ("{}", {}),
    ('{{"vin": "1HG"}}', {"vin": "1HG"}),
    ('{it\'s} {"vin": "1HG"}', {"vin": "1HG"}),
    ('{"owner": {"first": "A"}, "vin": "1H', {"first": "A"}),
]

NOT_READ = [
    "",
    "The VIN is 1HG.",
    '"a string"',
    "[1, 2]",
    '{"vin": "1HG", "year": 20',  # cut off
    "{1, 2}",  # a Python set
    "{vin: 1HG}",
    "{'a': open('file')}",  # literals alone are read, nothing is run
    "{[1]: 2}",
    "{" * 5_000,
    "{" * 3_000 + "}" * 3_000,
    "{'a': " * 3_000 + "1" + "}" * 3_000,
]


@pytest.mark.parametrize(("answer", "fields"), READ)
def test_objects_that_are_read(answer, fields):
    assert parse_object(answer) == fields


@pytest.mark.parametrize("answer", NOT_READ, ids=lambda answer: answer[:20])
def test_answers_without_an_object(answer):
    assert parse_object(answer) is None


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"year": 2012}, {"year": "2012"}, True),
        ({"year": 2012.0}, {"year": "2012"}, True),
        ({"price": 0.5}, {"price": "0.5"}, True),
        ({"mileage": 100000000000000000000000000001}, {"mileage": "100000000000000000000000000001"}, True),
        ({"title": "00123"}, {"title": 123}, False),
        ({"owner": "  JANE\n DOE "}, {"owner": "Jane Doe"}, True),
        ({"owner": "Jane Doe"}, {"owner": "Doe Jane"}, False),
        ({"Title Number": "A1"}, {"title_number": "a1"}, True),
        ({"titleNumber": "A1"}, {"TITLE-NUMBER": "A1"}, True),
        ({"vin": None}, {}, True),
        ({"vin": "N/A"}, {"vin": "null"}, True),
        ({"vin": ""}, {"vin": "  "}, True),
        ({"vin": "none"}, {"vin": "1HG"}, False),
        ({"vin": 0}, {"vin": None}, False),
        ({"new": True}, {"new": "true"}, True),
        ({"new": False}, {"new": None}, False),
        ({"owners": ["A", "B"]}, {"owners": ["a", "b"]}, True),
        ({"owner": {"First": "A"}}, {"owner": {"first": "a"}}, True),
        ({"owner": {"first": "A"}}, {"owner": "A"}, False),
    ],
)
def test_equal_fields(one, other, equal):
    assert (comparable_fields(one) == comparable_fields(other)) is equal


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -0.0, 1e300])
def test_odd_numbers_are_compared_too(number):
    assert comparable_fields({"a": number}) == comparable_fields({"A": number})
