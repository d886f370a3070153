"""Attention in plain products, which trains faster than torch's own kernels in bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """Inside the `with` statement, scaled dot-product attention is softmax(Q Kᵀ / √d) V, in the precision of Q.

    Torch's plain kernel computes the softmax and its gradient in float32, and its fused kernel has a slow backward pass
    in bfloat16. Prefixes are added by a mode inside this one (`peft/prefix.py`), so they arrive here.

    >>> query, key, value = torch.randn(3, 1, 2, 5, 4).unbind()
    >>> with PlainAttention():
    ...     plain = F.scaled_dot_product_attention(query, key, value)
    >>> torch.allclose(plain, F.scaled_dot_product_attention(query, key, value), atol=1e-6)
    True
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _attend(*args, **(kwargs or {}))


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, **more: Any,
) -> torch.Tensor:  # fmt: skip
    """As torch's function of this signature; what encoders do not use is left to it."""
    if dropout_p or is_causal or any(more.values()):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # Added, not filled in: of the many heads, only one small tensor is filled. Not -inf, whose softmax may be NaN.
        lowest = torch.finfo(scores.dtype).min
        attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, lowest)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1).to(value.dtype) @ value
