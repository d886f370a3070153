"""Evaluation asks for the test examples of all old tasks together, and gives the scores that each has alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from everlearn import backbones, evaluation, methods
from everlearn.engine import learn
from everlearn.evaluation import Evaluation
from everlearn.testing.toy import toy_stream


@pytest.mark.parametrize("chunk", [5, 1024])
def test_the_tasks_are_asked_together_with_the_scores_of_each_alone(monkeypatch, chunk):
    monkeypatch.setattr(evaluation, "CHUNK", chunk)
    stream, method = toy_stream(), methods.get("simplecil")(backbones.load("tiny"))
    judge, calls = Evaluation(stream, method), []
    predict = method.predict
    monkeypatch.setattr(method, "predict", lambda inputs, *rest: calls.append(len(inputs)) or predict(inputs, *rest))
    for task in stream:
        learn(method, task)
        calls.clear()
        row = judge.after(task)
        examples = sum(len(old.test) for old in stream.tasks[: task.index + 1])
        assert len(calls) == math.ceil(examples / chunk) and sum(calls) == examples
        assert row["scores"] == [judge.score(old)["accuracy"] for old in stream.tasks[: task.index + 1]]
    assert len(stream) > 1 and len(set(judge.answers()[1])) > 1


def test_what_a_method_measures_with_numpy_can_be_written():
    stream, method = toy_stream(), methods.get("simplecil")(backbones.load("tiny"))
    learn(method, stream[0])
    method.measures = lambda inputs, task: {"half": np.float32(0.5), "inputs": np.int64(len(inputs)), "all": True}
    found = Evaluation(stream, method).others(stream[0])
    assert json.loads(json.dumps(found)) == {"half": 0.5, "inputs": len(stream[0].test), "all": 1.0}
