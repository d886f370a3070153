"""Adapters: small bottleneck networks, in parallel with a layer or after it.

Houlsby et al. (2019, https://arxiv.org/abs/1902.00751) put one after the attention layer and one after the
feed-forward layer. He et al. (2022, https://arxiv.org/abs/2110.04366) and AdaptFormer (Chen et al., 2022,
https://arxiv.org/abs/2205.13535) put one in parallel with the feed-forward layer; APER and RanPAC train this kind.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from everlearn.peft.delta import Delta

FUNCTIONS = {"relu": torch.relu, "gelu": nn.functional.gelu, "tanh": torch.tanh}


class Adapter(Delta):
    """y + scale · Up(f(Down(x))) in parallel form, y + scale · Up(f(Down(y))) in sequential form.

    Up is initialised with zeros, so a new adapter changes nothing.

    Args:
        width: size of the input of the site.
        out_width: size of the output of the site.
        bottleneck: size of the hidden layer.
        scale: fixed factor by which the adapter's output is multiplied.
        form: "parallel" reads the input of the site, "sequential" reads its output (Houlsby).
        function: the function f: relu, gelu or tanh.

    >>> import torch
    >>> delta, x, y = Adapter(8, 8, bottleneck=2), torch.ones(1, 8), torch.ones(1, 8)
    >>> torch.equal(delta(x, y), y)
    True
    """

    def __init__(
        self, width: int, out_width: int, *, bottleneck: int = 64, scale: float = 0.1,
        form: Literal["parallel", "sequential"] = "parallel", function: str = "relu",
    ) -> None:  # fmt: skip
        super().__init__()
        self.scale, self.form, self.function = scale, form, function
        self.down = nn.Linear(width if form == "parallel" else out_width, bottleneck)
        self.up = nn.Linear(bottleneck, out_width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The new output (n, tokens, out_width) of the site, from its input x (n, tokens, width) and its output y."""
        read = x if self.form == "parallel" else y
        return y + self.scale * self.up(FUNCTIONS[self.function](self.down(read)))
