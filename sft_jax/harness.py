"""Runs tasks of EleutherAI's lm-evaluation-harness on a model, and writes its table and results.

    pip install -r requirements-harness.txt
    python -m sft_jax.harness --model=runs/x:best --tasks=arc_easy,lambada_openai --out=runs/x/harness
    python -m sft_jax.harness --model=runs/x --tasks=my_task.yaml --out=runs/x/mine --chat --few_shot=2

Names are those of the harness; a path is that of a task of one's own, in the harness's YAML. On several hosts, run the
same command on each with `--distributed`; the first one writes.
"""

from absl import flags

from sft_jax import commands, inference_flags

_MODEL = flags.DEFINE_string(
    "model", None, "Run directory (with :best, :latest, :<step>) or pretrained source.", required=True
)
_TASKS = flags.DEFINE_list("tasks", None, "Names of tasks or groups, or paths of YAML files.", required=True)
_OUT = flags.DEFINE_string("out", None, "Directory for results.json and samples.jsonl.", required=True)
_ROWS = flags.DEFINE_integer("rows", 0, "Of each task only the first rows; 0: all.", lower_bound=0)
_CHAT = flags.DEFINE_bool("chat", False, "Prompts as conversations, by the model's chat template.")
_FEW_SHOT = flags.DEFINE_integer(
    "few_shot", None, "Solved examples in each prompt; by default what each task says.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampling, where a task draws its answers.")


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    from sft_jax.agreement import agreed, ending_together

    commands.start_jax(several_processes=True)
    with ending_together():
        with agreed():  # what one process refuses, all refuse
            elsewhere = "the other commands: here a task says it by its generation_kwargs"
            commands.refuse_unread(["temperature", "top_k", "top_p"], elsewhere)
            from sft_jax.evaluation import harness_tasks

            run = harness_tasks.Run(_ROWS.value, _CHAT.value, _FEW_SHOT.value)
            tasks = harness_tasks.load_tasks(_TASKS.value, run)
        _run(tasks, run)


def _run(tasks, run) -> None:
    """Runs tasks; the first process says what comes of it."""
    import jax
    from etils import epath
    from rich.console import Console

    from sft_jax.agreement import agreed
    from sft_jax.evaluation import harness_tasks
    from sft_jax.evaluation.harness import HarnessModel
    from sft_jax.progress import ProgressBars
    from sft_jax.sharding import inference_mesh

    is_first = jax.process_index() == 0
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh), ProgressBars(Console(quiet=not is_first)) as progress:
        model = HarnessModel(
            inference_flags.load(_MODEL.value, mesh),
            batch_size=inference_flags.BATCH_SIZE.value,
            max_new_tokens=inference_flags.MAX_NEW_TOKENS.value,
            seed=_SEED.value,
            progress=progress,
        )
        results = harness_tasks.run_tasks(model, tasks, run)
    with agreed():
        if not is_first:
            return
        harness_tasks.write_results(epath.Path(_OUT.value), results)
    print(harness_tasks.tables(results))
    if note := harness_tasks.cut_note(model):
        print(note)
    print(f"Results: {_OUT.value}")


if __name__ == "__main__":
    commands.run(main, several_processes=True)
