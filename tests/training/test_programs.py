"""What a run compiles: each kind of evaluation once, however often it is made; and what several uses share."""

import contextlib

import jax
import jax.monitoring
import numpy as np
import pytest

from sft_jax.evaluation.held_out_loss import example_losses
from sft_jax.exports.golden import Golden, golden_logits
from sft_jax.generation import Sampler, prepare
from sft_jax.models import DecoderConfig, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.initial import init_params
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.sharding import inference_mesh, placement
from sft_jax.training import run, trial
from tests import tiny

COMPILATION = "/jax/core/compile/backend_compile_duration"
SCHEDULE_FREE = {"optimizer.name": "schedule_free", "optimizer.schedule": "constant"}


@contextlib.contextmanager
def compilations():
    """A list that gets an entry for each program that JAX asks to have compiled."""
    seen: list[str] = []

    def listen(event, duration, **_):
        if event == COMPILATION:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"ema.decay": 0.9, "ema.evaluate": True}, SCHEDULE_FREE])
def test_one_program_for_each_kind_of_evaluation(changes, tmp_path, monkeypatch):
    """Held-out metrics, samples and the choice of weights: all is compiled at the first of four evaluations."""
    counts, make = [], trial.compile_evaluation

    def counted(*arguments):
        evaluate = make(*arguments)

        def evaluate_and_count(*given):
            with compilations() as seen:
                result = evaluate(*given)
            counts.append(len(seen))
            return result

        return evaluate_and_count

    monkeypatch.setattr(trial, "compile_evaluation", counted)
    settings = {"duration": "3 steps", "evaluation.every": "1 steps", "checkpoint.every": "0 steps"}
    samples = {"evaluation.samples": 2, "evaluation.sample_tokens": 20, "precision.matmul": "bfloat16"}
    run(tiny.config(tmp_path, **settings | samples | changes), tmp_path / "run")
    assert len(counts) == 4
    assert counts[0] > 0
    assert counts[1:] == [0, 0, 0]


def test_uses_of_one_model_share_its_programs(tmp_path):
    """Samplers, losses by example, and logits of the golden conversation."""
    config = tiny.config(tmp_path)
    data, mesh = load_data(options_of(config)), inference_mesh(jax.devices())
    model = Decoder(DecoderConfig(320, 2, 32, 4, 2, 8, 48), Execution(matmul_dtype="bfloat16"))
    params = init_params(model.config, "scan", "float32", placement(mesh), 0, 0.02)
    golden = Golden((), "", np.arange(3, 20, dtype=np.int32), ())

    def use():
        with jax.set_mesh(mesh):
            prompts = [np.arange(3, 9, dtype=np.int32)]
            Sampler((2,)).generate(prepare(model, {"params": params}), prompts, max_new_tokens=4)
            example_losses(model, {"params": params}, data.held_out, mesh)
            golden_logits(model, {"params": params}, golden)

    use()
    with compilations() as seen:
        use()
    assert not seen


def test_layers_in_arrays_of_their_own_are_made_by_one_program():
    """Twelve layers take no more programs than two."""
    found = []
    for layers in (2, 12):
        config = DecoderConfig(320, layers, 32, 4, 2, 8, 40)
        with compilations() as seen:
            init_params(config, "unrolled", "float32", placement(inference_mesh(jax.devices())), 0, 0.02)
        found.append(len(seen))
    assert 0 < found[1] <= found[0] + 1  # keys are split by a program for each number
