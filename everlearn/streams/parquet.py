"""Parquet files, whose sizes are checked before and while they are unpacked; and columns of Arrow as Python values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn import strict
from everlearn.errors import DataError, one_line
from everlearn.files import map_bytes
from everlearn.streams import limits
from everlearn.streams.columns import Columns, check_headers, check_rows, check_size, declared_names
from everlearn.streams.records import BadRows

if TYPE_CHECKING:
    import pyarrow as pa

REMEDY = "write the Parquet file again"
DICTIONARY_BYTES = 2**30
"""The largest row group that is read as a dictionary; Arrow's dictionaries hold at most twice as much."""
LISTS = ("pos", "grade")
"""The columns that may hold lists. In a file of 1 KB, one list can have a billion elements."""


def read_parquet(path: Path, bad: BadRows) -> Columns:
    """Read the metadata of a file; its columns are unpacked when they are asked for.

    Raises:
        DataError: it is not a Parquet file, or would take too much memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = pa.py_buffer(map_bytes(path))
    with one_line(path, REMEDY):
        file = pq.ParquetFile(pa.BufferReader(data))
        rows, groups, schema = file.metadata.num_rows, file.num_row_groups, file.schema_arrow
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(groups)]
    headers = check_headers(str(path), schema.names)
    check_rows(str(path), rows)
    check_size(path, sum(sizes) + rows * limits.ROW_BYTES, limits.most_unpacked(len(data)))

    def read(name: str) -> list[Any]:
        with one_line(f"{path}, column '{name}'", REMEDY):
            return _read_column(path, data, name)

    return Columns(str(path), range(1, rows + 1), headers, read, declared_in(path, schema.metadata or {}))


def _read_column(path: Path, data: pa.Buffer, name: str) -> list[Any]:
    """Unpack one column. The sizes that the metadata gives may be wrong, so what was unpacked is measured too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = pq.ParquetFile(pa.BufferReader(data))
    most = limits.most_unpacked(len(data))
    leaves = [plain.schema.column(leaf) for leaf in range(len(plain.schema))]
    own = [column for column in leaves if column.path == name or column.path.startswith(f"{name}.")]
    if name not in LISTS and any(column.max_repetition_level for column in own):
        raise DataError(
            f"{path}: the column '{name}' holds lists; name a column with one value per row, "
            "for labels the main one of each row"
        )
    check_size(path, plain.metadata.num_rows * sum(max(column.length, 8) for column in own), most)
    # As a dictionary, a value that a file stores once and repeats a million times is in memory once.
    texts = [column.path for column in own if column.physical_type == "BYTE_ARRAY"]
    shared = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
    values: list[Any] = []
    size = 0
    for group in range(plain.num_row_groups):
        if plain.metadata.row_group(group).total_byte_size <= DICTIONARY_BYTES:
            arrays = shared.read_row_group(group, columns=[name]).column(name).chunks
        else:  # row by row, because nobody knows how large the next row is
            rows = plain.iter_batches(1, row_groups=[group], columns=[name])
            arrays = (row.column(row.schema.get_field_index(name)) for row in rows)
        for array in arrays:
            size += size_of(array)
            check_size(path, size, most)
            values += to_values(array)
    if len(values) != plain.metadata.num_rows:
        raise ValueError(f"{len(values)} values in {plain.metadata.num_rows} rows")
    return values


def size_of(array: pa.Array) -> int:
    """The bytes of all values, with each repetition of a value counted, before they become Python objects."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return size_of(array.storage)
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary.cast(pa.large_binary()))
        return 8 * len(array) + (pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return 64 * len(array) + sum(map(size_of, array.flatten()))
    if pa.types.is_map(kind):
        return 64 * len(array) + size_of(array.keys) + size_of(array.items)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return 64 * len(array) + size_of(array.flatten())
    return 8 * len(array) + array.nbytes


def to_values(array: pa.Array) -> list[Any]:
    """The values of a column. Dates, times and decimal numbers become texts; a byte that is not UTF-8 becomes half a
    surrogate pair, so that the cell is refused and not the file.

    >>> import pyarrow as pa
    >>> to_values(pa.array([19_000, None], pa.date32())), to_values(pa.array(["a", "b", "a"]).dictionary_encode())
    (['2022-01-08', None], ['a', 'b', 'a'])
    """
    import pyarrow as pa

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return to_values(array.storage)
    if pa.types.is_dictionary(kind):
        words = to_values(array.dictionary)
        return [None if index is None else words[index] for index in array.indices.to_pylist()]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        stored = array.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in stored]
    if pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind) or pa.types.is_decimal(kind):
        texts = array.cast(pa.string()).to_pylist()
        return [_in_range(text) for text in texts]
    if pa.types.is_nested(kind):
        array.validate(full=True)
    return array.to_pylist()


def _in_range(text: str | None) -> str | None:
    if text and text.startswith("<"):  # what Arrow writes for a date that no calendar has
        raise ValueError(f"a date or time {text.strip('<>')}")
    return text


def declared_in(path: object, metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The names that the schema declares: `class_names` and `domain_names`, or what `datasets` writes."""
    found = {}
    for column in ("class", "domain"):
        declared = metadata.get(f"{column}_names".encode())
        if declared is not None:
            where = f"{path}, {column}_names in the metadata"
            found[column] = declared_names(where, strict.from_json(declared, where, REMEDY))
    if b"huggingface" in metadata:
        where = f"{path}, huggingface in the metadata"
        features = strict.from_json(metadata[b"huggingface"], where, REMEDY)
        for level in ("info", "features"):
            features = features.get(level) if isinstance(features, dict) else None
        for column, feature in (features if isinstance(features, dict) else {}).items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                found[column] = declared_names(where, feature.get("names"))
    return found
