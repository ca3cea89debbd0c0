"""Probes: zeros beside the kernels of layers, which take their gradients in the dtype of `precision.gradients`.

JAX gives a gradient the dtype of what it is the gradient of. So that those of float32 kernels can be bfloat16 from the
product to the optimizer, the loss is differentiated with respect to the probes in place of the kernels: a product that
is given a probe reads the kernel alone, and gives the kernel's gradient to the probe (`matmul.einsum`).

They are a collection of variables beside `params`, with the paths and shapes of the kernels there.
"""

from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from sft_jax.models.config import Execution
from sft_jax.models.variables import is_kernel_of_layer, split

Tree = Any

COLLECTION = "probes"


def with_probes(trained: Tree, execution: Execution) -> tuple[Tree, Tree]:
    """(what to differentiate with respect to, the kernels that are left out of it and have probes there).

    Args:
        trained: trained parameters and adapters, {"params": …, "adapters": …}.
        execution: of the decoder.
    """
    kernels, others = split_probed(trained, execution)
    zeros = {
        (COLLECTION, *path[1:]): jnp.zeros(kernel.shape, execution.gradient_dtype)
        for path, kernel in flatten_dict(kernels).items()
    }
    return {**others, **unflatten_dict(zeros)}, kernels


def split_probed(trained: Tree, execution: Execution) -> tuple[Tree, Tree]:
    """(kernels that have probes, all else that is trained); where gradients are float32 no kernel has one.

    Arguments as of `with_probes`; leaves may be shapes.
    """
    if execution.gradient_dtype == "float32" or not execution.gathers_weights:
        return {}, trained
    return split(trained, lambda path: path.startswith("params/") and is_kernel_of_layer(path))
