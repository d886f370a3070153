"""kNN: the nearest stored features vote, beside a head solved on all of them (Khandelwal et al., 2020)."""

from __future__ import annotations

from typing import Literal

from everlearn.backbones.backbone import Backbone
from everlearn.heads.knn import KNN as Head
from everlearn.method import Tags
from everlearn.methods.simplecil import SimpleCIL
from everlearn.settings import Count, Factor, LargeCount, Seed, Share


class KNN(SimpleCIL):
    """Generalization through Memorization: Nearest Neighbor Language Models. Khandelwal, Levy, Jurafsky,
    Zettlemoyer & Lewis, ICLR 2020, https://arxiv.org/abs/1911.00172

    Freeze the encoder and keep the feature of every example. The probability of a class is λ times the vote of the
    k nearest features, each with the weight exp(-distance² / T), plus 1 - λ times that of a head which is solved on
    all of them. The paper mixes the words that followed similar contexts with a language model; here the labels of
    similar examples are mixed with a classifier.

    To learn is to add a feature, and to forget is to remove it: afterwards the scores are, to the bit, those of never
    having seen the example, as long as no more than `rows` were seen. It does not depend on the order or the number of
    tasks. As with `logistic`, part of what an example said can be told from its feature.

    Args:
        backbone: a pre-trained encoder, frozen.
        head: what the vote is mixed with: "logistic", "lda" or "ridge".
        interpolation: λ, from 0 (the head alone) to 1 (the vote alone). Each "auto" is chosen on a held-out
            fifth of the kept features, after every task.
        neighbours: k.
        temperature: T, by which squared distances of features of length one are divided.
        rows: most examples whose features are kept; where there are more, a sample of them.
        seed: of the choice of rows, where there are more.

    Relations: `logistic` is λ = 0; `retrieval_augmented` has the encoder read the neighbours instead.

    >>> from everlearn import backbones
    >>> KNN(backbones.load("tiny"), interpolation=1.0, neighbours=5, temperature=0.1).head.chosen.tolist()
    [1.0, 5.0, 0.1]
    """

    tags = Tags(family="representation", trains="nothing", retrains=True, exact=True)

    def __init__(
        self, backbone: Backbone, *, head: Literal["logistic", "lda", "ridge"] = "logistic",
        interpolation: Share | Literal["auto"] = "auto", neighbours: Count | Literal["auto"] = "auto",
        temperature: Factor | Literal["auto"] = "auto", rows: LargeCount = 100_000, seed: Seed = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, seed=seed)
        self.head = Head(
            backbone.width, parametric=head, interpolation=interpolation, neighbours=neighbours,
            temperature=temperature, rows=rows, seed=seed, rounding=backbone.rounding,
        )  # fmt: skip

    def diagnostics(self) -> dict[str, float]:
        """λ, k and T as they were chosen last."""
        return dict(zip(("interpolation", "neighbours", "temperature"), self.head.chosen.tolist(), strict=True))
