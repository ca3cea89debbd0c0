"""Measures a model on held-out rows: answers and their scores, with several methods side by side.

    python -m sft_jax.evaluate --model=runs/x --data=held_out.jsonl --scorer=json_extraction --out=runs/x/evaluation
    python -m sft_jax.evaluate --model=runs/x --data=… --out=… --methods=base,few_shot,sft --examples_from=train.jsonl
    python -m sft_jax.evaluate --model=runs/x --config=configs/mine.py --out=… --methods=base,prompted,rag,sft,sft+rag

What is measured is one task, which the flags describe, or those of `config.evaluation.tasks`. Rows are read as in
training: `--reading.prompt_template=…` is `config.data.reading.prompt_template`, and so on. Answers are kept in --out:
the same command goes on where it was stopped.
"""

import dataclasses
import sys

from absl import flags

from sft_jax import commands, config_flag, evaluation_flags, inference_flags, scorer_flags

_MODEL = flags.DEFINE_string("model", "", "Run directory (with :best, :latest, :<step>) or pretrained source.")
_CONFIG = config_flag.define()
_METHODS = flags.DEFINE_list(
    "methods",
    [],
    "base, prompted, few_shot, rag, sft, sft@0.5 (half-way), or several joined by '+'. By default the model itself.",
)
_OUT = flags.DEFINE_string("out", None, "Directory for results, report, predictions and answers.", required=True)
_COMPARE = flags.DEFINE_string("compare", "", "Directory of an earlier evaluation of the same rows to compare with.")
_REFERENCE = flags.DEFINE_string(
    "reference", "", "Of --kind=prefer: a run or pretrained source, over whose log-probabilities answers are compared."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the solved examples drawn, of sampling and of the bootstrap.")

for module in (evaluation_flags, scorer_flags):
    flags.adopt_module_key_flags(module)  # --help lists them too

_STATUS_OF_REGRESSION = 4


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    import jax
    from etils import epath
    from rich.console import Console

    from sft_jax.agreement import agreed, ending_together
    from sft_jax.evaluation.measuring import read_entry
    from sft_jax.evaluation.methods import BASE, FEW_SHOT, TUNED, parse_methods
    from sft_jax.evaluation.predictions import read_before, with_rows_of, write_predictions
    from sft_jax.evaluation.report.terminal import terminal_report
    from sft_jax.evaluation.report.write import log_report, write_report
    from sft_jax.evaluation.results import drift_rows, gate, results_of
    from sft_jax.evaluation.side_by_side import Setting, check_probes, divergence, measure_methods
    from sft_jax.progress import ProgressBars
    from sft_jax.runs.base import open_run
    from sft_jax.runs.drift import weight_drift
    from sft_jax.runs.training_cost import training_cost
    from sft_jax.runs.workdir import CONFIG, is_remote
    from sft_jax.sharding import inference_mesh

    options = evaluation_flags.options_of(_CONFIG.value)
    asked = parse_methods(_METHODS.value) if _METHODS.value else []
    evaluation_flags.refuse_unread(asked)
    model = _MODEL.value or (_CONFIG.value.model.source if _CONFIG.value else "")
    if not model:
        raise ValueError("give --model, or --config with a model.source")
    commands.start_jax(several_processes=True)
    first_process, out = jax.process_index() == 0, epath.Path(_OUT.value)
    if (out / CONFIG).exists():
        raise ValueError(f"--out={out} holds a run, whose log would be replaced; give a directory of its own in it")
    console = Console(quiet=not first_process)
    with agreed():
        run = open_run(model)
        methods = asked or parse_methods([TUNED if run else BASE])
        _check_weights(methods, run, model)
        entries = [read_entry(name, task) for name, task in options.tasks.items()]
        before = read_before(epath.Path(_COMPARE.value), entries) if _COMPARE.value else None
        check_probes(entries, methods, options.max_regression)
        _check_reference(entries)
        parts = {part for method in methods for part in method.parts}
        examples_from = evaluation_flags.examples(options, _CONFIG.value) if FEW_SHOT in parts else []
    mesh = inference_mesh(jax.devices(), evaluation_flags.TENSOR.value)

    def load(weights: float):
        share = 1.0 if run is None else weights
        console.print(f"Loading {model}{'' if share == 1 else f', mix {share:g}' if share else ', the base of'}")
        return inference_flags.load(model, mesh, share)

    names = {method.name for method in methods}
    with ending_together(), jax.set_mesh(mesh), ProgressBars(console) as progress:
        cache = None if is_remote(out) else out
        setting = Setting(options, examples_from, cache, out / "answers", _SEED.value, first_process, progress)
        setting = dataclasses.replace(setting, references=_references(entries, setting, mesh, console))
        measured = measure_methods(entries, methods, load, setting)
        differences = divergence(entries, load, setting) if {BASE, TUNED} <= names else None
        moved = TUNED in names and inference_flags.MIX.value == 1
        drift = drift_rows(weight_drift(run, mesh, inference_flags.WEIGHTS.value)) if moved else None
    with agreed():
        cost = training_cost(run) if run else None
        results = results_of(entries, methods, measured, cost, _SEED.value, before)
        results |= {"divergence": differences, "drift": drift, "gate": gate(results, options.max_regression)}
        if first_process:
            write_predictions(out, measured.rows)
            paths = write_report(results, with_rows_of(before, measured.rows), out)
            log_report(results, out, run.step if run else 0)
            console.print(terminal_report(results, console.width))
            console.print(f"Report: {paths[2]}", soft_wrap=True)
    if results["gate"] and results["gate"]["failed"]:
        sys.exit(_STATUS_OF_REGRESSION)


def _check_reference(entries) -> None:
    """Refuses a reference that no task reads."""
    from sft_jax.evaluation.tasks.preferring import PREFER

    if not any(entry.options.kind == PREFER for entry in entries):
        commands.refuse_unread([_REFERENCE.name], "tasks of kind=prefer")


def _references(entries, setting, mesh, console):
    """What --reference says of pairs; its weights are in memory in this call alone."""
    from sft_jax.evaluation.side_by_side import references_of

    if not _REFERENCE.value:
        return {}
    console.print(f"Loading the reference {_REFERENCE.value}")
    return references_of(entries, inference_flags.load_as_it_is(_REFERENCE.value, mesh), setting)


def _check_weights(methods, run, model: str) -> None:
    """Refuses tuned weights where there are none, and flags of tuned weights that nothing reads."""
    is_tuned = any(method.is_tuned for method in methods)
    if is_tuned and run is None:
        raise ValueError(f"--methods: sft needs a run, and --model={model} is a pretrained checkpoint")
    if not is_tuned:
        commands.refuse_unread(["weights", "mix"], "--methods=sft, of a run")


if __name__ == "__main__":
    commands.run(main, several_processes=True)
