"""Prompt endings: what generation prompts write behind the header of an answer and the conversation itself does not.

Used by templates.py and turns.py. An ending that opens a thought (`<think>`) is for the answer to go on with. One that
is a whole thought without words, or that the template's own text closes at once, says that there is none: whoever
generates sees it, so an answer is trained behind it.
"""

import re
from collections.abc import Sequence

from sft_jax.data.rendering.outlines import shared_length
from sft_jax.data.rendering.rendered import Span

_TAG = re.compile(r"([<\[])(\w+)([>\]])")
_TAGS = re.compile(r"[<\[]/?\w+[>\]]")


def closing_tag(opening: str) -> str:
    """What closes the thought that a tag opens, `</think>` of `<think>`; empty where it is no such tag."""
    tag = _TAG.fullmatch(opening.strip())
    return "" if tag is None else f"{tag[1]}/{tag[2]}{tag[3]}"


def is_whole_thought(text: str) -> bool:
    """Whether a text is a thought of white space alone, in tags: `<think>\\n\\n</think>\\n\\n`."""
    tag = _TAG.match(text.strip())
    closing = closing_tag(tag[0]) if tag else ""
    return bool(closing) and text.strip()[tag.end() :].strip() == closing


def parting(prompt: str, whole: str, special: Sequence[Span], bound: int) -> int:
    """Where a prompt parts from the whole conversation: never within a tag or a special token of the prompt.

    Args:
        prompt: up to and with the generation prompt.
        whole: text of the conversation with the answer.
        special: the special tokens of the prompt, as characters [start, end).
        bound: where in the whole the answer itself speaks at the latest.
    """
    shared = min(shared_length(prompt, whole), bound)
    tags = [found.span() for found in _TAGS.finditer(prompt)]
    return min([start for start, end in [*tags, *special] if start < shared < end], default=shared)
