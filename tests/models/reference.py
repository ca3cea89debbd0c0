"""Random tiny Llamas in torch, the same weights here, and what a parity test must be able to notice."""

import copy
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from sft_jax.models import Decoder
from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import llama
from sft_jax.models.layouts import to_layout
from tests import tiny

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,  # wavelengths of 6, 63, 628 … positions: kept, interpolated, divided
}
CASES = {
    "tied": {"tie_word_embeddings": True, "rms_norm_eps": 0.02},
    "untied": {"tie_word_embeddings": False, "head_dim": 16},
    "llama3_rope": {"rope_scaling": LLAMA3_ROPE, "rope_theta": 1000.0, "num_attention_heads": 8},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


def torch_llama(seed: int = 0, **changes: object) -> transformers.LlamaForCausalLM:
    """A torch Llama of `tiny.HF_CONFIG` with `changes`, every parameter far from its initial value."""
    config = transformers.LlamaConfig(**copy.deepcopy(tiny.HF_CONFIG | changes))  # it writes into nested dicts
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(2.0 * parameter.shape[-1] ** -0.5 * noise)
    return model


def save(model: transformers.LlamaForCausalLM, directory: Path) -> Path:
    """The model as torch's own `save_pretrained` writes it."""
    model.save_pretrained(directory)
    return directory


def tokens(sequences: int, length: int, vocab_size: int = tiny.HF_CONFIG["vocab_size"], seed: int = 0) -> np.ndarray:
    """Random token ids, int32 [sequences, length]."""
    return np.random.default_rng(seed).integers(0, vocab_size, (sequences, length)).astype(np.int32)


def torch_logits(model: transformers.LlamaForCausalLM, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids).long()).logits.numpy()


def torch_gradients(model: transformers.LlamaForCausalLM, ids: np.ndarray, config: DecoderConfig) -> dict:
    """Gradient of the mean next-token loss, renamed and transposed by the family's table; unrolled layout."""
    model.zero_grad()
    wide = torch.from_numpy(ids).long()
    logits = model(input_ids=wide).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), wide[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    rules = {rule.source: rule for rule in llama.tensor_table(config)}
    return unflatten_dict({rules[n].path: rules[n].read(g) for n, g in gradients.items()}, sep="/")


def random_params(changes: dict, seed: int = 0) -> tuple[DecoderConfig, dict]:
    """Config and unrolled float32 parameters of a random tiny Llama, without torch's help."""
    hf_config = tiny.HF_CONFIG | changes
    config = llama.decoder_config(hf_config)
    stored, rng = tiny.tensors(hf_config, seed), np.random.default_rng(seed + 1)
    flat = {}
    for rule in llama.tensor_table(config):
        if rule.path is None:
            continue
        made = stored.get(rule.source)
        flat[rule.path] = rng.standard_normal(rule.shape) * 0.5 if made is None else rule.read(made)
        if rule.path.endswith(("kernel", "embedding", "head")):
            flat[rule.path] = flat[rule.path] * 2.0
    flat = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in flat.items()}
    return config, unflatten_dict(flat, sep="/")


def in_layout(params: dict, layout: str) -> dict:
    return to_layout(params, layout)


def unflatten(leaves: dict[str, Array]) -> dict:
    return unflatten_dict(leaves, sep="/")


def flat(tree: dict) -> dict[str, Array]:
    return flatten_dict(tree, sep="/")


def edited(tree: dict, suffix: str, edit) -> dict:
    """`tree` with every leaf whose path ends in `suffix` replaced by `edit(leaf)`; at least one must."""
    leaves = flat(tree)
    assert any(path.endswith(suffix) for path in leaves), suffix
    return unflatten_dict({p: edit(x) if p.endswith(suffix) else x for p, x in leaves.items()}, sep="/")


def relative(ours: Array, theirs: np.ndarray) -> float:
    """|ours - theirs| / |theirs| over a whole leaf."""
    theirs = np.asarray(theirs, np.float64)
    return float(np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs))


# Compiles in a third of the time; what tiny models run needs no optimisation.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnums=0)
def apply(model: Decoder, variables: dict, *args: Array) -> Array:
    """`model.apply`, compiled: one operation after the other, each is compiled alone, which takes longer."""
    return model.apply(variables, *args)


def logits_of(model: Decoder, params: dict, *args: np.ndarray) -> np.ndarray:
    """Logits of all positions; compiled once for each model."""
    return np.asarray(apply(model, {"params": params}, *args))
