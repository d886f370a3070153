"""Our classic methods beside those of mammoth, on the same weights, images, batches, steps and settings.

    python bench/beside/mammoth.py --code FOLDER --images FOLDER [--methods finetune,er,der_pp,a_gem,ewc,si] [--tasks 4]
                                   [--classes 10] [--train-per-class 20] [--test-per-class 20] [--epochs 3]
                                   [--memory 100] [--seeds 0] [--out FILE.json]

--code is a checkout of mammoth; nothing of it is kept here. --images has tinyimagenet100_train.parquet and
tinyimagenet100_test.parquet, and EVERLEARN_WEIGHTS names the folder of ViT-Ti's weights. Ours learns first and tells
which images were in each batch, and which old ones were replayed; mammoth's methods are given the same batches. Mammoth
runs as released, with its own memory and a head of all classes, and "with our choices", that is with those of its
choices which differ from ours replaced by ours. If these are all differences, the predictions are equal then.
Both sides run in float32, with AdamW and the same rates. The page that is written by hand from this is
docs/results/beside_mammoth.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import shared
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from everlearn import backbones, methods
from everlearn.engine import Learning, learn
from everlearn.streams.stream import Examples, Stream

RATE, HEAD_RATE, BATCH = 5e-5, 0.1, 32
NAMES = {"finetune": ("sgd", "Sgd", {}), "er": ("er", "Er", {}), "a_gem": ("agem", "AGem", {}),
         "der_pp": ("derpp", "Derpp", {"alpha": 0.3, "beta": 0.5}), "si": ("si", "SI", {"c": 1.0, "xi": 1e-3}),
         "ewc": ("ewc_on", "EwcOn", {"e_lambda": 5e4, "gamma": 1.0})}  # fmt: skip
"""Of each of our methods mammoth's module, its class and its settings."""
OURS: dict[str, dict[str, Any]] = {
    "er": {}, "a_gem": {}, "der_pp": {"alpha": 0.3, "beta": 0.5}, "si": {"strength": 1.0, "xi": 1e-3},
    "ewc": {"strength": 1e5, "decay": 1.0, "fisher_examples": 200},
}  # fmt: skip
MEMORY = ("er", "a_gem", "der_pp")


def main() -> None:
    parser = shared.options(__doc__, "mammoth", tasks=4, epochs=3, memory=100)
    parser.add_argument("--methods", default=",".join(NAMES))
    parser.add_argument("--seeds", default="0")
    args = parser.parse_args()
    released(args.code)
    found = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}  # other methods are kept
    for seed in map(int, args.seeds.split(",")):
        stream = shared.first_tasks(args, seed)
        for name in args.methods.split(","):
            found[f"{name} {seed}"] = compared(name, stream, args, seed)
            print(name, seed, json.dumps(found[f"{name} {seed}"]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(found, indent=1))


def released(code: Path) -> None:
    """Make the modules of the checkout importable, without its registries, its data sets and its views of images."""
    for name in ("kornia", "kornia.augmentation", "utils.args", "utils.kornia_utils", "datasets", "models"):
        sys.modules[name] = MagicMock() if name != "models" else types.ModuleType(name)
    sys.modules["utils.kornia_utils"].KorniaAugNoGrad = type("KorniaAugNoGrad", (), {})
    sys.modules["models"].__path__ = [str(code / "models")]
    sys.path.insert(0, str(code))


def compared(name: str, stream: Stream, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Accuracies after each task of ours, of mammoth as released, and of mammoth with our choices."""
    ours = Ours(name, stream, args, seed)
    plain, same = (Theirs(name, stream, args, seed, ours, chosen).answers for chosen in (False, True))
    rows = {"ours": ours.answers, "mammoth as released": plain, "mammoth with our choices": same}
    return {
        **{row: shared.accuracies(answers, stream) for row, answers in rows.items()},
        "equal predictions": shared.equal(ours.answers, same),
    }


class Ours(shared.Batches):
    """Learns the stream, and keeps its answers, batches and replayed examples, and what every task began with."""

    def __init__(self, name: str, stream: Stream, args: argparse.Namespace, seed: int) -> None:
        super().__init__()
        self.backbone: Any = backbones.load("vit-tiny@112")
        self.backbone.training_precision = self.backbone.precision = "float32"
        self.start = {key: value.clone() for key, value in self.backbone.model.state_dict().items()}
        more = {"memory_size": args.memory} if name in MEMORY else {}
        self.method: Any = methods.get(name)(self.backbone, epochs=args.epochs, batch_size=BATCH, lr=RATE, seed=seed,
                                             head_lr=HEAD_RATE, **OURS.get(name, {}), **more)  # fmt: skip
        self.heads: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.drawn: list[list[str]] = []
        self.kept: list[dict[str, Tensor]] = []
        self.fishers: list[dict[str, Tensor]] = []
        self.answers: list[Tensor] = []
        if name in MEMORY:
            self._listen_to_the_memory()
        for task in stream:
            learn(self.method, task, self)
            self.answers.append(shared.answered(self.method, stream, task.index))
            self.fishers.append({key: value.clone() for key, value in getattr(self.method, "importance", {}).items()})

    def _listen_to_the_memory(self) -> None:
        draw = self.method.replayed

        def replayed(batch: Examples) -> Examples:
            old = draw(batch)
            self.drawn.append(list(old.ids))
            self.kept.append(old.columns)
            return old

        self.method.replayed = replayed

    def begun(self, learning: Learning) -> None:
        head = learning.method.head
        self.heads.append({key: value.detach().clone() for key, value in head.state_dict().items()})
        super().begun(learning)

    def stepped(self, learning: Learning) -> None:
        if len(self.batches[-1]) == 0:
            self.rates.append(float(learning.method.head_rate or 0))
        super().stepped(learning)


class Network(nn.Module):
    """What mammoth asks of its networks: the encoder with the weights that ours started from, and a head."""

    def __init__(self, encoder: nn.Module, classes: int, seed: int) -> None:
        super().__init__()
        self.encoder, self.seen = encoder, classes
        torch.manual_seed(seed)
        self.head = nn.Linear(192, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.encoder(pixels))[:, : self.seen]

    def get_params(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.parameters())

    def get_grads(self) -> Tensor:
        return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.view(-1) for p in self.parameters()])

    def set_grads(self, vector: Tensor) -> None:
        for parameter, part in zip(
            self.parameters(), vector.split([p.numel() for p in self.parameters()]), strict=True
        ):
            parameter.grad = part.view_as(parameter).clone()


class Theirs:
    """Mammoth's method learns the stream in the batches that ours had."""

    def __init__(self, name: str, stream: Stream, args: argparse.Namespace, seed: int, ours: Ours, same: bool) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)
        self.ours, self.same, self.name, self.epochs, self.size = ours, same, name, args.epochs, 0
        sizes = [len(task.classes) for task in stream]
        data: Any = Namespace(N_CLASSES=sum(sizes), N_TASKS=len(sizes), SETTING="class-il", N_CLASSES_PER_TASK=sizes[0],
                              get_offsets=lambda task: (sum(sizes[:task]), sum(sizes[: task + 1])))  # fmt: skip
        timm = importlib.import_module("timm")
        encoder = timm.create_model("vit_tiny_patch16_224", img_size=112, num_classes=0)
        encoder.load_state_dict(ours.start)
        self.net = Network(encoder, sum(sizes), seed)
        module, kind, own = NAMES[name]
        setting = Namespace(label_perc=1, optimizer="adamw", lr=RATE, optim_wd=0.01, buffer_size=args.memory,
                            minibatch_size=BATCH, batch_size=BATCH, n_epochs=args.epochs, nowand=True,
                            **own)  # fmt: skip
        made: Any = getattr(importlib.import_module(f"models.{module}"), kind)
        made.get_optimizer = lambda model, *given: torch.optim.AdamW([
            {"params": list(self.net.encoder.parameters())},
            {"params": list(self.net.head.parameters()), "lr": ours.rates[min(self.task, len(ours.rates) - 1)]},
        ], lr=RATE)  # fmt: skip
        self.task = 0
        self.model = made(self.net, nn.CrossEntropyLoss(), setting, None, dataset=data)
        self.images = {part: [ours.backbone.prepare(getattr(task, part).inputs) for task in stream]
                       for part in ("train", "test")}  # fmt: skip
        self.row = {one: row for row, one in enumerate(one for task in stream for one in task.train.ids)}
        self.pixels = torch.cat(self.images["train"])
        self.labels = torch.cat([task.train.labels for task in stream])
        self.answers = [self._learn(task.index, data) for task in stream]

    def _learn(self, index: int, data: Any) -> Tensor:
        self.task = index
        loaded = [self._of(ids) for ids in self.ours.batches[index]]
        data.train_loader = [(pixels, labels, pixels) for pixels, labels in loaded[: len(loaded) // self.epochs]]
        if self.same:
            self._as_ours(index)
        self.model.meta_begin_task(data)
        self.model.train()
        for pixels, labels in loaded:
            self.size = len(labels)
            self.model.observe(pixels, labels, pixels)
        self.model.meta_end_task(data)
        if self.same and self.name == "ewc":
            self.model.fish = self._vector(self.ours.fishers[index])
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self.net(part)[:, : self.ours.heads[index]["weight"].shape[0]].argmax(1)
                              for part in self.images["test"][: index + 1]])  # fmt: skip

    def _of(self, ids: list[str]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([self.row[one] for one in ids])
        return self.pixels[rows], self.labels[rows]

    def _as_ours(self, index: int) -> None:
        """Before a task: the head has the classes so far, its new rows are those of ours, and so is the memory."""
        first = self.ours.heads[index]
        old = self.ours.heads[index - 1]["weight"].shape[0] if index else 0
        self.net.seen = len(first["weight"])
        with torch.no_grad():
            self.net.head.weight[old : self.net.seen] = first["weight"][old:]
            self.net.head.bias[old : self.net.seen] = first["bias"][old:]
        if self.name in MEMORY and not index:
            self.model.buffer = Drawn(self)
        if self.name == "er":  # the mean of the new batch and the mean of the old one, whatever their sizes
            del self.model.loss  # a module, which no function may replace
            self.model.loss = self._each_by_itself
        if self.name == "der_pp":
            sys.modules[type(self.model).__module__].F = Namespace(mse_loss=one_by_one)  # type: ignore[attr-defined]
        if self.name == "si":  # no importance below zero, no clipped gradients, and new rows begin where ours do
            self.model.checkpoint = self.net.get_params().data.clone()
            unclipped = nn.Parameter(torch.zeros(1))
            unclipped.grad = torch.zeros(1)
            self.model.get_parameters = lambda: [unclipped]
            if self.model.big_omega is not None:
                self.model.big_omega.clamp_(min=0)

    def _each_by_itself(self, scores: Tensor, labels: Tensor) -> Tensor:
        new, old = (cross_entropy(scores[part], labels[part], reduction="sum") / max(1, len(labels[part]))
                    for part in (slice(self.size), slice(self.size, None)))  # fmt: skip
        return new + old

    def _vector(self, values: dict[str, Tensor]) -> Tensor:
        """Values by our names as one vector in the order of the network; 0 for classes not seen."""
        parts = []
        for key, parameter in self.net.named_parameters():
            mine = values["head." + key[5:] if key.startswith("head.") else "backbone.model." + key[8:]]
            whole = torch.zeros_like(parameter)
            whole[tuple(slice(size) for size in mine.shape)] = mine
            parts.append(whole.flatten())
        return torch.cat(parts)


class Drawn:
    """In the place of mammoth's buffer: gives what ours drew, in its order, and keeps nothing."""

    def __init__(self, theirs: Theirs) -> None:
        self.theirs, self.next = theirs, 0

    def is_empty(self) -> bool:
        return self.theirs.task == 0

    def add_data(self, **given: Any) -> None:
        pass

    def get_data(self, size: int, **more: Any) -> tuple[Tensor, ...]:
        pixels, labels = self.theirs._of(self.theirs.ours.drawn[self.next])
        kept = self.theirs.ours.kept[self.next].get("logits")
        self.next += 1
        return (pixels, labels) if kept is None else (pixels, labels, kept)


def one_by_one(scores: Tensor, kept: Tensor) -> Tensor:
    """Our distance of scores: over the classes that were known when they were kept."""
    known = ~kept.isnan()
    gaps = torch.where(known, scores[:, : kept.shape[1]] - kept, 0.0)
    return (gaps.square().sum(1) / known.sum(1)).mean()


if __name__ == "__main__":
    main()
