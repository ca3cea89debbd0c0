"""Speed of the data layer: tokens/s of rendering, tokenizing and packing on one core.

    TOKENIZERS_PARALLELISM=false taskset -c 0 python -m benchmarks.tokenize_and_pack --rows=10000

The target is 200,000 tokens/s on rows of some 200 tokens.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core; read when tokenizers first encodes

import random
import time

from absl import app, flags

from sft_jax.data.conversations import Chat, Message
from sft_jax.data.packing import pack_epoch, supervised_capacity
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenizing import tokenize_records
from sft_jax.sources import load_tokenizer

_ROWS = flags.DEFINE_integer("rows", 10_000, "Number of made-up rows.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "smollm2-135m-instruct", "Where the tokenizer comes from.")
_ROW_TOKENS = flags.DEFINE_integer("row_tokens", 2048, "Tokens in a row of the batch.")

_WORDS = (
    "The vehicle owner title number state registered lien holder address date issued model year make body "
    "odometer reading Springfield Honda certificate of ownership mailing previous"
)


def make_records(count: int, seed: int = 0) -> list[Record]:
    """Documents of known words, numbers and names no tokenizer has seen, with a JSON answer; ~200 tokens a row."""
    rng = random.Random(seed)
    known = _WORDS.split()

    def word() -> str:
        kind = rng.random()
        if kind < 0.7:
            return rng.choice(known)
        return str(rng.randrange(10**6)) if kind < 0.85 else "".join(rng.choices("aeioulnrst", k=7)).title()

    records = []
    for number in range(count):
        document = " ".join(word() for _ in range(rng.randint(20, 80)))
        answer = ", ".join(f'"{rng.choice(known)}": "{word()}"' for _ in range(4))
        question = Message("user", "Extract the fields as JSON.\n\n" + document)
        turns = (question, Message("assistant", "{" + answer + "}"))
        records.append(Record(f"made-up:{number}", Chat(turns), {}))
    return records


def main(argv: list[str]) -> None:
    """Prints the rates."""
    del argv
    records = make_records(_ROWS.value)
    renderer = ConversationRenderer(load_tokenizer(_TOKENIZER.value))
    renderer.render(records[0].conversation)  # compiles the template
    start = time.perf_counter()
    rows, dropped = tokenize_records(records, renderer, _ROW_TOKENS.value)
    tokenized = time.perf_counter()
    targets = supervised_capacity(rows.lengths, rows.supervised, _ROW_TOKENS.value, 0.95)
    bins = pack_epoch(rows.lengths, rows.supervised, row_tokens=_ROW_TOKENS.value, row_targets=targets, seed=0, epoch=0)
    packed = time.perf_counter()
    tokens = len(rows.tokens)
    print(f"rows {len(rows)} (dropped {len(dropped)}), tokens {tokens}, tokens a row {tokens / len(rows):.0f}")
    print(f"bins {len(bins)}, efficiency {tokens / len(bins) / _ROW_TOKENS.value:.4f}, target slots {targets}")
    print(
        f"tokenize and pack: {tokens / (packed - start):,.0f} tokens/s; "
        f"packing is {(packed - tokenized) / (packed - start):.1%} of the time"
    )


if __name__ == "__main__":
    app.run(main)
