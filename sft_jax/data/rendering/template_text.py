"""The text that a chat template makes of a conversation, and which characters of it came from where.

Made by templates.py; turns.py, masking.py and properties.py read it.
"""

import dataclasses

import numpy as np
from jaxtyping import Int32

from sft_jax.data.rendering.outlines import Part
from sft_jax.data.rendering.rendered import Span

CharOwners = Int32[np.ndarray, "characters"]


@dataclasses.dataclass(frozen=True)
class TemplateText:
    """A rendered conversation.

    Attributes:
        text: what the template made of it.
        parts: where contents, reasoning and arguments stand, in the order of the text; all other characters are the
            template's.
        missing: (message, field) of what the template leaves out.
        starts: where each message begins in the text, with the header the template gives it.
        generation: the spans of {% generation %} blocks (empty if the template has none).
        words: what of contents stands in the template's own text: words that the template looks for in them.
    """

    text: str
    parts: tuple[Part, ...]
    missing: frozenset[tuple[int, str]]
    starts: tuple[int, ...]
    generation: tuple[Span, ...]
    words: tuple[Part, ...] = ()

    def template_spans(self) -> list[Span]:
        """What stands between the parts: the text of the template itself."""
        ends = [0, *(part.end for part in self.parts)]
        starts = [*(part.start for part in self.parts), len(self.text)]
        return [span for span in zip(ends, starts, strict=True) if span[0] < span[1]]

    def owners(self) -> CharOwners:
        """The message of each character; -1 for text of the template that belongs to none."""
        owners = np.full(len(self.text), -1, np.int32)
        for number, start in enumerate(self.starts):
            owners[start:] = number
        for part in self.parts:
            if part.message >= 0:
                owners[part.start : part.end] = part.message
        return owners

    def parts_of(self, message: int) -> list[Part]:
        """The parts of one message, in the order of the text."""
        return [part for part in self.parts if part.message == message]

    def said_by(self, message: int) -> list[Part]:
        """The parts of one message and its words, in the order of the text."""
        words = [part for part in self.words if part.message == message]
        return sorted([*self.parts_of(message), *words], key=lambda part: part.start)

    def with_inserted(self, at: int, text: str) -> "TemplateText":
        """With a text of the template at a position, where no part lies across it."""
        size = len(text)
        moved = lambda parts: tuple(
            part if part.start < at else part._replace(start=part.start + size, end=part.end + size) for part in parts
        )
        return dataclasses.replace(
            self,
            text=self.text[:at] + text + self.text[at:],
            parts=moved(self.parts),
            words=moved(self.words),
            starts=tuple(start + size if start > at else start for start in self.starts),
        )

    def behind(self, history: "TemplateText", at: int) -> "TemplateText":
        """The last message from a position on, behind another text of the messages before it."""
        shift, last = len(history.text) - at, len(self.starts) - 1
        moved = lambda parts: tuple(
            part._replace(start=part.start + shift, end=part.end + shift) for part in parts if part.start >= at
        )
        return TemplateText(
            text=history.text + self.text[at:],
            parts=history.parts + moved(self.parts),
            missing=history.missing | {(message, field) for message, field in self.missing if message == last},
            starts=(*history.starts, self.starts[last] + shift),
            generation=(),
            words=history.words + moved(self.words),
        )
