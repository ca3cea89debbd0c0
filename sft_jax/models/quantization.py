"""Frozen kernels in few bits: int8 with a scale a column, NF4 in blocks with their scales quantized too, or MXFP4.

A quantized kernel is a small dict of arrays where the kernel was; `dequantized` gives the kernel back, inside the step,
for one layer at a time. Kernels alone are quantized: embedding, head, norms and biases stay as they are. In MXFP4, in
which gpt-oss is published, are the kernels of experts alone.

Shapes: [*, I, O] a kernel, whose leading axes (layers, experts) are each quantized on their own.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from sft_jax.models import mxfp4
from sft_jax.sources.mxfp4 import VALUES_OF_BLOCK

Tree = Any
MXFP4 = "mxfp4"
KINDS = ("none", "int8", "nf4", MXFP4)
BLOCK = 64  # inputs that share a scale (Dettmers et al. 2023, QLoRA)
SCALES_BLOCK = 256  # scales that share a scale of their own

# The 16 values of NF4: quantiles of a normal distribution, with an exact 0 (QLoRA, appendix E).
NF4 = np.asarray(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
_BETWEEN = (NF4[1:] + NF4[:-1]) / 2
_KERNEL, _KERNEL_OF_EXPERTS = re.compile("(.*/)?kernel"), re.compile("(.*/)?experts/(gate|up|down)/kernel")


def is_in_few_bits(path: str, kind: str) -> bool:
    """Whether the parameter at a path is kept in few bits, where kernels are in this kind of them."""
    if kind == "none":
        return False
    return (_KERNEL_OF_EXPERTS if kind == MXFP4 else _KERNEL).fullmatch(path) is not None


def check_kernels(paths: Iterable[str], kind: str) -> None:
    """Raises ValueError where MXFP4 is asked for and no parameter of a model, by its path, would be in it."""
    if kind == MXFP4 and not any(is_in_few_bits(path, kind) for path in paths):
        raise ValueError(
            f"--config.precision.quantized={kind}: this model has no experts, which alone are kept in MXFP4; give nf4 "
            "or int8"
        )


def quantize(kernel: Float[Array, "*L I O"], kind: str) -> dict[str, Array]:
    """A kernel in few bits.

    Args:
        kernel: any float dtype; for NF4 an even number of inputs, for MXFP4 a multiple of 32.
        kind: `int8`: `values` int8 [*, I, O] and `scale` float32 [*, O], the largest of a column being 127. `nf4`:
            `codes` uint8 [*, I / 2, O], two inputs a byte; and the scale of each block of 64 inputs of a column, as
            int8 `block` [*, ceil(I / 64), O] times `block_scale` float32 [*, ceil(I / 64), ceil(O / 256)] plus
            `block_mean` [*]: 4.13 bits a weight. `mxfp4`: see `mxfp4.encode`, 4.25 bits a weight.

    Raises:
        ValueError: an odd number of inputs, or of MXFP4 one that its blocks do not divide.
    """
    if kind == "nf4" and kernel.shape[-2] % 2:
        raise ValueError(f"NF4 packs two inputs into a byte; a kernel has {kernel.shape[-2]}. Use int8.")
    if kind == MXFP4 and kernel.shape[-2] % VALUES_OF_BLOCK:
        raise ValueError(
            f"MXFP4 has blocks of {VALUES_OF_BLOCK} inputs; a kernel has {kernel.shape[-2]}. Use nf4 or int8."
        )
    function = {"int8": _to_int8, "nf4": _to_nf4, MXFP4: mxfp4.encode}[kind]
    for _ in range(kernel.ndim - 2):
        function = jax.vmap(function)
    return function(kernel.astype(jnp.float32))


def is_quantized(kernel: object) -> bool:
    """Whether this is what `quantize` gives."""
    return isinstance(kernel, Mapping) and ("values" in kernel or "codes" in kernel)


def dequantized(
    kernel: Float[Array, "*L I O"] | Mapping[str, Array], dtype: Any = jnp.float32
) -> Float[Array, "*L I O"]:
    """The kernel that `quantize` was given, rounded, in `dtype`; one that is not quantized as it is."""
    if not is_quantized(kernel):
        return kernel
    leaf = kernel["values" if "values" in kernel else "codes"]
    function = _from_int8 if "values" in kernel else mxfp4.decode if "exponents" in kernel else _from_nf4
    for _ in range(leaf.ndim - 2):
        function = jax.vmap(function)
    return function(dict(kernel)).astype(dtype)


def quantized_tree(params: Tree, kind: str) -> Tree:
    """Parameters with every kernel quantized; of MXFP4, every one of experts.

    Raises:
        ValueError: see `quantize` and `check_kernels`.
    """
    check_kernels(flatten_dict(params, sep="/"), kind)
    return _on_kernels(params, lambda path, kernel: quantize(kernel, kind) if is_in_few_bits(path, kind) else kernel)


def dequantized_tree(params: Tree) -> Tree:
    """Parameters with every quantized kernel given back, float32."""
    return _on_kernels(params, lambda path, kernel: dequantized(kernel))


def _on_kernels(tree: Tree, function: Callable[[str, Any], Any], above: str = "") -> Tree:
    """The tree with `function(path, kernel)` in the place of each kernel."""
    made = {}
    for name, node in tree.items():
        path = f"{above}{name}"
        if name == "kernel":
            made[name] = function(path, node)
        else:
            made[name] = _on_kernels(node, function, f"{path}/") if isinstance(node, Mapping) else node
    return made


def _to_int8(kernel: Float[Array, "I O"]) -> dict[str, Array]:
    scale = jnp.max(jnp.abs(kernel), axis=0) / 127
    values = jnp.round(kernel / jnp.where(scale > 0, scale, 1.0)[None])
    return {"values": values.astype(jnp.int8), "scale": scale}


def _from_int8(arrays: dict[str, Array]) -> Float[Array, "I O"]:
    return arrays["values"].astype(jnp.float32) * arrays["scale"][None]


def _to_nf4(kernel: Float[Array, "I O"]) -> dict[str, Array]:
    inputs, outputs = kernel.shape
    blocks = -(-inputs // BLOCK)
    padded = jnp.pad(jnp.abs(kernel), ((0, blocks * BLOCK - inputs), (0, 0)))
    scales = _to_scales(jnp.max(padded.reshape(blocks, BLOCK, outputs), axis=1))
    scale = _of_inputs(scales, inputs)  # as it will be read, so that the codes make up for its rounding
    relative = kernel / jnp.where(jnp.abs(scale) > 0, scale, 1.0)
    codes = jnp.searchsorted(jnp.asarray(_BETWEEN), relative).astype(jnp.uint8)
    return {"codes": codes[0::2] * jnp.uint8(16) + codes[1::2], **scales}


def _from_nf4(arrays: dict[str, Array]) -> Float[Array, "I O"]:
    pairs = arrays["codes"]
    codes = jnp.stack([pairs >> 4, pairs & jnp.uint8(15)], axis=1).reshape(-1, pairs.shape[1])
    return jnp.take(jnp.asarray(NF4), codes.astype(jnp.int32)) * _of_inputs(arrays, codes.shape[0])


def _to_scales(scale: Float[Array, "blocks O"]) -> dict[str, Array]:
    """Each scale as its distance from the mean, in 1/127 of the largest of 256 that lie side by side."""
    mean = jnp.mean(scale)
    groups = _in_groups(scale - mean)
    largest = jnp.max(jnp.abs(groups), axis=-1) / 127
    codes = jnp.round(groups / jnp.where(largest > 0, largest, 1.0)[..., None]).astype(jnp.int8)
    codes = codes.reshape(scale.shape[0], -1)[:, : scale.shape[1]]
    return {"block": codes, "block_scale": largest, "block_mean": mean}


def _of_inputs(arrays: dict[str, Array], inputs: int) -> Float[Array, "I O"]:
    """The scale of each weight."""
    outputs = arrays["block"].shape[1]
    groups = _in_groups(arrays["block"].astype(jnp.float32)) * arrays["block_scale"][..., None]
    scale = groups.reshape(groups.shape[0], -1)[:, :outputs] + arrays["block_mean"]
    return jnp.repeat(scale, BLOCK, axis=0)[:inputs]


def _in_groups(x: Float[Array, "blocks O"]) -> Float[Array, "blocks groups 256"]:
    groups = -(-x.shape[1] // SCALES_BLOCK)
    padded = jnp.pad(x, ((0, 0), (0, groups * SCALES_BLOCK - x.shape[1])))
    return padded.reshape(x.shape[0], groups, SCALES_BLOCK)
