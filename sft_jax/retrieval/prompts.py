"""Passages put into the prompt: the last question of a conversation, with what was found for it.

The last step of retrieval. A template has its places in braces, `{{` and `}}` are braces; texts are put in as they are.
"""

import functools
import string
from collections.abc import Mapping, Sequence

from sft_jax.data.conversations import Conversation
from sft_jax.retrieval.index import Passage

TEMPLATE = "Passages:\n\n{passages}\n\nQuestion: {question}"
PASSAGE_TEMPLATE = "[{number}] {text}"

_PLACES = {"template": ("passages", "question"), "passage_template": ("number", "text", "document")}
_NEEDED = {"template": ("passages", "question"), "passage_template": ("text",)}
_BETWEEN = "\n\n"  # passages
_Pieces = tuple[tuple[str, str], ...]


def query_of(conversation: Conversation) -> str:
    """What is searched for: the last message of the user.

    Raises:
        ValueError: there is none.
    """
    return conversation[_last_question(conversation)].content


def with_passages(
    conversation: Conversation,
    passages: Sequence[Passage],
    template: str = TEMPLATE,
    passage_template: str = PASSAGE_TEMPLATE,
) -> Conversation:
    """The conversation with passages in its last message of the user; as it is where there are none.

    Args:
        conversation: with a message of the user.
        passages: in the order in which they are shown.
        template: of the message, with {passages} and {question} once each.
        passage_template: of a passage, with {text}, and perhaps {number}, from 1, and {document}, the document's id.

    Raises:
        ValueError: no message of the user, or a template that lacks what it needs; names it.
    """
    at = _last_question(conversation)
    before, after = _around_question(template)
    if not passages:
        return conversation
    pieces = _pieces(passage_template, "passage_template")
    shown = _BETWEEN.join(
        _filled(pieces, {"number": str(number), "text": passage.text, "document": passage.document_id})
        for number, passage in enumerate(passages, 1)
    )
    begin, end = (_filled(part, {"passages": shown}) for part in (before, after))
    message = conversation[at]
    moved = tuple((first + len(begin), last + len(begin), weight) for first, last, weight in message.ranges)
    message = message._replace(content=begin + message.content + end, ranges=moved)
    return (*conversation[:at], message, *conversation[at + 1 :])


def check_templates(template: str, passage_template: str, flags: str = "") -> None:
    """Checks both templates.

    Args:
        template: of the message.
        passage_template: of a passage.
        flags: what the flags that set them begin with, for errors.

    Raises:
        ValueError: a place that is missing, unknown, or there twice, or a single brace; names the template.
    """
    for name, text in (("template", template), ("passage_template", passage_template)):
        try:
            _pieces(text, name)
        except ValueError as error:
            raise ValueError(f"{flags}{error}") from error


def _last_question(conversation: Conversation) -> int:
    at = next((number for number in reversed(range(len(conversation))) if conversation[number].role == "user"), None)
    if at is None:
        raise ValueError("the conversation has no message of the user that passages could be found for")
    return at


def _around_question(template: str) -> tuple[_Pieces, _Pieces]:
    """The pieces of the template before and behind the question."""
    pieces = _pieces(template, "template")
    at = next(number for number, (_, place) in enumerate(pieces) if place == "question")
    return (*pieces[:at], (pieces[at][0], "")), pieces[at + 1 :]


def _filled(pieces: _Pieces, values: Mapping[str, str]) -> str:
    return "".join(literal + (values[place] if place else "") for literal, place in pieces)


@functools.lru_cache(maxsize=16)
def _pieces(template: str, name: str) -> _Pieces:
    """(text, place that follows it or empty)."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{name}={template!r}: {error}; write {{{{ and }}}} for braces") from error
    places = [place for _, place, _, _ in parsed if place is not None]
    known, needed = _PLACES[name], _NEEDED[name]
    if any(place not in known or form or conversion for _, place, form, conversion in parsed if place is not None):
        raise ValueError(
            f"{name}={template!r}: has {places}, expected {_listed(known)}; write {{{{ and }}}} for braces"
        )
    for place in needed:
        if places.count(place) != 1:
            raise ValueError(f"{name}={template!r}: has {{{place}}} {places.count(place)} times, expected it once")
    return tuple((literal, place or "") for literal, place, _, _ in parsed)


def _listed(places: Sequence[str]) -> str:
    return ", ".join(f"{{{place}}}" for place in places)
