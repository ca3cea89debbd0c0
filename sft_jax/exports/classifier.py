"""What is particular about a reward model as a Hugging Face directory: it is a sequence classifier with one label.

transformers reads the score at the last token that is not padding, which it knows by its id alone: so padding has to be
a token that no text ends with.
"""

import copy
from typing import Any

from sft_jax.exports.directory import ExportError
from sft_jax.exports.golden import Golden
from sft_jax.models.families import scoring_config
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase


def classifier_config(hf_config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of the model as a sequence classifier with one label.

    Raises:
        ExportError: transformers has none of this kind of model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    kind = hf_config["model_type"]
    if kind not in KNOWN:
        raise ExportError(
            f"transformers has no sequence classifier of model_type={kind}, as which a reward model is exported; "
            "train one from another base"
        )
    return scoring_config(hf_config, KNOWN[kind])


def with_padding(tokenizer: PreTrainedTokenizerBase, golden: Golden) -> PreTrainedTokenizerBase:
    """The tokenizer with a padding token that ends no text: its own, or another of its special tokens.

    Raises:
        ExportError: all of them end texts, or begin them.
    """
    ending = {*golden.stop_ids, int(golden.ids[-1]), tokenizer.eos_token_id}
    own = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    special = sorted(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    others = [
        number for number in special if number not in set(golden.ids.tolist()) and number != tokenizer.bos_token_id
    ]
    chosen = next((number for number in (*own, *others) if number is not None and number not in ending), None)
    if chosen is None:
        raise ExportError(
            "transformers knows padding by its token, and the tokenizer has no special token that could be it: each "
            "ends texts, or begins them. Train with one more, --config.model.new_tokens=\"('<|pad|>',)\""
        )
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    return padded
