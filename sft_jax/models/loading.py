"""From a pretrained checkpoint to a decoder and its parameters."""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sft_jax.models.config import DecoderConfig, Execution, LayerLayout
from sft_jax.models.decoder import Decoder
from sft_jax.models.families import get_family
from sft_jax.models.families.tables import TensorRule
from sft_jax.models.layouts import to_layout
from sft_jax.sources import PretrainedCheckpoint, open_checkpoint

Placement = Callable[[str, np.ndarray], jax.Array]


def load_pretrained(
    source: str | os.PathLike,
    dtype: str = "float32",
    execution: Execution | None = None,
    revision: str | None = None,
) -> tuple[Decoder, dict]:
    """A decoder and its parameters from a pretrained checkpoint.

    Args:
        source: a Hugging Face directory, a `.gguf` file, a hub name, or a short name (`smollm2-135m-instruct`).
        dtype: dtype of the parameters.
        execution: how the decoder will be run; by default unsharded float32, scanned layers.
        revision: branch, tag or commit of a hub name.

    Returns:
        The Linen module and a nested dict of parameters: `model.apply({"params": params}, tokens)` gives logits
        [batch, sequence, vocab].

    Raises:
        ValueError: the checkpoint is of a family or has a feature, a tensor or a shape that is not implemented; all
            such tensors are named at once.
    """
    checkpoint = open_checkpoint(source, revision)
    execution = execution or Execution()
    model = Decoder(decoder_config(checkpoint), execution)
    return model, load_params(checkpoint, model.config, execution.layer_layout, dtype)


def decoder_config(checkpoint: PretrainedCheckpoint) -> DecoderConfig:
    """The decoder a checkpoint holds."""
    return get_family(checkpoint.config).decoder_config(checkpoint.config)


def load_params(
    checkpoint: PretrainedCheckpoint,
    config: DecoderConfig,
    layout: LayerLayout,
    dtype: str = "float32",
    place: Placement | None = None,
) -> dict:
    """The parameters of a checkpoint as a nested dict in `layout`.

    Args:
        checkpoint: what was opened.
        config: its decoder.
        layout: layer layout of the result.
        dtype: dtype of the result.
        place: puts a finished array (path, values) on its devices; by default the first device.
    """
    rules = get_family(checkpoint.config).tensor_table(config)
    _check_table(checkpoint, rules)
    place = place or (lambda path, array: jnp.asarray(array))
    arrays = {}
    for rule in rules:
        if rule.path is None:
            _check_ignored(checkpoint, rule)
            continue
        stored = checkpoint.tensors[rule.source].load()
        arrays[tuple(rule.path.split("/"))] = rule.transform(stored).astype(jnp.dtype(dtype))
    tree = to_layout(unflatten_dict(arrays), layout, stack=np.stack)
    flat = flatten_dict(tree)
    placed = {}
    for path in list(flat):  # pops, so that host memory is given back as arrays move to their devices
        placed[path] = place("/".join(path), flat.pop(path))
    return unflatten_dict(placed)


def _check_table(checkpoint: PretrainedCheckpoint, rules: list[TensorRule]) -> None:
    """All that is wrong with the tensors of a checkpoint, raised together."""
    problems = []
    for rule in rules:
        entry = checkpoint.tensors.get(rule.source)
        if entry is None:
            if rule.required:
                problems.append(f"{rule.source} is missing (expected shape {rule.shape})")
        elif tuple(entry.shape) != rule.shape:
            problems.append(f"{rule.source} has shape {tuple(entry.shape)}, expected {rule.shape}")
    known = {rule.source for rule in rules}
    problems += [f"{name} is not used by this model family" for name in checkpoint.tensors if name not in known]
    if problems:
        listed = "\n  ".join(problems[:20]) + (f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"{checkpoint.location} does not match its config.json:\n  {listed}")


def _check_ignored(checkpoint: PretrainedCheckpoint, rule: TensorRule) -> None:
    if not rule.equal_to or rule.source not in checkpoint.tensors:
        return
    if not np.array_equal(checkpoint.tensors[rule.source].load(), checkpoint.tensors[rule.equal_to].load()):
        raise ValueError(
            f"{checkpoint.location}: {rule.source} differs from {rule.equal_to}, although {rule.ignored}; set "
            "tie_word_embeddings to false in config.json to load it as a head of its own"
        )
