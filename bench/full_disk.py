"""Run and resume on disks that are too small, and then with enough room: the result must be equal to the bit.

    python bench/full_disk.py [--sizes 20]

The disk is a tmpfs of the given size, which needs the right to mount: `unshare --map-root-user --mount` before the
command gives it. Where mounting is refused, the size of each file is limited instead (RLIMIT_FSIZE). Configuration,
checkpoints, results and the feature store are all on that disk. The sizes are spread evenly up to what the run needs;
where it fails it must say so in one line, and so must the resumed run on the same disk. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kill import continued, differences, facts, learned, start, wait, warm_up

AMPLE = 256 * 2**20
METHODS = ("er", "l2p", "ewc", "coda_prompt")  # each takes every fourth size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=20)
    sizes = parser.parse_args().sizes
    root = Path(tempfile.mkdtemp(prefix="everlearn-full-disk-"))
    disk = root / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={AMPLE}", "none", str(disk)]
    mounted = subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0
    warm_up(root)

    def execute(command: Sequence[str | Path], size: int) -> tuple[int, bool]:
        """The exit code, and whether a failure was told in one line and no traceback."""
        said = root / "said.txt"
        said.unlink(missing_ok=True)
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
        code = wait(start(command, said, disk / "cache", (lambda: None) if mounted else lambda: limit(size)))
        text = said.read_text()
        clear = code == 0 or (code == 2 and text.count("everlearn: ") == 1 and "Traceback" not in text)
        if not clear:
            print(text)
        return code, clear

    references, needs = {}, {}
    for method in METHODS:
        execute([*learned(method), "--out", disk / "run"], AMPLE)
        references[method] = facts(disk / "run")
        needs[method] = peak(disk, [*learned(method), "--out", disk / "again"]) if mounted else max(
            file.stat().st_size for file in disk.rglob("*") if file.is_file()
        )  # fmt: skip
        clear_folder(disk)
    tally = {"disk_full_sizes": 0, "disk_full_failures": 0, "unclear": 0, "unequal": 0}
    for number in range(sizes):
        method = METHODS[number % len(METHODS)]
        size = max(4096, needs[method] * (number + 1) // (sizes + 1))
        folder = disk / "run"
        attempts = [execute(continued(learned(method), folder), size) for _ in range(2)]
        code, clear = execute(continued(learned(method), folder), AMPLE)
        outcome = [f"code {code}"] if code else differences(references[method], facts(folder))
        failures = sum(code != 0 for code, _ in attempts)
        tally["disk_full_sizes"] += failures > 0
        tally["disk_full_failures"] += failures
        tally["unclear"] += sum(not clear for _, clear in attempts) + (not clear)
        tally["unequal"] += len(outcome)
        print(f"{method:<14} {size:>9,} of {needs[method]:,} bytes: exit codes {[code for code, _ in attempts]}; "
              f"{'; '.join(outcome) or 'equal'}", flush=True)  # fmt: skip
        clear_folder(disk)
    print(json.dumps({**tally, "disk": "tmpfs" if mounted else "RLIMIT_FSIZE"}))
    if mounted:
        subprocess.run(["umount", str(disk)], check=True)
    shutil.rmtree(root)
    return int(tally["unclear"] + tally["unequal"] > 0)


def limit(size: int) -> None:
    """From now on this process cannot write a file beyond this size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def peak(disk: Path, command: Sequence[str | Path]) -> int:
    """The most bytes that the disk holds at once while the command learns with an empty feature store."""
    clear_folder(disk)
    pid, most = start(command, disk.with_name("peak.txt"), disk / "cache"), 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        used = os.statvfs(disk)
        most = max(most, (used.f_blocks - used.f_bfree) * used.f_frsize)
        time.sleep(0.002)
    return most


def clear_folder(folder: Path) -> None:
    for place in folder.iterdir():
        with contextlib.suppress(NotADirectoryError):
            shutil.rmtree(place)
        place.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
