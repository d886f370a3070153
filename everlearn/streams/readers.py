"""Readers: turn files, folders and columns into the records of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from os.path import isdir, isfile  # unlike those of Path, they raise no error for a name that no file can have
from pathlib import Path
from types import MappingProxyType

from everlearn.errors import DataError, printable
from everlearn.streams.cells import BadCell, as_id, as_image, as_label, as_name, as_split, as_text, is_missing
from everlearn.streams.columns import Columns
from everlearn.streams.files import READERS, find_parts, read_columns
from everlearn.streams.images import IMAGE_ENDINGS, folders_below, images_in, only_decodable, read_image_folder
from everlearn.streams.mistakes import check_columns, check_labels
from everlearn.streams.peek import IMAGE_NAMES, LABEL_NAMES, QUERY
from everlearn.streams.records import BadRows, Record, Table, place, with_ids

COMMON_NAMES = {
    "text": ("text", "utterance", "sentence", "query", "question", "content"),
    "image": IMAGE_NAMES,
    "label": LABEL_NAMES,
    "domain": ("domain",),
    "split": ("split",),
    "id": ("id",),
}
"""The usual names of each column, the likeliest name first. Upper and lower case are not distinguished."""

ROLES = ("label", "domain", "split", "id")


ColumnNames = Mapping[str, str | None]
"""The names of columns that the user gave, by role. Other columns are looked up by their usual names."""
NONE: ColumnNames = MappingProxyType({})


def find_column(role: str, columns: Columns, wanted: ColumnNames, *, labelled: bool = True) -> str | None:
    """The column for a role, or None if there is none. Files without labels have their column named by another option.

    Raises:
        DataError: the user named a column that the file does not have.
    """
    named = wanted.get(role)
    if named is not None and named not in columns.headers:
        option = f"--stream.{role}_column" if labelled else "--column"
        raise DataError(f"{columns.file}: no column '{named}'; {_found(columns)}: correct {option} "
                        f"(in Python {role}_column)")  # fmt: skip
    by_lower_case = {name.lower(): name for name in reversed(columns.headers)}
    usual = (by_lower_case[name] for name in COMMON_NAMES[role] if name in by_lower_case)
    return named or next(usual, None)


def _found(columns: Columns) -> str:
    return f"the columns are {printable(', '.join(columns.headers), 400)}"


def present(learned: ColumnNames, columns: Columns) -> dict[str, str | None]:
    """Those of the columns that a model was trained on, by role, which the file has."""
    return {role: name for role, name in learned.items() if name in columns.headers}


def to_table(
    columns: Columns, wanted: ColumnNames, bad: BadRows, *, learned: ColumnNames = NONE, labelled: bool = True
) -> Table:
    """Convert columns to records. Without `labelled`, every label is the empty string.

    Args:
        learned: the columns that a model was trained on, by role; used where the file has them.

    Raises:
        DataError: a column is missing, or a row is bad and bad rows are not skipped.
    """
    wanted = {**present(learned, columns), **{role: name for role, name in wanted.items() if name}}
    input_column, input_kind = _input_column(columns, wanted, labelled)
    found = {role: find_column(role, columns, wanted, labelled=labelled) for role in (ROLES if labelled else ("id",))}
    if labelled and found["label"] is None:
        pairs = ", or add a column positive for pairs of a query and a document" if QUERY in columns.headers else ""
        raise DataError(f"{columns.file}: no label column; {_found(columns)}: name one with --stream.label_column "
                        f"(in Python label_column){pairs}")  # fmt: skip
    if labelled and found["label"] == input_column:
        raise DataError(f"{columns.file}: the column '{input_column}' is both the input and the label; "
                        f"{_found(columns)}: name another with --stream.label_column "
                        "(in Python label_column)")  # fmt: skip
    label_names = columns.names.get(found.get("label") or "") or columns.names.get("class", [])
    domain_names = columns.names.get(found.get("domain") or "") or columns.names.get("domain", [])

    folder = Path(columns.file).parent
    inputs = columns.read(input_column)
    cells = {role: columns.read(name) for role, name in found.items() if name}
    if labelled and input_kind == "text":
        check_columns(columns.file, input_column, inputs, str(found["label"]), cells["label"])
    records = []
    for i, (row, content) in enumerate(zip(columns.rows, inputs, strict=True)):
        cell = {role: values[i] for role, values in cells.items()}
        try:
            item = as_text(content) if input_kind == "text" else as_image(content, folder)
            label = as_label(cell.get("label"), label_names) if labelled else ""
            id = as_id(cell["id"]) if "id" in cell else ""
            split = as_split(cell.get("split"))
            domain = None if is_missing(cell.get("domain")) else as_name(cell["domain"], domain_names, "domain")
        except BadCell as problem:
            bad.add(place(columns.file, row), *problem.args)
        else:
            records.append(Record(item, label, id, columns.file, row, split, domain))
    if labelled and not label_names:
        check_labels(records)
    return Table(columns.file, input_kind, records, tuple(label_names))


def _input_column(columns: Columns, wanted: ColumnNames, labelled: bool) -> tuple[str, str]:
    options = "--stream.text_column or --stream.image_column" if labelled else "--column"
    remedy = f"name one with {options} (in Python text_column or image_column)"
    if wanted.get("text") and wanted.get("image"):
        raise DataError(f"{columns.file}: text_column and image_column are both given; give one of them")
    text = None if wanted.get("image") else find_column("text", columns, wanted, labelled=labelled)
    image = None if wanted.get("text") else find_column("image", columns, wanted, labelled=labelled)
    if text and image:
        raise DataError(f"{columns.file}: the columns '{text}' and '{image}' may both be the input; {remedy}")
    if text:
        return text, "text"
    if image:
        return image, "image"
    raise DataError(f"{columns.file}: no text or image column; {_found(columns)}: {remedy}")


def read_table(
    name: str, wanted: ColumnNames, bad: BadRows, *, learned: ColumnNames = NONE, by_domain: bool = False
) -> Table | None:
    """The records of a file, of `<name>_train` and the files that belong to it, or of a folder; None if none exists."""
    path = Path(name)
    if isfile(path) or (path.suffix.lower() in READERS and not isdir(path)):
        return to_table(read_columns(path, bad), wanted, bad, learned=learned)
    parts = find_parts(path) if path.name else {}
    if parts:
        return Table.join([to_table(read_columns(p, bad), wanted, bad, learned=learned).with_all(split=split)
                           for split, p in parts.items()])  # fmt: skip
    return read_image_folder(path, by_domain=by_domain) if isdir(path) else None


def read_inputs(
    path: str | Path, *, text_column: str | None = None, image_column: str | None = None,
    learned: ColumnNames = NONE, bad: BadRows | None = None,
) -> tuple[list[str | bytes | Path], list[str]]:  # fmt: skip
    """Read inputs and their ids from a file (CSV, TSV, JSON Lines, Parquet, Excel, one text per line) or from images.

    Labels are not needed and not read. Images may be one file, a folder, or a folder of folders.

    Args:
        path: the file or folder.
        text_column: the column of texts, if it does not have a usual name.
        image_column: the column of images (bytes or paths), if it does not have a usual name.
        learned: the columns that a model was trained on, by role (text, image, id); used where the file has them.
        bad: records rows that cannot be used, if it skips them; by default they are refused.

    Returns:
        n inputs and n ids. Without an `id` column, an id is the name of the file and the number of the line.

    Raises:
        DataError: something cannot be read; the message names the file and the line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "new.csv"
    ...     _ = file.write_text("text\\nwhere is my card\\n")
    ...     read_inputs(file)
    (['where is my card'], ['new.csv:2'])
    """
    path, bad = Path(path), bad or BadRows(skip=False)
    if isdir(path):
        images = [image for folder in folders_below(path) for image in images_in(folder)]
        if not images:
            raise DataError(f"{path}: the folder holds no images; give a folder of {' '.join(IMAGE_ENDINGS)}")
        table = _of_images(images, path)
    elif path.suffix.lower() in IMAGE_ENDINGS:
        table = _of_images([path], path.parent)
    else:
        named = {"text": text_column, "image": image_column}
        table = to_table(read_columns(path, bad), named, bad, learned=learned, labelled=False)
    records = with_ids(table.records, bad)
    if table.input == "image":
        records = only_decodable(records, bad)
    return [record.input for record in records], [record.id for record in records]


def _of_images(images: list[Path], root: Path) -> Table:
    records = [Record(path, "", path.relative_to(root).as_posix(), str(path), None) for path in images]
    return Table(str(root), "image", records)
