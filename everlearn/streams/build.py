"""Builds a Stream from the arguments of `load`: reads the data, splits it, and orders and numbers the classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everlearn.errors import DataError, EverlearnError, unknown
from everlearn.streams import class_incremental, domain_incremental, old_then_new, online, splits
from everlearn.streams.digits import read_digits
from everlearn.streams.hub import read_hub
from everlearn.streams.images import only_decodable
from everlearn.streams.packaged import PACKAGED
from everlearn.streams.readers import ColumnNames, read_table
from everlearn.streams.records import BadRows, Table, of_split, with_ids
from everlearn.streams.retrieval import find_retrieval_files, make_retrieval_tasks
from everlearn.streams.steps import Step, classes_of, make_tasks
from everlearn.streams.stream import Stream, Task

SHUFFLING = frozenset({"class_order", "class_seed"})
EXAMPLES = frozenset({"max_train_per_class", "max_test_per_class"}) | {
    f"{role}_column" for role in ("text", "label", "image", "domain", "split", "id")
}
BY_CLASS = SHUFFLING | EXAMPLES | {"tasks", "base", "increment"}
KINDS = {
    "class-incremental": BY_CLASS,
    "task-incremental": BY_CLASS,
    "online": BY_CLASS | {"batch_size"},
    "domain-incremental": SHUFFLING | EXAMPLES | {"domains"},
    "old-then-new": SHUFFLING | EXAMPLES | {"old", "new"},
}
"""The options that apply to each kind, in addition to those that apply to every kind."""
PAIRS = frozenset({"domains", "titles"})
COMMON = frozenset({"kind", "test", "validation", "split_seed", "skip_bad_rows", "augment"})


@dataclass(frozen=True)
class Options:
    """The arguments of `everlearn.streams.load`, which documents them."""

    name: str
    kind: str | None
    tasks: int | None
    base: int | None
    increment: int | None
    class_order: str
    class_seed: int
    domains: str | list[str] | None
    old: float
    new: str | None
    batch_size: int
    test: float | str
    validation: float | str
    split_seed: int
    max_train_per_class: int | None
    max_test_per_class: int | None
    titles: bool
    augment: bool
    skip_bad_rows: bool
    text_column: str | None
    label_column: str | None
    image_column: str | None
    domain_column: str | None
    split_column: str | None
    id_column: str | None

    @property
    def domain_list(self) -> list[str] | None:
        if isinstance(self.domains, str):
            return [name.strip() for name in self.domains.split(",") if name.strip()]
        return None if self.domains is None else list(self.domains)

    @property
    def columns(self) -> ColumnNames:
        return ColumnNames(
            text=self.text_column, label=self.label_column, image=self.image_column,
            domain=self.domain_column, split=self.split_column, id=self.id_column,
        )  # fmt: skip


def build(options: Options, given: dict[str, Any]) -> Stream:
    """Build the stream. `given` holds the arguments that differ from their defaults."""
    bad = BadRows(options.skip_bad_rows)
    if options.domain_list is not None:
        given = {**given, "domains": options.domain_list}
    files = None if options.name in PACKAGED else find_retrieval_files(options.name)
    if files:
        kind = options.kind or "domain-incremental"
        if kind != "domain-incremental":
            raise EverlearnError(f"a stream of pairs is domain-incremental; kind={kind} needs labelled examples")
        _refuse_other_options(given, PAIRS, "a stream of pairs")
        tasks, notes = make_retrieval_tasks(
            files,
            domains=options.domain_list,
            titles=options.titles,
            test=_share("test", options.test),
            validation=_share("validation", options.validation),
            seed=options.split_seed,
            bad=bad,
        )
    else:
        kind = _kind(options)
        _refuse_other_options(given, KINDS[kind], f"a stream of kind {kind}")
        tasks, notes = _labelled_tasks(options, kind, bad)
    if options.augment and tasks[0].input != "image":
        raise EverlearnError(f"augment makes views of images, but {options.name} has texts: drop augment")
    config = {"name": options.name, **given}
    return Stream(options.name, kind, tuple(tasks), config, (*notes, *bad.notes()))


def _kind(options: Options) -> str:
    """The requested kind, or else the kind that follows from the other options."""
    if options.kind is None:
        natural = "domain-incremental" if options.domains is not None else "class-incremental"
        return "old-then-new" if options.new else natural
    if options.kind not in KINDS:
        raise unknown("kind", options.kind, KINDS)
    return options.kind


def _refuse_other_options(given: dict[str, Any], allowed: frozenset[str], what: str) -> None:
    for key in given:
        if key not in allowed | COMMON:
            homes = [name for name, options in KINDS.items() if key in options] or ["retrieval files"]
            raise EverlearnError(f"{key} does not apply to {what}; it applies to {', '.join(homes)}: drop it")


def _share(name: str, value: float | str) -> float:
    if isinstance(value, str):
        raise EverlearnError(f"{name}={value} is not a share; give a number of at least 0 and below 1")
    return value


def _labelled_tasks(options: Options, kind: str, bad: BadRows) -> tuple[list[Task], list[str]]:
    by_domain = kind == "domain-incremental"
    table = _with_part_files(_read(options.name, options, by_domain, bad), options, by_domain, bad)
    if options.new:
        table = old_then_new.join(table, _read(options.new, options, by_domain, bad))
        by_domain = True  # the domains are "old" and "new"
    records = with_ids(table.records, bad)
    sides = old_then_new.sides(records) if options.new else [records]
    shares = {name: 0.0 if isinstance(share, str) else share for name, share in _shares(options).items()}
    parts = splits.merge(
        splits.make_splits(side, table.source, **shares, seed=options.split_seed, by_domain=by_domain) for side in sides
    )
    domains = ["old", "new"]
    if kind == "domain-incremental":
        domains = domain_incremental.choose_domains(records, options.domain_list, table.source, bad)
        parts = domain_incremental.of_domains(parts, domains)
    parts = splits.without_classes(parts, splits.unlearnable(parts, bad))
    notes = [*table.notes, *splits.repeated_inputs(parts)]
    parts = splits.limit(
        parts,
        train=options.max_train_per_class,
        test=options.max_test_per_class,
        seed=options.split_seed,
        by_domain=by_domain,
    )
    if table.input == "image":
        parts = {split: only_decodable(chosen, bad) for split, chosen in parts.items()}
    classes = class_incremental.order_classes(
        classes_of(records), set(classes_of(parts["train"])), table.class_names, options.class_order, options.class_seed
    )
    steps = _steps(options, kind, parts, classes, domains)
    batch_size = options.batch_size if kind == "online" else None
    tasks, left_out = make_tasks(steps, table.input, table.source, batch_size, options.augment)
    return tasks, [*notes, *left_out]


def _steps(options: Options, kind: str, parts: splits.Parts, classes: list[str], domains: list[str]) -> list[Step]:
    if kind == "domain-incremental" or options.new:
        return domain_incremental.steps(parts, classes, domains)
    if kind == "old-then-new":
        sizes = old_then_new.sizes(len(classes), options.old)
        return class_incremental.steps(parts, classes, sizes, ["old", "new"])
    if kind == "online":
        if options.batch_size < 1:
            raise EverlearnError(f"batch_size={options.batch_size} gives batches without examples; give 1 or more")
        parts = online.shuffled(parts, options.split_seed)
    sizes = class_incremental.task_sizes(len(classes), options.tasks, options.base, options.increment)
    return class_incremental.steps(parts, classes, sizes)


def _read(name: str, options: Options, by_domain: bool, bad: BadRows) -> Table:
    if name == "digits":
        return read_digits()
    path = str(Path(__file__).parent / "data" / f"{name}.parquet") if name in PACKAGED else name
    hub = name.removeprefix("hub:")
    table = None if hub != name else read_table(path, options.columns, bad, by_domain=by_domain)
    if table is not None:
        return table
    if hub == name and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise DataError(f"{name}: no such file or folder; check the path")
    if hub != name or "/" in name:
        return read_hub(hub, options.columns, bad)
    raise EverlearnError(f"{unknown('stream', name, PACKAGED)}; or give a file, a folder or hub:owner/name")


def _with_part_files(table: Table, options: Options, by_domain: bool, bad: BadRows) -> Table:
    """The table, with its test and validation examples read from separate files if these are given."""
    for split, share in _shares(options).items():
        default = 0.2 if split == "test" else 0.0
        has_own = bool(of_split(table.records, split))
        if has_own and share != default:
            raise EverlearnError(f"{table.source} has its own {split} split; drop {split}={share}")
        if isinstance(share, str):
            part = read_table(share, options.columns, bad, by_domain=by_domain)
            if part is None:
                raise DataError(f"{share}: no such file or folder; check {split}=")
            table = Table.join([table, part.as_split(split)])
    return table


def _shares(options: Options) -> dict[str, float | str]:
    return {"test": options.test, "validation": options.validation}
