"""`python -m sft_jax.evaluate` from outside: tasks of flags and of a config, methods side by side, mistakes."""

import collections
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sft_jax.training import run
from tests import tiny
from tests.patience import PATIENCE_SECONDS

DRIVER, ROOT = Path(__file__).with_name("evaluate_driver.py"), Path(__file__).parents[1]
ROWS = 6

CONFIG = """
from configs import sft


def get_config():
    config = sft.get_config("full").copy_and_resolve_references().unlock()
    config.model.source, config.data.train, config.data.held_out = {source!r}, {train!r}, {held_out!r}
    config.evaluation.tasks.written = sft.task(max_new_tokens=4, rows=3)
    config.evaluation.tasks.chosen = sft.task({choices!r}, kind="choose", choices_column="choices", loss=False)
    return config.lock()
"""
OPTIONS = '--scorer_options={"pattern": "[a-z]", "compare": false}'
SCORERS = '''
import json, os


def raises(answer, case):
    return {"exact_match": 1 / len(case.row.get("no such column", "")) > 0}


def as_before(answer, case):
    """Right is what the base wrote, as its predictions say."""
    with open(os.environ["BEFORE"]) as lines:
        written = {line["id"]: line["answer"] for line in map(json.loads, lines)}
    return {"exact_match": answer == written[case.id]}
'''


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of a tiny model, held-out rows, a corpus, and files with faults."""
    made = tmp_path_factory.mktemp("evaluate")
    config = tiny.config(made, "lora", **{"evaluation.every": "0 steps"})
    run(config, made / "run")
    files = {
        "rows.jsonl": "".join((made / "held_out.jsonl").read_text().splitlines(keepends=True)[:ROWS]),
        "empty.jsonl": "",
        "unanswered.jsonl": '{"messages": [{"role": "user", "content": "red"}]}\n',
        "long.jsonl": json.dumps({"prompt": "a" * 600, "completion": "b"}) + "\n",
        "pairs.jsonl": "".join(
            json.dumps({"prompt": word, "chosen": f"{word} cat", "rejected": "tree of seven"}) + "\n"
            for word in ("red", "blue", "I")
        ),
        "choices.jsonl": '{"prompt": "2+2?", "completion": "4", "choices": ["3", "4"]}\n'
        '{"prompt": "Rome?", "completion": "Italy", "choices": ["Italy", "Norway", "Peru"]}\n',
        "corpus/red.txt": "What is red is no cat.",
        "corpus/again.txt": "What is red is no cat.",
        "corpus/words.txt": "seven blue tree of I and cat",
        "corpus/empty.txt": "",
        "own_scorers.py": SCORERS,
        "mine.py": CONFIG.format(
            source=str(made / "model"),
            train=str(made / "train.jsonl"),
            held_out=str(made / "rows.jsonl"),
            choices=str(made / "choices.jsonl"),
        ),
        "no_tasks.py": CONFIG.format(source="m", train="t", held_out="h", choices="c").replace(".tasks.", ".task_"),
    }
    for name, text in files.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text(text)
    shutil.copytree(made / "model", made / "plain")
    (made / "plain" / "chat_template.jinja").unlink()
    return made


def called(root: Path, specs: list[dict]) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{root}",
        "BEFORE": str(root / "base" / "predictions" / "task" / "base.jsonl"),
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
    }
    command = [sys.executable, str(DRIVER), json.dumps(specs)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> list[dict]:
    return json.loads(process.communicate(timeout=PATIENCE_SECONDS)[0].splitlines()[-1])


def flags(root: Path, out: str, *arguments: str, model: str = "run", data: str = "rows.jsonl") -> list[str]:
    given = [f"--model={root / model}", f"--out={root / out}", "--matmul=float32", *arguments]
    return given + ([f"--data={root / data}", "--max_new_tokens=4"] if data else [])


def methods_of(root: Path) -> list[str]:
    return [
        "--methods=base,few_shot,prompted,rag,sft,sft+rag",
        f"--examples_from={root / 'train.jsonl'}",
        "--choose_examples=nearest",
        "--instruction=Be brief.",
        f"--corpus={root / 'corpus'}",
        "--passages=1",
    ]


def commands_of(root: Path) -> dict[str, dict]:
    """Name -> what is called, in this order."""
    of_config = [f"--config={root / 'mine.py'}", "--methods=base,sft"]
    by_arguments = {
        "one task": flags(root, "tuned"),
        "one task again": flags(root, "tuned"),
        "side by side": flags(root, "methods", *methods_of(root)),
        "side by side again": flags(root, "methods", *methods_of(root)),
        "base": flags(root, "base", "--methods=base"),
        "compared": flags(root, "tuned", f"--compare={root / 'base'}"),
        "of a config": flags(root, "tasks", *of_config, data=""),
        "of a config again": flags(root, "tasks", *of_config, data=""),
        "worse": flags(
            root, "gate", "--methods=base,sft", "--probe", "--scorer=own_scorers:as_before", "--max_regression=0.01"
        ),
        "on two devices": flags(root, "two", "--tensor=2"),
        "pairs": flags(
            root,
            "pairs",
            *("--methods=base,sft", "--kind=prefer", f"--reference={root / 'model'}", f"--data={root / 'pairs.jsonl'}"),
            data="",
        ),
        "several samples": flags(root, "samples", "--samples=3", "--temperature=1", "--scorer=regex", OPTIONS),
        "no pairs": flags(root, "never", "--kind=prefer", f"--data={root / 'rows.jsonl'}", data=""),
        "unread: reference": flags(root, "never", f"--reference={root / 'model'}"),
        "raises": flags(root, "never", "--scorer=own_scorers:raises"),
        "raises, with methods": [*flags(root, "never", f"--config={root / 'mine.py'}", data=""), "--methods=lora"],
        "no tasks": flags(root, "never", f"--config={root / 'no_tasks.py'}", data=""),
        "no model": [f"--out={root / 'never'}", f"--data={root / 'rows.jsonl'}"],
        "model of the config": [f"--out={root / 'of_config'}", f"--config={root / 'mine.py'}", "--matmul=float32"],
        "no data": flags(root, "never", data=""),
        "empty": flags(root, "never", data="empty.jsonl"),
        "unanswered": flags(root, "never", data="unanswered.jsonl"),
        "too long": flags(root, "never", data="long.jsonl"),
        "no template": flags(root, "never", model="plain"),
        "into the run": flags(root, "run"),
        "not a run": flags(root, "never", "--methods=base,sft", model="model"),
        "tensor": flags(root, "never", "--tensor=3"),
        "nothing to compare": flags(root, "never", f"--compare={root / 'corpus'}"),
        "few_shot of nothing": flags(root, "never", "--methods=few_shot"),
        "rag of nothing": flags(root, "never", "--methods=rag"),
        "unread: data": flags(root, "never", f"--config={root / 'mine.py'}"),
        "unread: weights": flags(root, "never", "--methods=base", "--mix=0.5"),
        "unread: choices": flags(root, "never", "--choices=a,b"),
    }
    specs = {name: {"arguments": arguments} for name, arguments in by_arguments.items()}
    for name in ("on two devices", "tensor"):
        specs[name]["devices"] = 2
    return specs


@pytest.fixture(scope="module")
def ends(root):
    specs = commands_of(root)
    return dict(zip(specs, ended(called(root, list(specs.values()))), strict=True))


def results(root: Path, out: str) -> dict:
    return json.loads((root / out / "results.json").read_text())


def predictions(root: Path, out: str, method: str, task: str = "task") -> list[dict]:
    text = (root / out / "predictions" / task / f"{method}.jsonl").read_text()
    return [json.loads(line) for line in text.rstrip("\n").split("\n")]


@pytest.mark.slow
class TestCommand:
    """All in a class, so that one worker runs them: what they look at is made once."""

    def test_one_task_of_flags(self, root, ends):
        assert ends["one task"]["status"] == 0, ends["one task"]["output"]
        assert ends["one task"]["computed"] == {"written": ROWS, "judged": 0}
        found = results(root, "tuned")
        task = found["tasks"]["task"]
        assert (task["kind"], task["examples"], task["primary"]) == ("generate", ROWS, "exact_match")
        assert set(task["scores"]["sft"]) == {"exact_match", "stopped", "held_out_loss", "perplexity"}
        assert found["methods"]["sft"]["weights"] == "tuned"
        training = found["methods"]["sft"]["training"]
        assert training["steps"] == 6
        assert 0 < training["supervised_tokens"] < training["tokens"]
        assert 0 < training["parameters_changed"] < training["parameters"]
        for name in ("report.md", "report.html", "results.json"):
            assert (root / "tuned" / name).exists()

    def test_a_second_start_computes_nothing(self, root, ends):
        for name in ("one task again", "side by side again", "of a config again"):
            assert ends[name]["status"] == 0, ends[name]["output"]
            assert ends[name]["computed"] == {"written": 0, "judged": 0}

    def test_methods_side_by_side(self, root, ends):
        assert ends["side by side"]["status"] == 0, ends["side by side"]["output"]
        names = ["base", "few_shot", "prompted", "rag", "sft", "sft+rag"]
        found = results(root, "methods")
        assert list(found["methods"]) == list(found["tasks"]["task"]["scores"]) == names
        asked = {name: predictions(root, "methods", name) for name in names}
        assert asked["base"][0]["prompt"] == asked["sft"][0]["prompt"]
        assert [turn["role"] for turn in asked["few_shot"][0]["prompt"]] == ["user", "assistant"] * 2 + ["user"]
        assert asked["prompted"][0]["prompt"][0] == {"role": "system", "content": "Be brief."}
        assert asked["rag"][0]["prompt"] == asked["sft+rag"][0]["prompt"]
        assert asked["rag"][0]["prompt"][0]["content"].startswith("Passages:\n\n[1] ")
        assert [row["id"] for row in asked["rag"]] == [f"rows.jsonl:{n}" for n in range(1, ROWS + 1)]
        assert [row["answer"] for row in asked["sft"]] == [row["answer"] for row in predictions(root, "tuned", "sft")]
        assert len(found["tasks"]["task"]["comparisons"]) == 2 * 15 + 2  # all pairs; base and sft by their losses too
        (note,) = [note for note in found["tasks"]["task"]["notes"] if note.startswith("rag: Passages were found")]
        assert "2 documents; 1 empty, left out: empty.txt; 1 of the same text as another, left out" in note

    def test_compared_with_an_earlier_evaluation(self, root, ends):
        assert ends["compared"]["status"] == 0, ends["compared"]["output"]
        found = results(root, "tuned")
        pairs = {(one["first"], one["second"]) for one in found["tasks"]["task"]["comparisons"]}
        assert pairs == {("sft", "base (before)")}
        assert found["methods"]["base (before)"] == results(root, "base")["methods"]["base"]

    def test_tasks_of_a_config(self, root, ends):
        assert ends["of a config"]["status"] == 0, ends["of a config"]["output"]
        assert ends["of a config"]["computed"] == {"written": 6, "judged": 4}
        found = results(root, "tasks")
        assert {name: task["examples"] for name, task in found["tasks"].items()} == {"written": 3, "chosen": 2}
        assert set(found["tasks"]["chosen"]["scores"]["base"]) == {"accuracy", "probability"}
        assert predictions(root, "tasks", "sft", "chosen")[1]["logprobs"].keys() == {"Italy", "Norway", "Peru"}

    def test_pairs_over_a_reference(self, root, ends):
        assert ends["pairs"]["status"] == 0, ends["pairs"]["output"]
        assert ends["pairs"]["computed"] == {"written": 0, "judged": 3 * 3}  # by the base, the run and the reference
        task = results(root, "pairs")["tasks"]["task"]
        assert set(task["scores"]["sft"]) == {
            *("preference_accuracy", "preference_accuracy_per_token", "preference_accuracy_over_reference")
        }
        assert f"sft: The reference is {root / 'model'}." in task["notes"]
        assert "preference accuracy, over reference" in (root / "pairs" / "report.md").read_text()

    def test_several_samples(self, root, ends):
        assert ends["several samples"]["status"] == 0, ends["several samples"]["output"]
        task = results(root, "samples")["tasks"]["task"]
        assert set(task["scores"]["sft"]) == {
            *("pass@1", "pass@2", "pass@3", "likeliest_of_3", "held_out_loss", "perplexity")
        }
        assert all(len(row["answers"]) == 3 for row in predictions(root, "samples", "sft"))

    def test_without_a_run_the_model_of_the_config(self, root, ends):
        assert ends["model of the config"]["status"] == 0, ends["model of the config"]["output"]
        assert list(results(root, "of_config")["methods"]) == ["base"]
        found, expected = (predictions(root, out, "base", "written") for out in ("of_config", "tasks"))
        assert same_answers(found, expected)

    def test_a_probe_that_got_worse_is_a_status_of_its_own(self, root, ends):
        assert ends["worse"]["status"] == 4, ends["worse"]["output"]
        found = results(root, "gate")
        (failed,) = found["gate"]["failed"]
        assert failed.startswith("task: exact_match 0.")
        assert list(found["forgetting"]) == ["task"]

    def test_weights_split_over_devices_give_the_same(self, root, ends):
        assert ends["on two devices"]["status"] == 0, ends["on two devices"]["output"]
        assert same_answers(predictions(root, "two", "sft"), predictions(root, "tuned", "sft"))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("raises", "scorer 'own_scorers:raises' raised ZeroDivisionError for row rows.jsonl:1"),
            ("raises, with methods", "--methods=lora: there is no 'lora'"),
            ("no tasks", "config.evaluation.tasks is empty: there is nothing to measure"),
            ("no model", "give --model, or --config with a model.source"),
            ("no data", "give --data, the held-out rows, or --config with tasks"),
            ("empty", "empty.jsonl"),
            ("unanswered", "unanswered.jsonl:1: a held-out row must end with the assistant's answer, the reference"),
            ("too long", "the prompt of long.jsonl:1 has 619 tokens; the model knows 512 positions"),
            ("no template", "The tokenizer has no chat template"),
            ("into the run", "holds a run, whose log would be replaced; give a directory of its own in it"),
            ("not a run", "--methods: sft needs a run, and --model="),
            ("tensor", "--tensor=3 does not divide 2 devices"),
            ("nothing to compare", "holds no finished evaluation: there is no results.json"),
            ("few_shot of nothing", "method few_shot: give the rows that solved examples are taken from"),
            ("rag of nothing", "method rag: give the corpus, --config.evaluation.retrieval.corpus or --corpus"),
            ("unread: data", "--data, --max_new_tokens: not read here, it goes with a task without --config"),
            ("unread: weights", "--mix: not read here, it goes with --methods=sft, of a run"),
            ("no pairs", "rows.jsonl:1: kind=prefer compares two answers to a prompt, and this row has one"),
            ("unread: reference", "--reference: not read here, it goes with tasks of kind=prefer"),
            ("unread: choices", "--choices=('a', 'b') is not read by kind=generate; leave it out"),
        ],
    )
    def test_a_mistake_is_one_message_and_no_result(self, root, ends, name, message):
        assert ends[name]["status"] == 1, ends[name]["output"]
        assert message in " ".join(ends[name]["output"].split())
        assert "Traceback" not in ends[name]["output"]
        assert not (root / "never" / "results.json").exists()

    def test_two_processes_give_the_results_of_one(self, root, ends):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        both = [
            *("--distributed", f"--coordinator={address}", "--num_processes=2"),
            *methods_of(root),
        ]
        processes = [
            called(root, [{"arguments": [*flags(root, "both", *both), f"--process_id={number}"]}])
            for number in range(2)
        ]
        for process in processes:
            (end,) = ended(process)
            assert end["status"] == 0, end["output"]
        for name in ("base", "few_shot", "rag", "sft"):
            assert same_answers(predictions(root, "both", name), predictions(root, "methods", name))
        found, expected = results(root, "both"), results(root, "methods")
        for name, scores in found["tasks"]["task"]["scores"].items():
            for metric, score in scores.items():
                assert score["value"] == pytest.approx(expected["tasks"]["task"]["scores"][name][metric]["value"])
        for path in (root / "both" / "answers").iterdir():
            keys = collections.Counter(json.loads(line)[0] for line in path.read_text().splitlines())
            assert set(keys.values()) == {1}


def same_answers(found: list[dict], expected: list[dict]) -> bool:
    """Of each row once, in order."""
    told = lambda rows: [(row["id"], row["answer"], row["finish_reason"]) for row in rows]
    return told(found) == told(expected)
