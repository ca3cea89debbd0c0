"""The golden conversation of an export: text, token ids and likeliest next tokens, to compare a loaded model with.

The messages are fixed and come from no data set. They are the same for all models, apart from what their chat templates
make of them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from sft_jax.data.conversations import Chat, Conversation, Message
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.models.decoder import Decoder
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

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

    def as_dict(self, logits: Float32[np.ndarray, "tokens V"], *, scores: bool = False) -> dict[str, Any]:
        """For a file: with the likeliest next tokens after the whole, which `logits` are of; or with its score."""
        text = {
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
            "text": self.text,
            "ids": self.ids.tolist(),
        }
        if scores:
            return text | {"score": float(logits[-1, 0])}
        last = logits[-1].astype(np.float64)
        log_probabilities = last - last.max() - np.log(np.exp(last - last.max()).sum())
        likeliest = np.argsort(-last, kind="stable")[:_LIKELIEST]
        return text | {
            "stop_ids": list(self.stop_ids),
            "next_tokens": [{"id": int(i), "log_probability": round(log_probabilities[i], 6)} for i in likeliest],
        }


def golden_of(tokenizer: PreTrainedTokenizerBase, max_positions: int) -> Golden:
    """The golden conversation as this tokenizer and its template have it.

    Args:
        tokenizer: with its template, if it has one.
        max_positions: tokens that it may have.

    Raises:
        ValueError: the template takes no conversation of a user and an assistant, nothing ends an answer, or the model
            has too few positions.
    """
    if tokenizer.chat_template is None:
        golden = _plain(tokenizer, () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))
    else:
        renderer = ConversationRenderer(tokenizer)
        takes = renderer.takes_no_tools
        golden = _rendered(renderer, max_positions) if takes else _plain(tokenizer, renderer.stop_ids)
    if len(golden.ids) > max_positions:
        raise ValueError(
            f"the conversation that exports are compared on has {len(golden.ids)} tokens, and the model knows "
            f"{max_positions} positions"
        )
    return golden


def _rendered(renderer: ConversationRenderer, max_positions: int) -> Golden:
    """The whole conversation; its first question and answer where the template takes no more, or it is too long."""
    whole, short = renderer.render_many([Chat(_TURNS), Chat(_TURNS[:2])])
    if isinstance(whole, ExampleError) and isinstance(short, ExampleError):
        raise short
    too_long = not isinstance(whole, ExampleError) and len(whole[0].tokens) > max_positions
    if isinstance(whole, ExampleError) or (too_long and not isinstance(short, ExampleError)):
        return Golden(_TURNS[:2], short[0].text, short[0].tokens, renderer.stop_ids)
    return Golden(_TURNS, whole[0].text, whole[0].tokens, renderer.stop_ids)


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
    return np.asarray(_logits(model, variables, jnp.asarray(golden.ids)[None])[0], np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Decoder, variables: Tree, ids: Int[Array, "1 tokens"]) -> Float[Array, "1 tokens V"]:
    return model.apply(variables, ids)
