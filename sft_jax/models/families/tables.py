"""What a family's two tables are made of: reading a Hugging Face config, and rules for its tensors."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from sft_jax.models.config import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

# Fields of a config that do not change what the decoder computes. Dropout of pretraining is not used in fine-tuning.
_WITHOUT_EFFECT = (
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "use_cache",
)


class ConfigReader:
    """A Hugging Face config that notices which fields nobody asked for."""

    def __init__(self, hf_config: dict):
        self._fields, self._read = hf_config, set(_WITHOUT_EFFECT)

    def get(self, key: str, default: Any = None) -> Any:
        """The field, or the default where it is absent or null."""
        self._read.add(key)
        value = self._fields.get(key)
        return default if value is None else value

    def get_nullable(self, key: str, absent: Any) -> Any:
        """The field, which may be null; `absent` only where it is not there at all."""
        self._read.add(key)
        return self._fields.get(key, absent)

    def require(self, key: str) -> Any:
        """The field.

        Raises:
            ValueError: it is missing; names it.
        """
        self._read.add(key)
        return require(self._fields, key)

    def expect(self, key: str, *allowed: Any) -> Any:
        """The field, which must be one of `allowed`; the first is its default.

        Raises:
            ValueError: it asks for something that is not implemented.
        """
        value = self.get(key, allowed[0])
        if value not in allowed:
            expected = ", ".join(map(repr, allowed))
            raise ValueError(f"config.json has {key}={value!r}; implemented for {self._family}: {expected}")
        return value

    def skip(self, *keys: str) -> None:
        """Notes fields that say nothing which is not known otherwise."""
        self._read.update(keys)

    def finish(self) -> None:
        """Checks that every field was understood.

        Raises:
            ValueError: fields that may change the function and are not implemented; names them all.
        """
        left = {k: v for k, v in self._fields.items() if k not in self._read and v not in (None, False, 0, [], {}, "")}
        if left:
            listed = ", ".join(f"{key}={str(value)[:60]}" for key, value in sorted(left.items()))
            raise ValueError(f"config.json has fields that are not implemented for {self._family}: {listed}")

    @property
    def _family(self) -> str:
        return f"model_type={self._fields.get('model_type')!r}"


def sizes(config: ConfigReader) -> dict[str, Any]:
    """The fields of `DecoderConfig` that most families spell alike."""
    heads, width = config.require("num_attention_heads"), config.require("hidden_size")
    config.skip("head_dim_original")
    return {
        "vocab_size": config.require("vocab_size"),
        "num_layers": config.require("num_hidden_layers"),
        "model_dim": width,
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads", heads),
        "head_dim": config.get("head_dim", width // heads),
        "ffn_dim": config.require("intermediate_size"),
        "max_positions": config.get("max_position_embeddings", 2048),
    }


def experts(config: ConfigReader, count: int, per_token: int) -> dict[str, int]:
    """The fields of `DecoderConfig` about experts; what a checkpoint says of its own training is left aside."""
    config.skip("router_aux_loss_coef", "output_router_logits")
    config.expect("router_jitter_noise", 0.0)
    return {"num_experts": count, "experts_per_token": per_token}


def rope(config: ConfigReader, head_dim: int, theta_key: str = "rope_theta", default_theta: float = 10000.0) -> dict:
    """`rope_theta`, `rope_scaling` and `rope_dim` from either spelling: `rope_parameters`, or fields of their own.

    `dynamic` is the default rope up to the positions the model knows, beyond which nothing here goes.
    """
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    given = {**scaling, **parameters}
    theta = float(given.get("rope_theta", config.get(theta_key, default_theta)))
    share = float(
        given.get("partial_rotary_factor", config.get("partial_rotary_factor", config.get("rotary_pct", 1.0)))
    )
    known = int(config.get("original_max_position_embeddings", config.get("max_position_embeddings", 2048)))
    return {
        "rope_theta": theta,
        "rope_scaling": _scaling(given, known),
        "rope_dim": 0 if share == 1.0 else int(head_dim * share),
    }


def _scaling(given: dict, known: int) -> RopeScaling | None:
    kind = given.get("rope_type", given.get("type", "default"))
    if kind in ("default", "dynamic"):
        return None
    if kind == "linear":
        return LinearScaling(float(require(given, "factor")))
    if kind == "llama3":
        return Llama3Scaling(
            factor=float(require(given, "factor")),
            low_freq_factor=float(require(given, "low_freq_factor")),
            high_freq_factor=float(require(given, "high_freq_factor")),
            original_max_positions=int(require(given, "original_max_position_embeddings")),
        )
    if kind == "yarn":
        return _yarn(given, known)
    raise ValueError(
        f"config.json asks for rope_type={kind!r}; implemented: 'default', 'dynamic', 'linear', 'llama3', 'yarn'"
    )


def _yarn(given: dict, known: int) -> YarnScaling:
    original = int(given.get("original_max_position_embeddings") or known)
    factor = float(given.get("factor") or known / original)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * float(np.log(factor)) + 1.0 if factor > 1 else 1.0

    above, below = given.get("mscale"), given.get("mscale_all_dim")
    inferred = magnitude(above) / magnitude(below) if above and below else magnitude(1.0)
    stated = given.get("attention_factor")
    return YarnScaling(
        factor=factor,
        original_max_positions=original,
        beta_fast=float(given.get("beta_fast") or 32),
        beta_slow=float(given.get("beta_slow") or 1),
        attention_factor=float(inferred if stated is None else stated),
        truncate=bool(given.get("truncate", True)),
    )


def windows(
    config: ConfigReader, num_layers: int, slides: Callable[[int], bool], absent: int = 4096
) -> tuple[int, ...]:
    """The window of each layer, 0 for all positions.

    Args:
        config: `sliding_window`, and `layer_types` where it is given.
        num_layers: layers.
        slides: which layers have the window where `layer_types` does not say.
        absent: the window where the config does not speak of one; null is none.
    """
    window, kinds = config.get_nullable("sliding_window", absent) or 0, config.get("layer_types")
    if kinds is not None:
        unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
        if unknown or len(kinds) != num_layers:
            raise ValueError(
                f"config.json has layer_types={kinds}; implemented: 'sliding_attention' or 'full_attention' for each "
                f"of {num_layers} layers"
            )
    sliding = [kind == "sliding_attention" for kind in kinds] if kinds else [slides(i) for i in range(num_layers)]
    found = tuple(window if is_sliding else 0 for is_sliding in sliding)
    return found if any(found) else ()


def keep(array: np.ndarray) -> np.ndarray:
    """The tensor as it is stored."""
    return array


def transpose(array: np.ndarray) -> np.ndarray:
    """torch stores a linear layer as [out, in]; kernels here are [in, out]."""
    return array.T


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """One Hugging Face tensor, or a part of one: where it goes here, or why it is ignored.

    Attributes:
        source: its Hugging Face name.
        path: our parameter path in the unrolled layout (`layers_3/ffn/up/kernel`); None if it is ignored.
        shape: shape it must have in the file.
        transform: from the stored array to ours.
        ignored: reason for ignoring it.
        equal_to: an ignored duplicate must equal this other tensor.
        required: False for a tensor that a checkpoint may leave out.
        part: (number, count) where `count` such tensors, along a new leading axis, make the parameter.
    """

    source: str
    path: str | None
    shape: tuple[int, ...]
    transform: Callable[[np.ndarray], np.ndarray] = keep
    ignored: str = ""
    equal_to: str = ""
    required: bool = True
    part: tuple[int, int] | None = None


def linear(source: str, path: str, fan_in: int, fan_out: int, bias: bool = False) -> list[TensorRule]:
    """Kernel, and bias if there is one, of a torch linear layer."""
    rules = [TensorRule(f"{source}.weight", f"{path}/kernel", (fan_out, fan_in), transpose)]
    return [*rules, TensorRule(f"{source}.bias", f"{path}/bias", (fan_out,))] if bias else rules


def fused_linear(
    source: str, paths: dict[str, int], fan_in: int, bias: bool = False, turned: bool = False
) -> list[TensorRule]:
    """One stored layer that is several here, one after the other along its outputs.

    Args:
        source: its name.
        paths: our path and the number of outputs of each part, in order.
        fan_in: inputs.
        bias: it has a bias.
        turned: it is stored as [in, out] (GPT-2's Conv1D).
    """
    total, start, rules = sum(paths.values()), 0, []
    for path, size in paths.items():
        part = functools.partial(_part, start=start, size=size)
        kernel = functools.partial(_kernel_part, start=start, size=size, turned=turned)
        shape = (fan_in, total) if turned else (total, fan_in)
        rules.append(TensorRule(f"{source}.weight", f"{path}/kernel", shape, kernel))
        if bias:
            rules.append(TensorRule(f"{source}.bias", f"{path}/bias", (total,), part))
        start += size
    return rules


def _part(array: np.ndarray, start: int, size: int) -> np.ndarray:
    return array[start : start + size]


def _kernel_part(array: np.ndarray, start: int, size: int, turned: bool) -> np.ndarray:
    return _part(array.T, start, size).T if turned else _part(array, start, size).T


def expert_linear(source: str, path: str, number: int, count: int, fan_in: int, fan_out: int) -> TensorRule:
    """Kernel of one of `count` experts, whose kernels are one parameter [count, in, out] here."""
    return TensorRule(f"{source}.weight", f"{path}/kernel", (fan_out, fan_in), transpose, part=(number, count))


def norm(source: str, path: str, width: int, bias: bool = False) -> list[TensorRule]:
    """Scale, and bias if there is one, of a norm."""
    rules = [TensorRule(f"{source}.weight", f"{path}/scale", (width,))]
    return [*rules, TensorRule(f"{source}.bias", f"{path}/bias", (width,))] if bias else rules


def head(source: str, embedding: str, shape: tuple[int, int], tied: bool) -> TensorRule:
    """The head: a tensor of its own, or a duplicate of the embedding that a file may hold."""
    if not tied:
        return TensorRule(source, "head", shape, transpose)
    reason = "the head is tied to the embedding"
    return TensorRule(source, None, shape, ignored=reason, equal_to=embedding, required=False)


def computed(source: str, shape: tuple[int, ...]) -> TensorRule:
    """A buffer that older checkpoints hold and that follows from the config."""
    return TensorRule(source, None, shape, ignored="it is computed from the config", required=False)


def require(hf_config: dict, key: str) -> Any:
    """`hf_config[key]`.

    Raises:
        ValueError: the key is missing; names it.
    """
    if hf_config.get(key) is None:
        raise ValueError(f"config.json has no {key!r}, which model_type={hf_config.get('model_type')!r} needs")
    return hf_config[key]
