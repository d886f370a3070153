"""Is a small distilled set as good as all data? Classification and retrieval, beside real subsets of equal size.

    python bench/distillation.py [--parts sets,soft,claim,replay,pairs] [--seeds 0,1,2] [--out FOLDER]

Nothing is chosen: `everlearn distill` has its defaults, and best subsets are the best on validation examples. A folder
that is given is gone on with: what is finished there is not made again.

Written to docs/results/distillation.md: accuracy of models trained on distilled sets and on real subsets; the claim
that 4 examples a label are as good as all data, at about 1 % of the size, where the untouched model is far below; and
whether replaying a distilled set keeps more than replaying an equal number of bytes.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from statistics import mean
from typing import Any

import common
import torch
from common import kept
from torch.nn.functional import normalize

from everlearn import backbones, run
from everlearn.distillation import judge
from everlearn.distillation.closed_form import distil_features, ridge
from everlearn.distillation.data_set import DistilledSet, Encoder, read
from everlearn.distillation.distill import distill, with_validation
from everlearn.distillation.inner import with_offset
from everlearn.distillation.pairs import scored
from everlearn.distillation.soft import Learner, OnPairs
from everlearn.distillation.subsets import herding, random_rows
from everlearn.distillation.texts import select
from everlearn.results import environment
from everlearn.seeds import derived_seed
from everlearn.streams.stream import PARTS, Examples, Stream

Row = dict[str, float]


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--parts", default="sets,claim,replay,soft,pairs", help="those of the page")
    parser.add_argument("--sets", default="banking77,clinc150")
    parser.add_argument("--soft-steps", type=int, default=60, help="of distillation of soft sequences")
    parser.add_argument("--pair-steps", type=int, default=40, help="of distillation of soft pairs")
    parser.add_argument("--replay-texts", type=int, default=20, help="training texts a class of the part replay")
    args, folder = common.parsed(parser)
    made = {"sets": sets, "soft": soft, "claim": claim, "replay": replay, "pairs": pairs}
    lines = [
        "# Distilled sets", "", f"From `{common.command(parser, args, ('out', 'threads'))}`.", "",
        f"Measured: {args.backbone}, seeds {args.seeds}; {common.machine(environment(backbones.load(args.backbone)))}.",
    ]  # fmt: skip
    for part in args.parts.split(","):
        lines += ["", *made[part](args, folder)]
        print("\n".join(lines), flush=True)
    common.write_page("distillation", lines)


def report_of(args: argparse.Namespace, folder: Path, name: str, row: str, seed: int, **settings: Any) -> Any:
    """The report of one distilled set; the set lies beside it."""
    text = "-".join(f"{key}={value}" for key, value in settings.items())
    place = folder / f"{name}-{row}-{text}-{seed}"
    file = place.with_name(place.name + ".safetensors")

    def compute() -> Any:
        file.unlink(missing_ok=True)
        kind: Any = row
        report = distill(with_validation(name), backbones.load(args.backbone), file, kind=kind, seed=seed, **settings)[
            1
        ]
        report.pop("nearest", None)
        return report

    return kept(place.with_name(place.name + ".json"), compute), file


def of(values: list[Any]) -> str:
    """Percentages: mean, and the largest distance from it where there are several."""
    told = [100 * value for value in values]
    return f"{mean(told):.1f}" + (f" ± {max(abs(v - mean(told)) for v in told):.1f}" if len(told) > 1 else "")


def sets(args: argparse.Namespace, folder: Path) -> list[str]:
    lines = ["## Ten examples a class", "",
             "Accuracy in % of logistic regression trained on the set; of ridge regression where the labels are "
             "learned (± the largest distance of a seed).", "", "| data | trained on | examples | validation | test |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name in args.sets.split(","):
        found = [judged(args, folder, name, seed) for seed in map(int, args.seeds.split(","))]
        for row in found[0]:
            cells = [of([one[row][part] for one in found]) for part in ("validation", "test")]
            lines.append(f"| {name} | {row} | {found[0][row]['examples']:,} | {' | '.join(cells)} |")
    return lines


def judged(args: argparse.Namespace, folder: Path, name: str, seed: int, per_class: int = 10) -> dict[str, Row]:
    """Accuracy by what a model was trained on. Each row is kept as soon as it is there."""
    space = space_of(name, args.backbone)
    size = {"examples": len(random_rows(space.labels, per_class, seed))}

    def texts() -> Row:
        rows, weights = select(space.rows(space.train), space.labels, space.classes, per_class, progress=True)
        return space.of_rows(rows, weights) | size

    def features() -> Row:
        made, labels, _ = distil_features(space.train, space.labels, space.classes, per_class, seed=seed, progress=True)
        return space.solved(made, space.hard(labels)) | size

    def learned() -> Row:
        made, _, targets = distil_features(space.train, space.labels, space.classes, per_class, seed=seed,
                                           learn_labels=True, progress=True)  # fmt: skip
        weight = ridge(made.double(), targets.double(), 0.1).float()
        return space.accuracy(lambda part: normalize(part, dim=1) @ weight) | size

    def place(row: str) -> Path:
        return folder / f"{name}-{per_class}-{row.replace(' ', '-')}-{seed}.json"

    rows = {"distilled texts": texts, "distilled features": features, "distilled features with learned labels": learned}
    found = {row: kept(place(row), compute) for row, compute in rows.items()}
    beside = kept(place("beside"), lambda: judge.beside(space, per_class, seed=seed))
    everything = {"examples": len(space.labels)}
    return found | {row: accuracy | (everything if row.startswith("all") else size) for row, accuracy in beside.items()}


@functools.cache
def space_of(name: str, backbone: str) -> judge.Space:
    stream, encoder = with_validation(name), backbones.load_when_needed(backbone)
    parts = {part: Examples.concatenate([getattr(task, part) for task in stream]) for part in PARTS}
    return judge.Space.of(judge.encoder_of(encoder), parts, len(stream.class_names))


def claim(args: argparse.Namespace, folder: Path) -> list[str]:
    lines = ["## Four examples a label instead of all data: classification", "",
             "Test accuracy in %, seed 0. Untouched: the nearest name of a class by cosine, with nothing learned.", "",
             "| data | a class | share of the examples | untouched | random subsets, mean | distilled texts | "
             "distilled features | with learned labels | all real examples |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in args.sets.split(","):
        nothing = kept(folder / f"{name}-untouched.json", functools.partial(untouched, name, args.backbone))
        for per_class in (1, 4):
            found = judged(args, folder, name, 0, per_class)
            rows = ("random subsets, mean", "distilled texts", "distilled features",
                    "distilled features with learned labels", "all real examples")  # fmt: skip
            share = found["distilled texts"]["examples"] / found["all real examples"]["examples"]
            cells = [nothing, *(found[row]["test"] for row in rows)]
            lines.append(f"| {name} | {per_class} | {100 * share:.1f} % | {' | '.join(of([cell]) for cell in cells)} |")
    return lines


def untouched(name: str, backbone: str) -> float:
    """Accuracy of the nearest class name."""
    stream, encoder = with_validation(name), backbones.load(backbone)
    names = [name.replace("_", " ").lower() for name in stream.class_names]
    test = Examples.concatenate([task.test for task in stream])
    of_names, of_texts = (normalize(encoder.encode(texts).float(), dim=1) for texts in (names, test.inputs))
    return float(((of_texts @ of_names.T).argmax(1) == test.labels).float().mean())


def soft(args: argparse.Namespace, folder: Path) -> list[str]:
    lines = ["## Soft sequences", "",
             "One task of CLINC150 (15 classes), 4 sequences of 8 tokens a class, seed 0; test accuracy in %. Own "
             "steps: the learned steps of training, from five fresh starts.", "",
             "| trained on it | all of its 1,500 texts | random texts, mean | best of 20 | soft set | own steps | "
             "bytes of the set |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for train in ("head", "lora(size=4)"):
        steps = args.soft_steps if train == "head" else args.soft_steps // 3
        report = report_of(args, folder, "clinc150", "soft", 0, per_class=4, until=1, train=train, steps=steps)[0]
        accuracy, own = report["accuracy"], report["own steps, fresh starts"]["test"]
        rows = ("all real examples", "random subsets, mean", "best of 20 random subsets", "distilled set")
        lines.append(f"| {train} | {' | '.join(of([accuracy[row]['test']]) for row in rows)} | "
                     f"{100 * own['mean']:.1f} ± {100 * own['deviation']:.1f} | {report['bytes']:,} |")  # fmt: skip
    return lines


def replay(args: argparse.Namespace, folder: Path) -> list[str]:
    """ER whose memory is a set of old texts: distilled, herded or random, 4 a class."""
    stream = with_validation("banking77", tasks=5, max_train_per_class=args.replay_texts)
    folder = folder / f"replay-{args.replay_texts}"
    folder.mkdir(exist_ok=True)
    names = ("distilled texts", "random texts", "herding")
    files = {row: folder / f"replay-{row.replace(' ', '-')}.safetensors" for row in names}
    if not all(file.exists() for file in files.values()):
        _memories(stream, args.backbone, files)
    lines = ["## Replayed beside new data", "",
             f"BANKING77 in 5 tasks with {args.replay_texts} training texts a class, `er` with LoRA for two epochs, 4 "
             "old texts a class and no other memory; test accuracy in % after the last task, and bytes of what is "
             "replayed.", "",
             "| replayed | accuracy | old tasks | bytes |", "|---|---|---|---|"]  # fmt: skip
    for row, file in {"nothing": None, **files}.items():
        section = {"name": "er", "train": "lora", "epochs": 2, "memory_size": 0,
                   **({"distilled": str(file)} if file else {})}  # fmt: skip
        results = [
            kept(folder / f"replay-{row.replace(' ', '-')}-{seed}.json",
                 functools.partial(_matrix, section, stream, args.backbone, seed))
            for seed in map(int, args.seeds.split(","))
        ]  # fmt: skip
        last = [matrix[-1] for matrix in results]
        size = f"{read(file).stored_bytes():,}" if file else "0"
        lines.append(f"| {row} | {of([mean(one) for one in last])} | {of([mean(one[:-1]) for one in last])} | {size} |")
    return lines


def _memories(stream: Stream, backbone: str, files: dict[str, Path]) -> None:
    """Write sets of 4 real texts a class: weighted ones, random ones, and those of herding."""
    train, encoder = Examples.concatenate([task.train for task in stream]), backbones.load_when_needed(backbone)
    features = encoder.encode(train.inputs).float()
    rows = with_offset(features, normalize(features, dim=1).mean(0))
    distilled, weights = select(rows, train.labels, len(stream.class_names), 4, progress=True)
    even = torch.ones(len(distilled))
    chosen = {"distilled texts": (distilled, weights), "random texts": (random_rows(train.labels, 4, 0), even),
              "herding": (herding(features, train.labels, 4), even)}  # fmt: skip
    for row, (places, weight) in chosen.items():
        picked = train[places]
        DistilledSet(
            "texts", stream.class_names, Encoder(name=encoder.name, identity=encoder.identity()), {},
            {"labels": picked.labels, "weights": weight}, tuple(map(str, picked.inputs)), tuple(picked.ids),
        ).save(files[row])  # fmt: skip


def _matrix(section: dict[str, Any], stream: Stream, backbone: str, seed: int) -> list[list[float]]:
    """The accuracy matrix of a run."""
    return run(section, stream, backbone=backbone, seed=seed).accuracy_matrix


def pairs(args: argparse.Namespace, folder: Path) -> list[str]:
    report = report_of(args, folder, "domains4", "soft", 0, per_class=4, train="lora", length=16,
                       steps=args.pair_steps)[0]  # fmt: skip
    everything = kept(folder / "pairs-all.json", lambda: all_pairs(args.backbone))
    found = report["nDCG@10"]
    rows = {"untouched encoder": found["untouched encoder"], **{key: value for key, value in found.items()
            if key != "untouched encoder"}, "all real pairs, one epoch": everything}  # fmt: skip
    lines = ["## Distilled pairs instead of all data: retrieval", "",
             f"domains4, {report['examples']} soft pairs of 16 tokens (4 a domain, "
             f"{100 * report['share of the data']:.1f} % of the pairs, {report['bytes']:,} bytes), LoRA on both sides, "
             "seed 0; nDCG@10 in % in the mean over domains.", "", "| trained on | validation | test |",
             "|---|---|---|"]  # fmt: skip
    for row, value in rows.items():
        cells = [f"{100 * v['mean']:.1f} ± {100 * v['deviation']:.1f}" if isinstance(v := value[part], dict)
                 else f"{100 * v:.1f}" for part in ("validation", "test")]  # fmt: skip
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def all_pairs(backbone: str) -> Row:
    """nDCG@10 after one epoch of LoRA on all training pairs together."""
    stream = with_validation("domains4")
    real = Examples.concatenate([task.train for task in stream])
    learner = Learner(backbones.load(backbone), "lora", classes=None)
    problem, weights = OnPairs(learner, real.inputs, real.positives or ()), learner.start(0)
    adam = torch.optim.Adam(weights.values(), lr=1e-3)
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(derived_seed(0)))
    for rows in order.split(32):
        adam.zero_grad()
        problem.outer(weights, rows).backward()
        adam.step()
    return scored(learner, {name: weight.detach() for name, weight in weights.items()}, list(stream))


if __name__ == "__main__":
    main()
