"""Standard error without what the CUDA plugin says where there is no driver."""

import subprocess
import sys

SAID = """
import os
from sft_jax.planning import plugin_notes
with plugin_notes.left_out():
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
    os.write(2, b"I0000 1 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.\\n")
    os.write(2, b"something else\\n")
os.write(2, b"afterwards\\n")
"""


def test_only_these_notes_are_left_out():
    done = subprocess.run([sys.executable, "-c", SAID], capture_output=True, text=True)
    assert done.stderr == "something else\nafterwards\n"
