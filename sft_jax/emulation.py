"""Devices emulated on the CPU of one machine, and enough XLA threads that their collectives do not deadlock.

JAX emulates devices where `jax_num_cpu_devices` or `--xla_force_host_platform_device_count` in XLA_FLAGS asks for them.
In XLA's CPU runtime a collective blocks its thread until all devices have reached it. A collective that does not depend
on a loop (the norm of the parameters, say) may run beside the collectives in that loop, a scan over layers or
micro-batches, and which of the two a device reaches first differs from device to device. With only as many threads as
devices, which is the default on a small machine, all of them then wait: some devices in the loop, the others beside it.
"""

import os
import re
from collections.abc import MutableMapping

# Of an emulated device, in one program: a collective beside loops, one in each loop that runs at that time, and room.
_THREADS_PER_DEVICE = 8
_THREADS = "PJRT_NPROC"  # XLA takes the number of its threads from it, when it makes the devices
_FORCED = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def reserve_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Gives XLA threads for all emulated devices, unless the environment says how many; one device needs none.

    To be called before JAX makes its devices (`jax.devices()`, the first array): later it has no effect.

    Args:
        environment: whose XLA_FLAGS are read and whose PJRT_NPROC is set.
    """
    devices = emulated_devices(environment)
    if devices > 1 and not environment.get(_THREADS):
        environment[_THREADS] = str(max(_THREADS_PER_DEVICE * devices, os.cpu_count() or 1))


def emulated_devices(environment: MutableMapping[str, str] = os.environ) -> int:
    """How many CPU devices JAX is asked to make in this process; 0 where nothing is said."""
    import jax

    asked = jax.config.jax_num_cpu_devices
    if asked > 0:
        return asked
    forced = _FORCED.findall(environment.get("XLA_FLAGS", ""))
    return int(forced[-1]) if forced else 0
