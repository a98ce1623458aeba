"""How fast this machine's product instructions are: the limit of encode."""

from __future__ import annotations

import torch

from patchsae_kernels.cpu.extension import available, missing, native


def spend(operations: int) -> None:
    """Run about so many operations (a multiply-add is two) on all of torch's threads, on registers alone.

    Of the widest product that encode uses at the level in force: bfloat16 from ``avx512bf16`` on, float32 below.

    Raises:
        RuntimeError: the extension is absent.
    """
    if not available:
        raise RuntimeError(f"the compiled extension is absent: {missing}")
    threads = torch.get_num_threads()
    native.peak(max(1, operations // native.peak(1, threads)), threads)
