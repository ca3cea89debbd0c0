"""Advice about values of a config: what is given in their place is taken out of the message, and passes the checks."""

import dataclasses
import functools
import operator
import re

import jax
import pytest

from configs import sft
from sft_jax.models.vocabulary import add_new_tokens
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.runs.averages import parts_of
from sft_jax.runs.base import open_base
from sft_jax.sharding import make_mesh
from sft_jax.training import durations
from sft_jax.training.checks import CHECKS, check_config
from sft_jax.training.held_out import check_best_metric
from sft_jax.training.setup import step_settings
from sft_jax.training.trained_parameters import check_trained
from tests import tiny
from tests.command_line import SFT, config_of, flags_in

OF_CHECKS = "sft_jax/training/checks.py"
CONFIGS = {  # (file, part of its advice) -> (argument of the config, what was given, what is given in its place)
    (OF_CHECKS, "is not read by --config.optimizer.name={rule}; leave it out"): (
        "full",
        {"optimizer.momentum": 0.5},
        {"optimizer.momentum": 0.95},
    ),
    (OF_CHECKS, "is not read under --config.adapter.method=none; leave"): (
        "full",
        {"adapter.rank": 8, "adapter.dropout": 0.1, "adapter.targets": ("head",)},
        {"adapter.rank": 16, "adapter.dropout": 0.0, "adapter.targets": sft.get_config().adapter.targets},
    ),
    (OF_CHECKS, "is not read by --config.optimizer.schedule={schedule}; leave"): (
        "full",
        {"optimizer.schedule": "constant", "optimizer.final_share": 0.0},
        {"optimizer.final_share": 0.1},
    ),
    ("sft_jax/training/branch.py", "so that no other goes on from it exactly"): (
        "full",
        {"branch": "runs/x:8000"},
        None,
    ),
    (OF_CHECKS, "is of weights that are not trained, and here all are; leave"): (
        "full",
        {"precision.frozen": "bfloat16"},
        {"precision.frozen": "auto"},
    ),
    (OF_CHECKS, ": there are no held-out rows; give"): (
        "full",
        {"data.reading.held_out_split": "test"},
        {"data.held_out": "b.jsonl"},
    ),
    (OF_CHECKS, "is not read without --config.model.new_tokens; leave it at {default}"): (
        "full",
        {"model.new_tokens_in_contents": False},
        {"model.new_tokens_in_contents": True},
    ),
    (OF_CHECKS, "is not read without sources in --config.data.mixture"): (
        "full",
        {"data.mixture_packing": "before"},
        {"data.mixture_packing": "after"},
    ),
    (OF_CHECKS, "is not read without --config.data.retrieval.corpus"): (
        "full",
        {"data.retrieval.passages": 5},
        {"data.retrieval.passages": 3},
    ),
    (OF_CHECKS, "there is no average to evaluate; give"): ("full", {"ema.evaluate": True}, None),
    (OF_CHECKS, "is for frozen weights under an adapter; give"): ("full", {"precision.quantized": "nf4"}, None),
    (OF_CHECKS, "leave it at float32"): ("lora", {"precision.params": "bfloat16"}, {"precision.params": "float32"}),
    (OF_CHECKS, "schedule_free averages in place of a schedule"): (
        "full",
        {"optimizer.name": "schedule_free", "optimizer.schedule": "linear"},
        None,
    ),
    (OF_CHECKS, "give one above 0, 0.9 for example"): (
        "full",
        {"optimizer.name": "schedule_free", "optimizer.schedule": "constant", "optimizer.betas": (0.0, 0.95)},
        {"optimizer.betas": (0.9, 0.95)},
    ),
    (OF_CHECKS, "all weights are frozen; leave them at () and 0"): (
        "lora",
        {"trained.last_layers": 1},
        {"trained.last_layers": 0, "trained.weights": ()},
    ),
    (OF_CHECKS, "must be auto or unrolled, not scan"): (
        "full",
        {"trained.last_layers": 1, "execution.layer_layout": "scan"},
        {"execution.layer_layout": "auto"},
    ),
    (OF_CHECKS, "there are no new tokens to train; give"): (
        "lora",
        {"adapter.train_new_tokens": True},
        {"model.new_tokens": ("<|tool|>",)},
    ),
}


def last_flag_of(message):
    """The override that the last flag of a message makes."""
    *_, flag = flags_in(message)
    name = flag.removeprefix("--config.").partition("=")[0]
    return {name: functools.reduce(operator.getitem, name.split("."), config_of(f"--config={SFT}", flag))}


@pytest.mark.parametrize("key", CONFIGS, ids=[key[1] for key in CONFIGS])
def test_configs_pass_as_advised(key):
    arg, given, instead = CONFIGS[key]
    config = sft.get_config(arg).copy_and_resolve_references().unlock()
    config.update_from_flattened_dict({"data.train": "a.jsonl"} | given)
    with pytest.raises(ValueError, match=r"--config\.") as error:
        check_config(config)
    config.update_from_flattened_dict(last_flag_of(str(error.value)) if instead is None else instead)
    check_config(config)


VALUES = {  # what a field must be -> such values, as they stand in the message
    r"must be one of (.*?)(?: \(|$)": lambda found: found[1].split(", "),
    r"must be at least (-?\d+)$": lambda found: [int(found[1]), int(found[1]) + 1],
    r"must be above (\d+)$": lambda found: [float(found[1]) + 1e-9],
    r"must lie between (\d+) and (\d+)$": lambda found: [float(found[1]), float(found[2])],
    r"must lie between 0 and 1, and be neither$": lambda found: [1e-9, 0.5, 0.99],
    r"must lie in \[(\d+), 1\)$": lambda found: [float(found[1]), 0.99],
    r"must be two numbers in \[(\d+), 1\)$": lambda found: [(float(found[1]), 0.99)],
    r'must be a date like "(.*)", or empty': lambda found: [found[1], ""],
    r'must be a run directory and a step, like "(.*)", or empty': lambda found: [found[1], ""],
    r"must be (last), (all), or roles with commas between them \((.*)\)$": lambda found: found.groups(),
}
BAD = {str: "no such value", int: -9, float: float("nan"), tuple: (0.5,)}


@pytest.mark.parametrize("name", CHECKS)
def test_a_field_takes_what_it_is_said_it_must_be(name):
    config = sft.get_config("full").copy_and_resolve_references().unlock()
    kind = type(functools.reduce(operator.getitem, name.split("."), config))
    config.update_from_flattened_dict({"data.train": "a.jsonl", name: BAD[kind]})
    with pytest.raises(ValueError, match=rf"^--config\.{name}=") as error:
        check_config(config)
    (values,) = [make(found) for pattern, make in VALUES.items() if (found := re.search(pattern, str(error.value)))]
    is_good, _ = CHECKS[name]
    assert [value for value in map(kind, values) if not is_good(value)] == []


MIXING = "sft_jax/preparation/mixing.py"


@pytest.mark.parametrize(("other", "empty"), [("train", ""), ("mixture", {})])
def test_of_a_file_and_a_mixture_one_is_given(other, empty):
    config = sft.get_config("full").copy_and_resolve_references().unlock()
    config.data.train, config.data.mixture.code = "a.jsonl", sft.source("b.jsonl", weight="1")
    with pytest.raises(ValueError, match=r"data\.mixture has code; give one of the two"):
        check_config(config)
    config.data[other] = empty
    check_config(config)


def test_sources_are_packed_in_each_way_that_is_listed():
    config = sft.get_config("full").copy_and_resolve_references().unlock()
    config.data.mixture.code = sft.source("b.jsonl", weight="1")
    config.data.mixture_packing = "later"
    with pytest.raises(ValueError, match="must be one of ") as error:
        check_config(config)
    values = str(error.value).partition("must be one of ")[2].split(", ")
    assert len(values) == 2
    for value in values:
        config.data.mixture_packing = value
        check_config(config)


NEW_TOKENS = {  # (file, part of its advice) -> (what was given, what is given in its place)
    ("sft_jax/models/vocabulary.py", "is no token; give texts that are not empty"): (("<|a|>", ""), ("<|a|>",)),
    ("sft_jax/models/vocabulary.py", "is a token already, with id"): (("<|a|>", "<|im_end|>"), ("<|a|>",)),
    ("sft_jax/models/vocabulary.py", "times; give it once"): (("<|a|>", "<|b|>", "<|a|>"), ("<|a|>", "<|b|>")),
}


@pytest.mark.parametrize("key", NEW_TOKENS, ids=[key[1] for key in NEW_TOKENS])
def test_new_tokens_are_added_as_advised(key):
    given, instead = NEW_TOKENS[key]
    with pytest.raises(ValueError, match=r"^--config\.model\.new_tokens: .*; (leave it out|give .*)$"):
        add_new_tokens(tiny.tokenizer(), given)
    tokenizer = tiny.tokenizer()
    ids = add_new_tokens(tokenizer, instead)
    assert tokenizer.convert_ids_to_tokens(list(ids)) == list(instead)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("configs")
    tiny.config(made)
    return made


@pytest.fixture(scope="module")
def data(root):
    return load_data(options_of(tiny.config(root)))


DURATIONS = "sft_jax/training/durations.py"


def test_durations_are_given_as_in_the_example(data):
    with pytest.raises(ValueError, match=r"--config\.duration='soon' is not a duration; give") as error:
        durations.in_steps("soon", "duration", data.plan)
    examples = re.findall(r"'(\d[^']*)'", str(error.value))
    assert len(examples) == 4
    for example in examples:
        assert durations.in_steps(example, "duration", data.plan) > 0


def test_a_share_of_the_run_is_given_in_another_unit(data):
    with pytest.raises(ValueError, match=r"percent of the run makes no sense here; give ") as error:
        durations.in_steps("50 percent", "duration", data.plan)
    units = re.findall(r"\b(steps|examples|tokens|epochs)\b", str(error.value))
    assert len(units) == 4
    for unit in units:
        assert durations.in_steps(f"50 {unit}", "duration", data.plan) > 0


BEST = ("sft_jax/training/held_out.py", ". Give one of them, or '' for none")


def test_the_best_checkpoint_is_chosen_by_what_is_measured(root, data):
    with pytest.raises(ValueError, match="is not measured; there are ") as error:
        check_best_metric(options_of(tiny.config(root, **{"checkpoint.best_metric": "loss"})), data, 320)
    known = re.search(r"there are (.*)\. Give one of them, or ''", str(error.value))[1].split(", ")
    assert "held_out/nll" in known
    for name in (*known, ""):
        check_best_metric(options_of(tiny.config(root, **{"checkpoint.best_metric": name})), data, 320)


SEQUENCES_OF_A_BATCH = ("sft_jax/training/setup.py", "(the mesh axes replica x fsdp x expert, over which sequences are")


def test_sequences_of_a_batch_are_a_multiple(root):
    def settings(**changes):
        options = options_of(tiny.config(root, **changes))
        step_settings(options, make_mesh(options.mesh, jax.devices()))

    given = {"batch.micro_batches": 3}
    with pytest.raises(ValueError, match="must be a multiple of ") as error:
        settings(**given)
    parts, shards = re.search(r"micro_batches=(\d+) x (\d+) ", str(error.value)).groups()
    for times in (1, 2):
        settings(**given, **{"batch.sequences": times * int(parts) * int(shards)})


TOKENS_OF_A_SEQUENCE = ("sft_jax/models/context.py", "must be a multiple of {2 * parts}, twice --config.mesh.context")


def test_tokens_of_a_sequence_are_a_multiple(root):
    def settings(tokens: int):
        options = options_of(tiny.config(root, **{"mesh.context": 4, "data.sequence_length": tokens}))
        step_settings(options, make_mesh(options.mesh, jax.devices()))

    with pytest.raises(ValueError, match="must be a multiple of ") as error:
        settings(90)
    multiple = int(re.search(r"must be a multiple of (\d+), twice --config.mesh.context", str(error.value))[1])
    for times in (1, 3):
        settings(times * multiple)


WEIGHTS = ("sft_jax/runs/averages.py", "--weights={weights} must be one of {', '.join(WEIGHTS)}")


def test_weights_are_those_that_are_listed(root):
    config = tiny.config(root, **{"ema.decay": 0.9})
    with pytest.raises(ValueError, match=r"^--weights=best must be one of ") as error:
        parts_of(options_of(config).optimizer, options_of(config).ema, "best")
    assert [
        parts_of(options_of(config).optimizer, options_of(config).ema, name)
        for name in str(error.value).partition(" of ")[2].split(", ")
    ] == [
        ("trained",),
        ("ema",),
    ]


TRAINED, ADAPTING = "sft_jax/training/trained_parameters.py", "sft_jax/runs/adapting.py"
EXPERTS = {"num_experts": 4, "experts_per_token": 2}
OF_A_MODEL = {  # (file, part of its advice) -> (argument of the config, of the model, what was given, instead)
    (TRAINED, "and --config.trained.last_layers="): (
        *("full", {}, {"trained.last_layers": 1, "trained.weights": ("embedding",)}),
        [{"trained.last_layers": 0}, {"trained.weights": ()}],
    ),
    (TRAINED, ": it is made for kernels of layers, and none is trained"): (
        *("full", {}, {"trained.weights": (".*norm/scale",), "optimizer.name": "muon"}),
        None,
    ),
    (ADAPTING, "is not implemented for an embedding that is the head too:"): (
        *("lora", {}, {"adapter.method": "dora", "adapter.targets": ("embedding", "ffn/up")}),
        [{"adapter.targets": ("ffn/up",)}],
    ),
    (ADAPTING, "is not implemented for experts, and"): ("lora", EXPERTS, {"adapter.method": "dora"}, None),
    (ADAPTING, "out of --config.adapter.targets"): (
        *("lora", EXPERTS, {"adapter.method": "dora", "adapter.targets": ("attention/query", "experts/up")}),
        [{"adapter.targets": ("attention/query",)}],
    ),
}


@pytest.mark.parametrize("key", OF_A_MODEL, ids=[": ".join(key) for key in OF_A_MODEL])
def test_what_a_model_does_not_have_is_asked_otherwise(key, root):
    arg, model, given, instead = OF_A_MODEL[key]
    decoder = dataclasses.replace(open_base(str(root / "model")).decoder, **model)
    with pytest.raises(ValueError, match=r"^--config\.") as error:
        check_trained(options_of(tiny.config(root, arg, **given)), decoder)
    for change in [last_flag_of(str(error.value))] if instead is None else instead:
        check_trained(options_of(tiny.config(root, arg, **given | change)), decoder)


FOLLOWED = {
    *(*CONFIGS, *NEW_TOKENS, *OF_A_MODEL, BEST, SEQUENCES_OF_A_BATCH, TOKENS_OF_A_SEQUENCE, WEIGHTS),
    (OF_CHECKS, "--config.{name}={value} {expected}"),
    (MIXING, "; give one of the two"),
    (DURATIONS, "is not a duration; give a number and one unit, for example"),
    (DURATIONS, ": percent of the run makes no sense here"),
}
