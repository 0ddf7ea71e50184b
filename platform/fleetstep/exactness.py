"""The same numbers from the same GPU, in training as in sampling."""

from __future__ import annotations

import torch


def exact_on_cuda(device: torch.device) -> None:
    """No TF32 and fixed kernels, in this process from now on; a CPU has nothing to set.

    Without it losses are neither EDM's nor equal after a resume, and a network is not sampled as
    it was trained: torch leaves TF32 on for convolutions.

    Args:
        device: where the process is about to compute.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
