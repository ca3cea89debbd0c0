"""Training on a new domain with replay of an old one and without, and both measured beside the base, text by text."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jaxtyping import Float
from ml_collections import ConfigDict
from rich.console import Console

from configs import continued
from experiments.continued_pretraining.texts import HELD_OUT_FILE, NEW, OLD
from sft_jax.data.reading import Reading
from sft_jax.data.records import read_records
from sft_jax.data.tokenizing import tokenize_records
from sft_jax.evaluation.figures import difference_text, score_text
from sft_jax.evaluation.held_out_loss import example_losses
from sft_jax.evaluation.report.tables import TextTable
from sft_jax.evaluation.statistics import bootstrap_interval, paired_difference, ratio_of_sums
from sft_jax.runs.restore import load_for_inference
from sft_jax.runs.workdir import write_whole
from sft_jax.sharding import inference_mesh
from sft_jax.training import run

BASE, WITHOUT, WITH = "base", "without replay", "with replay"
SEED = 0

Losses = Mapping[str, Float[np.ndarray, "texts 2"]]  # by source: of each text its summed loss, and its tokens


def experiment(out: Path, model: str, changes: Mapping[str, object], console: Console) -> dict[str, dict]:
    """Trains with and without replay, measures both beside the base, and writes `results.json`.

    Args:
        out: directory, which holds the texts.
        model: what is trained on from.
        changes: of the config of both runs, by path.
        console: where progress is shown.

    Returns:
        The results.
    """
    configs = {name: config_of(out, model, changes, replay=name == WITH) for name in (WITHOUT, WITH)}
    for name, config in configs.items():
        run(config, out / name.replace(" ", "_"), console=console)
    sources = {BASE: model} | {name: str(out / name.replace(" ", "_")) for name in (WITHOUT, WITH)}
    matmul = configs[WITH].precision.matmul
    losses = {name: losses_of(source, out / HELD_OUT_FILE, matmul) for name, source in sources.items()}
    results = compare(losses)
    write_whole(out / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def config_of(out: Path, model: str, changes: Mapping[str, object], *, replay: bool) -> ConfigDict:
    """The config of a run: both have the same sources, steps and sequences, and without replay one has the weight 0."""
    config = continued.get_config("lora,replay")
    with config.unlocked():
        config.model.source = model
        for name in (NEW, OLD):
            config.data.mixture[name].path = str(out / f"{name}.jsonl")
        if not replay:
            config.data.mixture[OLD].weight = "0"
        config.data.held_out = str(out / HELD_OUT_FILE)
        config.data.sequence_length = 512
        config.batch.sequences, config.batch.micro_batches = 2, 2  # in some 3 GiB of memory
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup = "3 steps"
        config.evaluation.every = "0 steps"
        config.checkpoint.every = "4 steps"
        config.update_from_flattened_dict(changes)
    return config


def losses_of(source: str, held_out: Path, matmul: str) -> Losses:
    """The loss of each held-out text under a model: a run, or a pretrained checkpoint.

    Args:
        source: the model.
        held_out: file of the texts.
        matmul: dtype of the inputs of matrix products.
    """
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = load_for_inference(source, mesh, matmul)
        records = read_records(epath.Path(held_out), Reading(group_column="source", text_end="eos"))
        examples, dropped = tokenize_records(records, loaded.renderer, loaded.model.config.max_positions)
        if dropped:
            raise ValueError(f"{held_out}: {len(dropped)} texts cannot be measured, the first: {dropped[0]}")
        outcomes = example_losses(loaded.model, loaded.variables, examples, mesh)
    columns = np.array([[outcome["loss_sum"], outcome["loss_weight"]] for outcome in outcomes])
    group_of = {record.id: record.group for record in records}
    groups = np.array([group_of[name] for name in examples.ids])
    return {source: columns[groups == source] for source in (NEW, OLD)}


def compare(losses: Mapping[str, Losses]) -> dict[str, dict]:
    """Losses a token with intervals, and differences on the same texts; `{source: {name: score}}`.

    Intervals are BCa bootstrap intervals over texts, of differences over pairs.
    """
    how = {"seed": SEED, "maximum": None}
    pairs = ((BASE, WITHOUT), (BASE, WITH), (WITHOUT, WITH))
    results: dict[str, dict] = {}
    for source in (NEW, OLD):
        scores = {name: bootstrap_interval(of_model[source], ratio_of_sums, **how) for name, of_model in losses.items()}
        for first, second in pairs:
            texts = losses[first][source], losses[second][source]
            scores[f"{second} - {first}"] = paired_difference(*texts, ratio_of_sums, **how)
        results[source] = {name: score.as_dict() for name, score in scores.items()}
    return results


def table_of(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> TextTable:
    """The results: a line for each model and difference, a column for each source."""
    text = lambda name, score: difference_text(score) if " - " in name else score_text(score)
    rows = [(name, *(text(name, of_source[name]) for of_source in results.values())) for name in results[NEW]]
    return TextTable("", ("held-out loss a token (95 % interval)", *results), tuple(rows))
