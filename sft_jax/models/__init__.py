"""One decoder for every family: configuration, forward pass, adapters, and loading of pretrained parameters."""

from sft_jax.models.cache import init_cache
from sft_jax.models.config import AdapterSpec, DecoderConfig, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.loading import load_pretrained
from sft_jax.sources import load_tokenizer

__all__ = [
    "AdapterSpec",
    "Decoder",
    "DecoderConfig",
    "Execution",
    "init_cache",
    "load_pretrained",
    "load_tokenizer",
]
