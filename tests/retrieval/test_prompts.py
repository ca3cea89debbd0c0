"""Passages in a conversation: where they stand, whatever they and the question hold."""

import pytest

from sft_jax.data.conversations import Message
from sft_jax.retrieval import PASSAGE_TEMPLATE, TEMPLATE, Passage, check_templates, query_of, with_passages

PASSAGES = [Passage("1", "a.md", "One {question} {x}", 2.0, 1), Passage("2", "b.md", "Two %s \\n", 1.0, 2)]
SYSTEM, ANSWER = Message("system", "Be brief."), Message("assistant", "Yes.")
QUESTION = Message("user", "Is {it} so? {passages}")


def test_passages_stand_in_the_last_question():
    conversation = (SYSTEM, Message("user", "Hi"), ANSWER, QUESTION, ANSWER)
    made = with_passages(conversation, PASSAGES, TEMPLATE, PASSAGE_TEMPLATE)
    assert made[:3] == conversation[:3]
    assert made[4:] == conversation[4:]
    assert made[3].content == (
        "Passages:\n\n[1] One {question} {x}\n\n[2] Two %s \\n\n\nQuestion: Is {it} so? {passages}"
    )
    assert query_of(conversation) == QUESTION.content


TEMPLATES = [
    ("{question}\n{passages}", "{document}: {text}", "Q\na.md: One {question} {x}\n\nb.md: Two %s \\n"),
    ("{{{passages}}} {{question}} {question}!", "{number}", None),
    ("{{{passages}}} {{question}} {question}!", "{text}", "{One {question} {x}\n\nTwo %s \\n} {question} Q!"),
]


@pytest.mark.parametrize(("template", "passage_template", "expected"), TEMPLATES)
def test_templates(template, passage_template, expected):
    fill = lambda: with_passages((Message("user", "Q"),), PASSAGES, template, passage_template)
    if expected is None:
        with pytest.raises(ValueError, match=r"passage_template='\{number\}': has \{text\} 0 times, expected it once"):
            fill()
    else:
        assert fill()[0].content == expected


def test_ranges_with_weights_of_their_own_stay_where_they_were():
    message = Message("user", "Is it so?", ranges=((3, 5, 0.5),))
    (made,) = with_passages((message,), PASSAGES)
    ((first, last, weight),) = made.ranges
    assert (made.content[first:last], weight) == ("it", 0.5)


def test_without_passages_the_conversation_is_what_it_was():
    assert with_passages((QUESTION, ANSWER), []) == (QUESTION, ANSWER)


def test_a_conversation_without_a_question_is_refused():
    for act in (query_of, lambda conversation: with_passages(conversation, PASSAGES)):
        with pytest.raises(ValueError, match="no message of the user"):
            act((SYSTEM, ANSWER))


REFUSED = [
    ("{question}", PASSAGE_TEMPLATE, r"^f\.template='\{question\}': has \{passages\} 0 times, expected it once"),
    ("{passages}", PASSAGE_TEMPLATE, r"has \{question\} 0 times"),
    ("{passages} {question} {question}", PASSAGE_TEMPLATE, r"has \{question\} 2 times"),
    ("{passages} {question} {document}", PASSAGE_TEMPLATE, r"expected \{passages\}, \{question\}; write \{\{ and \}\}"),
    ("{passages} {question", PASSAGE_TEMPLATE, r"^f\.template=.*; write \{\{ and \}\} for braces"),
    ("{passages!r} {question}", PASSAGE_TEMPLATE, "expected"),
    (TEMPLATE, "{text} {question}", r"^f\.passage_template=.* expected \{number\}, \{text\}, \{document\}"),
    (TEMPLATE, "{document}", r"has \{text\} 0 times"),
]


@pytest.mark.parametrize(("template", "passage_template", "message"), REFUSED)
def test_templates_that_would_lose_something_are_refused(template, passage_template, message):
    with pytest.raises(ValueError, match=message):
        check_templates(template, passage_template, "f.")
    with pytest.raises(ValueError, match=message.replace(r"^f\.", "^")):
        with_passages((QUESTION,), PASSAGES, template, passage_template)
