"""Rendering: an example as token ids, and for each token whether it is trained.

The step from records to tokenized rows, and the only place where it is decided what is trained. The decision is read
off the chat template, see turns.py, and from the choices of the config, see masking.py.
"""

import contextlib
import dataclasses
import datetime
import functools
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from sft_jax.data.conversations import Chat, Conversation, Example, Message, TokenExample, ToolCall
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
from sft_jax.data.rendering.rendered import ExampleError, RenderedExample, TokenIds
from sft_jax.data.rendering.special_tokens import Encoded, TextEncoder, content_text
from sft_jax.data.rendering.templates import ChatTemplate, Tools
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

__all__ = ["ConversationRenderer", "ExampleError", "Masking", "RenderedExample"]

_PROVEN_ROWS = 64  # rows whose ids are compared with the plain tokenizer's at run time

_AT_EDGES = "tokens over an edge of what is trained are not trained"

Rows = list[RenderedExample] | ExampleError


class ConversationRenderer:
    """Turns examples into tokens and weights with the chat template of the model.

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
            now: the time for templates that write one; None: that of this call. It stays the same for all rows.

        Raises:
            ValueError: no chat template, one that is not valid Jinja, or a tokenizer without character offsets.
        """
        self.tokenizer, self.masking = tokenizer, masking or Masking()
        self.now = now or datetime.datetime.now()
        self._encoder = encoder = TextEncoder(tokenizer)
        self._sources = templates_of(tokenizer) if chat_template is None else chat_template
        special_tokens = dict(tokenizer.special_tokens_map)
        self._planners = {
            name: ExampleTexts(
                ChatTemplate(source, special_tokens, encoder.text_pattern, self.now, encoder.beginning),
                encoder,
                self.masking,
                tokenizer.eos_token or "",
            )
            for name, source in used_templates(self._sources).items()
        }
        self._to_prove = _PROVEN_ROWS

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
        return DEFAULT in self._planners

    def template_for(self, tools: Tools = ()) -> ChatTemplate:
        """The chat template of conversations with these tools.

        Raises:
            ExampleError: there is none.
        """
        return self._planner(tools).template

    def render(self, conversation: Conversation, tools: Tools = ()) -> RenderedExample:
        """Tokens and weights of one conversation that makes one row.

        Raises:
            ExampleError: it cannot be trained on, or makes several rows; says why.
            RuntimeError: ids differ from the plain tokenizer's.
        """
        (rows,) = self.render_many([Chat(tuple(conversation), tuple(tools))])
        if isinstance(rows, ExampleError):
            raise rows
        if len(rows) > 1:
            raise ExampleError("the conversation makes several rows", f"{len(rows)}; render_many gives all of them")
        return rows[0]

    def render_many(self, examples: Sequence[Example], max_tokens: int = 0) -> list[Rows]:
        """The rows of each of many examples (faster than one by one), or an error in their place.

        Args:
            examples: what is trained on.
            max_tokens: the longest a row may be; `Masking.too_long` says what becomes of longer ones. 0: any length.

        Raises:
            RuntimeError: ids differ from the plain tokenizer's.
        """
        planned = [self._plans(example) for example in examples]
        encoded = self._encode([plan for plans in planned if isinstance(plans, list) for plan in plans])
        return [
            self._rendered_examples(example, plans, encoded, max_tokens)
            for example, plans in zip(examples, planned, strict=True)
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
        return self._planner(tools).answer_text(conversation, tools)

    def written_text(self, ids: Iterable[int], tools: Tools = ()) -> str:
        """What a model wrote, with the special tokens that the template puts around thinking and calls."""
        literals = self._planner(tools).answer_format.literals()
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
        return self._planner(tools).answer_format.read(text, bool(tools) or may_call, read_calls)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a generated answer: the template's end-of-turn, also of calls, and the tokenizer's eos token.

        Raises:
            ValueError: there is neither.
        """
        found = set()
        question, call = Message("user", "a"), ToolCall("f", {"a": "b"}, "abcdefghi")
        for planner in self._planners.values():
            try:
                found.add(planner.end_of_answer((question, Message("assistant", "b"))))
            except ExampleError as error:
                if self.tokenizer.eos_token_id is None:
                    raise ValueError(f"Nothing ends an answer: {error}, and the tokenizer has no eos token.") from error
            with contextlib.suppress(ExampleError):  # the template has no calls
                found.add(planner.end_of_answer((question, Message("assistant", "", tool_calls=(call,)))))
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
        planner = next(iter(self._planners.values()))
        turns = [Message(role, mark) for role, mark in zip(("user", "assistant") * 2, "abcd", strict=True)]
        try:
            rendered = planner.template.render_with_parts(turns, ())
            end = planner.end_of_answer(turns)
        except ExampleError:
            return "", ""
        if [part.message for part in rendered.parts] != [0, 1, 2, 3]:
            return "", ""
        starts = [0, *(part.end for part in rendered.parts)]
        gaps = [rendered.text[start : part.start] for start, part in zip(starts, rendered.parts, strict=False)]
        first, again = gaps[0].removeprefix(self._encoder.beginning), gaps[2].rpartition(end)[2]
        user = first[len(first) - shared_length(first[::-1], again[::-1]) :]
        answer = gaps[1][: shared_length(gaps[1], gaps[3])]
        return user.strip(), answer.rpartition(end)[2].strip()

    def _plans(self, example: Example) -> list[ExampleText] | RenderedExample | ExampleError:
        try:
            if isinstance(example, TokenExample):
                return self._token_example(example)
            return self._planner_of(example).plans(example)
        except ExampleError as error:
            return error

    def _planner(self, tools: Tools) -> ExampleTexts:
        return self._planners[chosen_template(self._planners, tools)]

    def _planner_of(self, example: Example) -> ExampleTexts:
        """The planner with the template of an example; any for one that no template touches."""
        return self._planner(example.tools) if isinstance(example, Chat) else next(iter(self._planners.values()))

    def _encode(self, plans: Sequence[ExampleText]) -> Iterable[Encoded | ExampleError]:
        """Encodes texts and compares the first of them with the plain tokenizer."""
        encoded = self._encoder.encode_many([plan.text for plan in plans], [plan.template_spans for plan in plans])
        for plan, row in zip(plans, encoded, strict=True):
            if self._to_prove and not isinstance(row, ExampleError):
                self._prove(plan, row)
        return iter(encoded)

    def _rendered_examples(
        self,
        example: Example,
        plans: list[ExampleText] | RenderedExample | ExampleError,
        encoded: Iterable[Encoded | ExampleError],
        max_tokens: int,
    ) -> Rows:
        """The rows of an example, none of them too long; an error of one of them is that of the example."""
        if isinstance(plans, ExampleError):
            return plans
        rows: list[RenderedExample] = []
        found = [] if isinstance(plans, RenderedExample) else list(islice(encoded, len(plans)))
        try:
            if isinstance(plans, RenderedExample):
                return self._fitting(example, None, plans, max_tokens)
            for plan, row in zip(plans, found, strict=True):
                rows += self._fitting(example, plan, _row(plan, row), max_tokens)
        except ExampleError as error:
            if error.tokens:  # what would keep the example is room for its longest row
                error.tokens = max([error.tokens, *(len(row.ids) for row in found if isinstance(row, Encoded))])
            return error
        return rows

    def _fitting(
        self, example: Example, plan: ExampleText | None, row: RenderedExample, max_tokens: int
    ) -> list[RenderedExample]:
        """The row if it is short enough; else what the config makes of it."""
        if not max_tokens or len(row.tokens) <= max_tokens:
            return [row]
        size = len(row.tokens)
        reason, detail = f"longer than {max_tokens} tokens", f"{size} tokens"
        if self.masking.too_long == "truncate_right":
            return [_cut(row, max_tokens, reason)]
        if self.masking.too_long == "split":
            if isinstance(example, Chat):
                raise ExampleError(reason, f"{detail}; a conversation is not split", tokens=size)
            return _split(row, max_tokens, reason)
        if self.masking.too_long == "truncate_left":
            if plan is None or not plan.numbers:
                raise ExampleError(reason, f"{detail}, and no turns that could be left out", tokens=size)
            return self._without_history(example, plan, row, max_tokens)
        if self.masking.too_long == "error":
            raise ExampleError(reason, f"{detail}; --config.data.masking.too_long says what becomes of it", stops=True)
        raise ExampleError(reason, detail, tokens=size)

    def _without_history(
        self, chat: Chat, plan: ExampleText, row: RenderedExample, max_tokens: int
    ) -> list[RenderedExample]:
        """The row without as many of its oldest turns as it takes, rendered and proven anew."""
        reason, size = f"longer than {max_tokens} tokens", len(row.tokens)
        for units in range(1, len(plan.numbers) + 1):
            try:
                plans = self._planner(chat.tools).without_oldest(chat, plan, units)
            except ExampleError as error:
                raise ExampleError(reason, f"{size} tokens; without its oldest turns: {error}", tokens=size) from error
            rows = [_row(one, found) for one, found in zip(plans, self._encode(plans), strict=True)]
            if max(len(one.tokens) for one in rows) <= max_tokens:
                return [
                    dataclasses.replace(one, changed=f"{reason}, the oldest turns are left out: {one.changed}")
                    for one in rows
                ]
        raise ExampleError(reason, f"{size} tokens, and no turns that could be left out", tokens=size)

    def _token_example(self, example: TokenExample) -> RenderedExample:
        """A row that came as ids, checked."""
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

    def _prove(self, plan: ExampleText, encoded: Encoded) -> None:
        """Compares the first rows with the plain tokenizer; rows that spell special tokens differ on purpose."""
        if any(self._encoder.text_pattern.search(text) for text in plan.contents()):
            return
        self._to_prove -= 1
        plain = self.tokenizer(plan.text, add_special_tokens=False)["input_ids"]
        if encoded.ids.tolist() != plain:
            raise RuntimeError(
                f"The ids of a row differ from those of {type(self.tokenizer).__name__}: got {encoded.ids.tolist()}, "
                f"the tokenizer gives {plain} for {plan.text!r}. This tokenizer is not supported."
            )


def _row(plan: ExampleText, encoded: Encoded | ExampleError) -> RenderedExample:
    """The row of a plan."""
    if isinstance(encoded, ExampleError):
        raise encoded
    weights = token_weights(encoded.offsets, plan.chars)
    if not weights.any():
        raise ExampleError("nothing to train on", "no token lies in what is trained")
    owners = plan.owners[np.minimum(encoded.offsets[:, 0], len(plan.owners) - 1)]
    lost = lost_at_edges(plan.text, encoded.offsets, plan.chars, weights)
    edges = f"{_AT_EDGES}: {len(lost)}, the first {lost[0]!r}" if lost else ""
    return RenderedExample(encoded.ids, weights, plan.text, encoded.offsets, owners, plan.roles, plan.changed or edges)


def _cut(row: RenderedExample, max_tokens: int, reason: str) -> RenderedExample:
    """The beginning of a row. What is cut off is gone: nothing is put in the place of its end-of-turn."""
    if not row.weights[:max_tokens].any():
        detail = f"{len(row.tokens)} tokens, and the first {max_tokens} hold nothing that is trained"
        raise ExampleError(reason, detail, tokens=len(row.tokens))
    changed = f"{reason}, the end is cut off: {len(row.tokens) - max_tokens} of {len(row.tokens)} tokens"
    return _piece(row, 0, max_tokens, changed)


def _split(row: RenderedExample, max_tokens: int, reason: str) -> list[RenderedExample]:
    """The row as several, of which each begins with the last token of the one before: so every token is a target once.

    Pieces in which nothing is trained are left out.
    """
    starts = range(0, len(row.tokens) - 1, max_tokens - 1)
    pieces = [
        _piece(row, start, start + max_tokens, f"{reason}, split: piece {number} of {len(starts)}")
        for number, start in enumerate(starts, 1)
    ]
    return [piece for piece in pieces if piece.weights.any()]


def _piece(row: RenderedExample, start: int, end: int, changed: str) -> RenderedExample:
    """The tokens [start, end) of a row as one of its own, the first of which is no target."""
    offsets, weights = row.offsets[start:end], row.weights[start:end].copy()
    weights[0] = 0
    first = int(offsets[0, 0])
    return dataclasses.replace(
        row,
        tokens=row.tokens[start:end],
        weights=weights,
        text=row.text[first : int(offsets[-1, 1])],
        offsets=offsets - first,
        messages=row.messages[start:end],
        changed=changed,
    )
