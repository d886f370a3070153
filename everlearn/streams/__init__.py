"""Streams: data divided into tasks, in the order in which they are learned."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from everlearn.errors import not_named
from everlearn.settings import Count, HeldOut, Share, SplitSeed, check
from everlearn.streams.packaged import PACKAGED

if TYPE_CHECKING:
    from everlearn.streams.build import ReadRows
    from everlearn.streams.columns import Columns
    from everlearn.streams.inputs import Input
    from everlearn.streams.readers import read_inputs
    from everlearn.streams.records import Record
    from everlearn.streams.steps import task_from
    from everlearn.streams.stream import Corpus, Examples, Stream, Task

_HOMES = {"read_inputs": "readers", "Record": "records", "task_from": "steps",
          "Corpus": "stream", "Examples": "stream", "Stream": "stream", "Task": "stream"}  # fmt: skip
__all__ = ["Corpus", "Examples", "Record", "Stream", "Task", "from_pairs", "from_rows", "from_table", "load", "names",
           "read_inputs", "task_from"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the data types only when they are used, because they need torch and `names` does not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def names() -> dict[str, str]:
    """The data sets that need no file and no network, each with a description in one line.

    >>> sorted(names())
    ['banking77', 'clinc150', 'digits', 'domains4']
    """
    return dict(PACKAGED)


def load(
    name: str | os.PathLike[str],
    *,
    kind: str | None = None,
    tasks: Count | None = None,
    base: Count | None = None,
    increment: Count | None = None,
    class_order: str = "shuffled",
    class_seed: SplitSeed = 1993,
    domains: str | list[str] | None = None,
    old: Share = 0.8,
    new: str | None = None,
    batch_size: Count = 10,
    test: HeldOut | str = 0.2,
    validation: HeldOut | str = 0.0,
    tuning: Count | None = None,
    split_seed: SplitSeed = 0,
    max_train_per_class: Count | None = None,
    max_test_per_class: Count | None = None,
    titles: bool = False,
    pseudo_queries: bool = False,
    augment: bool = False,
    skip_bad_rows: bool = False,
    text_column: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    domain_column: str | None = None,
    split_column: str | None = None,
    id_column: str | None = None,
) -> Stream:
    """Build a stream from a packaged data set, a file, a folder of images, or a data set of the hub.

    An option that does not apply to the kind of stream is refused.

    Args:
        name: one of `names()`; a CSV, TSV, JSON Lines, Parquet or Excel file (its first sheet); the stem of
            `<stem>_train.csv` and `<stem>_test.csv`; a folder `[train|test/]class/image.png`; or `owner/name` on the
            Hugging Face hub (`hub:owner/name` if a folder has the same name). For retrieval: a CSV, TSV, JSON Lines or
            Parquet file with the columns query, positive and perhaps negative; the stem of `<stem>_corpus.parquet` and
            `<stem>_queries.parquet`; a folder in the format of BEIR (corpus.jsonl, queries.jsonl, qrels/test.tsv), or
            the folder of several, of which each is one domain; or `ir_datasets:NAME,NAME`, where each is one.
        kind: class-incremental, task-incremental, online, domain-incremental or old-then-new. The default
            depends on the other options: old-then-new with `new`, domain-incremental with `domains` or
            `domain_column` and for retrieval, otherwise class-incremental.
        tasks: the number of tasks, which all have equally many classes. By default 10; with fewer than twenty
            classes, as many as give two classes per task.
        base: the number of classes of the first task, with `increment` (B-m Inc-n in the literature).
        increment: the number of classes of each task (after the first, if `base` is given), instead of `tasks`.
        class_order: shuffled, or given (the order in which the data set lists its classes).
        class_seed: the seed of the shuffled order.
        domains: the domains in the order of the tasks, as a list or separated by commas. By default all domains,
            in the order in which they appear.
        old: for old-then-new, the share of the classes that are old.
        new: for old-then-new, the file with the new data, which may hold old and new classes.
        batch_size: for online, the number of examples that arrive together.
        test: if the data has no test split, the share of the training examples to use for testing, or the file
            with the test examples.
        validation: the same for validation. By default there are no validation examples.
        tuning: take the first so many tasks only, with their validation examples in place of their test examples,
            as `everlearn tune` does to choose settings. Where the data have no validation examples, a fifth of the
            training examples is held out.
        split_seed: the seed of such splits, of the limits below, and of the order of an online stream.
        max_train_per_class: the maximum number of training examples per class (per class and domain, if domains
            are tasks).
        max_test_per_class: the same for test examples.
        titles: for retrieval, put the title of a document before its text. A title often names what a query
            asks for.
        pseudo_queries: for retrieval, learn from sentences of the documents instead of the data's own queries, as where
            only new documents arrive. Queries for testing stay the data's own; where a domain has none, sentences of
            held-out documents are asked for. The name may be a file `<stem>_corpus.jsonl` alone.
        augment: for images, train on random crops and mirror images, new ones in every epoch. Queries, stored
            features, memories and tests use the original images.
        skip_bad_rows: leave out rows that cannot be used, and count them in the notes of the stream.
        text_column: the column of texts, if it is not called text, utterance, sentence, query, question
            or content.
        label_column: the column of classes, if it is not called label, intent, category, class or target.
        image_column: the column of images (bytes or paths), if it is not called image or img.
        domain_column: the column of domains, if it is not called domain. Given without `kind`, each domain is a task.
        split_column: the column of splits, if it is not called split.
        id_column: the column of ids, if it is not called id. Without ids, the file and line of a row are its id.

    Returns:
        The stream. `load(**stream.config)` builds the same stream again.

    Raises:
        EverlearnError: a name or kind is unknown, or options do not fit together.
        DataError: the data is bad; the message names the file, the row, the cause and the remedy.

    >>> stream = load("clinc150", tasks=10)
    >>> len(stream), len(stream[0].train), len(stream[0].test), len(stream.class_names)
    (10, 1500, 450, 150)
    """
    arguments = dict(locals())
    del arguments["name"]
    if not isinstance(name, str | os.PathLike):
        raise not_named("stream", name)
    return _build(os.fsdecode(name), arguments)


def from_rows(
    inputs: Sequence[Input],
    labels: Sequence[str | int],
    domains: Sequence[str] | None = None,
    *,
    splits: Sequence[str | None] | None = None,
    name: str = "rows",
    **options: Any,
) -> Stream:
    """Build a stream from lists, arrays or series that are in memory.

    Args:
        inputs: n texts, encoded images (bytes) or paths of images.
        labels: n classes.
        domains: n domains. If they are given, each domain is one task.
        splits: for each row train, validation or test. By default a share of the rows is used for testing.
        name: what results and messages call the data. Messages count rows from 0.
        options: as for `load`.

    Returns:
        The stream. `everlearn.run` learns it; to resume such a run, give the same rows to `everlearn.resume` again.

    Raises:
        EverlearnError: the lists have different lengths, or as `load`.
        DataError: as `load`.

    >>> stream = from_rows([f"text {i}" for i in range(40)], ["tea", "sofa", "rose", "gold"] * 10)
    >>> [task.class_names for task in stream]
    [('gold', 'sofa'), ('gold', 'sofa', 'tea', 'rose')]
    """
    from everlearn.streams.in_memory import as_list, columns_of_lists
    from everlearn.streams.readers import to_table

    inputs = as_list("inputs", inputs)  # the rows of a series may be numbered otherwise than from 0
    first = next((item for item in inputs if item is not None), None)
    kind = "image" if isinstance(first, bytes | os.PathLike) else "text"
    columns = columns_of_lists(name, {kind: inputs, "label": labels, "domain": domains, "split": splits})
    if domains is not None:
        options = {"domain_column": "domain", **options}
    return _build(name, options, partial(to_table, columns))


def from_table(table: Any, *, name: str = "table", **options: Any) -> Stream:
    """Build a stream from a table that is in memory.

    Args:
        table: a pandas DataFrame, a Dataset or DatasetDict of `datasets`, a table of Arrow or whatever gives one (as
            polars does), a dict of columns, or a list of dicts.
        name: what results and messages call the data. Messages count rows from 0 (those of a Dataset from 1).
        options: as for `load`; text_column and the like, if the columns do not have usual names.

    Returns:
        The stream, as `from_rows`.

    Raises:
        EverlearnError: it is no table, or as `load`.
        DataError: as `load`.

    >>> rows = [{"message": f"text {i}", "intent": ["tea", "sofa"][i % 2]} for i in range(40)]
    >>> from_table(rows, text_column="message").class_names
    ('sofa', 'tea')
    """
    from everlearn.streams.in_memory import read_table

    return _build(name, options, partial(read_table, name, table))


def from_pairs(
    queries: Sequence[str],
    documents: Sequence[str],
    domains: Sequence[str] | None = None,
    *,
    negatives: Sequence[str | Sequence[str] | None] | None = None,
    splits: Sequence[str | None] | None = None,
    name: str = "pairs",
    **options: Any,
) -> Stream:
    """Build a retrieval stream from queries and documents that are in memory.

    The corpus of a domain is all of its documents, the negatives too; equal texts are one document or one query.

    Args:
        queries: n texts.
        documents: n texts; document i answers query i.
        domains: n domains; each is one task. By default all pairs are one domain.
        negatives: for each query a text that seems to answer it and does not, a list of them, or None.
        splits: for each pair train, validation or test. By default a share of the queries is used for testing.
        name: what results and messages call the data. Messages count rows from 0.
        options: test, validation, split_seed, pseudo_queries and skip_bad_rows, as for `load`.

    Returns:
        The stream, as `from_rows`.

    Raises:
        EverlearnError: the lists have different lengths, or as `load`.
        DataError: as `load`.

    >>> questions = [f"question {i}" for i in range(10)]
    >>> stream = from_pairs(questions, [f"answer {i}" for i in range(10)], test=0.5)
    >>> len(stream[0].train), len(stream[0].test), len(stream[0].corpus)
    (5, 5, 10)
    """
    from everlearn.streams.in_memory import columns_of_lists

    columns = columns_of_lists(name, {"query": queries, "positive": documents, "negative": negatives,
                                      "domain": domains, "split": splits})  # fmt: skip
    return _build(name, options, pairs=columns)


def _build(name: str, options: dict[str, Any], read: ReadRows | None = None, pairs: Columns | None = None) -> Stream:
    """The stream of checked options of `load`; the others are their defaults."""
    from everlearn.streams.build import build

    defaults = {key: p.default for key, p in inspect.signature(load).parameters.items() if key != "name"}
    check("stream", load, options)
    given = {key: value for key, value in options.items() if value != defaults[key]}
    return build(SimpleNamespace(**{**defaults, **options, "name": name}), given, read, pairs)
