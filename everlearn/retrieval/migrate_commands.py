"""The commands that bring an index to another encoder: `everlearn migrate` and `everlearn index reindex`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os.path
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everlearn import options
from everlearn.settings import Count, checked

MODEL = "the other encoder: a run's folder, or a backbone's name or folder"
ABOUT = (
    "decide whether another encoder may search an index: serve (its queries search the index as they are), bridge (a "
    "map brings them into the space of the index), re-index (all documents are embedded again) or roll back (the old "
    "encoder stays)"
)


def add_parser(verb: Callable[[str, str], Any]) -> None:
    """Add `migrate` to the command line."""
    p = verb("migrate", ABOUT)
    add_options(p)
    p.add_argument("--queries", metavar="FILE",
                   help="JSON Lines or Parquet with the columns query_id, text and pos (ids of relevant documents); "
                        "without it, queries that come with the documents, or else sentences of the "
                        "documents")  # fmt: skip
    p.add_argument("--from", dest="encoder", metavar="MODEL", help="the encoder of the index (default: what made it)")
    p.add_argument("--sample", type=int, metavar="N", help="documents on which it is measured (default: 5000)")
    p.add_argument("--threshold", type=float, metavar="SCORE",
                   help="the score above which you show a document; it is translated to the new encoder")  # fmt: skip
    p.add_argument("--apply", action="store_true", help="do what the verdict recommends")
    p.add_argument("--reindex", action="store_true", help="re-index with every verdict except to roll back")
    options.as_json(p)


def add_options(p: Any) -> None:
    """Add what re-indexing needs to a command."""
    if not any(action.dest == "folder" for action in p._actions):
        p.add_argument("folder", metavar="INDEX", type=Path, help="the index")
    p.add_argument("--to", required=True, metavar="MODEL", help=MODEL)
    p.add_argument("--documents", required=True, metavar="FILE",
                   help="the texts of all documents of the index: CSV, TSV, JSON Lines, Parquet or Excel with the "
                        "columns id (or doc_id) and text; or retrieval data as `run --stream` takes them")  # fmt: skip
    options.own_method(p)
    p.add_argument("--titles", action="store_true", help="put the title of a document before its text")
    options.skip_bad_rows(p)


def _migrate(args: argparse.Namespace) -> int:
    checked("--sample", args.sample, Count | None)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        from everlearn.retrieval.migrate import followed, migrate
        from everlearn.retrieval.trial import SAMPLE

        verdict = migrate(args.folder, args.to, args.documents, args.queries, of=args.encoder, method=args.method,
                          titles=args.titles, skip_bad_rows=args.skip_bad_rows, sample=args.sample or SAMPLE,
                          threshold=args.threshold, apply=args.apply, always_reindex=args.reindex,
                          progress=True)  # fmt: skip
    if args.json:
        print(json.dumps(verdict.record, indent=1))
    else:
        print(verdict.describe())
        print(followed(verdict, args.folder, args.to))
    return 0


def reindexed(args: argparse.Namespace) -> dict[str, Any]:
    """Carry out `everlearn index reindex`."""
    from everlearn.retrieval.given import encoder, of_index, read_texts
    from everlearn.retrieval.index import Index
    from everlearn.retrieval.reindex import reindex

    index = Index.load(args.folder)
    collection = read_texts(args.documents, None, titles=args.titles, skip_bad_rows=args.skip_bad_rows)
    of_index(index, collection)  # says which texts are missing before a model is loaded
    by, made_by = encoder(os.path.abspath(args.to) if os.path.isdir(args.to) else args.to, args.method)
    # All texts, not only those of the index: others may add documents meanwhile.
    texts = {id: document.text for id, document in collection.documents.items()}
    embedded = reindex(index, texts, by, made_by=made_by, progress=True)
    return {"embedded": embedded, "documents": len(index), "generation": index.generation}


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"migrate": _migrate}
