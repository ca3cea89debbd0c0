"""Advice is listed: each text of the source that names a flag, a step or a command is followed here, or is named.

A situation is made, the flag is taken out of what is said, and given to the command; every row is read then.
"""

import functools
import json
import operator

import pytest

from configs import sft
from sft_jax.data.checks import Subject
from sft_jax.data.checks.answers import empty_answers
from sft_jax.data.checks.duplicates import exact_duplicates
from sft_jax.data.checks.encoding import control_characters, mojibake
from sft_jax.data.checks.json_answers import json_answers
from sft_jax.data.cleaning import STEPS, Cleaner, CleaningLog
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.reading import Reading
from sft_jax.data.records import Record, RecordError, RecordReader, read_records
from sft_jax.data.tokenized import TokenizedRows
from sft_jax.training.checks import check_config
from tests.advice import ROOT, SOURCES, advice_in
from tests.command_line import SFT, config_of, flags_in, reading_by

USER, ANSWER = {"role": "user", "content": "<a>"}, {"role": "assistant", "content": "<b>"}
PAIR = {"prompt": "<a>", "completion": "<b>"}


def line(**fields):
    return json.dumps(fields) + "\n"


ROWS = {  # (file, part of its advice) -> (name of a file, content, options given beside the advice)
    ("sft_jax/data/files/csv_table.py", "Force it: "): ("a.csv", "prompt;completion\n<a>;<b>\n", {}),
    ("sft_jax/data/formats/__init__.py", "--config.data.reading.format={name}"): (
        "a.jsonl",
        line(**PAIR, messages=[USER, ANSWER]),
        {},
    ),
    ("sft_jax/data/formats/media.py", "train without it by"): ("a.jsonl", line(**PAIR, image={"url": "x"}), {}),
    ("sft_jax/data/formats/messages.py", "leave it out by"): (
        "a.jsonl",
        line(messages=[USER | {"reasoning": "x"}, ANSWER]),
        {},
    ),
    ("sft_jax/data/formats/messages.py", "are ShareGPT's: call the column"): (
        "a.jsonl",
        line(messages=[{"from": "human", "value": "<a>"}, {"from": "gpt", "value": "<b>"}]),
        {},
    ),
    ("sft_jax/data/formats/sharegpt.py", "are OpenAI's: call the column"): (
        "a.jsonl",
        line(conversations=[USER, ANSWER]),
        {},
    ),
    ("sft_jax/data/formats/prompt_completion.py", "As alpaca it is read"): (
        "a.jsonl",
        line(**PAIR, history=[["c", "d"]]),
        {},
    ),
    ("sft_jax/data/formats/prompt_completion.py", "ay that it means something else by"): (
        "a.jsonl",
        line(**PAIR, label=False),
        {},
    ),
    ("sft_jax/data/formats/values.py", "leave it out by"): (
        "a.jsonl",
        line(messages=[USER | {"mood": "x"}, ANSWER]),
        {},
    ),
    ("sft_jax/data/records.py", "To leave such rows out"): ("a.jsonl", line(**PAIR) * 2 + line(prompt="c"), {}),
}


@pytest.mark.parametrize("key", ROWS, ids=[": ".join(key) for key in ROWS])
def test_rows_are_read_as_advised(key, tmp_path):
    name, content, options = ROWS[key]
    (tmp_path / name).write_text(content)
    with pytest.raises(RecordError) as error:
        read_records(tmp_path / name, Reading(**options))
    flags = flags_in(str(error.value))
    kept = [flag for flag in flags if not flag.endswith("on_bad_row=drop")]
    for flag in kept or flags:
        records = list(RecordReader(tmp_path / name, reading_by(flag)))
        assert records
        for record in records:
            assert "<a> <b>" in " ".join(message.content for message in record.conversation)


FOUND = {  # (file, part of its advice) -> (check, answers of rows, how many rows are left)
    ("sft_jax/data/checks/answers.py", "(drop_empty_answers)"): (empty_answers, ["<b>", " "], 1),
    ("sft_jax/data/checks/encoding.py", "fix_encoding repairs"): (mojibake, ["<b> cafÃ©"], 1),
    ("sft_jax/data/checks/encoding.py", "remove_control_characters takes them out"): (
        control_characters,
        ["<b>\x00"],
        1,
    ),
    ("sft_jax/data/checks/json_answers.py", "(drop_invalid_json_answers)"): (json_answers, ['{"b": 1}'] * 9 + ["{"], 9),
    ("sft_jax/data/checks/duplicates.py", "(drop_exact_duplicates)"): (exact_duplicates, ["<b>", "<b>"], 1),
}


@pytest.mark.parametrize("key", FOUND, ids=[key[1] for key in FOUND])
def test_steps_take_out_what_was_found(key):
    check, answers, left = FOUND[key]
    turns = lambda answer: Chat((Message("user", "<a>"), Message("assistant", answer)))
    records = [Record(f"a:{number}", turns(answer), {}) for number, answer in enumerate(answers, 1)]
    subject = lambda some: Subject(some, TokenizedRows.from_rows([([1, 2], [0, 1])] * len(some), [r.id for r in some]))
    (seen,) = check(subject(records))
    (step,) = [name for name in STEPS if name in seen.advice]
    kept = [record for record in Cleaner([step])(lambda: records, CleaningLog()) if isinstance(record, Record)]
    assert len(kept) == left
    assert check(subject(kept)) == []


CHECKS = "sft_jax/training/checks.py"
CONFIGS = {  # (file, part of its advice) -> (argument of the config, what was given, what is given in its place)
    (CHECKS, "is not read by --config.optimizer.name={name}; leave it out"): (
        "full",
        {"optimizer.momentum": 0.5},
        {"optimizer.momentum": 0.95},
    ),
    (CHECKS, "there is no average to evaluate; give"): ("full", {"ema.evaluate": True}, None),
    (CHECKS, "is for frozen weights under an adapter; give"): ("full", {"precision.quantized": "nf4"}, None),
    (CHECKS, "leave it at float32"): ("lora", {"precision.params": "bfloat16"}, {"precision.params": "float32"}),
    (CHECKS, "names none; leave it at 0"): (
        "lora",
        {"adapter.dropout": 0.1, "adapter.targets": ("embedding",)},
        {"adapter.dropout": 0.0},
    ),
    (CHECKS, "schedule_free averages in place of a schedule"): (
        "full",
        {"optimizer.name": "schedule_free", "optimizer.schedule": "linear"},
        None,
    ),
    (CHECKS, "give one above 0, 0.9 for example"): (
        "full",
        {"optimizer.name": "schedule_free", "optimizer.schedule": "constant", "optimizer.betas": (0.0, 0.95)},
        {"optimizer.betas": (0.9, 0.95)},
    ),
    (CHECKS, "all weights are frozen; leave them at () and 0"): (
        "lora",
        {"trained.last_layers": 1},
        {"trained.last_layers": 0, "trained.weights": ()},
    ),
    (CHECKS, "must be auto or unrolled, not scan"): (
        "full",
        {"trained.last_layers": 1, "execution.layer_layout": "scan"},
        {"execution.layer_layout": "auto"},
    ),
    (CHECKS, "there are no new rows to train; give"): (
        "lora",
        {"adapter.new_rows": True},
        {"model.new_tokens": ("<|tool|>",)},
    ),
}


@pytest.mark.parametrize("key", CONFIGS, ids=[key[1] for key in CONFIGS])
def test_configs_pass_as_advised(key):
    arg, given, instead = CONFIGS[key]
    config = sft.get_config(arg).copy_and_resolve_references().unlock()
    config.update_from_flattened_dict({"data.train": "a.jsonl"} | given)
    with pytest.raises(ValueError, match=r"--config\.") as error:
        check_config(config)
    if instead is None:
        *_, flag = flags_in(str(error.value))
        name = flag.removeprefix("--config.").partition("=")[0]
        there = config_of(f"--config={SFT}", flag)
        instead = {name: functools.reduce(operator.getitem, name.split("."), there)}
    config.update_from_flattened_dict(instead)
    check_config(config)


OTHER_TESTS = {  # (file, part of its advice) -> the test that follows it
    (
        "sft_jax/data/checks/sizes.py",
        "drop_leading_answers",
    ): ("training/test_dropped_advice.py", "test_conversations_cut_out_of_longer_ones"),
    (
        "sft_jax/data/reading.py",
        "{FLAGS}{name}=",
    ): ("data/test_suggestions.py", "test_the_nearest_format_and_its_flags"),
    (
        "sft_jax/data/rendering/named_templates.py",
        "The tokenizer has no chat template",
    ): ("training/test_advice.py", "test_a_model_without_a_chat_template"),
    (
        "sft_jax/sources/huggingface.py",
        "the weights are quantized",
    ): ("training/test_advice.py", "test_checkpoints_in_few_bits_are_refused_by_name"),
    (
        "sft_jax/training/run_data.py",
        "Rows are whole under",
    ): ("training/test_advice.py", "test_training_rows_that_are_all_too_long"),
    (
        "sft_jax/training/run_findings.py",
        "An epoch is less than a step",
    ): ("training/test_run_findings.py", "test_a_smaller_batch_is_named_where_devices_divide_it"),
    (
        "sft_jax/training/workdir.py",
        "To train its result on",
    ): ("training/test_advice.py", "test_more_epochs_than_a_finished_run_has_had"),
}
# Texts of which no test has yet taken the advice: a line leaves this list with the test that does.
NOT_FOLLOWED = {
    "sft_jax/commands.py": ("; flags look like --name=value",),
    "sft_jax/config_flag.py": (
        "has no function get_config, which makes the config.",
        ": its get_config returned",
        ": expected --config.SECTION.FIELD=VALUE.",
    ),
    "sft_jax/data/checks/balance.py": (
        "Accuracy looks good for that label alone: measure F1 by label; cap_labels and balance_labels thin it",
    ),
    "sft_jax/data/checks/encoding.py": (
        "Steps after remove_control_characters, or what it does not read, brought them in: look at the rows.",
    ),
    "sft_jax/data/checks/new_tokens.py": (
        "--config.model.new_tokens_in_contents=False keeps new tokens text wherever contents spell them.",
    ),
    "sft_jax/data/cleaning/pipeline.py": (
        ": expected names of steps, got",
        "{_FLAG}: {name} is not a step; {hint}: {', '.join(STEPS)}",
        "takes no argument, got",
        "{_FLAG}: {name} needs {argument.expected}: '{name}=3'",
        "{_FLAG}: {name}: {error}",
    ),
    "sft_jax/data/files/data_sets.py": ("; choose one by --config.data.reading.split:",),
    "sft_jax/data/files/json_array.py": (
        "; choose one by --config.data.reading.split:",
        "One object on each line is read by",
    ),
    "sft_jax/data/files/jsonl.py": ("MiB. Expected one JSON object on each line; a JSON array is",),
    "sft_jax/data/files/locate.py": (
        ": neither suffix nor content says what it is. Say so:",
        "is for data sets of the hub; leave it out for files.",
    ),
    "sft_jax/data/formats/annotations.py": (
        "Mark it in the tool, or name who adjudicates:",
        ". Decide: --config.data.reading.label=majority or",
        ". Adjudicate it, or take the first of those with most votes",
    ),
    "sft_jax/data/formats/prompt_completion.py": (
        "Leave such rows out by --config.data.reading.on_bad_row=drop, or s",
    ),
    "sft_jax/data/formats/table.py": (". Write {found[0] * 2} for a brace, {column} for a column.",),
    "sft_jax/data/preview/selection.py": (". Those that findings name are among them, and the longest;",),
    "sft_jax/data/reading.py": ("Leave {FLAGS}split empty{held_out if reading.flags == FLAGS else ''}",),
    "sft_jax/data/records.py": (
        ": --config.data.reading.system is for conversations, this",
        '--config.data.reading.columns: {text} is no rename; expected "new=old"',
        "--config.data.reading.{name}={getattr(reading, name)} must be one of {', '.join(values)}",
        "--config.data.reading.{name} is read by --config.data.reading.label={label}, not by {reading.label}",
        "is not read by --config.data.reading.format=",
        "this row is {name}. Leave it at {DEFAULT.label}.",
    ),
    "sft_jax/data/rendering/masking.py": ("); name the role in --config.data.masking.train_on, or",),
    "sft_jax/data/rendering/named_templates.py": (
        "; give one as a file, --config.model.chat_template",
        "with tools: give the one that is meant as a file,",
    ),
    "sft_jax/data/rendering/row_plans.py": (
        "leave --config.data.reading.text_end=none, or spell the token that ends a text in the rows",
    ),
    "sft_jax/data/rendering/turns.py": ("--config.data.masking.history=expand makes a row that ends with it",),
    "sft_jax/data/report/__init__.py": ("; python -m sft_jax.preview makes every check on all",),
    "sft_jax/data/tokenized/cache.py": (
        ": must be a directory on a local disk; rows are read from it",
        ". Give a local directory to keep tokenized rows in, or an",
        "). Give a directory on a local disk, which has locks, or an",
    ),
    "sft_jax/data/tokenized/row_store.py": ("). Rows need room on a local disk: free some, or give",),
    "sft_jax/data/tokenizing/workers.py": (". Where memory is short, give fewer",),
    "sft_jax/exports/adapter.py": (
        ", is nothing that peft loads. Make a directory of it, and",
        "; export another checkpoint, or in --dtype=float32",
    ),
    "sft_jax/exports/directory.py": (
        "exists; give another directory, or --force to replace an",
        ", so it is no earlier export: --force does not replace it",
    ),
    "sft_jax/exports/model.py": ("the base's config.json has dtype",),
    "sft_jax/exports/proof.py": (
        "of positions. Nothing was written. Export in",
        "; export another checkpoint, or in --dtype=float32",
    ),
    "sft_jax/exports/subject.py": (
        "): give --format=peft for the adapter alone, or",
        "has no adapter, so there is nothing for --format=",
        "has rows of new tokens, which --format=peft does not hold;",
    ),
    "sft_jax/generate.py": (
        "give --prompt or --prompts, not both",
        "--system goes with --prompt and the chat; with --prompts give --reading.system",
    ),
    "sft_jax/sources/hub.py": ("Without a connection to the hub, give a local directory",),
    "sft_jax/sources/locate.py": (". Install it again: `pip install --force-reinstall",),
    "sft_jax/training/adapting.py": (
        "is not implemented for experts, and",
        "is not implemented for an embedding that is the head too:",
    ),
    "sft_jax/training/averages.py": ("--weights={weights} must be one of {', '.join(WEIGHTS)}",),
    "sft_jax/training/checkpoints.py": (": else train again, with another --workdir or after removing",),
    "sft_jax/training/checks.py": ("--config.{name}={value} {expected}",),
    "sft_jax/training/durations.py": (
        "is not a duration; give a number and one unit, for example",
        ": percent of the run makes no sense here",
    ),
    "sft_jax/training/effect.py": (
        "steps were skipped: loss or gradient was not finite. Look",
        "steps no trained array has had an update, though there were",
    ),
    "sft_jax/training/freezing.py": (
        "and --config.trained.last_layers=",
        ": it is made for kernels of layers, and none is trained",
    ),
    "sft_jax/training/held_out.py": (". Give one of them, or '' for none",),
    "sft_jax/training/initial_adapter.py": (
        "; leave it at {defaults[name]}, or give that",
        "is for adapters, and --config.adapter.method=none; give",
    ),
    "sft_jax/training/judging.py": (
        "For a benchmark name the column of its prompts:",
        "python -m sft_jax.preview with the same config shows the rows. To train on it all the same: --config",
    ),
    "sft_jax/training/loop.py": (
        ": the code that packs has changed. Give another --workdir,",
        "--config.checkpoint.best_metric={name} is not measured; there are {', '.join(sorted(measured))}",
    ),
    "sft_jax/training/mixing.py": (
        "{_FLAG}.{name}",
        "{_FLAG}.{name}.reading.",
        "--config.data.mixture_packing=",
        "; give one of the two",
    ),
    "sft_jax/training/recorder.py": (". Look at those rows, lower",),
    "sft_jax/training/run_data.py": (
        "--config.data.train is empty; give a file, a pattern, a saved data set or a name of the hub",
        "is not a file; expected a Jinja template",
    ),
    "sft_jax/training/run_findings.py": (
        "Nothing is learnt of their meaning. Look at how rows that should hold them are tokenized (python -m ",
        "To train, give --config.optimizer.learning_rate=2e-5, or 2e-4 under an adapter.",
    ),
    "sft_jax/training/setup.py": ("(the mesh axes replica x fsdp x expert, over which rows are",),
    "sft_jax/training/vocabulary.py": (
        "is no token; give texts that are not empty",
        "is a token already, with id",
        "times; give it once",
    ),
    "sft_jax/training/workdir.py": (
        ", which merges its adapter into the weights and begins a",
        "holds no object, as the config of a run is; remove it or",
        "Give another --workdir, or the same config to continue that",
        ": give an empty or new --workdir",
        "); remove it or give another --workdir",
        "found another one than process 0. Give a --workdir that all",
        "; wait for it, stop it, or give another --workdir",
        "), and without a lock two processes could train there. Give",
    ),
}


def test_all_advice_is_listed():
    listed = [
        *ROWS,
        *FOUND,
        *CONFIGS,
        *OTHER_TESTS,
        *((file, part) for file, parts in NOT_FOLLOWED.items() for part in parts),
    ]
    found = [(str(path.relative_to(ROOT)), text) for path in SOURCES for _, text in advice_in(path)]
    known = lambda file, text: any(of == file and part in text for of, part in listed)
    missing = [f"{file}: {text}" for file, text in found if not known(file, text)]
    assert not missing, "advice that no test follows; add a situation to ROWS or CONFIGS:\n" + "\n".join(missing)
    gone = [key for key in listed if not any(file == key[0] and key[1] in text for file, text in found)]
    assert not gone, f"no such advice is in the source any more: {gone}"


@pytest.mark.parametrize("test", OTHER_TESTS.values())
def test_tests_that_follow_advice_exist(test):
    path, name = test
    assert f"def {name}(" in (ROOT / "tests" / path).read_text()
