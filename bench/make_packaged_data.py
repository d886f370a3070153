"""Create the data sets of the package from a folder with their published splits.

    python bench/make_packaged_data.py FOLDER

FOLDER holds `<set>_train.parquet`, `_val` and `_test` with `text` and an integer `label`, whose names are in
the schema metadata. A set with domains has an integer column `domain` in the same form.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parents[1] / "everlearn" / "streams" / "data"
SPLITS = {"train": "train", "val": "validation", "test": "test"}


def names_of(table: pa.Table, column: str, key: bytes) -> pa.Array:
    """Replace the integers of a column by their names."""
    names = pa.array(json.loads(table.schema.metadata[key]))
    return pa.DictionaryArray.from_arrays(table[column].combine_chunks().cast(pa.int16()), names)


def part(path: Path, split: str) -> pa.Table:
    table = pq.read_table(path)
    columns = {
        "text": table["text"],
        "label": names_of(table, "label", b"class_names"),
        "split": pa.array([split] * len(table)).dictionary_encode(),
    }
    if "domain" in table.column_names:
        columns["domain"] = names_of(table, "domain", b"domain_names")
    metadata = {"class_names": table.schema.metadata[b"class_names"].decode()}
    return pa.table(columns).replace_schema_metadata(metadata)


def main(source: Path) -> None:
    for name in ("clinc150", "banking77"):
        paths = {SPLITS[short]: source / f"{name}_{short}.parquet" for short in SPLITS}
        parts = [part(path, split) for split, path in paths.items() if path.exists()]
        target = OUT / f"{name}.parquet"
        pq.write_table(pa.concat_tables(parts).unify_dictionaries(), target, compression="zstd", compression_level=19)
        counts = {split: pq.read_metadata(path).num_rows for split, path in paths.items() if path.exists()}
        print(f"{target.name}: {counts}, {target.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
