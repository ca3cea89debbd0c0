"""Adapter methods: small trainable terms beside frozen weights, applied inside `Linear`.

A method is one module with `init`, `apply` and `merge`, plus its line in `METHODS`. Its arrays live in the variable
collection `adapters`, at the path of the layer they adapt.
"""

from types import ModuleType

from sft_jax.models.adapters import lora

COLLECTION = "adapters"
METHODS: dict[str, ModuleType] = {"lora": lora}


def get_method(name: str) -> ModuleType:
    """The module of an adapter method.

    Raises:
        ValueError: no method has that name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown adapter method {name!r}; known: {', '.join(sorted(METHODS))}")
    return METHODS[name]
