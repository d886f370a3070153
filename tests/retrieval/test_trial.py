"""The verdict on encoders whose kinship is known, and what it rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_encoders import Known, queries, texts

from everlearn import backbones
from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.metrics.retrieval import recall_at_k
from everlearn.retrieval import trial as trials
from everlearn.retrieval.index import Index
from everlearn.retrieval.stamp import stamp_of
from everlearn.retrieval.trial import Trial, judge
from everlearn.retrieval.verdict import Verdict

DOCUMENTS, ASKED = texts(400), queries(200, domains=2)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return indexed(tmp_path / "index", Known(noise=0.5))


def indexed(folder: Path, old: Known) -> Index:
    index = Index.create(folder, stamp_of(old))
    index.add(list(DOCUMENTS), list(DOCUMENTS.values()), by=old)
    return index


def row(verdict: Verdict, queries: str, index: str, bridge: str | None = None) -> dict[str, Any]:
    return next(
        row for row in verdict.pairings if (row["queries"], row["index"], row["bridge"]) == (queries, index, bridge)
    )


def test_a_better_query_encoder_for_the_same_documents_may_serve(index: Index) -> None:
    verdict = judge(index, Known(noise=0.5), Known(noise=0.1), DOCUMENTS, ASKED)
    assert verdict.answer == "serve" and verdict.bridge is None
    assert verdict.bill == {"documents": 0, "documents_per_second": None, "seconds": 0.0, "bytes": 0}
    assert "none has to be encoded" in verdict.describe()


def test_a_child_whose_space_has_turned_is_bridged(index: Index) -> None:
    verdict = judge(index, Known(noise=0.5), Known(noise=0.4, turned=True), DOCUMENTS, ASKED)
    assert verdict.answer == "bridge" and verdict.bridge in ("procrustes", "ridge")
    assert row(verdict, "new", "old")["recall"] < 0.2  # as it is, it finds by chance
    assert row(verdict, "new", "old", verdict.bridge)["recall"] > 0.95
    assert row(verdict, "old", "new")["recall"] < 0.2
    # The bridge works where it is put: what it finds in the index is what the verdict says.
    index.allow(stamp_of(Known(noise=0.4, turned=True)), verdict.best_bridge)
    found, _ = index.search([query.text for query in ASKED], by=Known(noise=0.4, turned=True))
    assert recall_at_k(found, [query.relevant for query in ASKED]).mean() > 0.95


def test_a_child_that_has_moved_needs_the_mean_shift_alone(tmp_path: Path) -> None:
    old, new = Known(noise=0.4), Known(noise=0.4, moved=0.05)
    verdict = judge(indexed(tmp_path / "index", old), old, new, DOCUMENTS, ASKED)
    assert verdict.answer in ("serve", "bridge")
    assert row(verdict, "new", "old", "mean shift")["recall"] >= row(verdict, "new", "new")["recall"] - 0.01


def test_a_better_stranger_is_re_indexed_and_the_text_says_that_strangers_are_not_bridged(index: Index) -> None:
    verdict = judge(index, Known(noise=1.5), Known(family=1, noise=0.3), DOCUMENTS, ASKED)
    assert verdict.answer == "re-index"
    best = row(verdict, "new", "old", verdict.bridge)["recall"]
    assert best < 0.5
    assert verdict.bill["documents"] == 400 and verdict.bill["bytes"] == 400 * 32 * 4
    assert verdict.bill["seconds"] == pytest.approx(400 / verdict.bill["documents_per_second"])
    assert "of which neither was made from the other a bridge mostly fails" in verdict.describe()


def test_a_worse_stranger_is_rolled_back(index: Index) -> None:
    verdict = judge(index, Known(noise=0.5), Known(family=1, noise=2.0), DOCUMENTS, ASKED)
    assert verdict.answer == "roll back"
    assert verdict.differences[0]["high"] < 0  # new in new is clearly below old in old


def test_other_dimensions(index: Index, tmp_path: Path) -> None:
    class Wide(Known):
        def embed(self, inputs: Any, role: Any = None) -> Any:
            import torch

            narrow = super().embed(inputs, role)
            return torch.cat([narrow, narrow.flip(1)], 1)

        def document_space(self) -> str:
            return "wide"

    wide = Wide(noise=0.4)
    wide.backbone = backbones.load("tiny@layers=2")
    verdict = judge(index, Known(noise=0.5), wide, DOCUMENTS, ASKED)
    assert [(row["queries"], row["index"], row["bridge"]) for row in verdict.pairings] == [
        ("old", "old", None), ("new", "old", "procrustes"), ("new", "old", "ridge"), ("new", "new", None),
    ]  # fmt: skip
    assert verdict.answer == "bridge"


def test_nothing_is_chosen_or_fitted_on_what_is_reported(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[np.ndarray] = []
    original = trials.fitted
    monkeypatch.setattr(trials, "fitted", lambda *parts: fitted.append(parts[0]) or original(*parts))
    trial = Trial(index, Known(noise=0.5), Known(turned=True), DOCUMENTS, ASKED, 400, 0, False)
    parts = [{*part.tolist()} for part in (trial.fitting, trial.choosing, trial.half)]
    assert [len(part) for part in parts] == [50, 50, 100]
    assert {*range(200)} == parts[0] | parts[1] | parts[2]
    assert np.array_equal(fitted[0], trial._queries["new", "new", None][trial.fitting])
    # Whatever the reported queries find, the choice stays.
    best = trial.best_bridge()
    for place in trial.half.tolist():
        for found in trial._found.values():
            found[place] = []
    assert trial.best_bridge() == best


def test_a_sample_holds_every_relevant_document_and_says_that_it_flatters(index: Index) -> None:
    verdict = judge(index, Known(noise=0.5), Known(turned=True), DOCUMENTS, ASKED, sample=250)
    assert verdict.sampled == 250 and verdict.documents == 400
    assert "250 of 400 documents were searched, all relevant ones among them. A sample flatters" in verdict.describe()
    trial = Trial(index, Known(noise=0.5), Known(turned=True), DOCUMENTS, ASKED, 10, 0, False)
    assert {*trial.ids} == {id for query in ASKED for id in query.relevant}
    assert verdict.bill["documents"] == 400  # the bill is that of all


def test_the_same_seed_gives_the_same_verdict(index: Index) -> None:
    def found(seed: int) -> list[dict[str, Any]]:
        verdict = judge(index, Known(noise=0.5), Known(turned=True), DOCUMENTS, ASKED, sample=250, seed=seed)
        return list(verdict.pairings)

    assert found(1) == found(1) != found(2)


def test_an_encoder_that_knows_the_way_serves(index: Index) -> None:
    class Compensating(Known):
        """Turned, and it turns its queries back for an old index, as methods that measure their drift do."""

        def reaches(self, space: str) -> bool:
            return True

        def queries_for(self, queries: Any, space: str) -> Any:
            return Known(noise=0.4).embed(queries, "query")

    verdict = judge(index, Known(noise=0.5), Compensating(noise=0.4, turned=True), DOCUMENTS, ASKED)
    assert verdict.answer == "serve"
    assert row(verdict, "new", "old")["recall"] > 0.95


def test_a_domain_that_is_lost_is_told(index: Index) -> None:
    class Narrow(Known):
        """Finds all in one domain and nothing in the other."""

        def embed(self, inputs: Any, role: Any = None) -> Any:
            rows = super().embed(inputs, role)
            odd = [i for i, text in enumerate(inputs) if role == "query" and int(text.split()[-1]) % 2]
            rows[odd] = -rows[odd]
            return rows

    verdict = judge(index, Known(noise=2.5), Narrow(noise=0.1, turned=True), DOCUMENTS, ASKED)
    assert row(verdict, "new", "new")["kept"] == 0
    assert verdict.answer == "roll back" and "one domain keeps only 0.0 %" in verdict.reason


def test_the_threshold_is_translated_for_the_way_that_is_taken(index: Index) -> None:
    verdict = judge(index, Known(noise=0.5), Known(noise=0.5, turned=True), DOCUMENTS, ASKED, threshold=0.5)
    told = verdict.threshold
    assert verdict.answer == "bridge" and told["old"] == 0.5
    assert abs(told["new"] - 0.5) < 0.1 and told["changed"] < 0.1
    assert "A threshold never transfers exactly" in verdict.describe()
    with pytest.raises(EverlearnError, match="give one between them"):
        judge(index, Known(noise=0.5), Known(turned=True), DOCUMENTS, ASKED, threshold=2.0)


def test_the_record_is_plain_json_and_the_text_has_every_pairing(index: Index) -> None:
    verdict = judge(index, Known(noise=0.5), Known(turned=True), DOCUMENTS, ASKED)
    assert json.loads(json.dumps(verdict.record)) == verdict.record
    lines = verdict.describe().splitlines()
    assert lines[0] == f"verdict: {verdict.answer}"
    assert sum(line.startswith(("old  ", "new  ")) for line in lines) == len(verdict.pairings) == 7
    with pytest.raises(AttributeError, match="a verdict has no entry 'answers'"):
        _ = verdict.answers


def test_too_few_queries_and_a_foreign_old_encoder_are_refused(index: Index) -> None:
    with pytest.raises(EverlearnError, match=r"19 queries .* give at least 20"):
        judge(index, Known(noise=0.5), Known(turned=True), DOCUMENTS, ASKED[:19])
    with pytest.raises(EverlearnError, match="the old encoder is not that of its documents"):
        judge(index, Known(turned=True), Known(), DOCUMENTS, ASKED)


def test_the_rate_is_measured_although_all_comes_from_the_feature_store(tmp_path: Path) -> None:
    tiny, two = backbones.load("tiny"), backbones.load("tiny@layers=2")
    index = Index.create(tmp_path / "index", stamp_of(tiny))
    index.add(list(DOCUMENTS), list(DOCUMENTS.values()), by=tiny)
    judge(index, tiny, two, DOCUMENTS, ASKED)
    passed = Backbone.passed
    assert judge(index, tiny, two, DOCUMENTS, ASKED).bill["documents_per_second"] > 0
    assert Backbone.passed - passed == trials.TIMED
