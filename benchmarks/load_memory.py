"""Host memory that loading a checkpoint onto eight devices takes beyond the parameters themselves.

    python -m benchmarks.load_memory [--gib=2] [--family=gpt_oss]

Makes a checkpoint of each family of `benchmarks.checkpoints` in a temporary directory, as published files store it,
loads it in both layer layouts, and prints the peak of anonymous memory (mapped files do not count), less what was held
before and what the parameters need. Memory of the emulated devices is memory of the host: what is on its way from one
device to another counts too.
"""

import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from absl import app, flags

from benchmarks.checkpoints import FAMILIES, write

_GIB = flags.DEFINE_float("gib", 2.0, "Size of the checkpoint.", lower_bound=0.01)
_LAYOUT = flags.DEFINE_enum("layout", "", ["", "scan", "unrolled"], "Measure one layout, in this process.")
_DIRECTORY = flags.DEFINE_string("directory", "", "The checkpoint to measure with.")
_FAMILY = flags.DEFINE_enum("family", "", ["", *FAMILIES], "One family; by default all.")
DEVICES = 8


def main(_: list[str]) -> None:
    """Measures and prints."""
    if _LAYOUT.value:
        _measure(Path(_DIRECTORY.value), _LAYOUT.value)
        return
    for family in [_FAMILY.value] if _FAMILY.value else FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            largest = write(family, _GIB.value, Path(directory))
            print(f"{family}: largest tensor {largest / 2**20:.0f} MiB in the file", flush=True)
            for layout in ("scan", "unrolled"):
                command = [sys.executable, "-m", "benchmarks.load_memory", f"--layout={layout}"]
                subprocess.run([*command, f"--directory={directory}"], check=True)


def _anonymous() -> int:
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def _measure(directory: Path, layout: str) -> None:
    import jax

    jax.config.update("jax_num_cpu_devices", DEVICES)
    from sft_jax.models.loading import decoder_config, load_params
    from sft_jax.sharding import make_mesh, placement
    from sft_jax.sources import open_checkpoint

    mesh = make_mesh({"replica": 1, "fsdp": 4, "expert": 1, "tensor": 2}, jax.devices())
    checkpoint = open_checkpoint(directory)
    peak, stop = 0, threading.Event()
    before = _anonymous()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    params = load_params(checkpoint, decoder_config(checkpoint), layout, "bfloat16", placement(mesh))
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(
        f"{layout}: parameters {held / 2**20:.0f} MiB, peak beyond them {(peak - before - held) / 2**20:.0f} MiB, "
        f"{seconds:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    app.run(main)
