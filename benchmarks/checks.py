"""Times the checks of data, each and all of them, on made-up rows.

    taskset -c 0 python -m benchmarks.checks

Rows of 20 words asked and 60 answered (a Zipf law over 20,000 words), 100 tokens each; one in 100 is nearly another.
"""

import dataclasses
import time

import numpy as np
from absl import app, flags

from sft_jax.audit.checks import CHECKS, CheckedData, run_checks
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.records import Record
from sft_jax.data.tokenized import TokenizedExamples

_ROWS = flags.DEFINE_integer("rows", 100_000, "Number of rows.")

_WORDS, _ASKED, _ANSWERED, _TOKENS, _STOP = 20_000, 20, 60, 100, 2


def made_up(count: int, name: str, seed: int) -> list[Record]:
    """Records of words drawn by their rank; every hundredth is the one before it and a word more."""
    rng, shares = np.random.default_rng(seed), 1 / np.arange(1, _WORDS + 1)
    drawn = rng.choice(_WORDS, (count, _ASKED + _ANSWERED), p=shares / shares.sum())
    records = []
    for number, line in enumerate(drawn):
        if number % 100 == 99:
            asked, answer = (message.content for message in records[-1].example.messages)
            answer += " indeed"
        else:
            words = [f"w{word}" for word in line]
            asked, answer = " ".join(words[:_ASKED]), " ".join(words[_ASKED:])
        records.append(Record(f"{name}:{number + 1}", Chat((Message("user", asked), Message("assistant", answer))), {}))
    return records


def checked_data(count: int) -> CheckedData:
    """Training records with tokens, and a fiftieth as many held out."""
    records = made_up(count, "train", 0)
    tokens, weights = np.arange(3, 3 + _TOKENS), np.arange(_TOKENS) >= _ASKED
    tokens[-1] = _STOP
    examples = TokenizedExamples.from_examples([(tokens, weights)] * count, [record.id for record in records])
    held_out = made_up(max(count // 50, 1), "held_out", 1)
    return CheckedData(records, examples, stop_ids=(_STOP,), held_out_records=held_out)


def main(argv: list[str]) -> None:
    """Prints the seconds of each check, then of all and of the quick ones."""
    del argv
    data = checked_data(_ROWS.value)
    names, at = list(CHECKS), [time.perf_counter()]

    def show(done: int, _: int) -> None:
        at.append(time.perf_counter())
        print(f"{names[done - 1]:>20} {at[-1] - at[-2]:7.2f} s")

    run_checks(data, show)
    print(f"{'all':>20} {at[-1] - at[0]:7.2f} s")
    fresh = dataclasses.replace(data)  # without what the checks computed and kept
    start = time.perf_counter()
    run_checks(fresh, quick=True)
    print(f"{'the quick ones':>20} {time.perf_counter() - start:7.2f} s")


if __name__ == "__main__":
    app.run(main)
