"""Every shipped config is built and takes a step; no option is accepted and ignored; mistakes get a useful answer."""

import dataclasses
import functools
import importlib
import json
import operator
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from configs import sft
from sft_jax import config_flag, options
from sft_jax.data.reading import Reading
from sft_jax.objectives import distils, judges_answers, samples_groups
from sft_jax.options import (
    DataOptions,
    EvaluationOptions,
    FewShotOptions,
    ObjectiveOptions,
    Options,
    PromptingOptions,
    RewardOptions,
    RolloutOptions,
    SourceOptions,
    TaskOptions,
    TeacherOptions,
)
from sft_jax.runs.workdir import flatten
from sft_jax.training import run
from sft_jax.training.checks import CHECKS, check_config
from tests import preferences, tiny
from tests.command_line import config_of

CONFIGS = Path(__file__).parents[1] / "configs"
# Of others, those of their table SHIPPED.
ARGUMENTS = dict.fromkeys(("sft", "reward_model", "rlvr", "distillation"), ("full", "lora"))
ARGUMENTS |= {"preference": ("full", "lora", "kto", "kto,lora")}


def every_config():
    names = [path.stem for path in sorted(CONFIGS.glob("*.py")) if path.stem != "__init__"]
    shipped = {name: getattr(importlib.import_module(f"configs.{name}"), "SHIPPED", ("",)) for name in names}
    return [(name, arg) for name in names for arg in ARGUMENTS.get(name, shipped[name])]


def small(config: ml_collections.ConfigDict, root: Path) -> ml_collections.ConfigDict:
    """A shipped config on the tiny model for one step; all that is not about size stays as shipped."""
    tiny_config = tiny.config(root)
    config = config.copy_and_resolve_references().unlock()
    config.model.source = tiny_config.model.source
    config.data.train, config.data.held_out = tiny_config.data.train, tiny_config.data.held_out
    if judges_answers(config.objective.name):
        of_pairs = preferences.config(root)
        config.data.train, config.data.held_out = of_pairs.data.train, of_pairs.data.held_out
    if config.data.mixture:
        config.data.train = ""
        for name in config.data.mixture:
            config.data.mixture[name].path = str(root / f"{name}.jsonl")
            text = f"a text of {name} " * (20 if config.data.masking.too_long == "split" else 6)
            (root / f"{name}.jsonl").write_text(json.dumps({"text": text, "source": name}) + "\n")
        config.data.held_out, config.data.fail_on = config.data.mixture[name].path, "never"
    config.data.sequence_length, config.data.cache = 128, ""
    if distils(config.objective.name):
        config.teacher.source = config.model.source + " teacher"
        tiny.write_checkpoint(Path(config.teacher.source), seed=1, hidden_size=64)
    for task in config.evaluation.tasks.values():
        task.path = ""
        if task.kind == "generate":
            task.scorer, task.max_new_tokens = "exact_match", 4
    if samples_groups(config.objective.name):
        config.rollouts.max_new_tokens, config.rollouts.truncated = 8, "train"
        config.rollouts.rewards.answer.scorer = "tests.rollouts:asciiness"  # that random weights can earn
    config.batch.sequences, config.batch.micro_batches = 8, 1
    config.duration = "1 steps"
    config.evaluation.sample_tokens = min(config.evaluation.sample_tokens, 4)
    config.evaluation.samples = min(config.evaluation.samples, 1)
    return config.lock()


def tried():
    """Every config; those for one model and hardware are many."""
    for_all = ("continued", "quickstart", "sft", "short_titles", "preference", "reward_model", "rlvr", "distillation")
    return [pytest.param(name, arg, marks=() if name in for_all else pytest.mark.slow) for name, arg in every_config()]


@pytest.mark.parametrize(("name", "arg"), tried())
def test_every_config_takes_a_step(name, arg, tmp_path):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(arg) if arg else module.get_config()
    assert config.is_locked
    check_config(config)
    result = run(small(config, tmp_path), tmp_path / "run")
    assert result.step == 1
    assert 0 < result.metrics["held_out/loss"] < 20


def test_configs_refuse_an_unknown_argument():
    for name in {name for name, _ in every_config()}:
        with pytest.raises(ValueError, match=f"configs/{name}.py:nonsense"):
            importlib.import_module(f"configs.{name}").get_config("nonsense")


_OF_OPTIONS = [made for made in vars(options).values() if isinstance(made, type) and dataclasses.is_dataclass(made)]
SECTIONS = [made for made in _OF_OPTIONS if made is not Reading]


def test_options_have_the_fields_of_the_config():
    """And no others: the ones that are not in the same place are named here."""
    config = sft.get_config()
    fields = {name for name in flatten(config.to_dict()) if not name.startswith("defaults.")}
    ours = flatten(dataclasses.asdict(options.options_of(config)))
    ours["data.reading.held_out_split"] = ours.pop("data.held_out_split")
    assert ours.keys() - fields == {f"data.reading.{name}" for name in ("prompts_only", "flags", "split_flag")}
    assert fields - ours.keys() == set()


@pytest.mark.slow
def test_every_option_is_read(tmp_path, monkeypatch):
    """By a run with adapters or one without; checks, and copies and records of the whole, do not count."""
    from sft_jax.training import checked_run

    unread = {(made, field.name) for made in SECTIONS for field in dataclasses.fields(made)}

    def tracked(made):
        plain = made.__getattribute__

        def get(self, name):
            if sys._getframe(1).f_globals["__name__"] not in (dataclasses.__name__, __name__):
                unread.difference_update((kind, name) for kind in type(self).__mro__)
            return plain(self, name)

        return get

    monkeypatch.setattr(checked_run, "check_config", lambda config: None)
    for made in SECTIONS:
        monkeypatch.setattr(made, "__getattribute__", tracked(made))
    for arg in ("lora", "full"):
        config = small(tiny.config(tmp_path, arg), tmp_path).unlock()
        config.duration = "2 steps"
        config.evaluation.samples, config.evaluation.sample_tokens = 1, 1
        config.profile.start = config.profile.steps = 1
        if arg == "full":
            config.optimizer.schedule = "wsd"
        if arg == "full":  # with short passages, which leave room for the rows
            config.data.retrieval.update(
                {
                    "corpus": config.data.train,
                    "row_template": "{prompt}",
                    "chunk_words": 8,
                    "overlap_words": 0,
                    "passages": 1,
                }
            )
            config.evaluation.tasks.written = sft.task(rows=1, max_new_tokens=1)
            config.evaluation.tasks.chosen = sft.task(rows=2, kind="choose")
        run(config.lock(), tmp_path / f"run {arg}")
    of_mixtures = {(SourceOptions, field.name) for field in dataclasses.fields(SourceOptions)}
    of_methods = {
        (made, field.name) for made in (FewShotOptions, PromptingOptions) for field in dataclasses.fields(made)
    }
    of_methods |= {(EvaluationOptions, name) for name in ("few_shot", "prompting", "retrieval", "max_regression")}
    of_methods |= {
        (TaskOptions, "loss"),
        (TaskOptions, "relevant_column"),
    }  # these are read by `python -m sft_jax.evaluate` alone
    names = ("beta", "margin", "per_token", "tail_weight", "sft_weight")
    names += ("desirable_weight", "undesirable_weight", "centring")
    names += ("temperature", "teacher_share", "cross_entropy_share")
    of_pairs = {(ObjectiveOptions, name) for name in names}
    of_rollouts = {(made, field.name) for made in (RolloutOptions, RewardOptions) for field in dataclasses.fields(made)}
    of_rollouts |= {(ObjectiveOptions, "clip_low"), (ObjectiveOptions, "clip_high"), (Options, "rollouts")}
    of_teacher = {(TeacherOptions, field.name) for field in dataclasses.fields(TeacherOptions)} | {(Options, "teacher")}
    of_others = of_pairs | of_rollouts | of_teacher
    assert unread == of_mixtures | of_methods | of_others | {(DataOptions, "mixture_packing")}


@pytest.mark.parametrize("name", ["sft", "preference", "reward_model", "distillation"])
def test_every_number_and_name_is_checked(name):
    """What no run can have is found before anything is read: all fields but free text, booleans, durations, meshes."""
    config = importlib.import_module(f"configs.{name}").get_config("lora")
    elsewhere = {
        "duration",
        "optimizer.warmup",
        "optimizer.decay",
        "evaluation.every",
        "checkpoint.every",
        "mesh.replica",
        "mesh.fsdp",
        "mesh.expert",
        "mesh.context",
        "mesh.tensor",
        "model.source",
        "model.revision",
        "model.chat_template",
        "model.new_tokens",
        "model.new_tokens_in_contents",
        "execution.deterministic",
        "objective.per_token",
        "teacher.source",
        "teacher.revision",
        "data.train",
        "data.held_out",
        "data.cache",
        "data.cleaning",
        "data.benchmarks",
        "data.retrieval.corpus",
        "data.retrieval.row_template",
        "data.retrieval.id_column",
        "data.retrieval.template",
        "data.retrieval.passage_template",
        "evaluation.tasks_every",
        "evaluation.few_shot.path",
        "evaluation.prompting.instructions",
        "evaluation.prompting.development",
        "evaluation.retrieval.corpus",
        "evaluation.retrieval.row_template",
        "evaluation.retrieval.id_column",
        "evaluation.retrieval.template",
        "evaluation.retrieval.passage_template",
        "data.reading.subset",
        "data.reading.split",
        "data.reading.held_out_split",
        "data.reading.revision",
        "data.reading.streaming",
        "data.reading.columns",
        "data.reading.id_column",
        "data.reading.weight_column",
        "data.reading.group_column",
        "data.reading.prompt_template",
        "data.reading.answer_template",
        "data.reading.system",
        "data.reading.ignore",
        "data.reading.adjudicator",
        "adapter.initial",
        "adapter.train_new_tokens",
        "adapter.ranks",
        "trained.weights",
        "optimizer.groups",
        "ema.evaluate",
        "adapter.targets",
        "checkpoint.best_metric",
        "checkpoint.keep_stable",
    }
    fields = {name for name in flatten(config.to_dict()) if not name.startswith("defaults.")}
    assert fields - elsewhere == CHECKS.keys()


@pytest.mark.parametrize("option", ["betas", "epsilon", "momentum"])
def test_a_fork_has_defaults_of_its_own(option):
    """What a config file says counts as not asked for, whatever it is; what differs from it is refused."""
    values = {"betas": (0.9, 0.999), "epsilon": 1e-6, "momentum": 0.9}
    forked = (
        Path(sft.__file__)
        .read_text()
        .replace("config.defaults = ", f"config.optimizer.{option} = {values[option]}\n    config.defaults = ")
    )
    made: dict = {}
    exec(compile(forked, "fork.py", "exec"), made)  # the shipped file with one other number
    config = made["get_config"]().copy_and_resolve_references()
    config.optimizer.name = "adafactor"
    check_config(config)
    config.optimizer[option] = sft.get_config().optimizer[option]
    with pytest.raises(ValueError, match=f"optimizer.{option}=.* is not read by .*; leave it out"):
        check_config(config)


def test_no_default_of_a_fork_is_refused():
    """Values that a run does not read pass where the config file has them, whatever they are in the one shipped."""
    config = sft.get_config().copy_and_resolve_references()
    asked = {
        "model.new_tokens_in_contents": False,
        "data.mixture_packing": "before",
        "data.retrieval.method": "dense",
        "precision.frozen": "bfloat16",
    }
    config.update_from_flattened_dict(asked)
    with pytest.raises(ValueError, match="leave it at") as error:
        check_config(config)
    assert all(f"--config.{name}=" in str(error.value) for name in asked)
    config.update_from_flattened_dict({f"defaults.{name}": value for name, value in asked.items()})
    check_config(config)


BAD = [
    ("data.masking.train_on", "assistant,nobody", "must be last, all, or roles with commas"),
    ("data.masking.end_of_turn", "some", "must be one of turn, all, last, none"),
    ("data.masking.history", "keep", "must be one of refuse, expand"),
    ("data.masking.too_long", "cut", "must be one of error, drop, truncate_left, truncate_right"),
    ("data.date", "31.01.2026", 'must be a date like "2026-01-31", or empty'),
    ("data.date", "20260131", 'must be a date like "2026-01-31", or empty'),
    ("data.sequence_length", 0, "must be at least 2"),
    ("data.packing", "bestfit", "must be one of best_fit, first_fit, sequential, none"),
    ("data.packing", "False", "none gives each example a sequence of its own"),
    ("data.max_examples_per_sequence", -1, "must be at least 0"),
    ("batch.sequences", 0, "must be at least 1"),
    ("batch.micro_batches", 3, "batch.sequences=8 must be a multiple of --config.batch.micro_batches=3 x 8"),
    ("objective.name", "bpo", "must be one of cross_entropy, forward_kl, reverse_kl, jensen_shannon, dpo, "),
    ("objective.beta", 0.0, "must be above 0"),
    ("objective.margin", -1.0, "must be at least 0"),
    ("objective.tail_weight", 1.5, "must lie between 0 and 1"),
    ("objective.sft_weight", -0.1, "must be at least 0"),
    ("objective.desirable_weight", 0.0, "must be above 0"),
    ("objective.undesirable_weight", 1.5, "is not read by --config.objective.name=cross_entropy"),
    ("objective.centring", -0.1, "must be at least 0"),
    ("objective.temperature", 0.0, "must be above 0"),
    ("objective.teacher_share", 1.0, "must lie between 0 and 1, and be neither"),
    ("objective.cross_entropy_share", 1.0, "must lie in [0, 1)"),
    ("objective.temperature", 2.0, "is not read by --config.objective.name=cross_entropy"),
    ("objective.teacher_weight", -1.0, "must be at least 0"),
    ("objective.teacher_weight", 1.0, "is not read by --config.objective.name=cross_entropy"),
    ("teacher.top_k", -1, "must be at least 0"),
    ("teacher.source", "some", "is not read by --config.objective.name=cross_entropy; leave it at ''"),
    ("model.head", "none", "must be one of vocabulary, score"),
    ("objective.beta", 0.5, "is not read by --config.objective.name=cross_entropy"),
    ("objective.per_token", True, "is not read by --config.objective.name=cross_entropy"),
    ("objective.normalize", "rows", "must be one of tokens, examples"),
    ("objective.label_smoothing", 1.0, "must lie in [0, 1)"),
    ("objective.positions", "some", "must be one of supervised, all"),
    ("adapter.method", "lorra", "must be one of none, lora"),
    ("adapter.targets", ("attention/quer",), "match nothing; there are: attention/key"),
    ("checkpoint.best_metric", "held_out/los", "is not measured; there are held_out/accuracy, held_out/loss"),
    ("optimizer.learning_rate", -1.0, "must be at least 0"),
    ("optimizer.learning_rate", float("nan"), "must be at least 0"),
    ("optimizer.betas", (0.9, 1.0), "must be two numbers in [0, 1)"),
    ("optimizer.schedule", "cosin", "must be one of constant, linear, cosine, wsd"),
    ("optimizer.warmup", "3 minutes", "is not a duration"),
    ("precision.matmul", "bf16", "must be one of float32, bfloat16"),
    ("execution.remat", "some", "must be one of auto, none, products"),
    ("evaluation.batch_sequences", 0, "must be at least 1"),
    ("evaluation.every", "5 percent", "percent of the run makes no sense here"),
    ("checkpoint.keep_last", 0, "must be at least 1"),
    ("checkpoint.best_is", "least", "must be one of min, max"),
    ("log.every", 0, "must be at least 1"),
    ("mesh.tensor", 3, "does not make 8 devices"),
    ("mesh.replica", -1, "one of them may be -1"),
    ("model.chat_template", "/nowhere.jinja", "is not a file"),
    ("data.train", "", "is empty; give a file"),
    ("data.cleaning", ("strip_whitspace",), "is not a step; did you mean 'strip_whitespace'?"),
    ("data.retrieval.method", "bm52", "must be one of bm25, dense, hybrid"),
    ("data.retrieval.passages", 0, "must be at least 1"),
    ("data.retrieval.chunk_words", 0, "must be at least 1"),
    ("data.retrieval.overlap_words", 75, "an overlap of 75 words is not less than half of a chunk of 150"),
    ("data.retrieval.template", "{passages}", "has {question} 0 times, expected it once"),
    ("data.retrieval.passage_template", "{number}", "has {text} 0 times, expected it once"),
    ("data.retrieval.row_template", "text", "names no column"),
    ("data.retrieval.row_template", "{text}}", "a single '}' at character 7"),
    ("evaluation.slots", 0, "must be at least 1"),
    ("evaluation.max_regression", -0.1, "must be at least 0"),
    ("evaluation.few_shot.examples", 0, "must be at least 1"),
    ("evaluation.few_shot.choose", "best", "must be one of seed, first, nearest"),
    ("evaluation.retrieval.method", "bm52", "must be one of bm25, dense, hybrid"),
    ("evaluation.retrieval.template", "{passages}", "has {question} 0 times, expected it once"),
    ("evaluation.retrieval.row_template", "text", "names no column"),
    ("evaluation.retrieval.overlap_words", 75, "an overlap of 75 words is not less than half of a chunk of 150"),
    ("evaluation.tasks_every", "3 steps", "is not read: there are no tasks in config.evaluation.tasks"),
    ("data.retrieval.passages", 5, "is not read without --config.data.retrieval.corpus; leave it at 3"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=[f"{name}={value!r}" for name, value, _ in BAD])
def test_bad_values_name_their_flag(name, value, message, tmp_path):
    config = tiny.config(tmp_path, "lora", **{name: value})
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared below
        run(config, tmp_path / "run")
    section = name.split(".")[0]
    assert f"--config.{name}" in str(error.value) or f"--config.{section}:" in str(error.value)
    assert message in str(error.value)


def test_overrides():
    config = config_of(
        f"--config={CONFIGS / 'sft.py'}:lora",
        "--config.optimizer.learning_rate=3e-5",
        "--config.optimizer.betas=(0.8,0.9)",
    )
    assert (config.optimizer.learning_rate, config.optimizer.betas) == (3e-5, (0.8, 0.9))
    assert config.adapter.method == "lora"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optimizer.learning_rat=1", "learning_rate"),
        ("--config.optimiser.learning_rate=1", "optimizer"),
        ("--config.batch.sequences=many", "many"),
        ("--config.batch.sequences=1.5", "1.5"),
    ],
)
def test_typos_and_wrong_types_fail(override, message):
    with pytest.raises(config_flag.ConfigError, match=message):
        config_of(f"--config={CONFIGS / 'sft.py'}", override)


def test_a_config_without_a_field_says_which(tmp_path):
    config = tiny.config(tmp_path, "full").unlock()
    del config.data.packing
    with pytest.raises(ValueError, match=r"config.data.packing is missing; a config has every field of configs/sft.py"):
        check_config(config)


@pytest.mark.parametrize(
    "name", [*flatten(sft.get_config().to_dict()), "data.mixture", "rollouts.rewards", "evaluation.tasks"]
)
def test_every_field_is_missed_before_anything_is_read(name):
    config = sft.get_config().copy_and_resolve_references().unlock()
    *sections, field = name.split(".")
    section = functools.reduce(operator.getitem, sections, config)
    del section[field]
    with pytest.raises(ValueError, match=rf"^config\.{name} is missing; a config has every field of configs/sft\.py$"):
        check_config(config)


def test_a_source_of_a_mixture_that_lacks_a_field():
    config = sft.get_config().copy_and_resolve_references().unlock()
    config.data.mixture.math = sft.source("math.jsonl", weight="1")
    del config.data.mixture.math.reading["subset"]
    with pytest.raises(ValueError, match=r"data\.mixture\.math must be what source\(path"):
        check_config(config)


def test_a_field_of_ones_own_is_added_to_the_default_config_too(tmp_path):
    """Else the result of the run would be refused where it is used; a field of training alone is anyone's own."""
    config = tiny.config(tmp_path).unlock()
    config.trained.my_idea, config.batch.mine = 1, 2
    with pytest.raises(ValueError, match=r"^config\.trained\.my_idea is no field of configs/sft\.py, .* add it there"):
        check_config(config)
    del config.trained.my_idea
    check_config(config)


def test_the_command_answers_mistakes_in_one_message(tmp_path):
    """No traceback: the flag, what was expected, exit status 1."""
    arguments = ["--config=configs/sft.py", f"--workdir={tmp_path / 'run'}", "--config.batch.sequences=0"]
    done = subprocess.run(
        [sys.executable, "-m", "sft_jax.train", *arguments],
        capture_output=True,
        text=True,
        cwd=CONFIGS.parent,
    )
    assert done.returncode == 1
    assert "--config.batch.sequences=0 must be at least 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
