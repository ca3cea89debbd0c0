"""Options of `configs/sft.py` and the values that are tried together, each pair of values in some run.

A new field of the config is one line here: in FIELDS with its values (the first ones go together), or in EXEMPT with
the reason why it need not be tried beside every other option.
"""

import itertools
import re
from collections.abc import Iterator

import ml_collections

from configs import sft
from sft_jax.models.partitioning import MESH_AXES
from sft_jax.runs.workdir import flatten
from sft_jax.training.update_rules import RULES

ROOT = "{root}"  # in a value: the folder of models and data
ROWS = "{rows}"  # the folder of rows; where one that is too long is an error, of short ones

FIELDS: dict[str, tuple] = {
    "seed": (0, 1),
    "model.max_positions": (0, 512),
    "model.chat_template": ("", "{root}/template.jinja"),
    "model.new_tokens": (("<|x|>", "<|y|>"), ()),
    "model.new_tokens_in_contents": (True, False),
    "data.held_out": ("{rows}/held_out.jsonl", ""),
    "data.reading.id_column": ("", "name"),
    "data.reading.weight_column": ("", "weight"),
    "data.reading.group_column": ("", "topic"),
    "data.reading.system": ("", "Be brief."),
    "data.reading.preference": ("pairs", "chosen"),
    "data.reading.text_end": ("", "eos", "none"),
    "data.date": ("", "2026-01-31"),
    "data.cleaning": ((), ("strip_whitespace", "drop_exact_duplicates")),
    "data.benchmarks": ((), ("{root}/benchmark.jsonl=prompt",)),
    "data.fail_on": ("error", "never"),
    "data.cache": ("", "{root}/cache"),
    "data.sequence_length": (96, 128),
    "data.packing": ("best_fit", "first_fit", "sequential", "none"),
    "data.max_examples_per_sequence": (0, 2),
    "data.supervised_quantile": (0.95, 0.5),
    "data.masking.train_on": ("assistant", "last", "all", "user,assistant"),
    "data.masking.end_of_turn": ("turn", "all", "last", "none"),
    "data.masking.empty_thinking": ("train", "leave_out"),
    "data.masking.history": ("refuse", "expand"),
    "data.masking.too_long": ("drop", "error", "truncate_left", "truncate_right", "split"),
    "batch.sequences": (16, 32),
    "batch.micro_batches": (1, 2),
    "objective.name": ("cross_entropy",),
    "objective.normalize": ("tokens", "examples"),
    "objective.label_smoothing": (0.0, 0.1),
    "objective.z_loss": (0.0, 1e-4),
    "objective.neftune_alpha": (0.0, 5.0),
    "objective.kl_to_base": (0.0, 0.1),
    "objective.positions": ("supervised", "all"),
    "objective.head_chunk_tokens": (16, 0),
    "experts.balance_loss": (0.001, 0.0),
    "experts.capacity": (0.0, 1.5),
    "adapter.method": ("none", "lora", "dora", "pissa"),
    "adapter.initial": ("", "{root}/adapter"),
    "adapter.train_new_tokens": (False, True),
    "adapter.rank": (16, 2),
    "adapter.ranks": ((), (".*=3",)),
    "adapter.alpha": (32.0, 4.0),
    "adapter.scaling": ("rank", "sqrt_rank"),
    "adapter.dropout": (0.0, 0.1),
    "adapter.targets": (
        (
            "(attention|delta)/(query|key|value|output_gate|out|(query|key_value)_[ab])",
            "(ffn|experts|shared)/(gate|up|down)",
        ),
        ("embedding",),
        ("head",),
        ("attention/query",),
        (".*",),
    ),
    "trained.weights": ((), (".*norm/scale",)),
    "trained.last_layers": (0, 1),
    "optimizer.name": tuple(RULES),
    "optimizer.learning_rate": (1e-3, 1e-4),
    "optimizer.schedule": ("constant", "cosine", "linear", "wsd"),
    "optimizer.warmup": ("0 steps", "50 percent"),
    "optimizer.final_share": (0.1, 1.0),
    "optimizer.decay": ("20 percent", "0 steps"),
    "optimizer.decay_shape": ("linear", "sqrt"),
    "optimizer.betas": ((0.9, 0.95), (0.8, 0.99)),
    "optimizer.epsilon": (1e-8, 1e-6),
    "optimizer.momentum": (0.95, 0.9),
    "optimizer.decay_power": (0.8, 0.5),
    "optimizer.weight_decay": (0.01, 0.0),
    "optimizer.groups": ((), (".*: learning_rate_factor=0.5",)),
    "optimizer.clip_norm": (1.0, 0.0),
    "ema.decay": (0.0, 0.9),
    "ema.evaluate": (False, True),
    "precision.params": ("float32", "bfloat16"),
    "precision.frozen": ("auto", "float32", "bfloat16", "float16"),
    "precision.quantized": ("none", "int8", "nf4", "mxfp4"),
    "precision.matmul": ("bfloat16", "float32"),
    "precision.activations": ("auto", "float32", "bfloat16"),
    "precision.gradients": ("float32", "bfloat16"),
    "execution.layer_layout": ("auto", "scan", "unrolled"),
    "execution.remat": ("auto", "none", "products", "attention_products", "attention", "full"),
    "execution.deterministic": (False, True),
    "execution.attention": ("auto", "blocked", "reference", "splash", "triton"),
    "evaluation.every": ("1 steps", "0 steps"),
    "evaluation.patience": (0, 2),  # 2: no combination ends before its second step
    "evaluation.batch_sequences": (8, 4),
    "evaluation.samples": (0, 1),
    "checkpoint.every": ("1 steps", "0 steps"),
    "checkpoint.keep_last": (1, 2),
    "checkpoint.keep_stable": (True, False),
    "checkpoint.best_metric": ("held_out/nll", ""),
    "checkpoint.best_is": ("min", "max"),
    "log.every": (1, 2),
    "loader.threads": (1, 0),
    "loader.batches_ahead": (4, 1),
    "profile.start": (0, 2),  # the second step: a trace of the first is of all the Python that makes its program
}

# Options that set several fields at once, or none: name -> label -> fields.
TOGETHER: dict[str, dict[str, dict]] = {
    "model": {name: {"model.source": f"{{root}}/{name}"} for name in ("tied", "untied", "experts")},
    "mesh": {
        label: dict(zip((f"mesh.{axis}" for axis in MESH_AXES), sizes, strict=True))
        for label, sizes in {
            "fsdp 8": (1, -1, 1, 1, 1),
            "replica 8": (8, 1, 1, 1, 1),
            "replica 2, fsdp 2, tensor 2": (2, 2, 1, 1, 2),
            "expert 4, tensor 2": (1, 1, 4, 1, 2),
            "fsdp 4, context 2": (1, 4, 1, 2, 1),
            "one device": (1, 1, 1, 1, 1),
        }.items()
    },
    "mixture": {
        "none": {"data.train": "{rows}/train.jsonl", "data.mixture_packing": "after"},
        "after": {"data.train": "", "data.mixture": "sources", "data.mixture_packing": "after"},
        "before": {"data.train": "", "data.mixture": "sources", "data.mixture_packing": "before"},
    },
    "evaluators": {"none": {}, "given": {}},
}

_OF_FILES = "how files are read does not reach the step; tests/data has all formats and containers"
EXEMPT: dict[str, str] = {
    "duration": "every combination takes two steps; tests/training/test_durations.py",
    "branch": "a checkpoint of another run; tests/training/test_branch.py",
    "model.head": "of reward models; tests/training/test_reward_model.py",
    "model.revision": "of names on the hub; tests/sources/test_locate.py",
    **{
        f"data.reading.{name}": _OF_FILES
        for name in (
            *("format", "container", "subset", "split", "held_out_split", "revision", "streaming", "columns"),
            *("prompt_template", "answer_template", "ignore", "label", "ties", "adjudicator", "on_bad_row"),
        )
    },
    **{
        f"objective.{name}": "of answers that were judged; tests/training/test_pairs_on_any_machine.py"
        for name in (
            *("beta", "margin", "per_token", "tail_weight", "sft_weight"),
            *("desirable_weight", "undesirable_weight", "centring"),
        )
    },
    **{
        f"objective.{name}": "of sampled answers; tests/training/rollouts"
        for name in ("clip_low", "clip_high", "kl_weight", "teacher_weight")
    },
    **{
        f"objective.{name}": "of a teacher; tests/training/test_distillation_on_any_machine.py"
        for name in ("temperature", "teacher_share", "cross_entropy_share")
    },
    **{f"teacher.{name}": "of distillation; tests/training/test_distillation.py" for name in sft.get_config().teacher},
    **{f"rollouts.{name}": "of sampled answers; tests/training/rollouts" for name in sft.get_config().rollouts},
    "optimizer.max_skipped_in_a_row": "a number that the host compares with; tests/training/test_loop.py",
    "evaluation.sample_tokens": "a number of repetitions; every combination takes two",
    **{
        f"data.retrieval.{name}": "what prompts hold does not reach the step; tests/preparation/test_retrieved.py"
        for name in sft.get_config().data.retrieval
    },
    "evaluation.tasks": "what is asked beside the step; tests/evaluation and tests/test_evaluate.py",
    "evaluation.tasks_every": "when it is asked; the step is the same",
    "evaluation.max_regression": "of `python -m sft_jax.evaluate`; tests/test_evaluate.py",
    "evaluation.slots": "answers do not depend on it; tests/generation/test_sampler.py",
    **{
        f"evaluation.{section}.{name}": "of `python -m sft_jax.evaluate`; tests/evaluation/test_methods.py"
        for section in ("few_shot", "prompting", "retrieval")
        for name in sft.get_config().evaluation[section]
    },
    "loader.tokenize_workers": "the same rows whoever tokenizes them; tests/data/tokenizing/test_workers.py",
    **{
        f"defaults.{name}": "not an option: what a run compares with"
        for name in flatten(sft.get_config().defaults.to_dict())
    },
    "profile.steps": "one step of two, wherever there is a profile",
}
FIXED = {"duration": "2 steps", "evaluation.sample_tokens": 2, "profile.steps": 1, "loader.tokenize_workers": 0}

COSTLY = ("evaluation.samples", "profile.start")  # another program to compile, a trace to write

_METHODS = ("lora", "dora", "pissa")
_INITIAL = FIELDS["adapter.initial"][1]
_BESIDE = ({"adapter.method": _METHODS}, {"adapter.train_new_tokens": (True,)}, {"adapter.initial": (_INITIAL,)})
_DEFAULT_TARGETS = FIELDS["adapter.targets"][0]

_OF_ADAPTERS = tuple(f"adapter.{name}" for name in ("rank", "ranks", "alpha", "scaling", "dropout", "targets"))

# What is refused, as option -> values of which each combination is, and what the message must say.
REFUSED: list[tuple[dict[str, tuple], str]] = [
    ({"ema.evaluate": (True,), "ema.decay": (0.0,)}, r"--config\.ema\.evaluate=True"),
    (
        {"optimizer.name": ("schedule_free",), "optimizer.schedule": ("cosine", "linear", "wsd")},
        r"--config\.optimizer\.schedule='\w+': schedule_free",
    ),
    *(
        (
            {
                "optimizer.name": tuple(rule for rule in RULES if option not in RULES[rule].reads),
                f"optimizer.{option}": FIELDS[f"optimizer.{option}"][1:],
            },
            rf"--config\.optimizer\.{option}=.* is not read by",
        )
        for option in ("betas", "epsilon", "momentum", "decay_power")
    ),
    # What muon alone reads goes with no more than muon does, and what no rule reads together is refused by every rule.
    *(
        ({"optimizer.momentum": (0.9,), option: values}, r"--config\.optimizer\.momentum=0\.9 is not read by")
        for option, values in (
            *(item for beside in _BESIDE for item in beside.items()),
            ("trained.weights", ((".*norm/scale",),)),
            ("optimizer.decay_power", (0.5,)),
            ("precision.quantized", ("int8", "nf4", "mxfp4")),
        )
    ),
    *(
        (
            {"optimizer.decay_power": (0.5,), f"optimizer.{option}": FIELDS[f"optimizer.{option}"][1:]},
            r"--config\.optimizer\.decay_power=0\.5 is not read by",
        )
        for option in ("betas", "epsilon")
    ),
    *(
        (beside | {f"trained.{name}": FIELDS[f"trained.{name}"][1:]}, r"--config\.trained\.")
        for name in ("weights", "last_layers")
        for beside in _BESIDE
    ),
    *(  # without an adapter, and so with all that adapters exclude
        ({excluding: values, name: FIELDS[name][1:]}, rf"--config\.{name}=.* is not read under")
        for name in _OF_ADAPTERS
        for excluding, values in (
            ("adapter.method", ("none",)),
            ("optimizer.name", ("muon",)),
            ("optimizer.momentum", (0.9,)),
            ("trained.weights", FIELDS["trained.weights"][1:]),
            ("trained.last_layers", FIELDS["trained.last_layers"][1:]),
            ("precision.params", ("bfloat16",)),
        )
    ),
    ({"model": ("tied",), "adapter.targets": (("head",),)}, r"--config\.adapter\.targets"),
    (
        {"optimizer.schedule": ("constant",), "optimizer.final_share": (1.0,)},
        r"--config\.optimizer\.final_share=1\.0 is not read",
    ),
    (  # whose schedule is constant
        {"optimizer.name": ("schedule_free",), "optimizer.final_share": (1.0,)},
        r"--config\.optimizer\.final_share=1\.0 is not read",
    ),
    *(
        (
            only | {name: FIELDS[name][1:]},
            rf"--config\.{re.escape(name)}=.* is not read by --config\.optimizer\.schedule",
        )
        for name in ("optimizer.decay", "optimizer.decay_shape", "checkpoint.keep_stable")
        for only in ({"optimizer.schedule": ("constant", "cosine", "linear")}, {"optimizer.name": ("schedule_free",)})
    ),
    (
        {
            "precision.frozen": FIELDS["precision.frozen"][1:],
            "adapter.method": ("none",),
            "adapter.train_new_tokens": (False,),
            "trained.weights": ((),),
            "trained.last_layers": (0,),
            "objective.kl_to_base": (0.0,),
        },
        r"--config\.precision\.frozen=\w+",
    ),
    ({"trained.last_layers": (1,), "execution.layer_layout": ("scan",)}, r"--config\.execution\.layer_layout"),
    (  # and with that all that adapters exclude
        {
            "precision.quantized": ("int8", "nf4", "mxfp4"),
            "adapter.method": ("none",),
            "adapter.train_new_tokens": (False,),
        },
        r"--config\.precision\.quantized=\w+",
    ),
    *(
        ({"precision.quantized": ("int8", "nf4", "mxfp4"), option: values}, r"--config\.precision\.quantized=\w+")
        for option, values in (
            ("optimizer.name", ("muon",)),
            ("trained.weights", FIELDS["trained.weights"][1:]),
            ("trained.last_layers", FIELDS["trained.last_layers"][1:]),
        )
    ),
    *((beside | {"precision.params": ("bfloat16",)}, r"--config\.precision\.params=bfloat16") for beside in _BESIDE),
    (
        {"precision.gradients": ("bfloat16",), "precision.matmul": ("float32",)},
        r"--config\.precision\.gradients=bfloat16",
    ),
    (  # which is for adapters
        {"precision.params": ("bfloat16",), "precision.quantized": ("int8", "nf4", "mxfp4")},
        r"--config\.precision\.quantized=\w+",
    ),
    ({"adapter.train_new_tokens": (True,), "model.new_tokens": ((),)}, r"--config\.adapter\.train_new_tokens=True"),
    (
        {"model.new_tokens_in_contents": (False,), "model.new_tokens": ((),)},
        r"--config\.model\.new_tokens_in_contents=False is not read",
    ),
    *(  # sources have options of their own, and nothing else is read
        (
            {"mixture": ("after", "before"), "data.held_out": ("",), name: values[1:]},
            rf"--config\.{re.escape(name)}=.* is not read: each source",
        )
        for name, values in FIELDS.items()
        if name.startswith("data.reading.")
    ),
    ({"experts.capacity": (1.5,), "model": ("tied", "untied")}, r"--config\.experts\.capacity=1\.5"),
    (
        {"precision.quantized": ("mxfp4",), "model": ("tied", "untied"), "adapter.method": _METHODS},
        r"--config\.precision\.quantized=mxfp4: this model has no experts",
    ),
    *((beside | {"optimizer.name": ("muon",)}, r"--config\.optimizer\.name=muon") for beside in _BESIDE),
    ({"optimizer.name": ("muon",), "trained.weights": ((".*norm/scale",),)}, r"--config\.optimizer\.name=muon"),
    (
        {"model": ("tied",), "adapter.method": _METHODS, "adapter.targets": (("head",),)},
        r"--config\.adapter\.targets",
    ),
    (
        {"model": ("tied",), "adapter.method": ("dora",), "adapter.targets": (("embedding",), (".*",))},
        r"--config\.adapter\.method=dora",
    ),
    (
        {"model": ("experts",), "adapter.method": ("dora",), "adapter.targets": (_DEFAULT_TARGETS, (".*",))},
        r"--config\.adapter\.method=dora",
    ),
    (
        {"adapter.dropout": (0.1,), "adapter.targets": (("embedding",), ("head",))},
        r"--config\.adapter\.(dropout|targets)=",
    ),
    (
        {"adapter.method": _METHODS, "adapter.dropout": (0.1,), "adapter.targets": (("embedding",), ("head",))},
        r"--config\.adapter\.(dropout|targets|method)=",  # of a tied model the targets or the method are refused first
    ),
    (
        {"adapter.initial": (_INITIAL,), "adapter.method": ("none", "dora", "pissa")},
        r"--config\.adapter\.(initial|method)=",
    ),
    *(
        (
            {"adapter.initial": (_INITIAL,), f"adapter.{name}": FIELDS[f"adapter.{name}"][1:]},
            rf"--config\.adapter\.{name}=",
        )
        for name in ("rank", "ranks", "alpha", "scaling")
    ),
    (  # ("attention/query",) is what that adapter has
        {"adapter.initial": (_INITIAL,), "adapter.targets": (("embedding",), ("head",), (".*",))},
        r"--config\.adapter\.targets=",
    ),
    ({"evaluation.patience": (2,), "checkpoint.best_metric": ("",)}, r"--config\.evaluation\.patience=2"),
    ({"evaluation.patience": (2,), "evaluation.every": ("0 steps",)}, r"--config\.evaluation\.patience=2"),
    # With a metric of held-out data, and with none, another rule refuses an evaluator's alone.
    (
        {"evaluation.patience": (2,), "data.held_out": ("",)},
        r"--config\.(evaluation\.patience=2|checkpoint\.best_metric='held_out/nll')",
    ),
    (
        {"data.held_out": ("",), "evaluators": ("given",), "checkpoint.best_metric": ("held_out/nll",)},
        r"--config\.checkpoint\.best_metric='held_out/nll'",
    ),
]


def options() -> dict[str, tuple]:
    """Every option with its values; of those in TOGETHER their labels."""
    return FIELDS | {name: tuple(labels) for name, labels in TOGETHER.items()}


def refused() -> Iterator[tuple[dict, str]]:
    """Each combination that is refused, and what the message must say."""
    for combination, message in REFUSED:
        for values in itertools.product(*combination.values()):
            yield dict(zip(combination, values, strict=True)), message


def overrides(row: dict, root: str) -> dict:
    """The fields of the config that a combination sets."""
    fields, folders = dict(FIXED), {ROOT: root, ROWS: rows_of(row, root)}
    for name, value in row.items():
        fields |= TOGETHER[name][value] if name in TOGETHER else {name: value}
    return {name: _placed(value, folders) for name, value in fields.items()}


def rows_of(row: dict, root: str) -> str:
    """The folder of a combination's rows."""
    return f"{root}/{'short' if row['data.masking.too_long'] == 'error' else 'mixed'}"


def _placed(value: object, folders: dict[str, str]) -> object:
    if isinstance(value, tuple):
        return tuple(_placed(part, folders) for part in value)
    if isinstance(value, str):
        for name, folder in folders.items():
            value = value.replace(name, folder)
    return value


def fields_of_the_config() -> set[str]:
    """Names of all fields; a section that is empty, to be filled by hand, is one."""

    def walk(config: ml_collections.ConfigDict, prefix: str) -> Iterator[str]:
        for name, value in config.items():
            if isinstance(value, ml_collections.ConfigDict) and len(value):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    return set(walk(sft.get_config(), ""))
