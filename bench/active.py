"""How many labels does each strategy of `everlearn/active.py` need, beside random choice?

    python bench/active.py [--choose] [--seeds 0,1,2,3,4] [--rows "a,a;a,b,50"] [--out FOLDER]

For each seed, 5,000 training texts are the pool of unlabelled ones. Rounds of labelling go from 50 labels to 1,500,
first by a strategy that needs no model, later by another one, with the model of the labels so far. The model is
logistic regression on frozen features of MiniLM (`everlearn.heads.logistic`, C = 30). A row names the first strategy,
the next one, and the number of labels from which on this one chooses; `random,random` is needed, beside which all are.

With --choose the data are CLINC150 and its validation examples, from which the defaults were chosen. Without it, the
data are BANKING77 and its test examples, and nothing is chosen.

Written to docs/results/active.md (active_choice.md with --choose): the accuracy at several numbers of labels, the
labels that are needed for an accuracy, how many fewer these are than with random choice, and where the stopping rule
says stop. Then what a list of 300 that was chosen without a model is worth, when only its beginning is labelled.
"""

from __future__ import annotations

import time
from functools import partial
from statistics import median
from typing import Any

import common
import torch
from torch import Tensor

from everlearn import active, backbones, streams
from everlearn.heads.logistic import fit
from everlearn.progress import Progress
from everlearn.results import environment

POOL = 5000
LABELS = [*range(50, 500, 50), *range(500, 1501, 100)]
SHOWN = (50, 150, 300, 500, 1000, 1500)
ACCURACIES = (70, 75, 80, 85)
LIST, BEGINNINGS = 300, (50, 100, 200, 300)
FIRST = ("random", "k-center", "typical", "facility")
ROWS = ["random,random", "k-center,k-center", "typical,typical", "facility,facility", "random,margin,50",
        "typical,margin,50", "typical,margin,300", *(f"typical,{then},500" for then in active.BY_MODEL)]  # fmt: skip
"""The strategy up to so many labels, and the one from then on."""


def main() -> None:
    parser = common.options(__doc__, seeds="0,1,2,3,4")
    parser.add_argument("--choose", action="store_true", help="CLINC150 and its validation examples")
    parser.add_argument("--rows", default=";".join(ROWS), help="pairs of strategies, separated by semicolons")
    parser.add_argument("--lists", default=",".join(FIRST), help="strategies that choose a list at once")
    args, folder = common.parsed(parser)
    name, part = ("clinc150", "validation") if args.choose else ("banking77", "test")
    task = streams.load(name, tasks=1)[0]
    held = task.validation if args.choose else task.test
    backbone = backbones.load(args.backbone)
    data = [backbone.encode(task.train.inputs), task.train.labels, backbone.encode(held.inputs), held.labels]
    rows, seeds = args.rows.split(";"), list(map(int, args.seeds.split(",")))
    lists = list(filter(None, args.lists.split(",")))
    runs: dict[str, list[dict[str, Any]]] = {row: [] for row in [*rows, *lists]}
    with Progress(len(runs) * len(seeds), f"labelling {name}") as bar:
        for row in runs:
            for seed in seeds:
                file = folder / f"{name}-{row.replace(',', '-then-')}-{seed}.json"
                runs[row].append(common.kept(file, partial(rounds if "," in row else beginnings, row, data, seed)))
                bar.advance(1, row)
    lines = [f"# Which examples to label next: {'the choice of the defaults' if args.choose else 'BANKING77'}", "",
             f"From `{common.command(parser, args, ('out', 'threads'))}`.", "",
             f"Measured on the {part} examples of {name}, {args.backbone}, a pool of {POOL:,}, seeds {args.seeds}; "
             f"{common.machine(environment(backbone))}.", "", "Medians of the seeds, accuracy in %:", "",
             *at_labels({row: runs[row] for row in rows}), "",
             "Labels needed for an accuracy, and how many fewer than with random choice of the same pool (median of "
             "the seeds); - where 1,500 are not enough:", "", *needed({row: runs[row] for row in rows}), "",
             *of_beginnings({row: runs[row] for row in lists})]  # fmt: skip
    common.write_page("active_choice" if args.choose else "active", lines)


def pool_of(data: list[Tensor], seed: int) -> tuple[Tensor, Tensor]:
    rows = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(seed))[:POOL]
    return data[0][rows], data[1][rows]


CHOSEN: dict[tuple[str, int, tuple[int, ...]], tuple[Tensor, float]] = {}
"""What strategies without a model have chosen, by what was labelled, since several rows begin alike."""


def rounds(row: str, data: list[Tensor], seed: int) -> dict[str, Any]:
    """Label until the last number of LABELS: accuracy, agreement with the model before and seconds of each choice."""
    first, then, until = [*row.split(","), str(LABELS[-1])][:3]
    features, labels = pool_of(data, seed)
    is_labelled = torch.zeros(len(labels), dtype=torch.bool)
    guesses: list[Tensor] = []
    found: dict[str, Any] = {"accuracy": [], "kappa": [], "seconds": [], "expected": [], "left": []}
    predicted = None
    for wanted in LABELS:
        rest = (~is_labelled).nonzero().flatten()
        count = int(is_labelled.sum())
        strategy = first if count < int(until) else then
        chosen, seconds = chosen_by(strategy, wanted - count, features, is_labelled, predicted, seed)
        found["seconds"].append(seconds)
        is_labelled[rest[chosen]] = True
        predicted, accuracy = learned(features, labels, is_labelled, data)
        guesses.append(predicted.argmax(1))
        found["accuracy"].append(accuracy)
        rest = ~is_labelled
        found["expected"].append(active.expected_accuracy(predicted[rest]))
        found["left"].append(float((guesses[-1] == labels)[rest].double().mean()))
        if len(guesses) > 1:
            found["kappa"].append(active.agreement(*(list(map(str, g.tolist())) for g in guesses[-2:])))
    return found


def chosen_by(
    strategy: str, budget: int, features: Tensor, is_labelled: Tensor, predicted: Tensor | None, seed: int
) -> tuple[Tensor, float]:
    """Which of the rows that are not labelled to label next, and the seconds that the choice took."""
    key = strategy, seed, (budget, *is_labelled.nonzero()[:, 0].tolist())
    if key in CHOSEN:
        return CHOSEN[key]
    before = time.monotonic()
    known = None if predicted is None else predicted[~is_labelled]
    chosen = active.choose(budget, features[~is_labelled], known, features[is_labelled], strategy=strategy, seed=seed)
    found = chosen, time.monotonic() - before
    if strategy in active.BY_FEATURES:
        CHOSEN[key] = found
    return found


def beginnings(first: str, data: list[Tensor], seed: int) -> dict[str, Any]:
    """Choose LIST rows at once, and learn from the beginnings of the list."""
    features, labels = pool_of(data, seed)
    order = active.choose(LIST, features, strategy=first, seed=seed)
    accuracies = []
    for count in BEGINNINGS:
        is_labelled = torch.zeros(len(labels), dtype=torch.bool)
        is_labelled[order[:count]] = True
        accuracies.append(learned(features, labels, is_labelled, data)[1])
    return {"accuracy": accuracies}


def learned(features: Tensor, labels: Tensor, is_labelled: Tensor, data: list[Tensor]) -> tuple[Tensor, float]:
    """The probabilities (pool, all classes) that a model of the labelled rows gives, and its held-out accuracy."""
    unit = torch.nn.functional.normalize
    weight, offset, present = fit(unit(features[is_labelled]), labels[is_labelled], 30.0)
    probabilities = torch.zeros(len(features), int(data[1].max()) + 1)
    probabilities[:, present] = (unit(features) @ weight + offset).softmax(1)
    right = present[(unit(data[2]) @ weight + offset).argmax(1)] == data[3]
    return probabilities, float(right.double().mean())


def named(row: str) -> str:
    first, then, *until = row.split(",")
    return first if first == then else f"{first}, {then}, {until[0]}"


def at_labels(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [f"| first, then, from | {' | '.join(f'{count:,}' for count in SHOWN)} | seconds of a choice |",
             "|---" * (2 + len(SHOWN)) + "|"]  # fmt: skip
    for row, found in runs.items():
        cells = [f"{100 * median(run['accuracy'][LABELS.index(count)] for run in found):.1f}" for count in SHOWN]
        seconds = median(second for run in found for second in run["seconds"][1:])
        lines.append(f"| {named(row)} | {' | '.join(cells)} | {seconds:.2f} |")
    return lines


def labels_for(run: dict[str, Any], accuracy: float) -> float | None:
    """The number of labels from which on the accuracy is reached, between two rounds on the line that joins them."""
    for place, (count, reached) in enumerate(zip(LABELS, run["accuracy"], strict=True)):
        if 100 * reached >= accuracy:
            if place == 0:
                return count
            low, before = LABELS[place - 1], 100 * run["accuracy"][place - 1]
            return low + (count - low) * (accuracy - before) / (100 * reached - before)
    return None


def needed(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [f"| first, then, from | {' | '.join(f'{accuracy} %' for accuracy in ACCURACIES)} | stops at "
             "| accuracy there |",
             "|---" * (3 + len(ACCURACIES)) + "|"]  # fmt: skip
    for row, found in runs.items():
        cells = []
        for accuracy in ACCURACIES:
            counts = [labels_for(run, accuracy) for run in found]
            base = [labels_for(run, accuracy) for run in runs["random,random"]]
            if any(count is None for count in [*counts, *base]):
                cells.append("-" if any(count is None for count in counts) else f"{median(counts):,.0f}")
                continue
            fewer = median(1 - count / other for count, other in zip(counts, base, strict=True))
            beside = f" ({abs(100 * fewer):.0f} % {'fewer' if fewer > 0 else 'more'})" if row != "random,random" else ""
            cells.append(f"{median(counts):,.0f}{beside}")
        stops = [stop_of(run) for run in found]
        reached = [run["accuracy"][stop] for run, stop in zip(found, stops, strict=True) if stop is not None]
        there = (f"{median(LABELS[s] for s in stops if s is not None):,.0f} ({len(reached)} of {len(found)})"
                 if reached else "-")  # fmt: skip
        lines.append(f"| {named(row)} | {' | '.join(cells)} | {there} "
                     f"| {f'{100 * median(reached):.1f}' if reached else '-'} |")  # fmt: skip
    return lines


def stop_of(run: dict[str, Any]) -> int | None:
    """The round after which the agreement of successive models says stop."""
    rounds = range(1, len(run["kappa"]) + 1)
    return next((count for count in rounds if active.is_stable(run["kappa"][:count])), None)


def of_beginnings(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    if not runs:
        return []
    lines = [f"Accuracy where a list of {LIST}, chosen without a model, is labelled to here only:", "",
             f"| strategy | {' | '.join(map(str, BEGINNINGS))} |", "|---" * (1 + len(BEGINNINGS)) + "|"]  # fmt: skip
    for row, found in runs.items():
        cells = [f"{100 * median(run['accuracy'][k] for run in found):.1f}" for k in range(len(BEGINNINGS))]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
