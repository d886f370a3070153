"""The time and the memory of asking a feature store for 1,000 examples, by how much the store holds.

    python bench/store.py [--features 10000 2000000] [--width 32] [--asked 1000] [--checkout DIR …]

For each size a store of one identity is filled with segments of 2,048 features, and asked once, as a first run would,
so that its index is made; the time of this call is printed too. Then fresh processes open it and ask for examples
that were stored together, as those of one data set are. `time` is that of the call and `memory` what the process then
holds more than before; the median of five processes each. `--checkout` measures another version of everlearn on
a store of its own in the same run, turn by turn. Goal: the same time and memory, whatever the store holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FILL = """
import sys
from pathlib import Path
import numpy as np
from everlearn.segments import write_segment
from everlearn import files
files.flush_to_disk = lambda path: None  # filling would wait for the disk, and is not measured
folder, count, width = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True)
draw = np.random.default_rng(0)
for start in range(0, count, 2048):
    rows = min(2048, count - start)
    keys = [key.tobytes() for key in draw.integers(0, 256, (rows, 16), np.uint8)]
    if start == 0:
        Path(sys.argv[4]).write_bytes(b"".join(keys))
    write_segment(folder, keys, draw.standard_normal((rows, width), np.float32))
"""

ASK = """
import json, sys, time
from pathlib import Path
from everlearn.shelves import Shelf
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
folder, width, asked = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = Path(sys.argv[4]).read_bytes()
keys = [data[16 * i : 16 * i + 16] for i in range(asked)]
before, started = held(), time.perf_counter()
shelf = Shelf(folder, width, {})
assert shelf.missing(keys) == 0 and len(shelf.read(keys)) == asked
print(json.dumps([time.perf_counter() - started, held() - before]))
"""


def ask(checkout: Path, folder: Path, args: argparse.Namespace, keys: Path) -> list[float]:
    """Seconds and bytes of one fresh process."""
    command = [sys.executable, "-c", ASK, str(folder), str(args.width), str(args.asked), str(keys)]
    found: list[float] = json.loads(subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[10_000, 2_000_000])
    parser.add_argument("--checkout", type=Path, nargs="+", default=[])
    for name, default in (("width", 32), ("asked", 1000), ("repetitions", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    checkouts = [*args.checkout, Path(__file__).parents[1]]
    medians: dict[tuple[Path, int], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as root:
        keys, folders = {}, {}
        for count in args.features:
            for number, checkout in enumerate(checkouts):
                keys[count] = Path(root, f"keys-{count}")
                folder = folders[checkout, count] = Path(root, f"{number}-{count}", "0" * 32)
                command = [sys.executable, "-c", FILL, str(folder), str(count), str(args.width), str(keys[count])]
                subprocess.run(command, cwd=checkouts[-1], check=True)
                seconds, _ = ask(checkout, folder, args, keys[count])
                print(f"{count:>9,} features, first process of {checkout.resolve().name}: {seconds:.3f} s", flush=True)
        found: dict[tuple[Path, int], list[list[float]]] = {place: [] for place in folders}
        for _ in range(args.repetitions):
            for (checkout, count), folder in folders.items():
                found[checkout, count].append(ask(checkout, folder, args, keys[count]))
        for (checkout, count), measured in found.items():
            seconds, held = (statistics.median(values) for values in zip(*measured, strict=True))
            medians[checkout, count] = seconds, held
            print(f"{count:>9,} features, {checkout.resolve().name}: time {1000 * seconds:.1f} ms, "
                  f"memory {held / 2**20:.1f} MiB")  # fmt: skip
    least, most = min(args.features), max(args.features)
    for checkout in checkouts:
        times, held = (medians[checkout, most][i] / medians[checkout, least][i] for i in (0, 1))
        print(f"{checkout.resolve().name}, {most:,} features against {least:,}: {times:.2f} times the time, "
              f"{held:.2f} times the memory")  # fmt: skip


if __name__ == "__main__":
    main()
