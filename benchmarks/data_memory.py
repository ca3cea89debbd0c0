"""Memory and time of loading data, by the number of rows: from the files with an empty cache, and from the cache.

    python -m benchmarks.data_memory --rows=10000,100000,1000000,2000000

Rows are short (some 25 tokens). Memory is anonymous memory: pages of mapped files, which the system takes back when it
needs them, do not count. Time is that of `load_data` after imports; loading the tokenizer is timed on its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from absl import app, flags

_ROWS = flags.DEFINE_list("rows", ["10000", "100000", "1000000", "2000000"], "Numbers of rows.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that tokenize.")
_ONE = flags.DEFINE_string("one", "", "Load this file in this process, and print what it took as JSON.")
_CACHE = flags.DEFINE_string("cache", "", "Cache directory of --one.")

_INTERVAL = 0.02  # seconds between two looks at memory


class PeakMemory(threading.Thread):
    """The most anonymous memory of this process, looked at again and again."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(_INTERVAL)

    def look(self) -> int:
        """Bytes now."""
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        now = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
        self.peak = max(self.peak, now)
        return now


def write_rows(path: Path, count: int) -> None:
    """Questions and answers of a few words, all different."""
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"prompt": f"Say {number} twice.", "completion": f"{number} {number}"}) + "\n")


def load_one(path: str, cache: str, workers: int) -> dict[str, float]:
    """Loads the data of a config; seconds and bytes."""
    from configs import sft
    from sft_jax.options import options_of
    from sft_jax.preparation import run_data

    config = sft.get_config().copy_and_resolve_references()
    config.data.train, config.data.cache, config.loader.tokenize_workers = path, cache, workers
    memory = PeakMemory()
    before = memory.look()
    memory.start()
    start = time.perf_counter()
    options = options_of(config)
    run_data.make_renderer(options.model, options.data)
    tokenizer = time.perf_counter() - start
    start = time.perf_counter()
    data = run_data.load_data(options)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "tokenizer": tokenizer,
        "before": before,
        "peak": memory.peak,
        "after": memory.look(),
        "tokens": len(data.examples.tokens),
    }


def _in_its_own_process(path: Path, cache: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.data_memory", f"--one={path}", f"--cache={cache}"]
    output = subprocess.check_output(
        [*command, f"--workers={_WORKERS.value}"], env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    return json.loads(output.splitlines()[-1])


def main(_: list[str]) -> None:
    """Measures and prints."""
    if _ONE.value:
        print(json.dumps(load_one(_ONE.value, _CACHE.value, _WORKERS.value)))
        return
    print("rows, tokens, from: seconds (of the tokenizer), tokens/s; MB before, peak, after")
    for count in map(int, _ROWS.value):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "train.jsonl")
            write_rows(path, count)
            for kind in ("files", "cache"):
                found = _in_its_own_process(path, Path(directory, "cache"))
                memory = ", ".join(f"{found[name] / 1e6:.0f}" for name in ("before", "peak", "after"))
                print(
                    f"{count:,}, {found['tokens']:,}, {kind}: {found['seconds']:.1f} s ({found['tokenizer']:.1f} s), "
                    f"{found['tokens'] / found['seconds']:,.0f} tokens/s; {memory}",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
