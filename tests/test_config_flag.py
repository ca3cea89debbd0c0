"""The flag --config: what is wrong names the flag, the section and the fields there are, and what it advises works."""

import pytest

from sft_jax.config_flag import ConfigError, load, tuple_flag
from tests.command_line import SFT, config_of, flags_in

SECTIONS = "config has: adapter, batch, branch, checkpoint, data, "
OPTIMIZER = "config.optimizer has: betas, clip_norm, decay, decay_power, decay_shape, epsilon, final_share, groups,"

MISTAKES = [  # (what was given, what the message says of it)
    (["--config.lr=1"], ["--config.lr=1: the config has no field 'lr'.", SECTIONS]),
    (["--config.lr", "1"], ["--config.lr: the config has no field 'lr'.", SECTIONS]),
    (["-config.lr=1"], ["-config.lr=1: the config has no field 'lr'.", SECTIONS]),
    (["--noconfig.lr"], ["--noconfig.lr: the config has no field 'lr'.", SECTIONS]),
    (["--config.optimizer.lrr=1"], ["the section config.optimizer has no field 'lrr'.", OPTIMIZER]),
    (["--config.optimizer.learning_rat=1"], ["Did you mean --config.optimizer.learning_rate?", OPTIMIZER]),
    (["--config.optimiser.x=1"], ["no field 'optimiser'. Did you mean --config.optimizer, a section?", OPTIMIZER]),
    (["--config.optimizr.betas=1"], ["Did you mean --config.optimizer.betas?", SECTIONS]),
    (["--config.train=a.jsonl"], ["Did you mean --config.data.train?", SECTIONS]),
    (["--config.name=x"], ["Did you mean --config.objective.name or --config.optimizer.name?", SECTIONS]),
    (
        ["--config.batch.sequences.x=1"],
        ["config.batch.sequences is no section but a value, 8. Set it by --config.batch.sequences="],
    ),
    (["--config.=1"], ["expected --config.SECTION.FIELD=VALUE.", SECTIONS]),
    (["--config.batch..sequences=1"], ["expected --config.SECTION.FIELD=VALUE.", SECTIONS]),
    (["--config.batch=4"], ["config.batch is a section", "config.batch has: micro_batches, sequences."]),
    (
        ["--config.batch.sequences=abc"],
        ["--config.batch.sequences=abc: expected a whole number; config.batch.sequences is 8"],
    ),
    (["--config.batch.sequences=2.5"], ["--config.batch.sequences=2.5: expected a whole number"]),
    (["--config.batch.sequences"], ["--config.batch.sequences: expected a whole number"]),
    (["--config.batch.sequences", "2.5"], ["--config.batch.sequences: expected a whole number"]),
    (["--config.optimizer.learning_rate=1e-4x"], ["expected a number; config.optimizer.learning_rate is 2e-05"]),
    (["--config.ema.evaluate=maybe"], ["expected true or false; config.ema.evaluate is False where it is not set"]),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_what_cannot_be_set(arguments, said):
    with pytest.raises(ConfigError) as error:
        config_of(f"--config={SFT}", *arguments)
    assert str(error.value).startswith(arguments[0])
    for words in said:
        assert words in str(error.value)


SPELLINGS = [  # (field, value, what the advice makes of it: as a list, as one text)
    ("data.cleaning", "fix_encoding,strip_whitespace", ("fix_encoding", "strip_whitespace")),
    ("data.cleaning", "(fix_encoding,strip_whitespace)", ("fix_encoding", "strip_whitespace")),
    ("data.cleaning", "[fix_encoding]", ("fix_encoding",)),
    ("data.benchmarks", "(a.jsonl)", ("a.jsonl",)),
    ("data.reading.columns", "prompt=question,completion=answer", ("prompt=question", "completion=answer")),
    ("model.new_tokens", "<|a|>,<|b|>", ("<|a|>", "<|b|>")),
    ("trained.weights", "layers/.*/it's,b", ("layers/.*/it's", "b")),
]


@pytest.mark.parametrize(("field", "value", "parts"), SPELLINGS, ids=[f"{f}={v}" for f, v, _ in SPELLINGS])
def test_a_tuple_without_quotes_is_answered_by_one_that_works(field, value, parts):
    with pytest.raises(ConfigError) as error:
        config_of(f"--config={SFT}", f"--config.{field}={value}")
    assert str(error.value).startswith(f"--config.{field}={value}: expected texts in quotes")
    several, one = flags_in(str(error.value).split(": expected")[1])
    section, name = field.rsplit(".", 1)
    for flag, meant in ((several, parts), (one, (value,))):
        config = config_of(f"--config={SFT}", flag)
        for part in section.split("."):
            config = config[part]
        assert config[name] == meant


GOOD = [
    (["--config.data.cleaning=strip_whitespace"], ("strip_whitespace",)),
    (["--config.data.cleaning=cap_labels=3"], ("cap_labels=3",)),
    (["--config.data.cleaning", "strip_whitespace"], ("strip_whitespace",)),
    (["--config.data.cleaning=a", "--config.data.cleaning=b"], ("a", "b")),
    (["--config.data.cleaning=('a', 'b')"], ("a", "b")),
    (["--config.data.cleaning=['a']"], ("a",)),
    (["--config.data.cleaning=('a')"], ("a",)),
    (["--config.data.cleaning=()"], ()),
    ([tuple_flag("config.data.cleaning", ["a,b", 'c"d']).replace("'", "")], ("a,b", 'c"d')),
]


@pytest.mark.parametrize(("arguments", "cleaning"), GOOD)
def test_what_can_be_set(arguments, cleaning):
    assert config_of(f"--config={SFT}", *arguments).data.cleaning == cleaning


def test_booleans_need_no_value():
    given = ("--config.ema.evaluate", "--workdir=x", "--noconfig.data.reading.streaming")
    with pytest.raises(Exception, match="workdir"):  # the flag of another command, in its place
        config_of(f"--config={SFT}", *given)
    config = config_of(f"--config={SFT}", given[0], given[2])
    assert (config.ema.evaluate, config.data.reading.streaming) == (True, False)


TEXTS = ("optimizer.groups", "data.benchmarks", "data.reading.columns", "trained.weights", "adapter.targets")


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("value", ["(1,)", "1", "('a', 2)", "(None,)", "(True,)"])
def test_numbers_in_place_of_texts(field, value):
    with pytest.raises(ConfigError) as error:
        config_of(f"--config={SFT}", f"--config.{field}={value}")
    assert str(error.value).startswith(f"--config.{field}={value}: expected texts in quotes, in brackets: ")
    (flag,) = flags_in(str(error.value).split(": expected")[1])
    assert config_of(f"--config={SFT}", flag)


@pytest.mark.parametrize("value", ["('a', 'b')", "(0.9, 'b')", "0.9,b", "(True, 0.9)", "((0.9, 0.95),)"])
def test_texts_in_place_of_numbers(value):
    with pytest.raises(ConfigError, match=r"^--config\.optimizer\.betas=.*: expected"):
        config_of(f"--config={SFT}", f"--config.optimizer.betas={value}")


@pytest.mark.parametrize("value", ["(0, 0.9)", "(0.9, 0.99)", "0.9,0.99"])
def test_numbers_of_both_kinds(value):
    assert config_of(f"--config={SFT}", f"--config.optimizer.betas={value}").optimizer.betas[1] >= 0.9


FILES = [  # (content, what follows the path, what the message says)
    ("x = 1\n", "", "has no function get_config"),
    ("get_config = 3\n", "", "has no function get_config"),
    ("def get_config(:\n", "", "line 1: SyntaxError: invalid syntax"),
    ("import no_such_module\n", "", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ("def get_config():\n    return 1 / 0\n", "", "line 2: ZeroDivisionError: division by zero"),
    ("def get_config():\n    return open('/none')\n", "", "line 2: FileNotFoundError: [Errno 2]"),
    ("def get_config():\n    raise KeyError('lr')\n", "", "line 2: KeyError: 'lr'"),
    ("def get_config(arg):\n    raise ValueError(f'no {arg}')\n", ":big", "line 2: ValueError: no big"),
    ("def get_config(arg):\n    return {}\n", "", "its get_config needs an argument: --config="),
    ("def get_config():\n    return {}\n", ":big", "its get_config takes no argument: --config="),
    ("def get_config():\n    pass\n", "", "its get_config returned None, expected a ConfigDict"),
]


@pytest.mark.parametrize(("content", "argument", "said"), FILES)
def test_a_file_that_makes_no_config(content, argument, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        config_of(f"--config={path}{argument}")
    assert str(error.value).startswith(f"--config={path}")
    assert said in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "sft.py").touch()
    for path, said in {
        tmp_path / "sfy.py": f"there is no such file. In {tmp_path} there are: sft.py.",
        tmp_path: f"is a directory. In {tmp_path} there are: sft.py.",
        tmp_path / "none" / "sft.py": f"there is no such file. There is no directory {tmp_path / 'none'} either.",
    }.items():
        with pytest.raises(ConfigError) as error:
            load(str(path))
        assert str(error.value) == f"--config={path}: {said}"


def test_what_a_file_refuses_of_its_argument():
    with pytest.raises(ConfigError, match=r"--config=.*sft.py:lorra: .*, line \d+: .*give ':full' or ':lora'"):
        config_of(f"--config={SFT}:lorra")
