"""Tasks of EleutherAI's lm-evaluation-harness: found by name or path, run on a model, their results written.

The command `sft_jax/harness.py` goes through here; `harness.py` beside this is the model that the tasks ask.
"""

import contextlib
import dataclasses
import difflib
import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from etils import epath

from sft_jax.evaluation.harness import HarnessModel
from sft_jax.runs.workdir import write_whole

# Behind the import of harness.py, which says how to install what is missing.
from lm_eval import evaluator, utils  # isort: skip
from lm_eval.tasks import TaskManager  # isort: skip

RESULTS, SAMPLES = "results.json", "samples.jsonl"
_FEW_SHOT_SEED, _NUMPY_SEED = 1234, 1234  # the harness's own
_BOOTSTRAP = 1000  # resamples, for standard errors without a formula
_NEAREST = 5


@dataclasses.dataclass(frozen=True)
class Run:
    """How tasks are run.

    Attributes:
        rows: of each task only the first; 0: all.
        chat: prompts are rendered by the model's chat template, solved examples as turns of it.
        few_shot: solved examples in each prompt; None: as many as each task says.
    """

    rows: int = 0
    chat: bool = False
    few_shot: int | None = None


def load_tasks(names: Sequence[str], run: Run) -> dict[str, Any]:
    """The tasks, with their data, as the harness's `TaskManager.load` gives them.

    Args:
        names: of tasks, groups or tags of the harness, or paths of YAML files.
        run: how they are run.

    Raises:
        ValueError: there is no such task (names those with a name like it), one that has its number of solved examples
            fixed at none, one that would run what the model writes, or a file that is no YAML.
    """
    # To read the harness's own tasks, 14,000 of them, takes seconds.
    manager = TaskManager(include_defaults=any(map(_names_others, names)))
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            near = difflib.get_close_matches(name, manager.all_tasks, _NEAREST)
            advice = f"with a name like it: {', '.join(near)}" if near else "and none with a name like it"
            raise ValueError(f"there is no task {name!r}, neither in the harness nor as a file; {advice}")
    try:
        tasks = manager.load(list(names))
    except yaml.YAMLError as error:
        raise ValueError(f"the file of a task cannot be read: {error}") from error
    for name, task in tasks["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"task {name} runs programs that the model writes; that is not done here. Leave it out")
        _set_few_shot(name, task, run.few_shot)
    return tasks


def _names_others(name: str) -> bool:
    """Whether it is no file, or the file of a group, which may name any tasks."""
    path = Path(name)
    return not path.is_file() or re.search(r"^group:", path.read_text(), re.MULTILINE) is not None


def _set_few_shot(name: str, task: Any, few_shot: int | None) -> None:
    fixed = task.get_config("num_fewshot")
    if few_shot and fixed == 0:
        raise ValueError(
            f"task {name} has num_fewshot: 0, which says that it is meant without solved examples; few_shot={few_shot} "
            "goes with other tasks"
        )
    task.set_config(key="num_fewshot", value=(fixed or 0) if few_shot is None else few_shot)
    task.set_fewshot_seed(seed=_FEW_SHOT_SEED)


def run_tasks(model: HarnessModel, tasks: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Runs tasks, with the harness's own seeds; returns its results, `config` among them, and `samples`.

    Standard errors without a formula are those of 1,000 resamples, in this process: the harness would draw 100,000 in
    forks of a process that has the threads of JAX.

    Raises:
        ValueError: what `HarnessModel` refuses.
    """
    random.seed(0)
    np.random.seed(_NUMPY_SEED)
    with _in_one_process():
        results = evaluator.evaluate(
            model,
            tasks,
            limit=run.rows or None,
            bootstrap_iters=_BOOTSTRAP,
            apply_chat_template=run.chat,
            fewshot_as_multiturn=run.chat,
        )
    config = dataclasses.asdict(run) | {"model": model.name, "cut_contexts": model.cut}
    if run.chat:
        config["chat_template"] = model.chat_template(True)
    return {"config": config, "lm_eval_version": metadata.version("lm-eval"), **results}


@contextlib.contextmanager
def _in_one_process() -> Iterator[None]:
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        del os.environ["DISABLE_MULTIPROC"]
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


def write_results(directory: epath.Path, results: Mapping[str, Any]) -> None:
    """Writes `samples.jsonl` (a line for each row of each task, with what was asked and answered), `results.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    samples = [{"task": task, **sample} for task, of_task in results["samples"].items() for sample in of_task]
    write_whole(directory / SAMPLES, "".join(f"{_as_json(sample)}\n" for sample in samples))
    rest = {name: value for name, value in results.items() if name != "samples"}
    write_whole(directory / RESULTS, _as_json(rest, indent=2) + "\n")


def _as_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, default=utils.handle_non_serializable)


def tables(results: Mapping[str, Any]) -> str:
    """The harness's own tables, in Markdown: of tasks, and of groups where there are some."""
    parts = [utils.make_table(results)]
    if results.get("groups"):
        parts.append(utils.make_table(results, "groups"))
    return "\n".join(parts)


def cut_note(model: HarnessModel) -> str:
    """How many contexts lost their beginning, in words; empty where none did."""
    if not model.cut:
        return ""
    return f"Too long for the model's positions, and cut at the beginning: {model.cut} contexts."
