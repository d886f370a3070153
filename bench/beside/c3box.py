"""Our PROOF beside that of C3Box, the authors' toolbox, on the same features, tasks, steps and settings.

    python bench/beside/c3box.py --code FOLDER --images FOLDER [--backbone lit@112] [--tasks 5] [--classes 10]
                                 [--train-per-class 20] [--test-per-class 20] [--seeds 0,1,2] [--out FILE.json]

--code is a checkout of C3Box; nothing of it is kept here. --images has tinyimagenet100_train.parquet and
tinyimagenet100_test.parquet, and EVERLEARN_WEIGHTS names the folder of the pair's weights. C3Box is given our pair in
the place of CLIP: its images are the features of ours, of length 1, and its texts the class texts of ours. Each side
shuffles and initialises by itself, so accuracies are compared, not predictions. The page that is written by hand from
this is docs/results/beside_mixture.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from typing import Any

import numpy as np
import shared
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from everlearn import backbones
from everlearn.backbones.backbone import Backbone
from everlearn.backbones.image_text import as_pair
from everlearn.engine import learn
from everlearn.methods.proof import PROOF
from everlearn.seeds import seeded
from everlearn.streams.stream import Stream, Task

EPOCHS, BATCH, RATE = 5, 64, 1e-3


def main() -> None:
    parser = shared.options(__doc__, "C3Box", tasks=5, memory=200)
    parser.add_argument("--backbone", default="lit@112")
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    shared.find_moved_modules()
    sys.path.insert(0, str(args.code))
    variants: dict[str, tuple[type[PROOF], bool]] = {
        "ours": (PROOF, False), "ours, texts trained": (TextsTrained, False),
        "ours, paper_compat": (PROOF, True), "ours, paper_compat, its start and schedule": (StartsAlike, True),
    }  # fmt: skip
    found: dict[str, list[list[float]]] = {name: [] for name in (*variants, "C3Box")}
    for seed in map(int, args.seeds.split(",")):
        stream = shared.first_tasks(args, seed)
        pair = as_pair(backbones.load(args.backbone))
        for name, (made, paper_compat) in variants.items():
            found[name].append(shared.accuracies(ours(made, stream, args, seed, paper_compat), stream))
        found["C3Box"].append(shared.accuracies(released(stream, pair, args, seed), stream))
        print({name: rows[-1] for name, rows in found.items()}, flush=True)
        if args.out:
            args.out.write_text(json.dumps(found, indent=1))


class TextsTrained(PROOF):
    """One of the two differences of `paper_compat` alone: the projections of old texts are trained on."""

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.fusion.texts.requires_grad_(True)


class StartsAlike(PROOF):
    """With the initial values of C3Box's attention, and its rate, which falls after each epoch, not with each step."""

    def __init__(self, backbone: Backbone, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        with seeded(self.seed):
            for weight in (self.fusion.attention.in_proj_weight, self.fusion.attention.out_proj.weight):
                nn.init.normal_(weight, std=backbone.width**-0.5)

    @staticmethod
    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (1 + math.cos(math.pi * min(EPOCHS - 1, EPOCHS * step // steps) / EPOCHS)) / 2
        )


def ours(made: type[PROOF], stream: Stream, args: argparse.Namespace, seed: int, paper_compat: bool) -> list[Tensor]:
    """What our PROOF answers after each task."""
    method = made(backbones.load(args.backbone), epochs=EPOCHS, batch_size=BATCH, lr=RATE, seed=seed,
                  memory_size=args.memory, paper_compat=paper_compat)  # fmt: skip
    answers = []
    for task in stream:
        learn(method, task)
        answers.append(shared.answered(method, stream, task.index))
    return answers


class Clip(nn.Module):
    """What C3Box asks of CLIP: an image is its features here, and a text the row of its class."""

    def __init__(self, texts: Tensor, scale: float) -> None:
        super().__init__()
        self.texts, self.out_dim = texts, texts.shape[1]
        self.logit_scale = nn.Parameter(torch.tensor(scale).log())

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        return images

    def encode_text(self, rows: Tensor) -> Tensor:
        return self.texts[rows]


class Features:
    """What C3Box asks of its data manager."""

    def __init__(self, stream: Stream, pair: Any) -> None:
        self._class_to_label, self._data_to_prompt = list(stream.class_names), ["{}"]
        self.sizes = [len(task.classes) for task in stream]
        parts = {part: [getattr(task, part) for task in stream] for part in ("train", "test")}
        self.features = {
            part: np.concatenate([normalize(pair.encode(one.inputs)).numpy() for one in ones])
            for part, ones in parts.items()
        }
        self.labels = {part: torch.cat([one.labels for one in ones]).numpy() for part, ones in parts.items()}

    def get_task_size(self, index: int) -> int:
        return self.sizes[index]

    def get_dataset(
        self, indices: Any, source: str, mode: str, appendent: Any = None, ret_data: bool = False, **more: Any
    ) -> Any:
        rows = np.isin(self.labels[source], np.asarray(indices, dtype=int))
        data, labels = self.features[source][rows], self.labels[source][rows]
        if appendent is not None and len(appendent[0]):
            data, labels = np.concatenate([data, appendent[0]]), np.concatenate([labels, appendent[1].astype(int)])
        listed = [(row, torch.from_numpy(data[row]), torch.tensor(labels[row])) for row in range(len(data))]
        return (data, labels, listed) if ret_data else listed


def released(stream: Stream, pair: Any, args: argparse.Namespace, seed: int) -> list[Tensor]:
    """What C3Box's PROOF answers after each task."""
    torch.manual_seed(seed)
    proof: Any = importlib.import_module("models.proof")
    base: Any = importlib.import_module("models.base")
    net: Any = importlib.import_module("utils.inc_net")
    names, plain = list(stream.class_names), torch.utils.data.DataLoader
    clip = Clip(pair.class_features(names).float().clone(), float(pair.scale))
    net.get_convnet = lambda *args, **more: (clip, None, lambda texts: torch.tensor([names.index(t) for t in texts]))
    for module in (proof, base):
        module.DataLoader = lambda data, batch_size, shuffle, num_workers: plain(data, batch_size, shuffle)
    learner = proof.Learner({
        "memory_size": args.memory, "fixed_memory": False, "device": ["cpu"], "backbone_type": "clip",
        "projection_type": "pure_mlp", "tuned_epoch": EPOCHS, "init_lr": RATE, "batch_size": BATCH, "min_lr": 0,
        "weight_decay": 0.05, "optimizer": "sgd",
    })  # fmt: skip
    data, answers = Features(stream, pair), []
    for _ in stream:
        learner.incremental_train(data)
        answers.append(torch.from_numpy(learner._eval_cnn(learner.test_loader)[0][:, 0]))
        learner.after_task()
    return answers


if __name__ == "__main__":
    main()
