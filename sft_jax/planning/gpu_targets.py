"""What XLA has to know of a GPU to compile for it where there is none.

The figures are facts of the cards, as openxla/xla describes them (xla/backends/gpu/target_config/specs); what no
compiler pass reads is left out.
"""

import dataclasses

from sft_jax.hardware import Hardware


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU.

    Attributes:
        compute_capability: major and minor version.
        cores: streaming multiprocessors.
        fpus_per_core: float32 units of one.
        clock_ghz: of the cores.
        l2_bytes: of its cache.
        shared_bytes: memory that the threads of a core share.
        shared_bytes_of_block: of that, what a block of threads can have.
        bandwidth: of its memory, in bytes/s, as XLA computes it from clock and width.
    """

    compute_capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    clock_ghz: float
    l2_bytes: int
    shared_bytes: int
    shared_bytes_of_block: int
    bandwidth: int


_A100 = Target((8, 0), 108, 64, 1.41, 41943040, 167936, 166912, 2039040000000)
_H100 = Target((9, 0), 132, 128, 1.98, 52428800, 233472, 232448, 3352320000000)

TARGETS = {
    "a100-40gb": dataclasses.replace(_A100, bandwidth=1555200000000),
    "a100-80gb": _A100,
    "h100": _H100,
    "h200": dataclasses.replace(_H100, bandwidth=4800000000000),
    "b200": Target((10, 0), 148, 128, 1.965, 132644864, 233472, 232448, 7672320000000),
}


def target_config(hardware: Hardware) -> str:
    """The text of a GpuTargetConfigProto.

    Args:
        hardware: a GPU in TARGETS.
    """
    target = TARGETS[hardware.name]
    major, minor = target.compute_capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {target.shared_bytes}
  threads_per_core_limit: 2048
  core_count: {target.cores}
  fpus_per_core: {target.fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {target.bandwidth}
  l2_cache_size: {target.l2_bytes}
  clock_rate_ghz: {target.clock_ghz}
  device_memory_size: {hardware.memory_bytes}
  shared_memory_per_block_optin: {target.shared_bytes_of_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{hardware.device_kinds[-1]}"
"""
