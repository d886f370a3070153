"""Locked-image tuning on stored features: projections that join two frozen encoders, trained on images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everlearn.backbones.backbone import Backbone
from everlearn.backbones.image_text import TEMPLATES
from everlearn.backbones.lit import Pair
from everlearn.errors import EverlearnError
from everlearn.heads.least_squares import solve_shifted
from everlearn.progress import Progress
from everlearn.seeds import seeded
from everlearn.streams.stream import Examples

LAMBDAS = (0.01, 0.1, 1.0, 10.0)
SCALE = 20.0  # what training starts from; it is learned
HELD_OUT = 0.1


@dataclass(frozen=True)
class Trained:
    """What training has found.

    Args:
        pair: the projections.
        held_out: zero-shot accuracy on the classes or captions that were not trained on, whose number is `unseen`: of
            the closed form, and after every epoch.
        epochs: how many of them the pair has had: those that were best for what was held out.
    """

    pair: Pair
    held_out: list[float]
    unseen: int
    epochs: int


def train(
    image: Backbone, text: Backbone, examples: Examples, names: Sequence[str], *,
    templates: Sequence[str] = TEMPLATES, epochs: int = 20, batch_size: int = 512, lr: float = 1e-3, seed: int = 0,
    progress: bool = False,
) -> Trained:  # fmt: skip
    """Join two frozen encoders. "LiT: Zero-Shot Transfer with Locked-image text Tuning", Zhai, Wang, Mustafa, Steiner,
    Keysers, Kolesnikov & Beyer, CVPR 2022, https://arxiv.org/abs/2111.07991, with both encoders locked.

    A tenth of the classes is held out. Ridge regression from the features of texts to those of their images is the
    start; then both projections are trained by the contrastive loss in both directions (AdamW). The strength of the
    ridge and the number of epochs are those with the highest zero-shot accuracy on the held-out classes.

    Args:
        examples: images; a label is the number of a name.
        names: what the images of each label show: class names, or captions.
        templates: sentences that a name is put into, at {}.
        epochs: at most; 0 keeps the closed form.
        lr: learning rate of the projections; the scale is learned with ten times of it.
        progress: whether to show a progress bar.

    Returns:
        The projections, and how well they tell classes that they were not trained on.

    Raises:
        EverlearnError: fewer than ten classes have images.

    >>> from everlearn import backbones, streams
    >>> task = streams.load("digits", tasks=1, max_train_per_class=5)[0]
    >>> found = train(backbones.load("tiny"), backbones.load("tiny"), task.train, task.class_names, epochs=1)
    >>> found.unseen, len(found.held_out)
    (2, 2)
    """
    present = examples.labels.unique().tolist()
    if len(present) < 10:
        raise EverlearnError(f"{len(present)} classes or captions have images, and at least 10 are needed: a pair "
                             "learns what texts mean from many different ones")  # fmt: skip
    sentences = [template.format(name.replace("_", " ")) for name in names for template in templates]
    images = image.encode(examples.inputs)
    texts = F.normalize(text.encode(sentences), dim=1).unflatten(0, (len(names), len(templates))).mean(1)
    generator = torch.Generator().manual_seed(seed)
    order = [present[row] for row in torch.randperm(len(present), generator=generator).tolist()]
    unseen = torch.tensor(sorted(order[: max(2, round(HELD_OUT * len(order)))]))
    held = torch.isin(examples.labels, unseen)
    seen = ~held
    data = _Data(images[seen], examples.labels[seen], texts)

    def accuracy(pair: Pair) -> float:
        scores = _projected(pair, images[held]) @ F.normalize(pair.text(texts[unseen]), dim=1).T
        return (unseen[scores.argmax(1)] == examples.labels[held]).float().mean().item()

    with torch.no_grad():
        starts = [_closed_form(data, strength) for strength in LAMBDAS]
        scores = [accuracy(start) for start in starts]
    held_out, kept = [max(scores)], starts[scores.index(max(scores))]
    with seeded(seed), Progress(epochs, "projections", progress) as bar:
        trainer = _Trainer(kept, lr)
        for _ in range(epochs):
            trainer.epoch(data, batch_size)
            with torch.no_grad():
                held_out.append(accuracy(trainer.pair))
            if held_out[-1] > max(held_out[:-1]):
                kept = trainer.copy()
            bar.advance(1, f"held-out classes {held_out[-1]:.3f}")
    return Trained(kept, held_out, len(unseen), held_out.index(max(held_out)))


@dataclass(frozen=True)
class _Data:
    """Images (n, width), the label (n,) of each, and the feature of each label's text (labels, text width)."""

    images: Tensor
    labels: Tensor
    texts: Tensor


def _closed_form(data: _Data, strength: float) -> Pair:
    """The ridge regression from the texts to the centred mean images of their labels; images are not projected."""
    mean = data.images.mean(0)
    centred, known = F.normalize(data.images - mean, dim=1), data.labels.unique()
    targets = torch.stack([centred[data.labels == label].mean(0) for label in known]).double()
    inputs = data.texts[known].double()
    middle, offset = inputs.mean(0), targets.mean(0)
    inputs, targets = inputs - middle, targets - offset
    weight = solve_shifted(lambda: (inputs.T @ inputs, inputs.T @ targets), strength).T
    return Pair(mean, None, weight.float(), (offset - weight @ middle).float(), SCALE)


class _Trainer:
    """Trains both projections of a copy of a pair by the contrastive loss."""

    def __init__(self, start: Pair, lr: float) -> None:
        bias = start.text.bias
        assert bias is not None
        width = len(start.centre.mean)
        self.pair = Pair(start.centre.mean, torch.eye(width), start.text.weight.detach().clone(), bias.detach().clone(),
                         start.scale)  # fmt: skip
        self.logit_scale = nn.Parameter(torch.tensor(start.scale).log())
        scale = {"params": [self.logit_scale], "lr": 10 * lr, "weight_decay": 0.0}
        self.optimizer = torch.optim.AdamW([{"params": [*self.pair.parameters()], "lr": lr}, scale])

    def epoch(self, data: _Data, batch_size: int) -> None:
        for rows in torch.randperm(len(data.images)).split(batch_size):
            labels, places = data.labels[rows].unique(return_inverse=True)
            images = _projected(self.pair, data.images[rows])
            texts = F.normalize(self.pair.text(data.texts[labels]), dim=1)
            scores = self.logit_scale.exp() * images @ texts.T
            is_own = F.one_hot(places, len(labels)).T.float()  # (texts, images): a text may have several images
            to_images = -(is_own * scores.T.log_softmax(1)).sum(1) / is_own.sum(1)
            loss = (F.cross_entropy(scores, places) + to_images.mean()) / 2
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def copy(self) -> Pair:
        """The pair as it is now."""
        tensors = self.pair.tensors()
        return Pair(tensors["image_mean"], tensors["image_proj.weight"].clone(), tensors["text_proj.weight"].clone(),
                    tensors["text_proj.bias"].clone(), float(self.logit_scale.detach().exp()))  # fmt: skip


def _projected(pair: Pair, images: Tensor) -> Tensor:
    """(n, width) of length 1."""
    centred = pair.centre(images)
    return F.normalize(centred if pair.image is None else pair.image(centred), dim=1)
