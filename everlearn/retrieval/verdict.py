"""The verdict on a new encoder: may it search the old index, over a bridge or as it is, must everything be encoded
again, or should the old encoder stay?

A rule over a few numbers gives the answer (`decide`), and `judge` in `trial.py` measures the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from everlearn.retrieval.bridge import Bridge

Answer = Literal["serve", "bridge", "re-index", "roll back"]

TOLERANCE = 0.01
"""Differences of recall@10 up to this count as none."""
RETENTION = 0.8
"""The least share that any domain must keep of what old queries found."""
BRIDGE_RATIO = 0.95
"""The share of the recall of new queries in a new index that a bridge must reach in the old one."""
FEWEST = 10
"""Queries of a domain from which on its own figure counts; all smaller domains count together."""


@dataclass(frozen=True)
class Reached:
    """What the queries of an encoder find in an index.

    Args:
        recall: the mean recall@10.
        kept: the smallest share that a domain keeps of what old queries find in the old index; 1 where none loses.

    >>> Reached(0.93).kept
    1.0
    """

    recall: float
    kept: float = 1.0


def reached(scores: np.ndarray, old: np.ndarray, domains: Sequence[str]) -> Reached:
    """The mean, and what the domain that loses most keeps.

    Args:
        scores: (n,) recall@10 of n queries.
        old: (n,) the same of old queries in the old index.
        domains: n names.

    >>> reached(np.array([1.0] * 10 + [0.5] * 10), np.ones(20), ["tea"] * 10 + ["sofas"] * 10)
    Reached(recall=0.75, kept=0.5)
    """
    names = np.asarray(domains)
    known, counts = np.unique(names, return_counts=True)
    groups = [names == name for name in known[counts >= FEWEST]]
    if (small := np.isin(names, known[counts < FEWEST])).any():
        groups.append(small)
    shares = [scores[group].mean() / old[group].mean() for group in groups if old[group].any()]
    return Reached(float(scores.mean()), float(min(1.0, *shares)) if shares else 1.0)


def decide(
    old: float, new: Reached, served: Reached | None = None, bridged: Reached | None = None, *,
    tolerance: float = TOLERANCE, bridge_ratio: float = BRIDGE_RATIO, retention: float = RETENTION,
) -> tuple[Answer, str]:  # fmt: skip
    """The answer to a new encoder, and why: the cheapest way to search with it that loses nothing.

    Whatever it is, no domain may lose too much: each keeps `retention` of what it found before.

    * serve: the new queries find in the old index as much as in a new one, and as much as the old queries did.
    * bridge: over a bridge they find `bridge_ratio` of what they find in a new index, and as much as the old queries.
    * re-index: neither, and they find more in a new index than the old queries found in the old one.
    * roll back: the new encoder brings nothing that can be served. The old one stays.

    Args:
        old: recall@10 of old queries in the old index.
        new: of new queries in a new index.
        served: of new queries in the old index, as they are; None where they cannot search it.
        bridged: the same over the best bridge; None where there is none.
        tolerance: differences of recall up to this count as none.
        bridge_ratio, retention: shares between 0 and 1.

    Returns:
        The answer, and one sentence.

    >>> decide(0.90, Reached(0.93), served=Reached(0.05, 0.1), bridged=Reached(0.92))[0]
    'bridge'
    >>> decide(0.90, Reached(0.93), served=Reached(0.05, 0.1), bridged=Reached(0.70))[0]
    're-index'
    """

    def loses_nothing(way: Reached) -> bool:
        return way.recall >= old - tolerance and way.kept >= retention

    def percent(value: float) -> str:
        return f"{100 * value:.1f} %"

    found = (f"new queries find {percent(new.recall)} of what is relevant in a new index, and old queries "
             f"{percent(old)} in the old one")  # fmt: skip
    if served and served.recall >= new.recall - tolerance and loses_nothing(served):
        return "serve", f"{found}; new queries find {percent(served.recall)} in the old one as it is"
    if bridged and bridged.recall >= bridge_ratio * new.recall and loses_nothing(bridged):
        return "bridge", (f"{found}; over a bridge new queries find {percent(bridged.recall)} in the old one, and "
                          f"{percent(bridge_ratio * new.recall)} is asked for")  # fmt: skip
    best = max((way.recall for way in (served, bridged) if way), default=None)
    tried = "" if best is None else f"; in the old one new queries find at best {percent(best)}"
    if new.kept < retention:
        return "roll back", (f"{found}; one domain keeps only {percent(new.kept)} of what it found, and "
                             f"{percent(retention)} is asked for{tried}")  # fmt: skip
    if new.recall > old + tolerance:
        return "re-index", f"{found}{tried}"
    worse = "less" if new.recall < old - tolerance else "no more"
    return "roll back", f"the new encoder finds {worse} than the old one: {found}{tried}"


@dataclass(frozen=True)
class Verdict:
    """The answer with all that speaks for it. Every entry of its record is an attribute: ``verdict.answer``.

    Args:
        record: as plain JSON: answer, reason, pairings (what was found in each), bill (documents to encode, the
            seconds at the measured rate, bytes), documents, sampled, queries, relevance (judged or pseudo), bridge (the
            name of the best), differences (with 95 % intervals), from and to (stamps), tolerance, bridge_ratio,
            retention, threshold, notes.
        bridge: the best bridge that was tried; the answer says whether it may be used.

    Raises:
        AttributeError: the record has no such entry.

    >>> Verdict({"answer": "serve"}, None).answer
    'serve'
    """

    record: dict[str, Any]
    best_bridge: Bridge | None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for these before there is a record
            raise AttributeError(name)
        try:
            return self.record[name]
        except KeyError:
            raise AttributeError(f"a verdict has no entry '{name}'; it has {', '.join(self.record)}") from None

    def table(self) -> str:
        """The pairings, one a line.

        >>> row = {"queries": "old", "index": "old", "bridge": None, "recall": 0.9, "ndcg": 0.8, "agreement": 0.5}
        >>> print(Verdict({"pairings": [{**row, "kept": 1.0}], "bridge": None}, None).table())
        queries  index  bridge      recall@10  nDCG@10   kept  agreement
        old      old    -                90.0     80.0  100.0       50.0
        """
        lines = [f"{'queries':<8} {'index':<6} {'bridge':<10}  recall@10  nDCG@10   kept  agreement"]
        for row in self.pairings:
            name = row["bridge"] or "-"
            chosen = "  (best)" if row["bridge"] and row["bridge"] == self.bridge else ""
            recall, ndcg, kept, agreement = (100 * row[score] for score in ("recall", "ndcg", "kept", "agreement"))
            lines.append(f"{row['queries']:<8} {row['index']:<6} {name:<10}  {recall:9.1f}{ndcg:9.1f}{kept:7.1f}"
                         f"{agreement:11.1f}{chosen}")  # fmt: skip
        return "\n".join(lines)

    def describe(self) -> str:
        """The verdict in sentences, the table, the bill and what to beware of, for the terminal."""
        asked, bill = self.queries, self.bill
        lines = [f"verdict: {self.answer}", f"{self.reason}.", self.table(),
                 f"in %, of {asked['reported']:,} queries; {asked['chose']:,} others chose the bridge, and "
                 f"{asked['fitted']:,} more and {self.sampled:,} documents fitted it",
                 "kept: of what old queries find in the old index, in the domain that loses most; agreement: of the "
                 "first 10 documents of new queries in a new index, those that are found as well",
                 "differences of recall@10:"]  # fmt: skip
        lines += [f"  {told['what']}: {100 * told['difference']:+.1f} (95 % interval {100 * told['low']:+.1f} to "
                  f"{100 * told['high']:+.1f}, p = {told['p']:.3g})" for told in self.differences]  # fmt: skip
        lines.append(describe_bill(bill))
        if told := self.threshold:
            lines.append(f"threshold: {told['old']:g} becomes {told['new']:.4g}. A threshold never transfers exactly: "
                         f"of pairs of a query and a document that were not used for this, "
                         f"{100 * told['changed']:.1f} % are decided otherwise")  # fmt: skip
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def describe_bill(bill: dict[str, Any]) -> str:
    """What a re-index costs, in a sentence.

    >>> describe_bill({"documents": 36000, "documents_per_second": 10.0, "seconds": 3600.0, "bytes": 2**20})
    'a re-index costs 36,000 documents to encode, 1 h 0 min at the 10 documents a second measured here, and 1.0 MiB'
    >>> describe_bill({"documents": 0, "documents_per_second": None, "seconds": 0.0, "bytes": 0})
    'documents are embedded as before, so that none has to be encoded'
    """
    from everlearn.formats import duration, human_bytes

    if not bill["documents"]:
        return "documents are embedded as before, so that none has to be encoded"
    rate = bill["documents_per_second"]
    shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    return (f"a re-index costs {bill['documents']:,} documents to encode, {duration(bill['seconds'])} at the {shown} "
            f"documents a second measured here, and {human_bytes(bill['bytes'])}")  # fmt: skip
