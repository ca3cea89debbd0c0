"""The Jinja environment that chat templates run in: that of transformers, with a bound on how long a template may take.

Used by templates.py. A template comes with a checkpoint and is a foreign program: it runs in Jinja's sandbox, and an
endless loop is an error instead of a run that hangs.
"""

import datetime
import itertools
import json
from collections.abc import Iterator
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import lexer, nodes, parser

GENERATION_START, GENERATION_END = "\ue0d2", "\ue0d3"  # private use: around {% generation %} blocks where asked for

_MAX_ITERATIONS = 1_000_000  # of all loops of one rendering together
_MAX_PRODUCT = 10_000_000  # characters of a text that is repeated
_TICK = "count_iteration"
_MARKS = "mark_generation"


class LoopError(jinja2.TemplateError):
    """A template loops for too long."""


class _Generation(jinja2.ext.Extension):
    """The block {% generation %}, which says what the model is to write; marked in the text if `mark_generation`."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: parser.Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = nodes.Name(_MARKS, "load")
        return nodes.CallBlock(self.call_method("_block", [marks]), [], [], body).set_lineno(lineno)

    def _block(self, marks: Any, caller: Any) -> str:
        text = caller()
        return f"{GENERATION_START}{text}{GENERATION_END}" if marks is True else text


class _BoundedLoops(jinja2.ext.Extension):
    """Counts the iterations of all loops: behind each {% for … %} stands a call that counts."""

    def filter_stream(self, stream: lexer.TokenStream) -> Iterator[lexer.Token]:
        tag = None  # the first name of the tag we are in
        for token in stream:
            yield token
            if token.type == "block_begin":
                tag = ""
            elif tag == "":
                tag = token.value
            elif token.type == "block_end":
                if tag == "for":
                    kinds = (("variable_begin", "{{"), ("name", _TICK), ("lparen", "("), ("rparen", ")"))
                    for kind, value in (*kinds, ("variable_end", "}}")):
                        yield lexer.Token(token.lineno, kind, value)
                tag = None


class ChatTemplateEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """A sandbox with what transformers gives to chat templates, in which no rendering takes for ever."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, now: datetime.datetime):
        """`now` is the time that templates are told, all of them the same."""
        extensions = [_Generation, _BoundedLoops, "jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.filters["tojson"] = _to_json
        self.globals |= {"raise_exception": _raise, "strftime_now": now.strftime}

    def from_string(self, source: str, *arguments: Any, **options: Any) -> jinja2.Template:
        """Compiles a template. Its globals are one dict: Jinja's chain of them is copied for each rendering, slowly."""
        template = super().from_string(source, *arguments, **options)
        template.globals = dict(template.globals)
        return template

    def run(self, template: jinja2.Template, context: dict[str, Any]) -> str:
        """Renders.

        Raises:
            LoopError: it loops for too long.
            jinja2.TemplateError: the template refuses or fails; and whatever else a program raises.
        """
        # An iterator that gives "" so many times counts faster than a function of Python.
        count = itertools.chain(itertools.repeat("", _MAX_ITERATIONS), _too_many()).__next__
        return template.render(context, **{_TICK: count})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Products and powers that would fill the memory are errors."""
        too_large = (
            isinstance(right, int) and right > 1000
            if operator == "**"
            else any(
                isinstance(text, str | list | tuple) and isinstance(count, int) and len(text) * count > _MAX_PRODUCT
                for text, count in ((left, right), (right, left))
            )
        )
        if too_large:
            raise jinja2.TemplateRuntimeError(f"{operator} makes more than a chat template needs")
        return super().call_binop(context, operator, left, right)


def _too_many() -> Iterator[str]:
    raise LoopError(f"its loops take more than {_MAX_ITERATIONS:,} iterations")
    yield ""


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is: Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
