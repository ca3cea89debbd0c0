"""The tokenizer classes of transformers as types, without importing it.

The import takes a second, and only what makes a tokenizer (tokenizer.py, gguf_tokenizer.py) or reads one back needs it.
At run time these names stand for the classes: `isinstance` knows tokenizers of transformers as theirs.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
else:

    class _OfTransformers(type):
        def __instancecheck__(cls, value: object) -> bool:
            return any(
                base.__name__ in cls.names and base.__module__.partition(".")[0] == "transformers"
                for base in type(value).__mro__
            )

    class PreTrainedTokenizerBase(metaclass=_OfTransformers):
        """`transformers.PreTrainedTokenizerBase`, what every tokenizer there is."""

        names = ("PreTrainedTokenizerBase",)

    class PreTrainedTokenizerFast(metaclass=_OfTransformers):
        """`transformers.PreTrainedTokenizerFast`, a tokenizer around one of the `tokenizers` library."""

        names = ("PreTrainedTokenizerFast", "TokenizersBackend")  # the second is its other name in transformers 5


__all__ = ["PreTrainedTokenizerBase", "PreTrainedTokenizerFast"]
