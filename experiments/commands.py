"""The commands of an experiment, run and shown as a user would type them."""

import dataclasses
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

SMALL_CONFIG = "configs/quickstart.py"  # LoRA on a small model, in sequences of 512 tokens, for two CPU cores
SEED = 0


@dataclasses.dataclass(frozen=True)
class Commands:
    """What all commands of an experiment have in common.

    Attributes:
        console: where they are shown.
        matmul: dtype of the inputs of matrix products.
    """

    console: Console
    matmul: str

    def train(self, run: Path, changes: Mapping[str, object]) -> None:
        """Trains the run of a directory, or goes on with it.

        Args:
            run: its directory.
            changes: of the config, by path. Unless they say otherwise, the run measures nothing itself.
        """
        measures_nothing = {"data.held_out": "", "evaluation.every": "0 steps"}
        changed = {**measures_nothing, "seed": SEED, "precision.matmul": self.matmul, **changes}
        overrides = [f"--config.{path}={value}" for path, value in changed.items()]
        run_command("sft_jax.train", [f"--config={SMALL_CONFIG}", f"--workdir={run}", *overrides], self.console)

    def evaluate(self, out: Path, given: Mapping[str, object]) -> None:
        """Measures one task, and keeps answers and results in a directory.

        Args:
            out: the directory.
            given: flags of the command, by name. Unless they say otherwise, the loss of right answers is not measured.
        """
        self._run("sft_jax.evaluate", {"loss": False, "seed": SEED, **given, "out": out})

    def generate(self, out: Path, given: Mapping[str, object]) -> None:
        """Writes answers into a file.

        Args:
            out: the file.
            given: flags of the command, by name.
        """
        self._run("sft_jax.generate", {**given, "out": out})

    def _run(self, module: str, given: Mapping[str, object]) -> None:
        arguments = [f"--{name}={value}" for name, value in {"matmul": self.matmul, **given}.items()]
        run_command(module, arguments, self.console)


def run_command(module: str, arguments: Sequence[str], console: Console) -> None:
    """Shows `python -m module arguments` and runs it; ends with its exit code if it fails or is interrupted."""
    console.print(f"[dim]{shlex.join(['python', '-m', module, *arguments])}[/dim]", soft_wrap=True)
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # it saves and leaves with a code, so do we
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:  # the command has it too, saves and leaves
            continue
    signal.signal(signal.SIGTERM, before)
    if code:
        sys.exit(code)
