"""Which backend computes attention: by platform, and by what each of them can say.

    blocked    any device; its memory grows with the length of a sequence and, on accelerators, with its square
    splash     TPUs; on CPUs it is interpreted, for tests
    triton     GPUs; on CPUs it is interpreted, for tests
    reference  any device, all scores at once: what the others are tested against

There is none of cuDNN: what it is told by JAX's public functions says no segments, so that examples packed into one
sequence would see one another.
"""

from sft_jax.models.config import ATTENTION_BACKENDS, DecoderConfig

_BY_PLATFORM = {"cpu": ("blocked",), "tpu": ("splash", "blocked"), "gpu": ("triton", "blocked")}
_PLATFORM_OF = {"splash": "tpu", "triton": "gpu"}
_WIDEST_HEAD = 256  # of which blocks of queries, keys, values and gradients fit into the memory of a core


def problem(backend: str, platform: str, decoder: DecoderConfig, matmul_dtype: str) -> str | None:
    """What stands in the way of a backend; None where it can compute the model's attention.

    Args:
        backend: one of ATTENTION_BACKENDS.
        platform: of the devices it runs on (`cpu`, `tpu`, `gpu`).
        decoder: whose attention it is.
        matmul_dtype: dtype of the inputs of matrix products.
    """
    if backend not in _PLATFORM_OF or platform == "cpu":
        return None
    if platform != _PLATFORM_OF[backend]:
        return f"its kernels are for {_PLATFORM_OF[backend].upper()}s, and these devices are {platform.upper()}s"
    if matmul_dtype != "bfloat16":
        return f"its kernels multiply in bfloat16, and --config.precision.matmul is {matmul_dtype}"
    kinds = [decoder.of_layer(number) for number in range(decoder.num_layers)]
    if (width := max(max(kind.head_dim, kind.value_width) for kind in kinds)) > _WIDEST_HEAD:
        return f"its kernels have room for heads of {_WIDEST_HEAD}, and those of this model are {width} wide"
    return None


def choose_backend(asked: str, platform: str, decoder: DecoderConfig, matmul_dtype: str) -> str:
    """The backend that is asked for; `auto` is the first of the platform's that can compute the model's attention.

    Args:
        asked: `auto`, or one of ATTENTION_BACKENDS.
        platform: of the devices it runs on (`cpu`, `tpu`, `gpu`).
        decoder: whose attention it is.
        matmul_dtype: dtype of the inputs of matrix products.

    Raises:
        ValueError: the one that is asked for cannot (names the flag, what stands in the way, and what can).
    """
    can = [name for name in ATTENTION_BACKENDS if problem(name, platform, decoder, matmul_dtype) is None]
    if asked == "auto":
        return next(name for name in _BY_PLATFORM.get(platform, ("blocked",)) if name in can)
    if asked not in can:
        reason = problem(asked, platform, decoder, matmul_dtype)
        raise ValueError(f"--config.execution.attention={asked}: {reason}; give auto, or one of {', '.join(can)}")
    return asked
