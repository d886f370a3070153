"""Compare: cheapest first, a failure stops nothing, nothing finished is repeated, and it ends with a pick."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from everlearn import comparison_table, console, methods, progress, run_table
from everlearn.backbones.image_text import ImageText
from everlearn.backbones.tiny import TinyBackbone
from everlearn.comparison import compare, select
from everlearn.entries import Entry, learn_each
from everlearn.errors import EverlearnError
from everlearn.interrupts import Interrupted
from everlearn.locks import alone
from everlearn.recommendation import recommendation
from everlearn.testing import toy_stream


def result(method: str, final: float = 0.9, **changes) -> dict:
    """The content of a results.json, as wide as it gets."""
    tasks = changes.pop("tasks", 2)
    seconds = {"total": 10.0, "begin": 0.1, "train": 5.0, "end": 0.2, "evaluate": 1.0, "encode": 3.0}
    return {
        "everlearn": "0.1.0", "method": method, "stream": "clinc150", "kind": "class-incremental", "input": "text",
        "goal": "classes", "backbone": "minilm", "seed": 0, "metric": "accuracy",
        "tasks": [{"name": f"task {i + 1}", "classes": ["a"], "train": 10, "test": 10} for i in range(tasks)],
        "accuracy_matrix": [[1.0 if j <= i else None for j in range(tasks)] for i in range(tasks)],
        "other_matrices": {}, "curve": [1.0] * tasks, "before": [None] * tasks, "initial": [None] * tasks,
        "final_accuracy": final, "average_accuracy": 1.0, "forgetting": -0.03, "backward_transfer": -0.03,
        "forward_transfer": None, "retention": 0.97, "gain": 0.95, "forgetting_proper": 0.01,
        "trainable_parameters": 123_456_789,
        "stored_bytes": 987_654_321, "stored": {"head": 900_000_000, "memory": 87_654_321}, "seconds": seconds,
        "seconds_per_task": [seconds] * tasks, "peak_rss_bytes": 12_345_678_901, "examples_encoded": 0,
        "examples_served": 19500, "environment": {"cpu": "A processor with rather a long name", "threads": 2},
        "warnings": [], "notes": [], "paper_compat": False, "diagnostics": {}, "fingerprint": "f",
        "config": {"stream": {"name": "digits"}, "method": {"name": "lda"}, "backbone": "tiny", "seed": 0},
    } | changes  # fmt: skip


def reaching(method: str, old: float, new: float, final: float = 0.9, **changes) -> dict:
    """A result with these scores on the old task and on the new one; those of joint are 1."""
    return result(method, final, accuracy_matrix=[[1.0, None], [old, new]], **changes)


def test_recommendation_takes_the_best_that_passes():
    text = recommendation([
        result("joint", 0.99), reaching("ewc", 0.3, 1.0, 0.5), reaching("ranpac", 0.97, 0.95, 0.95),
        reaching("lazy", 1.0, 0.5, 0.97),
    ])  # fmt: skip
    assert text.startswith("ranpac passes the gate (80 % of joint's score on old tasks, 90 % on the newest)")
    assert "Take ranpac (final 95.0, old 97.0 and new 95.0 % of joint's, 7.0 s): the best final score." in text


def test_recommendation_asks_for_what_is_given():
    runs = [result("joint", 0.99), reaching("ewc", 0.3, 1.0, 0.5)]
    assert recommendation(runs).startswith("No method passes the gate (80 %")
    assert recommendation(runs, (0.3, 0.9)).startswith("ewc passes the gate (30 %")


def test_recommendation_prefers_a_cheaper_one_within_half_a_point():
    cheap = {"total": 4.0, "encode": 3.0}
    close = [result("joint"), result("ranpac", 0.95), result("simplecil", 0.946, seconds=cheap)]
    assert "Take simplecil" in recommendation(close) and "within half a point of ranpac" in recommendation(close)
    far = [result("joint"), result("ranpac", 0.95), result("simplecil", 0.944, seconds=cheap)]
    assert "Take ranpac" in recommendation(far)


def test_recommendation_does_not_charge_the_first_method_for_the_shared_encoding():
    first = result("simplecil", 0.95, seconds={"total": 100.0, "encode": 99.0})
    assert "Take simplecil" in recommendation([result("joint"), first, result("ranpac", 0.95)])


def test_front_leaves_out_what_another_beats_everywhere():
    worse = reaching("worse", 0.9, 0.92, seconds={"total": 50.0, "encode": 0.0})
    text = recommendation([result("joint"), result("ranpac", 0.95), worse])
    assert "ranpac and worse pass the gate" in text
    assert "On the Pareto front of old, new and time: ranpac. Take ranpac" in text


def test_recommendation_says_what_is_not_known_and_what_fails():
    text = recommendation([result("ranpac"), reaching("ewc", 0.2, 1.0, 0.6)])
    assert "is unknown, because joint was not run: add it" in text and "ranpac has the best final score" in text
    assert "No method passes the gate" in recommendation([result("joint"), reaching("ewc", 0.2, 1.0)])
    assert "No method finished" in recommendation([{"method": "ewc", "error": "x"}])
    for others in ([result("joint", tasks=1)], []):
        single = recommendation([*others, result("ranpac", tasks=1)])
        assert single.startswith("The gate needs at least two tasks. ranpac has the best final score (")
        assert "joint" not in single and "passes" not in single


def test_recommendation_says_that_joint_failed():
    text = recommendation([reaching("lda", 0.9, 0.9), {"method": "joint", "error": "no memory"}])
    assert "because joint failed. lda has the best final score" in text
    text = recommendation([reaching("lda", 0.9, 0.9), {"method": "joint", "skipped": "learns text"}])
    assert "because joint was skipped" in text


def test_recommendation_decides_on_validation_and_reports_the_tests():
    def validated(method: str, final: float, *scores: float) -> dict:
        return result(method, final, validation={"scores": list(scores), "examples": [10, 10]})

    runs = [validated("joint", 0.9, 0.9, 0.9), validated("lucky", 0.99, 0.8, 0.82), validated("good", 0.91, 0.85, 0.86)]
    text = recommendation(runs)
    assert "Take good (final 91.0, " in text and "decided on validation examples; the figures are of the tests" in text
    runs[2]["validation"] = None  # one of them has no such scores
    assert "Take lucky (final 99.0, " in recommendation(runs) and "validation" not in recommendation(runs)


def of_seeds(method: str, *finals: float) -> list[dict]:
    return [reaching(method, final, final, final, seed=seed, fingerprint=str(seed))
            for seed, final in enumerate(finals)]  # fmt: skip


def test_seeds_decide_by_the_intervals_of_pairs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    runs = [*of_seeds("joint", 1.0, 0.9, 0.8), *of_seeds("lda", 0.95, 0.86, 0.77), *of_seeds("klda", 0.94, 0.87, 0.75),
            *of_seeds("wild", 1.0, 0.7, 0.65)]  # fmt: skip
    text = recommendation(runs)
    assert text.startswith("lda and klda pass the gate"), "the interval of wild holds the least that passes"
    assert "Take lda (final 86.0 ± 22.4, old 95.6 ± 1.6 and" in text and "3 seeds cannot tell klda from it." in text
    comparison_table.compare_table(runs)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100 and "mean of 3 seeds ± 95 % interval" in shown
    assert "cannot tell" in next(line for line in shown.splitlines() if line.startswith("wild"))
    assert "lda -4.0 ± 2.5, klda -4.7 ± 3.8, wild -11.7 ± 25.9 (cannot tell)" in " ".join(shown.split())
    assert "above joint" not in shown
    comparison_table.compare_table(of_seeds("joint", 0.9, 0.8, 0.7) + of_seeds("lda", 0.95, 0.86, 0.75))
    assert "warning: lda (+5.3 points) is above joint" in capsys.readouterr().out
    comparison_table.compare_table(of_seeds("joint", 0.9, 0.8, 0.7) + of_seeds("lda", 0.95, 0.86, 0.65))
    assert "above joint" not in capsys.readouterr().out, "it is within the interval"


def test_the_table_of_two_steps_shows_the_old_model_and_full_training(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    joint = result("joint", accuracy_matrix=[[0.9, None], [0.85, 0.8]])
    comparison_table.compare_table([joint, result("lda", accuracy_matrix=[[0.8, None], [0.6, 0.72]], retention=0.75)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["lda", "80.0", "60.0", "75.0", "80.0", "72.0", "90.0"] in lines


@pytest.mark.parametrize("tasks", [1, 2, 12, 13, 100])
def test_tables_fit_100_columns(capsys, monkeypatch, tmp_path, tasks):
    monkeypatch.setenv("COLUMNS", "200")
    long = "a_method_with_an_exceedingly_long_name_that_somebody_gave_it"
    one = result(long, tasks=tasks, warnings=["w" * 150], notes=["n " * 90], paper_compat=True)
    one["tasks"][-1]["name"] = "a domain with a long name [and brackets]"
    run_table.final_table(one)
    comparison_table.compare_table([one, result("joint"), {"method": "l2p", "error": "out of " + "memory " * 30},
                           {"method": "icarl", "skipped": "learns images only"}])  # fmt: skip
    console.cache_table([{"identity": "i" * 64, "description": "d " * 90, "examples": 10**9, "bytes": 10**13,
                          "last_used": 0.0}])  # fmt: skip
    shown = capsys.readouterr().out
    # A command stays on one line, so that it can be copied.
    assert all(len(line) <= 100 or line.lstrip().startswith("everlearn compare") for line in shown.splitlines())
    for word in ("retention", "gain", "failed: out of", "skipped: learns images", "19,500 served", "mean_{i≤T} A_i"):
        assert word in shown
    assert "[and" in shown or "…" in shown, "a task's name is no markup"
    assert (f"12 of {tasks} tasks" in shown) == (tasks > 12)


def test_the_table_shows_scores_where_they_belong(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    run_table.final_table(result("ranpac", accuracy_matrix=[[0.5, None], [0.25, 0.75]], curve=[0.5, 0.6]))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["task", "1", "50.0", "50.0"] in lines and ["task", "2", "25.0", "75.0", "60.0"] in lines


def test_runs_of_an_earlier_version_are_shown_and_say_what_they_lack(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    older = result("lda")
    del older["forgetting_proper"]
    run_table.final_table(older)
    assert "forgetting proper was not measured" in capsys.readouterr().out
    comparison_table.compare_table([older, result("joint")])
    shown = capsys.readouterr().out
    assert "lda: learned by an earlier version" in shown and "pass" in shown
    run_table.final_table(result("lda"))
    assert "not measured" not in capsys.readouterr().out


def test_the_table_of_a_retriever_names_its_metric(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    run_table.final_table(result("finetune", metric="nDCG@10", goal="ranking"))
    shown = capsys.readouterr().out
    assert "final nDCG@10" in shown and "average nDCG@10" in shown and "accuracy" not in shown


def test_the_table_says_who_encoded_and_who_found_all_in_the_store(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    first, adapted = result("fecam", 0.8, examples_encoded=9000), result("aper", 0.7, examples_encoded=450)
    comparison_table.compare_table([first, result("lda", 0.9), adapted, result("finetune", 0.1, examples_served=0)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "pre-trained or adapted: fecam 9,000, aper 450; 0 by lda (all read from the feature store)" in shown


def test_progress_off_a_terminal_is_one_line_for_each_bar_that_took_its_time(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("everlearn.progress.time.monotonic", lambda: now[0])
    with progress.Progress(2, "outer") as bar:
        with progress.Progress(3, "inner [1]") as inner:
            inner.advance(3)
            now[0] += 2
        with progress.Progress(3, "soon done") as inner:
            inner.advance(3)
        bar.advance(2, "loss 0.5")
    with progress.Progress(2, "silent", enabled=False) as bar:
        bar.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    inner_line, outer_line = captured.err.splitlines()
    assert inner_line.startswith("inner [1]: ")
    assert outer_line.startswith("outer: ") and outer_line.endswith(", loss 0.5")


def test_progress_on_a_terminal_may_be_nested(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with pytest.raises(ValueError), progress.Progress(2, "outer"), progress.Progress(3, "inner") as bar:
        bar.show(2)
        bar.advance(text="loss [1]")
        raise ValueError
    assert progress.Progress.active == [] and progress.Progress.display is None


def test_selections():
    assert select("ranpac, joint,ranpac") == ["ranpac", "joint"]
    assert {"ranpac", "simplecil", "joint"} <= set(select("all"))
    assert "l2p" in select("family:prompt") and "ewc" not in select("family:prompt")
    with pytest.raises(EverlearnError, match="did you mean 'prompt'"):
        select("family:promt")
    with pytest.raises(EverlearnError, match="no method to compare"):
        select(" , ")


@pytest.fixture
def my_methods(tmp_path, monkeypatch):
    """A file of methods: one that fails, one that trains a head, one that is for other streams."""
    (tmp_path / "mine_for_compare.py").write_text(textwrap.dedent('''
        from dataclasses import replace
        from everlearn.methods.simplecil import SimpleCIL

        class Broken(SimpleCIL):
            def end_task(self, task):
                raise RuntimeError("the sky\\nfell down")

        class Dear(SimpleCIL):
            tags = replace(SimpleCIL.tags, trains="backbone")

        class TextOnly(SimpleCIL):
            tags = replace(SimpleCIL.tags, inputs=("text",))
    '''))  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    return [f"mine_for_compare:{name}" for name in ("Dear", "Broken", "TextOnly")]


def test_compare_orders_goes_on_says_why_and_repeats_nothing(tmp_path, capsys, my_methods, monkeypatch):
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))
    out, stream = tmp_path / "out", {"name": "digits", "max_train_per_class": 20, "max_test_per_class": 10}
    results = compare(["joint", *my_methods, "simplecil"], stream, backbone="tiny", out=out, progress=True)
    assert [r["method"] for r in results] == ["Broken", "TextOnly", "simplecil", "Dear", "joint"]
    assert results[0]["error"] == "RuntimeError: the sky fell down"
    assert "learns text, and stream 'digits' has image" in results[1]["skipped"]
    said = capsys.readouterr().err
    assert "Broken: failed: RuntimeError" in said and "TextOnly: skipped" in said
    assert "RuntimeError" in (out / "Broken" / "error.txt").read_text() and not (out / "TextOnly").exists()
    kept = json.loads((out / "compare.json").read_text())
    assert kept["results"] == json.loads(json.dumps(results))
    assert kept["recommendation"] == recommendation(results)
    page = (out / "report.html").read_text()
    assert "the sky fell down" in page and kept["recommendation"].split("(")[0] in page
    dear = results[3]
    assert dear["examples_encoded"] == 0 and dear["examples_served"] > 0, "simplecil encoded before it"

    before = (out / "simplecil" / "results.json").stat().st_mtime_ns
    again = compare(["simplecil", "joint"], stream, backbone="tiny", out=out, progress=True)
    assert [r["method"] for r in again] == ["simplecil", "joint"] and again[0] == kept["results"][2]
    assert "already finished, not repeated" in capsys.readouterr().err
    assert (out / "simplecil" / "results.json").stat().st_mtime_ns == before
    with pytest.raises(EverlearnError, match="with seed 0: give another folder"):
        compare(["simplecil"], stream, backbone="tiny", out=out, seed=1)
    with pytest.raises(EverlearnError, match="on other data"):
        compare(["simplecil"], {**stream, "max_train_per_class": 10}, backbone="tiny", out=out)


def test_what_is_trained_decides_the_cost(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))
    stream = {"name": "digits", "max_train_per_class": 5, "max_test_per_class": 2, "tasks": 2}
    chosen = [{"name": "er", "epochs": 1}, "joint", {"name": "er", "epochs": 1, "train": "lora"},
              {"name": "er", "epochs": 1, "train": "head"}, {"name": "lora", "epochs": 1}, "simplecil"]  # fmt: skip
    results = compare(chosen, stream, backbone="tiny")
    assert [r["method"] for r in results] == ["simplecil", "er-3", "er-2", "lora", "er", "joint"]
    trained = {r["method"]: r["trainable_parameters"] for r in results}
    assert 0 == trained["simplecil"] < trained["er-3"] < trained["er-2"] == trained["lora"] < trained["er"]


def test_a_method_whose_needs_the_backbone_lacks_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(TinyBackbone, "reads", ("image",))
    stream = {"name": "digits", "max_train_per_class": 5, "max_test_per_class": 2, "tasks": 2}
    results = compare("simplecil,frozen", stream, backbone="tiny", out=tmp_path / "out", progress=True)
    assert results[0] == {"skipped": "reads the names of the classes, and backbone 'tiny' reads no text",
                          "method": "frozen"}  # fmt: skip
    assert len(results[1]["curve"]) == 2 and not (tmp_path / "out" / "frozen").exists()
    assert "frozen: skipped: reads the names of the classes" in capsys.readouterr().err
    assert "reads no text" in (tmp_path / "out" / "report.html").read_text()


def test_what_a_method_needs_of_the_backbone_is_asked_of_one_encoder(monkeypatch):
    pair = ImageText(TinyBackbone(), TinyBackbone(), name="pair", scale=20.0)
    loaded: list[str] = []
    monkeypatch.setattr("everlearn.backbones.load_when_needed", lambda name: loaded.append(name) or pair)
    found = learn_each([Entry(name, methods.get(name), {"name": name}, None) for name in ("er", "lora", "ewc")],
                       toy_stream(), {"backbone": "pair", "seed": 0}, None, 1, False, lambda _: None)  # fmt: skip
    assert loaded == ["pair"]
    for entry in found:  # and not failed, after hours of the others
        assert entry["skipped"].startswith("trains the image encoder of backbone 'pair', which reads no text")


def test_nothing_is_made_for_an_unknown_name(tmp_path):
    with pytest.raises(EverlearnError, match="did you mean 'ranpac'"):
        compare("ranpak", "digits", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(EverlearnError, match="already holds a run"):
        compare("simplecil", "digits", backbone="tiny", out=tmp_path)


SMALL = {"name": "digits", "max_train_per_class": 5, "max_test_per_class": 2, "tasks": 2}


def test_one_process_at_a_time_compares_in_a_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with alone(out, "comparing"), pytest.raises(EverlearnError, match=r"another process is comparing in .*: wait unt"):
        compare("simplecil", SMALL, backbone="tiny", out=out)
    assert [place.name for place in out.iterdir()] == [".lock"]
    assert len(compare("simplecil", SMALL, backbone="tiny", out=out)) == 1


def test_compare_waits_for_a_process_that_still_learns_in_the_folder_of_a_run(tmp_path, capsys, monkeypatch):
    folder, begun, awaited = tmp_path / "out" / "simplecil", threading.Event(), threading.Event()
    folder.mkdir(parents=True)

    def learn():
        with alone(folder):
            begun.set()
            assert awaited.wait(20)

    def patient(*arguments, patience=0.0):
        if patience:
            awaited.set()
        return alone(*arguments, patience=patience)

    monkeypatch.setattr("everlearn.entries.alone", patient)
    other = threading.Thread(target=learn)
    other.start()
    begun.wait()
    assert "curve" in compare("simplecil", SMALL, backbone="tiny", out=tmp_path / "out", progress=True)[0]
    other.join()
    assert "simplecil: waiting until another process" in capsys.readouterr().err
    monkeypatch.setattr("everlearn.entries.PATIENCE", 0.1)
    with alone(folder), pytest.raises(EverlearnError, match=r"another process is learning in .*simplecil: wait until"):
        compare("simplecil", SMALL, backbone="tiny", out=tmp_path / "out")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_in_which_another_process_learns_is_not_a_failed_one(tmp_path, monkeypatch, jobs):
    """Somebody resumes one of the runs by hand, while they are compared."""
    out, known = tmp_path / "out", importlib.import_module("everlearn.entries")._known
    (out / "finetune").mkdir(parents=True)
    locks = []

    def then_somebody_resumes(entry, *rest):
        locks.append(alone(out / "finetune"))
        return known(entry, *rest)

    monkeypatch.setattr("everlearn.entries._known", then_somebody_resumes)
    with pytest.raises(EverlearnError, match=r"another process is learning in .*finetune: wait until"):
        compare("finetune", SMALL, backbone="tiny", out=out, jobs=jobs)
    assert "results" not in json.loads((out / "compare.json").read_text())
    assert not (out / "finetune" / "error.txt").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"method": "simplecil"}', "null"])
def test_a_damaged_file_of_a_comparison_is_one_line_and_nothing_is_repeated(tmp_path, content):
    out = tmp_path / "out"
    compare("simplecil", SMALL, backbone="tiny", out=out)
    for file in (out / "simplecil" / "results.json", out / "compare.json"):
        file.write_text(content)
        with pytest.raises(EverlearnError) as caught:
            compare("simplecil", SMALL, backbone="tiny", out=out)
        assert str(file) in str(caught.value) and "again in a new folder" in str(caught.value)
        assert "\n" not in str(caught.value) and file.read_text() == content


def test_nothing_is_written_through_a_link(tmp_path, my_methods):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for place, target in (("simplecil", "."), ("simplecil/metrics.jsonl", "file"), ("simplecil/error.txt", "new")):
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).symlink_to(elsewhere / target)
        with pytest.raises(EverlearnError, match=f"{place} is a symbolic link"):
            compare("simplecil", SMALL, backbone="tiny", out=out)
        (out / place).unlink()
    assert not list(elsewhere.iterdir())


def test_an_interrupted_compare_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))
    module, out = importlib.import_module("everlearn.protocol"), tmp_path / "out"
    stream = {"name": "digits", "max_train_per_class": 20, "max_test_per_class": 10}
    real = module.run

    def stopped(method, *args, **keywords):
        if method["name"] == "joint":
            raise Interrupted("stopped")
        return real(method, *args, **keywords)

    monkeypatch.setattr(module, "run", stopped)
    with pytest.raises(Interrupted):
        compare("simplecil,joint", stream, backbone="tiny", out=out)
    assert [r["method"] for r in json.loads((out / "compare.json").read_text())["results"]] == ["simplecil"]
    monkeypatch.setattr(module, "run", real)
    assert [r["method"] for r in compare("simplecil,joint", stream, backbone="tiny", out=out)] == ["simplecil", "joint"]


@pytest.fixture
def from_processes(tmp_path, monkeypatch):
    """A small stream, a store of its own, and a method that other processes find and that fails."""
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_beside.py").write_text(textwrap.dedent('''
        import os, signal, time
        from everlearn.methods.finetune import Finetune

        class Broken(Finetune):
            def end_task(self, task):
                raise RuntimeError("the sky\\nfell down")

        class Killed(Finetune):
            def end_task(self, task):
                os.kill(os.getpid(), signal.SIGKILL)

        class Slow(Finetune):
            def step(self, batch, optimizer_step):
                time.sleep(0.05)
                return super().step(batch, optimizer_step)
    '''))  # fmt: skip
    return {"name": "digits", "max_train_per_class": 10, "max_test_per_class": 5, "tasks": 2}


def test_side_by_side_is_as_one_after_another(tmp_path, capsys, from_processes):
    chosen = ["joint", "simplecil", "finetune", "failing_beside:Broken"]
    beside = compare(chosen, from_processes, backbone="tiny", out=tmp_path / "beside", jobs=2, progress=True)
    said = capsys.readouterr().err
    alone = compare(chosen, from_processes, backbone="tiny", out=tmp_path / "alone")
    assert [r["method"] for r in beside] == ["simplecil", "Broken", "finetune", "joint"]
    assert [(r["method"], r.get("curve")) for r in beside] == [(r["method"], r.get("curve")) for r in alone]
    assert beside[1]["error"] == alone[1]["error"] == "RuntimeError: the sky fell down"
    assert "Traceback" in (tmp_path / "beside" / "Broken" / "error.txt").read_text()
    assert "Broken: failed: RuntimeError: the sky fell down" in said and "\nfinetune: " in said
    assert json.loads((tmp_path / "beside" / "compare.json").read_text())["results"] == json.loads(json.dumps(beside))


def test_a_killed_process_is_told_from_a_failed_one(tmp_path, from_processes):
    results = compare("failing_beside:Killed,lora", from_processes, backbone="tiny", out=tmp_path / "out", jobs=2)
    reasons = {r["method"]: r.get("error") for r in results}
    assert reasons == {"Killed": "killed by SIGKILL; --jobs 1 needs less memory", "lora": None}


def test_side_by_side_needs_a_folder_and_a_named_stream(tmp_path, from_processes):
    from everlearn import streams

    with pytest.raises(EverlearnError, match="needs a folder"):
        compare("simplecil", "digits", backbone="tiny", jobs=2)
    with pytest.raises(EverlearnError, match="not a Stream object"):
        compare("simplecil", streams.load("digits"), backbone="tiny", out=tmp_path / "out", jobs=2)
    assert not (tmp_path / "out").exists()


def test_what_is_side_by_side_stops_when_asked_and_goes_on(tmp_path, from_processes):
    out, stream = tmp_path / "out", {"name": "digits", "tasks": 5, "max_train_per_class": 60}
    command = (
        f"compare --methods finetune,lora --jobs 2 --stream digits --tasks 5 --stream.max_train_per_class 60 "
        f"--backbone tiny --recipe none --out {out}"
    )
    process = subprocess.Popen([sys.executable, "-m", "everlearn", *command.split()], stderr=subprocess.PIPE, text=True)
    lines = [out / name / "metrics.jsonl" for name in ("finetune", "lora")]
    deadline = time.monotonic() + 120
    while not all(line.exists() and line.stat().st_size for line in lines):  # empty until a task is learned
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()  # SIGINT, which does the same, is ignored where pytest was started in the background
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "repeat the command with the same --out to continue" in said
    assert all(list((line.parent / "checkpoints").iterdir()) for line in lines)
    results = compare("finetune,lora", stream, backbone="tiny", out=out, recipe="none")  # no more processes
    assert [len(r["curve"]) for r in results] == [5, 5]


def commands(folder) -> list[str]:
    """The command lines of the processes that were started for the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_text().replace("\0", " "))
        except (OSError, UnicodeDecodeError):  # it has ended since, or is not ours to read
            continue
    return [command for command in found if str(folder) in command]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_no_process_outlives_a_killed_compare_and_a_repeat_goes_on(tmp_path, from_processes):
    """A class outside of everlearn is resumed too: the command that was repeated names it."""
    chosen, out = ["failing_beside:Slow"], tmp_path / "killed"
    stream = {**from_processes, "tasks": 5, "max_train_per_class": 20}
    parent = os.fork()
    if parent == 0:
        try:
            compare(chosen, stream, backbone="tiny", out=out, jobs=2)
        finally:
            os._exit(0)
    log, deadline = out / "Slow" / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size):  # empty until a task is learned
        assert os.waitpid(parent, os.WNOHANG) == (0, 0) and time.monotonic() < deadline
        time.sleep(0.02)
    assert any("Slow" in command for command in commands(out))
    os.kill(parent, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(parent, 0)[1]) == signal.SIGKILL
    killed = compare(chosen, stream, backbone="tiny", out=out, jobs=2)
    assert not commands(out), "the repeat waits until they are gone"
    whole = compare(chosen, stream, backbone="tiny", out=tmp_path / "whole")
    assert [r.get("accuracy_matrix", r) for r in killed] == [r["accuracy_matrix"] for r in whole]


def test_files_of_the_working_directory_are_not_executed(tmp_path, from_processes, monkeypatch):
    for name in ("random", "json", "torch", "numpy", "sitecustomize"):
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "here" / f"{name}.py").write_text("open('executed', 'w'); raise ImportError('from a folder')")
    monkeypatch.chdir(tmp_path / "here")
    results = compare("finetune", from_processes, backbone="tiny", out=tmp_path / "out", jobs=2)
    assert "curve" in results[0] and not Path("executed").exists()


def test_budgets_give_each_method_the_same_steps_and_bytes(tmp_path: Path) -> None:
    small = {"name": "digits", "tasks": 2, "max_train_per_class": 32, "max_test_per_class": 5}
    given = {"backbone": "tiny", "recipe": "none", "budget_bytes": 4000, "budget_steps": 9}
    runs = compare("er,finetune,simplecil,qdc", small, out=tmp_path / "within", **given)
    found = {run["method"]: run for run in runs}
    settings = {name: run["config"]["method"] for name, run in found.items() if "config" in run}
    assert {name: settings[name]["epochs"] for name in ("er", "finetune")} == {"er": 2, "finetune": 2}  # of 5 steps
    assert (settings["er"]["memory_size"], settings["er"]["memory_bytes"]) == (None, 4000)
    assert set(settings["simplecil"]) == {"name"} and "skipped" in found["qdc"]
    with pytest.raises(EverlearnError, match="er with other settings"):
        compare("er", small, out=tmp_path / "within", **{**given, "budget_bytes": 5000})


def test_a_budget_and_a_setting_that_it_decides_are_refused() -> None:
    section = {"name": "er", "epochs": 3}
    with pytest.raises(EverlearnError, match="budget_steps: it decides epochs, which er is given too"):
        compare([section], {"name": "digits", "tasks": 2}, backbone="tiny", budget_steps=9)
    with pytest.raises(EverlearnError, match="budget_bytes"):
        compare([section], {"name": "digits", "tasks": 2}, backbone="tiny", budget_bytes=-1)
    online = {"name": "digits", "tasks": 2, "kind": "online"}
    with pytest.raises(EverlearnError, match="budget: an online stream"):
        compare("er", online, backbone="tiny", budget_steps=9)
