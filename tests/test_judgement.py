"""The figures of the gate from real runs: forgetting proper, validation scores, seeds of a comparison, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import everlearn
from everlearn import comparison, report, streams
from everlearn.cli import main
from everlearn.comparison_table import compare_table
from everlearn.errors import EverlearnError
from everlearn.judgement import beside_joint_command, judge
from everlearn.methods import SimpleCIL
from everlearn.repeats import varied
from everlearn.run_table import final_table

SMALL = {"name": "digits", "tasks": 3, "max_train_per_class": 20, "max_test_per_class": 20, "validation": 0.2}


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))


def test_prototypes_that_never_change_forget_nothing_however_many_classes_come(tmp_path: Path) -> None:
    result = everlearn.run("simplecil", SMALL, backbone="tiny", out=tmp_path / "run")
    assert result.forgetting_proper == 0.0 < result.forgetting
    model, stream = everlearn.load(tmp_path / "run"), streams.load(**SMALL)
    for task, known in zip(stream, result.known, strict=True):
        scores = model.predict_proba(task.test.bare())[:, : len(task.class_names)]
        assert known == pytest.approx((scores.argmax(1) == task.test.labels.numpy()).mean())


def test_training_without_a_defence_forgets_properly_too() -> None:
    result = everlearn.run({"name": "finetune", "epochs": 3, "lr": 0.01}, SMALL, backbone="tiny")
    assert result.forgetting_proper > 0.05
    assert result.known[-1] == result.accuracy_matrix[-1][-1] == result.new


@pytest.mark.parametrize("kind", ["task-incremental", "domain-incremental"])
def test_where_no_class_is_added_to_the_choice_it_is_the_plain_drop(kind: str, tmp_path: Path) -> None:
    rows = [f"{word} {i} {domain},{word},{domain}\n"
            for domain in ("shop", "bank") for word in ("red", "blue", "green", "grey") for i in range(6)]  # fmt: skip
    (tmp_path / "rows.csv").write_text("text,label,domain\n" + "".join(rows))
    options = {"domain_column": "domain"} if kind == "domain-incremental" else {"tasks": 2}
    stream = {"name": str(tmp_path / "rows.csv"), "kind": kind, **options}
    result = everlearn.run({"name": "finetune", "epochs": 1}, stream, backbone="tiny")
    assert result.known == result.accuracy_matrix[-1]
    assert result.forgetting_proper == pytest.approx(-result.backward_transfer)


def test_validation_is_scored_where_it_is_asked_for_and_a_resumed_run_asks_too(tmp_path: Path) -> None:
    assert everlearn.run("simplecil", SMALL, backbone="tiny").validation is None
    once = everlearn.run("simplecil", SMALL, backbone="tiny", validate=True, out=tmp_path / "run")
    model, stream = everlearn.load(tmp_path / "run"), streams.load(**SMALL)
    assert once.validation["examples"] == [len(task.validation) for task in stream]
    for task, score in zip(stream, once.validation["scores"], strict=True):
        right = model.predict_proba(task.validation.bare()).argmax(1) == task.validation.labels.numpy()
        assert score == pytest.approx(right.mean())
    (tmp_path / "run" / "results.json").unlink()
    again = everlearn.resume(tmp_path / "run")
    assert (again.validation, again.known) == (once.validation, once.known)
    without = {key: value for key, value in SMALL.items() if key != "validation"}
    assert everlearn.run("simplecil", without, backbone="tiny", validate=True).validation is None


def test_seeds_vary_classes_examples_and_methods_and_nothing_is_repeated(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    comparison.compare("simplecil", SMALL, backbone="tiny", out=out)  # the first seed, as if it had been the only one
    results = comparison.compare("simplecil,joint", SMALL, backbone="tiny", out=out, seeds=2, progress=True)
    assert "simplecil: already finished" in capsys.readouterr().err
    assert [(r["method"], r["seed"]) for r in results] == [(m, s) for s in (0, 1) for m in ("simplecil", "joint")]
    first, second = results[0], results[2]
    assert first["fingerprint"] != second["fingerprint"]
    assert first["tasks"][0]["classes"] != second["tasks"][0]["classes"]
    assert second["config"]["stream"]["class_seed"] == 1994 and second["config"]["stream"]["split_seed"] == 1
    judged = judge(results)
    assert [len(one.runs) for one in judged] == [2, 2] and judged[0].old.half is not None
    kept = json.loads((out / "compare.json").read_text())
    assert kept["seeds"] == 2 and kept["results"] == json.loads(json.dumps(results))
    assert (out / "seed-1" / "joint" / "results.json").is_file() and "±" in (out / "report.html").read_text()


def test_a_method_that_fails_with_one_seed_is_named_with_it_and_goes_on(tmp_path: Path, capsys, monkeypatch) -> None:
    learned = SimpleCIL.end_task

    def fails(self, task) -> None:
        if self.seed == 1:
            raise RuntimeError("no memory")
        learned(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(SimpleCIL, "end_task", fails)
        results = comparison.compare("simplecil,qdc", SMALL, backbone="tiny", out=tmp_path / "out", seeds=2)
    compare_table(results)
    told = capsys.readouterr().out
    assert "simplecil, seed 1 failed: RuntimeError: no memory" in told and told.count("qdc skipped") == 1
    page = report.write_report([tmp_path / "out"], tmp_path / "page.html").read_text()
    assert "simplecil, seed 1" in page and page.count("<td>qdc</td>") == 1
    again = comparison.compare("simplecil,qdc", SMALL, backbone="tiny", out=tmp_path / "out", seeds=2)
    assert [r["seed"] for r in again if "final_accuracy" in r] == [0, 1]


def test_a_seed_without_joint_leaves_the_gate_open() -> None:
    def run(method: str, seed: int, last: float) -> dict:
        return {"method": method, "seed": seed, "fingerprint": str(seed), "final_accuracy": last,
                "accuracy_matrix": [[last, None], [last, last]], "tasks": [{"test": 5}, {"test": 5}],
                "seconds": {"total": 1.0, "encode": 0.0}}  # fmt: skip

    runs = [run("lda", seed, 0.9) for seed in (0, 1)]
    assert judge(runs)[0].verdict == "unknown"
    assert judge([*runs, run("joint", 0, 0.9)])[0].verdict == "cannot tell"
    assert judge([*runs, run("joint", 0, 0.9), run("joint", 1, 0.9)])[0].verdict == "pass"
    low = judge([*(run("lda", seed, 0.3) for seed in (0, 1)), run("joint", 0, 0.9)])
    assert low[0].verdict == "fail", "the seed that can be judged fails"


def test_seeds_of_streams_with_other_settings_are_not_taken_together() -> None:
    def run(seed: int, **settings: int) -> dict:
        return {"method": "lda", "seed": seed, "stream": "clinc150", "fingerprint": str(seed), "final_accuracy": 0.9,
                "accuracy_matrix": [[0.9]], "tasks": [{"test": 5}], "seconds": {"total": 1.0, "encode": 0.0},
                "config": {"method": {"name": "lda"}, "stream": {"name": "clinc150", **settings}}}  # fmt: skip

    seeds = [run(0), run(1, class_seed=1994, split_seed=1)]
    assert [len(one.runs) for one in judge(seeds)] == [2]
    fewer = run(2, class_seed=1995, split_seed=2, max_train_per_class=5)
    assert [len(one.runs) for one in judge([*seeds, fewer])] == [2, 1]


def test_the_better_of_two_joints_is_the_bar() -> None:
    def run(method: str, seed: int, last: float, lr: float = 0.1) -> dict:
        return {"method": method, "seed": seed, "fingerprint": str(seed), "final_accuracy": last,
                "accuracy_matrix": [[last, None], [last, last]], "tasks": [{"test": 5}, {"test": 5}],
                "seconds": {"total": 1.0, "encode": 0.0}, "config": {"method": {"name": method, "lr": lr}}}  # fmt: skip

    good = [run("joint", seed, 0.9) for seed in (0, 1)]
    bad = [run("joint", 0, 0.3, lr=1.0), run("joint", 1, 0.95, lr=1.0)]  # better once, and worse on average
    runs = [run("lda", seed, 0.45) for seed in (0, 1)]
    for results in ([*runs, *good, *bad], [*bad, *good, *runs]):
        lda = next(one for one in judge(results) if one.method == "lda")
        assert lda.old is not None and lda.old.mean == pytest.approx(0.5)


def test_a_stream_of_rankings_has_no_order_of_classes_to_vary() -> None:
    assert varied({"name": "domains4"}, 1) == {"name": "domains4", "split_seed": 1}


def test_bad_options_are_told_before_anything_is_learned(tmp_path: Path, capsys) -> None:
    for given, told in (("80", "--gate 80: give two numbers"), ("a,b", "--gate a,b: give two"),
                        ("80,900", "give two shares between 0 and 1")):  # fmt: skip
        command = ["compare", "--methods", "simplecil", "--stream", "digits", "--gate", given]
        assert main([*command, "--out", str(tmp_path / "out")]) == 2
        assert told in capsys.readouterr().err
    assert main(["compare", "--seeds", "0", "--stream", "digits", "--out", str(tmp_path / "out")]) == 2
    assert "seeds" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(EverlearnError, match="several seeds need a stream given by name"):
        comparison.compare("simplecil", streams.load("digits"), backbone="tiny", seeds=2)


def test_every_setting_of_joint_is_a_reference_and_the_best_is_the_bar(tmp_path: Path) -> None:
    chosen = ["joint", {"name": "joint", "solution": "lda"}, "simplecil", {"name": "joint", "solution": "ridge"}]
    results = comparison.compare(chosen, SMALL, backbone="tiny", out=tmp_path / "out")
    judged = {one.method: one for one in judge(results)}
    assert set(judged) == {"simplecil", "joint", "joint-2", "joint-3"}
    assert [name for name, one in judged.items() if not one.is_reference] == ["simplecil"]
    assert judged["joint-2"].at_the_gate == "reference (lda)"
    best = max(("joint", "joint-2", "joint-3"), key=lambda name: judged[name].final.mean)
    assert judged[best].old.mean == judged[best].new.mean == 1.0 and best != "joint"
    told = (tmp_path / "out" / "report.html").read_text()
    assert f"{best} has the best" not in told and "above joint" not in told
    again = comparison.compare(["lda", *chosen], SMALL, backbone="tiny", out=tmp_path / "out")
    assert {r["method"] for r in again} == {*judged, "lda"}, "a longer list of methods renames none"


def test_the_command_beside_joint_names_the_method_and_for_rows_in_memory_the_call(capsys) -> None:
    labels = ["tea", "sofa", "rose", "gold"] * 10
    stream = streams.from_rows([f"{label} {i}" for i, label in enumerate(labels)], labels, tasks=2)
    run = everlearn.run("simplecil", stream, backbone="tiny").results
    final_table(run)
    assert "\n  everlearn.compare('simplecil,joint', stream, backbone='tiny')\n" in capsys.readouterr().out
    labelled = {**run, "method": "simplecil-2", "config": {**run["config"], "stream": {"name": "digits"}}}
    assert beside_joint_command(labelled) == (
        "everlearn compare --methods simplecil,joint --backbone tiny --stream digits"
    )
