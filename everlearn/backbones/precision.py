"""Which precision of matrix products the hardware supports."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether the hardware supports bfloat16 matrix products natively."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported and supported()) and "bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith("flags")), "")
    except OSError:  # not Linux: no such file, and no claim of native bfloat16
        return ""
