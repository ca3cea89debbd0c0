"""Which backend computes attention: by platform, and refused by name where it cannot."""

import dataclasses

import pytest

from sft_jax.models.attention.choice import choose_backend, problem
from sft_jax.models.config import ATTENTION_BACKENDS, DecoderConfig

LLAMA = DecoderConfig(128, 2, 64, 4, 2, 16, 96)
GEMMA = dataclasses.replace(LLAMA, layer_windows=(4096, 0), attention_softcap=50.0, head_dim=256)
WIDE = dataclasses.replace(LLAMA, head_dim=512)


@pytest.mark.parametrize(
    ("platform", "decoder", "dtype", "chosen"),
    [
        ("cpu", LLAMA, "bfloat16", "blocked"),
        ("tpu", LLAMA, "bfloat16", "splash"),
        ("gpu", LLAMA, "bfloat16", "triton"),
        ("tpu", GEMMA, "bfloat16", "splash"),  # windows and softcaps are said by all
        ("gpu", GEMMA, "bfloat16", "triton"),
        ("tpu", LLAMA, "float32", "blocked"),
        ("gpu", LLAMA, "float32", "blocked"),
        ("gpu", WIDE, "bfloat16", "blocked"),
    ],
)
def test_auto_is_the_first_that_can(platform, decoder, dtype, chosen):
    assert choose_backend("auto", platform, decoder, dtype) == chosen


@pytest.mark.parametrize("asked", ATTENTION_BACKENDS)
def test_what_is_asked_for_is_taken(asked):
    """On CPUs the kernels are interpreted, so that they can be tested there."""
    assert choose_backend(asked, "cpu", LLAMA, "float32") == asked


@pytest.mark.parametrize(
    ("asked", "platform", "decoder", "dtype", "reason"),
    [
        ("splash", "gpu", LLAMA, "bfloat16", "its kernels are for TPUs, and these devices are GPUs"),
        ("triton", "tpu", LLAMA, "bfloat16", "its kernels are for GPUs, and these devices are TPUs"),
        ("splash", "tpu", LLAMA, "float32", "its kernels multiply in bfloat16, and --config.precision.matmul is fl"),
        ("triton", "gpu", WIDE, "bfloat16", "its kernels have room for heads of 256, and those of this model are 512"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(asked, platform, decoder, dtype, reason):
    with pytest.raises(ValueError, match=f"^--config.execution.attention={asked}: ") as error:
        choose_backend(asked, platform, decoder, dtype)
    assert reason in str(error.value)
    given = str(error.value).rpartition("give auto, or one of ")[2].split(", ")
    assert {"blocked", "reference"} <= set(given)
    for backend in ["auto", *given]:  # the advice is good
        assert problem(choose_backend(backend, platform, decoder, dtype), platform, decoder, dtype) is None
