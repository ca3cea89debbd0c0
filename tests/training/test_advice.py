"""What messages about models, runs and held-out rows advise is followed, and works."""

import dataclasses
import json
import re

import pytest
from etils import epath

from sft_jax.data.reading import Reading
from sft_jax.data.records import RecordError, read_records
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.runs.workdir import WorkdirError
from sft_jax.sources.huggingface import SourceError, read_config
from sft_jax.sources.tokenizer import load_tokenizer
from sft_jax.training import run
from tests import tiny
from tests.command_line import flags_in, reading_by, taken

ONE_STEP = {"duration": "1 steps", "evaluation.every": "0 steps", "checkpoint.best_metric": ""}


def test_a_model_without_a_chat_template(tmp_path):
    tiny.config(tmp_path)
    directory = tmp_path / "model"
    template = directory / "chat_template.jinja"
    content = template.read_text()
    template.unlink()
    with pytest.raises(ValueError, match="no chat template") as error:
        ConversationRenderer(load_tokenizer(str(directory)))
    assert flags_in(str(error.value)) == ["--config.model.chat_template=FILE"]
    (tmp_path / "mine.jinja").write_text(content)
    config = tiny.config(tmp_path, **{"model.chat_template": str(tmp_path / "mine.jinja")})
    assert load_data(options_of(config)).report.numbers["examples"] == 48
    template.write_text(content)
    assert load_data(options_of(tiny.config(tmp_path))).report.numbers["examples"] == 48


def test_held_out_rows_that_are_all_too_long(tmp_path):
    config = tiny.config(tmp_path)
    long = {"messages": [{"role": role, "content": "x" * 50} for role in ("user", "assistant") * 2]}
    (tmp_path / "held_out.jsonl").write_text(json.dumps(long) + "\n")
    with pytest.raises(ValueError, match="no held-out row is left to measure") as error:
        load_data(options_of(config))
    said = str(error.value)
    assert said.startswith(f"{tmp_path / 'held_out.jsonl'}: ")
    assert "1 x longer than 128 tokens (first: held_out.jsonl:1, 242 tokens)" in said
    flags = flags_in(said)
    for flag in flags:
        assert len(load_data(options_of(taken(config, [flag]))).held_out) == 1
    assert [flag.rpartition("=")[2] for flag in flags] == ["242", "truncate_left", "truncate_right"]


@pytest.mark.parametrize("too_long", ["drop", "truncate_left"])
def test_training_rows_that_are_all_too_long(too_long, tmp_path):
    config = tiny.config(tmp_path, **{"data.masking.too_long": too_long})
    long = {"prompt": "x" * 50, "completion": "y" * 150}
    (tmp_path / "train.jsonl").write_text((json.dumps(long) + "\n") * 2)
    with pytest.raises(ValueError, match="All 2 rows were dropped") as error:
        load_data(options_of(config))
    flags = flags_in(str(error.value))
    assert (f"--config.data.masking.too_long={too_long}" in flags) is False
    longer, *_, shortened = flags
    assert load_data(options_of(taken(config, [longer]))).report.numbers["records"]["kept"] == 2
    assert load_data(options_of(taken(config, [shortened]))).report.numbers["records"]["kept"] == 2
    assert shortened == "--config.data.masking.too_long=truncate_right"


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["full", "lora"])
def test_more_epochs_than_a_finished_run_has_had(arg, tmp_path, capsys):
    workdir = tmp_path / "a run"
    config = tiny.config(tmp_path, arg, **ONE_STEP)
    run(config, workdir)
    longer = tiny.config(tmp_path, arg, **(ONE_STEP | {"duration": "2 steps"}))
    with pytest.raises(WorkdirError, match="different config:\n  duration: ") as error:
        run(longer, workdir)
    said = str(error.value)
    flags = [flag for flag in flags_in(said) if "model.source" in flag]
    assert flags == [f"--config.model.source={workdir}"]
    assert ("merges its adapter into the weights and begins a new one" in said) == (arg == "lora")
    assert ("--config.adapter.initial=ADAPTER" in said) == (arg == "lora")
    assert (f"--checkpoint='{workdir}' --format=peft --out=ADAPTER" in said) == (arg == "lora")
    assert run(taken(longer, flags), tmp_path / "next").step == 2
    capsys.readouterr()
    run(config, workdir)
    assert "--config.model.source=" in capsys.readouterr().out


QUANTIZED = [  # (quantization_config, what it is called)
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "bitsandbytes in 4 bits"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes in 8 bits"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ({"quant_method": "mxfp4"}, "mxfp4"),
    ({"quant_method": ["a", "list"]}, "['a', 'list']"),
    ({}, None),
    (None, None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "name"), QUANTIZED)
def test_checkpoints_in_few_bits_are_refused_by_name(settings, name, tmp_path):
    config = tiny.config(tmp_path, "lora", **ONE_STEP)
    directory = tiny.write_checkpoint(tmp_path / "model", num_hidden_layers=2, quantization_config=settings)
    if name is None:
        assert read_config(epath.Path(directory))["model_type"] == "llama"
        return
    with pytest.raises(SourceError, match=rf"config.json: the weights are quantized \({re.escape(name)}\)") as error:
        read_config(epath.Path(directory))
    flags = flags_in(str(error.value))
    assert flags == ["--config.precision.quantized=nf4"]
    tiny.write_checkpoint(tmp_path / "model", num_hidden_layers=2)  # what they were made of
    assert run(taken(config, flags), tmp_path / "run").step == 1


def test_brackets_in_a_name(tmp_path):
    line = '{"prompt": "a", "completion": "b"}\n'
    (tmp_path / "data[1].jsonl").write_text(line)
    (tmp_path / "set[2]").mkdir()
    (tmp_path / "set[2]" / "a.jsonl").write_text(line)
    assert len(read_records(tmp_path / "data[1].jsonl")) == 1
    pattern = f"{tmp_path}/set[2]/*.jsonl"
    with pytest.raises(RecordError, match=r"no file matches the pattern\. .* with brackets write ") as error:
        read_records(pattern)
    assert len(read_records(str(error.value).rpartition(" write ")[2])) == 1
    with pytest.raises(RecordError, match=r"\[12\] stands for 1 or 2\. Similar: data\[1\]\.jsonl\.$"):
        read_records(tmp_path / "date[1].jsonl")


@pytest.mark.parametrize(
    ("header", "options"),
    [
        (",text,label", {}),
        ("text,,label", {}),
        (",id,text,label", {"columns": ("answer=label",), "answer_template": "{answer}"}),
        (",id,index,row,text,label", {"columns": ("answer=label",), "answer_template": "{answer}"}),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_column_without_a_name_is_given_one_as_advised(header, options, suffix, tmp_path):
    path, separator = tmp_path / f"a.{suffix}", "\t" if suffix == "tsv" else ","
    cells = {"": "0", "text": "a", "label": "b"}
    lines = [header, ",".join(cells.get(name, name.upper()) for name in header.split(","))]
    path.write_text("".join(line.replace(",", separator) + "\n" for line in lines))
    table = {"prompt_template": "{text}", "answer_template": "{label}"} | options
    with pytest.raises(RecordError, match=rf"a\.{suffix}:1: the header has a column without a name") as error:
        read_records(path, Reading(**table))
    assert ("index that pandas writes" in str(error.value)) == header.startswith(",")
    (flag,) = flags_in(str(error.value))
    (record,) = read_records(path, dataclasses.replace(Reading(**table), columns=reading_by(flag).columns))
    assert [message.content for message in record.conversation] == ["a", "b"]
    assert "" not in record.fields
    assert "0" in record.fields.values()


def test_a_column_without_a_name_that_is_not_there(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\na,b\n")
    with pytest.raises(RecordError, match=r"a\.csv:2: there is no column '' to be renamed 'id'; the columns are: 'pr"):
        read_records(tmp_path / "a.csv", Reading(columns=("id=",)))


def test_the_index_of_pandas(tmp_path):
    path = tmp_path / "a.csv"
    for name in ("id", "Unnamed: 0"):
        path.write_text(f"{name},text,label\n0,a,b\n1,c,d\n")
        with pytest.raises(RecordError, match="Nearest is table: ") as error:
            read_records(path)
        assert f"(not read then: '{name}')" in str(error.value)
        records = read_records(path, reading_by(*flags_in(str(error.value))))
        assert [message.content for message in records[0].conversation] == ["a", "b"]
