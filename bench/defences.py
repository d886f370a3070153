"""What a defence against forgetting costs beside plain fine-tuning: the seconds of a step, and memory.

    python bench/defences.py [--methods finetune,er,mir,…] [--train full,lora] [--tasks 20] [--backbone minilm]

Each method learns the tasks of CLINC150 with a few examples of each class, in a process of its own, for one epoch. The
first method is the one that the others are compared with. Seconds of a step are those of the processor, the median over
the steps of the last task, where a memory holds examples of all earlier ones. `projection` is the share of them that
the projection of gradients takes (`gem`, `a_gem`). Peak memory is the largest resident memory of the process, the model
and the libraries included. Writes docs/results/defences.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from common import command, machine, write_page

from everlearn import backbones
from everlearn.results import environment

METHODS = "finetune,er,er_ace,der_pp,mir,a_gem,gem,ewc,si,mas,l2_sp,lwf,feature_distillation"

LEARN = """
import json, statistics, sys, time
import torch
from everlearn import backbones, methods, projection, streams
from everlearn.engine import learn
from everlearn.methods import a_gem
from everlearn.results import peak_memory

name, train, tasks, backbone = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
stream = streams.load("clinc150", tasks=tasks, max_train_per_class=12, max_test_per_class=1)
method = methods.get(name)(backbones.load(backbone), train=train, epochs=1)
steps, projected = [], []
step, project = method.step, projection.project

def timed(batch, optimizer_step):
    started = time.process_time()
    loss = step(batch, optimizer_step)
    steps.append(time.process_time() - started)
    return loss

def timed_projection(*args):
    started = time.process_time()
    project(*args)
    projected.append(time.process_time() - started)

object.__setattr__(method, "step", timed)
a_gem.project = timed_projection
for task in stream:
    steps.clear()
    projected.clear()
    learn(method, task)
print(json.dumps({
    "step": statistics.median(steps), "projection": statistics.median(projected) if projected else None,
    "peak": peak_memory(),
    "trained": 4 * sum(p.numel() for p in method.trained().values()),
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--train", default="full,lora")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--backbone", default="minilm")
    args = parser.parse_args()
    lines = [
        "# What a defence costs", "",
        f"Measured with `{command(parser, args)}`: CLINC150 in {args.tasks} tasks, {args.backbone}, batches of 32 and "
        f"as many replayed, on {machine(environment(backbones.load(args.backbone)) | {'threads': 1})}.",
    ]  # fmt: skip
    for train in args.train.split(","):
        runs = {}
        for name in args.methods.split(","):
            runs[name] = learned(name, train, args)
            print(train, name, runs[name], flush=True)
        first = next(iter(runs.values()))
        lines += ["", f"## train={train}, {first['trained'] / 1e6:.1f} MB of weights are trained", "",
                  "| method | ms a step | beside the first | projection, % | peak memory, MB | beside the first "
                  "| above it, MB |", "|---|---|---|---|---|---|---|"]  # fmt: skip
        lines += [row(name, found, first) for name, found in runs.items()]
    write_page("defences", lines)


def learned(name: str, train: str, args: argparse.Namespace) -> dict[str, Any]:
    called = [sys.executable, "-c", LEARN, name, train, str(args.tasks), args.backbone]
    told = subprocess.run(called, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(told.splitlines()[-1]))


def row(name: str, found: dict[str, Any], first: dict[str, Any]) -> str:
    share = "" if found["projection"] is None else f"{100 * found['projection'] / found['step']:.0f}"
    above = (found["peak"] - first["peak"]) / 1e6
    return (f"| {name} | {1000 * found['step']:.0f} | {found['step'] / first['step']:.2f} | {share} "
            f"| {found['peak'] / 1e6:.0f} | {found['peak'] / first['peak']:.2f} | {above:+.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
