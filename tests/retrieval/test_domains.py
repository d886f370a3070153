"""The pairings of old and new queries and indexes: what a run keeps of every domain, and what it says at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch

import everlearn
from everlearn import backbones
from everlearn.engine import learn
from everlearn.evaluation import KEPT, NEW, Evaluation
from everlearn.method import Method, Role, Tags
from everlearn.report import render
from everlearn.retrieval.domains import PAIRINGS, Domains
from everlearn.schemas.results import read_results
from everlearn.testing.toy import toy_stream


class Turning(Method):
    """Every task turns the embeddings of queries and documents alike by one place, so that queries of the present
    model find everything in a new index, and, once the turn is taken back, everything in the old one."""

    tags = Tags(family="baseline", trains="nothing", goals=("ranking",))
    compensates = True

    def param_groups(self) -> list[dict[str, Any]]:
        return []

    def embed(self, inputs: Sequence[Any], role: Role | None = None) -> torch.Tensor:
        return self._turned(inputs, self.task.index if hasattr(self, "task") else 0)

    def document_space(self) -> str:
        return f"turned {self.task.index if hasattr(self, 'task') else 0}"

    def queries_for(self, queries: Sequence[Any], space: str) -> torch.Tensor:
        return self._turned(queries, int(space.split()[1])) if self.compensates else self.embed(queries)

    def _turned(self, inputs: Sequence[Any], places: int) -> torch.Tensor:
        numbers = [crc32(str(text).removeprefix("answer to ").encode()) for text in inputs]
        rows = [torch.randn(32, generator=torch.Generator().manual_seed(number)) for number in numbers]
        return torch.stack(rows).roll(places, dims=1)


class TurningKept(Turning):
    tags = Tags(family="baseline", trains="nothing", goals=("ranking",), index="kept")


class TurningAway(TurningKept):
    compensates = False


def test_pairings_of_a_model_that_turns() -> None:
    stream = toy_stream(goal="ranking")
    result = everlearn.run(TurningKept(backbones.load("tiny")), stream)
    first, _, last = result.retrieval["domains"]
    assert [domain["moved"] for domain in result.retrieval["domains"]] == [True, True, False]
    assert first["ndcg"][PAIRINGS[0]] == first["ndcg"][PAIRINGS[3]] == 1
    assert first["ndcg"][PAIRINGS[1]] < 0.8  # old queries are lost in a new index
    assert first["ndcg"][PAIRINGS[2]] == 1  # new queries that are turned back are not in the old one
    assert set(last["ndcg"].values()) == {1.0}
    assert result.retrieval["stale_documents"] == 24
    assert result.retrieval["verdict"]["answer"] == "bridge"
    assert result.retention == 1
    assert not result.retrieval["lost"]


def test_a_kept_index_is_measured_as_it_is_kept() -> None:
    result = everlearn.run(TurningAway(backbones.load("tiny")), toy_stream(goal="ranking"))
    assert result.accuracy_matrix[2] == result.other_matrices[KEPT][2]
    assert result.accuracy_matrix[2][0] < 0.8 < result.other_matrices[NEW][2][0]
    lost = result.retrieval["lost"]
    assert lost
    assert lost[0]["after"] - lost[0]["before"] == min(query["after"] - query["before"] for query in lost)
    assert lost[0]["found_before"][0]["grade"] == 1  # it was found first
    assert lost[0]["found_after"][0]["id"] != lost[0]["relevant"][0]["id"]
    encoded_again = everlearn.run(Turning(backbones.load("tiny")), toy_stream(goal="ranking"))
    assert result.retrieval["verdict"]["answer"] == "roll back"  # it gains nothing
    assert encoded_again.accuracy_matrix[2] == encoded_again.other_matrices[NEW][2] == [1, 1, 1]


def test_what_was_kept_is_read_from_the_folder(tmp_path: Path) -> None:
    stream = toy_stream(goal="ranking")
    method = TurningKept(backbones.load("tiny"))
    evaluation = Evaluation(stream, method, tmp_path)
    for task in stream:
        learn(method, task)
        evaluation.after(task)
    fresh = Domains(method, tmp_path)
    for task in stream:
        before, after = evaluation.domains.kept(task), fresh.kept(task)
        assert before and after
        assert before.space == after.space == f"turned {task.index}"
        assert torch.equal(before.queries, after.queries)
        assert torch.allclose(before.documents, after.documents, atol=1e-6)
    assert fresh.summary(stream.tasks, None)["domains"] == evaluation.searched(None)["domains"]  # type: ignore[index]


def test_a_run_keeps_its_indexes_scores_and_report(tmp_path: Path) -> None:
    result = everlearn.run({"name": "finetune", "epochs": 1}, toy_stream(goal="ranking"), backbone="tiny",
                           out=tmp_path / "run")  # fmt: skip
    read = read_results(tmp_path / "run" / "results.json")
    assert read["retrieval"] == json.loads(json.dumps(result.retrieval))
    queries = result.retrieval["queries"]
    final = [sum(task["at_the_end"]) / len(task["at_the_end"]) for task in queries]
    assert final == pytest.approx(result.accuracy_matrix[-1], abs=1e-6)
    assert queries[0]["ids"] == toy_stream(goal="ranking")[0].test.ids
    index = everlearn.Index.load(tmp_path / "run" / "indexes" / "domain-000")
    assert len(index) == 12
    page = render([read])
    assert "Queries and indexes, old and new" in page and "new queries, old index" in page


def test_several_runs_say_whether_their_difference_is_more_than_chance() -> None:
    stream = toy_stream(goal="ranking")
    good = everlearn.run(TurningKept(backbones.load("tiny")), stream).results
    bad = everlearn.run(TurningAway(backbones.load("tiny")), stream).results
    page = render([good, bad])
    assert "Is the difference more than chance?" in page
    assert "36 test queries at the end" in page
    other = {**bad, "fingerprint": "of other data"}
    assert "more than chance" not in render([good, other])
