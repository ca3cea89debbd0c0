"""Adapter methods: small trainable terms beside frozen weights, applied inside the projections.

A method is one module and its line in `METHODS`:

- `init(key, kernel, rank, scale) -> arrays`, and `init_embedding` likewise for a token embedding [V, D];
- `INIT_READS_KERNEL`: whether these read the kernel's numbers, not only its shape;
- `apply(x, kernel, output, adapter, matmul) -> output`, where `adapter` holds the arrays and `scale`, and
  `matmul(x, weight)` multiplies in the precision of the layer;
- `merge(kernel, adapter) -> kernel`;
- `ON_EXPERTS`: whether it can adapt the experts of a mixture;
- `ON_TIED_EMBEDDING`: whether it can adapt an embedding that is the head too, where it is read transposed:
  `apply_transposed(x, output, adapter, matmul) -> output`.

Its arrays live in the variable collection `adapters`, at the path of the weight they adapt. Those whose name begins
with `constant_` are not trained.
"""

from types import ModuleType

from sft_jax.models.adapters import dora, lora, pissa

COLLECTION = "adapters"
METHODS: dict[str, ModuleType] = {"lora": lora, "dora": dora, "pissa": pissa}
_CONSTANT = "constant_"


def get_method(name: str) -> ModuleType:
    """The module of an adapter method.

    Raises:
        ValueError: no method has that name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown adapter method {name!r}; known: {', '.join(sorted(METHODS))}")
    return METHODS[name]


def is_trained(path: str) -> bool:
    """Whether the array at `adapters/…/name` is trained."""
    return path.startswith(COLLECTION + "/") and not path.rpartition("/")[2].startswith(_CONSTANT)
