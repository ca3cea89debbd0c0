"""Speed of the data layer, from records to packed sequences, beside the `tokenizers` library alone on the same texts.

    python -m benchmarks.tokenize_and_pack --workers=2

Both use the same number of cores: the library its own threads, the data layer worker processes (with --workers=0 one
core each). The library only encodes texts, in two ways: piece by piece, keeping the ids and freeing the encodings, as
one tokenizes a large data set; and all at once, keeping the encodings, which takes more memory and saves the time to
free them. The data layer renders the conversations, finds what is trained, tokenizes, writes examples to disk, reads
them back and packs them.
"""

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags

from sft_jax.data.conversations import Chat, Message
from sft_jax.data.packing import pack_epoch, supervised_capacity
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized.example_store import ExampleStoreWriter, open_examples
from sft_jax.data.tokenizing import RECORDS_PER_CALL
from sft_jax.data.tokenizing.streaming import chunked
from sft_jax.data.tokenizing.workers import Workers, tokenized_chunks
from sft_jax.sources import load_tokenizer

_ROWS = flags.DEFINE_integer("rows", 20_000, "Number of made-up rows, of some 200 tokens each.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that tokenize; 0: this one alone.")
_REPEAT = flags.DEFINE_integer("repeat", 3, "How often each is measured; the best counts.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "smollm2-135m-instruct", "Where the tokenizer comes from.")
_SEQUENCE_LENGTH = flags.DEFINE_integer("sequence_length", 2048, "Tokens in a sequence.")
_LIBRARY = flags.DEFINE_bool("library", False, "Measure the library alone, in this process.")

_WORDS = (
    "The vehicle owner title number state registered lien holder address date issued model year make body "
    "odometer reading Springfield Honda certificate of ownership mailing previous"
)


def make_records(count: int, seed: int = 0) -> Iterator[Record]:
    """Documents of known words, numbers and names no tokenizer has seen, with a JSON answer; ~200 tokens a row."""
    rng = random.Random(seed)
    known = _WORDS.split()

    def word() -> str:
        kind = rng.random()
        if kind < 0.7:
            return rng.choice(known)
        return str(rng.randrange(10**6)) if kind < 0.85 else "".join(rng.choices("aeioulnrst", k=7)).title()

    for number in range(count):
        document = " ".join(word() for _ in range(rng.randint(20, 80)))
        answer = ", ".join(f'"{rng.choice(known)}": "{word()}"' for _ in range(4))
        question = Message("user", "Extract the fields as JSON.\n\n" + document)
        turns = (question, Message("assistant", "{" + answer + "}"))
        yield Record(f"made-up:{number}", Chat(turns), {})


def library_speeds() -> list[float]:
    """Tokens/s of `encode_batch` on the rendered texts: in pieces whose ids are taken, and all at once."""
    renderer = ConversationRenderer(load_tokenizer(_TOKENIZER.value))
    backend = renderer.tokenizer.backend_tokenizer
    examples = [record.example for record in make_records(_ROWS.value)]
    texts = [rendered[0].text for rendered in renderer.render_many(examples)]

    def in_pieces() -> int:
        pieces = (texts[start : start + RECORDS_PER_CALL] for start in range(0, len(texts), RECORDS_PER_CALL))
        return sum(len(one.ids) for piece in pieces for one in backend.encode_batch(piece, add_special_tokens=False))

    at_once = lambda: backend.encode_batch(texts, add_special_tokens=False)
    tokens = in_pieces()
    return [tokens / min(_seconds(run) for _ in range(_REPEAT.value)) for run in (in_pieces, at_once)]


def _seconds(run: Callable) -> float:
    start = time.perf_counter()
    made = run()
    seconds = time.perf_counter() - start
    del made  # to free it is not counted
    return seconds


def _library_in_its_own_process() -> list[float]:
    """Threads of the library are chosen once a process, so it gets one of its own."""
    arguments = [f"--rows={_ROWS.value}", f"--repeat={_REPEAT.value}", f"--tokenizer={_TOKENIZER.value}", "--library"]
    cores = max(_WORKERS.value, 1)
    environment = {"TOKENIZERS_PARALLELISM": str(cores > 1).lower(), "RAYON_NUM_THREADS": str(cores)}
    command = [sys.executable, "-m", "benchmarks.tokenize_and_pack", *arguments]
    return [float(speed) for speed in subprocess.check_output(command, env=os.environ | environment).split()]


def data_layer_speed(records: list[Record], renderer: ConversationRenderer) -> tuple[float, float, float]:
    """Tokens/s of all of it, the share of packing in that time, and how long workers take to start (not counted)."""
    best, share, starting = 0.0, 0.0, 0.0
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        convert = lambda chunks: tokenized_chunks(chunks, renderer, _SEQUENCE_LENGTH.value)
        if _WORKERS.value:
            convert = stack.enter_context(Workers(_WORKERS.value, renderer, _SEQUENCE_LENGTH.value)).map
        list(convert([records[:100]] * 2 * _WORKERS.value))
        starting = time.perf_counter() - start
        for _ in range(_REPEAT.value):
            tokens, seconds, packing = _once(records, convert)
            if tokens / seconds > best:
                best, share = tokens / seconds, packing / seconds
    return best, share, starting


def _once(records: list[Record], convert: Callable) -> tuple[int, float, float]:
    """Tokens, seconds of all, seconds of packing."""
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        with ExampleStoreWriter(Path(directory)) as writer:
            for part in convert(chunked(records)):
                writer.append(part)
            writer.check(len(records))
            writer.finish({}, {})
        examples = open_examples(Path(directory)).examples
        tokenized = time.perf_counter()
        sizes = examples.lengths, examples.supervised
        targets = supervised_capacity(*sizes, _SEQUENCE_LENGTH.value, 0.95)
        pack_epoch(*sizes, sequence_length=_SEQUENCE_LENGTH.value, sequence_targets=targets, seed=0, epoch=0)
        end = time.perf_counter()
    return len(examples.tokens), end - start, end - tokenized


def main(argv: list[str]) -> None:
    """Prints the rates."""
    del argv
    if _LIBRARY.value:
        print(*library_speeds())
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read when tokenizers first encodes
    records = list(make_records(_ROWS.value))
    in_pieces, at_once = _library_in_its_own_process()
    speed, packing, starting = data_layer_speed(records, ConversationRenderer(load_tokenizer(_TOKENIZER.value)))
    print(f"{_ROWS.value:,} rows, {_WORKERS.value} workers, started in {starting:.1f} s")
    cores = max(_WORKERS.value, 1)
    print(f"tokenizers alone, {cores} threads: {in_pieces:,.0f} tokens/s in pieces, {at_once:,.0f} at once")
    print(f"tokenize and pack: {speed:,.0f} tokens/s, {speed / in_pieces:.0%} and {speed / at_once:.0%} of these")
    print(f"packing is {packing:.1%} of the time")


if __name__ == "__main__":
    app.run(main)
