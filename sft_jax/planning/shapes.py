"""The shape of a config's model without its weights or tokenizer: from its config.json, or from a table."""

import dataclasses

from etils import epath

from sft_jax.models import positions
from sft_jax.models.config import DecoderConfig
from sft_jax.models.loading import decoder_config
from sft_jax.models.variables import SCORE
from sft_jax.options import ModelOptions
from sft_jax.planning.models import PUBLISHED
from sft_jax.runs.base import base_of, open_run
from sft_jax.sources import PretrainedCheckpoint, open_checkpoint, random_weights
from sft_jax.sources.peft import is_peft_directory


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """What the program of a step follows from.

    Attributes:
        decoder: the model's, with the embeddings of new tokens.
        new_token_ids: ids of the new tokens.
        origin: where it is from, for people.
    """

    decoder: DecoderConfig
    new_token_ids: range
    origin: str


def shape_of(model: ModelOptions) -> ModelShape:
    """The shape of the model that a config starts from.

    Runs, PEFT directories and models with new tokens, whose embeddings follow from the tokenizer, are opened as for
    training. Of all others no more is read than config.json; of hub models of the table, which may be gated, nothing.

    Args:
        model: of the config.

    Raises:
        ValueError: there is no such model, or it cannot have so many positions.
    """
    source = model.source
    if model.new_tokens or is_peft_directory(source) or open_run(source) is not None:
        base = base_of(model)
        return ModelShape(base.decoder, base.new_token_ids, base.location)
    checkpoint, origin = _described(source, model.revision or None)
    decoder = decoder_config(checkpoint)
    try:
        decoder, _ = positions.with_positions(decoder, checkpoint.config, model.max_positions)
    except ValueError as error:
        raise ValueError(f"--config.model.max_positions={model.max_positions}: {source}: {error}") from error
    if model.head == SCORE:
        decoder = dataclasses.replace(decoder, scores=True)
    return ModelShape(decoder, range(0), origin)


def _described(source: str, revision: str | None) -> tuple[PretrainedCheckpoint, str]:
    """A checkpoint without tensors, and where its config is from."""
    asked = random_weights.parse(source) or random_weights.RandomSource(source, {}, 0)
    published = PUBLISHED.get(asked.source)
    if published is not None and revision is None and not epath.Path(asked.source).exists():
        config = published | asked.overrides
        checkpoint = PretrainedCheckpoint(source, asked.source, config, {}, random_weights.fingerprint(config, 0))
        return checkpoint, f"the published shape of {asked.source}, of which nothing was read"
    name = source if source.startswith(random_weights.PREFIX) else random_weights.PREFIX + source
    checkpoint = open_checkpoint(name, revision)
    return checkpoint, checkpoint.location
