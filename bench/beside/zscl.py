"""Our ZSCL beside that of mammoth, on the same pair, images, reference, batches, steps and settings.

    python bench/beside/zscl.py --code FOLDER --images FOLDER [--backbone lit@112] [--tasks 3] [--classes 10]
                                [--train-per-class 20] [--test-per-class 20] [--epochs 5] [--seeds 0] [--out FILE.json]

--code is a checkout of mammoth; nothing of it is kept here. --images has tinyimagenet100_train.parquet,
tinyimagenet100_test.parquet and cifar10_train.parquet, whose images and class names are the reference, and
EVERLEARN_WEIGHTS names the folder of the pair's weights. Mammoth is given our pair in the place of CLIP. Ours learns
first and tells which images were in each batch, and which images and texts of the reference were compared. Mammoth
runs as released, and "with our choices", that is with those of its choices which differ from ours replaced by ours. If
these are all differences, the predictions are equal then. Both sides run in float32, with AdamW and the same rates; the
pull towards the weights before a task, which mammoth has not, is left out. The page that is written by hand from this
is docs/results/beside_mixture.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import shared
import torch
from mammoth import released
from torch import Tensor, nn
from torch.nn.functional import normalize

from everlearn import backbones, methods
from everlearn.engine import learn
from everlearn.losses import distillation
from everlearn.schedules import cosine
from everlearn.streams.stream import Stream

RATE, BATCH, EVERY, STRENGTH = 1e-5, 16, 20, 5.0
"""As mammoth has them, but for the batch (8 there) and the steps between two weights of the mean (100 there)."""


def main() -> None:
    parser = shared.options(__doc__, "mammoth", tasks=3, epochs=5)
    parser.add_argument("--backbone", default="lit@112")
    parser.add_argument("--seeds", default="0")
    args = parser.parse_args()
    released(args.code)
    for name in ("datasets.utils", "datasets.utils.continual_dataset", "models.zscl_utils", "models.zscl_utils.clip"):
        sys.modules[name] = MagicMock()
    found: dict[str, Any] = {}
    for seed in map(int, args.seeds.split(",")):
        stream = shared.first_tasks(args, seed)
        ours = Ours(stream, args, seed)
        plain, same = (Theirs(stream, args, seed, ours, chosen).answers for chosen in (False, True))
        rows = {"ours": ours.answers, "mammoth as released": plain, "mammoth with our choices": same}
        found[f"zscl {seed}"] = {name: shared.accuracies(answers, stream) for name, answers in rows.items()} | {
            "equal predictions": shared.equal(ours.answers, same)
        }
        print(json.dumps(found), flush=True)
        if args.out:
            args.out.write_text(json.dumps(found, indent=1))


def pair_of(args: argparse.Namespace) -> Any:
    pair: Any = backbones.load(args.backbone)
    for tower in (pair, *pair.encoders()):
        tower.training_precision = tower.precision = "float32"
    return pair


class Ours(shared.Batches):
    """Learns the stream, and keeps its answers, its batches, and what of the reference was compared in each step."""

    def __init__(self, stream: Stream, args: argparse.Namespace, seed: int) -> None:
        super().__init__()
        self.method: Any = methods.get("zscl")(
            pair_of(args), strength=STRENGTH, pull=0.0, every=EVERY, epochs=args.epochs, batch_size=BATCH, lr=RATE,
            seed=seed, reference=str(args.images / "cifar10_train.parquet"), reference_size=500,
        )  # fmt: skip
        self.drawn: list[tuple[list[int], list[int]]] = []
        self.answers: list[Tensor] = []
        compare = self.method._drift

        def drift(reference: Any) -> Tensor:
            state = torch.get_rng_state()
            self.drawn.append(tuple(torch.randperm(len(part))[:BATCH].tolist()
                                    for part in (reference.images, reference.sentences)))  # type: ignore[arg-type] # fmt: skip
            torch.set_rng_state(state)
            self.reference = reference
            return compare(reference)

        self.method._drift = drift
        for task in stream:
            learn(self.method, task, self)
            self.answers.append(shared.answered(self.method, stream, task.index))


class Clip(nn.Module):
    """What mammoth asks of CLIP: images and texts are rows of lists here, which our pair encodes."""

    def __init__(self, pair: Any, of_rows: Callable[[Tensor, str], list[Any]]) -> None:
        super().__init__()
        self.pair, self.of_rows = pair.requires_grad_(True), of_rows
        self.logit_scale = nn.Parameter(torch.tensor(float(pair.scale)).log(), requires_grad=False)

    def forward(self, images: Tensor | None, texts: Tensor | None) -> Any:
        seen = None if images is None else self.pair(self.of_rows(images, "images"))
        read = None if texts is None else self.pair(self.of_rows(texts, "texts"))
        if seen is None or read is None:
            return read if seen is None else seen
        scores = self.logit_scale.exp() * normalize(seen) @ normalize(read).T
        return scores, scores.T


class Reference:
    """Batches of rows of the reference images, without end; mammoth reads the texts of all captions first."""

    def __init__(self, first: int, count: int, captions: list[str]) -> None:
        self.first, self.count, self.train_dataset = first, count, Namespace(captions=captions)

    def __iter__(self) -> Any:
        while True:
            yield self.first + torch.randperm(self.count)[:BATCH], torch.zeros(BATCH)


class Theirs:
    """Mammoth's ZSCL learns the stream in the batches that ours had."""

    def __init__(self, stream: Stream, args: argparse.Namespace, seed: int, ours: Ours, same: bool) -> None:
        torch.manual_seed(seed)
        self.ours, self.same = ours, same
        reference, pair = ours.reference, pair_of(args)
        train = [item for task in stream for item in task.train.inputs]
        test = [item for task in stream for item in task.test.inputs]
        lists = {"images": [*train, *reference.images, *test],
                 "texts": [*pair.sentences(stream.class_names), *reference.sentences]}  # fmt: skip
        self.first, self.of_tests = len(train), len(train) + len(reference.images)
        self.row = {one: row for row, one in enumerate(one for task in stream for one in task.train.ids)}
        self.labels = torch.cat([task.train.labels for task in stream])
        module: Any = importlib.import_module("models.zscl")
        module.clip = Namespace(
            load=lambda *args_, **more: (
                Clip(pair_of(args), lambda rows, kind: [lists[kind][k] for k in rows]),
                None,
                None,
            ),
            tokenize=lambda texts: torch.tensor([lists["texts"].index(text) for text in texts]),
        )
        module.conceptual_captions = lambda *args_, **more: Reference(self.first, len(reference.images),
                                                                      reference.sentences)  # fmt: skip
        module.Path = lambda path: Namespace(exists=lambda: True)
        module.base_path = lambda: ""
        sizes = [len(task.classes) for task in stream]
        self.data: Any = Namespace(
            N_CLASSES=sum(sizes), N_TASKS=len(sizes), SETTING="class-il", N_CLASSES_PER_TASK=sizes[0],
            get_offsets=lambda task: (sum(sizes[:task]), sum(sizes[: task + 1])),
            get_class_names=lambda: [name.replace("_", " ") for name in stream.class_names],
            train_loader=None, test_loaders=[Namespace(dataset=Namespace())],
        )  # fmt: skip
        setting = Namespace(label_perc=1, optimizer="adamw", lr=RATE, optim_wd=0.01, batch_size=BATCH, nowand=True,
                            n_epochs=args.epochs, scheduler_mode="iter", lr_scheduler=None, clip_backbone="ours", we=1,
                            prompt_template=pair.templates[0], avg_freq=EVERY, ls=0.2)  # fmt: skip
        self.model = module.ZSCL(None, None, setting, None, dataset=self.data)
        self.step, self.calls, self.answers = 0, 0, []
        if same:
            self.model.distillation = self._as_ours
        for task in stream:
            self._learn(task.index, args.epochs)
            rows = torch.arange(len(shared.tests(stream, task.index))) + self.of_tests
            self.answers.append(torch.cat([self.model.forward(part).argmax(1) for part in rows.split(100)]))

    def _learn(self, index: int, epochs: int) -> None:
        batches = self.ours.batches[index]
        self.data.train_loader = Loader(len(batches) // epochs)
        self.model.meta_begin_task(self.data)
        model, schedule = self.model, self.model.custom_scheduler
        if self.same:
            model.model.pair.eval()  # ours trains encoders without dropout
            model.opt = model.get_optimizer()  # mammoth's warms up over 30 steps
            schedule = cosine(model.opt, len(batches))
        for number, ids in enumerate(batches):
            rows = torch.tensor([self.row[one] for one in ids])
            # Mammoth adds the weights after the first step to the mean, and then after each EVERY-th; ours after each
            # EVERY-th and after the last.
            model._task_iteration = number + self.same
            if self.same:
                self.images, self.read = self.ours.drawn[self.step]
                model.ref_iter = iter([(torch.tensor(self.images) + self.first, torch.zeros(1))])
                model.ref_embeddings = self.ours.reference.read[self.read]
            model.observe(rows, self.labels[rows], rows)
            schedule.step()
            self.step += 1
        if self.same and len(batches) % EVERY:
            model.we_n += 1
            model.merge_we(model.model, model.we_model, model.we_n)
        model.meta_end_task(self.data)

    def _as_ours(self, teacher: Tensor, scores: Tensor, T: float = 2) -> Tensor:
        """The first call compares present images with the first texts, as mammoth does; the second one compares
        present texts with the first images, where mammoth turns the first comparison around."""
        self.calls += 1
        if self.calls % 2:
            return distillation(scores, teacher, T).mean()
        scale = self.model.logit_scale.exp()
        sentences = [self.ours.reference.sentences[row] for row in self.read]
        read = normalize(self.model.model.pair(sentences))
        seen = self.ours.reference.seen[self.images]
        first = scale * self.ours.reference.read[self.read] @ seen.T
        return distillation(scale * read @ seen.T, first, T).mean()


class Loader:
    """A number of batches, and the data set on which mammoth sets its views."""

    def __init__(self, batches: int) -> None:
        self.batches, self.dataset = batches, Namespace()

    def __len__(self) -> int:
        return self.batches


if __name__ == "__main__":
    main()
