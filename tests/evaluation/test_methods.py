"""Methods change prompts: each part by hand, within the positions of the model, and never with what is measured."""

import re

import pytest

from sft_jax.data.conversations import Message
from sft_jax.evaluation.measuring import measure
from sft_jax.evaluation.methods import Changed, Method, Prompting, describe, parse_methods, solved_examples
from sft_jax.evaluation.requests import Generate, LogLikelihood
from sft_jax.options import FewShotOptions, RetrievalOptions
from sft_jax.preparation.retrieved import Retriever
from sft_jax.retrieval import PASSAGE_TEMPLATE, TEMPLATE
from tests.evaluation.asking import RECORDS, entry, evaluation_options, record, respondent

SYSTEM, USER, ANSWER = "system", "user", "assistant"


def turns(*said: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, text) for role, text in said)


def retrieval(corpus, **changes) -> RetrievalOptions:
    given = {
        "corpus": str(corpus),
        "row_template": "{text}",
        "id_column": "",
        "chunk_words": 150,
        "overlap_words": 0,
        "method": "bm25",
        "passages": 2,
        "template": TEMPLATE,
        "passage_template": PASSAGE_TEMPLATE,
    }
    return RetrievalOptions(**given | changes)


@pytest.fixture
def corpus(tmp_path):
    directory = tmp_path / "corpus"
    directory.mkdir()
    (directory / "cats.txt").write_text("A red cat sleeps.\n")
    (directory / "trees.txt").write_text("The tree is blue.\n")
    return directory


def changed(name: str, prompting: Prompting, positions: int = 10**6, needed=lambda request, name: 0) -> Changed:
    return Changed(parse_methods([name])[0], prompting, needed, positions)


SOLVED = turns((USER, "1+1?"), (ANSWER, "2")), turns((USER, "2+2?"), (ANSWER, "4"))
ASKED = Generate(turns((SYSTEM, "Count."), (USER, "red cat?")), 4)


def test_each_part_of_a_method_by_hand(corpus):
    prompting = Prompting("Be brief.", lambda question: SOLVED, False, Retriever(retrieval(corpus), None))
    passages = "Passages:\n\n[1] A red cat sleeps.\n\nQuestion: red cat?"
    solved = ((USER, "1+1?"), (ANSWER, "2"), (USER, "2+2?"), (ANSWER, "4"))
    expected = {
        "base": ((SYSTEM, "Count."), (USER, "red cat?")),
        "sft": ((SYSTEM, "Count."), (USER, "red cat?")),
        "prompted": ((SYSTEM, "Be brief."), (USER, "red cat?")),
        "few_shot": ((SYSTEM, "Count."), *solved, (USER, "red cat?")),
        "rag": ((SYSTEM, "Count."), (USER, passages)),
        "sft+rag+few_shot+prompted": ((SYSTEM, "Be brief."), *solved, (USER, passages)),
    }
    for name, said in expected.items():
        (request,) = changed(name, prompting)([ASKED], ["a:1"])
        assert request == Generate(turns(*said), 4), name
    judged = LogLikelihood(ASKED.prompt, ("a", "b"))
    (request,) = changed("prompted", prompting)([judged], ["a:1"])
    assert request == LogLikelihood(turns(*expected["prompted"]), ("a", "b"))


def test_an_instruction_takes_the_place_of_those_of_examples_too():
    example = turns((SYSTEM, "Say a number."), (USER, "1+1?"), (ANSWER, "2"))
    prompting = Prompting("Be brief.", lambda question: [example])
    (request,) = changed("prompted+few_shot", prompting)([ASKED], ["a:1"])
    expected = turns((SYSTEM, "Be brief."), (USER, "1+1?"), (ANSWER, "2"), (USER, "red cat?"))
    assert request.prompt == expected
    with pytest.raises(ValueError, match=r"a:1, method few_shot: example 0 has the system message 'Say a number.'"):
        changed("few_shot", prompting)([ASKED], ["a:1"])


def test_the_examples_that_stand_first_are_cut_and_then_the_last_passages(corpus):
    """Each message counts as many positions as it has characters."""
    prompting = Prompting("", lambda question: SOLVED, False, Retriever(retrieval(corpus), None))
    needed = lambda request, name: sum(len(message.content) for message in request.prompt)
    asked = Generate(turns((USER, "red tree?")), 4)
    one, two = "[1] A red cat sleeps.", "[2] The tree is blue."
    if "[1] The tree is blue." in changed("rag", prompting)([asked], ["a:1"])[0].prompt[0].content:
        one, two = "[1] The tree is blue.", "[2] A red cat sleeps."
    both, single = (f"Passages:\n\n{found}\n\nQuestion: red tree?" for found in (f"{one}\n\n{two}", one))
    solved = [(USER, "1+1?"), (ANSWER, "2"), (USER, "2+2?"), (ANSWER, "4")]
    steps = [[*solved, (USER, both)], [*solved[2:], (USER, both)], [(USER, both)], [(USER, single)]]
    steps.append([(USER, "red tree?")])
    sizes = [sum(len(text) for _, text in step) for step in steps]
    for positions in range(1, sizes[0] + 2):
        one_method = changed("few_shot+rag", prompting, positions, needed)
        (request,) = one_method([asked], ["a:1"])
        fitting = [step for step, size in zip(steps, sizes, strict=True) if size <= positions] or steps[-1:]
        assert request.prompt == turns(*fitting[0]), positions
        assert one_method.cut == (positions < sizes[0])
        assert ("were left out of 1 prompts" in " ".join(one_method.notes())) == (positions < sizes[0])


@pytest.mark.usefixtures("on_mesh")
def test_what_was_cut_is_counted_and_said(loaded):
    long = turns((USER, "a" * 200), (ANSWER, "b" * 200))
    asked = respondent(loaded)
    prompting = Prompting("", lambda question: [long, long, SOLVED[0]])
    method = Changed(Method("few_shot", ("few_shot",)), prompting, asked.positions_needed, 512)
    measured = measure(entry(), asked, method)
    assert measured.cut == 3
    assert "few_shot" not in measured.notes[0]
    assert measured.notes[0].startswith("Solved examples or passages were left out of 3 prompts")
    assert all([turn["content"] for turn in line["prompt"]][1:3] == ["b" * 200, "1+1?"] for line in measured.lines)
    plain = measure(entry(), asked, Changed(Method("base", ("base",)), Prompting(), asked.positions_needed, 512))
    assert plain.cut == 0
    assert not any("left out" in note for note in plain.notes)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "--methods: give at least one; parts of methods are base, sft, prompted, few_shot, rag"),
        (["lora"], "--methods=lora: there is no 'lora'; a method is one of base, sft"),
        (["sft+"], "--methods=sft+: there is no ''"),
        (["rag+rag"], "--methods=rag+rag: a part is given twice, or beside base"),
        (["base+rag"], "--methods=base+rag: a part is given twice, or beside base"),
        (["base", "sft+rag", "rag+sft"], "--methods: sft+rag, rag+sft are the same; give each once"),
        (["base", "base"], "--methods: base, base are the same"),
        (["sft@2"], "--methods=sft@2: '2' must be a number between 0 (base) and 1 (sft), as in sft@0.5"),
        (["sft@half+rag"], "--methods=sft@half+rag: 'half' must be a number between 0"),
        (["sft@0.5+sft"], "--methods=sft@0.5+sft: a part is given twice"),
        (["sft@0.50", "sft@0.5"], "--methods: sft@0.50, sft@0.5 are the same"),
    ],
)
def test_methods_that_there_are_not(names, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_methods(names)
    # As advised: parts joined by '+', each method once, rag alone for the base with passages.
    assert [method.name for method in parse_methods(["sft+rag", "rag", "base"])] == ["sft+rag", "rag", "base"]


def test_methods_in_the_order_given():
    assert parse_methods(["rag", "base", "sft+rag"]) == [
        Method("rag", ("rag",)),
        Method("base", ("base",)),
        Method("sft+rag", ("sft", "rag")),
    ]
    assert [method.is_tuned for method in parse_methods(["rag", "sft+rag", "sft"])] == [False, True, True]


def test_methods_with_weights_between():
    found = parse_methods(["base", "sft@0.25", "rag+sft@0.5", "sft"])
    assert [method.weights for method in found] == [0.0, 0.25, 0.5, 1.0]
    assert found[2].parts == ("rag", "sft")


TRAIN = [
    record(11, "red cat and tree", "1"),
    record(12, "red cat", "cat red"),  # which is measured
    record(13, "seven blue trees", "3"),
    record(14, "a red tree", "4"),
]


@pytest.mark.parametrize("choose", ["seed", "first", "nearest"])
def test_solved_examples_are_never_measured_questions(choose):
    for seed in range(10):
        solved = solved_examples(FewShotOptions("", 3, choose), TRAIN, RECORDS, seed)
        for question in ("red cat", "blue tree", "a red tree"):
            found = solved(turns((USER, question)))
            assert {example[0].content for example in found} == {TRAIN[i].conversation[0].content for i in (0, 2, 3)}
    with pytest.raises(
        ValueError, match="4 solved examples wanted, but only 3 of 4 rows ask what no held-out row asks"
    ):
        solved_examples(FewShotOptions("", 4, choose), TRAIN, RECORDS, 0)


def test_which_examples_are_chosen():
    first = solved_examples(FewShotOptions("", 2, "first"), TRAIN, RECORDS, 0)
    assert [one[-1].content for one in first(turns((USER, "seven")))] == ["1", "3"]
    nearest = solved_examples(FewShotOptions("", 2, "nearest"), TRAIN, RECORDS, 0)
    assert [one[-1].content for one in nearest(turns((USER, "seven blue")))] == ["1", "3"]  # the nearest stands last
    assert [one[-1].content for one in nearest(turns((USER, "a red tree")))] == ["1", "4"]
    drawn = [solved_examples(FewShotOptions("", 1, "seed"), TRAIN, RECORDS, seed) for seed in range(12)]
    answers = [solved(turns((USER, "x")))[0][-1].content for solved in drawn]
    again = solved_examples(FewShotOptions("", 1, "seed"), TRAIN, RECORDS, 0)(turns((USER, "y")))[0][-1].content
    assert again == answers[0]
    assert len(set(answers)) == 2  # the shorter half of three rows


def test_rows_without_answers_are_no_solved_examples():
    open_row = record(15, "x", "y")
    open_row = type(open_row)(open_row.id, type(open_row.example)(open_row.conversation[:1]), {})
    with pytest.raises(ValueError, match="rows:15 is no solved example: it must end with an answer"):
        solved_examples(FewShotOptions("", 1, "first"), [open_row], RECORDS, 0)


def test_a_changed_document_changes_the_prompt(corpus):
    """Nothing is kept of the document as it was."""
    cache = corpus.parent / "cache"
    asked = [Generate(turns((USER, "red cat?")), 4)]
    prompts = []
    for text in ("A red cat sleeps.", "A red cat eats."):
        (corpus / "cats.txt").write_text(text)
        prompting = Prompting(retriever=Retriever(retrieval(corpus), cache))
        prompts.append(changed("rag", prompting)(asked, ["a:1"])[0].prompt[0].content)
    assert prompts == [f"Passages:\n\n[1] A red cat {does}.\n\nQuestion: red cat?" for does in ("sleeps", "eats")]


def test_how_many_prompts_have_passages_is_said_and_none_is_refused(corpus):
    (corpus / "empty.txt").write_text("")
    (corpus / "copy.txt").write_text("A red cat sleeps.\n")
    method = changed("rag", Prompting(retriever=Retriever(retrieval(corpus), None)))
    method([ASKED, Generate(turns((USER, "zebra?")), 4)], ["a:1", "a:2"])
    (note,) = method.notes()
    assert note.startswith("Passages were found for 1 of 2 prompts, from 2 documents; 1 empty, left out: empty.txt; ")
    assert "1 of the same text as another, left out" in note
    with pytest.raises(ValueError, match=r"method rag: no passage of .*corpus was found for any of 1 prompts"):
        method([Generate(turns((USER, "zebra?")), 4)], ["a:2"])


@pytest.mark.parametrize("name", ["rag", "few_shot"])
def test_a_prompt_without_a_question_is_named(corpus, name):
    solved = solved_examples(FewShotOptions("", 1, "nearest"), TRAIN, RECORDS, 0)
    prompting = Prompting("", solved, True, Retriever(retrieval(corpus), None))
    with pytest.raises(ValueError, match=f"a:7, method {name}: there is no message of the user"):
        changed(name, prompting)([Generate(turns((SYSTEM, "Speak.")), 4)], ["a:7"])


def test_methods_in_words(corpus):
    options = evaluation_options(few_shot=FewShotOptions("", 2, "nearest"), retrieval=retrieval(corpus))
    words = {name: describe(parse_methods([name])[0], Prompting("Be brief."), options) for name in ("base", "sft+rag")}
    assert words == {"base": "the model as it is", "sft+rag": "the tuned weights, 2 passages by bm25"}
    assert describe(Method("x", ("prompted", "few_shot")), Prompting("Be brief."), options) == (
        "the instruction 'Be brief.', 2 solved examples (nearest)"
    )
