"""What goes into a log, and that a run's log takes it."""

from etils import epath

from sft_jax.evaluation.report.tensorboard import log_scalars, log_texts
from sft_jax.runs.metric_log import MetricLog, read_metrics
from tests.evaluation.report.made_results import everything


def test_scalars():
    scalars = list(log_scalars(everything()))
    assert len(scalars) == len(dict(scalars))
    assert dict(scalars) == {
        "evaluation/extraction/base/exact_match": 0.1,
        "evaluation/extraction/rag/exact_match": 0.7,
        "evaluation/extraction/sft/exact_match": 0.5,
        "evaluation/extraction/sft/held_out_loss": 0.75,
        "forgetting/arithmetic/base/exact_match": 0.5,
        "forgetting/arithmetic/sft/exact_match": 0.4,
        "evaluation_cost/base/prompt_tokens": 110.0,
        "evaluation_cost/base/generated_tokens": 40.0,
        "evaluation_cost/base/seconds": 0.5,
        "evaluation_cost/rag/prompt_tokens": 1_600.0,
        "evaluation_cost/rag/generated_tokens": 40.0,
        "evaluation_cost/rag/seconds": 0.5,
        "evaluation_cost/sft/prompt_tokens": 110.0,
        "evaluation_cost/sft/generated_tokens": 40.0,
        "evaluation_cost/sft/seconds": 0.5,
        "retrieval/recall@1": 0.8,
        "divergence/kl_base_tuned": 0.2,
    }


def test_texts():
    texts = dict(log_texts(everything()))
    assert list(texts)[:2] == ["evaluation/extraction", "evaluation/Methods and their cost"]
    assert len(texts) == 7
    assert "WORSE than rag (-0.200, p = 0.010)" in texts["evaluation/extraction"]
    assert "| sft | 0.500 [0.400, 0.600] | 0.750 |" in texts["evaluation/extraction"]


def test_the_log_of_a_run_takes_both(tmp_path):
    log = MetricLog(epath.Path(tmp_path), -1)
    log.scalars(7, dict(log_scalars(everything())))
    for tag, markdown in log_texts(everything()):
        log.text(7, tag, markdown)
    log.close()
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line == {"step": 7, **dict(log_scalars(everything()))}
    events = b"".join(path.read_bytes() for path in tmp_path.glob("events*"))
    assert b"evaluation/Forgetting: arithmetic" in events
    assert b"WORSE than rag" in events
