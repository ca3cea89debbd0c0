"""Chat templates: what a template makes of a conversation, and which characters of the result came from where.

Serves rendering.py. A template is a program, so nothing is assumed about it: it is run once with the contents and once
with marks in their place, and the two results must agree byte for byte.
"""

import contextlib
import dataclasses
import functools
import re

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

from sft_jax.data.conversations import Conversation, Message

Span = tuple[int, int]  # characters [start, end) of a rendered text

_GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARK = re.compile("\ue0d0([0-9]+)\ue0d1")  # private use characters: no template strips, splits at or escapes them


class RowError(ValueError):
    """A conversation that cannot be trained on.

    Attributes:
        reason: the same for all rows with this fault.
        detail: what is special to this row.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class TemplateText:
    """A rendered conversation.

    Attributes:
        text: what the template made of it.
        contents: (message index, span) of each content, in the order of the text; all other characters are the
            template's.
        generation: the spans of {% generation %} blocks (empty if the template has none).
    """

    text: str
    contents: tuple[tuple[int, Span], ...]
    generation: tuple[Span, ...]


class ChatTemplate:
    """A Jinja chat template with the special tokens it may name, rendered as transformers does."""

    def __init__(self, source: str, special_tokens: dict):
        """Compiles the template.

        Raises:
            ValueError: it is not valid Jinja.
        """
        if _MARK.search(source) or "\ue0d0" in source:
            raise ValueError("The chat template holds the private use character U+E0D0, which is needed as a mark.")
        self.source = source
        self.marks_generation = bool(_GENERATION_MARK.search(source))
        self._special_tokens = special_tokens
        # A template is a function of roles alone once its contents are marks: one skeleton serves many rows.
        self._skeleton = functools.lru_cache(maxsize=4096)(self._find_skeleton)
        try:
            with contextlib.suppress(RowError):  # it may refuse this conversation; what matters is that it compiles
                self.render((Message("user", "a"),), False)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"The chat template is not valid Jinja (line {error.lineno}): {error}") from error

    def render(self, conversation: Conversation, generation_prompt: bool) -> str:
        """The text, as `tokenizer.apply_chat_template(..., tokenize=False)` gives it.

        Raises:
            RowError: the template refuses the conversation.
        """
        return self._run(conversation, generation_prompt, track=False)[0]

    def render_with_spans(self, conversation: Conversation, generation_prompt: bool = False) -> TemplateText:
        """The text and where in it the contents stand.

        Raises:
            RowError: the template refuses the conversation, changes a content (other than to strip it), or leaves one
                out.
        """
        text, generation = self._run(conversation, generation_prompt, self.marks_generation and not generation_prompt)
        roles = tuple(message.role for message in conversation)
        contents = _match(text, self._skeleton(roles, generation_prompt), conversation)
        if contents is None:  # a template may name the date, which may have changed since
            self._skeleton.cache_clear()
            contents = _match(text, self._skeleton(roles, generation_prompt), conversation)
        if contents is None:
            raise RowError(
                "the chat template changes what a message says",
                "its text is not the template's own text with the contents put in, so it cannot be told which "
                "part is the answer; adapt the template or the row",
            )
        missing = sorted(set(range(len(conversation))) - {index for index, _ in contents})
        if missing:
            raise RowError(
                "the chat template leaves out a message",
                ", ".join(f"message {i} ({conversation[i].role})" for i in missing),
            )
        return TemplateText(text, contents, generation)

    def text_after_last(self, roles: tuple[str, ...]) -> str:
        """What the template writes after the last message of a conversation of these roles.

        Raises:
            RowError: the template refuses such a conversation.
        """
        return self._skeleton(roles, False)[-1]

    def _find_skeleton(self, roles: tuple[str, ...], generation_prompt: bool) -> list[str]:
        """Template text and message numbers in turn: [text, "0", text, "1", text]."""
        marked = tuple(Message(role, f"\ue0d0{i}\ue0d1") for i, role in enumerate(roles))
        return _MARK.split(self.render(marked, generation_prompt))

    def _run(self, conversation: Conversation, generation_prompt: bool, track: bool) -> tuple[str, tuple[Span, ...]]:
        if not conversation:
            raise RowError("the conversation is empty")
        messages = [{"role": message.role, "content": message.content} for message in conversation]
        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                chat_template=self.source,
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=track,
                **self._special_tokens,
            )
        except jinja2.TemplateSyntaxError:
            raise
        except (jinja2.TemplateError, TypeError) as error:
            raise RowError("the chat template refuses the conversation", str(error)) from error
        return texts[0], tuple(spans[0]) if track else ()


def chat_template_of(tokenizer: transformers.PreTrainedTokenizerBase, source: str | None) -> ChatTemplate:
    """The template given, else the tokenizer's own.

    Raises:
        ValueError: there is none, or it is not valid Jinja.
    """
    if source is None:
        if not tokenizer.chat_template:
            raise ValueError(
                "The tokenizer has no chat template. Give one: without it nobody knows how to address the model."
            )
        source = tokenizer.get_chat_template()
    return ChatTemplate(source, dict(tokenizer.special_tokens_map))


def _match(text: str, skeleton: list[str], conversation: Conversation) -> tuple[tuple[int, Span], ...] | None:
    """Spans of the contents if `text` is the skeleton with the contents, or their stripped forms, put in; else None."""
    if not text.startswith(skeleton[0]):
        return None
    at, contents = len(skeleton[0]), []
    for number, literal in zip(skeleton[1::2], skeleton[2::2], strict=True):
        content = conversation[int(number)].content
        for form in (content, content.strip(), content.rstrip(), content.lstrip()):
            if text.startswith(form + literal, at):
                break
        else:
            return None
        contents.append((int(number), (at, at + len(form))))
        at += len(form) + len(literal)
    return tuple(contents) if at == len(text) else None
