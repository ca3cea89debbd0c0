"""Mesh axes, and the one helper through which the model constrains activations.

Mesh axes exist even at size one, so that the same program runs anywhere:
`replica` repeats parameters, `fsdp` splits parameters and the batch, `expert` does the same and splits the experts of a
mixture among devices, `tensor` splits heads, FFN and vocabulary.
"""

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

MESH_AXES = ("replica", "fsdp", "expert", "tensor")
BATCH_AXES = ("replica", "fsdp", "expert")
PARAM_AXES = ("fsdp", "expert")  # over which parameters are split that are not experts'


def fit_spec(spec: P, shape: tuple[int, ...], axis_sizes: dict[str, int]) -> P:
    """`spec` without the axes that do not divide their dimension of `shape`."""
    fitted = []
    for dim, axes in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        size = 1
        for name in names:
            size *= axis_sizes[name]
        fitted.append(axes if names and dim % size == 0 else None)
    return P(*fitted)


def constrain(x: Shaped[Array, "..."], *axes: str | tuple[str, ...] | None) -> Shaped[Array, "..."]:
    """Asks for `x` to be laid out over the mesh in force as `axes` says, one entry a dimension.

    Axes that do not divide their dimension are dropped. Outside `jax.set_mesh` this is the identity.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, fit_spec(P(*axes), x.shape, dict(mesh.shape)))
