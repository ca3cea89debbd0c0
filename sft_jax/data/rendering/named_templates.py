"""Named chat templates: a tokenizer may have several, and each example takes the one that transformers would take.

Used by the renderer. Hermes 3 and Command R, for example, have one named "default" and one named "tool_use".
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.data.rendering.rendered import ExampleError
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

TemplateSources = str | Mapping[str, str]  # Jinja, or Jinja by name, as transformers has it

DEFAULT, TOOL_USE = "default", "tool_use"


def templates_of(tokenizer: PreTrainedTokenizerBase) -> TemplateSources:
    """The tokenizer's own chat template or templates.

    Raises:
        ValueError: there is none.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "The tokenizer has no chat template, without which nobody knows how to address the model. Give one to a "
            "run by --config.model.chat_template=FILE, a Jinja template; elsewhere as a file chat_template.jinja "
            "beside the tokenizer"
        )
    return tokenizer.chat_template


def used_templates(sources: TemplateSources) -> dict[str, str]:
    """Of the templates those that examples may take, by name; a single one is the default.

    Raises:
        ValueError: no example takes any of them.
    """
    if isinstance(sources, str):
        return {DEFAULT: sources}
    used = {name: sources[name] for name in (DEFAULT, TOOL_USE) if name in sources}
    if not used:
        raise ValueError(
            f"The chat templates of the tokenizer are named {', '.join(sorted(sources))}, and examples "
            f"take {DEFAULT!r}, "
            f"or {TOOL_USE!r} with tools: give the one that is meant as a file, --config.model.chat_template."
        )
    return used


def chosen_template(names: Mapping[str, Any], tools: Sequence[Any]) -> str:
    """The name of the template of an example: "tool_use" where it has tools and there is one, else "default".

    As `get_chat_template` of transformers chooses.

    Raises:
        ExampleError: there is no default.
    """
    if tools and TOOL_USE in names:
        return TOOL_USE
    if DEFAULT in names:
        return DEFAULT
    raise ExampleError(
        "the tokenizer has no chat template for conversations without tools",
        f"none of its named templates is {DEFAULT!r}; give one as a file, --config.model.chat_template",
        stops=True,
    )
