"""Generates answers: to one prompt, to a file of prompts, or in a chat.

python -m sft_jax.generate --model=runs/x --prompt="What is the capital of France?"
python -m sft_jax.generate --model=runs/x --prompts=prompts.jsonl --out=answers.jsonl
python -m sft_jax.generate --model=runs/x                                  # a chat in the terminal
"""

import json
import sys

from absl import flags

from sft_jax import commands, inference_flags, reading_flags

_MODEL = flags.DEFINE_string(
    "model", None, "Run directory (with :best, :latest, :<step>) or pretrained source.", required=True
)
_PROMPT = flags.DEFINE_string("prompt", None, "One prompt, as the user's message.")
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "Data whose prompts are answered, read as in training (--reading.…); a final answer is left out."
)
_OUT = flags.DEFINE_string("out", None, "JSONL file for the answers to --prompts; by default the terminal.")
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
        commands.refuse_unread(["out", "batch_size", *reading_flags.NAMES], "--prompts")
    inference_flags.sampling()  # what is wrong with it is said before the model is loaded
    commands.start_jax()
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = inference_flags.load(_MODEL.value, mesh)
        if _PROMPTS.value is not None:
            _answer_file(loaded)
        elif _PROMPT.value is not None:
            prompt, problem = _prompt(loaded, [*_system(), ("user", _PROMPT.value)])
            if problem:
                raise ValueError(problem)
            _answer(loaded, _prepared(loaded), prompt)
        else:
            _chat(loaded)


def _sampler(loaded, slots: int):
    from sft_jax.generation import Sampler

    return Sampler(loaded.renderer.stop_ids, slots=slots, sampling=inference_flags.sampling())


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
    for answer in _sampler(loaded, 1).stream(prepared, prompt, **options):
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


def _answer_file(loaded) -> None:
    from etils import epath
    from rich.console import Console

    from sft_jax.data.records import read_prompts
    from sft_jax.generation import problem_of_prompt
    from sft_jax.progress import ProgressBars

    console = Console(stderr=True)
    records = read_prompts(_PROMPTS.value, reading_flags.reading())
    prompts = [loaded.renderer.render_prompt(record.conversation, record.example.tools) for record in records]
    for record, prompt in zip(records, prompts, strict=True):
        if problem := problem_of_prompt(prompt, loaded.model.config):
            raise ValueError(f"the prompt of {record.id} {problem}")
    with ProgressBars(console) as progress:
        answers = _sampler(loaded, inference_flags.BATCH_SIZE.value).generate(
            _prepared(loaded),
            prompts,
            max_new_tokens=inference_flags.MAX_NEW_TOKENS.value,
            seed=_SEED.value,
            progress=progress("generating", len(prompts)),
        )
    lines = []
    for record, (answer,) in zip(records, answers, strict=True):
        text = loaded.renderer.content_text(answer.tokens)
        line = {"id": record.id, "answer": text, "ended": answer.stopped, "finish_reason": answer.finish_reason}
        lines.append(json.dumps(line, ensure_ascii=False))
    if _OUT.value is None:
        print("\n".join(lines))
    else:
        epath.Path(_OUT.value).write_text("\n".join(lines) + "\n")
        console.print(f"{len(lines)} answers: {_OUT.value}")


if __name__ == "__main__":
    commands.run(main)
