"""Re-indexing beside an index that answers: others write meanwhile, and it is stopped and killed."""

from __future__ import annotations

import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from known_encoders import Known, texts

from everlearn.errors import DataError, EverlearnError
from everlearn.interrupts import Interrupted
from everlearn.locks import Busy, alone
from everlearn.retrieval import reindex as reindexing
from everlearn.retrieval.index import Index
from everlearn.retrieval.reindex import reindex
from everlearn.retrieval.stamp import stamp_of

OLD, NEW = Known(), Known(family=1)
DOCUMENTS = texts(30)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setattr(reindexing, "AT_ONCE", 7)
    index = Index.create(tmp_path / "index", stamp_of(OLD), made_by={"backbone": "old"})
    index.add(list(DOCUMENTS), list(DOCUMENTS.values()), by=OLD)
    index.save()
    index.close()
    Known.asked.clear()
    return index


def check(folder: Path, documents: dict[str, str], by: Known = NEW) -> None:
    """The index holds these documents as `by` embeds them, and finds each."""
    index = Index.load(folder)
    assert index.stamp == stamp_of(by) and {*index.ids} == {*documents}
    expected = by.embed([documents[id] for id in index.ids], "document").numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(index.vectors(index.ids) - expected).max() < 1e-6
    assert [row[0] for row in index.search(list(documents.values()), by=by, k=1)[0]] == list(documents)
    index.check()
    assert not (folder / reindexing.NEXT).exists()


class During(Known):
    """Embeds as NEW does; after so many documents it does something first."""

    def __init__(self, after: int, does: Callable[[], Any]) -> None:
        super().__init__(family=1)
        self.left, self.does = after, does

    def embed(self, inputs: Any, role: Any = None) -> Any:
        if role == "document" and self.left is not None:
            self.left -= len(inputs)
            if self.left < 0:
                self.left = None  # type: ignore[assignment]
                self.does()
        return super().embed(inputs, role)


def test_it_answers_before_and_after(index: Index) -> None:
    reader = Index.load(index.folder)
    assert reindex(index, DOCUMENTS, NEW, made_by={"backbone": "new"}) == 30
    check(index.folder, DOCUMENTS)
    assert index.made_by == Index.load(index.folder).made_by == {"backbone": "new"}
    assert reader.search(["query 3"], by=OLD, k=1)[0] == [["d3"]]  # who had the old one open goes on
    with pytest.raises(EverlearnError, match="another encoder"):
        index.search(["query 3"], by=OLD)
    assert reindex(index, DOCUMENTS, NEW) == 0  # nothing is left to do


def test_the_kind_and_its_settings_stay(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    with Index.create(tmp_path / "index", stamp_of(OLD), "hnsw", links=8) as index:
        index.add(list(DOCUMENTS), list(DOCUMENTS.values()), by=OLD)
        reindex(index, DOCUMENTS, NEW)
    assert (index.kind, index.settings) == ("hnsw", {"links": 8})
    check(index.folder, DOCUMENTS)


def test_what_others_add_and_remove_meanwhile_is_kept(index: Index) -> None:
    more = texts(40)

    def change() -> None:
        with Index.load(index.folder) as other:  # the index can be written to
            assert other.search(["query 3"], by=OLD, k=1)[0] == [["d3"]]  # and answers
            other.add(["d38", "d39"], [more["d38"], more["d39"]], by=OLD)
            other.remove(["d0", "d29"])

    assert reindex(index, more, During(15, change)) == 32
    left = {id: text for id, text in DOCUMENTS.items() if id not in ("d0", "d29")}
    check(index.folder, left | {id: more[id] for id in ("d38", "d39")})


def test_a_document_that_others_add_without_a_text_stops_the_cut_over_and_no_work_is_lost(index: Index) -> None:
    def change() -> None:
        with Index.load(index.folder) as other:
            other.add(["d38"], ["document 38"], by=OLD)

    with pytest.raises(DataError, match=r"texts are missing for 1 of the 31 documents .* the first is 'd38'"):
        reindex(index, DOCUMENTS, During(15, change))
    assert Index.load(index.folder).search(["query 38"], by=OLD, k=1)[0] == [["d38"]]
    Known.asked.clear()
    assert reindex(index, DOCUMENTS | {"d38": "document 38"}, NEW) == 1
    assert Known.asked == ["document 38"]
    check(index.folder, DOCUMENTS | {"d38": "document 38"})


def test_a_document_that_others_replace_meanwhile_is_noticed(index: Index) -> None:
    def change() -> None:
        with Index.load(index.folder) as other:
            other.remove(["d3"])
            other.add(["d3"], ["a newer document 77"], by=OLD)

    with pytest.raises(DataError, match=r"the document 'd3' .* was replaced meanwhile"):
        reindex(index, DOCUMENTS, During(15, change))
    newer = DOCUMENTS | {"d3": "a newer document 77"}
    assert reindex(Index.load(index.folder), newer, NEW) == 1  # the others are there already
    check(index.folder, newer)


def test_ctrl_c_says_how_far_it_is_and_the_same_call_goes_on(index: Index) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"stopped after 14 of 30 documents; .* the same command goes on"):
        reindex(index, DOCUMENTS, During(20, interrupt))
    assert Index.load(index.folder).search(["query 3"], by=OLD, k=1)[0] == [["d3"]]
    changed = DOCUMENTS | {"d2": "another document 88"}  # the file was corrected since
    assert reindex(index, changed, NEW) == 17
    check(index.folder, changed)


def test_a_stopped_re_index_to_another_encoder_is_not_mixed(index: Index) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        reindex(index, DOCUMENTS, During(10, interrupt))
    with pytest.raises(EverlearnError, match="that was stopped: go on with that encoder, or delete this folder"):
        reindex(index, DOCUMENTS, Known(family=2))
    check_old(index.folder)


def test_to_its_own_encoder_is_nothing_to_do_and_the_work_for_another_stays(index: Index) -> None:
    def asked_by_another() -> None:
        assert reindex(Index.load(index.folder), DOCUMENTS, OLD) == 0

    def interrupt() -> None:
        asked_by_another()
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        reindex(index, DOCUMENTS, During(20, interrupt))
    asked_by_another()
    assert reindex(index, DOCUMENTS, During(0, asked_by_another)) == 30 - 14
    check(index.folder, DOCUMENTS)


def test_its_folder_is_removed_before_another_process_may_begin_there(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(place: Path, **given: Any) -> None:
        with pytest.raises(Busy), alone(place):
            pass
        shutil.rmtree(place, **given)

    monkeypatch.setattr(reindexing, "shutil", SimpleNamespace(rmtree=remove))
    reindex(index, DOCUMENTS, NEW)
    check(index.folder, DOCUMENTS)


def check_old(folder: Path) -> None:
    index = Index.load(folder)
    assert index.stamp == stamp_of(OLD)
    assert [row[0] for row in index.search(list(DOCUMENTS.values()), by=OLD, k=1)[0]] == list(DOCUMENTS)


def test_bad_input_in_one_line_and_nothing_written(index: Index) -> None:
    before = sorted(path.name for path in index.folder.rglob("*"))
    with pytest.raises(DataError, match=r"texts are missing for 2 of the 30 documents .* the first is 'd28'"):
        reindex(index, texts(28), NEW)
    assert sorted(path.name for path in index.folder.rglob("*")) == before
    (index.folder / reindexing.NEXT).mkdir()
    with alone(index.folder / reindexing.NEXT), pytest.raises(EverlearnError, match="another process is re-indexing"):
        reindex(index, DOCUMENTS, NEW)
    (index.folder / reindexing.NEXT / reindexing.TEXTS).write_text('{"d1": 3}\n')
    with pytest.raises(EverlearnError, match=r"texts\.jsonl is not what .* delete it"):
        reindex(index, DOCUMENTS, NEW)
    check_old(index.folder)


CHANGES = ("pwrite", "replace", "rename", "link", "unlink", "rmdir", "mkdir", "fsync", "truncate", "ftruncate")


def killed(folder: Path, at: int) -> bool:
    """Re-index in a process of its own, which kills itself before its change number `at` to the disk. Whether it was
    killed before it was done."""
    child = os.fork()
    if child == 0:
        left = at

        def counted(change: Callable[..., Any]) -> Callable[..., Any]:
            def count(*args: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*args, **named)

            return count

        for name in CHANGES:
            setattr(os, name, counted(getattr(os, name)))
        try:
            reindex(Index.load(folder), DOCUMENTS, NEW)
        except BaseException:
            traceback.print_exc()  # pytest shows it
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_again_and_again_it_answers_and_goes_on(index: Index) -> None:
    """Killed again and again, sooner and later: the index answers each time, as before or as after, and at last
    everything is there."""
    kills = 0
    while killed(index.folder, 5 * (kills % 6) + kills):
        kills += 1
        assert kills < 500
        if Index.load(index.folder).stamp == stamp_of(OLD):
            check_old(index.folder)
        else:
            assert {*Index.load(index.folder).ids} == {*DOCUMENTS}
    assert kills > 10
    check(index.folder, DOCUMENTS)


@pytest.mark.parametrize("at", range(0, 84, 4))
def test_killed_once_at_any_change_the_same_call_ends_it(index: Index, at: int) -> None:
    killed(index.folder, at)
    reindex(Index.load(index.folder), DOCUMENTS, NEW)
    check(index.folder, DOCUMENTS)
