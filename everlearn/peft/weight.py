"""Other weights for a layer of the backbone, which computes with them while the delta is active."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from everlearn.peft.delta import Delta, Site

if TYPE_CHECKING:
    from everlearn.backbones.backbone import Backbone


class Reweighted(Delta):
    """A layer computes with `weights()` in place of its own weights. These are neither changed nor copied, and a pass
    costs no further product. Subclasses define `weights`.

    >>> import torch
    >>> class Negated(Reweighted):
    ...     def weights(self):
    ...         return {"weight": -self.site.weight}
    >>> layer, x = nn.Linear(2, 2, bias=False), torch.ones(1, 2)
    >>> delta = Negated().attach(Site("layer", layer, layer, 2, 2))
    >>> changed = layer(x)
    >>> delta.detach()
    >>> torch.equal(changed, -layer(x))
    True
    """

    leaves_after_errors = True

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the layer that are replaced, by name, each of the same shape."""
        raise NotImplementedError(f"{type(self).__name__} must define weights()")

    def _on_enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.is_active:
            # An attribute of the instance is found before a parameter, which torch keeps in a dictionary of its own.
            vars(module).update(self.weights())

    def _on_leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for name in ("weight", "bias"):
            vars(module).pop(name, None)


class Weight(Reweighted):
    """A weight and a bias that can be trained while those of the layer stay. At first they are equal.

    Args:
        site: of a linear layer.

    >>> import torch
    >>> layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    >>> site = Site("layer", layer, layer, 2, 2)
    >>> before, delta = layer(x), Weight(site).attach(site)
    >>> torch.equal(layer(x), before)
    True
    """

    bias: nn.Parameter | None

    def __init__(self, site: Site) -> None:
        super().__init__()
        layer = site.leave
        assert isinstance(layer, nn.Linear)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def weights(self) -> dict[str, Tensor]:
        return {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}


def linear_sites(backbone: Backbone) -> list[Site]:
    """The sites of all linear layers in the blocks of a backbone, first to last.

    >>> from everlearn import backbones
    >>> len(linear_sites(backbones.load("tiny")))
    12
    """
    sites = [site for index in range(backbone.depth) for site in backbone.block(index).operations]
    return [site for site in sites if isinstance(site.leave, nn.Linear)]
