"""Domain-incremental steps: every task is the same kind of data from another source."""

from __future__ import annotations

from everlearn.errors import EverlearnError, unknown
from everlearn.streams.records import BadRows, Record
from everlearn.streams.splits import Parts
from everlearn.streams.steps import Step, classes_of


def steps(parts: Parts, classes: list[str], domains: list[str]) -> list[Step]:
    """One step for each domain, in order, with the classes that occur in its training examples."""
    made = []
    for domain in domains:
        own = {split: [r for r in records if r.domain == domain] for split, records in parts.items()}
        present = set(classes_of(own["train"]))
        made.append(Step(domain, [name for name in classes if name in present], own))
    return made


def of_domains(parts: Parts, domains: list[str]) -> Parts:
    """The records of these domains."""
    wanted = set(domains)
    return {split: [r for r in records if r.domain in wanted] for split, records in parts.items()}


def choose_domains(records: list[Record], domains: list[str] | None, source: str, bad: BadRows) -> list[str]:
    """The asked domains, or all in the order of their first record.

    Raises:
        DataError: a record without a domain, unless bad rows are skipped.
        EverlearnError: an unknown domain, or one given twice.
    """
    for record in records:
        if record.domain is None:
            bad.add(
                record.place,
                "no domain, which every row of a domain-incremental stream needs",
                "fill it in, or name the column with domain_column",
            )
    return select([record.domain for record in records if record.domain is not None], domains, source)


def select(found: list[str], domains: list[str] | None, source: str) -> list[str]:
    """The asked domains, checked against those that are found; all of them where none are asked for."""
    known = list(dict.fromkeys(found))
    if not domains:
        return known
    for domain in domains:
        if domain not in known:
            raise unknown(f"domain of {source}", domain, known)
        if domains.count(domain) > 1:
            raise EverlearnError(f"the domain '{domain}' is given twice; a domain is one task")
    return domains
