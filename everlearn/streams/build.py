"""Builds a Stream from the arguments of `load`: reads the data, splits it, and orders and numbers the classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from everlearn.errors import DataError, EverlearnError, unknown
from everlearn.streams import class_incremental, domain_incremental, mistakes, old_then_new, splits
from everlearn.streams.beir import read_beir
from everlearn.streams.columns import Columns
from everlearn.streams.digits import read_digits
from everlearn.streams.files import find_retrieval_files
from everlearn.streams.hub import read_hub
from everlearn.streams.images import only_decodable
from everlearn.streams.ir_catalogue import read_catalogue
from everlearn.streams.packaged import IR_DATASETS, PACKAGED
from everlearn.streams.pairs import read_pair_files, read_pairs
from everlearn.streams.peek import beir_folders, retrieval_format
from everlearn.streams.pseudo import with_pseudo_queries
from everlearn.streams.readers import COMMON_NAMES, ColumnNames, read_table
from everlearn.streams.records import BadRows, Table, of_split, with_ids
from everlearn.streams.retrieval import Collection, make_retrieval_tasks
from everlearn.streams.splits import Parts, Shares
from everlearn.streams.steps import Step, check_left, classes_of, make_tasks
from everlearn.streams.stream import Stream, Task
from everlearn.streams.two_files import read_documents, read_two_files
from everlearn.streams.validation import SHARE, on_validation

DATA = Path(__file__).parent / "data"
"""Where the files of the packaged data sets are."""

SHUFFLING = frozenset({"class_order", "class_seed"})
COLUMNS = frozenset(f"{role}_column" for role in COMMON_NAMES if role != "domain")
EXAMPLES = COLUMNS | {"max_train_per_class", "max_test_per_class"}
BY_CLASS = SHUFFLING | EXAMPLES | {"tasks", "base", "increment"}
KINDS = {
    "class-incremental": BY_CLASS,
    "task-incremental": BY_CLASS,
    "online": BY_CLASS | {"batch_size"},
    "domain-incremental": SHUFFLING | EXAMPLES | {"domains", "domain_column"},
    "old-then-new": SHUFFLING | EXAMPLES | {"old", "new"},
}
"""The options that apply to each kind, in addition to those that apply to every kind."""
PAIRS = frozenset({"domains", "pseudo_queries"})
RETRIEVAL = PAIRS | {"titles"}
ReadRows = Callable[[ColumnNames, BadRows], Table]

COMMON = frozenset({"kind", "test", "validation", "split_seed", "skip_bad_rows", "augment", "tuning"})


def build(
    options: SimpleNamespace, given: dict[str, Any], read: ReadRows | None = None, pairs: Columns | None = None
) -> Stream:  # fmt: skip
    """Build the stream.

    Args:
        options: the arguments of `load`.
        given: those that differ from their defaults.
        read: reads the rows, if they are in memory; otherwise the name says where they are.
        pairs: the rows, if they are in memory and are pairs of texts.
    """
    for option in ("name", "new", "test", "validation"):
        if isinstance(value := getattr(options, option), str) and not value.strip():
            raise EverlearnError(f"{option} is an empty text: name a data set, a file or a folder")
    bad = BadRows(options.skip_bad_rows)
    if isinstance(options.domains, str):
        options.domains = [name.strip() for name in options.domains.split(",") if name.strip()]
    if options.domains is not None:
        given = {**given, "domains": list(options.domains)}
    how = "pairs" if pairs else None if read else retrieval_format(options.name)
    if how:
        kind = options.kind or "domain-incremental"
        if kind != "domain-incremental":
            raise EverlearnError(f"a retrieval stream is domain-incremental; kind={kind} needs labelled examples")
        is_pairs = how == "pairs"
        _refuse_other_options(given, PAIRS if is_pairs else RETRIEVAL, "pairs" if is_pairs else "a retrieval stream")
        collection, shares, made = _collection(options, how, pairs, bad), _shares(options), list[str]()
        if options.pseudo_queries:
            collection, made = with_pseudo_queries(collection, shares, seed=options.split_seed)
        tasks, notes = make_retrieval_tasks(collection, shares, options.domains, seed=options.split_seed)
        notes = [*made, *notes]
    else:
        kind, why = _kind(options)
        _refuse_other_options(given, KINDS[kind], f"a stream of kind {kind}{why}")
        tasks, notes = _labelled_tasks(options, kind, bad, read)
    if options.augment and tasks[0].input != "image":
        raise EverlearnError(f"augment makes views of images, but {options.name} has texts: drop augment")
    stream = Stream(options.name, kind, tuple(tasks), {"name": options.name, **given}, (*notes, *bad.notes()))
    if options.tuning:
        stream = replace(on_validation(stream, options.tuning), config=stream.config)
    if read or pairs:  # whoever builds it again must give the same rows
        stream.config["in_memory"] = stream.fingerprint()
    return stream


def _collection(options: SimpleNamespace, how: str, pairs: Columns | None, bad: BadRows) -> Collection:
    """The queries and documents that the name stands for."""
    name, titles = options.name, options.titles
    if how == "documents":
        if not options.pseudo_queries:
            raise EverlearnError(f"{name} holds documents without queries: give --stream.pseudo_queries true to learn "
                                 "from sentences of the documents, or the stem of two files")  # fmt: skip
        return Collection(name, read_documents(Path(name), titles, bad), [])
    if how == "ir_datasets":
        return read_catalogue(name.removeprefix(IR_DATASETS), titles, bad)
    if how == "BEIR":
        return read_beir(beir_folders(name), titles, bad)
    if how == "two files":
        files = find_retrieval_files(str(DATA / name) if name in PACKAGED else name)
        assert files is not None
        return read_two_files(files, titles, bad)
    return read_pairs([(pairs, None)], name, bad) if pairs else read_pair_files(name, bad)


def _kind(options: SimpleNamespace) -> tuple[str, str]:
    """The requested kind, or else the kind that follows from the other options; and why it is that, for messages."""
    if options.kind is not None:
        if options.kind not in KINDS:
            raise unknown("kind", options.kind, KINDS)
        return options.kind, ""
    if options.new:
        return "old-then-new", ""
    for name in ("domains", "domain_column"):
        if getattr(options, name) is not None:
            return "domain-incremental", f" (with {name}, each domain is one task)"
    return "class-incremental", ""


def _refuse_other_options(given: dict[str, Any], allowed: frozenset[str], what: str) -> None:
    for key in given:
        if key not in allowed | COMMON:
            homes = [name for name, options in KINDS.items() if key in options] or ["retrieval files"]
            raise EverlearnError(f"{key} does not apply to {what}; it applies to {', '.join(homes)}: leave it out")


def _shares(options: SimpleNamespace, or_file: str = "") -> Shares:
    """The shares to take for testing and validation, or the files with these examples where the kind allows them."""
    shares = {"test": options.test, "validation": options.validation or (SHARE if options.tuning else 0.0)}
    for name, share in shares.items():
        is_file = isinstance(share, str) and or_file
        if not is_file and (isinstance(share, str) or not 0 <= share < 1):
            raise EverlearnError(f"{name}={share} is not a share; give a number of at least 0 and below 1{or_file}")
    return shares


def _labelled_tasks(
    options: SimpleNamespace, kind: str, bad: BadRows, read: ReadRows | None
) -> tuple[list[Task], list[str]]:
    by_domain = kind == "domain-incremental"
    shares = _shares(options, ", or a file")
    table = read(_columns(options), bad) if read else _read(options.name, options, by_domain, bad)
    table = _with_part_files(table, shares, options, by_domain, bad)
    if options.new:
        table = old_then_new.join(table, _read(options.new, options, by_domain, bad))
        by_domain = True  # the domains are "old" and "new"
    records = with_ids(table.records, bad)
    sides = old_then_new.sides(records) if options.new else [records]
    seed = options.split_seed
    parts = splits.merge([splits.make_splits(s, table.source, shares, seed=seed, by_domain=by_domain) for s in sides])
    domains = ["old", "new"]
    if kind == "domain-incremental":
        domains = domain_incremental.choose_domains(records, options.domains, table.source, bad)
        parts = splits.having(parts, "domain", domains)
    parts = splits.learnable(parts, bad)
    conflicts = mistakes.conflicting_labels(parts, table.source, by_domain=by_domain)
    notes = [*table.notes, *conflicts, *splits.repeated_inputs(splits.inputs_of(parts))]
    most = {"train": options.max_train_per_class, "test": options.max_test_per_class}
    if options.tuning:
        most["validation"] = options.max_test_per_class
    parts = splits.limit(parts, most, seed=seed, by_domain=by_domain)
    if table.input == "image":
        parts = {split: only_decodable(chosen, bad) for split, chosen in parts.items()}
        parts = splits.learnable(parts, bad, least=1)
    classes = class_incremental.order_classes(
        classes_of(records), set(classes_of(parts["train"])), table.class_names, options.class_order, options.class_seed
    )
    check_left(table.source, len(classes))
    steps = _steps(options, kind, parts, classes, domains)
    batch_size = options.batch_size if kind == "online" else None
    tasks, left_out = make_tasks(steps, table.input, table.source, batch_size, options.augment)
    return tasks, [*notes, *left_out]


def _steps(options: SimpleNamespace, kind: str, parts: Parts, classes: list[str], domains: list[str]) -> list[Step]:
    if kind == "domain-incremental" or options.new:
        return domain_incremental.steps(parts, classes, domains)
    if kind == "old-then-new":
        sizes = old_then_new.sizes(len(classes), options.old)
        return class_incremental.steps(parts, classes, sizes, ["old", "new"])
    if kind == "online":
        parts = splits.shuffled(parts, options.split_seed)
    sizes = class_incremental.task_sizes(len(classes), options.tasks, options.base, options.increment)
    return class_incremental.steps(parts, classes, sizes)


def _read(name: str, options: SimpleNamespace, by_domain: bool, bad: BadRows) -> Table:
    if name == "digits":
        return read_digits()
    columns = _columns(options)
    if name.startswith("hub:"):
        return read_hub(name.removeprefix("hub:"), columns, bad)
    path = str(DATA / f"{name}.parquet") if name in PACKAGED else name
    table = read_table(path, columns, bad, by_domain=by_domain)
    if table is not None:
        return table
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"{name}: no such file or folder; check the path")
    if "/" in name:
        return read_hub(name, columns, bad)
    raise EverlearnError(f"{unknown('stream', name, PACKAGED)}; or give a file, a folder or hub:owner/name")


def _with_part_files(table: Table, shares: Shares, options: SimpleNamespace, by_domain: bool, bad: BadRows) -> Table:
    """The table, with its test and validation examples read from separate files if these are given."""
    for split, share in shares.items():
        default = 0.2 if split == "test" else 0.0
        has_own = bool(of_split(table.records, split))
        if has_own and getattr(options, split) != default:
            raise EverlearnError(f"{table.source} has its own {split} split; drop {split}={share}")
        if isinstance(share, str):
            part = read_table(share, _columns(options), bad, by_domain=by_domain)
            if part is None:
                raise DataError(f"{share}: no such file or folder; check {split}=")
            table = Table.join([table, part.with_all(split=split)])
    return table


def _columns(options: SimpleNamespace) -> ColumnNames:
    return {role: getattr(options, f"{role}_column") for role in COMMON_NAMES}
