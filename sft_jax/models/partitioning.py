"""Mesh axes, the table from parameter path to PartitionSpec, and the helpers through which the model constrains arrays.

Mesh axes exist even at size one, so that the same program runs anywhere:
`replica` repeats parameters, `fsdp` splits parameters and the batch, `expert` does the same and splits the experts of a
mixture among devices, `context` splits the tokens of a sequence and, as `fsdp` does, parameters; `tensor` splits heads,
FFN and vocabulary.
"""

import functools
import math
import re
from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from sft_jax.models.layouts import is_stacked, without_layers

MESH_AXES = ("replica", "fsdp", "expert", "context", "tensor")
BATCH_AXES = ("replica", "fsdp", "expert")
PARAM_AXES = ("fsdp", "expert", "context")  # over which parameters are split that are not experts'

_STORED = r"(/(values|codes|block|exponents))?$"  # a kernel, or what stands for it in few bits

# First match wins; matched at the end of the path, so that moments and adapters follow their parameters.
# Specs are for one layer; stacked layers get a leading None.
PARTITION_RULES: tuple[tuple[str, P], ...] = (
    # All rows of some columns: see `lookup`.
    (r"embedding$", P(None, ("tensor", *PARAM_AXES))),
    (r"head$", P(PARAM_AXES, "tensor")),
    (r"score$", P()),
    (r"block_(scale|mean)$", P()),
    (r"experts/(gate|up)/kernel" + _STORED, P("expert", ("fsdp", "context"), "tensor")),
    (r"experts/down/kernel" + _STORED, P("expert", "tensor", ("fsdp", "context"))),
    (r"experts/(gate|up)/bias$", P("expert", "tensor")),
    (r"experts/down/bias$", P("expert", None)),
    (r"experts/(gate|up|down)/(constant_)?a$", P("expert", ("fsdp", "context"), None)),
    (r"experts/(gate|up|down)/(constant_)?b$", P("expert", None, ("fsdp", "context"))),
    (r"(router|projection|shared_gate)/kernel" + _STORED, P(PARAM_AXES, None)),
    (r"(query_a|key_value_a)/kernel" + _STORED, P(PARAM_AXES, None)),  # all of what is made is normed together
    (r"(query_a|key_value_a)/bias$", P()),
    (r"(query|key|value|query_b|key_value_b|output_gate|gate|up|decay|beta)/kernel" + _STORED, P(PARAM_AXES, "tensor")),
    (r"(out|down)/kernel" + _STORED, P("tensor", PARAM_AXES)),
    (r"(query|key|value|output_gate|gate|up)/bias$", P("tensor")),
    (r"/(constant_)?a$", P(PARAM_AXES, None)),
    (r"/(constant_)?b$", P(None, PARAM_AXES)),
    (r"(scale|bias|sinks|dropout|magnitude|delta/(conv|a_log))$", P()),
    (r"^effect/", P()),
    (r"/(count|v|v_row|v_col)$", P()),  # of Adafactor, which keeps whole second moments of small arrays only
)


def fit_spec(spec: P, shape: tuple[int, ...], axis_sizes: dict[str, int]) -> P:
    """`spec` without the axes that do not divide their dimension of `shape`."""
    fitted = []
    for dim, axes in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True):
        names = _names(axes)
        size = math.prod(axis_sizes[name] for name in names)
        fitted.append(axes if names and dim % size == 0 else None)
    return P(*fitted)


def spec_of(path: str, shape: tuple[int, ...], axis_sizes: Mapping[str, int]) -> P:
    """The PartitionSpec of the array at `path`; axes that do not divide their dimension are dropped.

    Raises:
        ValueError: no rule of the table matches a path that is not a scalar's.
    """
    if not shape:
        return P()
    for pattern, spec in PARTITION_RULES:
        if re.search(pattern, path):
            stacked = P(None, *spec) if is_stacked(path) else spec
            return fit_spec(stacked, shape, dict(axis_sizes))
    raise ValueError(f"no rule in PARTITION_RULES matches the parameter {path!r} of shape {shape}")


def layer_spec(path: str, shape: tuple[int, ...]) -> P:
    """The PartitionSpec of a parameter as a layer reads it: of one layer, on the mesh in force; whole without one.

    Raises:
        ValueError: as `spec_of`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return P() if mesh.empty else spec_of(without_layers(path), shape, dict(mesh.shape))


def gathered(spec: P) -> P:
    """`spec` without the axes along which a parameter is gathered before it is read; experts stay where they are."""
    return P(*(axes if axes == "expert" else _without(axes, PARAM_AXES) for axes in spec))


def without(spec: P, dropped: Collection[str]) -> P:
    """`spec` without those axes of the mesh."""
    return P(*(_without(axes, dropped) for axes in spec))


def _without(axes: str | tuple[str, ...] | None, dropped: Collection[str]) -> str | tuple[str, ...] | None:
    kept = tuple(axis for axis in _names(axes) if axis not in dropped)
    return (kept[0] if len(kept) == 1 else kept) if kept else None


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def context_parts() -> int:
    """Into how many parts the mesh in force deals out the sequences of training batches (`context.py`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["context"]


def constrain(x: Shaped[Array, "..."], *axes: str | tuple[str, ...] | None) -> Shaped[Array, "..."]:
    """Asks for `x` to be laid out over the mesh in force as `axes` says, one entry a dimension.

    Axes that do not divide their dimension are dropped, and so are those along which `jax.shard_map` has split it
    already. Outside `jax.set_mesh` this is the identity.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return x
    spec = without(P(*axes), mesh.manual_axes)
    return jax.lax.with_sharding_constraint(x, fit_spec(spec, x.shape, dict(mesh.shape)))


def gather_own(x: Shaped[Array, "..."], stored: P) -> Shaped[Array, "..."]:
    """Under `jax.shard_map`: a parameter, of which `x` is this device's part, as `gathered(stored)` has it."""
    for dim, axes in enumerate(stored):
        if names := several(_scattered(axes)):
            x = jax.lax.all_gather(x, names, axis=dim, tiled=True)
    return x


def sum_to_own(x: Shaped[Array, "..."], stored: P) -> Shaped[Array, "..."]:
    """The other way round: this device's part of the sum of all devices' `x`, which are parts of one gradient."""
    scattered = {axis for axes in stored for axis in _scattered(axes)}
    return sum_over(scatter_own(x, stored), tuple(axis for axis in (*BATCH_AXES, "context") if axis not in scattered))


def scatter_own(x: Shaped[Array, "..."], stored: P) -> Shaped[Array, "..."]:
    """This device's part of the sum of `x` over those devices that hold other parts of the parameter."""
    for dim, axes in enumerate(stored):
        if names := several(_scattered(axes)):
            scatter = functools.partial(jax.lax.psum_scatter, axis_name=names, scatter_dimension=dim, tiled=True)
            x = _reduced(scatter, x)
    return x


def sum_over(x: Shaped[Array, "..."], axes: tuple[str, ...]) -> Shaped[Array, "..."]:
    """Under `jax.shard_map`: the sum over the devices along these axes."""
    names = several(axes)
    return _reduced(functools.partial(jax.lax.psum, axis_name=names), x) if names else x


def _reduced(reduce: Callable[[Array], Array], x: Array) -> Array:
    """`reduce(x)`; on CPUs in float32, of what is as rounded: XLA cannot compile sums in bfloat16 for them."""
    wide = lambda x: reduce(x.astype(jnp.float32)).astype(x.dtype)
    return jax.lax.platform_dependent(x, cpu=wide, default=reduce)


def several(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Those axes along which the mesh in force has several devices."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return tuple(axis for axis in axes if sizes[axis] > 1)


def _scattered(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if axes == "expert" else tuple(axis for axis in _names(axes) if axis in PARAM_AXES)
