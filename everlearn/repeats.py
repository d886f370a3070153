"""A comparison repeated with several seeds: each is a comparison of its own, and all are reported together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everlearn.files import write_whole
from everlearn.locks import alone
from everlearn.metrics.gate import Least
from everlearn.schemas.several import read_comparison
from everlearn.streams.peek import retrieval_format

Results = dict[str, Any]

CLASS_SEED = 1993  # the default of `everlearn.streams.load`


def repeated(
    once: Callable[[dict[str, Any], int, Path | None], list[Results]], section: dict[str, Any], seed: int, seeds: int,
    folder: Path | None, least: Least,
) -> list[Results]:  # fmt: skip
    """The results of all seeds, one seed after the other. The first has the folder itself, so that a comparison that
    is finished already serves as the first of several; the others have a folder in it.

    Args:
        once: compares with a stream section, a seed and a folder.
        section: of the stream, for the first seed.
        seed: the first one.
        seeds: how many.
        folder: of the comparison; None keeps nothing.
        least: what the gate asks for.

    >>> asked = []
    >>> repeated(lambda *asking: asked.append(asking) or [], {"name": "clinc150"}, 0, 2, None, (0.8, 0.9))
    []
    >>> asked[1]
    ({'name': 'clinc150', 'class_seed': 1994, 'split_seed': 1}, 1, None)
    """
    results: list[Results] = []
    for number in range(seeds):
        own = folder / f"seed-{seed + number}" if folder and number else folder
        found = once(varied(section, number), seed + number, own)
        results += [{**result, "seed": seed + number} if "error" in result else result for result in found]
    if folder:
        write_together(folder, results, seeds, least)
    return results


def varied(section: dict[str, Any], number: int) -> dict[str, Any]:
    """The stream of the seed `number`: another order of its classes (`class_seed`), and other examples where examples
    are drawn, be it for tests, for validation or for a limit (`split_seed`). Number 0 is the stream as it is given.

    The domains of a stream keep their order, and so do classes whose order is `given`.

    >>> varied({"name": "clinc150", "class_seed": 7}, 0), varied({"name": "clinc150", "class_seed": 7}, 2)
    ({'name': 'clinc150', 'class_seed': 7}, {'name': 'clinc150', 'class_seed': 9, 'split_seed': 2})
    """
    if not number:
        return section
    seeds = {"split_seed": int(section.get("split_seed", 0)) + number}
    if not retrieval_format(section["name"]):
        seeds = {"class_seed": int(section.get("class_seed", CLASS_SEED)) + number, **seeds}
    return {**section, **seeds}


def write_together(folder: Path, results: list[Results], seeds: int, least: Least) -> None:
    """Write compare.json and report.html of all seeds in the place of those of the first."""
    from everlearn.recommendation import recommendation
    from everlearn.report import render, write_page

    with alone(folder, "comparing"):
        text = recommendation(results, least)
        record = {
            **read_comparison(folder / "compare.json"),
            "seeds": seeds,
            "results": results,
            "recommendation": text,
        }
        write_whole(folder / "compare.json", json.dumps(record, indent=1))
        write_page(render(results, text, least), folder / "report.html")
