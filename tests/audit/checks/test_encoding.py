"""Characters that do not belong, scripts, private data."""

import pytest

from sft_jax.audit.checks.encoding import control_characters, lost_characters, mojibake, white_space
from sft_jax.audit.checks.private_data import contact_details, keys
from sft_jax.audit.checks.scripts import mixed_words, script_counts, scripts
from sft_jax.data.texts import redacted, repair_mojibake

TOKEN = "ghp_" + "a1B2" * 9


@pytest.mark.parametrize(
    ("text", "is_misread"),
    [
        ("a cafÃ© in Paris", True),
        ("Ã©tÃ© à Paris", True),  # one word is right: it is not repaired as a whole, and is found all the same
        ("donâ€™t", True),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", True),
        ("a café in Paris, don’t", False),
        ("привет, 你好", False),
        ("MANHÃ…", False),
        ("„Über“ naïve Ångström", False),
        ("plain", False),
    ],
)
def test_mojibake(checked, text, is_misread):
    assert bool(mojibake(checked(("q", text)))) == is_misread


def test_what_it_was_is_said(checked):
    (seen,) = mojibake(checked(("q", "Ã©tÃ© à Paris")))
    assert seen.numbers == {"words": ["Ã©tÃ© -> été"]}
    assert repair_mojibake("Ã©tÃ© à Paris") == "Ã©tÃ© à Paris"


@pytest.mark.parametrize(
    ("check", "answer", "shown_as"),
    [
        (lost_characters, "na\ufffdve", "q\\nna\ufffdve"),
        (control_characters, "a\x00b", "q\\na\\x00b"),
        (control_characters, "\ufeffa", "q\\n\\ufeffa"),
        (control_characters, "a\u202eb", "q\\na\\u202eb"),
        (control_characters, "a\tb\nc", None),
        (white_space, " a", "q\\n a"),
        (white_space, "a\u00a0b", "q\\na\\xa0b"),
        (white_space, "a\r\nb", "q\\na\\r\\nb"),
        (white_space, "a b\nc", None),
    ],
)
def test_characters_are_shown_as_escapes(checked, check, answer, shown_as):
    seen = check(checked(("q", answer)))
    assert [place.text for one in seen for place in one.examples] == ([shown_as] if shown_as else [])


GIVEN = {  # step -> (check, answer of which it leaves what is found)
    "fix_encoding": (mojibake, "Ã©tÃ© à Paris"),
    "remove_control_characters": (control_characters, "a\x00b"),
    "strip_whitespace": (white_space, " a"),
    "normalize_whitespace": (white_space, "a\r\nb"),
}


@pytest.mark.parametrize("step", GIVEN)
def test_a_step_that_was_given_is_not_advised(checked, step):
    check, answer = GIVEN[step]
    (seen,) = check(checked(("q", answer)))
    (again,) = check(checked(("q", answer), cleaning=("drop_empty_answers", step)))
    assert f"cleaning step {step}" in seen.advice
    assert f"cleaning step {step}" not in again.advice
    assert again.advice


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("abc, 12!", {"LATIN": 3}),
        ("да no", {"CYRILLIC": 2, "LATIN": 2}),
        ("日本の", {"CJK": 3}),
        ("\u00b5\u0301", {}),
    ],
)
def test_script_counts(text, counts):
    assert script_counts(text) == counts


def test_an_answer_in_another_script(checked, shown):
    latin = [(f"q{n}", "an answer") for n in range(19)]
    shares, other = scripts(checked(*latin, ("q", "это ответ")))
    assert shares.title.startswith("Letters of the answers: Latin 95.0%, Cyrillic")
    assert shown(other) == ["a:20"]
    assert len(scripts(checked(*latin[:3], ("q", "это ответ")))) == 1  # both scripts are at home


def test_scripts_are_named_as_people_write_them(checked):
    (seen,) = scripts(checked(("q", "日本の no")))
    assert seen.title == "Letters of the answers: CJK 60.0%, Latin 40.0%"


def test_words_of_two_scripts(checked):
    sane = ("my банк, my bank", "α-helix", "5 μm", "αMSH", "Δx and Δt", "SQLзапрос", "βcell", "kΩ")
    (seen,) = mixed_words(checked(("q", "my bаnk"), *(("q", text) for text in sane)))
    assert seen.examples == (("a:1", "'bаnk' in: q -> my bаnk"),)


@pytest.mark.parametrize(
    ("check", "text", "shown_as"),
    [
        (contact_details, "write to ann@example.com now", "q\\nwrite to [EMAIL] now"),
        (contact_details, "call +44 20 7946 0958", "q\\ncall [PHONE]"),
        (contact_details, "order 20794609581 of 2024-05-06", None),
        (contact_details, "+10 20 30 40 = 100", None),
        (keys, f"use {TOKEN}.", "q\\nuse [KEY]."),
        (keys, "AKIA" + "A" * 16, "q\\n[KEY]"),
        (keys, "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----", "q\\n[KEY]"),
        (keys, "risk-management-is-a-long-word", None),
        (keys, "CONSTRAINT pk_customer_account_identifier PRIMARY KEY", None),
        (keys, ".sk-estimator-doc-link-container-wide", None),
        (keys, "sk-ant-api03-a1-B2_c3d4e5f6a7b8c9d0e1f2-x", "q\\n[KEY]"),
        (keys, "sk_live_4eC39HqLyjWDarjtT1zdp7dc", "q\\n[KEY]"),
    ],
)
def test_private_data_is_found_and_not_shown(checked, check, text, shown_as):
    seen = check(checked(("q", text)))
    assert [place.text for one in seen for place in one.examples] == ([shown_as] if shown_as else [])


def test_no_example_shows_what_is_private(checked):
    """Not even where it is cut, or where something else was looked for."""
    (seen,) = lost_characters(checked(("x" * 90 + f" {TOKEN} \ufffd ann@example.com", "a")))
    assert TOKEN[-8:] not in seen.examples[0].text
    assert "ann" not in seen.examples[0].text
    assert redacted(f"{TOKEN} ann@example.com") == "[KEY] [EMAIL]"
