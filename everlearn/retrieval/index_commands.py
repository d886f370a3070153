"""The commands `everlearn index ACTION FOLDER`: make an index of documents, change it, search it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn import options
from everlearn.errors import EverlearnError, as_word, printable, unknown
from everlearn.interrupts import Interrupted
from everlearn.retrieval import migrate_commands

if TYPE_CHECKING:
    from everlearn.retrieval.index import Index
    from everlearn.retrieval.stamp import Encoder

KINDS = ("exact", "hnsw", "ivf", "lance")
SETTINGS = {
    "links": "hnsw: neighbours of a document in the graph (default: 32)",
    "effort": "hnsw: candidates that are looked at while the graph is built (default: 200)",
    "width": "hnsw: candidates that are looked at in a search (default: 64)",
    "lists": "ivf: clusters of documents (default: 4 times the root of their number)",
    "probes": "ivf: clusters that are looked at in a search (default: 16)",
}
"""The settings of the kinds; listed here too, so that help is fast."""

PART = 1024
"""Documents that are embedded and acknowledged at once."""

ACTIONS = {
    "create": "embed documents and keep them in a new index",
    "add": "embed more documents with the encoder of the index, and add them",
    "remove": "remove documents",
    "search": "find the documents that are most similar to each query",
    "info": "show what an index holds and which encoder made it",
    "save": "bring the files for fast search up to date, and free the space of removed documents if they are many",
    "reindex": "embed all documents again with another encoder; the old index is used until this is done; after a stop "
    "or a kill, the same command continues",
    "restore": "return to the last save, if a loss of power has damaged later changes",
}


def add_parsers(verb: Callable[[str, str], Any], made: dict[str, Any]) -> None:
    """Add the command `index` and its actions to the command line."""
    index = verb("index", "create, change and search an index of documents")
    actions = index.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(index))
    for name, text in ACTIONS.items():
        p = made[f"index {name}"] = actions.add_parser(name, help=text, description=text)
        p.add_argument("folder", metavar="FOLDER", type=Path, help="the index")
        options.as_json(p)
    for name in ("create", "add"):
        p = made[f"index {name}"]
        p.add_argument("--documents", required=True, metavar="FILE",
                       help="CSV, TSV, JSON Lines, Parquet or Excel with the columns id (or doc_id) and text; or "
                            "retrieval data as `run --stream` takes them")  # fmt: skip
        p.add_argument("--titles", action="store_true", help="put the title of a document before its text")
    for name in ("create", "add", "search"):
        options.skip_bad_rows(made[f"index {name}"])
    for name, default in (("create", "minilm"), ("add", "what made the index"), ("search", "what made the index")):
        p = made[f"index {name}"]
        about = f"the encoder: a run's folder, or a backbone's name or folder (default: {default})"
        p.add_argument("--from", dest="encoder", metavar="MODEL", help=about)
        options.own_method(p)
    migrate_commands.add_options(made["index reindex"])
    p = made["index create"]
    p.add_argument("--kind", choices=KINDS, default="exact", help="exact compares with every document; hnsw and ivf "
                   "are faster and may miss some; lance is a table of LanceDB (default: exact)")  # fmt: skip
    for setting, text in SETTINGS.items():
        p.add_argument(f"--{setting}", type=int, metavar="N", help=text)
    made["index add"].add_argument("--missing", action="store_true", help="leave out the documents whose ids are in "
                                   "the index already, to continue after an interruption")  # fmt: skip
    about = "a text file with one id a line, or ids with commas between them"
    made["index remove"].add_argument("--ids", required=True, metavar="FILE|ID,ID", help=about)
    p = made["index search"]
    p.add_argument("texts", metavar="QUERY", nargs="*", help="a text to search for")
    p.add_argument("--queries", type=Path, metavar="FILE", help="queries in a file, in a column text or one a line")
    p.add_argument("--k", type=int, default=10, metavar="N", help="documents for each query (default: 10)")
    made["index info"].add_argument("--check", action="store_true", help="also read everything and compare it with its "
                                    "checksums")  # fmt: skip


def _create(args: argparse.Namespace) -> dict[str, Any]:
    from everlearn.retrieval import Index, stamp_of
    from everlearn.retrieval.given import encoder

    documents = _documents(args)
    name = args.encoder or "minilm"
    # The index remembers the whole path of a folder, since the next command may be given somewhere else.
    by, made_by = encoder(os.path.abspath(name) if os.path.isdir(name) else name, args.method)
    settings = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    with Index.create(args.folder, stamp_of(by), args.kind, made_by=made_by, **settings) as index:
        return _added(index, documents, by, args)


def _add(args: argparse.Namespace) -> dict[str, Any]:
    from everlearn.retrieval import Index
    from everlearn.retrieval.given import encoder_of

    with Index.load(args.folder) as index:
        documents = _documents(args)
        if args.missing:
            documents = {id: text for id, text in documents.items() if id not in index}
        elif there := [id for id in documents if id in index]:
            raise EverlearnError(f"{printable(args.documents)}: {len(there):,} ids are in the index already, the first "
                                 f"is '{printable(there[0])}': remove them first, or leave them out with "
                                 "--missing")  # fmt: skip
        by = encoder_of(index, args.encoder, args.method)
        _tell_version(by, args.folder)
        return _added(index, documents, by, args)


def _tell_version(by: Encoder, folder: Path) -> None:
    """Say so where an older version of a run is asked, because the index is of that one."""
    from everlearn import model, versions

    if isinstance(by, model.Model) and by.directory and by.version != (now := versions.current(by.directory)):
        run, to = printable(by.directory), f"{as_word(folder)} --to {as_word(by.directory)}"
        print(f"note: the index is of version {by.version} of {run}, which answers here; the current one is version "
              f"{now}: go to it with `everlearn migrate {to}`", file=sys.stderr)  # fmt: skip


def _documents(args: argparse.Namespace) -> dict[str, str]:
    from everlearn.retrieval.given import read_texts

    found = read_texts(args.documents, None, titles=args.titles, skip_bad_rows=args.skip_bad_rows)
    _tell(found.notes)
    if not found.documents:
        raise EverlearnError(f"{printable(args.documents)} has no documents: give a file with at least one")
    return {id: document.text for id, document in found.documents.items()}


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {printable(note, 1000)}", file=sys.stderr)


def _added(index: Index, documents: Mapping[str, str], by: Encoder, args: argparse.Namespace) -> dict[str, Any]:
    from everlearn.progress import Progress

    ids, done = list(documents), 0
    try:
        with Progress(len(ids), "documents") as bar:
            for start in range(0, len(ids), PART):
                part = ids[start : start + PART]
                index.add(part, [documents[id] for id in part], by)
                done += len(part)
                bar.advance(len(part))
        index.save()
    except KeyboardInterrupt:
        # With the options by which the first documents were read: the rest would else be embedded in another way.
        given = [as_word(args.folder), "--documents", as_word(args.documents)]
        given += [f"--{name.replace('_', '-')}" for name in ("titles", "skip_bad_rows") if getattr(args, name)]
        given += ["--from", as_word(args.encoder)] if args.encoder else []
        given += ["--method", as_word(args.method)] if args.method else []
        raise Interrupted(f"interrupted after {done:,} of {len(ids):,} documents, which are in the index; go on with "
                          f"`everlearn index add {' '.join(given)} --missing`") from None  # fmt: skip
    return {"added": done, "documents": len(index)}


def _remove(args: argparse.Namespace) -> dict[str, Any]:
    from everlearn.files import read_text
    from everlearn.retrieval import Index

    with Index.load(args.folder) as index:
        if args.ids in index:  # also where a file is called as the document is
            ids = [args.ids]
        else:
            text = read_text(args.ids) if os.path.isfile(args.ids) else args.ids.replace(",", "\n")
            ids = [id for line in text.split("\n") if (id := line.strip())]
        if not ids:
            raise EverlearnError("--ids names no document: give at least one id")
        index.remove(ids)
        index.save()
        return {"removed": len(ids), "documents": len(index)}


def _search(args: argparse.Namespace) -> dict[str, Any]:
    from everlearn.retrieval import Index
    from everlearn.retrieval.given import encoder, searcher_of
    from everlearn.streams.readers import read_inputs
    from everlearn.streams.records import BadRows

    if bool(args.texts) == bool(args.queries):
        raise EverlearnError("give either queries or --queries FILE: everlearn index search FOLDER 'what you look for'")
    index = Index.load(args.folder)
    texts: Any = args.texts
    names = args.texts
    if args.queries:
        bad = BadRows(args.skip_bad_rows, option="--skip-bad-rows")
        texts, names = read_inputs(args.queries, learned={"id": "query_id"}, bad=bad)
        _tell(bad.notes())
    # A model that is named may be another one than that of the index, to which a bridge leads.
    by = encoder(args.encoder, args.method)[0] if args.encoder else searcher_of(index)
    _tell_version(by, args.folder)
    ids, scores = index.search(texts, by, args.k)
    found = [[{"id": id, "score": round(float(score), 6)} for id, score in zip(row, values, strict=True)]
             for row, values in zip(ids, scores, strict=True)]  # fmt: skip
    return {"queries": [{"query": name, "found": row} for name, row in zip(names, found, strict=True)]}


def _info(args: argparse.Namespace) -> dict[str, Any]:
    from everlearn.retrieval import Index

    index = Index.load(args.folder)
    if args.check:
        index.check()
    return {
        "documents": len(index), "kind": index.kind, **index.settings, "generation": index.generation,
        "bytes": index.stored_bytes(), "made_by": index.made_by, "stamp": index.stamp.record,
        "bridges": list(index.bridges), **({"checked": True} if args.check else {}),
    }  # fmt: skip


def _save(args: argparse.Namespace) -> dict[str, Any]:
    from everlearn.retrieval import Index

    with Index.load(args.folder) as index:
        index.save()
        return {"documents": len(index), "generation": index.generation, "bytes": index.stored_bytes()}


def _restore(args: argparse.Namespace) -> dict[str, Any]:
    from everlearn.retrieval import Index

    return {"documents": len(Index.restore(args.folder))}


DONE = {"create": _create, "add": _add, "remove": _remove, "search": _search, "info": _info, "save": _save,
        "reindex": migrate_commands.reindexed, "restore": _restore}  # fmt: skip


def _told(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    """What an action says, as lines."""
    if name == "search":
        lines = []
        for answer in found["queries"]:
            lines.append(printable(answer["query"]))
            lines += [f"{rank:>4}  {hit['score']:.4f}  {printable(hit['id'])}"
                      for rank, hit in enumerate(answer["found"], start=1)]  # fmt: skip
        return lines
    flat = {key: value for key, value in found.items() if not isinstance(value, dict | list)}
    flat |= {key: value for part in ("made_by", "stamp") for key, value in found.get(part, {}).items()}
    flat |= {"bridges": len(found["bridges"])} if "bridges" in found else {}
    width = max(map(len, flat))
    shown = {key: f"{value:,}" if type(value) is int else printable(value) for key, value in flat.items()}
    return [f"{key:<{width}}  {text}" for key, text in shown.items() if text]


def _index(args: argparse.Namespace) -> int:
    if args.action not in DONE:
        raise unknown("action", args.action, DONE)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        found = DONE[args.action](args)
    print(json.dumps(found, indent=1) if args.json else "\n".join(_told(args.action, found)))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"index": _index}
