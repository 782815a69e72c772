"""Devices that programs are compiled for without having them: topologies and datasheets."""

import dataclasses
from typing import Any

from jax.experimental import topologies

# libtpu would look for the chips of this machine and ask a metadata server, for minutes. The
# default backend is the CPU: neither compiler has a device to run on.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

USABLE = 0.9  # share of the memory that a program may take: the rest is workspaces and runtime


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Numbers of a device's datasheet; nothing of it was measured.

    Attributes:
      name: the device.
      bfloat16: dense FLOP/s.
      float32: FLOP/s of float32 operands at default precision: TF32 on an H100, bf16 on a TPU.
      highest: the same at highest precision: float32 on an H100, 6 passes of bf16 on a TPU.
      bandwidth: bytes/s of its memory.
      memory: bytes.
    """

    name: str
    bfloat16: float
    float32: float
    highest: float
    bandwidth: float
    memory: float


H100 = Sheet("H100 SXM 80 GB", 989e12, 494e12, 67e12, 3.35e12, 80e9)
V5E = Sheet("TPU v5e", 197e12, 197e12, 197e12 / 6, 819e9, 16e9)


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Attributes:
      platform: "cuda" or "tpu".
      topology: slices × processes × devices of a GPU, or a TPU's name.
      devices: the first so many of the topology are used.
      sheet: of one device.
      slices: of a TPU, joined by a network.
    """

    platform: str
    topology: str
    devices: int
    sheet: Sheet
    slices: int = 1


TARGETS = {
    "h100": Target("cuda", "1x1x1", 1, H100),
    "4xh100": Target("cuda", "1x1x4", 4, H100),
    "8xh100": Target("cuda", "1x1x8", 8, H100),
    "2x4xh100": Target("cuda", "1x2x4", 8, H100),  # two machines
    "v5e": Target("tpu", "v5e:2x2", 1, V5E),
    "v5e:2x2": Target("tpu", "v5e:2x2", 4, V5E),
    "2xv5e:2x2": Target("tpu", "v5e:2x2", 8, V5E, slices=2),
    "v5e:4x4": Target("tpu", "v5e:4x4", 16, V5E),
}

# What XLA asks a GPU for, by NVIDIA's documents: compute capability 9.0, and the H100's sizes.
_H100_DESCRIPTION = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84929347584
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(target: Target) -> list[Any]:
    """Returns the devices of a target. One process at a time may ask for a TPU's."""
    options: dict[str, Any]
    if target.platform == "cuda":
        options = {"target_config": _H100_DESCRIPTION, "topology": target.topology}
    else:
        options = {"topology_name": target.topology}
        options |= {"num_slices": target.slices} if target.slices > 1 else {}
    described = topologies.get_topology_desc(platform=target.platform, **options)
    return list(described.devices[: target.devices])
