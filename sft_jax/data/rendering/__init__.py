"""Rendering: an example as token ids, and for each token whether it is trained.

The step from records to tokenized examples, and the only place that decides what is trained: by the chat template, see
turns.py, and by the options of the config, see masking.py.
"""

import contextlib
import dataclasses
import datetime
import functools
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from sft_jax.data.conversations import (
    Chat,
    Conversation,
    Example,
    Labelled,
    Message,
    Preference,
    TokenExample,
    ToolCall,
)
from sft_jax.data.rendering.answers import Answer
from sft_jax.data.rendering.example_texts import ExampleText, ExampleTexts
from sft_jax.data.rendering.masking import Masking, lost_at_edges, token_weights
from sft_jax.data.rendering.named_templates import (
    DEFAULT,
    TemplateSources,
    chosen_template,
    templates_of,
    used_templates,
)
from sft_jax.data.rendering.outlines import shared_length
from sft_jax.data.rendering.pairs import ANSWERS, check_fits, conversations_of, joined, judged, named
from sft_jax.data.rendering.properties import template_properties
from sft_jax.data.rendering.rendered import ExampleError, RenderedExample, TokenIds
from sft_jax.data.rendering.special_tokens import Encoded, TextEncoder, content_text
from sft_jax.data.rendering.templates import ChatTemplate, Tools
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

__all__ = ["ConversationRenderer", "ExampleError", "Masking", "RenderedExample"]

_PROVEN_EXAMPLES = 64  # examples whose ids are compared with the plain tokenizer's at run time

_AT_EDGES = "tokens over an edge of what is trained are not trained"

Rendered = list[RenderedExample] | ExampleError


class ConversationRenderer:
    """Makes tokens and weights of examples with the chat template of the model.

    Where the template has {% generation %} blocks they are the trained text of the assistant. Where it has none, an
    answer is trained from where the generation prompt ends (that is where the model takes over at inference; the
    rendering up to there must be a prefix of the whole) up to and with its end-of-turn, the first special token the
    template puts after it. For ChatML that is "answer<|im_end|>" and not the newline behind it.

    Of named templates each example takes the one that transformers takes, see named_templates.py.

    A token is trained if all its characters are. Special tokens count where the template wrote them; in a message
    they are text. What the tokenizer itself begins sequences with stands at the beginning exactly once.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: TemplateSources | None = None,
        masking: Masking | None = None,
        now: datetime.datetime | None = None,
    ):
        """Binds tokenizer, template and what is trained.

        Args:
            tokenizer: a fast tokenizer.
            chat_template: Jinja source, or several by name; None takes the tokenizer's own.
            masking: what is trained; None: every turn of the assistant.
            now: the time for templates that write one; None: that of this call. It is the same for all examples.

        Raises:
            ValueError: no chat template, one that is not valid Jinja, or a tokenizer without character offsets.
        """
        self.tokenizer, self.masking = tokenizer, masking or Masking()
        self.now = now or datetime.datetime.now()
        self._encoder = encoder = TextEncoder(tokenizer)
        self._sources = templates_of(tokenizer) if chat_template is None else chat_template
        special_tokens = dict(tokenizer.special_tokens_map)
        self._makers = {
            name: ExampleTexts(
                ChatTemplate(source, special_tokens, encoder.text_pattern, self.now, encoder.beginning),
                encoder,
                self.masking,
                tokenizer.eos_token or "",
            )
            for name, source in used_templates(self._sources).items()
        }
        self._to_prove = _PROVEN_EXAMPLES

    def __reduce__(self) -> tuple:
        """How it is sent to another process."""
        return ConversationRenderer, (self.tokenizer, self._sources, self.masking, self.now)

    @property
    def chat_template(self) -> TemplateSources:
        """The Jinja source, or several by name."""
        return self._sources

    @property
    def takes_no_tools(self) -> bool:
        """Whether there is a chat template for conversations without tools."""
        return DEFAULT in self._makers

    def template_for(self, tools: Tools = ()) -> ChatTemplate:
        """The chat template of conversations with these tools.

        Raises:
            ExampleError: there is none.
        """
        return self._maker(tools).template

    def render(self, conversation: Conversation, tools: Tools = ()) -> RenderedExample:
        """Tokens and weights of a conversation that gives one rendered example.

        Raises:
            ExampleError: it cannot be trained on, or gives several rendered examples; says why.
            RuntimeError: ids differ from the plain tokenizer's.
        """
        (rendered,) = self.render_many([Chat(tuple(conversation), tuple(tools))])
        if isinstance(rendered, ExampleError):
            raise rendered
        if len(rendered) > 1:
            count = len(rendered)
            raise ExampleError("the conversation makes several examples", f"{count}; render_many gives all of them")
        return rendered[0]

    def render_many(self, examples: Sequence[Example], max_tokens: int = 0) -> list[Rendered]:
        """Each of many examples as rendered examples (faster than one by one), or an error in their place.

        Args:
            examples: what is trained on.
            max_tokens: the longest a rendered example may be; `Masking.too_long` says what becomes of longer ones. 0:
                any length.

        Raises:
            RuntimeError: ids differ from the plain tokenizer's.
        """
        prepared = [self._texts_of(example) for example in examples]
        encoded = self._encode([text for texts in prepared if isinstance(texts, list) for text in texts])
        return [
            self._rendered_examples(example, texts, encoded, max_tokens)
            for example, texts in zip(examples, prepared, strict=True)
        ]

    def render_prompt(self, conversation: Conversation, tools: Tools = ()) -> TokenIds:
        """Ids up to and with the generation prompt, for a conversation whose answer is to be generated.

        Raises:
            ExampleError: the conversation ends with an answer, or the template refuses it.
        """
        if conversation and conversation[-1].role == "assistant":
            raise ExampleError("a prompt must not end with an assistant's turn", "leave the answer out")
        rendered = self.template_for(tools).render_with_parts(conversation, tools, generation_prompt=True)
        nothing, nobody = np.zeros(len(rendered.text), np.float32), np.full(len(rendered.text), -1, np.int32)
        (encoded,) = self._encode([ExampleText(rendered.text, rendered.template_spans(), nothing, nobody, ())])
        if isinstance(encoded, ExampleError):
            raise encoded
        return encoded.ids

    def answer_text(self, conversation: Conversation, tools: Tools = ()) -> str:
        """The last answer of a conversation as the model is to write it, thinking and calls included, without its end.

        Raises:
            ExampleError: the template refuses the conversation, or changes what it says.
        """
        return self._maker(tools).answer_text(conversation, tools)

    def content_text(self, ids: Iterable[int]) -> str:
        """What a model wrote, without special tokens but for those that count in contents."""
        return content_text(self.tokenizer, ids)

    def written_text(self, ids: Iterable[int], tools: Tools = ()) -> str:
        """What a model wrote, with the special tokens that the template puts around thinking and calls."""
        literals = self._maker(tools).answer_format.literals()
        marks = {text[start:end] for text in literals for start, end in self._encoder.find_special(text)}
        return content_text(self.tokenizer, ids, tuple(sorted(marks)))

    def read_answer(self, text: str, tools: Tools = (), may_call: bool = False, read_calls: bool = True) -> Answer:
        """The parts of an answer by the rules of the template.

        Args:
            text: of the answer, without its end.
            tools: of the conversation.
            may_call: there may be calls although no tools are given.
            read_calls: False leaves calls in the content, as they are written.
        """
        return self._maker(tools).answer_format.read(text, bool(tools) or may_call, read_calls)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a generated answer: the template's end-of-turn, and the tokenizer's eos token.

        An answer that others follow may end otherwise than the last one, and so may calls. What ends earlier answers
        ends none where it stands within one, like <|end|> behind a thought of gpt-oss.

        Raises:
            ValueError: there is neither.
        """
        found = set()
        question, call = Message("user", "a"), ToolCall("f", {"a": "b"}, "abcdefghi")
        for maker in self._makers.values():
            try:
                found.add(maker.end_of_answer((question, Message("assistant", "b"))))
            except ExampleError as error:
                if self.tokenizer.eos_token_id is None:
                    raise ValueError(f"Nothing ends an answer: {error}, and the tokenizer has no eos token.") from error
            with contextlib.suppress(ExampleError):  # the template takes one question only
                turns = (question, Message("assistant", "b"), question, Message("assistant", "c"))
                earlier = maker.end_of_answer(turns, 1)
                if not any(earlier in literal for literal in maker.answer_format.literals()):
                    found.add(earlier)
            with contextlib.suppress(ExampleError):  # the template has no calls
                found.add(maker.end_of_answer((question, Message("assistant", "", tool_calls=(call,)))))
        ids = {self._encoder.token_id(text) for text in found}
        if self.tokenizer.eos_token_id is not None:
            ids.add(int(self.tokenizer.eos_token_id))
        return tuple(sorted(ids))

    @functools.cached_property
    def turn_headers(self) -> tuple[str, str]:
        """What the template writes before what a user says, and before an answer; empty where that is not known.

        Of two turns each, what both have: the first comes after the beginning, the last may be shown otherwise. The end
        of the turn before is no part of it.
        """
        maker = next(iter(self._makers.values()))
        turns = [Message(role, mark) for role, mark in zip(("user", "assistant") * 2, "abcd", strict=True)]
        try:
            rendered = maker.template.render_with_parts(turns, ())
            end = "" if maker.next_turn_ends else maker.end_of_answer(turns, 1)
        except ExampleError:
            return "", ""
        if [part.message for part in rendered.parts] != [0, 1, 2, 3]:
            return "", ""
        starts = [0, *(part.end for part in rendered.parts)]
        gaps = [rendered.text[start : part.start] for start, part in zip(starts, rendered.parts, strict=False)]
        behind_end = lambda gap: gap.rpartition(end)[2] if end else gap
        first, again = gaps[0].removeprefix(self._encoder.beginning), behind_end(gaps[2])
        user = first[len(first) - shared_length(first[::-1], again[::-1]) :]
        answer = gaps[1][: shared_length(gaps[1], gaps[3])]
        return user.strip(), behind_end(answer).strip()

    def template_properties(self) -> dict[str, dict[str, str]]:
        """What each of the chat templates does, by its name, see properties.py."""
        return {name: template_properties(maker.template, self._encoder) for name, maker in self._makers.items()}

    def _texts_of(self, example: Example) -> list[ExampleText] | RenderedExample | ExampleError:
        try:
            if isinstance(example, TokenExample):
                return self._token_example(example)
            if isinstance(example, Preference):
                return self._texts_of_pair(example)
            return self._maker_of(example).texts_of(example)
        except ExampleError as error:
            return error

    def _texts_of_pair(self, pair: Preference) -> list[ExampleText]:
        """The texts of both conversations."""
        texts = []
        for name, conversation in zip(ANSWERS, conversations_of(pair), strict=True):
            with named(name):
                found = self._maker_of(conversation).texts_of(conversation)
                if len(found) > 1:
                    raise ExampleError("an answer of a pair makes several examples", f"{len(found)}, of its turns")
            texts += found
        return texts

    def _maker(self, tools: Tools) -> ExampleTexts:
        return self._makers[chosen_template(self._makers, tools)]

    def _maker_of(self, example: Example) -> ExampleTexts:
        """The maker of texts with the template of an example; any of them for an example that needs no template."""
        return self._maker(example.tools) if isinstance(example, Chat) else next(iter(self._makers.values()))

    def _encode(self, texts: Sequence[ExampleText]) -> Iterable[Encoded | ExampleError]:
        """Encodes texts and compares the first of them with the plain tokenizer."""
        encoded = self._encoder.encode_many([text.text for text in texts], [text.template_spans for text in texts])
        for text, found in zip(texts, encoded, strict=True):
            if self._to_prove and not isinstance(found, ExampleError):
                self._prove(text, found)
        return iter(encoded)

    def _rendered_examples(
        self,
        example: Example,
        texts: list[ExampleText] | RenderedExample | ExampleError,
        encoded: Iterable[Encoded | ExampleError],
        max_tokens: int,
    ) -> Rendered:
        """An example as rendered examples, none of them too long; an error of one of them is that of the example."""
        if isinstance(texts, ExampleError):
            return texts
        rendered: list[RenderedExample] = []
        found = [] if isinstance(texts, RenderedExample) else list(islice(encoded, len(texts)))
        try:
            if isinstance(texts, RenderedExample):
                return self._fitting(example, None, texts, max_tokens)
            if isinstance(example, Preference):
                return [self._pair(example, texts, found, max_tokens)]
            if isinstance(example, Labelled):
                return [self._judged(example, texts, found, max_tokens)]
            for text, one in zip(texts, found, strict=True):
                rendered += self._fitting(example, text, _rendered(text, one), max_tokens)
        except ExampleError as error:
            if error.tokens:  # what would keep the example is room for the longest
                error.tokens = max([error.tokens, *(len(one.ids) for one in found if isinstance(one, Encoded))])
            return error
        return rendered

    def _pair(
        self, pair: Preference, texts: list[ExampleText], found: list[Encoded | ExampleError], max_tokens: int
    ) -> RenderedExample:
        """Both answers as one example, if it is short enough."""
        both = []
        for name, text, one in zip(ANSWERS, texts, found, strict=True):
            with named(name):
                both.append(_rendered(text, one))
                if not self.content_text(both[-1].tokens[both[-1].weights > 0]).strip():
                    raise ExampleError("an answer of a pair is empty", "nothing but its end is trained")
        made = joined(*both, len(pair.prompt))
        check_fits(made, max_tokens, stops=self.masking.too_long == "error")
        return made

    def _judged(
        self, example: Labelled, texts: list[ExampleText], found: list[Encoded | ExampleError], max_tokens: int
    ) -> RenderedExample:
        """An answer that was judged by itself, if it is short enough."""
        if len(texts) > 1:
            raise ExampleError("an answer makes several examples", f"{len(texts)}, of its turns")
        rendered = _rendered(texts[0], found[0])
        if not self.content_text(rendered.tokens[rendered.weights > 0]).strip():
            raise ExampleError("an answer is empty", "nothing but its end is trained")
        made = judged(rendered, example.desirable)
        check_fits(made, max_tokens, stops=self.masking.too_long == "error")
        return made

    def _fitting(
        self, example: Example, text: ExampleText | None, rendered: RenderedExample, max_tokens: int
    ) -> list[RenderedExample]:
        """The rendered example if it is short enough; else what `Masking.too_long` makes of it."""
        if not max_tokens or len(rendered.tokens) <= max_tokens:
            return [rendered]
        size = len(rendered.tokens)
        reason, detail = f"longer than {max_tokens} tokens", f"{size} tokens"
        if self.masking.too_long == "truncate_right":
            return [_cut(rendered, max_tokens, reason)]
        if self.masking.too_long == "split":
            if isinstance(example, Chat):
                raise ExampleError(reason, f"{detail}; a conversation is not split", tokens=size)
            return _split(rendered, max_tokens, reason)
        if self.masking.too_long == "truncate_left":
            if text is None or not text.numbers:
                raise ExampleError(reason, f"{detail}, and no turns that could be left out", tokens=size)
            return self._without_history(example, text, rendered, max_tokens)
        if self.masking.too_long == "error":
            raise ExampleError(reason, f"{detail}; --config.data.masking.too_long says what becomes of it", stops=True)
        raise ExampleError(reason, detail, tokens=size)

    def _without_history(
        self, chat: Chat, text: ExampleText, rendered: RenderedExample, max_tokens: int
    ) -> list[RenderedExample]:
        """The example without its oldest turns, as few as make it short enough, rendered and proven anew."""
        reason, size = f"longer than {max_tokens} tokens", len(rendered.tokens)
        for units in range(1, len(text.numbers) + 1):
            try:
                texts = self._maker(chat.tools).without_oldest(chat, text, units)
            except ExampleError as error:
                raise ExampleError(reason, f"{size} tokens; without its oldest turns: {error}", tokens=size) from error
            shorter = [_rendered(one, found) for one, found in zip(texts, self._encode(texts), strict=True)]
            if max(len(one.tokens) for one in shorter) <= max_tokens:
                return [
                    dataclasses.replace(one, changed=f"{reason}, the oldest turns are left out: {one.changed}")
                    for one in shorter
                ]
        raise ExampleError(reason, f"{size} tokens, and no turns that could be left out", tokens=size)

    def _token_example(self, example: TokenExample) -> RenderedExample:
        """An example that came as ids, checked."""
        tokens, weights = np.asarray(example.tokens, np.int64), np.asarray(example.weights, np.float32).copy()
        if tokens.ndim != 1 or tokens.shape != weights.shape or not len(tokens):
            raise ExampleError("ids and weights are not of one length", f"{len(tokens)} ids, {len(weights)} weights")
        if tokens.min() < 0 or tokens.max() >= len(self.tokenizer):
            found = f"{tokens.min()} to {tokens.max()}, the tokenizer has {len(self.tokenizer)}"
            raise ExampleError("an id is not one of the tokenizer's", found)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ExampleError("a weight is negative or not finite", "among the weights of ids")
        weights[0] = 0
        if not weights.any():
            raise ExampleError("nothing to train on", "every token has the weight 0")
        nobody = np.full(len(tokens), -1, np.int32)
        offsets = np.zeros((len(tokens), 2), np.int32)
        return RenderedExample(tokens.astype(np.int32), weights, "", offsets, nobody, ())

    def _prove(self, text: ExampleText, encoded: Encoded) -> None:
        """Compares the first examples with the plain tokenizer; those that spell special tokens differ on purpose."""
        if any(self._encoder.text_pattern.search(content) for content in text.contents()):
            return
        self._to_prove -= 1
        plain = self.tokenizer(text.text, add_special_tokens=False)["input_ids"]
        if encoded.ids.tolist() != plain:
            raise RuntimeError(
                f"The ids of an example differ from those of {type(self.tokenizer).__name__}: got "
                f"{encoded.ids.tolist()}, the tokenizer gives {plain} for {text.text!r}. This tokenizer is "
                "not supported."
            )


def _rendered(text: ExampleText, encoded: Encoded | ExampleError) -> RenderedExample:
    """A text and its encoding as a rendered example."""
    if isinstance(encoded, ExampleError):
        raise encoded
    weights = token_weights(encoded.offsets, text.chars)
    if not weights.any():
        raise ExampleError("nothing to train on", "no token lies in what is trained")
    owners = text.owners[np.minimum(encoded.offsets[:, 0], len(text.owners) - 1)]
    lost = lost_at_edges(text.text, encoded.offsets, text.chars, weights)
    edges = f"{_AT_EDGES}: {len(lost)}, the first {lost[0]!r}" if lost else ""
    return RenderedExample(encoded.ids, weights, text.text, encoded.offsets, owners, text.roles, text.changed or edges)


def _cut(rendered: RenderedExample, max_tokens: int, reason: str) -> RenderedExample:
    """The beginning of an example. What is cut off is lost: nothing takes the place of its end-of-turn."""
    if not rendered.weights[:max_tokens].any():
        detail = f"{len(rendered.tokens)} tokens, and the first {max_tokens} hold nothing that is trained"
        raise ExampleError(reason, detail, tokens=len(rendered.tokens))
    changed = f"{reason}, the end is cut off: {len(rendered.tokens) - max_tokens} of {len(rendered.tokens)} tokens"
    return _piece(rendered, 0, max_tokens, changed)


def _split(rendered: RenderedExample, max_tokens: int, reason: str) -> list[RenderedExample]:
    """An example as several, each beginning with the last token of the one before, so that every token is a target
    once.

    Pieces in which nothing is trained are left out.
    """
    starts = range(0, len(rendered.tokens) - 1, max_tokens - 1)
    pieces = [
        _piece(rendered, start, start + max_tokens, f"{reason}, split: piece {number} of {len(starts)}")
        for number, start in enumerate(starts, 1)
    ]
    return [piece for piece in pieces if piece.weights.any()]


def _piece(rendered: RenderedExample, start: int, end: int, changed: str) -> RenderedExample:
    """The tokens [start, end) of an example as an example of its own, whose first token is no target."""
    offsets, weights = rendered.offsets[start:end], rendered.weights[start:end].copy()
    weights[0] = 0
    first = int(offsets[0, 0])
    return dataclasses.replace(
        rendered,
        tokens=rendered.tokens[start:end],
        weights=weights,
        text=rendered.text[first : int(offsets[-1, 1])],
        offsets=offsets - first,
        messages=rendered.messages[start:end],
        changed=changed,
    )
