"""Flags that describe what `python -m sft_jax.evaluate` measures, where no config does."""

from absl import flags

from sft_jax import commands, inference_flags, reading_flags, scorer_flags

_DATA = flags.DEFINE_string("data", "", "Held-out rows; each ends with the reference answer.")
_KIND = flags.DEFINE_string("kind", "generate", "generate, choose, recite, prefer, or package.module:Class.")
_SCORER = flags.DEFINE_string(
    "scorer", "exact_match", "How written answers are scored: a name of docs/scorers.md, or package.module:function."
)
_CHOICES = flags.DEFINE_list("choices", [], "Of --kind=choose; by default all answers that occur.")
_CHOICES_COLUMN = flags.DEFINE_string("choices_column", "", "Of --kind=choose: column with the choices of each row.")
_CHOOSE_BY = flags.DEFINE_enum(
    "choose_by", "logprob", ["logprob", "per_token", "unconditional"], "How choices are compared."
)
_SAMPLES = flags.DEFINE_integer("samples", 1, "Answers to each prompt, for pass@k.", lower_bound=1)
_ROWS = flags.DEFINE_integer("rows", 0, "Measure only the first rows; 0: all.", lower_bound=0)
_LOSS = flags.DEFINE_bool("loss", True, "Also measure the loss of the reference answers.")
_EXAMPLES = flags.DEFINE_integer("examples", 2, "Of few_shot: solved examples in a prompt.", lower_bound=1)
_EXAMPLES_FROM = flags.DEFINE_string("examples_from", "", "Of few_shot: training rows they are taken from.")
_EXAMPLES_SPLIT = flags.DEFINE_string("examples_split", "", "Their split; by default --reading.split.")
_CHOOSE_EXAMPLES = flags.DEFINE_enum(
    "choose_examples", "seed", ["seed", "first", "nearest"], "Of few_shot: drawn, the first ones, or the nearest ones."
)
_INSTRUCTION = flags.DEFINE_multi_string("instruction", [], "Of prompted: the system message; several: the best.")
_DEVELOPMENT = flags.DEFINE_string("development", "", "Of prompted: rows on which the best instruction is chosen.")
_CORPUS = flags.DEFINE_string("corpus", "", "Of rag: files of text, Markdown or rows.")
_PASSAGES = flags.DEFINE_integer("passages", 3, "Of rag: in a prompt, at most.", lower_bound=1)
_SEARCH = flags.DEFINE_enum("search", "bm25", ["bm25", "dense", "hybrid"], "Of rag: how passages are found.")
_RELEVANT_COLUMN = flags.DEFINE_string(
    "relevant_column", "", "Of rag: column with the ids of the documents that answer a row, to judge the search."
)
_PROBE = flags.DEFINE_bool("probe", False, "The rows ask what the model could do before: a drop is forgetting.")
_MAX_REGRESSION = flags.DEFINE_float(
    "max_regression", 0.0, "Of --probe: a score that is worse by more is exit status 4; 0: none is.", lower_bound=0.0
)
TENSOR = flags.DEFINE_integer("tensor", 1, "Devices over which weights are split.", lower_bound=1)

_OF_ONE_TASK = (
    *(
        "data",
        "kind",
        "scorer",
        *scorer_flags.NAMES,
        "choices",
        "choices_column",
        "choose_by",
        "samples",
        "rows",
        "loss",
    ),
    *("examples", "examples_from", "examples_split", "choose_examples", "instruction", "development", "corpus"),
    *("passages", "search", "relevant_column", "probe", "max_regression", "max_new_tokens", "batch_size"),
    *("temperature", "top_k", "top_p", *reading_flags.NAMES),
)
_OF_METHODS = {
    "few_shot": ("examples", "examples_from", "examples_split", "choose_examples"),
    "prompted": ("instruction", "development"),
    "rag": ("corpus", "passages", "search", "relevant_column"),
}
_TASK = "task"


def refuse_unread(methods) -> None:
    """Refuses flags of methods that are not asked for.

    Raises:
        ValueError: there are some; names them.
    """
    parts = {part for method in methods for part in method.parts}
    for part, names in _OF_METHODS.items():
        if part not in parts:
            commands.refuse_unread(names, f"--methods={part}")


def options_of(config):
    """What is measured: `config.evaluation`, or what the flags say where there is no config.

    Raises:
        ValueError: there is no task, or flags beside a config that describe one.
    """
    from sft_jax.options import options_of as all_options
    from sft_jax.training.checks import check_config

    if config is None:
        return _options_of_flags()
    commands.refuse_unread(_OF_ONE_TASK, "a task without --config; set its fields instead: --config.evaluation.…")
    check_config(config)
    if not config.evaluation.tasks:
        raise ValueError(
            "config.evaluation.tasks is empty: there is nothing to measure. Add a task to the config, or leave "
            "--config out and give --data"
        )
    return all_options(config).evaluation


def _options_of_flags():
    from sft_jax.evaluation.tasks.checks import problems_in_task
    from sft_jax.options import EvaluationOptions, FewShotOptions, PromptingOptions, RetrievalOptions, TaskOptions
    from sft_jax.retrieval import PASSAGE_TEMPLATE, TEMPLATE

    if not _DATA.value:
        raise ValueError("give --data, the held-out rows, or --config with tasks")
    if not _PROBE.value:
        commands.refuse_unread([_MAX_REGRESSION.name], f"--{_PROBE.name}")
    sampling = inference_flags.sampling()
    task = TaskOptions(
        path=_DATA.value,
        reading=reading_flags.reading(),
        kind=_KIND.value,
        rows=_ROWS.value,
        scorer=_SCORER.value,
        scorer_options=scorer_flags.scorer_options(),
        match_thinking=scorer_flags.MATCH_THINKING.value,
        max_new_tokens=inference_flags.MAX_NEW_TOKENS.value,
        samples=_SAMPLES.value,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        choices=tuple(_CHOICES.value),
        choices_column=_CHOICES_COLUMN.value,
        choose_by=_CHOOSE_BY.value,
        loss=_LOSS.value,
        probe=_PROBE.value,
        relevant_column=_RELEVANT_COLUMN.value,
    )
    if problems := problems_in_task(_TASK, task, "--"):
        raise ValueError("\n".join(problems))
    retrieval = RetrievalOptions(
        corpus=_CORPUS.value,
        row_template="{text}",
        id_column="",
        chunk_words=150,
        overlap_words=30,
        method=_SEARCH.value,
        passages=_PASSAGES.value,
        template=TEMPLATE,
        passage_template=PASSAGE_TEMPLATE,
    )
    return EvaluationOptions(
        every="",
        batch_sequences=8,
        samples=0,
        sample_tokens=0,
        patience=0,
        tasks={_TASK: task},
        tasks_every="",
        slots=inference_flags.BATCH_SIZE.value,
        max_regression=_MAX_REGRESSION.value,
        few_shot=FewShotOptions(_EXAMPLES_FROM.value, _EXAMPLES.value, _CHOOSE_EXAMPLES.value),
        prompting=PromptingOptions(tuple(_INSTRUCTION.value), _DEVELOPMENT.value),
        retrieval=retrieval,
    )


def examples(options, config) -> list:
    """The rows that solved examples are taken from.

    Raises:
        ValueError: none are named.
    """
    from sft_jax.data.reading import reading_of
    from sft_jax.data.records import read_records

    if config is not None:
        path, reading = options.few_shot.path or config.data.train, reading_of(config.data.reading)
    else:
        path = options.few_shot.path
        reading = reading_flags.reading(_EXAMPLES_SPLIT.value, f"--{_EXAMPLES_SPLIT.name}")
    if not path:
        raise ValueError(
            "method few_shot: give the rows that solved examples are taken from, --examples_from or "
            "--config.evaluation.few_shot.path"
        )
    return read_records(path, reading)
