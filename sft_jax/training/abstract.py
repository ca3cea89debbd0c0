"""Describes the state of a run before it exists: shapes, dtypes and shardings.

They follow from the options, the decoder and the mesh: no weight is read, nothing is computed or placed, and the
devices of the mesh need not be there. `init_state` makes the arrays.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from sft_jax.models.config import DecoderConfig
from sft_jax.models.decoder import Decoder
from sft_jax.models.initial import parameter_shapes
from sft_jax.models.layouts import to_layout
from sft_jax.models.loading import cast
from sft_jax.options import Options
from sft_jax.runs.adapting import has_adapters
from sft_jax.runs.freezing import weight_shapes
from sft_jax.sharding import abstract_like, path_string, shardings_of
from sft_jax.training.effect import no_counts
from sft_jax.training.optimizer import OptimizerSettings, hyperparameters, make_optimizer, optimizer_settings
from sft_jax.training.state import TrainState

Tree = Any
_GIVEN = ("trained", "frozen", "hyper", "seed", "base", "teacher")


def abstract_state(
    options: Options, decoder: DecoderConfig, mesh: Mesh, layout: str, teacher: Decoder | None = None
) -> TrainState:
    """Shapes, dtypes and shardings of the whole train state.

    Args:
        options: of the run, with what an adapter to begin with says of itself.
        decoder: of the base, with the embeddings of its new tokens.
        mesh: over which the arrays are spread; its devices are only named.
        layout: layer layout of weights, adapters and moments.
        teacher: that the state holds.

    Raises:
        ValueError: adapters have no place in this model, or its kernels none in so few bits; says what to give.
    """
    trained, frozen = weight_shapes(options, decoder, layout)
    hyper = jax.eval_shape(lambda: hyperparameters(options, warmup_steps=0, total_steps=1))
    base = {}
    if keeps_base(options):
        base = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype_of_kept(options)), trained)
    of_teacher = {} if teacher is None else teacher_shapes(teacher, options.precision.frozen)
    kept = {"ema": options.ema.decay > 0, "base": base, "teacher": of_teacher}
    return abstract_around(trained, frozen, hyper, optimizer_settings(options.optimizer), mesh, **kept)


def teacher_shapes(teacher: Decoder, dtype: str) -> Tree:
    """{"params": …}: shapes and dtypes of a teacher's weights, as it reads them."""
    as_read = lambda params: to_layout(cast(params, dtype), teacher.layout)
    return {"params": jax.eval_shape(as_read, parameter_shapes(teacher.config))}


def keeps_base(options: Options) -> bool:
    """Whether the state holds a copy of what is trained as it was at first, for a divergence from it.

    Under adapters the frozen weights are the base; an adapter to begin with is part of what a policy began as.
    """
    objective, beside = options.objective, has_adapters(options.adapter)
    return (objective.kl_to_base > 0 and not beside) or (
        objective.kl_weight > 0 and (not beside or bool(options.adapter.initial))
    )


def dtype_of_kept(options: Options) -> str:
    """That of the copy: of weights as frozen ones are kept, of adapters as they are."""
    return "float32" if has_adapters(options.adapter) else options.precision.frozen


def abstract_around(
    trained: Tree,
    frozen: Tree,
    hyper: dict[str, Any],
    optimizer: OptimizerSettings,
    mesh: Mesh,
    *,
    ema: bool = False,
    base: Tree | None = None,
    teacher: Tree | None = None,
) -> TrainState:
    """The same around parameters that are given, as arrays or as shapes: moments are laid out like what they are of."""
    beside = jax.eval_shape(lambda trained, hyper: init_rest(trained, hyper, optimizer, ema=ema), trained, hyper)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    kept = {"base": base or {}, "teacher": teacher or {}}
    shapes = TrainState(trained=trained, frozen=frozen, hyper=hyper, seed=seed, **kept, **beside)
    return abstract_like(shapes, shardings_of(shapes, mesh))


def init_rest(trained: Tree, hyper: dict[str, Array], optimizer: OptimizerSettings, *, ema: bool) -> dict[str, Tree]:
    """The rest of a state at step 0, beside parameters and hyperparameters; with `ema`, its average too."""
    # Sums over all steps, of which a rule may have some, stay in float32 where parameters are not.
    wide_scalar = lambda leaf: leaf if leaf.ndim or leaf.dtype != jnp.bfloat16 else leaf.astype(jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    moments = make_optimizer(optimizer, hyper, hyper["learning_rate"]).init(trained)
    return {
        "step": zero,
        "opt_state": jax.tree.map(wide_scalar, moments),
        "skipped": zero,
        "skipped_in_a_row": zero,
        "ema": jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained) if ema else {},
        "effect": no_counts(trained),
    }


def abstract_rest(abstract: TrainState) -> dict[str, Tree]:
    """The description of what `init_rest` makes: all of the state but parameters, hyperparameters, seed."""
    names = (field.name for field in dataclasses.fields(abstract))
    return {name: getattr(abstract, name) for name in names if name not in _GIVEN}


def placed_as_described(abstract: Tree, arrays: Tree) -> Tree:
    """`arrays`, each where `abstract` says it lives; those that are there already are not moved.

    Raises:
        ValueError: they are not what `abstract` describes; names those that are not.
    """
    described, found = _kinds(abstract), _kinds(arrays)
    differ = [
        f"{path} is {found.get(path, 'missing')}, expected {described.get(path, 'none')}"
        for path in sorted(described.keys() | found.keys())
        if described.get(path) != found.get(path)
    ]
    if differ:
        listed = "\n  ".join(differ[:20]) + (f"\n  … and {len(differ) - 20} more" if len(differ) > 20 else "")
        raise ValueError(f"the arrays of the state are not those that the config describes:\n  {listed}")
    return jax.device_put(arrays, jax.tree.map(lambda leaf: leaf.sharding, abstract))


def _kinds(tree: Tree) -> dict[str, str]:
    """`float32 [320, 32]` by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_string(path): f"{np.dtype(leaf.dtype)} {list(leaf.shape)}" for path, leaf in leaves}
