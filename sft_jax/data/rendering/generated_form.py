"""The form of generation: conversations that end with an answer, as whoever generates it sees and ends them.

Used by turns.py. Three things a template may leave out of a conversation although generation has them: the thoughts of
calls whose results the last answer follows, the empty thought that its prompts end with, and the token behind the last
answer, where it is the first one of the next turn. They are put there, and nothing else is changed.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence

from sft_jax.data.conversations import Message, ToolCall
from sft_jax.data.rendering.outlines import shared_length
from sft_jax.data.rendering.prompt_endings import parting
from sft_jax.data.rendering.rendered import ExampleError
from sft_jax.data.rendering.special_tokens import TextEncoder
from sft_jax.data.rendering.template_text import TemplateText
from sft_jax.data.rendering.templates import PROBE_TOOL, ChatTemplate, Tools

_ASK, _ANSWER = Message("user", "a"), Message("assistant", "b")
_CALLING = Message("assistant", "", tool_calls=(ToolCall("f", {"a": "b"}, "abcdefghi"),))
_RESULT = Message("tool", "c", name="f", tool_call_id="abcdefghi")


class GeneratedForm:
    """Renders conversations for one template and tokenizer."""

    def __init__(self, template: ChatTemplate, encoder: TextEncoder):
        """Binds template and tokenizer."""
        self._template, self._encoder = template, encoder

    def rendered(self, messages: Sequence[Message], tools: Tools) -> TemplateText:
        """What the template makes of a conversation; the last answer behind its prompt and with its end.

        Where the template marks answers with {% generation %}, they are as it marks them.

        Raises:
            ExampleError: the template refuses the conversation, or changes what it says.
        """
        rendered = self._template.render_with_parts(messages, tools)
        if messages[-1].role != "assistant" or self._template.marks_generation:
            return rendered
        if self._takes_thoughts_of_calls_out and len(messages) > 1 and messages[-2].role != "assistant":
            rendered = self._behind_its_prompt(rendered, messages, tools)
        if self._template.empty_thought and len(messages) > 1:
            at, ending = self.ending(rendered, messages, tools)
            if ending and self._template.says_no_thought(ending, rendered.text[at:]):
                rendered = rendered.with_inserted(at, ending)
        return dataclasses.replace(rendered, text=rendered.text + self.closing(messages[-1]))

    def ending(self, rendered: TemplateText, messages: Sequence[Message], tools: Tools) -> tuple[int, str]:
        """Where the prompt of the last answer parts from the conversation, and what it ends with instead.

        The latter is empty where it is the history that they differ in, or nothing.
        """
        asked = messages[:-1]
        prompt, history = self._template.render(asked, tools, True), self._template.render(asked, tools)
        speaks = min([part.start for part in rendered.said_by(len(asked))], default=len(rendered.text))
        at = parting(prompt, rendered.text, self._encoder.find_special(prompt), speaks)
        differs = prompt[at:].strip() and at >= shared_length(prompt, history)
        return at, prompt[at:] if differs else ""

    def _behind_its_prompt(self, rendered: TemplateText, messages: Sequence[Message], tools: Tools) -> TemplateText:
        """With the history that the prompt of the last answer has, if the answer begins as that prompt ends."""
        asked = messages[:-1]
        prompt = self._template.render_with_parts(asked, tools, generation_prompt=True)
        history, begin = self._template.render(asked, tools), rendered.starts[-1]
        header = prompt.text.removeprefix(history)
        at = begin + len(header)
        speaks = min([part.start for part in rendered.said_by(len(asked))], default=at)
        if rendered.text.startswith(prompt.text) or header == prompt.text or at > speaks:
            return rendered
        return rendered.behind(prompt, at) if rendered.text.startswith(header, begin) else rendered

    @functools.cached_property
    def _takes_thoughts_of_calls_out(self) -> bool:
        """Whether the prompt of an answer shows thoughts of the calls before it that the whole conversation does not.

        Of gpt-oss, whose template drops them once a final answer follows.
        """
        asked = (_ASK, _CALLING._replace(reasoning="d"), _RESULT)
        for tools in ((), (PROBE_TOOL,)):
            with contextlib.suppress(ExampleError):
                whole = self._template.render((*asked, _ANSWER), tools)
                return not whole.startswith(self._template.render(asked, tools, True))
        return False

    def closing(self, message: Message) -> str:
        """What ends a conversation whose last message it is, and the template leaves to the next turn."""
        if message.role != "assistant" or self._template.marks_generation:
            return ""
        return self._result_ends if message.tool_calls else self.next_turn_ends

    @functools.cached_property
    def next_turn_ends(self) -> str:
        """The token that ends an answer to which the template itself gives no end: the next question begins with it.

        Of GLM, whose generation stops at `<|user|>`. Empty for most, and where answers begin with the same token: that
        of a template that only lacks its end-of-turn.
        """
        return self._find_next_turn(_ANSWER, _ASK)

    @functools.cached_property
    def _result_ends(self) -> str:
        """The same of calls: the result of a call begins with it."""
        return self._find_next_turn(_CALLING, _RESULT)

    def _find_next_turn(self, answer: Message, following: Message) -> str:
        for tools in ((), (PROBE_TOOL,)):
            with contextlib.suppress(ExampleError):
                alone = self._template.render_with_parts((_ASK, answer), tools)
                size = len(alone.text)
                said = max([part.end for part in alone.said_by(1)], default=alone.starts[1])
                whole = self._template.render((_ASK, answer, following), tools)
                if self._encoder.find_special(alone.text, said) or not whole.startswith(alone.text):
                    return ""
                special = self._encoder.find_special(whole, size)
                ends = whole[slice(*special[0])] if special and special[0][0] == size else ""
                return "" if ends in alone.text[alone.starts[1] :] else ends
        return ""
