"""A tiny pretrained checkpoint, its tokenizer, and tiny data: what most tests run on. No torch."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from configs import sft
from sft_jax.options import AdapterOptions, options_of
from sft_jax.runs.precision import with_dtypes

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HF_CONFIG = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, one token a byte, with the special tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2} | {c: i + 3 for i, c in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = CHATML
    return made


def tensors(hf_config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random Llama tensors under their Hugging Face names; norms and biases are random too."""
    rng = np.random.default_rng(seed)
    model, ffn = hf_config["hidden_size"], hf_config["intermediate_size"]
    query = hf_config["num_attention_heads"] * hf_config["head_dim"]
    kv = hf_config["num_key_value_heads"] * hf_config["head_dim"]

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    def scale() -> np.ndarray:
        return (1 + 0.2 * rng.standard_normal(model)).astype(np.float32)

    made = {"model.embed_tokens.weight": weight(hf_config["vocab_size"], model), "model.norm.weight": scale()}
    if not hf_config["tie_word_embeddings"]:
        made["lm_head.weight"] = weight(hf_config["vocab_size"], model)
    shapes = {
        "self_attn.q_proj": (query, model),
        "self_attn.k_proj": (kv, model),
        "self_attn.v_proj": (kv, model),
        "self_attn.o_proj": (model, query),
        "mlp.gate_proj": (ffn, model),
        "mlp.up_proj": (ffn, model),
        "mlp.down_proj": (model, ffn),
    }
    for layer in range(hf_config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        made |= {f"{prefix}.{name}.weight": weight(*shape) for name, shape in shapes.items()}
        made |= {f"{prefix}.{name}.weight": scale() for name in ("input_layernorm", "post_attention_layernorm")}
    return made


def write_checkpoint(directory: Path, seed: int = 0, **changes: object) -> Path:
    """A Hugging Face directory: config, weights, tokenizer with chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    hf_config = HF_CONFIG | changes
    (directory / "config.json").write_text(json.dumps(hf_config))
    save_file(tensors(hf_config, seed), str(directory / "model.safetensors"))
    tokenizer().save_pretrained(directory)
    return directory


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """Small conversations of varied length; the answer is the question's words reversed."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "seven", "cat", "tree", "I", "and", "of"]
    lines = []
    for _ in range(count):
        chosen = [words[i] for i in rng.integers(0, len(words), rng.integers(2, 8))]
        lines.append(json.dumps({"prompt": " ".join(chosen), "completion": " ".join(reversed(chosen))}))
    path.write_text("\n".join(lines) + "\n")
    return path


def adapter(**changes: object) -> AdapterOptions:
    """The adapter of `configs/sft.py:lora`, with changes."""
    return dataclasses.replace(options_of(sft.get_config("lora")).adapter, **changes)


def config(root: Path, arg: str = "full", **overrides: object) -> ConfigDict:
    """`configs/sft.py` shrunk to the tiny checkpoint, which is written below `root` with its data."""
    made = sft.get_config(arg).copy_and_resolve_references()
    if not (root / "model").exists():
        write_checkpoint(root / "model", num_hidden_layers=2)
        write_rows(root / "train.jsonl", 48)
        write_rows(root / "held_out.jsonl", 12, seed=1)
    made.model.source = str(root / "model")
    made.data.train, made.data.held_out = str(root / "train.jsonl"), str(root / "held_out.jsonl")
    made.data.sequence_length = 128
    made.data.cache = ""
    made.batch.sequences = 8
    made.duration = "6 steps"
    if overrides.get("adapter.method", made.adapter.method) != "none":
        made.adapter.rank, made.adapter.alpha = 4, 8.0
    made.optimizer.learning_rate = 1e-2
    made.optimizer.warmup = "2 steps"
    made.precision.matmul = "float32"
    made.evaluation.every = "3 steps"
    made.evaluation.samples = 0
    made.checkpoint.every = "2 steps"
    made.objective.head_chunk_tokens = 16
    made.update_from_flattened_dict(overrides)
    return with_dtypes(made, "cpu")  # as at the start of a run
