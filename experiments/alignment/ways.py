"""What is compared: models that the stages make, side by side from one tuned model, or each from the one before."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from experiments.alignment.stages import Stages
from sft_jax.evaluation.own_answers import BEST, PAIRS

BASE, PRETRAINED, TUNED, ALONE = "base", "pretrained", "tuned", "without_pretraining"
DPO, SFT, RLVR = "dpo", "sft_on_right_answers", "rlvr"
# Way of learning on from a model by documents -> a run of that name.
WAYS: dict[str, Callable[[Stages, Path, Path], Path]] = {
    DPO: lambda stages, model, rows: stages.dpo(model, stages.own_answers(model, rows, PAIRS), DPO),
    SFT: lambda stages, model, rows: stages.continued(model, stages.own_answers(model, rows, BEST), SFT),
    RLVR: lambda stages, model, rows: stages.rlvr(model, rows, RLVR),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """One that is measured.

    Attributes:
        name: of it, and of its run.
        weights: the directory of the run, or the name of a pretrained model.
        compared_with: name of the one that it is compared with; none for the first.
    """

    name: str
    weights: str | Path
    compared_with: str | None = None


def side_by_side(stages: Stages, documents: Mapping[str, Path], ways: Sequence[str]) -> Iterator[Model]:
    """The tuned model, and what comes of it on fresh documents by each way; each is made when it is asked for."""
    tuned = stages.tuned(stages.settings.model, documents["tuned_on"], TUNED)
    yield Model(TUNED, tuned)
    for way in ways:
        yield Model(way, WAYS[way](stages, tuned, documents["fresh"]), TUNED)


def chain(stages: Stages, documents: Mapping[str, Path]) -> Iterator[Model]:
    """Continued pretraining, fine-tuning, DPO and rewards, each from what the one before it made.

    At the end fine-tuning alone, which shows what pretraining gave it.
    """
    base, rows, fresh = stages.settings.model, documents["tuned_on"], documents["fresh"]
    yield Model(BASE, base)
    pretrained = stages.pretrained(base, documents["texts"], PRETRAINED)
    yield Model(PRETRAINED, pretrained, BASE)
    tuned = stages.tuned(pretrained, rows, TUNED)
    yield Model(TUNED, tuned, PRETRAINED)
    dpo = WAYS[DPO](stages, tuned, fresh)
    yield Model(DPO, dpo, TUNED)
    yield Model(RLVR, WAYS[RLVR](stages, dpo, fresh), DPO)
    yield Model(ALONE, stages.tuned(base, rows, ALONE), TUNED)
