"""xianliao-train with FSDP2 on CPUs, which Accelerate only offers on GPUs: python -m tests.training.sharded FLAGS…"""

from __future__ import annotations

import sys

from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin

import training.run
from training.cli import main


def sharding_accelerator(**options) -> Accelerator:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    accelerator = Accelerator(fsdp_plugin=plugin, **options)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


if __name__ == "__main__":
    training.run.Accelerator = sharding_accelerator
    sys.exit(main(sys.argv[1:]))
