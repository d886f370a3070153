"""Domain-incremental steps: every task has data of the same kind from another domain."""

from __future__ import annotations

from collections import Counter

from everlearn.errors import EverlearnError, unknown
from everlearn.streams.records import BadRows, Record
from everlearn.streams.splits import Parts, divide
from everlearn.streams.steps import Step, classes_of


def steps(parts: Parts, classes: list[str], domains: list[str]) -> list[Step]:
    """One step per domain, in order, with the classes that occur in its training examples."""
    order = {name: k for k, name in enumerate(classes)}
    divided = divide(parts, "domain", {domain: k for k, domain in enumerate(domains)}, len(domains))
    made = []
    for domain, own in zip(domains, divided, strict=True):
        present = [name for name in classes_of(own["train"]) if name in order]
        made.append(Step(domain, sorted(present, key=order.__getitem__), own))
    return made


def choose_domains(records: list[Record], domains: list[str] | None, source: str, bad: BadRows) -> list[str]:
    """The requested domains, or all domains in the order of their first record.

    Raises:
        DataError: a record has no domain, and bad rows are not skipped.
        EverlearnError: a domain is unknown or is given twice.
    """
    for record in records:
        if record.domain is None:
            cause = "no domain, but every row of a domain-incremental stream needs one"
            bad.add(record.place, cause, "fill it in, or name the column with domain_column")
    return select([record.domain for record in records if record.domain is not None], domains, source)


def select(found: list[str], domains: list[str] | None, source: str) -> list[str]:
    """The requested domains, after a check that the data has them; all domains if none are requested."""
    known = dict.fromkeys(found)
    if not domains:
        return list(known)
    for domain, count in Counter(domains).items():
        if domain not in known:
            raise unknown(f"domain of {source}", domain, known)
        if count > 1:
            raise EverlearnError(f"the domain '{domain}' is given twice, but each domain is one task; give it once")
    return domains
