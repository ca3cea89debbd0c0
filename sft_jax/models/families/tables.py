"""What the families share: a checked reader of Hugging Face configs, and rules from stored tensors to parameters."""

import dataclasses
import functools
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from sft_jax.models.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeScaling,
    YarnScaling,
)
from sft_jax.sources.tensors import is_whole

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


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What a field may hold, in words and as a test."""

    expected: str
    accepts: Callable[[Any], bool]


def _whole(smallest: int, largest: int) -> _Kind:
    return _Kind(f"a whole number from {smallest} to {largest}", lambda value: is_whole(value, smallest, largest))


def _number(smallest: float, largest: float) -> _Kind:
    def accepts(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and smallest <= value <= largest

    return _Kind(f"a number from {smallest:g} to {largest:g}", accepts)


def _list_of(what: str, accepts: Callable[[Any], bool]) -> _Kind:
    return _Kind(f"a list of {what}", lambda value: isinstance(value, list | tuple) and all(map(accepts, value)))


# The limits are far above every model there is; beyond them a file is damaged, or was made to take memory.
_WIDTH, _HEADS, _LAYERS, _POSITIONS = _whole(1, 2**22), _whole(1, 2**16), _whole(1, 2**12), _whole(1, 2**30)
_EXPERTS, _SOME = _whole(1, 2**16), _whole(0, 2**16)
_WINDOW, _FACTOR, _CAP = _whole(0, 2**30), _number(1e-6, 1e9), _number(0, 1e9)
_EPSILON, _THETA, _SHARE = _number(1e-20, 1), _number(1.001, 1e15), _number(1e-6, 1)
_BOOLEAN = _Kind("true or false", lambda value: isinstance(value, bool))
_DICT = _Kind("an object {…}", lambda value: isinstance(value, dict))
_NAME = _Kind("a name", lambda value: isinstance(value, str))

# Every field that a family reads, whatever its family.
KINDS = {
    "activation_function": _NAME,
    "add_cross_attention": _BOOLEAN,
    "attention_bias": _BOOLEAN,
    "attention_factor": _FACTOR,
    "attention_k_eq_v": _BOOLEAN,
    "attention_multiplier": _FACTOR,
    "attn_logit_softcapping": _CAP,
    "attn_output_gate": _BOOLEAN,
    "beta_fast": _FACTOR,
    "beta_slow": _FACTOR,
    "decoder_sparse_step": _LAYERS,
    "embedding_multiplier": _FACTOR,
    "enable_moe_block": _BOOLEAN,
    "experts_per_token": _EXPERTS,
    "factor": _FACTOR,
    "final_logit_softcapping": _CAP,
    "first_k_dense_replace": _SOME,
    "full_attention": _DICT,
    "full_attention_interval": _LAYERS,
    "full_attn_mod": _LAYERS,
    "global_head_dim": _HEADS,
    "head_dim": _HEADS,
    "hidden_act": _NAME,
    "hidden_activation": _NAME,
    "hidden_size": _WIDTH,
    "hidden_size_per_layer_input": _whole(0, 2**22),
    "high_freq_factor": _FACTOR,
    "initializer_range": _number(0, 10),
    "intermediate_size": _WIDTH,
    "interpolate_factor": _FACTOR,
    "kv_lora_rank": _WIDTH,
    "layer_norm_eps": _EPSILON,
    "layer_norm_epsilon": _EPSILON,
    "layer_types": _list_of("names", lambda value: isinstance(value, str)),
    "linear_conv_kernel_dim": _HEADS,
    "linear_key_head_dim": _HEADS,
    "linear_num_key_heads": _HEADS,
    "linear_num_value_heads": _HEADS,
    "linear_value_head_dim": _HEADS,
    "llama_4_scaling_beta": _CAP,
    "logits_scaling": _FACTOR,
    "long_factor": _list_of("numbers", _FACTOR.accepts),
    "low_freq_factor": _FACTOR,
    "mamba_ssm_dtype": _NAME,
    "max_position_embeddings": _POSITIONS,
    "max_window_layers": _WINDOW,
    "mlp_bias": _BOOLEAN,
    "mlp_layer_types": _list_of("names", lambda value: isinstance(value, str)),
    "mlp_only_layers": _list_of("layers", is_whole),
    "moe_intermediate_size": _WIDTH,
    "moe_layer_freq": _LAYERS,
    "mscale": _CAP,
    "mscale_all_dim": _CAP,
    "mtp_num_hidden_layers": _SOME,
    "n_embd": _WIDTH,
    "n_group": _EXPERTS,
    "n_head": _HEADS,
    "n_inner": _WIDTH,
    "n_layer": _LAYERS,
    "n_positions": _POSITIONS,
    "n_routed_experts": _EXPERTS,
    "n_shared_experts": _SOME,
    "no_rope_layer_interval": _LAYERS,
    "no_rope_layers": _list_of("0 and 1", lambda value: value in (0, 1)),
    "norm_topk_prob": _BOOLEAN,
    "normalization_function": _NAME,
    "num_attention_heads": _HEADS,
    "num_experts": _EXPERTS,
    "num_experts_per_tok": _EXPERTS,
    "num_global_key_value_heads": _HEADS,
    "num_hidden_layers": _LAYERS,
    "num_key_value_heads": _HEADS,
    "num_kv_shared_layers": _SOME,
    "num_local_experts": _SOME,
    "num_mtp_layers": _SOME,
    "num_nextn_predict_layers": _SOME,
    "original_max_position_embeddings": _POSITIONS,
    "output_gate_type": _NAME,
    "partial_rotary_factor": _SHARE,
    "per_layer_config": _DICT,
    "position_embedding_type": _NAME,
    "pretraining_tp": _LAYERS,
    "q_lora_rank": _WIDTH,
    "qk_nope_head_dim": _HEADS,
    "qk_rope_head_dim": _HEADS,
    "query_pre_attn_scalar": _FACTOR,
    "residual_multiplier": _FACTOR,
    "rms_norm_eps": _EPSILON,
    "rope_interleave": _BOOLEAN,
    "rope_local_base_freq": _THETA,
    "rope_parameters": _DICT,
    "rope_scaling": _DICT,
    "rope_theta": _THETA,
    "rope_type": _NAME,
    "rotary_emb_base": _THETA,
    "rotary_pct": _SHARE,
    "routed_scaling_factor": _FACTOR,
    "router_jitter_noise": _number(0, 1),
    "scale_attn_by_inverse_layer_idx": _BOOLEAN,
    "scale_attn_weights": _BOOLEAN,
    "scoring_func": _NAME,
    "shared_expert_intermediate_size": _WIDTH,
    "shared_intermediate_size": _WIDTH,
    "short_factor": _list_of("numbers", _FACTOR.accepts),
    "sliding_attention": _DICT,
    "sliding_window": _WINDOW,
    "sliding_window_pattern": _LAYERS,
    "_sliding_window_pattern": _LAYERS,
    "swiglu_alpha": _FACTOR,
    "swiglu_limit": _FACTOR,
    "tie_word_embeddings": _BOOLEAN,
    "top_k_experts": _EXPERTS,
    "topk_group": _EXPERTS,
    "topk_method": _NAME,
    "truncate": _BOOLEAN,
    "type": _NAME,
    "use_bidirectional_attention": _Kind("true, false or a name", lambda value: isinstance(value, bool | str)),
    "use_double_wide_mlp": _BOOLEAN,
    "use_parallel_residual": _BOOLEAN,
    "use_qk_norm": _BOOLEAN,
    "use_sliding_window": _BOOLEAN,
    "v_head_dim": _HEADS,
    "vocab_size": _whole(1, 2**24),
    "vocab_size_per_layer_input": _whole(1, 2**24),
}


class ConfigReader:
    """A Hugging Face config that checks what each field holds and notices which fields nobody asked for.

    A field that is read for the first time anywhere needs its line in `KINDS`.

    Raises:
        ValueError: from every method that reads: the field holds something else; names it and what is expected.
    """

    def __init__(self, hf_config: dict):
        self._fields, self._read = hf_config, set(_WITHOUT_EFFECT)

    def get(self, key: str, default: Any = None) -> Any:
        """The field, or the default where it is absent or null."""
        value = self._checked(key)
        return default if value is None else value

    def get_nullable(self, key: str, absent: Any) -> Any:
        """The field, which may be null; `absent` only where it is not there at all."""
        value = self._checked(key)
        return value if key in self._fields else absent

    def require(self, key: str) -> Any:
        """The field.

        Raises:
            ValueError: it is missing; names it.
        """
        value = self._checked(key)
        if value is None:
            raise ValueError(f"config.json has no {key!r}, which {self._family} needs")
        return value

    def section(self, *keys: str) -> "ConfigReader":
        """A reader of the objects under `keys` as one, later ones over earlier ones; empty where there is none."""
        fields = {"model_type": self._fields.get("model_type")}
        for key in keys:
            fields |= self.get(key, {})
        return ConfigReader(fields)

    def _checked(self, key: str) -> Any:
        self._read.add(key)
        value, kind = self._fields.get(key), KINDS[key]
        if value is not None and not kind.accepts(value):
            raise ValueError(f"config.json has {key}={reprlib.repr(value)}; expected {kind.expected}")
        return value

    def expect(self, key: str, *allowed: Any) -> Any:
        """The field, which must be one of `allowed`; the first is its default.

        Raises:
            ValueError: it asks for something that is not implemented.
        """
        value = self.get(key, allowed[0])
        if value not in allowed:
            expected = ", ".join(map(repr, allowed))
            raise ValueError(f"config.json has {key}={reprlib.repr(value)}; implemented for {self._family}: {expected}")
        return value

    def skip(self, *keys: str) -> None:
        """Notes fields that add nothing to the others, so that `finish` accepts them."""
        self._read.update(keys)

    def finish(self) -> None:
        """Checks that every field was understood.

        Raises:
            ValueError: fields that may change the function and are not implemented; names them all.
        """
        left = {k: v for k, v in self._fields.items() if k not in self._read and v not in (None, False, 0, [], {}, "")}
        if left:
            listed = ", ".join(f"{key}={reprlib.repr(value)}" for key, value in sorted(left.items()))
            raise ValueError(f"config.json has fields that are not implemented for {self._family}: {listed}")

    @property
    def _family(self) -> str:
        return f"model_type={self._fields.get('model_type')!r}"


def sizes(config: ConfigReader, head_dim: int | None = None) -> dict[str, Any]:
    """The fields of `DecoderConfig` that most families spell alike.

    Args:
        config: a config.
        head_dim: width of a head where the config does not say; by default the heads share the width.
    """
    heads, width = config.require("num_attention_heads"), config.require("hidden_size")
    config.skip("head_dim_original")
    return {
        "vocab_size": config.require("vocab_size"),
        "num_layers": config.require("num_hidden_layers"),
        "model_dim": width,
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads", heads),
        "head_dim": config.get("head_dim", head_dim) or shared_width(width, heads),
        "ffn_dim": config.require("intermediate_size"),
        "max_positions": config.get("max_position_embeddings", 2048),
    }


def experts(config: ConfigReader, count: int, per_token: int) -> dict[str, int]:
    """The fields of `DecoderConfig` about experts; what a checkpoint says of its own training is left aside."""
    config.skip("router_aux_loss_coef", "output_router_logits")
    config.expect("router_jitter_noise", 0.0)
    if not count:
        raise ValueError("config.json has no experts (0); expected one at least")
    return {"num_experts": count, "experts_per_token": per_token}


def shared_width(width: int, heads: int) -> int:
    """Width of a head, where all heads together have the width of the model.

    Raises:
        ValueError: it cannot be shared out evenly.
    """
    if width % heads:
        raise ValueError(f"config.json has a width of {width} for {heads} heads; expected a multiple")
    return width // heads


def rope(
    config: ConfigReader,
    head_dim: int,
    theta_key: str = "rope_theta",
    default_theta: float = 10000.0,
    original: int | None = None,
) -> dict:
    """`rope_theta`, `rope_scaling` and `rope_dim` from either spelling: `rope_parameters`, or fields of their own.

    Args:
        config: a config.
        head_dim: width of a head.
        theta_key: field of the base, where it has one of its own.
        default_theta: the base where the config does not say.
        original: positions known before frequencies were stretched; by default what the config says.
    """
    given = config.section("rope_scaling", "rope_parameters")
    theta = given.get("rope_theta", config.get(theta_key, default_theta))
    share = given.get("partial_rotary_factor", config.get("partial_rotary_factor", config.get("rotary_pct", 1.0)))
    now = config.get("max_position_embeddings", 2048)
    known = original or config.get("original_max_position_embeddings", now)
    rotated = head_dim if rope_type(given) == "proportional" else int(head_dim * share)
    if rotated < 2:
        raise ValueError(f"config.json rotates {share} of heads of {head_dim}; expected a pair at least")
    return {
        "rope_theta": float(theta),
        "rope_scaling": _scaling(given, known, now, rotated // 2),
        "rope_dim": 0 if rotated == head_dim else rotated,
    }


def ropes_by_layer_type(config: ConfigReader, head_dim: int, default_theta: float, default_local: float) -> dict:
    """The fields of `rope`, and `local_rope_theta`, of `rope_parameters` with an object for each type of layer.

    Args:
        config: a config.
        head_dim: width of a head.
        default_theta: base for layers that see all positions, where the object has none.
        default_local: for layers with a window.

    Raises:
        ValueError: there is no object for layers that see all positions, or one that stretches those with a window.
    """
    config.skip("rope_theta", "rope_scaling")
    parameters = config.section("rope_parameters")
    local = parameters.section("sliding_attention")
    local.expect("rope_type", "default")
    whole = {"rope_parameters": parameters.require("full_attention")}
    if (known := config.get("max_position_embeddings")) is not None:
        whole["max_position_embeddings"] = known
    return rope(ConfigReader(whole), head_dim, default_theta=default_theta) | {
        "local_rope_theta": float(local.get("rope_theta", default_local))
    }


def rope_type(given: ConfigReader) -> str:
    """The type in an object that describes rotary frequencies."""
    return given.get("rope_type", given.get("type", "default"))


def _scaling(given: ConfigReader, known: int, now: int, pairs: int) -> RopeScaling | None:
    """What frequencies of a number of pairs become; `known` positions were known first, and `now` are."""
    kind = rope_type(given)
    if kind == "default":
        return None
    if kind == "dynamic":
        return DynamicScaling(float(given.get("factor", 1.0)))
    if kind == "linear":
        return LinearScaling(float(given.require("factor")))
    if kind == "llama3":
        return _llama3(given)
    if kind == "proportional":
        return ProportionalScaling(float(given.get("partial_rotary_factor", 1.0)), float(given.get("factor", 1.0)))
    if kind == "yarn":
        return _yarn(given, known)
    if kind in ("longrope", "su"):  # the second as older files spell it
        return _longrope(given, known, now, pairs)
    raise ValueError(
        f"config.json asks for rope_type={reprlib.repr(kind)}; implemented: 'default', 'dynamic', 'linear', 'llama3', "
        "'longrope', 'proportional', 'yarn'"
    )


def _llama3(given: ConfigReader) -> Llama3Scaling:
    low, high = given.require("low_freq_factor"), given.require("high_freq_factor")
    if low >= high:
        raise ValueError(f"config.json has low_freq_factor={low} and high_freq_factor={high}; expected a larger second")
    return Llama3Scaling(
        factor=float(given.require("factor")),
        low_freq_factor=float(low),
        high_freq_factor=float(high),
        original_max_positions=given.require("original_max_position_embeddings"),
    )


def _yarn(given: ConfigReader, known: int) -> YarnScaling:
    original = given.get("original_max_position_embeddings", known)
    factor = float(given.get("factor", known / original))
    above, below = given.get("mscale"), given.get("mscale_all_dim")
    inferred = magnitude(factor, above) / magnitude(factor, below) if above and below else magnitude(factor)
    return YarnScaling(
        factor=factor,
        original_max_positions=original,
        beta_fast=float(given.get("beta_fast", 32)),
        beta_slow=float(given.get("beta_slow", 1)),
        attention_factor=float(given.get("attention_factor", inferred)),
        truncate=given.get("truncate", True),
    )


def magnitude(factor: float, weight: float = 1.0) -> float:
    """YaRN's factor for frequencies stretched by `factor` (Peng et al. 2023, section 3.4)."""
    return 0.1 * weight * float(np.log(factor)) + 1.0 if factor > 1 else 1.0


def _longrope(given: ConfigReader, known: int, now: int, pairs: int) -> LongRopeScaling:
    original = given.get("original_max_position_embeddings", known)
    factors = {key: given.require(key) for key in ("short_factor", "long_factor")}
    for key, values in factors.items():
        if len(values) != pairs:
            raise ValueError(
                f"config.json has {len(values)} numbers in {key}; expected one for each of {pairs} pairs that a head "
                "rotates"
            )
    factor = given.get("factor", now / original)
    inferred = float(np.sqrt(1 + np.log(factor) / np.log(original))) if factor > 1 and original > 1 else 1.0
    return LongRopeScaling(
        short_factors=tuple(map(float, factors["short_factor"])),
        long_factors=tuple(map(float, factors["long_factor"])),
        short_positions=original,
        attention_factor=float(given.get("attention_factor", inferred)),
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
        if set(kinds) - {"sliding_attention", "full_attention"} or len(kinds) != num_layers:
            raise ValueError(
                f"config.json has layer_types={reprlib.repr(kinds)}; implemented: 'sliding_attention' or "
                f"'full_attention' for each of {num_layers} layers"
            )
        if "sliding_attention" in kinds and not window:
            raise ValueError("config.json has 'sliding_attention' in layer_types, but no sliding_window")
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

    The rule works in both directions, since it has no function from one array to the other but a view: a stored array
    is read and written through it.

    Attributes:
        source: its Hugging Face name.
        path: our parameter path in the unrolled layout (`layers_3/ffn/up/kernel`); None if it is ignored.
        shape: shape it must have in the file.
        view: from the stored array to a NumPy view of it (transposed, sliced) that has our elements in our order.
        merged: shape of our parameter (of a piece, with `part`) where the view has it in more axes; else empty.
        ignored: reason for ignoring it.
        equal_to: an ignored duplicate must equal this other tensor.
        required: False for a tensor that a checkpoint may leave out.
        part: (number, count) where `count` such tensors, along a new leading axis, make the parameter; or `count` such
            views of a tensor whose first axis they are.
        transposed: a layer's weight, or an expert's, that is stored as [in, out], where others are [out, in].
    """

    source: str
    path: str | None
    shape: tuple[int, ...]
    view: Callable[[np.ndarray], np.ndarray] = keep
    merged: tuple[int, ...] = ()
    ignored: str = ""
    equal_to: str = ""
    required: bool = True
    part: tuple[int, int] | None = None
    transposed: bool = False

    def read(self, stored: np.ndarray) -> np.ndarray:
        """Our parameter, or a piece of it, of an array of `shape`."""
        seen = self.view(stored)
        return seen.reshape(self.merged) if self.merged else seen

    def write(self, ours: np.ndarray, stored: np.ndarray) -> None:
        """The inverse of `read`: puts our parameter into its place in an array of `shape`.

        Raises:
            TypeError: `view` makes a copy, through which nothing can be written.
        """
        seen = self.view(stored)
        if not np.shares_memory(seen, stored):
            raise TypeError(f"the view of {self.source} for {self.path} is a copy: make it of slices and transposes")
        seen[...] = ours.reshape(seen.shape)


def linear(source: str, path: str, fan_in: int, fan_out: int, bias: bool = False) -> list[TensorRule]:
    """Kernel, and bias if there is one, of a torch linear layer."""
    rules = [TensorRule(f"{source}.weight", f"{path}/kernel", (fan_out, fan_in), transpose)]
    return [*rules, TensorRule(f"{source}.bias", f"{path}/bias", (fan_out,))] if bias else rules


def fused_linear(
    source: str, paths: dict[str, int], fan_in: int, bias: bool = False, transposed: bool = False
) -> list[TensorRule]:
    """One stored layer that is several here, one after the other along its outputs.

    Args:
        source: its name.
        paths: our path and the number of outputs of each part, in order.
        fan_in: inputs.
        bias: it has a bias.
        transposed: it is stored as [in, out] (GPT-2's Conv1D).
    """
    total, start, rules = sum(paths.values()), 0, []
    for path, size in paths.items():
        part = functools.partial(_part, start=start, size=size)
        kernel = functools.partial(_kernel_part, start=start, size=size, transposed=transposed)
        shape = (fan_in, total) if transposed else (total, fan_in)
        rules.append(TensorRule(f"{source}.weight", f"{path}/kernel", shape, kernel, transposed=transposed))
        if bias:
            rules.append(TensorRule(f"{source}.bias", f"{path}/bias", (total,), part))
        start += size
    return rules


def _part(array: np.ndarray, start: int, size: int) -> np.ndarray:
    return array[start : start + size]


def _kernel_part(array: np.ndarray, start: int, size: int, transposed: bool) -> np.ndarray:
    return _part(array.T, start, size).T if transposed else _part(array, start, size).T


def expert_linear(source: str, path: str, number: int, count: int, fan_in: int, fan_out: int) -> TensorRule:
    """Kernel of one of `count` experts, whose kernels are one parameter [count, in, out] here."""
    return TensorRule(f"{source}.weight", f"{path}/kernel", (fan_out, fan_in), transpose, part=(number, count))


def stacked_experts(source: str, paths: list[str], count: int, fan_in: int, fan_out: int) -> list[TensorRule]:
    """Kernels and biases of all experts, stored as one tensor [count, in, out] and one [count, out].

    Args:
        source: its name; that of the biases ends in `_bias`.
        paths: ours, whose outputs are stored in turn: with gate and up, every other one is of the gate.
        count: experts.
        fan_in: inputs.
        fan_out: outputs of each of ours.
    """
    step, total = len(paths), len(paths) * fan_out
    rules = []
    for number in range(count):
        for start, path in enumerate(paths):
            view = functools.partial(_of_expert, number=number, start=start, step=step)
            shape = (count, fan_in, total)
            rules.append(TensorRule(source, f"{path}/kernel", shape, view, part=(number, count), transposed=True))
    for start, path in enumerate(paths):
        view = functools.partial(_every, start=start, step=step)
        rules.append(TensorRule(f"{source}_bias", f"{path}/bias", (count, total), view))
    return rules


def packed_experts(source: str, paths: list[str], count: int, fan_in: int, fan_out: int) -> list[TensorRule]:
    """Kernels of all experts, stored as one tensor [count, out, in] in which ours follow one another.

    Args:
        source: its name.
        paths: ours, in the order of their outputs.
        count: experts.
        fan_in: inputs.
        fan_out: outputs of each of ours.
    """
    shape = (count, len(paths) * fan_out, fan_in)
    return [
        TensorRule(
            source,
            f"{path}/kernel",
            shape,
            functools.partial(_packed_of_expert, number=number, start=place * fan_out, size=fan_out),
            part=(number, count),
        )
        for number in range(count)
        for place, path in enumerate(paths)
    ]


def _packed_of_expert(array: np.ndarray, number: int, start: int, size: int) -> np.ndarray:
    return _part(array[number], start, size).T


def _of_expert(array: np.ndarray, number: int, start: int, step: int) -> np.ndarray:
    return array[number, :, start::step]


def _every(array: np.ndarray, start: int, step: int) -> np.ndarray:
    return array[:, start::step]


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
