"""A tiny student and a larger teacher beside it, and what a run makes of both before its first step."""

import math
from pathlib import Path

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.sharding import shardings_of
from sft_jax.training.checked_run import check_run
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.setup import init_state
from sft_jax.training.teacher_values import with_teacher_values
from tests import tiny
from tests.training.test_invariance import Built, fill_adapters

QUIET = Console(quiet=True)
# Another size, a head of its own, and embeddings that are padded to another number.
TEACHER = {"num_hidden_layers": 3, "hidden_size": 64, "vocab_size": 336, "tie_word_embeddings": False}


def config(root: Path, arg: str = "full", **overrides: object) -> ConfigDict:
    """`tiny.config` with a teacher, which is written below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "teacher").exists():
        tiny.write_checkpoint(root / "teacher", seed=3, **TEACHER)
    of_teacher = {"objective.name": "forward_kl", "teacher.source": str(root / "teacher")}
    of_teacher |= {"checkpoint.best_metric": "held_out/loss"}
    return tiny.config(root, arg, **(of_teacher | overrides))


def build(made: ConfigDict, cache: Path | str = "") -> Built:
    """What a run has before its first step; adapters are not zero."""
    with made.unlocked():
        made.data.cache = str(cache)
    devices = jax.devices()[: math.prod(size for size in made.mesh.values() if size > 0)]
    checked = check_run(made, epath.Path("/nowhere"), devices, None)
    options, mesh, data = checked.options, checked.mesh, load_data(options_of(made))
    with jax.set_mesh(mesh):
        if options.teacher.top_k:
            data = with_teacher_values(checked, data, QUIET)
        hyper = hyperparameters(options, 0, 10)
        state = init_state(options, checked.base, checked.model, mesh, hyper, None, checked.teacher)
        if "adapters" in state.trained:
            trained = {**state.trained, **fill_adapters(state.trained, checked.model.layout)}
            state = state.replace(trained=jax.device_put(trained, shardings_of(trained, mesh)))
    return Built(made, data, mesh, checked.model, checked.settings, state)


def log_probabilities(model, tokens: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Of a torch model at every position of a text, float64 [tokens, vocabulary]."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor(tokens[None]).long()).logits[0].double() / temperature
    return torch.log_softmax(logits, -1).numpy()
