"""The teacher of a distillation: another model, of any family and size, whose ids mean the same tokens."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.models.decoder import Decoder
from sft_jax.models.vocabulary import with_new_tokens
from sft_jax.objectives import distils
from sft_jax.options import Options
from sft_jax.runs.base import Base, load_base_tokenizer, open_base

Tree = Any
_SHOWN = 3  # ids that mean something else, in an error


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that is imitated.

    Attributes:
        base: its weights.
        model: the decoder, as it is executed.
        dtype: of its weights.
    """

    base: Base
    model: Decoder
    dtype: str

    def variables(self, mesh: Mesh) -> Tree:
        """{"params": …} on the devices of a mesh."""
        return {"params": self.base.params(self.model.layout, self.dtype, mesh)}

    def check_sizes(self, *data: TokenizedExamples | None) -> None:
        """Checks that it has a position and an embedding for every token of the data.

        Raises:
            ValueError: it has not; names the row.
        """
        decoder, name = self.model.config, self.base.name
        for examples in data:
            if examples is None:
                continue
            longest = int(examples.lengths.argmax())
            if (length := examples.lengths[longest]) > decoder.max_positions:
                raise ValueError(
                    f"--config.teacher.source={name}: {examples.ids[longest]} has {length} tokens, and the teacher "
                    f"knows {decoder.max_positions} positions. --config.data.sequence_length={decoder.max_positions} "
                    "leaves such examples out"
                )
            if (highest := examples.tokens.max()) >= decoder.vocab_size:
                raise ValueError(
                    f"--config.teacher.source={name}: there is a token {highest}, and the teacher has embeddings of "
                    f"{decoder.vocab_size}: its tokenizer and weights do not belong together"
                )


def needs_teacher(options: Options) -> bool:
    """Whether the loss of a run compares its model with a teacher."""
    return distils(options.objective.name) or options.objective.teacher_weight > 0


def is_in_step(options: Options) -> bool:
    """Whether a teacher's weights are in the step; else its most likely tokens are data."""
    return needs_teacher(options) and not options.teacher.top_k


def open_teacher_base(options: Options, student: Base) -> Base:
    """The weights that `config.teacher` names.

    Args:
        options: of the run.
        student: what is trained.

    Raises:
        ValueError: none is named, it predicts no tokens, its ids mean other tokens than the student's, or it has fewer
            tokens than are asked for; names the flag.
    """
    source, revision = options.teacher.source, options.teacher.revision or None
    flag = f"--config.teacher.source={source}"
    if not source:
        raise ValueError(
            f"--config.teacher.source is empty, and --config.objective.name={options.objective.name} (with "
            f"--config.objective.teacher_weight={options.objective.teacher_weight}) imitates a teacher; give a "
            "directory, a name of the hub or a run"
        )
    base = open_base(source, revision)
    if base.decoder.scores:
        raise ValueError(f"{flag} is a reward model, which predicts no token; give a language model")
    own = with_new_tokens(load_base_tokenizer(options.model.source, options.model.revision or None), options.model)
    _check_same_tokens(own.get_vocab(), load_base_tokenizer(source, revision).get_vocab(), options)
    shared = min(base.decoder.vocab_size, student.decoder.vocab_size)
    if options.teacher.top_k > shared:
        raise ValueError(
            f"--config.teacher.top_k={options.teacher.top_k}: student and teacher share {shared} tokens; give no more"
        )
    if shared < student.decoder.vocab_size and options.objective.teacher_weight:
        raise ValueError(
            f"{flag} has embeddings of {shared} tokens, and the student of {student.decoder.vocab_size}: the "
            "teacher could not judge all that the student may sample; give a teacher with as many"
        )
    return base


def _check_same_tokens(student: dict[str, int], teacher: dict[str, int], options: Options) -> None:
    """Checks that ids mean the same; embeddings beyond them, which pad tables to round numbers, mean nothing.

    Raises:
        ValueError: they do not; names some.
    """
    if student == teacher:
        return
    by_id = [{number: token for token, number in vocabulary.items()} for vocabulary in (student, teacher)]
    differ = sorted(number for number in by_id[0].keys() | by_id[1] if by_id[0].get(number) != by_id[1].get(number))
    shown = ", ".join(
        f"{number} is {by_id[0].get(number)!r} and {by_id[1].get(number)!r}" for number in differ[:_SHOWN]
    )
    raise ValueError(
        f"--config.teacher.source={options.teacher.source} has another vocabulary than "
        f"--config.model.source={options.model.source} (with --config.model.new_tokens={options.model.new_tokens}): "
        f"{len(differ)} ids mean something else, {shown}{', …' if len(differ) > _SHOWN else ''}. Distributions over "
        "tokens can be compared where ids mean the same tokens; give a teacher of the student's family, without new "
        "tokens"
    )
