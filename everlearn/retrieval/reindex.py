"""Re-indexing: the documents of an index embedded by another encoder, beside it, while it goes on answering.

The folder `next` in that of the served index is an ordinary index that grows. Stopped or killed, the same call goes on
with it. When it has every document, the served index takes it over, which is one atomic step.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from zlib import crc32

from everlearn.errors import DataError, EverlearnError, printable
from everlearn.files import append_lines, read_text, rewrite_lines
from everlearn.interrupts import Interrupted
from everlearn.locks import Busy, alone
from everlearn.progress import Progress
from everlearn.retrieval.current import is_unfinished
from everlearn.retrieval.index import MAKING, Index
from everlearn.retrieval.stamp import Encoder, stamp_of
from everlearn.schemas.values import valid
from everlearn.strict import from_json

NEXT, TEXTS = "next", "texts.jsonl"
AT_ONCE = 64
"""Documents that are embedded and acknowledged together."""
REMEDY = "delete it, and the documents are embedded again"


def reindex(
    served: Index, documents: Mapping[str, str], by: Encoder, *, made_by: Mapping[str, str] | None = None,
    progress: bool = False,
) -> int:  # fmt: skip
    """Embed the documents of an index again, by another encoder, and let the index answer from these embeddings.

    The index answers as before until all is done. Others may add and remove documents meanwhile: what they removed is
    left out, and of what they added or replaced the texts must be among `documents`, or else the step is refused and
    the work is kept.

    Args:
        served: the index, opened before the texts were read, so that a document that is replaced in between is
            noticed. It is closed for writing.
        documents: the texts by id; at least those of the documents of the index.
        by: the other encoder.
        made_by: what to load for it, for the command line (see `Index.create`).
        progress: whether to show a progress bar with the remaining time.

    Returns:
        How many documents were embedded now, without those of a call before that was stopped.

    Raises:
        DataError: the text of a document is missing.
        EverlearnError: another process re-indexes, or a re-index to yet another encoder was stopped here.
        Interrupted: Ctrl-C; the index answers as before, and the same call goes on.

    >>> import tempfile
    >>> from everlearn import backbones
    >>> index = Index.create(tempfile.mkdtemp() + "/garden", stamp_of(backbones.load("tiny")))
    >>> index.add(["roses", "lawn"], ["water the roses", "the lawn is dry"], by=backbones.load("tiny"))
    >>> two = backbones.load("tiny@layers=2")
    >>> reindex(index, {"roses": "water the roses", "lawn": "the lawn is dry"}, two)
    2
    >>> index.stamp.dimension, index.search(["the lawn is dry"], by=two, k=1)[0]
    (64, [['lawn']])
    """
    place, stamp = served.folder / NEXT, stamp_of(by)
    old = _digests(served)
    served.close()
    if Index.load(served.folder).stamp.space == stamp.space:
        _clear(place, stamp.space)
        return 0
    _check_texts(served, documents)
    place.mkdir(exist_ok=True)
    with alone(place, "re-indexing"):
        following = _Following(_opened(place / "index", served, by, made_by), place / TEXTS, documents, by)
        try:
            with Progress(len(served), "documents embedded again", progress) as bar:
                while following.lacks(now := Index.load(served.folder)):  # others may add documents meanwhile
                    following.catch_up(now, bar)
                following.index.save()
                served.lock()
                following.catch_up(served, bar)
                _check_kept(served, old)
                served.take_over(following.index)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped after {len(following.index):,} of {len(served):,} documents; {served.folder} "
                              "answers as before, and the same command goes on") from None  # fmt: skip
        finally:
            following.index.close()
            served.close()
        shutil.rmtree(place, ignore_errors=True)  # before another process may begin there
    return following.embedded


def _clear(place: Path, space: str) -> None:
    """Remove what a process has left that was killed after the index, now of this space, had taken it over. The work of
    a re-index to another space, which goes on or was stopped, stays."""
    if place.exists():
        with suppress(Busy), alone(place, "re-indexing"):
            try:
                is_other = Index.load(place / "index").stamp.space != space
            except EverlearnError:  # half removed, or not begun
                is_other = False
            if not is_other:
                shutil.rmtree(place, ignore_errors=True)


class _Following:
    """The index that grows, and of which text each of its embeddings is: a text that has changed since is embedded
    again."""

    def __init__(self, index: Index, file: Path, documents: Mapping[str, str], by: Encoder) -> None:
        self.index, self.file, self.documents, self.by = index, file, documents, by
        self.embedded = 0
        lines = read_text(file).splitlines(keepends=True) if file.exists() else []
        # The last line may be cut off by a kill.
        told = [from_json(line, file, REMEDY) for line in lines if line.endswith("\n")]
        known = {id: text for line in valid(told, list[dict[str, str]], file, REMEDY) for id, text in line.items()}
        rewrite_lines(file, [known])
        if stale := [id for id in index.ids if id not in documents or known.get(id) != _digest(documents[id])]:
            index.remove(stale)

    def lacks(self, served: Index) -> bool:
        """Whether the served index holds a document that is missing here."""
        return any(id not in self.index for id in served.ids)

    def catch_up(self, served: Index, bar: Progress) -> None:
        """Hold the documents that the served index holds."""
        _check_texts(served, self.documents)
        if gone := [id for id in self.index.ids if id not in served]:
            self.index.remove(gone)
        todo = [id for id in served.ids if id not in self.index]
        bar.total = len(served)
        bar.show(len(self.index))
        for start in range(0, len(todo), AT_ONCE):
            some = todo[start : start + AT_ONCE]
            # First the embedding and then its text: what a kill leaves without its text is embedded again.
            self.index.add(some, [self.documents[id] for id in some], self.by)
            append_lines(self.file, [{id: _digest(self.documents[id]) for id in some}])
            self.embedded += len(some)
            bar.show(len(self.index))


def _opened(folder: Path, served: Index, by: Encoder, made_by: Mapping[str, str] | None) -> Index:
    stamp = stamp_of(by)
    if not folder.exists() or is_unfinished(folder, MAKING):
        return Index.create(folder, stamp, served.kind, made_by=made_by, **served.settings)  # type: ignore[arg-type]
    following = Index.load(folder)
    if following.stamp.space != stamp.space:
        raise EverlearnError(f"{folder.parent} holds a re-index to {printable(following.stamp.encoder)} that was "
                             "stopped: go on with that encoder, or delete this folder")  # fmt: skip
    return following


def _check_kept(served: Index, old: Mapping[str, int]) -> None:
    now = _digests(served)
    if replaced := [id for id, digest in old.items() if now.get(id, digest) != digest]:
        raise DataError(f"the document '{printable(replaced[0])}' of {served.folder} was replaced meanwhile: repeat "
                        "the command, and give the new text")  # fmt: skip


def _check_texts(index: Index, documents: Mapping[str, str]) -> None:
    if missing := [id for id in index.ids if id not in documents]:
        raise DataError(f"texts are missing for {len(missing):,} of the {len(index):,} documents of {index.folder}, "
                        f"the first is '{printable(missing[0])}': give a file that holds them")  # fmt: skip


def _digests(index: Index, at_once: int = 8192) -> dict[str, int]:
    """A checksum of the embedding of each document, by which a document that is replaced is known."""
    ids = index.ids
    found: dict[str, int] = {}
    for start in range(0, len(ids), at_once):
        some = ids[start : start + at_once]
        found |= {id: crc32(row.tobytes()) for id, row in zip(some, index.vectors(some), strict=True)}
    return found


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
