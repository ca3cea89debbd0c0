"""Advice of the commands about their flags: what is said is given, and the command does its work."""

import json
import os
import re
import subprocess
import sys

import pytest

from sft_jax.config_flag import ConfigError
from tests import tiny
from tests.advice.source import ROOT
from tests.command_line import SFT, config_of

CONFIG_FLAG = "sft_jax/config_flag.py"
MADE = "from configs import sft\n\ndef get_config():\n    return sft.get_config()\n"
CONFIG_FILES = {  # (file, part of its advice) -> a config file that is no config
    (CONFIG_FLAG, "has no function get_config, which makes the config."): MADE.replace("def get_config", "def make"),
    (CONFIG_FLAG, ": its get_config returned"): MADE.replace("return ", ""),
}


@pytest.mark.parametrize("key", CONFIG_FILES, ids=[key[1] for key in CONFIG_FILES])
def test_a_config_file_makes_a_config(key, tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG_FILES[key])
    with pytest.raises(ConfigError, match=r"no function get_config, which makes|expected a ConfigDict"):
        config_of(f"--config={tmp_path / 'mine.py'}")
    (tmp_path / "mine.py").write_text(MADE)
    assert config_of(f"--config={tmp_path / 'mine.py'}").batch.sequences == 8


OVERRIDE = (CONFIG_FLAG, ": expected --config.SECTION.FIELD=VALUE.")


def test_a_field_is_set_by_section_and_name():
    with pytest.raises(ConfigError, match=r"expected --config\.SECTION\.FIELD=VALUE") as error:
        config_of(f"--config={SFT}", "--config.batch..sequences=2")
    form = re.search(r"expected (--\S+)\. ", str(error.value))[1]
    flag = form.replace("SECTION", "batch").replace("FIELD", "sequences").replace("VALUE", "2")
    assert config_of(f"--config={SFT}", flag).batch.sequences == 2


def called(code, *arguments):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": ""}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


FORM = ("sft_jax/commands.py", "; flags look like --name=value")


def test_a_flag_begins_with_dashes():
    code = "from sft_jax import commands; commands.run(lambda _: print('done'))"
    refused = called(code, "traceback=true")
    form = re.search(r"flags look like (\S+)", refused.stderr)[1]
    assert (refused.returncode != 0, refused.stdout.endswith("done\n")) == (True, False)
    accepted = called(code, form.replace("name", "traceback").replace("value", "true"))
    assert (accepted.returncode, accepted.stdout) == (0, "done\n")


GENERATE = """
import contextlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
from sft_jax import generate

shown = []
for arguments in json.loads(sys.argv[1]):
    with flagsaver.flagsaver(), contextlib.redirect_stdout(io.StringIO()) as out:
        flags.FLAGS(["generate", *arguments])
        try:
            generate.main([])
        except ValueError as error:
            print("refused:", error)
    shown.append(out.getvalue())
print(json.dumps(shown))
"""
EITHER = ("sft_jax/generate.py", "give --prompt or --prompts, not both")
SYSTEM = ("sft_jax/generate.py", "--system goes with --prompt and the chat; with --prompts give --reading.system")


def test_prompts_are_given_as_advised(tmp_path):
    tiny.write_checkpoint(tmp_path / "model", num_hidden_layers=1)
    tiny.write_rows(tmp_path / "asked.jsonl", 2)
    common = [f"--model={tmp_path / 'model'}", "--max_new_tokens=2"]
    one, file = "--prompt=red cat", f"--prompts={tmp_path / 'asked.jsonl'}"
    calls = [
        *([one, file], [one], [file]),
        *(["--system=Be brief.", file], ["--system=Be brief.", one], ["--reading.system=Be brief.", file]),
    ]
    done = called(GENERATE, json.dumps([common + given for given in calls]))
    assert done.returncode == 0, done.stderr
    both, of_one, of_file, system, of_one_with, of_file_with = json.loads(done.stdout)
    assert (both, system) == (f"refused: {EITHER[1]}\n", f"refused: {SYSTEM[1]}\n")
    assert "refused" not in of_one + of_one_with + of_file + of_file_with
    assert of_one != of_one_with, "the system message is not read"
    plain, with_system = ([json.loads(line) for line in text.splitlines()] for text in (of_file, of_file_with))
    assert [line["id"] for line in plain] == [line["id"] for line in with_system] == ["asked.jsonl:1", "asked.jsonl:2"]
    assert plain != with_system, "the system message is not read"


FOLLOWED = {*CONFIG_FILES, OVERRIDE, FORM, EITHER, SYSTEM}
