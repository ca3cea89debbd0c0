"""Measures a model on held-out examples: scores of the answers it writes, and the loss of the references.

    python -m sft_jax.evaluate --model=runs/x --data=held_out.jsonl --scorer=json_extraction --out=runs/x/evaluation
    python -m sft_jax.evaluate --model=smollm2-135m-instruct --data=… --out=… --examples=2 --examples_from=train.jsonl

Rows are read as in training: `--reading.prompt_template=…` is `config.data.reading.prompt_template`, and so on. With
`--compare` an earlier evaluation of the same examples is compared, example by example.
"""

import itertools

from absl import flags

from sft_jax import commands, inference_flags, reading_flags

_MODEL = flags.DEFINE_string(
    "model", None, "Run directory (with :best, :latest, :<step>) or pretrained source.", required=True
)
_DATA = flags.DEFINE_string("data", None, "Held-out rows; each ends with the reference answer.", required=True)
_SCORER = flags.DEFINE_string(
    "scorer", "exact_match", "How answers are scored: a scorer's name, or package.module:function."
)
_MATCH_THINKING = flags.DEFINE_bool("match_thinking", False, "An exact match wants the same thinking too.")
_OUT = flags.DEFINE_string("out", None, "Directory for predictions.jsonl and scores.json.", required=True)
_COMPARE = flags.DEFINE_string("compare", None, "Directory of an earlier evaluation to compare with.")
_EXAMPLES = flags.DEFINE_integer("examples", 0, "Solved examples put into the prompt.", lower_bound=0)
_EXAMPLES_FROM = flags.DEFINE_string("examples_from", None, "Training rows the solved examples are drawn from.")
_EXAMPLES_SPLIT = flags.DEFINE_string("examples_split", "", "Their split; by default --reading.split.")
_ROWS = flags.DEFINE_integer("rows", 0, "Measure only the first rows; 0: all.", lower_bound=0)
_LOSS = flags.DEFINE_bool("loss", True, "Also measure the loss of the reference answers.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the solved examples drawn, of sampling and of the bootstrap.")


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    import jax
    from etils import epath
    from rich.console import Console

    from sft_jax.data.records import iter_records, read_records
    from sft_jax.evaluation import held_out, tables
    from sft_jax.evaluation.baselines import choose_examples
    from sft_jax.progress import ProgressBars
    from sft_jax.sharding import inference_mesh

    if not _EXAMPLES.value:
        commands.refuse_unread(["examples_from", "examples_split"], "--examples, how many of them")
    sampling = inference_flags.sampling()
    commands.start_jax()
    console = Console()
    records = list(itertools.islice(iter_records(_DATA.value, reading_flags.reading()), _ROWS.value or None))
    task = held_out.Task(
        records,
        _SCORER.value,
        max_new_tokens=inference_flags.MAX_NEW_TOKENS.value,
        batch_size=inference_flags.BATCH_SIZE.value,
        sampling=sampling,
        seed=_SEED.value,
        match_thinking=_MATCH_THINKING.value,
    )
    held_out.check_task(task, epath.Path(_COMPARE.value) if _COMPARE.value else None)
    examples = []
    if _EXAMPLES.value:
        if not _EXAMPLES_FROM.value:
            raise ValueError("--examples needs --examples_from, the training rows to draw them from")
        reading = reading_flags.reading(_EXAMPLES_SPLIT.value, f"--{_EXAMPLES_SPLIT.name}")
        train = [record.conversation for record in read_records(_EXAMPLES_FROM.value, reading)]
        examples = choose_examples(train, _EXAMPLES.value, _SEED.value, [record.conversation for record in records])
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh), ProgressBars(console) as progress:
        loaded = inference_flags.load(_MODEL.value, mesh)
        references = held_out.references_of(loaded, task)
        # Before the answers are generated, which may take an hour: an example that cannot be measured is an error.
        tokenized = held_out.reference_examples(loaded, task) if _LOSS.value else None
        written = held_out.generate_answers(loaded, task, examples, progress)
        losses = None if tokenized is None else held_out.measure_loss(loaded, tokenized, mesh, progress)
    answers = held_out.in_parts(loaded, task, written, references)
    outcomes = held_out.score_answers(task, answers)
    out = epath.Path(_OUT.value)
    scores = held_out.write_evaluation(out, task, answers, outcomes, losses)
    console.print(tables.scores_table(loaded.name, scores))
    for note in filter(None, (held_out.cut_note(loaded, written), answers.note())):
        console.print(note)
    if _COMPARE.value:
        console.print(tables.comparison_table(*held_out.comparable(epath.Path(_COMPARE.value), out), _SEED.value))
    console.print(f"Answers and scores: {out}")


if __name__ == "__main__":
    commands.run(main)
