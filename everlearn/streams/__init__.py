"""Streams: data divided into tasks, in the order in which they are learned."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from everlearn.settings import Count, HeldOut, Share, SplitSeed, check
from everlearn.streams.packaged import PACKAGED

if TYPE_CHECKING:
    from everlearn.streams.readers import read_inputs
    from everlearn.streams.records import Record
    from everlearn.streams.steps import task_from
    from everlearn.streams.stream import Corpus, Examples, Stream, Task

_HOMES = {"read_inputs": "readers", "Record": "records", "task_from": "steps",
          "Corpus": "stream", "Examples": "stream", "Stream": "stream", "Task": "stream"}  # fmt: skip
__all__ = ["Corpus", "Examples", "Record", "Stream", "Task", "load", "names", "read_inputs", "task_from"]


def __getattr__(name: str) -> Any:
    """Import the data types only when they are used, because they need torch and `names` does not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def names() -> dict[str, str]:
    """The data sets that need no file and no network, each with a description in one line.

    >>> sorted(names())
    ['banking77', 'clinc150', 'digits']
    """
    return dict(PACKAGED)


def load(
    name: str,
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
    split_seed: SplitSeed = 0,
    max_train_per_class: Count | None = None,
    max_test_per_class: Count | None = None,
    titles: bool = False,
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
        name: one of `names()`; a CSV, TSV, JSON Lines or Parquet file; the stem of `<stem>_train.csv` and
            `<stem>_test.csv`; a folder `[train|test/]class/image.png`; the stem of `<stem>_corpus.parquet` and
            `<stem>_queries.parquet` (retrieval); or `owner/name` on the Hugging Face hub (`hub:owner/name`
            if a folder has the same name).
        kind: class-incremental, task-incremental, online, domain-incremental or old-then-new. The default
            depends on the other options: old-then-new with `new`, domain-incremental with `domains` and
            for retrieval, otherwise class-incremental.
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
        split_seed: the seed of such splits, of the limits below, and of the order of an online stream.
        max_train_per_class: the maximum number of training examples per class (per class and domain, if domains
            are tasks).
        max_test_per_class: the same for test examples.
        titles: for retrieval, put the title of a document before its text. A title often names what a query
            asks for.
        augment: for images, train on random crops and mirror images, new ones in every epoch. Queries, stored
            features, memories and tests use the original images.
        skip_bad_rows: leave out rows that cannot be used, and count them in the notes of the stream.
        text_column: the column of texts, if it is not called text, utterance, sentence, query, question
            or content.
        label_column: the column of classes, if it is not called label, intent, category, class or target.
        image_column: the column of images (bytes or paths), if it is not called image or img.
        domain_column: the column of domains, if it is not called domain.
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
    from everlearn.streams.build import build

    defaults = {key: parameter.default for key, parameter in inspect.signature(load).parameters.items()}
    given = {key: value for key, value in arguments.items() if key != "name" and value != defaults[key]}
    check("stream", load, {key: arguments[key] for key in defaults if key != "name"})
    return build(SimpleNamespace(**arguments), given)
