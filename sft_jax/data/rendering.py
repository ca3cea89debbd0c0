"""Rendering: a conversation as token ids, and for each token whether it is trained.

The step from records to tokenized rows, and the only place where it is decided what is trained: the answers of the
assistant with their end-of-turn, nothing else. The decision is read off the chat template, see `ConversationRenderer`.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import transformers
from jaxtyping import Float32

from sft_jax.data.conversations import Chat, Conversation, Example, Message
from sft_jax.data.special_tokens import Encoded, Offsets, TextEncoder, TokenIds
from sft_jax.data.templates import RowError, Span, TemplateText, chat_template_of

__all__ = ["ConversationRenderer", "RenderedRow", "RowError"]

TokenWeights = Float32[np.ndarray, "tokens"]

_NO_END_OF_TURN = "the chat template has no end-of-turn token after an answer"
_PROVEN_ROWS = 64  # rows whose ids are compared with the plain tokenizer's at run time


@dataclasses.dataclass(frozen=True)
class RenderedRow:
    """A conversation ready for training.

    Attributes:
        tokens: ids, as the plain tokenizer gives them for `text`.
        weights: weight of each token as a target: 1 trained, 0 not. Never all 0.
        text: what the chat template made of the conversation.
        offsets: characters [start, end) of `text` of each token.
        trained_spans: the characters that are trained.
    """

    tokens: TokenIds
    weights: TokenWeights
    text: str
    offsets: Offsets
    trained_spans: tuple[Span, ...]


class ConversationRenderer:
    """Turns conversations into tokens and weights with the chat template of the model.

    Where the template has {% generation %} blocks they are the trained text. Where it has none, an answer is trained
    from where the generation prompt ends (that is where the model takes over at inference; the rendering up to there
    must be a prefix of the whole) up to and with its end-of-turn, the first special token the template puts after it.
    For ChatML that is "answer<|im_end|>" and not the newline behind it.

    A token is trained if all its characters are. Special tokens count where the template wrote them; in a message
    they are text.
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase, chat_template: str | None = None):
        """Binds tokenizer and template.

        Args:
            tokenizer: a fast tokenizer.
            chat_template: Jinja source; None takes the tokenizer's own.

        Raises:
            ValueError: no chat template, one that is not valid Jinja, or a tokenizer without character offsets.
        """
        self.tokenizer = tokenizer
        self._template = chat_template_of(tokenizer, chat_template)
        self._encoder = TextEncoder(tokenizer)
        self._to_prove = _PROVEN_ROWS

    @property
    def chat_template(self) -> str:
        """The Jinja source in use."""
        return self._template.source

    def render(self, conversation: Conversation) -> RenderedRow:
        """Tokens and weights of one conversation.

        Raises:
            RowError: it cannot be trained on; says why.
            RuntimeError: ids differ from the plain tokenizer's.
        """
        (rows,) = self.render_many([Chat(conversation)])
        if isinstance(rows, RowError):
            raise rows
        return rows[0]

    def render_many(self, examples: Sequence[Example]) -> list[list[RenderedRow] | RowError]:
        """The rows of each of many examples (faster than one by one), or an error in their place.

        Raises:
            RuntimeError: ids differ from the plain tokenizer's.
        """
        planned = [self._plan(example) for example in examples]
        usable = [plan for plan in planned if not isinstance(plan, RowError)]
        encoded = iter(
            self._encoder.encode_many(
                [rendered.text for rendered, _ in usable], [_template_parts(rendered) for rendered, _ in usable]
            )
        )
        return [plan if isinstance(plan, RowError) else self._rows(*plan, next(encoded)) for plan in planned]

    def render_prompt(self, conversation: Conversation) -> TokenIds:
        """Ids up to and with the generation prompt, for a conversation whose answer is to be generated.

        Raises:
            RowError: the conversation ends with an answer, or the template refuses it.
        """
        if conversation and conversation[-1].role == "assistant":
            raise RowError("a prompt must not end with an assistant's turn", "leave the answer out")
        rendered = self._template.render_with_spans(conversation, generation_prompt=True)
        (encoded,) = self._encoder.encode_many([rendered.text], [_template_parts(rendered)])
        if isinstance(encoded, RowError):
            raise encoded
        self._prove(rendered, encoded)
        return encoded.ids

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a generated answer: the template's end-of-turn and the tokenizer's eos token.

        Raises:
            ValueError: there is neither.
        """
        found = set()
        try:
            rendered = self._template.render_with_spans((Message("user", "a"), Message("assistant", "b")))
            start, end = _end_of_turn(rendered, 1, self._encoder)
            found.add(self._encoder.token_id(rendered.text[start:end]))
        except RowError as error:
            if self.tokenizer.eos_token_id is None:
                raise ValueError(f"Nothing ends an answer: {error}, and the tokenizer has no eos token.") from error
        if self.tokenizer.eos_token_id is not None:
            found.add(int(self.tokenizer.eos_token_id))
        return tuple(sorted(found))

    def _plan(self, example: Example) -> tuple[TemplateText, list[Span]] | RowError:
        """The text and its trained spans."""
        try:
            if not isinstance(example, Chat) or example.tools:
                raise RowError("not a plain conversation", type(example).__name__)
            conversation = example.messages
            if not any(message.role == "assistant" for message in conversation):
                raise RowError("nothing to train on", "there is no assistant's turn")
            rendered = self._template.render_with_spans(conversation)
            if self._template.marks_generation:
                return rendered, self._marked_spans(rendered, conversation)
            return rendered, self._answer_spans(rendered, conversation)
        except RowError as error:
            return error

    def _marked_spans(self, rendered: TemplateText, conversation: Conversation) -> list[Span]:
        """The {% generation %} blocks, checked: no words of others in them, end-of-turn not left out."""
        for number, (start, end) in rendered.contents:
            spans = [span for span in rendered.generation if span[0] < end and start < span[1]]
            if not spans:
                continue
            if conversation[number].role != "assistant":
                raise RowError(
                    "a {% generation %} block of the chat template covers a message that is not the assistant's",
                    f"message {number} ({conversation[number].role})",
                )
            stop = _end_of_turn(rendered, number, self._encoder)
            if not any(first <= stop[0] and stop[1] <= last for first, last in rendered.generation):
                raise RowError(
                    "the {% generation %} block of the chat template leaves out the end-of-turn",
                    f"{rendered.text[slice(*stop)]!r} would not be trained and the model would never stop; "
                    "move {% endgeneration %} behind it",
                )
        return list(rendered.generation)

    def _answer_spans(self, rendered: TemplateText, conversation: Conversation) -> list[Span]:
        """For each answer: from the end of the generation prompt to the end of the end-of-turn."""
        spans = []
        for number, message in enumerate(conversation):
            if message.role != "assistant":
                continue
            if number == 0:
                raise RowError("the conversation starts with the assistant", "there is no prompt to answer")
            prompt = self._template.render(conversation[:number], True)
            if not rendered.text.startswith(prompt):
                raise RowError(
                    "the chat template shows the model another history at inference than in training",
                    f"the prompt for message {number} is not the beginning of the whole conversation; use a "
                    "template that does not rewrite earlier turns, or mark the answers with {% generation %}",
                )
            end_of_turn = _end_of_turn(rendered, number, self._encoder)
            self._check_end_of_turn(rendered.text[slice(*end_of_turn)], conversation[: number + 1])
            spans.append((len(prompt), end_of_turn[1]))
        return spans

    def _check_end_of_turn(self, end_of_turn: str, answered: Conversation) -> None:
        """The token must follow the answer where the conversation ends there too: else it begins the next turn."""
        after = self._template.text_after_last(tuple(message.role for message in answered))
        special = self._encoder.find_special(after)
        if not special or after[slice(*special[0])] != end_of_turn:
            raise RowError(
                _NO_END_OF_TURN,
                f"{end_of_turn!r} follows message {len(answered) - 1} because of what comes next; where the "
                f"conversation ends there it is followed by {after!r}",
            )

    def _rows(
        self, rendered: TemplateText, spans: list[Span], encoded: Encoded | RowError
    ) -> list[RenderedRow] | RowError:
        if isinstance(encoded, RowError):
            return encoded
        self._prove(rendered, encoded)
        weights = _weights(encoded.offsets, spans)
        if not weights.any():
            return RowError("nothing to train on", "no token lies in an answer")
        return [RenderedRow(encoded.ids, weights, rendered.text, encoded.offsets, tuple(spans))]

    def _prove(self, rendered: TemplateText, encoded: Encoded) -> None:
        """Compares the first rows with the plain tokenizer; rows that spell special tokens differ on purpose."""
        if not self._to_prove:
            return
        texts = (rendered.text[slice(*span)] for _, span in rendered.contents)
        if any(self._encoder.find_special(text) for text in texts):
            return
        self._to_prove -= 1
        plain = self.tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
        if encoded.ids.tolist() != plain:
            raise RuntimeError(
                f"The ids of a row differ from those of {type(self.tokenizer).__name__}: got {encoded.ids.tolist()}, "
                f"the tokenizer gives {plain} for {rendered.text!r}. This tokenizer is not supported."
            )


def _template_parts(rendered: TemplateText) -> list[Span]:
    """The spans between the contents."""
    ends = [0, *(span[1] for _, span in rendered.contents)]
    starts = [*(span[0] for _, span in rendered.contents), len(rendered.text)]
    return [part for part in zip(ends, starts, strict=True) if part[0] < part[1]]


def _end_of_turn(rendered: TemplateText, number: int, encoder: TextEncoder) -> Span:
    """The first special token between message `number` and the next content."""
    index = max(i for i, (found, _) in enumerate(rendered.contents) if found == number)
    start = rendered.contents[index][1][1]
    following = rendered.contents[index + 1 :]
    end = following[0][1][0] if following else len(rendered.text)
    special = encoder.find_special(rendered.text, start, end)
    if not special:
        raise RowError(
            _NO_END_OF_TURN,
            f"{rendered.text[start:end]!r} follows message {number}; without one the model would never stop",
        )
    return special[0]


def _weights(offsets: Offsets, spans: list[Span]) -> TokenWeights:
    """1 where all characters of a token lie in one trained span; the first token is never a target."""
    joined: list[list[int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(end, joined[-1][1])
        else:
            joined.append([start, end])
    weights = np.zeros(len(offsets), np.float32)
    starts, ends = offsets[:, 0], offsets[:, 1]
    for first, last in joined:
        weights[(starts >= first) & (ends <= last)] = 1
    weights[:1] = 0
    return weights
