"""The tokenizer classes of transformers as types, without importing transformers.

The import takes a second, and only code that makes a tokenizer (tokenizer.py, gguf_tokenizer.py) or unpickles one needs
it. At run time these names are stand-ins for the classes; `isinstance` with them works on tokenizers of transformers.
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
        """`transformers.PreTrainedTokenizerBase`, the base class of every tokenizer."""

        names = ("PreTrainedTokenizerBase",)

    class PreTrainedTokenizerFast(metaclass=_OfTransformers):
        """`transformers.PreTrainedTokenizerFast`, a tokenizer around one of the `tokenizers` library."""

        names = ("PreTrainedTokenizerFast", "TokenizersBackend")  # the second is its other name in transformers 5


__all__ = ["PreTrainedTokenizerBase", "PreTrainedTokenizerFast"]
