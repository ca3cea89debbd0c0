"""Bad values are named with their flag before anything is sampled, and before rows are read where that is possible."""

import functools
import json
import operator
import re

import jax
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import rlvr, sft
from configs.sft import reward, source
from sft_jax import config_flag
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.groups import NoRoomError, Shape, fitting_targets
from sft_jax.data.records import Record
from sft_jax.models.config import DecoderConfig, LongRopeScaling
from sft_jax.options import options_of
from sft_jax.planning.asked import targets_of
from sft_jax.preparation.run_data import load_data
from sft_jax.training import run
from sft_jax.training.checked_run import check_run
from sft_jax.training.checks import check_config
from sft_jax.training.rollouts.rollout import Rollouts, _check_one_rotation
from tests import rollouts, tiny
from tests.command_line import config_of

BAD = [
    ({"rollouts.group": 1}, r"--config\.rollouts\.group=1: the reward of an answer is compared .* give 2 or more$"),
    ({"rollouts.temperature": 0.0}, r"--config\.rollouts\.temperature=0\.0 must be above 0$"),
    ({"rollouts.temperature": float("nan")}, r"--config\.rollouts\.temperature=nan must be above 0"),
    ({"rollouts.prompts": 0}, r"--config\.rollouts\.prompts=0 must be at least 1"),
    ({"rollouts.max_new_tokens": 0}, r"--config\.rollouts\.max_new_tokens=0 must be at least 1"),
    ({"rollouts.slots": -1}, r"--config\.rollouts\.slots=-1 must be at least 0"),
    ({"rollouts.advantages": "mean"}, r"--config\.rollouts\.advantages='mean' must be one of centred, leave_one_out"),
    ({"rollouts.truncated": "drop"}, r"--config\.rollouts\.truncated='drop' must be one of leave_out, train"),
    ({"objective.clip_low": 1.5}, r"--config\.objective\.clip_low=1\.5 must lie between 0 and 1"),
    ({"objective.clip_high": -0.1}, r"--config\.objective\.clip_high=-0\.1 must be at least 0"),
    ({"objective.kl_weight": -1.0}, r"--config\.objective\.kl_weight=-1\.0 must be at least 0"),
    ({"rollouts.max_new_tokens": 128}, r"--config\.rollouts\.max_new_tokens=128 leaves no room for a prompt in"),
    ({"data.masking.train_on": "assistant"}, r"--config\.data\.masking\.train_on='assistant': .*; give last"),
    ({"data.masking.history": "expand"}, r"--config\.data\.masking\.history='expand': .*; give refuse"),
    ({"data.masking.too_long": "split"}, r"--config\.data\.masking\.too_long='split': .*; give drop or error"),
    ({"data.reading.weight_column": "w"}, r"--config\.data\.reading\.weight_column='w' is not read where answers are"),
    (
        {"objective.neftune_alpha": 5.0},
        r"--config\.objective\.neftune_alpha=5\.0: .* compares each token's probability",
    ),
    ({"experts.capacity": 1.5}, r"--config\.experts\.capacity=1\.5: .* compares each token's probability"),
    ({"objective.label_smoothing": 0.1}, r"--config\.objective\.label_smoothing=0\.1 is not read by"),
    ({"objective.kl_to_base": 0.1}, r"--config\.objective\.kl_to_base=0\.1 is not read by"),
    ({"objective.beta": 0.5}, r"--config\.objective\.beta=0\.5 is not read by"),
    ({"objective.positions": "all"}, r"--config\.objective\.positions='all' is not read by"),
]


@pytest.mark.parametrize(("overrides", "said"), BAD, ids=[str(overrides) for overrides, _ in BAD])
def test_bad_values(overrides, said, tmp_path):
    config = rollouts.config(tmp_path, **overrides)
    with pytest.raises(ValueError, match=said):
        check_config(config)


ADVISED = {  # what was given -> what is given in its place
    "rollouts.max_new_tokens": (128, {"data.sequence_length": 256}),
    "data.masking.train_on": ("assistant", {"data.masking.train_on": "last"}),
    "data.masking.history": ("expand", {"data.masking.history": "refuse"}),
    "data.masking.too_long": ("split", {"data.masking.too_long": "error"}),
    "data.reading.weight_column": ("w", {"data.reading.weight_column": ""}),
    "objective.neftune_alpha": (5.0, {"objective.neftune_alpha": 0.0}),
}


@pytest.mark.parametrize("name", ADVISED)
def test_what_is_advised_passes(name, tmp_path):
    value, instead = ADVISED[name]
    config = rollouts.config(tmp_path, **{name: value}).unlock()
    with pytest.raises(ValueError, match=name):
        check_config(config)
    config.update_from_flattened_dict(instead)
    check_config(config)


def test_dropout(tmp_path):
    with pytest.raises(ValueError, match=r"--config\.adapter\.dropout=0\.1: .* compares each token's probability"):
        check_config(rollouts.config(tmp_path, "lora", **{"adapter.dropout": 0.1}))


REWARDS = [
    ({}, r"--config\.rollouts\.rewards is empty: answers are worth nothing"),
    ({"a": reward("exact")}, r"--config\.rollouts\.rewards\.a: no scorer named 'exact'"),
    ({"a": reward("exact_match", weight=0)}, r"rewards\.a\.weight=0\.0 must be a finite number that is not 0"),
    ({"a": reward("exact_match", weight=float("inf"))}, r"rewards\.a\.weight=inf must be a finite number"),
    ({"a": reward("numeric", markr="#")}, r"rewards\.a: scorer 'numeric' has no option 'markr'"),
    ({"a": ConfigDict({"scorer": "exact_match"})}, r"rewards\.a must be what reward\(scorer, weight"),
]


@pytest.mark.parametrize(("rewards", "said"), REWARDS)
def test_bad_rewards(rewards, said, tmp_path):
    config = rollouts.config(tmp_path).unlock()
    config.rollouts.rewards = ConfigDict()
    config.rollouts.rewards.update(rewards)
    with pytest.raises(ValueError, match=said):
        check_config(config.lock())


@pytest.mark.parametrize("option", ["top_k=5", "top_p=0.9"])
def test_answers_are_drawn_from_all_tokens(option):
    """Log-probabilities are those of all tokens: there is no such field, and the flag is named."""
    with pytest.raises(config_flag.ConfigError, match=rf"--config\.rollouts\.{re.escape(option)}"):
        config_of("--config=configs/rlvr.py", f"--config.rollouts.{option}")


def test_flags_set_rewards():
    entry = "--config.rollouts.rewards.answer."
    flags = (f"{entry}scorer=numeric", entry + 'scorer_options={"marker": "####"}')
    config = config_of("--config=configs/rlvr.py", *flags)
    check_config(config)
    found = options_of(config).rollouts.rewards["answer"]
    assert (found.scorer, found.scorer_options) == ("numeric", {"marker": "####"})


def test_other_objectives_do_not_read_them(tmp_path):
    asked = {
        "rollouts.group": (4, r"--config\.rollouts\.group=4 is not read by --config\.objective\.name=cross_entropy"),
        "objective.clip_high": (0.3, r"--config\.objective\.clip_high=0\.3 is not read by"),
        "objective.normalize": ("constant", r"--config\.objective\.normalize='constant' is not read by"),
    }
    for name, (value, said) in asked.items():
        with pytest.raises(ValueError, match=said):
            check_config(tiny.config(tmp_path, **{name: value}))
        default = functools.reduce(operator.getitem, name.split("."), sft.get_config())
        check_config(tiny.config(tmp_path, **{name: default}))  # which is what is advised
    config = tiny.config(tmp_path).unlock()
    config.rollouts.rewards.answer = reward()
    with pytest.raises(ValueError, match=r"--config\.rollouts\.rewards\.answer is not read by"):
        check_config(config)
    config.objective.name, config.data.masking.train_on = "policy_gradient", "last"
    config.rollouts.max_new_tokens = 8
    check_config(config)


def test_weights_of_a_source_are_refused(tmp_path):
    config = rollouts.config(tmp_path).unlock()
    config.data.mixture.math = source("math.jsonl", weight="1", weight_column="w")
    with pytest.raises(
        ValueError, match=r"--config\.data\.mixture\.math\.reading\.weight_column='w' is not read where"
    ):
        check_config(config.lock())


def rows(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"data.train": str(path)}


OF_ROWS = [
    (
        {"prompt": "x" * 104, "completion": "y"},
        {},
        r"the prompt of rows\.jsonl:1 has 1\d\d tokens, and an answer has up",
    ),
    (
        {"prompt": "x", "completion": "y"},
        {"rollouts.max_new_tokens": 127},
        r"the prompt of rows\.jsonl:1 has .* tokens",
    ),
    ({"text": "no conversation"}, {"data.reading.text_end": "eos"}, r"rows\.jsonl:1: expected a conversation"),
    (
        {"prompt": "x", "chosen": "y", "rejected": "z"},
        {},
        r"rows\.jsonl:1: a pair of answers is not an example to imitate",
    ),
    (
        {"prompt": "x", "completion": "y"},
        {"rollouts.group": 128, "rollouts.prompts": 1},
        r"--config\.batch\.sequences=8 of --config\.data\.sequence_length=128 have no room for the 1 x 128 answers of "
        r"a step .*: \d+ sequences are needed",
    ),
]


@pytest.mark.parametrize(("row", "overrides", "said"), OF_ROWS, ids=[said[:30] for *_, said in OF_ROWS])
def test_rows_that_cannot_be_asked(row, overrides, said, tmp_path):
    config = rollouts.config(tmp_path, **overrides, **rows(tmp_path, row))
    with pytest.raises(ValueError, match=said):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_are_asked_with_the_numbers_that_are_advised(tmp_path):
    """Longer sequences for a long prompt; as many sequences as a message says are needed."""
    of_rows = rows(tmp_path, {"prompt": "x" * 104, "completion": "y"})
    config = rollouts.config(tmp_path, **of_rows, **{"data.sequence_length": 160, "rollouts.prompts": 1}).unlock()
    data = load_data(options_of(config))

    def shape():
        checked = check_run(config, epath.Path(tmp_path / "run"), jax.devices()[:1], None)
        return Rollouts(checked, data, epath.Path(tmp_path / "run"), 2, writes=False).shape

    assert shape().sequence_targets == 8
    config.rollouts.group = 64
    with pytest.raises(ValueError, match=r"\d+ sequences are needed") as error:
        shape()
    config.batch.sequences = needed = int(re.search(r"(\d+) sequences are needed", str(error.value))[1])
    assert shape().sequences == needed


def test_a_model_that_rotates_long_texts_otherwise():
    rope = LongRopeScaling((1.0,) * 4, (2.0,) * 4, 50)
    decoder = DecoderConfig(64, 2, 32, 4, 2, 8, 48, rope_scaling=rope)
    record = Record("rows:1", Chat((Message("user", "x"), Message("assistant", "y"))), {})
    _check_one_rotation(decoder, record, 50)
    with pytest.raises(ValueError, match=r"rows:1: .*give fewer --config\.rollouts\.max_new_tokens"):
        _check_one_rotation(decoder, record, 51)


def test_a_scorer_that_refuses_a_reference_names_the_row(tmp_path):
    lines = [{"prompt": "1 + 1", "completion": "2"}, {"prompt": "2 + 2", "completion": "four"}]
    config = rollouts.config(tmp_path, rewards={"answer": reward("numeric")}, **rows(tmp_path, *lines))
    with pytest.raises(ValueError, match=r"rewards\.answer: row rows\.jsonl:2: numeric: the reference has no number"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_of_another_objective_are_refused(tmp_path):
    data = load_data(options_of(tiny.config(tmp_path, **{"data.held_out": "", "data.masking.train_on": "last"})))
    with pytest.raises(ValueError, match=r"--config\.objective\.name.* differ"):
        data.check_made_for(options_of(rollouts.config(tmp_path)))


def test_the_shipped_config():
    for arg in ("full", "lora"):
        check_config(rlvr.get_config(arg))
    assert rlvr.get_config("lora").adapter.method == "lora"
    assert sft.get_config().rollouts.rewards.to_dict() == {}


@pytest.mark.parametrize("arg", ["full", "lora"])
def test_the_shipped_sizes_hold_the_answers_of_a_step(arg):
    """Behind prompts of up to a quarter of a sequence; longer ones need more sequences."""
    options = options_of(rlvr.get_config(arg))
    asked, length = options.rollouts, options.data.sequence_length
    shape = Shape(asked.group, asked.max_new_tokens, options.batch.sequences, length, 0)
    assert fitting_targets(shape, [[length // 4] * asked.prompts]) == 3 * asked.max_new_tokens
    with pytest.raises(NoRoomError, match="32 sequences are needed"):
        fitting_targets(shape, [[length // 4 + 1] * asked.prompts])


def test_a_planned_step_has_room_for_the_answers():
    assert targets_of(options_of(rlvr.get_config()), share=0.1) == 3 * 256
