"""Properties of a chat template, in words: what it does with system messages, thinking, tools and earlier answers.

Used by the preview. Nothing depends on the name of a model: each property is read off what the template makes of probe
conversations, by the same rules that render and prove examples.
"""

import contextlib

import numpy as np

from sft_jax.data.conversations import Chat, Message, ToolCall
from sft_jax.data.rendering.example_texts import ExampleTexts
from sft_jax.data.rendering.masking import Masking
from sft_jax.data.rendering.outlines import shared_length
from sft_jax.data.rendering.rendered import ExampleError
from sft_jax.data.rendering.special_tokens import Encoded, TextEncoder
from sft_jax.data.rendering.template_text import TemplateText
from sft_jax.data.rendering.templates import PROBE_TOOL, ChatTemplate, Tools
from sft_jax.data.rendering.thinking import USUAL

_SYSTEM, _ASK, _AGAIN = Message("system", "§1"), Message("user", "§2"), Message("user", "§3")
_ANSWER, _OTHER = Message("assistant", "§4"), Message("assistant", "§5")
_THOUGHT = Message("assistant", "§4", reasoning="§6")
_SPELT = Message("assistant", f"{USUAL.start}§6{USUAL.end}§4")
_CALL = Message("assistant", "", tool_calls=(ToolCall("f", {"a": "b"}, "abcdefghi"),))
_TOOLS: Tools = (PROBE_TOOL,)
_EXCERPT = 60  # characters of a system message that the template writes


def template_properties(template: ChatTemplate, encoder: TextEncoder) -> dict[str, str]:
    """What a template does, by the name of the property, in words for people.

    Args:
        template: of the model.
        encoder: of its tokenizer.
    """
    return _Probe(template, encoder).properties()


class _Probe:
    """Asks one template."""

    def __init__(self, template: ChatTemplate, encoder: TextEncoder):
        self._template, self._encoder = template, encoder
        self._texts = ExampleTexts(template, encoder, Masking(history="expand"))
        self._answer = self._spelling(_ANSWER)
        # Some take no conversation without tools.
        asked = (_ASK, self._answer)
        self._tools: Tools = () if self._rendered(*asked) or not self._takes_tools(asked) else _TOOLS

    def properties(self) -> dict[str, str]:
        found = {
            "end of turn": self._end_of_turn(),
            "system message": self._system_message(),
            "contents": "lists of parts alone" if self._template.in_parts else "",
            "thinking": self._thinking(),
            "generation prompt": self._generation_prompt(),
            "tools": self._definitions(),
            "calls": self._calls(),
            "earlier answers": self._earlier_answers(),
            "date": "may be written by the template" if "strftime_now" in self._template.source else "",
        }
        return {name: words for name, words in found.items() if words}

    def _rendered(self, *messages: Message, tools: Tools = ()) -> TemplateText | None:
        with contextlib.suppress(ExampleError):
            return self._template.render_with_parts(messages, tools)
        return None

    def _spelling(self, answer: Message) -> Message:
        """The answer with a thought in its content, where prompts open one."""
        opening = self._template.opening
        return answer._replace(content=f"{opening}§6{USUAL.end}{answer.content}") if opening else answer

    def _takes_tools(self, messages: tuple[Message, ...]) -> bool:
        return self._rendered(*messages, tools=_TOOLS) is not None

    def _end_of_turn(self) -> str:
        try:
            end = self._texts.end_of_answer((_ASK, self._answer))
        except ExampleError:
            return "none"
        return f"{end}, with which the next turn begins" if self._texts.next_turn_ends else end

    def _system_message(self) -> str:
        """Where it stands, and what the template writes in its place where there is none.

        What stands before the question with and without one has a beginning and an end in common; between these is
        the message, or what the template takes for it.
        """
        given = self._rendered(_SYSTEM, _ASK, self._answer, tools=self._tools)
        missing = self._rendered(_ASK, self._answer, tools=self._tools)
        if given is None:
            return "not taken"
        if missing is None:
            return "needed"
        system, asked = given.parts_of(0)[0], given.parts_of(1)[0]
        one, other = missing.text[: missing.parts_of(0)[0].start], given.text[: asked.start]
        between = other[system.end :]
        header = between[len(between) - shared_length(between[::-1], one[::-1]) :]
        place = "a turn of its own" if header.strip() else "joined to the user's turn"
        start = shared_length(one, other)
        own = one[start : len(one) - shared_length(one[start:][::-1], other[start:][::-1])].strip()
        if not own:
            return place
        shown = own if len(own) <= _EXCERPT else own[:_EXCERPT] + "…"
        return f"{place}; where there is none the template writes {shown!r}"

    def _thinking(self) -> str:
        opening = self._template.opening
        if opening:
            kept = self._kept(self._answer, "content") or "taken out again"
            return f"contents spell it, as prompts end with {opening!r}; {kept}"
        if kept := self._kept(_THOUGHT, "reasoning"):
            return f"a part of the content; {kept}" if self._template.reasoning_in_parts else f"shown; {kept}"
        if kept := self._kept(_CALL._replace(reasoning="§6"), "reasoning"):
            return f"shown before calls alone; {kept}"
        kept = self._kept(_SPELT, "content")
        return f"no place of its own; spelt in contents it is {kept or 'taken out'}"

    def _generation_prompt(self) -> str:
        """What it adds to a question, and how an answer without a thought goes on behind it."""
        with contextlib.suppress(ExampleError):
            asked = self._template.render((_ASK,), self._tools)
            prompt = self._template.render((_ASK,), self._tools, True)
            added = prompt[shared_length(asked, prompt) :]
            return (repr(added) if added else "adds nothing") + self._behind_prompt(prompt)
        return ""

    def _behind_prompt(self, prompt: str) -> str:
        """How an answer without a thought follows a prompt."""
        found, thought = "", self._template.empty_thought
        if thought and not self._template.marks_generation:
            found = f"; of it {thought!r} is not shown before answers: the last one is trained behind it"
        with contextlib.suppress(ExampleError):
            said = self._texts.answer_text((_ASK, self._answer), self._tools)
            goes_on = said.partition(_ANSWER.content)[0]
            if goes_on.strip() and not self._template.opening:
                found += f"; an answer without a thought goes on with {goes_on!r}"
                if self._is_joined(prompt, said):
                    found += ", which tokens join with the end of the prompt"
        return found

    def _is_joined(self, prompt: str, said: str) -> bool:
        """Whether the tokens of a prompt are not those that it has before the answer."""
        texts = (prompt, prompt + said)
        alone, whole = self._encoder.encode_many(texts, [[(0, len(text))] for text in texts])
        return (
            isinstance(alone, Encoded)
            and isinstance(whole, Encoded)
            and not np.array_equal(alone.ids, whole.ids[: len(alone.ids)])
        )

    def _kept(self, answer: Message, field: str) -> str:
        """Whether what an answer thinks stays once others follow; empty where it is never shown."""
        alone = self._rendered(_ASK, answer, tools=self._tools)
        if alone is None or (1, field) in alone.missing:
            return ""
        followed = self._rendered(_ASK, answer, _AGAIN, self._spelling(_OTHER), tools=self._tools)
        taken = followed is not None and (1, field) in followed.missing
        return "taken out of earlier answers" if taken else "kept in earlier answers"

    def _definitions(self) -> str:
        if self._template.tools_field:
            return f"the field {self._template.tools_field!r} of the system message, as JSON text"
        turns = (_ASK, self._answer)
        return "shown" if self._takes_tools(turns) or self._takes_tools((_SYSTEM, *turns)) else "not shown"

    def _calls(self) -> str:
        shown = any(self._rendered(_ASK, _CALL, tools=tools) for tools in ((), _TOOLS))
        if not shown:
            return "not shown"
        return "shown" if self._texts.answer_format.calls is not None else "shown; not read in what the model writes"

    def _earlier_answers(self) -> str:
        """Which conversations need an example for each context."""
        kinds = {
            "always": (self._answer, ()),
            "with thinking": (_THOUGHT, ()),
            "with spelt thinking": (_SPELT, ()),
            "with tools": (self._answer, _TOOLS),
        }
        found = [kind for kind, (answer, tools) in kinds.items() if self._is_rewritten(answer, tools or self._tools)]
        if not found:
            return "stay as they were written"
        when = found[0] if found[0] == "always" else ", ".join(found)
        return f"shown otherwise once others follow ({when}): data.masking.history=expand"

    def _is_rewritten(self, answer: Message, tools: Tools) -> bool:
        """Whether two such answers are trained in an example each."""
        chat = Chat((_ASK, answer, _AGAIN, answer), tuple(tools))
        with contextlib.suppress(ExampleError):
            return len(self._texts.texts_of(chat)) > 1
        return False


def property_lines(properties: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    """(name, value) of the properties of each of the named templates of a tokenizer, for a table."""
    names = {name: f"chat template {name!r}" if len(properties) > 1 else "chat template" for name in properties}
    return [(f"{names[name]}, {what}", words) for name, found in properties.items() for what, words in found.items()]
