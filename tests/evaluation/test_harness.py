"""The harness on tiny models: what it reports is what the model says, computed once more by hand."""

import dataclasses
import functools
import json
import socket
import subprocess
import sys
from importlib.machinery import PathFinder

import jax
import lm_eval
import numpy as np
import pytest
import transformers
import yaml
from etils import epath
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import processors

from sft_jax.data.conversations import Message
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation import harness, harness_tasks
from sft_jax.evaluation.harness import HarnessModel, generation_of
from sft_jax.evaluation.harness_tasks import Run, load_tasks, run_tasks, tables, write_results
from sft_jax.generation import Sampler, Sampling, prepare
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from tests import tiny

QUESTIONS = [
    {"question": "red cat", "choices": ["tree", "blue", "seven cats"], "answer": 0},
    {"question": "of seven", "choices": ["I", "and", "of"], "answer": 2},
    {"question": "tree", "choices": ["red", "cat cat"], "answer": 1},
    {"question": "and I", "choices": ["seven", "tree", "blue"], "answer": 1},
    {"question": "blue blue blue", "choices": ["of", "cat"], "answer": 0},
    {"question": "seven", "choices": ["a", "b", "c"], "answer": 2},
]


def load(directory, devices=1, **changes):
    if not directory.exists():
        tiny.write_checkpoint(directory, num_hidden_layers=2, **changes)
    return load_for_inference(str(directory), inference_mesh(jax.devices()[:devices]), "float32")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(tmp_path_factory.mktemp("harness") / "model")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return load(tmp_path_factory.mktemp("harness") / "short", max_position_embeddings=32)


def with_beginning(loaded, at_end=False):
    """The model with a tokenizer that puts a bos token before every text, as Llama's does."""
    made = tiny.tokenizer()
    made.bos_token = "<|endoftext|>"
    template = f"<|endoftext|> $A{' <|im_end|>' if at_end else ''}"
    special = [("<|endoftext|>", 0), ("<|im_end|>", 2)]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return dataclasses.replace(loaded, renderer=ConversationRenderer(made))


def requests(kind, *arguments):
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@functools.partial(jax.jit, static_argnums=0)
def log_softmax(model, variables, tokens):
    return jax.nn.log_softmax(model.apply(variables, tokens)[0])


def logprobs(loaded, ids):
    """Of each token of a text but the first, by one pass over the whole; and the most likely tokens."""
    padded = np.zeros((1, 128), np.int32)  # behind the text: nothing that it sees
    padded[0, : len(ids)] = ids
    of_tokens = np.asarray(log_softmax(loaded.model, loaded.variables, padded))[: len(ids)]
    return of_tokens[np.arange(len(ids) - 1), ids[1:]].astype(np.float64), of_tokens.argmax(1)


def by_hand(loaded, context, continuation):
    logprob, best = logprobs(loaded, [*context, *continuation])
    size = len(continuation)
    return logprob[-size:].sum(), best[-size - 1 : -1].tolist() == list(continuation)


def write_task(directory, rows, **fields):
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(directory / "cache")},
        "test_split": "test",
        **fields,
    }
    (directory / "task.yaml").write_text(yaml.safe_dump(task))
    return str(directory / "task.yaml")


MULTIPLE_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}} is",
    "doc_to_target": "answer",
    "doc_to_choice": "{{choices}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("harness") / "questions", QUESTIONS, **MULTIPLE_CHOICE)


def ids_of(loaded, text):
    return loaded.renderer.tokenizer.encode(text, add_special_tokens=False)


def expected_answers(loaded, prompt_of, before_choice):
    """Whether the most likely choice is the right one, question by question."""
    found = []
    for question in QUESTIONS:
        context = ids_of(loaded, prompt_of(question["question"]))
        choices = [ids_of(loaded, before_choice + choice) for choice in question["choices"]]
        sums = [by_hand(loaded, context, choice)[0] for choice in choices]
        found.append(int(np.argmax(sums)) == question["answer"])
    return found


def test_accuracy_of_a_task_of_ones_own(loaded, questions):
    run = Run()
    results = run_tasks(HarnessModel(loaded), load_tasks([questions], run), run)
    right = expected_answers(loaded, "{} is".format, " ")
    assert 0 < sum(right) < len(right)
    assert [sample["acc"] for sample in results["samples"]["colours"]] == right
    assert results["results"]["colours"]["acc,none"] == pytest.approx(np.mean(right))
    # The standard error of a mean, with Bessel's correction.
    assert results["results"]["colours"]["acc_stderr,none"] == pytest.approx(np.std(right, ddof=1) / len(right) ** 0.5)


def test_accuracy_of_conversations(loaded, questions):
    run = Run(chat=True)
    results = run_tasks(HarnessModel(loaded), load_tasks([questions], run), run)
    prompt = "<|im_start|>user\n{} is<|im_end|>\n<|im_start|>assistant\n"
    assert [sample["acc"] for sample in results["samples"]["colours"]] == expected_answers(loaded, prompt.format, "")
    assert results["samples"]["colours"][0]["arguments"][0][0] == prompt.format("red cat")
    assert results["config"]["chat_template"] == tiny.CHATML


def test_rows_and_solved_examples(loaded, tmp_path):
    fields = MULTIPLE_CHOICE | {"fewshot_split": "test"}
    run = Run(rows=2, few_shot=1)
    results = run_tasks(HarnessModel(loaded), load_tasks([write_task(tmp_path, QUESTIONS, **fields)], run), run)
    samples = results["samples"]["colours"]
    assert len(samples) == 2
    assert results["n-shot"]["colours"] == 1
    assert all(sample["arguments"][0][0].count(" is") == 2 for sample in samples)


def test_a_task_of_the_harness_on_a_file_of_ones_own(loaded, tmp_path):
    """ARC: its prompts, choices and metrics, as the package has them; only the rows are ours."""
    letters = "ABC"
    rows = [
        {
            "question": question["question"],
            "choices": {"text": question["choices"], "label": list(letters[: len(question["choices"])])},
            "answerKey": letters[question["answer"]],
        }
        for question in QUESTIONS
    ]
    arc = epath.Path(lm_eval.__file__).parent / "tasks" / "arc" / "arc_easy.yaml"
    fields = {"include": str(arc), "task": "arc_here", "dataset_name": None, "training_split": None}
    run = Run()
    tasks = load_tasks([write_task(tmp_path, rows, validation_split=None, **fields)], run)
    results = run_tasks(HarnessModel(loaded), tasks, run)
    right = expected_answers(loaded, "Question: {}\nAnswer:".format, " ")
    assert [sample["acc"] for sample in results["samples"]["arc_here"]] == right
    found = results["results"]["arc_here"]
    assert {"acc,none", "acc_norm,none", "acc_norm_stderr,none"} <= set(found)
    assert "arc_here" in tables(results)


CONTEXTS = [("red cat", " tree"), ("red cat", " I"), ("", "seven"), ("of", " and and")]


@pytest.mark.parametrize("begins", [False, True])
def test_log_likelihoods(loaded, begins):
    model = with_beginning(loaded) if begins else loaded
    found = HarnessModel(model).loglikelihood(requests("loglikelihood", *CONTEXTS))
    begin, prefix = ([0], 0) if begins else ([], 2)  # without a bos token a text follows an eos token
    for (context, continuation), (logprob, is_greedy) in zip(CONTEXTS, found, strict=True):
        ids = [*begin, *ids_of(loaded, context)] if context else [prefix]
        expected, expected_greedy = by_hand(loaded, ids, ids_of(loaded, continuation))
        assert logprob == pytest.approx(expected, abs=1e-4)
        assert is_greedy is expected_greedy


def test_the_greedy_continuation_is_greedy(loaded):
    ids = ids_of(loaded, "red")
    best = int(logprobs(loaded, ids)[1][-1])
    pairs = [(("red", ""), ids, [token]) for token in (best, (best + 1) % 320)]
    assert [greedy for _, greedy in HarnessModel(loaded)._loglikelihood_tokens(pairs)] == [True, False]


def test_a_continuation_without_tokens_is_refused(loaded):
    with pytest.raises(ValueError, match=r"the continuation '' has no token of its own behind …'red cat'"):
        HarnessModel(loaded).loglikelihood(requests("loglikelihood", ("red cat", "")))


def test_a_context_too_long_loses_its_beginning(short):
    model, context = HarnessModel(short), "blue and red " * 4
    found = model.loglikelihood(requests("loglikelihood", (context, "tree"), ("red", " cat")))
    ids = ids_of(short, context + "tree")
    # The harness takes the space at the end of a context to be the continuation's.
    assert found[0][0] == pytest.approx(by_hand(short, ids[-33:-5], ids[-5:])[0], abs=1e-4)
    assert model.cut == 1
    assert harness_tasks.cut_note(model).endswith("cut at the beginning: 1 contexts.")
    with pytest.raises(ValueError, match=r"an answer 'x+' leaves no position .* the model knows 32, or lift the limit"):
        model.loglikelihood(requests("loglikelihood", ("red", "x" * 40)))


@pytest.mark.parametrize("begins", [False, True])
def test_the_harness_on_transformers_says_the_same(short, begins):
    """Its own backend for torch, on the same weights: prompts, tokens, windows and cuts are alike."""
    model = with_beginning(short) if begins else short
    theirs = HFLM(
        transformers.AutoModelForCausalLM.from_pretrained(short.name, dtype="float32"),
        tokenizer=model.renderer.tokenizer,
        max_length=32,
    )
    ours = HarnessModel(model)
    pairs = [*CONTEXTS, ("blue and red " * 4, "tree"), ("x" * 31, "y"), ("x" * 32, "y")]
    found, expected = (lm.loglikelihood(requests("loglikelihood", *pairs)) for lm in (ours, theirs))
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    asked = [("blue and red " * 4, {"until": ["\n", "e"], "max_gen_toks": 8}), ("of", {"until": [], "max_gen_toks": 5})]
    found, expected = (lm.generate_until(requests("generate_until", *asked)) for lm in (ours, theirs))
    assert found == expected
    if not begins:  # where texts begin with a bos token, theirs also predicts that
        asked = requests("loglikelihood_rolling", ("blue and red and seven trees of a cat, " * 2,), ("I",))
        assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), abs=1e-4)
    turns = [{"role": "system", "content": "red"}, {"role": "user", "content": "of"}]
    mine, other = (lm.apply_chat_template(turns) for lm in (ours, theirs))
    assert mine.removeprefix("<|endoftext|>") == other
    assert ours.chat_template(True) == theirs.chat_template(True)


DOCUMENTS = ["red cat of seven", "a", "", "I and I"]


@pytest.mark.parametrize("begins", [False, True])
def test_documents_are_read_whole(loaded, begins):
    model, prefix = (with_beginning(loaded), 0) if begins else (loaded, 2)
    asked = requests("loglikelihood_rolling", *((text,) for text in DOCUMENTS))
    found = HarnessModel(model).loglikelihood_rolling(asked)
    expected = [logprobs(loaded, [prefix, *ids_of(loaded, text)])[0].sum() for text in DOCUMENTS]
    assert found == pytest.approx(expected, abs=1e-4)
    assert found[2] == 0


def test_documents_longer_than_the_model_are_read_in_windows(short):
    ids = ids_of(short, "blue and red and seven trees of a cat, " * 2)
    assert len(ids) == 78
    text = short.renderer.tokenizer.decode(ids)
    (found,) = HarnessModel(short).loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    # 32 positions: the last window reads 32 tokens as the others do, and counts the 14 that are left.
    first, second = by_hand(short, [2], ids[:32])[0], by_hand(short, ids[31:32], ids[32:64])[0]
    last = by_hand(short, ids[45:64], ids[64:])[0]
    assert found == pytest.approx(first + second + last, abs=1e-4)


def answers_of(loaded, contexts, gen_kwargs, **options):
    asked = requests("generate_until", *((context, gen_kwargs) for context in contexts))
    return HarnessModel(loaded, **options).generate_until(asked)


def test_answers_are_those_of_the_sampler(loaded):
    contexts = ["red cat", "of seven trees and I", "blue"]
    found = answers_of(loaded, contexts, {"max_gen_toks": 12, "until": []})
    sampler = Sampler(loaded.renderer.stop_ids)
    prompts = [np.asarray(ids_of(loaded, text), np.int32) for text in contexts]
    answers = sampler.generate(prepare(loaded.model, loaded.variables), prompts, max_new_tokens=12)
    assert found == [loaded.renderer.content_text(answer.tokens) for (answer,) in answers]
    assert all(found)
    # The first of two stop texts ends it, wherever it stands.
    stops = [found[0][-1], found[0][4:6]]
    end = min(found[0].index(stop) for stop in stops)
    assert answers_of(loaded, contexts[:1], {"max_gen_toks": 12, "until": stops}) == [found[0][:end]]
    assert answers_of(loaded, contexts[:1], {"until": stops[0]}, max_new_tokens=12) == [
        found[0][: found[0].index(stops[0])]
    ]


def test_special_tokens_among_the_stop_texts_stop_the_model(loaded, monkeypatch):
    """No text is left of them, at which an answer could be cut."""
    stops = []

    def sampler(stop_ids, **options):
        stops.append(stop_ids)
        return Sampler(stop_ids, **options)

    monkeypatch.setattr(harness, "Sampler", sampler)
    answers_of(loaded, ["red"], {"until": ["\n", "<|im_start|>"], "max_gen_toks": 2})
    answers_of(loaded, ["red"], {"until": ["\n"], "max_gen_toks": 2})
    assert stops == [(1, 2), (2,)]


def test_answers_are_drawn_where_a_task_asks_for_it(loaded):
    drawn = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 8}
    found = answers_of(loaded, ["red"] * 4, drawn)
    assert len(set(found)) > 1  # repeats of a request differ
    assert found == answers_of(loaded, ["red"] * 4, drawn)
    assert found != answers_of(loaded, ["red"] * 4, drawn, seed=1)
    assert len(set(answers_of(loaded, ["red"] * 4, drawn | {"do_sample": False}))) == 1


def test_limits_of_answers_and_positions(short):
    model = HarnessModel(short)
    contexts = ["blue and red " * 4, "red"]
    found = model.generate_until(requests("generate_until", *((text, {"max_gen_toks": 8}) for text in contexts)))
    assert model.cut == 1
    assert found == answers_of(short, [contexts[0][-24:], "red"], {"max_gen_toks": 8})
    with pytest.raises(ValueError, match="an answer of max_gen_toks=32 tokens leaves no position for its context"):
        answers_of(short, ["red"], {"max_gen_toks": 32})


@pytest.mark.parametrize(
    ("gen_kwargs", "until", "limit", "sampling"),
    [
        ({}, (), 256, Sampling()),
        ({"until": "\n", "max_new_tokens": 3}, ("\n",), 3, Sampling()),
        ({"until": ["a", ""], "max_gen_toks": 4, "max_tokens": 5}, ("a",), 4, Sampling()),
        ({"temperature": 0.0, "do_sample": False, "num_beams": 1}, (), 256, Sampling()),
        ({"temperature": 0.7, "top_p": 0.9}, (), 256, Sampling(0.7, 0, 0.9)),
        ({"temperature": 0.7, "top_p": 0.9, "do_sample": False}, (), 256, Sampling()),
        ({"do_sample": True, "top_k": 5}, (), 256, Sampling(1.0, 5)),
        ({"do_sample": True, "temperature": 0}, (), 256, Sampling()),
    ],
)
def test_what_a_task_asks_for(gen_kwargs, until, limit, sampling):
    asked = generation_of(gen_kwargs, 256)
    assert (asked.until, asked.max_new_tokens, asked.sampling) == (until, limit, sampling)


@pytest.mark.parametrize("unknown", [{"num_beams": 4}, {"repetition_penalty": 1.1}])
def test_what_is_not_implemented_is_refused_by_name(loaded, unknown):
    ((name, value),) = unknown.items()
    with pytest.raises(ValueError, match=f"asks by its generation_kwargs for {name}={value}, which is not implemented"):
        answers_of(loaded, ["red"], {"until": ["\n"], **unknown})


def test_what_begins_a_text_stands_there_once(loaded):
    model, plain = HarnessModel(with_beginning(loaded, at_end=True)), ids_of(loaded, "red")
    assert model.tok_encode("red") == [0, *plain]
    assert model.tok_encode("<|endoftext|>red") == [0, *plain]
    assert model.tok_encode("red", add_special_tokens=False) == plain
    assert model.prefix_token_id == 0
    rendered = model.apply_chat_template([{"role": "user", "content": "red"}])
    assert rendered.startswith("<|endoftext|><|im_start|>user\nred")
    conversation = (Message("user", "red"),)
    assert model.tok_encode(rendered) == with_beginning(loaded).renderer.render_prompt(conversation).tolist()
    assert HarnessModel(loaded).tok_encode("red") == plain
    assert HarnessModel(loaded).prefix_token_id == 2


def test_the_chat_template(loaded):
    model = HarnessModel(loaded)
    assert model.chat_template(True) == model.chat_template("default") == tiny.CHATML
    assert model.chat_template(False) is None
    with pytest.raises(ValueError, match=r"chat template 'tools': prompts are rendered by 'default'"):
        model.chat_template("tools")
    turns = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "Answer:"}]
    begun = "<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\nAnswer:"
    assert model.apply_chat_template(turns, add_generation_prompt=False) == begun


def test_a_mesh_changes_nothing(loaded, tmp_path_factory, questions):
    run = Run()
    alone = HarnessModel(loaded).loglikelihood(requests("loglikelihood", *CONTEXTS))
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        model = HarnessModel(load_for_inference(loaded.name, mesh, "float32"))
        assert model.world_size == 1
        found = model.loglikelihood(requests("loglikelihood", *CONTEXTS))
        results = run_tasks(model, load_tasks([questions], run), run)
    assert [one for one, _ in found] == pytest.approx([one for one, _ in alone], abs=1e-4)
    right = expected_answers(loaded, "{} is".format, " ")
    assert [sample["acc"] for sample in results["samples"]["colours"]] == right


def test_what_is_written(loaded, tmp_path, questions):
    run, seen = Run(rows=4), []

    def progress(title, total):
        return lambda done, of: seen.append((title, total, done, of))

    results = run_tasks(HarnessModel(loaded, progress=progress), load_tasks([questions], run), run)
    write_results(epath.Path(tmp_path / "out"), results)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["results"]["colours"]["acc,none"] == results["results"]["colours"]["acc,none"]
    assert written["config"] == {"rows": 4, "chat": False, "few_shot": None, "model": loaded.name, "cut_contexts": 0}
    assert written["lm_eval_version"].startswith("0.4.")
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(sample["task"], sample["doc"]["question"]) for sample in samples] == [
        ("colours", question["question"]) for question in QUESTIONS[:4]
    ]
    header, _, line, *_ = tables(results).splitlines()
    assert "Stderr" in header
    assert line.replace(" ", "") == "|colours|Yaml|none|0|acc|↑|0.25|±|0.25|"  # 1 of 4 is right
    assert seen[-1] == ("log-likelihoods", 11, 11, 11)


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(loaded, tmp_path, questions):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = [f"--model={loaded.name}", "--matmul=float32", f"--tasks={questions}", "--distributed"]
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "sft_jax.harness", *common, f"--coordinator={address}", "--num_processes=2"),
                *(f"--process_id={number}", f"--out={tmp_path / str(number)}"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert "|colours|" in said[0]
    assert "|colours|" not in said[1]
    assert not (tmp_path / "1").exists()
    samples = [json.loads(line) for line in (tmp_path / "0" / "samples.jsonl").read_text().splitlines()]
    assert [sample["acc"] for sample in samples] == expected_answers(loaded, "{} is".format, " ")


@pytest.mark.slow
def test_a_typo_gets_names_like_it():
    with pytest.raises(ValueError, match=r"no task 'arc_esay', neither in the harness nor as a file; .*\barc_easy\b"):
        load_tasks(["arc_esay"], Run())


def test_solved_examples_are_refused_where_a_task_wants_none(tmp_path):
    path = write_task(tmp_path, QUESTIONS, num_fewshot=0, **MULTIPLE_CHOICE)
    with pytest.raises(ValueError, match=r"task colours has num_fewshot: 0, .*; few_shot=2 goes with other tasks"):
        load_tasks([path], Run(few_shot=2))


def test_a_task_that_would_run_programs_is_refused(tmp_path):
    path = write_task(tmp_path, QUESTIONS, unsafe_code=True, **MULTIPLE_CHOICE)
    with pytest.raises(ValueError, match="task colours runs programs that the model writes"):
        load_tasks([path], Run())


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "task.yaml").write_text("task: [")
    with pytest.raises(ValueError, match=rf"the file of a task cannot be read: (?s:.*){tmp_path}/task.yaml"):
        load_tasks([str(tmp_path / "task.yaml")], Run())


def test_without_the_package_it_is_said_how_to_install_it(monkeypatch):
    find = PathFinder.find_spec
    hidden = lambda name, *where: None if name == "lm_eval" else find(name, *where)
    monkeypatch.setattr(PathFinder, "find_spec", hidden)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "sft_jax.evaluation.harness")
    with pytest.raises(ImportError, match=r"lm-eval is not installed: pip install -r requirements-harness\.txt"):
        import sft_jax.evaluation.harness  # noqa: F401
