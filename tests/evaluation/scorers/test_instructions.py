"""Instructions by IFEval's checkers: strict, loose, and what is refused before anything is generated."""

import sys

import pytest

from sft_jax.evaluation.scorers import Case, make_scorer
from sft_jax.evaluation.scorers.instructions import NEED_PUNKT
from sft_jax.evaluation.scoring import aggregate, check_cases, detail_tables
from tests.evaluation.scored import score, scored


def row(*instructions):
    """The columns of IFEval's data, with the nulls that its table has."""
    return {
        "instruction_id_list": [kind for kind, _ in instructions],
        "kwargs": [{"num_words": None} | arguments for _, arguments in instructions],
    }


NO_COMMA = ("punctuation:no_comma", {})
WORDS = ("length_constraints:number_words", {"num_words": 4, "relation": "less than"})
KEYWORDS = ("keywords:existence", {"keywords": ["cat", "dog"]})
LANGUAGE = ("language:response_language", {"language": "de"})


@pytest.mark.parametrize(
    ("instructions", "answer", "strict", "loose"),
    [
        ([NO_COMMA], "No comma here.", [1], [1]),
        ([NO_COMMA], "Well, no.", [0], [0]),
        ([NO_COMMA], "Sure, here it is:\nNo comma here.", [0], [1]),
        ([WORDS], "one two three", [1], [1]),
        ([WORDS], "one two three four", [0], [0]),
        ([KEYWORDS, NO_COMMA], "A cat and a dog", [1, 1], [1, 1]),
        ([KEYWORDS, NO_COMMA], "A cat, a dog", [1, 0], [1, 0]),
        ([LANGUAGE], "Das ist ein ganz gewöhnlicher deutscher Satz.", [1], [1]),
        ([LANGUAGE], "This is a plain English sentence.", [0], [0]),
        ([NO_COMMA, KEYWORDS], "", [0, 0], [0, 0]),
        ([NO_COMMA], "<think>well, so</think>yes", [1], [1]),
    ],
)
def test_instructions(instructions, answer, strict, loose):
    outcome = score("instructions", answer, row=row(*instructions))
    assert outcome["prompt_strict"] is all(strict)
    assert outcome["prompt_loose"] is all(loose)
    for way, followed in (("strict", strict), ("loose", loose)):
        expected = {kind: [hit, 1] for (kind, _), hit in zip(instructions, followed, strict=True)}
        assert outcome[f"instruction_{way}"] == expected


def test_shares_and_the_table_of_kinds():
    rows = [row(NO_COMMA, NO_COMMA), row(NO_COMMA, KEYWORDS)]
    outcomes = scored("instructions", ["none", "cat, dog"], ["", ""], rows)
    scores = aggregate(outcomes, seed=0)
    assert list(scores) == ["prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"]
    assert (scores["prompt_strict"].value, scores["instruction_strict"].value) == (1 / 2, 3 / 4)
    assert detail_tables(outcomes)["instruction_strict"] == {
        "keywords:existence": {"share": 1.0, "support": 1},
        "punctuation:no_comma": {"share": 2 / 3, "support": 3},
    }


NO_PUNKT = "needs NLTK's punkt_tab, which is not on this machine: python -m nltk.downloader punkt_tab"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no column 'instruction_id_list' in the row, which has none"),
        ({"instruction_id_list": ["punctuation:no_comma"]}, "no column 'kwargs' in the row, which has instruction_id"),
        ({"instruction_id_list": "punctuation:no_comma", "kwargs": [{}]}, "expected a list of kinds"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "as many dicts of arguments"),
        ({"instruction_id_list": [], "kwargs": []}, "expected a list of kinds"),
        (row(("count:word_count_range", {})), "no kind 'count:word_count_range'; there are keywords:existence"),
        (row(("keywords:existence", {})), r"'keywords:existence' takes the arguments \['keywords'\], got \[\]"),
        (row(("punctuation:no_comma", {"n": 1})), r"takes the arguments \[\], got \['n'\]"),
        (
            row(("length_constraints:number_words", {"num_words": 3, "relation": "about"})),
            "'length_constraints:number_words' with .*: The supported relation",
        ),
    ],
)
def test_rows_that_cannot_be_checked_are_refused_with_an_empty_answer(columns, message):
    scorer = make_scorer("instructions")
    with pytest.raises(ValueError, match=f"row a:1: instructions: .*{message}"):
        check_cases(scorer, [Case("a:1", "", columns)])


ARGUMENTS = [{"num_sentences": 2, "relation": "at least"}, {"capital_frequency": 2, "capital_relation": "at least"}]


@pytest.mark.parametrize(("kind", "arguments"), list(zip(NEED_PUNKT, ARGUMENTS, strict=True)))
def test_kinds_that_need_a_download_are_refused_by_name(kind, arguments, monkeypatch):
    import nltk

    def find(resource):
        raise LookupError(resource)

    monkeypatch.setattr(nltk.data, "find", find)
    with pytest.raises(ValueError, match=f"'{kind}' {NO_PUNKT}"):
        check_cases(make_scorer("instructions"), [Case("a:1", "", row((kind, arguments)))])


def test_no_other_kind_needs_a_download():
    """Every kind that is not refused for want of NLTK's data can be checked without it."""
    from if_verifiable.ifeval import INSTRUCTION_DICT

    texts = {"keywords": ["a"], "forbidden_words": ["b"], "relation": "at least", "let_relation": "at least"}
    texts |= {"capital_relation": "at least", "keyword": "a", "letter": "a", "language": "en", "first_word": "a"}
    texts |= {"postscript_marker": "P.S.", "section_spliter": "Section", "prompt_to_repeat": "a", "end_phrase": "a"}
    kinds = [kind for kind in INSTRUCTION_DICT if kind not in NEED_PUNKT]
    assert len(kinds) == 23
    for kind in kinds:
        needed = INSTRUCTION_DICT[kind](kind).get_instruction_args_keys()
        columns = row((kind, {name: texts.get(name, 1) for name in needed}))
        assert set(score("instructions", "A sentence. Another one.", row=columns)["instruction_strict"]) == {kind}


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "if_verifiable.common", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-instructions\.txt"):
        make_scorer("instructions")
