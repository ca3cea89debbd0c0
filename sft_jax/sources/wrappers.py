"""Multimodal wrappers: checkpoints of a text model with towers for images or sound beside it.

Of a wrapper the text model is read, as if it were a checkpoint of its own: `unwrapped` gives its config and its tensors
under the names of its family. What is left stays described in a `Wrapper`, by which an export puts the text model back
among the rest. The table of wrappers is `WRAPPERS`.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from sft_jax.sources import stacked_experts
from sft_jax.sources.tensors import SourceError, TensorEntry

Layout = Mapping[str, str]  # what a name begins with in the text model alone -> in the wrapper

# The first layout is that of the modules in transformers 5, which adapters are named by; the second is that of files
# that transformers wrote before 4.52, and still writes for wrappers that were published so.
_LAYOUTS: tuple[Layout, ...] = (
    {"model.": "model.language_model.", "lm_head.": "lm_head."},
    {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
)
_TOWER = {"vision_tower": "the vision tower", "multi_modal_projector": "the projector of images"}
_EMBEDDERS = {"embed_vision": "the projector of images", "embed_audio": "the projector of sound"}
_GEMMA4_FIELDS = (
    "audio_config",
    "audio_token_id",
    "boa_token_id",
    "boi_token_id",
    "eoa_token_id",
    "eoa_token_index",
    "eoi_token_id",
    "image_token_id",
    "video_token_id",
    "vision_config",
    "vision_soft_tokens_per_image",
)
_GEMMA4_SIZES = {  # what transformers takes where a text config does not say
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
_QWEN = {"visual": "the vision tower", "mtp": "multi-token prediction"}
_QWEN_FIELDS = (
    "image_token_id",
    "language_model_only",
    "video_token_id",
    "vision_config",
    "vision_end_token_id",
    "vision_start_token_id",
)
_HEAD = "lm_head.weight"
_TIES = "tie_word_embeddings"
_DTYPES = ("dtype", "torch_dtype")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class WrapperKind:
    """What the wrappers of a `model_type` have in common.

    Attributes:
        skipped: modules that are not read -> what they are.
        fields: of config.json, about these modules alone.
        text_defaults: what the text config means where it leaves a field out.
        text_config: the field of config.json that is the config of the text model.
        layouts: how tensors may be named.
    """

    skipped: Mapping[str, str]
    fields: tuple[str, ...]
    text_defaults: Mapping[str, Any]
    text_config: str = "text_config"
    layouts: tuple[Layout, ...] = _LAYOUTS

    def layout_of(self, names: Iterable[str]) -> Layout:
        """The layout that these tensors are named by; the first where none of them is of the text model."""
        names = tuple(names)
        return next(
            (layout for layout in self.layouts if any(name.startswith(layout["model."]) for name in names)),
            self.layouts[0],
        )

    def what_is_skipped(self, name: str) -> str:
        """What a tensor or module that is not read belongs to; empty for all others."""
        parts = f"{name}.".removeprefix("model.")
        return next((what for module, what in self.skipped.items() if parts.startswith(f"{module}.")), "")


WRAPPERS: dict[str, WrapperKind] = {
    "gemma3": WrapperKind(
        skipped=_TOWER,
        fields=(
            "boi_token_index",
            "boi_token_id",
            "eoi_token_index",
            "eoi_token_id",
            "image_token_id",
            "image_token_index",
            "mm_tokens_per_image",
            "vision_config",
        ),
        text_defaults={
            "model_type": "gemma3_text",
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131_072,
            "sliding_window": 4096,
        },
    ),
    "gemma4": WrapperKind(
        skipped={"vision_tower": "the vision tower", "audio_tower": "the audio tower"} | _EMBEDDERS,
        fields=_GEMMA4_FIELDS,
        text_defaults={"model_type": "gemma4_text", "max_position_embeddings": 131_072} | _GEMMA4_SIZES,
    ),
    "gemma4_unified": WrapperKind(
        skipped={"vision_embedder": "the embedder of images"} | _EMBEDDERS,
        fields=_GEMMA4_FIELDS,
        text_defaults={"model_type": "gemma4_unified_text", "max_position_embeddings": 262_144} | _GEMMA4_SIZES,
    ),
    "mistral3": WrapperKind(
        skipped=_TOWER,
        fields=(
            "image_token_id",
            "image_token_index",
            "multimodal_projector_bias",
            "projector_hidden_act",
            "spatial_merge_size",
            "vision_config",
            "vision_feature_layer",
        ),
        text_defaults={"model_type": "mistral"},
    ),
    "qwen3_5": WrapperKind(
        skipped=_QWEN,
        fields=_QWEN_FIELDS,
        text_defaults={
            "model_type": "qwen3_5_text",
            "vocab_size": 248_320,
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32_768,
        },
    ),
    "qwen3_5_moe": WrapperKind(
        skipped=_QWEN,
        fields=_QWEN_FIELDS,
        text_defaults={
            "model_type": "qwen3_5_moe_text",
            "vocab_size": 248_320,
            "hidden_size": 2048,
            "moe_intermediate_size": 512,
            "num_hidden_layers": 40,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """What is around a text model that was read of a multimodal checkpoint.

    Attributes:
        kind: by its `model_type`.
        directory: where its files are.
        config: its config.json.
        text: the config of the text model, as it is read.
        layout: how its tensors are named.
        tensors: all its tensors, by their names there, in their order.
    """

    kind: WrapperKind
    directory: str
    config: dict
    text: dict
    layout: Layout
    tensors: Mapping[str, TensorEntry]

    def text_name(self, stored: str) -> str | None:
        """The name that a tensor has in the text model alone; None where it is not of the text model."""
        return _renamed(stored, {theirs: ours for ours, theirs in self.layout.items()})

    def stored_name(self, name: str) -> str:
        """The name here of a tensor of the text model."""
        return _renamed(name, self.layout) or name

    def skipped(self) -> dict[str, int]:
        """What is not read -> how many tensors it has."""
        found = collections.Counter(self.kind.what_is_skipped(name) for name in self.tensors)
        found.pop("", None)
        return dict(found)

    def summary(self) -> str:
        """A line about what is not read."""
        parts = " and ".join(f"{count} tensors of {what}" for what, count in self.skipped().items())
        kind, text = self.config["model_type"], self.text["model_type"]
        return (
            f"Of this {kind} model the text part ({text}) is read; {parts or 'no tensors'} are left aside, since text "
            "alone is trained on. Exports copy them as they are."
        )

    def config_with(self, text: dict) -> dict:
        """The wrapper's config.json with what `text`, a later config of the text model, has changed.

        Special ids and the dtype are said by the wrapper; by its text config too, where they stood there.
        """
        own = self.config[self.kind.text_config]
        changed = {name: value for name, value in text.items() if self.text.get(name) != value}
        dtype = next((text[name] for name in _DTYPES if name in text), None)
        ids = {name: text[name] for name in _SPECIAL_IDS if name in text}
        of_text = {n: v for n, v in changed.items() if n in own or n not in (*_DTYPES, *_SPECIAL_IDS)}
        outer = self.config | ids
        if dtype is not None:
            outer["torch_dtype" if "torch_dtype" in outer else "dtype"] = dtype
        return outer | {self.kind.text_config: own | of_text}


def unwrapped(
    config: dict, tensors: Mapping[str, TensorEntry], directory: str
) -> tuple[dict, Mapping[str, TensorEntry], Wrapper | None]:
    """(config, tensors, wrapper) of the text model of a wrapper; those given, and None, for any other checkpoint.

    Args:
        config: of config.json.
        tensors: by their names in the files.
        directory: where config.json is.

    Raises:
        SourceError: the config of the text model is missing, or there are tensors of which it is not known what they
            are; names them.
    """
    kind = WRAPPERS.get(config["model_type"])
    if kind is None:
        return config, _of_text_alone(config["model_type"], tensors, directory), None
    given = config.get(kind.text_config)
    if not isinstance(given, dict):
        raise SourceError(
            f'{directory}: model_type={config["model_type"]!r} without a "{kind.text_config}" {{…}}, which says what '
            "its text model is. Copy or download config.json again."
        )
    layout = kind.layout_of(tensors)
    text = {**kind.text_defaults, **given}
    if not any(name in text for name in _DTYPES):
        text |= {name: config[name] for name in _DTYPES if name in config}
    ties = _tied(config, given, layout, tensors)
    text |= {} if ties is None else {_TIES: ties}
    wrapper = Wrapper(kind, directory, config, text, layout, tensors)
    read = {name: entry for stored, entry in tensors.items() if (name := wrapper.text_name(stored)) is not None}
    if text["model_type"] in stacked_experts.MODEL_TYPES:
        read = stacked_experts.one_by_one(read)
    unknown = [name for name in tensors if wrapper.text_name(name) is None and not kind.what_is_skipped(name)]
    if unknown:
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        raise SourceError(
            f"{directory}: a {config['model_type']} model with tensors that are neither of its text model nor of "
            f"{', '.join(kind.skipped)}: {', '.join(unknown[:20])}{more}. It is not known what they do."
        )
    return text, read, wrapper


def _of_text_alone(model_type: str, tensors: Mapping[str, TensorEntry], directory: str) -> Mapping[str, TensorEntry]:
    """The tensors under the names of their family, where a text model was cut out of its wrapper and kept the names
    that it had there: `model.language_model.layers…` beside a config of `qwen3_5_text`.

    Raises:
        SourceError: a tensor is there under both names; names the first.
    """
    if all(kind.text_defaults["model_type"] != model_type for kind in WRAPPERS.values()):
        return tensors
    found: dict[str, TensorEntry] = {}
    for stored, entry in tensors.items():
        name = _renamed(stored, {_LAYOUTS[0]["model."]: "model."}) or stored
        if name in found:
            raise SourceError(
                f"{directory}: {name} is there twice, also as {name.replace('model.', _LAYOUTS[0]['model.'], 1)}. Of a "
                f"{model_type} model one of them is expected."
            )
        found[name] = entry
    return found


def _tied(config: dict, text: dict, layout: Layout, tensors: Mapping[str, TensorEntry]) -> bool | None:
    """Whether embedding and head are one weight; None where the config does not say.

    Wrapper and text config may say different things, since transformers writes out the defaults of both. Then the
    weights know: as transformers does, a head that is stored is a head.
    """
    stated = [fields[_TIES] for fields in (config, text) if fields.get(_TIES) is not None]
    if len(stated) == 2 and stated[0] != stated[1] and tensors:
        return _renamed(_HEAD, layout) not in tensors
    return stated[0] if stated else None


def renamed_module(name: str, layout: Layout) -> str:
    """The name in a wrapper of a module of its text model: `model.language_model.layers.0.mlp.up_proj`."""
    return (_renamed(f"{name}.", layout) or f"{name}.").removesuffix(".")


def _renamed(name: str, beginnings: Mapping[str, str]) -> str | None:
    for before, after in beginnings.items():
        if name.startswith(before):
            return after + name.removeprefix(before)
    return None
