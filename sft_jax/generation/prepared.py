"""Weights prepared once for inference, so that no token pays for what is the same for all of them.

What is measured or continued first goes through `prepare`: from the parameters and adapters of a run, or of a
pretrained checkpoint, to what the sampler and the log-likelihoods apply.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding

from sft_jax.models import adapters, per_layer, rope
from sft_jax.models.adapters import new_tokens
from sft_jax.models.decoder import Decoder
from sft_jax.models.decoder_layer import GATE_UP, QUERY_KEY_VALUE
from sft_jax.models.loading import DtypeOf
from sft_jax.models.partitioning import gathered, spec_of
from sft_jax.models.quantization import dequantized_tree
from sft_jax.models.variables import merge_adapters
from sft_jax.sharding import path_string

Tree = Any
_SECOND_EMBEDDING = f"{per_layer.NAME}/embedding"  # its rows take the dtype of activations before they are scaled


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model ready for inference.

    Attributes:
        model: the decoder; without an adapter where that is merged.
        variables: what its `apply` takes.
    """

    model: Decoder
    variables: Tree

    def for_texts_of(self, tokens: int) -> "Prepared":
        """The same for texts of so many tokens alone, where rotary frequencies change with that (`rope.of_length`)."""
        return dataclasses.replace(self, model=self.model.clone(config=rope.of_length(self.model.config, tokens)))


def dtypes_for_inference(model: Decoder) -> DtypeOf:
    """The dtype to load each parameter in, so that `prepare` has nothing to cast, and the numbers are the same.

    What matrix products alone read is loaded as they read it. An embedding that is stored in bfloat16 stays so where it
    is not scaled when it is looked up, which would round; all else, which is small, is float32.
    """

    def dtype_of(path: str, stored: np.dtype) -> str:
        if _is_operand(tuple(path.split("/"))):
            return model.execution.matmul_dtype
        is_exact = path == _SECOND_EMBEDDING or (path == "embedding" and model.config.embedding_scale == 1.0)
        return "bfloat16" if is_exact and stored == jnp.bfloat16 else "float32"

    return dtype_of


def prepare(model: Decoder, variables: Tree) -> Prepared:
    """A model and its weights for inference; call it inside `jax.set_mesh` where there is a mesh.

    Kernels are cast to the matmul dtype, to which each product would cast them: the same numbers, and less memory to
    read (of DoRA, norms are then those of rounded kernels). Those in few bits are expanded to it. A head that is the
    embedding is copied in that dtype, unless an adapter changes it; or it would be cast for every token. Adapters
    are merged where products are in float32, which changes results by rounding alone (1e-6); in bfloat16 the sum would
    be rounded to 8 bits, and the adapter stays beside the weights, as in training. On a mesh, weights are split over
    `tensor` and whole on every device along the other axes, so that no token gathers them; the kernels of experts stay
    split over `expert`. On CPUs, projections of the same inputs become one, and the head and the kernels of the
    feed-forward part are transposed, which makes products of few rows faster, unless adapters or a mesh need them as
    they are. Elsewhere weights that are in the matmul dtype already take no second place in memory.

    Args:
        model: as it is evaluated.
        variables: what its `apply` takes, in its layer layout.
    """
    merges = model.adapter is not None and model.execution.matmul_dtype == "float32"
    beside = () if merges else variables.get(adapters.COLLECTION, {})
    copies = model.config.tie_embeddings and not {"embedding", new_tokens.NAME} & set(beside)
    copies = copies and model.execution.matmul_dtype != variables["params"]["embedding"].dtype
    mesh = jax.sharding.get_abstract_mesh()
    lays_out = _on_cpus(variables) and (merges or not beside) and (mesh.empty or mesh.shape["tensor"] == 1)
    flat = flatten_dict(variables)
    # A program copies what it returns: what is ready does not go through it.
    ready = {} if merges or lays_out else {path: leaf for path, leaf in flat.items() if _is_ready(model, path, leaf)}
    rest = unflatten_dict({path: leaf for path, leaf in flat.items() if path not in ready})
    made = _for_products(model, merges, copies, lays_out, rest, ready.get(("params", "embedding")))
    variables = unflatten_dict({**flatten_dict(made), **ready})
    if not mesh.empty:
        variables = jax.device_put(variables, _whole_but_for_tensor(variables, jax.sharding.get_mesh()))
    config = dataclasses.replace(model.config, tie_embeddings=model.config.tie_embeddings and not copies)
    execution = dataclasses.replace(model.execution, prepared=lays_out)
    return Prepared(
        model.clone(config=config, execution=execution, adapter=None if merges else model.adapter), variables
    )


def _on_cpus(variables: Tree) -> bool:
    return next(iter(variables["params"]["embedding"].devices())).platform == "cpu"


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _for_products(
    model: Decoder, merges: bool, copies: bool, lays_out: bool, variables: Tree, embedding: jax.Array | None
) -> Tree:
    dtype = model.execution.matmul_dtype
    if merges:
        variables = {"params": merge_adapters(variables, model.adapter.method, model.adapter.first_new_token)}
    # In float32 first, as where they are expanded for each product.
    variables = {**variables, "params": dequantized_tree(variables.get("params", {}))}
    flat = flatten_dict(variables)
    if copies:
        flat["params", "head"] = (flat["params", "embedding"] if embedding is None else embedding).T
    flat = {path: leaf.astype(dtype) if _is_operand(path) else leaf for path, leaf in flat.items()}
    return unflatten_dict(_laid_out(flat) if lays_out else flat)


def _laid_out(flat: dict[tuple[str, ...], jax.Array]) -> dict[tuple[str, ...], jax.Array]:
    """The arrays as `Execution.prepared` says; experts and gated delta nets keep theirs."""
    joined = dict(flat)
    for names, modules in ((QUERY_KEY_VALUE, ("attention",)), (GATE_UP, ("ffn", "shared"))):
        for path in [path for path in flat if path[-2] == names[0] and path[-3] in modules]:
            if not all((*path[:-2], name, path[-1]) in flat for name in names):
                continue  # queries alone, where keys and values are made of a latent vector
            parts = [joined.pop((*path[:-2], name, path[-1])) for name in names]
            joined[(*path[:-2], "_".join(names), path[-1])] = jnp.concatenate(parts, axis=-1)
    return {path: jnp.swapaxes(leaf, -2, -1) if _is_transposed(path) else leaf for path, leaf in joined.items()}


def _is_transposed(path: tuple[str, ...]) -> bool:
    return path[-1] == "head" or (path[-1] == "kernel" and path[-3] in ("ffn", "shared"))


def _is_ready(model: Decoder, path: tuple[str, ...], leaf: jax.Array) -> bool:
    """Whether it is used as it is: neither to be cast nor a part of a kernel in few bits."""
    return path[-2] != "kernel" and (not _is_operand(path) or leaf.dtype == model.execution.matmul_dtype)


def _is_operand(path: tuple[str, ...]) -> bool:
    """Whether matrix products alone read it. The embedding is looked up too."""
    return path[-1] in ("kernel", "head")


def _whole_but_for_tensor(variables: Tree, mesh: jax.sharding.Mesh) -> Tree:
    sizes = dict(mesh.shape)

    def sharding(path: tuple, leaf: jax.Array) -> NamedSharding:
        return NamedSharding(mesh, gathered(spec_of(path_string(path), leaf.shape, sizes)))

    return jax.tree_util.tree_map_with_path(sharding, variables)
