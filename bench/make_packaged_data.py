"""Create the data sets of the package from a folder with their published splits.

    python bench/make_packaged_data.py FOLDER

FOLDER/text holds `<set>_train.parquet`, `_val` and `_test` with `text` and an integer `label`, whose names are in
the schema metadata. A set with domains has an integer column `domain` in the same form.

FOLDER/retrieval holds `<set>_corpus.parquet` (doc_id, title, text, domain) and `<set>_queries.parquet` (query_id, text,
pos, domain) of SQuAD and MedQuAD, of which `domains4` is a sample.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parents[1] / "everlearn" / "streams" / "data"
SPLITS = {"train": "train", "val": "validation", "test": "test"}
SEED = 0
DOCUMENTS = 500  # of a domain
LONGEST = 1200  # characters of a document
QUERIES = {"test": 150, "validation": 50, "train": 300}
DOMAINS: dict[str, tuple[str, tuple[str, ...]]] = {
    "people": ("squad", (
        "Napoleon", "Queen_Victoria", "Frédéric_Chopin", "Kanye_West", "Madonna_(entertainer)", "Nikola_Tesla",
        "Dwight_D._Eisenhower", "Gamal_Abdel_Nasser", "Muammar_Gaddafi", "Alexander_Graham_Bell", "Martin_Luther",
    )),
    "genetics": ("medquad", ("GHR",)),
    "science": ("squad", (
        "Computer", "Antenna_(radio)", "Insect", "Gene", "Bacteria", "Infection", "Immunology", "Hydrogen", "Uranium",
        "Energy", "Glass", "Brain", "Bird", "Alloy", "Transistor",
    )),
    "cancer": ("medquad", ("CancerGov",)),
}  # fmt: skip
"""The four domains of `domains4`: the set each is from, and its articles or sources there."""


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


def make_classes(source: Path, name: str) -> None:
    paths = {SPLITS[short]: source / f"{name}_{short}.parquet" for short in SPLITS}
    parts = [part(path, split) for split, path in paths.items() if path.exists()]
    target = OUT / f"{name}.parquet"
    write(pa.concat_tables(parts).unify_dictionaries(), target)
    counts = {split: pq.read_metadata(path).num_rows for split, path in paths.items() if path.exists()}
    print(f"{target.name}: {counts}, {target.stat().st_size / 1024:.0f} KiB")


def make_domains(source: Path) -> None:
    """The four domains of DOMAINS as one retrieval stream."""
    corpus: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []
    for domain, (name, groups) in DOMAINS.items():
        rows = {
            role: [
                row for row in pq.read_table(source / f"{name}_{role}.parquet").to_pylist() if row["domain"] in groups
            ]
            for role in ("corpus", "queries")
        }
        documents, asked = sample(rows["corpus"], rows["queries"], by_title=name == "medquad")
        corpus += [{**document, "domain": domain} for document in documents]
        queries += [{**query, "domain": domain} for query in asked]
        print(f"{domain}: {len(documents)} documents, {dict(Counter(query['split'] for query in asked))} queries")
    for role, found in (("corpus", corpus), ("queries", queries)):
        target = OUT / f"domains4_{role}.parquet"
        write(pa.Table.from_pylist(found), target)
        print(f"{target.name}: {len(found)} rows, {target.stat().st_size / 1024:.0f} KiB")


def sample(
    documents: list[dict[str, Any]], queries: list[dict[str, Any]], *, by_title: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """DOCUMENTS documents of a domain, and as many of their queries as QUERIES says, without chance beside SEED.

    Left out are long documents, those whose text occurs twice, and those that do not name their topic: nothing but
    their title, which is not searched, could tell them from others. All documents of a topic stand in the corpus
    together, and its queries in one split.

    Args:
        by_title: whether the documents of a title are one topic; otherwise each document is.
    """
    draw = random.Random(SEED)
    times = Counter(document["text"] for document in documents)
    topics: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for document in documents:
        known = times[document["text"]] == 1 and len(document["text"]) <= LONGEST
        if known and (not by_title or names_topic(document)):
            topics[document["title"] if by_title else document["doc_id"]].append(document)
    order = draw.sample(sorted(topics), len(topics))
    chosen: list[dict[str, Any]] = []
    for topic in order:
        if len(chosen) < DOCUMENTS:
            chosen += topics[topic]
    topic_of = {row["doc_id"]: row["title"] if by_title else row["doc_id"] for row in chosen}
    by_topic: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for query in draw.sample(queries, len(queries)):
        if all(id in topic_of for id in query["pos"]):
            by_topic[topic_of[query["pos"][0]]].append(query)
    asked: list[dict[str, Any]] = []
    waiting = [topic for topic in order if by_topic[topic]]
    for split, count in QUERIES.items():
        wanted = len(asked) + count
        while waiting and len(asked) < wanted:
            own = by_topic[waiting.pop()]
            most = len(own) if by_title else 1 if split != "train" else 2
            asked += [{"query_id": query["query_id"], "text": query["text"], "pos": query["pos"], "split": split}
                      for query in own[:most][: wanted - len(asked)]]  # fmt: skip
    return [{"doc_id": row["doc_id"], "text": row["text"]} for row in chosen], asked


def names_topic(document: dict[str, Any]) -> bool:
    """Whether a word of four letters or more of the title, or any word if it has none, stands in the text."""
    words = re.findall(r"[a-z0-9]+", document["title"].lower())
    return any(word in document["text"].lower() for word in [word for word in words if len(word) > 3] or words)


def write(table: pa.Table, target: Path) -> None:
    pq.write_table(table, target, compression="zstd", compression_level=19)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FOLDER")
    source = parser.parse_args().source
    for name in ("clinc150", "banking77"):
        make_classes(source / "text", name)
    make_domains(source / "retrieval")


if __name__ == "__main__":
    main()
