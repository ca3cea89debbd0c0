"""Generates answers: to one prompt, to a file of prompts, or in a chat.

python -m sft_jax.generate --model=runs/x --prompt="What is the capital of France?"
python -m sft_jax.generate --model=runs/x --prompts=prompts.jsonl --out=answers.jsonl
python -m sft_jax.generate --model=runs/x --prompts=train.jsonl --out=pairs.jsonl \\
    --samples=8 --temperature=0.8 --scorer=numeric --keep=pairs            # rows to train on, of its own answers
python -m sft_jax.generate --model=runs/x                                  # a chat in the terminal
"""

import dataclasses
import sys

from absl import flags

from sft_jax import commands, inference_flags, reading_flags, scorer_flags

_MODEL = flags.DEFINE_string(
    "model", None, "Run directory (with :best, :latest, :<step>) or pretrained source.", required=True
)
_PROMPT = flags.DEFINE_string("prompt", None, "One prompt, as the user's message.")
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "Data whose prompts are answered, read as in training (--reading.…); a final answer is left out."
)
_OUT = flags.DEFINE_string(
    "out", None, "JSONL file for the answers to --prompts, beside which they are kept (OUT.answers); or the terminal."
)
_SAMPLES = flags.DEFINE_integer("samples", 1, "Answers to each of --prompts.", lower_bound=1)
_SCORER = flags.DEFINE_string(
    "scorer", "", "What answers to --prompts are worth: a name of docs/scorers.md, or package.module:function."
)
_KEEP = flags.DEFINE_enum(
    "keep",
    "all",
    ["all", "best", "pairs"],
    "Of the answers to --prompts: all; the best to each, as rows of conversations; or pairs for configs/preference.py.",
)
_KEEP_ABOVE = flags.DEFINE_float("keep_above", 0.0, "A kept or chosen answer must score more than this.", 0.0, 1.0)
_SYSTEM = flags.DEFINE_string("system", None, "System message for --prompt and the chat.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampling.")


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    import jax

    from sft_jax.sharding import inference_mesh

    if _PROMPT.value is not None and _PROMPTS.value is not None:
        raise ValueError("give --prompt or --prompts, not both")
    if _SYSTEM.value and _PROMPTS.value is not None:
        raise ValueError("--system goes with --prompt and the chat; with --prompts give --reading.system")
    if _PROMPTS.value is None:
        of_files = (holder.name for holder in (_OUT, _SAMPLES, _SCORER, _KEEP, _KEEP_ABOVE))
        names = [*of_files, "batch_size", *scorer_flags.NAMES, *reading_flags.NAMES]
        commands.refuse_unread(names, "--prompts")
    _check_samples()  # what is wrong with them is said before the model is loaded
    asked = None if _PROMPTS.value is None else _asked()
    commands.start_jax()
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = inference_flags.load(_MODEL.value, mesh)
        if asked is not None:
            _answer_file(loaded, *asked)
        elif _PROMPT.value is not None:
            prompt, problem = _prompt(loaded, [*_system(), ("user", _PROMPT.value)])
            if problem:
                raise ValueError(problem)
            _answer(loaded, _prepared(loaded), prompt)
        else:
            _chat(loaded)


def _check_samples() -> None:
    """Refuses flags that contradict one another.

    Raises:
        ValueError: names them.
    """
    sampling = inference_flags.sampling()
    if _SAMPLES.value > 1 and not sampling.temperature:
        raise ValueError(f"--samples={_SAMPLES.value}: all are the same at --temperature=0; give one above 0")
    if not _SCORER.value:
        commands.refuse_unread(scorer_flags.NAMES, "--scorer")
        if _KEEP.value != "all":
            raise ValueError(f"--keep={_KEEP.value} chooses by what answers are worth: give --scorer")
    else:
        from sft_jax.evaluation.scorers import make_scorer

        make_scorer(_SCORER.value, scorer_flags.scorer_options())
    if _KEEP.value == "all":
        commands.refuse_unread([_KEEP_ABOVE.name], "--keep=best and --keep=pairs")
    if _KEEP.value == "pairs" and _SAMPLES.value < 2:
        raise ValueError(f"--keep=pairs with --samples={_SAMPLES.value}: a pair needs two answers; give more")


def _sampler(loaded):
    from sft_jax.generation import Sampler

    return Sampler(loaded.renderer.stop_ids, slots=1, sampling=inference_flags.sampling())


def _prepared(loaded):
    from sft_jax.generation import prepare

    return prepare(loaded.model, loaded.variables)


def _system() -> list[tuple[str, str]]:
    return [("system", _SYSTEM.value)] if _SYSTEM.value else []


def _prompt(loaded, turns: list[tuple[str, str]]):
    """(ids of the conversation, why it cannot be answered, which is empty where it can)."""
    from sft_jax.data.conversations import Message
    from sft_jax.generation import problem_of_prompt

    ids = loaded.renderer.render_prompt(tuple(Message(*turn) for turn in turns))
    problem = problem_of_prompt(ids, loaded.model.config)
    return ids, f"the conversation {problem}" if problem else ""


def _answer(loaded, prepared, prompt) -> str:
    """Prints the answer as it grows, and returns it."""
    from sft_jax.generation import MAX_POSITIONS

    shown, options = "", {"max_new_tokens": inference_flags.MAX_NEW_TOKENS.value, "seed": _SEED.value}
    for answer in _sampler(loaded).stream(prepared, prompt, **options):
        # A character may be cut in the middle of its bytes: wait for the rest of it.
        whole = loaded.renderer.content_text(answer.tokens)
        text = whole.rstrip("\ufffd")
        if text.startswith(shown):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()
    if answer.finish_reason == MAX_POSITIONS:
        known = loaded.model.config.max_positions
        print(f"(cut at the last of the {known} positions that the model knows)", file=sys.stderr)
    return whole


def _chat(loaded) -> None:
    prepared = _prepared(loaded)
    print(f"Chat with {loaded.name}. /clear forgets the conversation, /exit or Ctrl-D leaves.")
    turns = _system()
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == "/exit":
            return
        if text == "/clear":
            turns = _system()
        elif text:
            prompt, problem = _prompt(loaded, [*turns, ("user", text)])
            if problem:
                print(f"{problem} /clear forgets the conversation.", file=sys.stderr)
            else:
                turns += [("user", text), ("assistant", _answer(loaded, prepared, prompt))]


def _asked():
    """The rows of --prompts, and what is asked by each."""
    from sft_jax.evaluation.own_answers import prompts_of

    return prompts_of(_PROMPTS.value, reading_flags.reading(), _SCORER.value, scorer_flags.scorer_options())


def _answer_file(loaded, records, prompts) -> None:
    from etils import epath
    from rich.console import Console

    from sft_jax.data.written_rows import lines_of
    from sft_jax.evaluation.own_answers import Judge, candidates_of, rows_of
    from sft_jax.progress import ProgressBars
    from sft_jax.runs.workdir import write_whole

    console, judge = Console(stderr=True), None
    if _SCORER.value:
        options = scorer_flags.scorer_options()
        judge = Judge(records, loaded.renderer, _SCORER.value, options, scorer_flags.MATCH_THINKING.value)
    with ProgressBars(console) as progress:
        answers = _respond(loaded, records, prompts, progress)
    candidates = [candidates_of(*each, judge) for each in zip(records, answers, strict=True)]
    made = rows_of(records, prompts, candidates, _KEEP.value, _KEEP_ABOVE.value)
    if _OUT.value is None:
        print(lines_of(made.rows), end="")
    else:
        write_whole(epath.Path(_OUT.value), lines_of(made.rows))
        made = dataclasses.replace(made, summary=f"{made.summary}: {_OUT.value}")
    console.print(made.summary, soft_wrap=True)


def _respond(loaded, records, prompts, progress):
    """The answers to each prompt; those that are kept beside --out are not computed again."""
    from etils import epath

    from sft_jax.evaluation.answer_store import AnswerStore
    from sft_jax.evaluation.requests import Generate
    from sft_jax.evaluation.responding import Respondent

    store = None if _OUT.value is None else AnswerStore(epath.Path(f"{_OUT.value}.answers"), loaded.fingerprint)
    respond = Respondent(
        _prepared(loaded),
        loaded.renderer,
        slots=inference_flags.BATCH_SIZE.value,
        seed=_SEED.value,
        store=store,
        progress=progress,
    )
    limit, sampling = inference_flags.MAX_NEW_TOKENS.value, inference_flags.sampling()
    requests = [
        Generate(prompt, limit, record.example.tools, _SAMPLES.value, sampling)
        for record, prompt in zip(records, prompts, strict=True)
    ]
    responses = respond(requests, [record.id for record in records], "generating")
    return [response.answers for response in responses]


if __name__ == "__main__":
    commands.run(main)
