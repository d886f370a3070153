"""What a run says while it learns where there is no terminal: plain lines, in time, on standard error."""

from __future__ import annotations

import json
import time

import pytest

from everlearn import backbones, cli, methods
from everlearn.engine import learn
from everlearn.features import default_store
from everlearn.listeners import encoding
from everlearn.model import Model
from everlearn.progress import Progress
from everlearn.run_table import final_table
from everlearn.testing import toy_stream

OPTIONS = ["--method", "simplecil", "--stream", "digits", "--tasks", "5", "--backbone", "tiny"]


def test_a_long_wait_is_not_silent(monkeypatch, capsys):
    monkeypatch.setattr(Progress, "EVERY", 0.05)
    with Progress(10, "ranpac on shop", done=2) as outer:
        outer.advance(1, "score 0.9")
        with Progress(400, "task 4 of 10") as inner:
            inner.show(120)
            time.sleep(0.3)  # no step is done in this time
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 8
    first = "ranpac on shop: 3 of 10, score 0.9; task 4 of 10: 120 of 400 (0.1 s, about 0."
    assert lines[0].startswith(first) and lines[0].endswith(" s left)")
    assert lines[-1].startswith("ranpac on shop: 0.3 s, score 0.9")
    time.sleep(0.15)
    assert capsys.readouterr().err == ""  # it ends with the work


def test_every_task_is_told_unless_tasks_are_quick(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("everlearn.progress.time.monotonic", lambda: now[0])
    with Progress(4, "run") as bar:
        for seconds in (10, 0.1, 10, 10):
            now[0] += seconds
            bar.advance(1, f"score {seconds}")
    assert capsys.readouterr().err.splitlines() == [
        "run: 1 of 4, score 10 (10.0 s, about 30.0 s left)",
        "run: 3 of 4, score 10 (20.1 s, about 6.7 s left)",
        "run: 30.1 s, score 10",
    ]


def test_bars_side_by_side_may_end_in_any_order(capsys):
    bars = [Progress(2, name).__enter__() for name in ("first", "second")]
    for bar in bars:
        bar.__exit__(None, None, None)
    assert Progress.active == []
    assert capsys.readouterr().err.splitlines() == ["second: 0.0 s"]


def test_only_json_goes_to_standard_output(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Progress, "EVERY", 0.001)
    assert cli.main(["run", *OPTIONS, "--out", str(tmp_path / "run"), "--json"]) == 0
    said = capsys.readouterr()
    results = json.loads(said.out)
    assert "simplecil on digits: " in said.err
    assert len(results["per_class"]) == len(results["confusion"]["matrix"]) == 10
    right = sum(results["confusion"]["matrix"][k][k] for k in range(10))
    assert right / sum(map(sum, results["confusion"]["matrix"])) == pytest.approx(results["final_accuracy"])
    final_table(results)
    worst = min(results["per_class"], key=lambda score: score["recall"])
    told = f"lowest recall in %: {worst['name']} {100 * worst['recall']:.1f}, "
    assert told in capsys.readouterr().out


def test_a_model_says_how_far_it_is_with_its_answers_where_they_take_long(monkeypatch, capsys):
    method = methods.get("simplecil")(backbones.load("tiny"))
    learn(method, toy_stream()[0])
    model, texts = Model(method), ["a cup of tea"] * 2500
    expected = model.predict_proba(texts, progress=True)
    assert capsys.readouterr().err == ""  # it was quick
    answer, now = method.predict, [0.0]
    monkeypatch.setattr("everlearn.progress.time.monotonic", lambda: now[0])

    def slow(inputs, task=None):
        now[0] += 10
        return answer(inputs, task)

    monkeypatch.setattr(type(method), "predict", staticmethod(slow))
    assert (model.predict_proba(texts, progress=True) == expected).all()
    assert capsys.readouterr().err.splitlines() == [
        "answering: 1,024 of 2,500 (10.0 s, about 14.4 s left)",
        "answering: 2,048 of 2,500 (20.0 s, about 4.4 s left)",
        "answering: 30.0 s",
    ]
    model.predict_proba(texts)
    assert capsys.readouterr().err == ""


def test_what_the_feature_store_encodes_is_told_where_it_takes_long(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("everlearn.progress.time.monotonic", lambda: now[0])
    with encoding(progress=True):
        told = default_store().on_progress
        for seconds in (0.1, 20):
            for done in (0, 2048, 3000):
                told(done, 3000)
                now[0] += seconds
    assert default_store().on_progress is None
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 2,048 of 3,000 (20.0 s, about 9.3 s left)",
        "encoding: 40.0 s",
    ]
