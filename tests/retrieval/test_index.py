"""An index answers the same however it was filled, refuses what does not fit, and is only ever whole."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import everlearn
from everlearn import backbones, methods
from everlearn.errors import EverlearnError
from everlearn.locks import alone
from everlearn.retrieval import Index, Stamp, stamp_of
from everlearn.retrieval.bridge import Bridge, read_bridges

D = 12
DOT = Stamp("here", "generated", D, "dot")
COSINE = Stamp("here", "generated", D)
KINDS = ("exact", "hnsw", "ivf", "lance")


def needs(kind: str) -> str:
    module = {"hnsw": "faiss", "ivf": "faiss", "lance": "lancedb"}.get(kind)
    if module:
        pytest.importorskip(module)
    return kind


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return needs(request.param)


def whole(n: int, seed: int = 0, most: int = 9) -> np.ndarray:
    """(n, D) whole numbers, whose sums of products are exact and often equal."""
    return np.random.default_rng(seed).integers(-most, most + 1, (n, D)).astype(np.float32)


def names(n: int) -> list[str]:
    return [f"d{i}" for i in range(n)]


def filled(folder: Path, n: int = 40, kind: Any = "exact", stamp: Stamp = DOT, **settings: int) -> Index:
    index = Index.create(folder, stamp, kind, **settings)  # type: ignore[arg-type]
    index.add(names(n), whole(n), stamp)
    return index


def first(index: Index, queries: np.ndarray, k: int = 10) -> tuple[list[list[str]], list[list[float]]]:
    ids, scores = index.search(queries, DOT, k)
    assert scores.shape == (len(queries), min(k, len(index))) and scores.dtype == np.float32
    return ids, scores.tolist()


# -- how it was filled -------------------------------------------------------------------------
def test_one_by_one_in_batches_and_at_once_answer_the_same(tmp_path: Path) -> None:
    n, ids, vectors, queries = 10_000, names(10_000), whole(10_000, most=3), whole(50, seed=1, most=3)
    gone = np.random.default_rng(2).permutation(n)[:1000]
    left = np.setdiff1d(np.arange(n), gone)

    alone = Index.create(tmp_path / "one by one", DOT)
    for row in range(n):
        alone.add([ids[row]], vectors[row : row + 1], DOT)
        if row % 10 == 9:
            for removed in gone[row // 10 : row // 10 + 1]:
                if removed <= row:
                    alone.remove([ids[removed]])
    alone.remove([ids[row] for row in gone if ids[row] in alone])

    batches = Index.create(tmp_path / "batches", DOT)
    for start in range(0, n, 700):
        batches.add(ids[start : start + 700], vectors[start : start + 700], DOT)
    batches.remove([ids[row] for row in gone])

    once = Index.create(tmp_path / "once", DOT)
    once.add([ids[row] for row in left], vectors[left], DOT)

    expected = first(once, queries)
    assert len({score for row in expected[1] for score in row}) < 250  # there are many ties
    for index in (alone, batches):
        assert index.ids == once.ids and len(index) == n - 1000
        assert first(index, queries) == expected
        index.close()
        assert first(Index.load(index.folder), queries) == expected
    batches.remove(batches.ids[:3000])
    before = first(batches, queries)
    batches.save()
    assert batches.generation == 2 and first(batches, queries) == before
    assert batches.stored_bytes() < once.stored_bytes()


def test_of_equal_documents_the_first_comes_first(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", DOT)
    for id in ("b", "c", "a"):
        index.add([id], np.ones((1, D)), DOT)
    index.add([f"x{i}" for i in range(5000)], np.ones((5000, D)), DOT)
    assert index.search(np.ones((1, D)), DOT, 4)[0] == [["b", "c", "a", "x0"]]
    index.remove(["c"])
    index.add(["c"], np.ones((1, D)), DOT)
    assert index.search(np.ones((1, D)), DOT, 4)[0] == [["b", "a", "x0", "x1"]]
    assert index.ids[-1] == "c"


@pytest.mark.parametrize("stamp", [DOT, COSINE], ids=["dot", "cosine"])
@pytest.mark.parametrize("copies", [4, 60])
def test_equal_documents_stay_in_order_though_a_product_of_matrices_rounds(
    tmp_path: Path, stamp: Stamp, copies: int
) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(9000, D)).astype(np.float32)
    places = np.sort(random.permutation(9000)[:copies])
    vectors[places] = 3 * vectors[0]
    index = Index.create(tmp_path / "index", stamp)
    index.add(names(9000), vectors, stamp)
    queries = vectors[:1] + random.normal(size=(40, D)).astype(np.float32) / 10
    together, scores = index.search(queries, stamp, k=4)
    assert together == 40 * [[f"d{place}" for place in places[:4]]]
    assert (scores == scores[:, :1]).all()
    apart = [index.search(query[None], stamp, k=4) for query in queries]  # a prediction depends on its query alone
    assert [ids for (ids,), _ in apart] == together and np.array_equal(np.concatenate([s for _, s in apart]), scores)


def test_equal_documents_stay_in_order_beyond_what_the_structure_covers(tmp_path: Path) -> None:
    needs("hnsw")
    vectors = np.random.default_rng(0).normal(size=(300, D)).astype(np.float32)
    vectors[[150, 299]] = vectors[3]
    index = Index.create(tmp_path / "index", COSINE, "hnsw")
    index.add(names(200), vectors[:200], COSINE)
    index.save()
    index.add(names(300)[200:], vectors[200:], COSINE)
    for seed in range(20):
        query = vectors[3] + np.random.default_rng(seed).normal(size=D).astype(np.float32) / 100
        assert index.search(query[None], COSINE, k=3)[0] == [["d3", "d150", "d299"]]


@pytest.mark.parametrize("how", ["saved", "not saved", "saved, then more", "saved, then almost all removed"])
def test_every_kind_finds_what_the_exact_search_finds(tmp_path: Path, kind: str, how: str) -> None:
    n, vectors, queries = 3000, whole(3000), whole(30, seed=1)
    settings = {"hnsw": {"width": 200}, "ivf": {"probes": 120}}.get(kind, {})
    part = 2000 if how == "saved, then more" else n
    index: Any = Index.create(tmp_path / "index", DOT, kind, **settings)  # type: ignore[arg-type]
    index.add(names(part), vectors[:part], DOT)
    if how != "not saved":
        index.save()
    if part < n:
        index.add(names(n)[part:], vectors[part:], DOT)
    gone = names(2995) if "removed" in how else names(200)
    index.remove(gone)
    truth = -np.sort(-(queries @ vectors[len(gone) :].T), axis=1)[:, :10]
    for opened in (index, Index.load(index.folder)):
        ids, scores = opened.search(queries, DOT, 10)
        assert not {id for row in ids for id in row} & set(gone)
        assert all(len(set(row)) == len(row) == min(10, len(index)) for row in ids)
        found = [[float(queries[q] @ vectors[int(id[1:])]) for id in row] for q, row in enumerate(ids)]
        assert np.allclose(scores, found, atol=1e-4)
        assert (np.abs(scores - truth) < 1e-3).mean() > 0.98
    index.close()


def test_vectors_and_cosines(tmp_path: Path, kind: str) -> None:
    index = filled(tmp_path / "index", kind=kind, stamp=COSINE)
    vectors = whole(40)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(index.vectors(["d7", "d0", "d7"]), unit[[7, 0, 7]], atol=1e-6)
    assert index.vectors([]).shape == (0, D)
    ids, scores = index.search(5 * vectors[:3], COSINE, 1)
    assert ids == [["d0"], ["d1"], ["d2"]] and np.allclose(scores, 1, atol=1e-5)
    assert index.search(np.empty((0, D)), COSINE)[0] == []


def test_ids_of_any_characters(tmp_path: Path, kind: str) -> None:
    odd = ["a'b", 'say "x"', "tab\there", "line\nbreak", "nul\x00", "日本語", " ", "../up", "x" * 10_000, "1); drop"]
    index = Index.create(tmp_path / "index", DOT, kind)  # type: ignore[arg-type]
    index.add(odd, whole(len(odd)), DOT)
    index.remove(["line\nbreak"])
    index.close()
    again = Index.load(tmp_path / "index")
    assert again.ids == [id for id in odd if id != "line\nbreak"] and "日本語" in again
    found = again.search(again.vectors(["a'b"]) * 100, DOT, 1)
    assert found[0] == [["a'b"]]


# -- who may ask -------------------------------------------------------------------------------
def test_texts_are_embedded_by_the_encoder_of_the_stamp(tmp_path: Path) -> None:
    tiny = backbones.load("tiny")
    with Index.create(tmp_path / "index", stamp_of(tiny)) as index:
        index.add(["tea", "rose"], ["a cup of tea", "a red rose"], by=tiny)
    frozen = methods.get("frozen")(tiny)
    assert Index.load(index.folder).search(["a cup of tea", "a red rose"], frozen, 1)[0] == [["tea"], ["rose"]]
    other = methods.get("finetune")(backbones.load("tiny"))
    with everlearn.Index.load(index.folder) as opened:
        with torch.no_grad():
            next(other.backbone.parameters()).mul_(1.5)
        with pytest.raises(EverlearnError, match=r"another encoder \(other weights of tiny\).*would mean nothing"):
            opened.search(["a cup of tea"], other)
        with pytest.raises(EverlearnError, match="another encoder"):
            opened.add(["x"], ["x"], other)
        assert len(opened) == 2


class Drifting:
    """A method that knows the way from its present space to that of the index."""

    def reaches(self, space: str) -> bool:
        return space == "here"

    def queries_for(self, queries: list[Any], space: str) -> Any:
        return torch.from_numpy(whole(40)[[int(query) for query in queries]])


def test_a_method_that_knows_the_way_is_asked_for_it(tmp_path: Path) -> None:
    index = filled(tmp_path / "index", stamp=COSINE)
    assert index.search(["3", "5"], Drifting(), 1)[0] == [["d3"], ["d5"]]  # type: ignore[arg-type]


def test_a_bridge_leads_from_another_space(tmp_path: Path, kind: str) -> None:
    index, there = filled(tmp_path / "index", kind=kind, stamp=COSINE), Stamp("../far away", "other", 5)
    asked = np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32)
    bridge = Bridge(np.random.default_rng(4).standard_normal((5, D)), np.full(D, 0.1))
    with pytest.raises(EverlearnError, match=r"encoder generated, not other; dimension 12, not 5.*everlearn migrate"):
        index.search(asked, there)
    index.allow(there, bridge)
    expected = index.search(bridge.apply(asked), COSINE)
    assert not list(tmp_path.glob("far*"))
    index.remove(names(20))
    index.save()  # a compaction keeps bridges
    index.close()
    again = Index.load(index.folder)
    assert list(again.bridges) == ["../far away"]
    left = [[id for id in row if int(id[1:]) >= 20][:1] for row in expected[0]]
    assert all(row[:1] == best for row, best in zip(again.search(asked, there)[0], left, strict=True) if best)
    with pytest.raises(EverlearnError, match=r"shape \(4, 12\), and the stamp says \(4, 5\)"):
        again.search(whole(4), there)
    with pytest.raises(EverlearnError, match="another encoder"):
        again.add(["x"], asked[:1], there)  # documents go over no bridge
    again.close()
    with pytest.raises(EverlearnError, match="the bridge leads from 12 to 5 numbers, and the index needs 5 to 12"):
        again.allow(there, Bridge(np.eye(D)[:, :5], np.zeros(5)))


def test_no_queries_have_no_answers(tmp_path: Path, kind: str) -> None:
    index = filled(tmp_path / "index", kind=kind)
    for nothing in ([], np.empty((0, D))):
        assert first(index, nothing) == ([], [])  # type: ignore[arg-type]


# -- what is refused ---------------------------------------------------------------------------
def bad(*rows: float) -> np.ndarray:
    return np.array([[value] * D for value in rows], np.float32)


REFUSED: dict[str, tuple[Any, str]] = {
    "an id that is there": (lambda i: i.add(["new", "d3"], whole(2), DOT), "the id 'd3' is in the index already"),
    "an id given twice": (lambda i: i.add(["new", "new"], whole(2), DOT), "the id 'new' is given twice"),
    "an empty id": (lambda i: i.add([""], whole(1), DOT), "the id '' is not usable"),
    "an id that is a number": (lambda i: i.add([3], whole(1), DOT), "the id 3 is not usable"),
    "half a character": (lambda i: i.add(["\ud800"], whole(1), DOT), r"the id '\\ud800' is not usable"),
    "a long id": (lambda i: i.add(["x" * 10_001], whole(1), DOT), "is not usable"),
    "ids as one text": (lambda i: i.add("new", whole(3), DOT), "the ids are a single text"),
    "too few ids": (lambda i: i.add(["new"], whole(2), DOT), "1 ids for 2 documents"),
    "another dimension": (lambda i: i.add(["new"], np.ones((1, 5)), DOT), r"shape \(1, 5\).*says \(1, 12\)"),
    "one vector for a row": (lambda i: i.add(["new"] * 12, np.ones(12), DOT), "given twice|shape"),
    "not a number": (lambda i: i.add(["a", "b"], bad(1, np.nan), DOT), "embedding of document 2 is not finite"),
    "infinite": (lambda i: i.add(["a"], bad(np.inf), DOT), "embedding of document 1 is not finite"),
    "a list for an id": (lambda i: i.remove([["d3"]]), r"the id \['d3'\] is not in the index"),
    "a list for an id that is asked for": (lambda i: i.vectors([["d3"]]), "is not in the index"),
    "a bridge that is not finite": (lambda i: i.allow(DOT, Bridge(np.eye(D) * np.nan, np.zeros(D))), "not finite"),
    "a bridge beyond float32": (lambda i: i.allow(DOT, Bridge(np.eye(D), np.full(D, 1e300))), "not finite"),
    "a shift of another length": (lambda i: i.allow(DOT, Bridge(np.eye(D), np.zeros(3))), r"shape \(3,\) instead of"),
    "a bridge without columns": (lambda i: i.allow(DOT, Bridge(np.ones(D), np.zeros(D))), "leads from 12 numbers"),
    "itself": (lambda i: i.take_over(i), "cannot take over itself"),
    "itself, opened again": (lambda i: i.take_over(Index.load(i.folder)), "cannot take over itself"),
    "texts with a stamp": (lambda i: i.add(["a"], ["a text"], DOT), "are not rows of numbers"),
    "a foreign stamp": (lambda i: i.add(["a"], whole(1), Stamp("there", "generated", D, "dot")), "other weights of"),
    "no encoder": (lambda i: i.add(["a"], ["a text"], "minilm"), "'minilm' is no encoder"),
    "an unknown id": (lambda i: i.remove(["d1", "d99"]), "the id 'd99' is not in the index"),
    "an unknown id that is a list": (lambda i: i.remove([("d1",)]), r"the id \('d1',\) is not in the index"),
    "an id removed twice": (lambda i: i.remove(["d1", "d1"]), "the id 'd1' is given twice"),
    "vectors of an unknown id": (lambda i: i.vectors(["d1", "d99"]), "the id 'd99' is not in the index"),
    "no k": (lambda i: i.search(whole(1), DOT, 0), "k is 0"),
    "a foreign query": (lambda i: i.search(whole(1), Stamp("there", "generated", D, "dot")), "would mean nothing"),
    "a query of another dimension": (lambda i: i.search(np.ones((2, 5)), DOT), r"shape \(2, 5\)"),
    "a query that is not finite": (lambda i: i.search(bad(1, 2, np.nan), DOT), "embedding of query 3 is not finite"),
    "no text": (lambda i: i.add(["a", "b"], ["x", None], backbones.load("tiny")), "input 1 is None, of type NoneType"),
    "no documents": (lambda i: i.add(["a"], None, DOT), "the documents are None: give their embeddings"),
    "k as a text": (lambda i: i.search(whole(1), DOT, "3"), "k is '3': ask for at least one"),
    "a query that is a number": (lambda i: i.search([5], backbones.load("tiny")), "input 0 is 5, of type int"),
    "no queries": (lambda i: i.search(None, backbones.load("tiny")), "the queries are None: give a list of texts"),
    "a query as one text": (lambda i: i.search("a text", backbones.load("tiny")), "single text"),
}  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("kind", ["exact", "lance"])
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, kind: str, what: str) -> None:
    index, (act, message) = filled(tmp_path / "index", kind=needs(kind)), REFUSED[what]
    before = content(tmp_path)
    with pytest.raises(EverlearnError, match=message) as error:
        act(index)
    assert "\n" not in str(error.value) and ": " in str(error.value)
    assert content(tmp_path) == before
    assert (len(index) == 40 and index.search(whole(1), DOT, 1)[0] == [["d0"]]) or kind


def test_zero_has_no_cosine(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", COSINE)
    with pytest.raises(EverlearnError, match="document 2 is not finite or is zero"):
        index.add(["a", "b"], bad(1, 0), COSINE)
    with pytest.raises(EverlearnError, match="has no documents: add some first"):
        index.search(whole(1), COSINE)
    index.add([], np.empty((0, D)), COSINE)
    index.remove([])
    assert len(index) == 0 and index.ids == []
    index.save()


@pytest.mark.parametrize(("kind", "settings", "message"), [
    ("flat", {}, "no kind of index 'flat': give one of exact, hnsw, ivf, lance"),
    ("exact", {"links": 3}, "the kind exact has no setting 'links': it has none"),
    ("hnsw", {"probes": 3}, "the kind hnsw has no setting 'probes': it has links, effort, width"),
    ("hnsw", {"links": 1}, "links=1 is not possible: give a whole number from 2 to 256"),
    ("ivf", {"lists": 2.5}, "lists=2.5 is not possible"),
    ("ivf", {"probes": True}, "probes=True is not possible"),
])  # fmt: skip
def test_kinds_and_settings(tmp_path: Path, kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EverlearnError, match=message):
        Index.create(tmp_path / "index", DOT, kind, **settings)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_taken(tmp_path: Path) -> None:
    filled(tmp_path / "index").close()
    before = content(tmp_path)
    for place in (tmp_path / "index", tmp_path):
        with pytest.raises(EverlearnError, match="exists already: give a new folder, or load the index"):
            Index.create(place, DOT)
    (tmp_path / "file").write_text("x")
    with pytest.raises(EverlearnError, match="exists already"):
        Index.create(tmp_path / "file", DOT)
    with pytest.raises(EverlearnError, match="is not an index: it has no file 'current'"):
        Index.load(tmp_path)
    with pytest.raises(EverlearnError, match="is not an index"):
        Index.load(tmp_path / "nowhere")
    (tmp_path / "file").unlink()
    assert content(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert len(Index.create(tmp_path / "empty", DOT)) == 0


@pytest.mark.parametrize(("kind", "module", "extra"), [("hnsw", "faiss", "retrieval"), ("lance", "lancedb", "lancedb")])
def test_a_missing_library_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, module: str, extra: str
) -> None:
    needs(kind)
    monkeypatch.setitem(importlib.import_module("sys").modules, module, None)
    with pytest.raises(EverlearnError, match=rf"pip install 'everlearn\[{extra}\]'"):
        filled(tmp_path / "index", kind=kind).save()


# -- several processes -------------------------------------------------------------------------
def test_one_writes_and_others_read(tmp_path: Path, kind: str) -> None:
    writer, queries = filled(tmp_path / "index", kind=kind), whole(5, seed=1)
    writer.save()
    reader = Index.load(writer.folder)
    before = first(reader, queries)
    with pytest.raises(EverlearnError, match="another process is changing the index"):
        reader.add(["x"], whole(1), DOT)
    writer.add(["x"], 100 * whole(1), DOT)
    writer.save()
    assert len(reader) == 40 and first(reader, queries) == before
    fresh = Index.load(writer.folder)
    fresh.search(queries, DOT)
    writer.remove(names(20))
    writer.save()
    assert "d3" in fresh and "d3" not in Index.load(writer.folder)
    writer.close()
    reader.add(["y"], whole(1), DOT)  # it goes on from the newest state
    assert "x" in reader and "d3" not in reader and len(reader) == 22


def test_who_opens_an_index_while_it_is_compacted_has_its_bridges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, there = filled(tmp_path / "index"), Stamp("there", "other", D)
    index.allow(there, Bridge(np.eye(D), np.zeros(D)))
    index.remove(names(20))

    def after_another(*given: Any) -> Any:
        monkeypatch.undo()
        index.save()
        return read_bridges(*given)

    monkeypatch.setattr("everlearn.retrieval.current.read_bridges", after_another)
    opened = Index.load(index.folder)
    assert list(opened.bridges) == ["there"] and opened.generation == index.generation == 2


def test_files_that_another_process_removes_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(tmp_path / "index")
    files = [file for file in index.folder.rglob("*") if file.is_file()]
    assert index.stored_bytes() == sum(file.stat().st_size for file in files) > 4 * D * 40
    stat = os.stat

    def after_another(file: Any, *given: Any, **named: Any) -> Any:
        if str(file).endswith("vectors.f32"):
            raise FileNotFoundError
        return stat(file, *given, **named)

    monkeypatch.setattr("os.stat", after_another)
    assert 0 < index.stored_bytes() < 4 * D * 40


def test_who_comes_second_makes_no_index_in_place_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def after_another(*given: Any) -> Any:
        monkeypatch.undo()
        with filled(tmp_path / "index") as first_one:
            first_one.remove(names(20))
            first_one.save()
            assert first_one.generation == 2
        return alone(*given)

    monkeypatch.setattr("everlearn.retrieval.index.alone", after_another)
    with pytest.raises(EverlearnError, match="exists already"):
        Index.create(tmp_path / "index", DOT)
    assert len(Index.load(tmp_path / "index")) == 20


def test_a_reader_goes_on_after_a_cut_over(tmp_path: Path, kind: str) -> None:
    every_list = {"probes": 25} if kind == "ivf" else {}
    served, queries = filled(tmp_path / "served", 40, kind, DOT, **every_list), whole(5, seed=1)
    served.save()
    asked, not_yet_asked = Index.load(served.folder), Index.load(served.folder)
    before = first(asked, queries)
    new = Index.create(tmp_path / "beside", Stamp("there", "newer", D, "dot"), kind, made_by={"backbone": "tiny"})  # type: ignore[arg-type]
    new.add(names(30), whole(30, seed=5), new.stamp)
    served.take_over(new)
    if kind == "lance":  # which opens its files anew for every question
        with pytest.raises(EverlearnError, match="was replaced by a newer generation: load the index again"):
            asked.search(queries, DOT)
    else:
        assert first(asked, queries) == first(not_yet_asked, queries) == before
    assert not (tmp_path / "beside").exists()
    for opened in (served, Index.load(served.folder)):
        assert opened.generation == 2 and opened.stamp.space == "there" and opened.made_by == {"backbone": "tiny"}
        assert opened.ids == names(30)
        assert opened.search(whole(30, seed=5), opened.stamp, 1)[1].shape == (30, 1)
        with pytest.raises(EverlearnError, match="encoder newer, not generated"):
            opened.search(queries, DOT)
    served.add(["more"], whole(1), served.stamp)
    assert len(Index.load(served.folder)) == 31
    assert {file.name for file in served.folder.iterdir()} == {"current", "g000002", ".lock"}


def test_a_folder_that_shares_files_with_a_copy_goes_on_in_its_own(tmp_path: Path) -> None:
    """As `cp -al` makes copies, and as a cut-over that is killed before its end leaves two folders."""
    import shutil

    index = filled(tmp_path / "index")
    index.save()
    index.close()
    shutil.copytree(tmp_path / "index", tmp_path / "copy", copy_function=os.link)
    kept = content(tmp_path / "copy")
    with Index.load(tmp_path / "index") as again:
        again.add(["x"], whole(1), DOT)
        again.remove(["d0"])
    assert content(tmp_path / "copy") == kept
    assert len(Index.load(tmp_path / "copy")) == len(Index.load(tmp_path / "index")) == 40


def test_an_interrupt_within_a_change_leaves_the_index_as_the_disk_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = filled(tmp_path / "index")
    keep = index._generation._count  # type: ignore[attr-defined]

    def interrupted(ids: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index._generation, "_count", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.add(["x"], whole(1, seed=9), DOT)  # it is in the log, and not in memory
    assert keep
    assert index.search(whole(1, seed=9) * 50, DOT, 1)[0] == [["x"]]
    index.add(["y"], whole(1, seed=10), DOT)
    assert index.ids[-2:] == ["x", "y"]
    index.close()
    Index.load(index.folder).check()
    assert len(Index.load(index.folder)) == 42
