"""What an ensemble costs as tasks go by: the bytes that it stores and the time of a prediction, after each of 20 tasks.

    python bench/mixture_costs.py [--methods simplecil,ranpac,task_adapters,esn] [--tasks 20] [--train-per-class 5]
        [--asked 200] [--stream clinc150] [--backbone minilm]

Each method learns the stream with the settings of its recipe, one epoch a task, because neither cost depends on how
long it trained. After a task, texts that nobody has asked before are answered, of the same lengths every time, and
without their features in the feature store: the time is that of a first answer, encoder included. It is the median of
five times, each for `--asked` texts. Stored bytes are those of a checkpoint, without the encoder where it is frozen.
Writes docs/results/mixture_costs.md.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import common
import torch

from everlearn import backbones, methods, streams
from everlearn.checkpoint import method_state
from everlearn.config import arguments
from everlearn.engine import learn
from everlearn.features import FeatureStore, using_store
from everlearn.method import Method
from everlearn.results import environment
from everlearn.streams.stream import Stream

REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="simplecil,ranpac,task_adapters,esn")
    parser.add_argument("--stream", default="clinc150")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--train-per-class", type=int, default=5)
    parser.add_argument("--asked", type=int, default=200, help="texts of a prediction")
    parser.add_argument("--threads", type=int, help="of torch")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    stream = streams.load(args.stream, tasks=args.tasks, max_train_per_class=args.train_per_class)
    ask, found = strangers(stream, args.asked), {}
    for name in args.methods.split(","):
        section = common.recipe_settings(args.stream, name)
        cls = methods.get(section.pop("name"))
        if "epochs" in arguments(cls):
            section["epochs"] = 1
        method = cls(backbones.load(args.backbone), **section)
        found[name] = costs(method, stream, ask)
        print(name, *(f"{size / 1e6:.2f} MB {1000 * seconds:.0f} ms" for size, seconds in found[name]), flush=True)
    shown = sorted({*(k for k in (1, 2, 5, 10, 15) if k <= len(stream)), len(stream)})
    lines = ["# What a mixture costs as tasks go by", "", f"From `{common.command(parser, args, ('threads',))}`.", "",
             f"Measured: {stream.name}, {len(stream)} tasks, {args.backbone}, {args.train_per_class} training examples "
             f"per class, one epoch, seed 0; {common.machine(environment(method.backbone))}.", ""]  # fmt: skip
    units: list[tuple[str, Callable[[int, float], str]]] = [
        ("Stored, MB", lambda size, seconds: f"{size / 1e6:.2f}"),
        (f"Milliseconds for {args.asked} new texts", lambda size, seconds: f"{1000 * seconds:.0f}"),
    ]
    for title, cell in units:
        lines += [f"## {title}", "", f"| method | {' | '.join(f'after task {k}' for k in shown)} | a task |",
                  "|---" * (2 + len(shown)) + "|"]  # fmt: skip
        for name, pairs in found.items():
            each = [(last - first) / (len(pairs) - 1) for first, last in zip(pairs[0], pairs[-1], strict=True)]
            cells = [cell(*pairs[k - 1]) for k in shown]
            lines.append(f"| {name} | {' | '.join(cells)} | {cell(int(each[0]), each[1])} |")
        lines.append("")
    common.write_page("mixture_costs", lines)


def strangers(stream: Stream, count: int) -> Callable[[], list[str]]:
    """Makes `count` texts of the test data's lengths that have not been made before."""
    texts = [str(text) for task in stream for text in task.test.inputs][: 10 * count]
    words = sorted({word for text in texts for word in text.split()})
    draw = random.Random(0)
    lengths = [len(draw.choice(texts).split()) for _ in range(count)]
    return lambda: [" ".join(draw.choices(words, k=length)) for length in lengths]


def costs(method: Method, stream: Stream, ask: Callable[[], list[str]]) -> list[tuple[int, float]]:
    """After each task: the bytes that are stored, and the seconds of a prediction."""
    found = []
    for task in stream:
        learn(method, task)
        method.eval()
        seconds = []
        for _ in range(REPEATS):
            asked: list[Any] = ask()
            with tempfile.TemporaryDirectory() as folder, using_store(FeatureStore(folder)), torch.no_grad():
                started = time.perf_counter()
                method.predict(asked)
                seconds.append(time.perf_counter() - started)
        found.append((sum(tensor.nbytes for tensor in method_state(method).values()), median(seconds)))
    return found


if __name__ == "__main__":
    main()
