"""The ways of learning on from a tuned model, each a few of the stages."""

from collections.abc import Callable
from pathlib import Path

from experiments.alignment.stages import Stages
from sft_jax.evaluation.own_answers import BEST, PAIRS

DPO, SFT, RLVR = "dpo", "sft_on_right_answers", "rlvr"
# Way of learning on from a model by documents -> a run of that name.
WAYS: dict[str, Callable[[Stages, Path, Path], Path]] = {
    DPO: lambda stages, model, rows: stages.dpo(model, stages.own_answers(model, rows, PAIRS), DPO),
    SFT: lambda stages, model, rows: stages.continued(model, stages.own_answers(model, rows, BEST), SFT),
    RLVR: lambda stages, model, rows: stages.rlvr(model, rows, RLVR),
}
