"""Migration of an index to another encoder: the verdict, and what follows from it."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from everlearn.errors import EverlearnError, as_word, printable
from everlearn.retrieval.bridge import Bridge
from everlearn.retrieval.given import encoder, encoder_of, held_out, of_index, read_texts
from everlearn.retrieval.index import Index
from everlearn.retrieval.pseudo_queries import pseudo_queries
from everlearn.retrieval.reindex import reindex
from everlearn.retrieval.stamp import Encoder, method_of, stamp_of
from everlearn.retrieval.trial import LEAST_QUERIES, MOST_QUERIES, SAMPLE, judge
from everlearn.retrieval.verdict import Verdict
from everlearn.streams.retrieval import Entry


def migrate(
    folder: str | Path, to: str, documents: str, queries: str | None = None, *, of: str | None = None,
    method: str | None = None, titles: bool = False, skip_bad_rows: bool = False, sample: int = SAMPLE,
    threshold: float | None = None, apply: bool = False, always_reindex: bool = False, progress: bool = False,
) -> Verdict:  # fmt: skip
    """The verdict on another encoder for an index; and, if asked, what it says is done.

    Args:
        folder: of the index.
        to: the other encoder: a run's folder, or what `everlearn.backbones.load` takes.
        documents: where the texts of the documents of the index are (`everlearn.retrieval.given.read_texts`).
        queries: a file of queries with their relevant documents. Without it, those that come with the documents; and
            where there are none, sentences of the documents are asked for.
        of: the encoder of the index, where the index does not remember it.
        method: the method of a run's folder, where it is not one of everlearn.
        titles: put the title of a document before its text, as when the index was made.
        skip_bad_rows: leave out rows that cannot be used.
        sample, threshold, progress: as for `judge`.
        apply: do as the verdict says: let the queries of the other encoder search the index, as they are or over the
            bridge, or re-index.
        always_reindex: re-index whatever the verdict, except for `roll back`.

    Returns:
        The verdict. Its record has the entry `done` besides: nothing, serve, bridge or re-index.

    Raises:
        DataError: documents or queries cannot be used; the message names the file and the row.
        EverlearnError: a model cannot be loaded, the old one is not that of the index, there are too few queries, or
            an index that is to be re-indexed shall be rolled back.

    >>> import tempfile
    >>> from everlearn import backbones
    >>> file, folder = Path(tempfile.mkdtemp()) / "cups.jsonl", tempfile.mkdtemp() + "/cups"
    >>> texts = {f"d{n}": f"the number {n} of {n * n} cups" for n in range(40)}
    >>> asked = file.with_name("asked.jsonl")
    >>> _ = file.write_text("".join(f'{{"id": "{id}", "text": "{text}"}}\\n' for id, text in texts.items()))
    >>> _ = asked.write_text("".join(f'{{"query_id": "q{id}", "text": "{text}", "pos": ["{id}"]}}\\n'
    ...                              for id, text in texts.items()))
    >>> tiny = backbones.load("tiny")
    >>> with Index.create(folder, stamp_of(tiny), made_by={"backbone": "tiny"}) as index:
    ...     index.add(list(texts), list(texts.values()), by=tiny)
    >>> verdict = migrate(folder, "tiny@layers=2", str(file), str(asked), always_reindex=True)
    >>> verdict.done, Index.load(folder).stamp.dimension
    ('re-index', 64)
    """
    index = Index.load(folder)
    collection = read_texts(documents, queries, titles=titles, skip_bad_rows=skip_bad_rows)
    texts, known, notes = of_index(index, collection)
    old = encoder_of(index, of, method)
    new, made_by = encoder(os.path.abspath(to) if os.path.isdir(to) else to, method)
    asked = held_out(known) if collection.queries else pseudo(texts, min(MOST_QUERIES, sample // 2))
    verdict = judge(index, old, new, texts, asked, relevance="judged" if collection.queries else "pseudo",
                    sample=sample, threshold=threshold, progress=progress)  # fmt: skip
    done = "nothing"
    if always_reindex and verdict.answer == "roll back":
        raise EverlearnError(f"the verdict is roll back ({verdict.reason}), and nothing was done: to re-index without "
                             "a verdict, take `everlearn index reindex`")  # fmt: skip
    if always_reindex or (apply and verdict.answer == "re-index"):
        # All texts, not only those of the index: others may add documents meanwhile.
        every = {id: document.text for id, document in collection.documents.items()}
        reindex(index, every, new, made_by=made_by, progress=progress)
        done = "re-index"
    elif apply and verdict.answer in ("serve", "bridge"):
        allow(index, new, verdict)
        done = verdict.answer
    return replace(verdict, record={**verdict.record, "done": done, "notes": [*verdict.notes, *notes]})


def allow(index: Index, new: Encoder, verdict: Verdict) -> None:
    """Let the queries of the other encoder search the index, as the verdict says: as they are, or over the bridge.

    Raises:
        EverlearnError: the index has been re-indexed since, or another process writes.
    """
    stamp, method = stamp_of(new), method_of(new)
    with index:
        index.lock()
        if index.stamp.space != verdict.record["from"]["space"]:
            raise EverlearnError(f"{index.folder} was re-indexed while the verdict was found: ask for it again")
        if hasattr(method, "reaches") and method.reaches(index.stamp.space):
            return  # it makes queries for this index by itself
        if stamp.space != index.stamp.space:
            as_it_is = Bridge(np.eye(stamp.dimension), np.zeros(stamp.dimension))
            bridge = verdict.best_bridge if verdict.answer == "bridge" else as_it_is
            assert bridge is not None
            index.allow(stamp, bridge)


def pseudo(documents: Mapping[str, str], most: int, seed: int = 0) -> list[Entry]:
    """At most so many queries, made of documents that are drawn by chance; what is relevant is the document itself.

    Raises:
        EverlearnError: they are too few or too short.
    """
    ids, made = sorted(documents), list[Entry]()
    for place in np.random.default_rng(seed).permutation(len(ids)).tolist():
        found, _ = pseudo_queries([documents[ids[place]]], seed=seed + place)
        made += [Entry(ids[place], query, "", None, {ids[place]: 1}) for query in found]
        if len(made) >= most:
            break
    if len(made) < LEAST_QUERIES:
        raise EverlearnError(f"no queries are given, and only {len(made)} could be made from sentences of "
                             f"{len(ids):,} documents, where a verdict needs {LEAST_QUERIES}: give queries with "
                             "--queries, more or longer documents, or a larger --sample")  # fmt: skip
    return made


def followed(verdict: Verdict, folder: str | Path, to: str) -> str:
    """What was done and what comes next, in a sentence."""
    shown = printable(folder)
    search = f"`everlearn index search {as_word(folder)} --from {as_word(to)} QUERY`"
    if verdict.done == "re-index":
        return f"{shown} was re-indexed, and answers {printable(to)}"
    if verdict.done != "nothing":
        return f"the queries of {printable(to)} may search {shown} now: {search}"
    advice = {
        "serve": "--apply lets its queries search the index", "bridge": "--apply puts the bridge into the index",
        "re-index": "--apply re-indexes beside the index, which answers as before until all is done",
        "roll back": "leave the index and its encoder as they are",
    }  # fmt: skip
    return f"nothing was changed; {advice[verdict.answer]}"
