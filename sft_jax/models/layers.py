"""The parts that the decoder's layers are made of: norms, linear projections, activations with and without a gate.

Dimensions as in `decoder`, and I inputs, O outputs.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from sft_jax.models import adapters, probes
from sft_jax.models.config import AdapterSpec, DecoderConfig, Execution
from sft_jax.models.context import dealt
from sft_jax.models.matmul import Weight, einsum
from sft_jax.models.partitioning import constrain, context_parts, gathered, layer_spec
from sft_jax.models.quantization import dequantized, is_quantized

Matmul = Callable[[Array, Array], Array]  # inputs [*, I] and weights -> outputs [*, O], float32


class Norm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019) or layer norm (Ba et al. 2016), computed in float32."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last axis."""
        config, width = self.config, (x.shape[-1],)
        scale = self.param("scale", nn.initializers.constant(1.0 - config.norm_offset), width)
        if config.norm == "layer":
            bias = self.param("bias", nn.initializers.zeros_init(), width)
            return _standardised(x, scale, bias, config.norm_eps)
        return _normalised(x, scale, config.norm_offset, config.norm_eps)


# Both keep their inputs for the backward pass, nothing between.


@functools.partial(jax.checkpoint, static_argnums=(2, 3))
def _normalised(x: Float[Array, "*B D"], scale: Float[Array, "D"], offset: float, eps: float) -> Float[Array, "*B D"]:
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    return (normed * (_wide(scale, x.ndim) + offset)).astype(x.dtype)


@functools.partial(jax.checkpoint, static_argnums=1)
def unscaled_norm(x: Float[Array, "*B D"], eps: float) -> Float[Array, "*B D"]:
    """The last axis divided by its root mean square, without a learned scale."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)).astype(x.dtype)


@functools.partial(jax.checkpoint, static_argnums=3)
def _standardised(
    x: Float[Array, "*B D"], scale: Float[Array, "D"], bias: Float[Array, "D"], eps: float
) -> Float[Array, "*B D"]:
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps)
    return (normed * _wide(scale, x.ndim) + _wide(bias, x.ndim)).astype(x.dtype)


def _wide(vector: Array, ndim: int) -> Array:
    """float32 [1, …, 1, D]."""
    return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector.shape)


class Linear(nn.Module):
    """A linear projection, as in every layer but in experts: matrix product, bias and adapter.

    Attributes:
        features: outputs.
        use_bias: whether it adds a bias.
        execution: how it is computed.
        adapter: what may be beside the kernel.
        transposed: the kernel is [O, I], which for few inputs is a faster product on CPUs; without adapter.
    """

    features: int
    use_bias: bool
    execution: Execution
    adapter: AdapterSpec | None
    transposed: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B S I"]) -> Float[Array, "B S O"]:
        """Applies the kernel [I, O] and what the adapter adds to it."""
        execution = self.execution
        kernel, dtype = stored_kernel(self), execution.matmul_dtype
        if kernel is None:
            shape = (x.shape[-1], self.features)
            kernel = self.param("kernel", nn.initializers.lecun_normal(), shape[::-1] if self.transposed else shape)

        def product(x: Array, weight: Array, name: str, probe: Array | None = None) -> Array:
            spec = "bsi,oi->bso" if self.transposed else "bsi,io->bso"
            lies = weight_of(self, name, weight.shape)
            return einsum(spec, x, weight, dtype, execution.product_dtype, lies, probe)

        def matmul(x: Array, weight: Array) -> Array:  # of an adapter, whose longer side is split
            return product(x, weight, "a" if weight.shape[0] >= weight.shape[1] else "b")

        if is_quantized(kernel):  # what is kept for the backward pass, and gathered, is the kernel in few bits
            few_bits = jax.checkpoint(
                lambda x, kernel: einsum("bsi,io->bso", x, self._expanded(kernel), dtype, execution.product_dtype)
            )
            output = few_bits(x, kernel)
        else:
            output = product(x, kernel, "kernel", probe_of_kernel(self))
        output = output.astype(execution.activation_dtype)
        arrays = self.variables.get(adapters.COLLECTION)
        if self.adapter is not None and arrays:
            key = self.make_rng("dropout") if self.adapter.dropout else None
            output = adapted(
                self.adapter, x, dequantized(kernel), output, dict(arrays), matmul, key, dealt_to=context_parts()
            )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            output = output + bias.astype(output.dtype)[None, None]
        return checkpoint_name(output, self.name)  # for `remat.SAVED`

    def _expanded(self, kernel: dict[str, Array]) -> Float[Array, "I O"]:
        """The kernel of few bits, which are gathered as they are."""
        for name, bits in kernel.items():
            weight = weight_of(self, f"kernel/{name}", bits.shape)
            kernel = kernel if weight is None else kernel | {name: constrain(bits, *gathered(weight.stored))}
        return dequantized(kernel, self.execution.matmul_dtype)


def weight_of(module: nn.Module, name: str, shape: tuple[int, ...]) -> Weight | None:
    """How the module's parameter of that name lies on the mesh in training; None where that is left to the compiler."""
    if not module.execution.gathers_weights:
        return None
    return Weight(layer_spec("/".join((*module.path, name)), shape), module.execution.gradient_dtype)


def stored_kernel(module: nn.Module) -> dict[str, Array] | None:
    """The module's kernel where it is stored in few bits, which no initialiser of Linen describes."""
    kernel = module.variables.get("params", {}).get("kernel")
    return kernel if is_quantized(kernel) else None


def probe_of_kernel(module: nn.Module) -> Array | None:
    """What takes the gradient of the module's kernel in place of the kernel, where there is one (`probes`)."""
    return module.variables.get(probes.COLLECTION, {}).get("kernel")


def adapted(
    adapter: AdapterSpec,
    x: Array,
    kernel: Float[Array, "*E I O"],
    output: Float[Array, "*B O"],
    arrays: dict[str, Array],
    matmul: Matmul,
    dropout_key: PRNGKeyArray | None,
    dealt_to: int = 1,
) -> Float[Array, "*B O"]:
    """What an adapter makes of `output`, the product of `x` and `kernel`; `x` loses parts where there is a key.

    Where tokens are dealt out (to `dealt_to` devices), a token loses what it would lose where they are not.
    """
    if dropout_key is not None:
        keep = 1.0 - arrays["dropout"]
        kept = jax.random.bernoulli(dropout_key, keep, x.shape)
        kept = kept if dealt_to == 1 else dealt(kept, dealt_to)
        x = jnp.where(kept, x / keep, 0).astype(x.dtype)
    return adapters.get_method(adapter.method).apply(x, kernel, output, arrays, matmul)


_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_sigmoid": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Hendrycks and Gimpel 2016
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@functools.partial(jax.checkpoint, static_argnums=2)  # as in the norm
def gated(gate: Float[Array, "*B F"], up: Float[Array, "*B F"], config: DecoderConfig) -> Float[Array, "*B F"]:
    """activation(gate) * up, of which the config may clamp both and add a number to `up`."""
    if config.ffn_clamp:
        gate, up = jnp.minimum(gate, config.ffn_clamp), jnp.clip(up, -config.ffn_clamp, config.ffn_clamp)
    if config.up_offset:
        up = up + jnp.asarray(config.up_offset, up.dtype)
    return _ACTIVATIONS[config.activation](gate) * up


@functools.partial(jax.checkpoint, static_argnums=1)
def activated(up: Float[Array, "*B F"], activation: str) -> Float[Array, "*B F"]:
    """activation(up)."""
    return _ACTIVATIONS[activation](up)
