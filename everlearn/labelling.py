"""Labelling: the file of what a person should label next, what was written into it, and whether to go on.

The file is a table (CSV) with the columns id, text or image, guess, probability and label. Its rows are in the order in
which labels help most, so a person may stop anywhere. Cells that a spreadsheet would take for a formula begin with an
apostrophe, which is taken off again when the file is read.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from everlearn import active
from everlearn.backbones.backbone import Backbone
from everlearn.errors import DataError, EverlearnError, printable, shown
from everlearn.files import write_whole
from everlearn.listeners import encoding
from everlearn.model import Model, load
from everlearn.schemas.results import read_results
from everlearn.streams.cells import BadCell, as_id, as_image, as_label, as_text, is_missing
from everlearn.streams.files import read_columns
from everlearn.streams.inputs import Input, content, kind
from everlearn.streams.readers import find_column, present, read_inputs
from everlearn.streams.records import BadRows, Record, place, with_ids
from everlearn.versions import chain

FORMULA = re.compile(r"'*[=+\-@\t\r]")
REMEDY = "write the class into the column label"


@dataclass(frozen=True)
class Asked:
    """What was written to be labelled.

    Args:
        rows: how many rows, of how many unlabelled ones (`pool`).
        strategy: by which they were chosen.
        expected_accuracy: of the present model on what is not labelled (`active.expected_accuracy`); None without one.
        notes: rows that were left out.
        agreements: Cohen's kappa of its versions, each with the one before, on what is not labelled; oldest first.

    >>> Asked(50, 900, "typical", 0.9, (0.98, 0.995, 0.997, 0.999)).stop
    True
    """

    rows: int
    pool: int
    strategy: str
    expected_accuracy: float | None = None
    agreements: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def stop(self) -> bool:
        """Whether labelling may stop, by the rule of `active.is_stable`."""
        return active.is_stable(self.agreements)

    def describe(self) -> str:
        """What a person should know, in lines."""
        lines = [f"{self.rows:,} of {self.pool:,} unlabelled rows, chosen by {self.strategy}, the most useful first"]
        if self.expected_accuracy is not None:
            lines.append(f"the model should be right on {100 * self.expected_accuracy:.1f} % of the unlabelled rows")
        if self.agreements:
            told = ", ".join(f"{kappa:.3f}" for kappa in self.agreements)
            verdict = "labels change little any more: you may stop" if self.stop else "go on labelling"
            lines.append(f"its last versions agree with a kappa of {told}: {verdict} (the rule is a mean of the last "
                         f"three of {active.KAPPA} or more)")  # fmt: skip
        return "\n".join([*lines, *map(printable, self.notes)])


def ask(
    source: Model | Backbone, data: str | Path, out: str | Path, budget: int, *, labelled: Sequence[str | Path] = (),
    strategy: active.Strategy | None = None, column: str | None = None, seed: int = 0, skip_bad_rows: bool = False,
    progress: bool = False,
) -> Asked:  # fmt: skip
    """Write the examples that should be labelled next.

    Args:
        source: the model as it is, or an encoder where nothing is learned yet.
        data: the unlabelled examples: a file or folder as `read_inputs` takes it.
        out: the file to write; it is replaced.
        budget: how many.
        labelled: files with examples that have labels; these are not asked for again, and count as known.
        strategy: one of `everlearn.active`; by default the one that did best on validation examples.
        column: the column of the inputs, in `data` and in the labelled files, where its name is not a usual one.
        seed: of what is drawn.

    Raises:
        EverlearnError: the model ranks documents, the strategy needs a model, or nothing is left to label.
        DataError: a file cannot be used; the message names the row.

    >>> import tempfile
    >>> from everlearn import backbones
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "new.csv").write_text("text\\na cup of tea\\na green sofa\\na cup of tea too\\n")
    >>> ask(backbones.load("tiny"), folder / "new.csv", folder / "to_label.csv", 2, strategy="k-center").rows
    2
    >>> (folder / "to_label.csv").read_text().splitlines()[0]
    'id,text,guess,probability,label'
    """
    model = source if isinstance(source, Model) else None
    if model is not None and not model.class_names:
        raise EverlearnError("a retrieval model ranks documents and has no classes to label: give a model of classes")
    backbone = model.method.backbone if model is not None else source
    if not isinstance(backbone, Backbone):
        raise EverlearnError(f"source: {shown(source)} is neither a model nor an encoder: give what everlearn.load or "
                             "everlearn.backbones.load returns")  # fmt: skip
    reads = model.method.task.input if model is not None else backbone.reads[0]
    bad = BadRows(skip_bad_rows, option="--skip-bad-rows")
    learned = model.columns if model is not None else {}
    inputs, ids = read_inputs(data, **{f"{reads}_column": column}, learned=learned, bad=bad)  # type: ignore[arg-type]
    if inputs and kind(inputs[0]) not in backbone.reads:
        raise EverlearnError(f"{data} holds {kind(inputs[0])}s, which {backbone.name} does not read")
    named = {**learned, **({reads: column} if column else {})}
    known = [record.input for file in labelled for record in read(file, columns=named, bad=bad)]
    seen = dict.fromkeys(map(content, known), -1)
    left = [row for row, item in enumerate(inputs) if seen.setdefault(content(item), row) == row]  # a copy is one row
    if not left:
        raise EverlearnError(f"{data} has no example left that is not labelled yet: give others")
    pool: list[Input] = [inputs[row] for row in left]
    cells = [_shown(item, Path(out)) for item in pool]  # before anything is encoded: not every image can be shown
    strategy = strategy or active.default(model is not None, max(len(known), _learned(model)))
    active.check(strategy, budget, has_model=model is not None)
    probabilities, agreements, guesses = None, tuple[float, ...](), [("", "")] * len(pool)
    with encoding(progress):
        features = _features(model or backbone, [*pool, *known])
        if model is not None:
            probabilities = torch.from_numpy(model.predict_proba(pool))
            best = probabilities.max(1)
            names = [model.class_names[k] for k in best.indices.tolist()]
            guesses = [(name, f"{p:.6g}") for name, p in zip(names, best.values.tolist(), strict=True)]
            agreements = _agreements(model, pool, names)
    order = active.choose(budget, features[: len(pool)], probabilities, features[len(pool) :], strategy=strategy,
                          seed=seed).tolist()  # fmt: skip
    _write(Path(out), kind(pool[0]), [(ids[left[row]], cells[row], *guesses[row], "") for row in order])
    expected = None if probabilities is None else active.expected_accuracy(probabilities)
    return Asked(len(order), len(pool), strategy, expected, agreements, bad.notes())


def read(
    file: str | Path, *, known: Collection[str] | None = None, columns: dict[str, str | None] | None = None,
    bad: BadRows | None = None,
) -> list[Record]:  # fmt: skip
    """The rows of a file that have labels. Rows without one may only stand at its end, where the person stopped.

    Args:
        known: the names of the classes; another label is a bad row. None allows any label.
        columns: the names of the columns by role (text, image, label, id), where they are not the usual ones.
        bad: records rows that cannot be used; without it they are refused.

    Raises:
        DataError: a row is bad and bad rows are not skipped, no row has a label, or a column is missing.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "to_label.csv"
    >>> _ = file.write_text("id,text,guess,probability,label\\n7,a cup of tea,,,drink\\n8,a sofa,,,\\n")
    >>> [(record.id, record.input, record.label) for record in read(file)]
    [('7', 'a cup of tea', 'drink')]
    """
    file, bad = Path(file), bad or BadRows(False, option="--skip-bad-rows")
    others = len(bad.rows)  # of files that were read before
    table = read_columns(file, bad)
    wanted = present(columns or {}, table)
    found = {role: find_column(role, table, wanted) for role in ("text", "image", "label", "id")}
    is_image = found["text"] is None
    source = found["image"] if is_image else found["text"]
    if source is None or found["label"] is None:
        missing = "label" if source else "text or image"
        raise DataError(f"{file}: no column {missing}; give a file that `everlearn label` wrote, with labels")
    is_ours = {"guess", "probability"} <= {*table.headers}
    cells = {role: table.read(name) for role, name in found.items() if name}
    labels, inputs = cells["label"], cells["image" if is_image else "text"]
    last = max((row for row, label in enumerate(labels) if not is_missing(label)), default=-1)
    if last < 0:
        raise DataError(f"{file}: no row has a label; {REMEDY}")
    records = []
    for row in range(last + 1):
        raw = (labels[row], inputs[row], cells["id"][row] if "id" in cells else "")
        label, item, id = map(_without_mark, raw) if is_ours else raw
        try:
            if is_missing(label):
                raise BadCell("the label is missing, and later rows have one", REMEDY)
            name = as_label(label, [])
            if known is not None and name not in known:
                raise _unknown(name, known)
            record = Record(as_image(item, file.parent) if is_image else as_text(item), name,
                            as_id(id) if "id" in cells else "", str(file), table.rows[row])  # fmt: skip
        except BadCell as problem:
            bad.add(place(str(file), table.rows[row]), *problem.args)
        else:
            records.append(record)
    if not records:
        raise DataError(f"{file}: no row with a label can be used: {': '.join(bad.rows[others])}")
    return with_ids(records, bad)


def write_labelled(records: Sequence[Record], out: str | Path) -> None:
    """Write what was labelled as a file that `everlearn run` learns.

    Raises:
        DataError: an input is an image that is not in a file.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "labelled.csv"
    >>> write_labelled([Record("a cup of tea", "drink", "7")], file)
    >>> file.read_text().splitlines()
    ['id,text,label', '7,a cup of tea,drink']
    """
    cells = [(record.id, _shown(record.input, Path(out)), record.label) for record in records]
    write_whole(Path(out), _csv(("id", kind(records[0].input), "label"), cells))


def _unknown(label: str, known: Collection[str]) -> BadCell:
    near = difflib.get_close_matches(label[:100], sorted(known), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return BadCell(f"'{printable(label)}' is no class of the model", f"{hint}correct it, or add --new-classes")


def _learned(model: Model | None) -> int:
    """How many examples the model has learned, as far as its folder tells."""
    if model is None or model.directory is None:
        return 0
    results = read_results(model.directory / "results.json")
    updates = sum(version.learned for version in chain(model.directory, model.version))
    return sum(task["train"] for task in results["tasks"]) + updates


def _features(source: Model | Backbone, inputs: Sequence[Input]) -> Tensor:
    if isinstance(source, Backbone):
        with torch.no_grad():
            return source.encode(inputs).float().cpu()
    return torch.from_numpy(source.embed(inputs))


def _agreements(model: Model, pool: Sequence[Input], guesses: Sequence[str]) -> tuple[float, ...]:
    """Of the last four versions of the model's folder, each with the one before; the guesses are the model's own."""
    if model.directory is None or model.version == 1:
        return ()
    numbers = [1, *(version.version for version in chain(model.directory, model.version))][-4:]
    cls = type(model.method)
    earlier = [load(model.directory, method=cls, version=number) for number in numbers[:-1]]
    of_each = [*(one.predict(pool) for one in earlier), guesses]
    return tuple(active.agreement(before, after) for before, after in pairwise(of_each))


def _write(out: Path, column: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Write rows of id, input, guess, probability and label; the column of the inputs has a name of its own."""
    marked = [[f"'{cell}" if FORMULA.match(cell) else cell for cell in row] for row in rows]
    write_whole(out, _csv(("id", column, "guess", "probability", "label"), marked))


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    return table.getvalue().encode()


def _shown(item: Input, out: Path) -> str:
    """What stands for an input in the file `out`: the text, or the path of the image from the folder of `out`."""
    if isinstance(item, str):
        return item
    if isinstance(item, Path):
        return os.path.relpath(item, out.parent)
    raise DataError(f"{out}: a table cannot hold the images themselves, and these are in no files: write them into a "
                    "folder and give that")  # fmt: skip


def _without_mark(value: object) -> object:
    """The cell without the apostrophe that keeps a spreadsheet from computing it.

    >>> _without_mark("'=1+1"), _without_mark("''=1+1"), _without_mark("'tis")
    ('=1+1', "'=1+1", "'tis")
    """
    return value[1:] if isinstance(value, str) and value.startswith("'") and FORMULA.match(value) else value
