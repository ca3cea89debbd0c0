"""The commands of an experiment, run and shown as a user would type them."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from rich.console import Console


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
