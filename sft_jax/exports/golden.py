"""The golden conversation of an export: text, ids and next tokens that whoever loads it can compare with.

Of no data of anybody's: the same for all models, apart from what their chat templates make of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from transformers import PreTrainedTokenizerBase

from sft_jax.data.conversations import Chat, Conversation, Message
from sft_jax.data.rendering import ConversationRenderer, RowError
from sft_jax.models.decoder import Decoder

Tree = Any

_TURNS = (
    Message("user", "Which of these is a prime: 27, 29 or 33?"),
    Message("assistant", "29, since 27 = 3 * 9 and 33 = 3 * 11."),
    Message("user", "Écris « naïve » deux fois, sans espace ✓"),
    Message("assistant", "naïvenaïve"),
)
_LIKELIEST = 5


@dataclasses.dataclass(frozen=True)
class Golden:
    """A text that a model is compared on.

    Attributes:
        messages: the conversation; empty for a model without a chat template for conversations without tools.
        text: what the template made of it.
        ids: int32 [tokens].
        stop_ids: ids that end an answer.
    """

    messages: Conversation
    text: str
    ids: np.ndarray
    stop_ids: tuple[int, ...]

    def as_dict(self, logits: Float32[np.ndarray, "tokens V"]) -> dict[str, Any]:
        """For a file: with the likeliest next tokens after the whole, which `logits` are of."""
        last = logits[-1].astype(np.float64)
        log_probabilities = last - last.max() - np.log(np.exp(last - last.max()).sum())
        likeliest = np.argsort(-last, kind="stable")[:_LIKELIEST]
        return {
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
            "text": self.text,
            "ids": self.ids.tolist(),
            "stop_ids": list(self.stop_ids),
            "next_tokens": [{"id": int(i), "log_probability": round(log_probabilities[i], 6)} for i in likeliest],
        }


def golden_of(tokenizer: PreTrainedTokenizerBase) -> Golden:
    """The golden conversation as this tokenizer and its template have it.

    Raises:
        ValueError: the template takes no conversation of a user and an assistant, or nothing ends an answer.
    """
    if tokenizer.chat_template is None:
        return _plain(tokenizer, () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))
    renderer = ConversationRenderer(tokenizer)
    if not renderer.takes_no_tools:
        return _plain(tokenizer, renderer.stop_ids)
    # A template may be for one question and its answer.
    whole, short = renderer.render_many([Chat(_TURNS), Chat(_TURNS[:2])])
    if isinstance(whole, RowError) and isinstance(short, RowError):
        raise short
    turns, rows = (_TURNS[:2], short) if isinstance(whole, RowError) else (_TURNS, whole)
    return Golden(turns, rows[0].text, rows[0].tokens, renderer.stop_ids)


def _plain(tokenizer: PreTrainedTokenizerBase, stop_ids: tuple[int, ...]) -> Golden:
    """The contents without a chat template, where there is none for them."""
    text = " ".join(message.content for message in _TURNS)
    return Golden((), text, np.asarray(tokenizer(text)["input_ids"], np.int32), stop_ids)


def golden_logits(model: Decoder, variables: Tree, golden: Golden) -> Float32[np.ndarray, "tokens V"]:
    """What a model predicts along the golden text, float32.

    Raises:
        ValueError: the text has an id that the model has no embedding of.
    """
    if golden.ids.max() >= model.config.vocab_size:
        raise ValueError(f"the tokenizer gives the id {golden.ids.max()}; the model knows {model.config.vocab_size}")
    logits = jax.jit(model.apply)(variables, jnp.asarray(golden.ids)[None])
    return np.asarray(logits[0], np.float32)
