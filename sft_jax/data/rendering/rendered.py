"""What rendering gives: an example as tokens, with the message each token comes from, or an error that says why not.

Made by the renderer; everything after it (tokenized examples, reports, previews) uses these types only.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int32, UInt8

Span = tuple[int, int]  # characters [start, end) of a rendered text
TokenIds = Int32[np.ndarray, "tokens"]
TokenWeights = Float32[np.ndarray, "tokens"]
TokenMessages = Int32[np.ndarray, "tokens"]
TokenBranches = UInt8[np.ndarray, "tokens"]
Offsets = Int32[np.ndarray, "tokens 2"]  # characters [start, end) of each token


class ExampleError(ValueError):
    """An example that cannot be trained on.

    Attributes:
        reason: the same for all examples with this fault.
        detail: of this example alone.
        stops: the run is to stop instead of leaving the example out.
        tokens: of an example that is too long, how many it has; else 0.
    """

    def __init__(self, reason: str, detail: str = "", *, stops: bool = False, tokens: int = 0):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.stops, self.tokens = reason, detail, stops, tokens


@dataclasses.dataclass(frozen=True)
class RenderedExample:
    """An example ready for training.

    Attributes:
        tokens: ids, as the plain tokenizer gives them for `text`.
        weights: weight of each token as a target; 0 is not trained. Never all 0.
        text: what the chat template made of the conversation; empty for an example that came as ids.
        offsets: characters [start, end) of `text` of each token.
        messages: for each token the message (or segment) it belongs to; -1 for text of the template that belongs to
            none, such as the beginning of the sequence.
        roles: of each message of the example.
        changed: what was left out of the example, "reason: detail"; empty where it is whole.
        branches: of an example that goes on in several ways (a pair of answers): for each token 0 for what all begin
            with, then 1, 2, … for each continuation. None where it is one text.
    """

    tokens: TokenIds
    weights: TokenWeights
    text: str
    offsets: Offsets
    messages: TokenMessages
    roles: tuple[str, ...]
    changed: str = ""
    branches: TokenBranches | None = None

    def role(self, token: int) -> str:
        """Who speaks a token; empty for text of the template that belongs to no message."""
        message = int(self.messages[token])
        return self.roles[message] if message >= 0 else ""
