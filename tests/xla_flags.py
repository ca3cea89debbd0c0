"""Flags of XLA for the tests: of those asked for, the ones that the installed XLA knows.

A flag that XLA does not know ends the process when it makes its first device, and flags come and go with its releases.
"""

import os
import re
import subprocess
import sys
from collections.abc import MutableMapping, Sequence

_UNKNOWN = re.compile(r"Unknown flags? in XLA_FLAGS:(.*)")
# No core file of the process that is meant to end.
_START = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); import jax; jax.devices()"


def add(flags: Sequence[str], environment: MutableMapping[str, str] = os.environ) -> None:
    """Puts the flags that XLA knows into XLA_FLAGS, where they are not yet; to be called before JAX makes a device."""
    set_before = environment.get("XLA_FLAGS", "").split()
    missing = [flag for flag in flags if flag not in set_before]
    if missing:  # processes started by a test, and xdist's, find them there
        environment["XLA_FLAGS"] = " ".join([*set_before, *known(missing)])


def known(flags: Sequence[str]) -> list[str]:
    """The flags, `--xla_name=value` each, without those that XLA does not know: a process with them all is asked.

    Raises:
        RuntimeError: the process ended for another reason.
    """
    alone = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run([sys.executable, "-c", _START], env=alone, capture_output=True, text=True)
    if done.returncode == 0:
        return list(flags)
    refused = _UNKNOWN.search(done.stderr)
    if refused is None:
        raise RuntimeError(f"XLA_FLAGS={alone['XLA_FLAGS']}: {done.stderr}")
    unknown = refused[1].split()
    return [flag for flag in flags if flag not in unknown]
