"""Our LAE and CoFiMA beside those of LAMDA-PILOT, on the same weights, images, batches, steps and settings.

    python bench/beside/pilot.py --code FOLDER --images FOLDER [--methods lae,cofima] [--tasks 4] [--classes 10]
                                 [--train-per-class 20] [--test-per-class 20] [--epochs 10] [--seed 0] [--out FILE.json]

--code is a checkout of LAMDA-PILOT; nothing of it is kept here. --images has tinyimagenet100_train.parquet and
tinyimagenet100_test.parquet, and EVERLEARN_WEIGHTS names the folder of ViT-Ti's weights. Ours learns first and tells
which images were in each batch; PILOT's training loop is then given these batches. PILOT runs as released, and
"with our choices", that is with its choices which differ from ours replaced by ours, one by one in `with_ours`. If
these are all differences, the predictions are equal then. LAE also runs with its adapters read, which they are not as
released. Both sides run in float32. The page that is written by hand from this is docs/results/beside_mixture.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import shared
import torch
from shared import accuracies
from torch import Tensor, nn

from everlearn import backbones, methods
from everlearn.engine import Learning, learn
from everlearn.method import Method
from everlearn.streams.stream import Stream

RATES = {"lae": 0.0028125, "cofima": 0.0001}
HEAD_RATES = {"lae": 0.0028125, "cofima": 0.01}
BATCHES = {"lae": 24, "cofima": 64}


def main() -> None:
    parser = shared.options(__doc__, "LAMDA-PILOT", tasks=4, epochs=10, seed=0)
    parser.add_argument("--methods", default="lae,cofima")
    args = parser.parse_args()
    shared.find_moved_modules()
    sys.path.insert(0, str(args.code))
    stream = shared.first_tasks(args, args.seed)
    found = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}  # other methods are kept
    for name in args.methods.split(","):
        found |= {f"{name}, {case}": row for case, row in compared(name, stream, args).items()}
        if args.out:
            args.out.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def compared(name: str, stream: Stream, args: argparse.Namespace) -> dict[str, Any]:
    """Accuracies after each task of ours, of PILOT as released, and of PILOT with our choices."""
    ours = Ours(name, stream, args)
    pilot = answers_of_pilot(name, stream, ours, args, "as released")
    rows: dict[str, Any] = {"ours": accuracies(ours.answers, stream), "PILOT as released": accuracies(pilot, stream)}
    if name == "lae":
        pilot = answers_of_pilot(name, stream, ours, args, "with adapters that are read")
        rows["PILOT with adapters that are read"] = accuracies(pilot, stream)
    if name == "cofima":  # alignment draws features, and the Fisher informations differ: both are left out
        ours = Ours(name, stream, args, fisher=False, alignment_epochs=0)
        rows["ours, no Fisher, no alignment"] = accuracies(ours.answers, stream)
    same = answers_of_pilot(name, stream, ours, args, "with our choices")
    rows["PILOT with our choices"] = accuracies(same, stream)
    rows["equal predictions"] = shared.equal(ours.answers, same)
    return rows


class Ours(shared.Batches):
    """Learns the stream, and keeps its answers, its batches and the values that every task began with."""

    def __init__(self, name: str, stream: Stream, args: argparse.Namespace, **more: Any) -> None:
        super().__init__()
        self.backbone = backbones.load("vit-tiny@112")
        self.backbone.training_precision = "float32"
        model: Any = self.backbone.model
        self.start = {key: value.clone() for key, value in model.state_dict().items()}
        # The head has the rate of the other code, whatever the norm of the features.
        published = type("Published", (methods.get(name),), {"head_rate": HEAD_RATES[name]})
        self.method: Method = published(self.backbone, epochs=args.epochs, batch_size=BATCHES[name], lr=RATES[name],
                                        seed=args.seed, **more)  # fmt: skip
        self.began: list[dict[str, Tensor]] = []
        self.answers: list[Tensor] = []
        for task in stream:
            learn(self.method, task, self)
            self.answers.append(shared.answered(self.method, stream, task.index))
            print(name, "ours", task.index, flush=True)

    def begun(self, learning: Learning) -> None:
        kept = {**dict(learning.method.head.named_parameters(prefix="head")),
                **dict(getattr(learning.method, "deltas", nn.Module()).named_parameters(prefix="deltas"))}  # fmt: skip
        self.began.append({key: value.detach().clone() for key, value in kept.items()})
        super().begun(learning)


class Images:
    """What PILOT asks of its data manager, from a stream and its prepared images."""

    dataset_name = "tinyimagenet100"

    def __init__(self, stream: Stream, backbone: Any) -> None:
        self.stream, self.task = stream, 0
        self.pixels = {part: [backbone.prepare(getattr(task, part).inputs) for task in stream]
                       for part in ("train", "test")}  # fmt: skip
        ids = [identity for task in stream for identity in task.train.ids]
        self.row = {identity: row for row, identity in enumerate(ids)}

    def get_task_size(self, index: int) -> int:
        return len(self.stream[index].classes)

    def get_dataset(self, indices: Any, source: str, mode: str, ret_data: bool = False, **more: Any) -> Any:
        labels = torch.cat([getattr(task, source).labels for task in self.stream])
        pixels, wanted = torch.cat(self.pixels[source]), torch.as_tensor(indices)
        rows = torch.isin(labels, wanted).nonzero()[:, 0]
        data = [(int(row), pixels[row], labels[row]) for row in rows]
        return (None, labels[rows].numpy(), data) if ret_data else data

    def batch(self, ids: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.tensor([self.row[identity] for identity in ids])
        labels = torch.cat([task.train.labels for task in self.stream])
        return rows, torch.cat(self.pixels["train"])[rows], labels[rows]


class Told:
    """In the place of a DataLoader that shuffles: in each epoch the batches that ours had in it."""

    def __init__(self, images: Images, batches: list[list[str]], epochs: int) -> None:
        self.images, self.batches, self.each, self.epoch = images, batches, len(batches) // epochs, 0

    def __len__(self) -> int:
        return self.each

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        first = self.epoch * self.each % len(self.batches)
        self.epoch += 1
        return iter([self.images.batch(ids) for ids in self.batches[first : first + self.each]])


def answers_of_pilot(name: str, stream: Stream, ours: Ours, args: argparse.Namespace, how: str) -> list[Tensor]:
    """What PILOT answers after each task: as released, with adapters that are read, or with our choices."""
    same = how == "with our choices"
    torch.manual_seed(args.seed)
    module: Any = importlib.import_module(f"models.{name}")
    net: Any = importlib.import_module("utils.inc_net")
    net.get_backbone = lambda *args, **more: encoder(name, ours.start)
    images = Images(stream, ours.backbone)
    plain = torch.utils.data.DataLoader

    def loader(dataset: Any, batch_size: int, shuffle: bool, num_workers: int) -> Any:
        if shuffle:
            return Told(images, ours.batches[images.task], args.epochs)
        return plain(dataset, batch_size=batch_size, shuffle=False)

    module.DataLoader = loader
    learner, answers = module.Learner(settings(name, args, same)), []
    network = learner._network
    network.backbone.out_dim = ours.backbone.width
    if name == "lae" and how != "as released":
        attach_to_blocks(network)
    for task in stream:
        images.task = task.index
        if same:
            with_ours(name, learner, ours.began[task.index], task.index)
        learner.incremental_train(images)
        answers.append(torch.from_numpy(learner._eval_cnn(learner.test_loader)[0][:, 0]))
        learner.after_task()
        print(name, "PILOT", how, task.index, flush=True)
    return answers


def encoder(name: str, weights: dict[str, Tensor]) -> nn.Module:
    """ViT-Ti with the weights that ours started from, of the class that PILOT's method needs."""
    if name == "lae":
        made = importlib.import_module("backbone.vit_lae").VisionTransformer(img_size=112, embed_dim=192, num_heads=3)
    else:
        timm = importlib.import_module("timm")
        made = timm.create_model("vit_tiny_patch16_224", img_size=112, num_classes=0)
    made.load_state_dict(weights)
    made.out_dim = 192
    return made


def settings(name: str, args: argparse.Namespace, same: bool) -> dict[str, Any]:
    """PILOT's own settings, with the epochs and batches of this comparison."""
    both = {"memory_size": 0, "device": ["cpu"], "batch_size": BATCHES[name], "seed": args.seed, "model_name": name,
            "backbone_type": "vit"}  # fmt: skip
    if name == "lae":
        return {**both, "init_lr": HEAD_RATES[name], "weight_decay": 0, "min_lr": 1e-5,
                "num_freeze_epochs": args.epochs * 3 // 5, "ema_decay": 0.9999, "tuned_epoch": args.epochs,
                "optimizer": "adam", "scheduler": "constant", "reinit_optimizer": True, "pet_cls": "Adapter",
                "pet_length": 10, "down_sample_dim": 5}  # fmt: skip
    return {**both, "prefix": "", "epochs": args.epochs, "lrate": HEAD_RATES[name], "lrate_decay": 0.1,
            "weight_decay": 5e-4, "milestones": [args.epochs * 9 // 10], "ca_epochs": 0 if same else 5,
            "ca_with_logit_norm": 0.1, "fisher_weighting": not same, "wt_lambda": 0.4}  # fmt: skip


def with_ours(name: str, learner: Any, began: dict[str, Tensor], index: int) -> None:
    """Before a task: replace what PILOT chooses in another way than we do."""
    network, grow = learner._network, type(learner._network).update_fc

    def update_fc(total: int) -> None:
        if name == "lae":
            grow(network, total)
            network.fc.weight.data.copy_(began["head.weight"])
            network.fc.bias.data.copy_(began["head.bias"])
            return
        grow(network, total, freeze_old=False)  # ours decays the rows of old classes too
        new = network.fc.heads[-1][0]
        new.weight.data.copy_(began["head.weight"][-len(new.weight) :])
        network.fc.recall = lambda: None  # ours goes on with the averaged head

    network.update_fc = update_fc
    if name == "cofima":
        return
    # In a first task adapters learn from the beginning, and the offline ones are the same as the online ones.
    learner.num_freeze_epochs = learner.args["num_freeze_epochs"] if index else 0
    learner.ema_decay = learner.args["ema_decay"] if index else 0.0
    if index:
        return
    for number, adapter in enumerate(network.pets):
        for part, layer in (("down", adapter.layer[0]), ("up", adapter.layer[2])):
            layer.weight.data.copy_(began[f"deltas.{number}.{part}.weight"])
            layer.bias.data.copy_(began[f"deltas.{number}.{part}.bias"])
    for adapter in (*network.pets, *network.pets_emas):  # the scale of an adapter is fixed
        del adapter.layer[3].scale
        adapter.layer[3].scale = 1.0


def attach_to_blocks(network: Any) -> None:
    """PILOT hands an adapter to the attention layer, where nothing reads it; the authors' own code, to the block."""

    def attach(adapters: Any) -> None:
        for block, adapter in zip(network.backbone.blocks, adapters, strict=False):  # the first blocks
            block.attach_adapter(attn=adapter)

    network.attach_pets_vit = attach


if __name__ == "__main__":
    main()
