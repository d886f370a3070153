"""A run: sane figures for every kind of stream, stopped at any point and resumed to the same bits."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from everlearn import backbones, checkpoint, load, methods, run, streams
from everlearn.engine import learn
from everlearn.errors import ContractError, EverlearnError
from everlearn.features import FeatureStore, using_store
from everlearn.interrupts import Interrupted
from everlearn.methods.coda_prompt import quarter_cosine
from everlearn.methods.slca import last_tenth
from everlearn.metrics import own_seconds
from everlearn.protocol import resume
from everlearn.results import TIMINGS, Result
from everlearn.retrieval.verdict import Verdict
from everlearn.schedules import constant, cosine
from everlearn.schemas.logs import read_scores
from everlearn.streams.stream import Examples
from everlearn.testing import session, toy_stream
from everlearn.versions import Version

DIGITS = {"name": "digits", "tasks": 3, "max_train_per_class": 20, "max_test_per_class": 10}
ER = {"name": "er", "epochs": 2, "memory_size": 20, "lr": 1e-3}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """One thread, and a working folder and feature store of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(before)


def facts(results: dict) -> dict:
    """What must be equal to the bit in every execution of one run."""
    return {key: value for key, value in results.items() if key not in TIMINGS}


def lines(folder) -> list:
    """metrics.jsonl without its times."""
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def content(folder) -> dict:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).rglob("*") if p.is_file()}


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def run_killed(monkeypatch, verb, number, **arguments):
    """A run that ends at the `number`-th call of a verb of its method, before it."""
    cls, calls = methods.get(arguments["method"]["name"]), []
    original = getattr(cls, verb)

    def killed(self, *rest):
        calls.append(verb)
        if len(calls) == number:
            raise Killed
        return original(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cls, verb, killed)
        with pytest.raises(Killed):
            run(**arguments)


# -- what a run gives --------------------------------------------------------------------------
def test_a_run_leaves_its_folder_and_gives_the_fields_of_results_json(tmp_path):
    result = run("simplecil", DIGITS, backbone="tiny", out=tmp_path / "run", seed=4)
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock") == [
        "checkpoints", "config.yaml", "metrics.jsonl", "report.html", "results.json",
    ]  # fmt: skip
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written == result.results and result.directory == tmp_path / "run"
    assert (result.method, result.stream, result.backbone, result.seed) == ("simplecil", "digits", "tiny", 4)
    matrix = result.accuracy_matrix
    assert [[score is None for score in row] for row in matrix] == [[False, True, True], [False, False, True],
                                                                    [False] * 3]  # fmt: skip
    assert result.final_accuracy == result.curve[-1] and result.curve[0] == matrix[0][0]
    counts = [task["test"] for task in result.tasks]
    weighted = sum(s * n for s, n in zip(matrix[2], counts, strict=True)) / sum(counts)
    assert result.curve[2] == pytest.approx(weighted)
    assert 0.2 < result.final_accuracy < 1 and matrix[0][0] > 0.4
    assert (result.examples_encoded, result.trainable_parameters) == (300, 0)
    assert set(result.stored) == {"head", "held-out examples"} and result.stored["head"] == 10 * 32 * 8 + 10 * 8
    assert result.stored_bytes == sum(result.stored.values())
    phases = {"begin", "train", "end", "evaluate", "calibrate"}
    assert set(result.seconds) == {"total", "encode", "encode_pretrained", *phases}
    assert [line["score"] for line in lines(tmp_path / "run")] == result.curve
    assert (result.input, result.goal) == ("image", "classes")
    with pytest.raises(AttributeError, match="a result has no field 'acuracy'"):
        _ = result.acuracy


@pytest.mark.parametrize("found", [Result({"seed": 4}, None), Version({"version": 2}, Path("run")),
                                   Verdict({"answer": "serve"}, None)])  # fmt: skip
def test_what_has_its_entries_as_attributes_can_be_copied_and_sent_to_another_process(found):
    assert copy.deepcopy(found) == pickle.loads(pickle.dumps(found)) == found


def test_results_tell_what_is_stored_and_what_an_answer_costs_after_every_task():
    for _ in range(2):  # the second time, all features are in the store: an answer costs the same
        result = run("simplecil", DIGITS, backbone="tiny")
        for answer in result.answer_per_task:
            assert (answer["encoder_passes"], answer["stored_features"]) == (1, 1)
        assert all(0 < answer["milliseconds"] < 1000 for answer in result.answer_per_task)
    classes = [len(task["classes"]) for task in result.tasks]
    assert result.stored_bytes_per_task == [(32 * 8 + 8) * sum(classes[: k + 1]) for k in range(3)]
    assert result.stored_bytes_per_task[-1] == result.stored_bytes - result.stored["held-out examples"]
    # task_adapters: the router, then the adapter that it chooses. lae: its second insertion comes with the second task.
    for method, passes in (("task_adapters", [2, 2, 2]), ("lae", [1, 2, 2])):
        result = run({"name": method, "epochs": 1}, DIGITS, backbone="tiny")
        assert [answer["encoder_passes"] for answer in result.answer_per_task] == passes
        assert all(answer["stored_features"] <= answer["encoder_passes"] for answer in result.answer_per_task)
        sizes = result.stored_bytes_per_task
        assert (sizes[2] - sizes[1] > 5000) == (method == "task_adapters")


def test_the_configuration_of_a_run_repeats_it_to_the_bit(tmp_path):
    first = run(ER, DIGITS, backbone="tiny", out=tmp_path / "one", seed=3)
    config = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    again = run(config["method"], config["stream"], backbone=config["backbone"], seed=config["seed"])
    assert facts(again.results) == facts(first.results) and again.directory is None
    other = run(ER, DIGITS, backbone="tiny", seed=4)
    assert other.accuracy_matrix != first.accuracy_matrix


def test_frozen_features_are_computed_once_for_all_runs(tmp_path):
    first = run("simplecil", DIGITS, backbone="tiny")
    second = run("simplecil", DIGITS, backbone="tiny")
    assert first.examples_encoded == 300 and second.examples_encoded == 0
    assert facts(second.results) == facts(first.results)


@pytest.mark.parametrize("input", ["text", "image"])
@pytest.mark.parametrize(
    "kind", ["class-incremental", "task-incremental", "domain-incremental", "online", "old-then-new"]
)
def test_every_kind_of_stream_gives_a_sane_matrix(kind, input):
    stream = toy_stream(input, kind=kind)
    rate = 3e-3 if kind == "online" else 1e-3  # eight steps a task, where the others have 32
    learner = methods.get("er")(backbones.load("tiny"), epochs=8, memory_size=30, batch_size=8, lr=rate)
    result = run(learner, stream)
    for i, row in enumerate(result.accuracy_matrix):
        assert all(0 <= score <= 1 for score in row[: i + 1]) and row[i + 1 :] == [None] * (2 - i)
    assert result.accuracy_matrix[0][0] >= (0.5 if kind == "online" else 0.75) and result.kind == kind
    assert result.final_accuracy > 1.5 / len(stream.class_names) and result.retention >= 0
    if kind == "domain-incremental":
        assert result.before[0] is None and all(0 <= score <= 1 for score in result.before[1:])
        assert result.initial == [None, 0.5, 0.5]
        assert result.forward_transfer == pytest.approx(sum(b - 0.5 for b in result.before[1:]) / 2)
    else:
        assert result.before == [None] * 3 and result.forward_transfer is None


def test_telling_the_task_at_test_makes_it_easier():
    scores = {}
    for kind in ("class-incremental", "task-incremental"):
        learner = methods.get("finetune")(backbones.load("tiny"), epochs=8, batch_size=8, lr=1e-3)
        scores[kind] = run(learner, toy_stream(kind=kind)).accuracy_matrix
    told, untold = scores["task-incremental"], scores["class-incremental"]
    assert all(a >= b for x, y in zip(told, untold, strict=True) for a, b in zip(x, y, strict=True) if b is not None)
    assert sum(told[2]) > sum(untold[2])


def test_an_online_stream_is_one_pass_in_its_own_batches(monkeypatch):
    sizes, cls = [], methods.get("finetune")
    original = cls.step
    monkeypatch.setattr(cls, "step", lambda self, batch, then: sizes.append(len(batch)) or original(self, batch, then))
    run(cls(backbones.load("tiny"), epochs=5, batch_size=32), toy_stream(kind="online"))
    assert sizes == [4] * (3 * 32 // 4)


def test_retrieval_is_ranked_on_every_task_before_and_after():
    learner = methods.get("finetune")(backbones.load("tiny"), epochs=5, batch_size=8, lr=1e-3)
    result = run(learner, toy_stream(goal="ranking", kind="domain-incremental"))
    assert result.metric == "nDCG@10" and result.tasks[0]["classes"] == []
    assert set(result.other_matrices) >= {"recall@10", "mrr@10"}
    assert all(0 < score <= 1 for score in result.initial) and result.before[0] is None
    assert result.forward_transfer == pytest.approx(
        sum(b - i for b, i in zip(result.before[1:], result.initial[1:], strict=True)) / 2
    )
    assert all(score > 0.5 for row in result.accuracy_matrix for score in row if score is not None)


class Index(methods.Finetune):
    """A method that keeps an index of its own, and so knows the answer, or what is none."""

    def __init__(self, backbone, *, right: bool = True, **settings) -> None:
        super().__init__(backbone, epochs=1, **settings)
        self.right = right

    def search(self, queries, documents, k=10):
        assert type(queries) is list and type(documents) is list and k == 10
        answers = [documents.index(f"answer to {query}") for query in queries]
        return [[row if self.right else (row + 1) % len(documents)] for row in answers]


@pytest.mark.parametrize(("right", "score"), [(True, 1.0), (False, 0.0)])
def test_a_method_that_overrides_search_decides_the_ranking(right, score):
    result = run(Index(backbones.load("tiny"), right=right), toy_stream(goal="ranking", kind="domain-incremental"))
    assert result.accuracy_matrix == [[score, None, None], [score, score, None], [score] * 3]
    assert result.initial == [score] * 3 and result.other_matrices["mrr@10"][2] == [score] * 3


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [("finetune", "class-incremental", None), ("finetune", "task-incremental", None),
     ("task_adapters", "task-incremental", "its own"), ("task_adapters", "class-incremental", "both")],
)  # fmt: skip
def test_a_method_is_asked_with_inputs_alone(monkeypatch, name, kind, told):
    stream, asked = toy_stream(kind=kind), []
    whose = {text: task.index for task in stream for text in task.test.inputs}
    cls = methods.get(name)
    predict, measures = cls.predict, cls.measures

    def noted(self, inputs, task=None):
        assert type(inputs) is list and {type(text) for text in inputs} == {str}
        assert set(inputs) <= set(whose)
        asked.append((task, {whose[text] for text in inputs}))
        return predict(self, inputs, task)

    def measured(self, inputs, task):
        assert type(inputs) is list and {whose[text] for text in inputs} == {task}
        return measures(self, inputs, task)

    monkeypatch.setattr(cls, "predict", noted)
    monkeypatch.setattr(cls, "measures", measured)
    run(cls(backbones.load("tiny"), epochs=1), stream)
    expected: list[tuple[int | None, set[int | None]]] = []
    for seen in ({0}, {0, 1}, {0, 1, 2}):  # all old tasks together, except where the stream tells the task
        expected += [(None, {task}) for task in seen] if told is None and kind == "task-incremental" else []
        expected += [(None, seen)] if kind == "class-incremental" else []
        expected += [(task, {task}) for task in seen] if told else []
    once_more = [(None, {0, 1, 2})] if kind == "task-incremental" else []  # for calibration, without the task
    assert asked == [*expected, *once_more]


@pytest.mark.parametrize("verb", ["begin_task", "batches", "end_task"])
def test_whoever_learns_sees_no_test_examples(monkeypatch, verb):
    cls = methods.get("finetune")
    original, given = getattr(cls, verb), []

    def peeking(self, task):
        given.append(set(task.examples))
        _ = task.test
        return original(self, task)

    monkeypatch.setattr(cls, verb, peeking)
    with pytest.raises(ContractError, match="the method read the test data of task 0; "):
        run(cls(backbones.load("tiny"), epochs=1), toy_stream())
    assert given == [set() if verb == "begin_task" else {"train"}]


# -- stopped and resumed -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The uninterrupted run, with a line of metrics every second step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reference")
    result = run(ER, DIGITS, backbone="tiny", out=folder / "run", seed=1, save_steps=2)
    torch.set_num_threads(threads)
    return facts(result.results), lines(folder / "run")


@pytest.mark.parametrize(
    ("verb", "number"),
    [("step", 1), ("step", 2), ("step", 6), ("end_task", 1), ("begin_task", 2), ("step", 12), ("end_task", 3)],
)
def test_a_killed_run_resumes_to_the_same_bits(monkeypatch, tmp_path, reference, verb, number):
    folder = tmp_path / "run"
    run_killed(monkeypatch, verb, number, method=ER, stream=DIGITS, backbone="tiny", out=folder, seed=1, save_steps=2)
    assert not (folder / "results.json").exists()
    result = resume(folder)
    assert facts(result.results) == reference[0] and lines(folder) == reference[1]
    assert (folder / "report.html").exists()


def test_a_resumed_run_counts_the_time_and_the_work_before_it(monkeypatch, tmp_path):
    folder = tmp_path / "run"
    clock = iter(range(10**6))
    monkeypatch.setattr("everlearn.listeners.time.perf_counter", lambda: 10.0 * next(clock))
    run_killed(monkeypatch, "step", 6, method=ER, stream=DIGITS, backbone="tiny", out=folder, seed=1, save_steps=5)
    saved = json.loads((next((folder / "checkpoints").iterdir()) / "state.json").read_text())["measured"]
    assert saved["seconds"][0]["train"] > 0 and saved["encoded"] > 0
    result = resume(folder)
    assert result.seconds_per_task[0]["train"] > saved["seconds"][0]["train"]
    assert result.examples_encoded == saved["encoded"] and result.seconds["encode"] == saved["encode_seconds"]


def test_seconds_of_the_pretrained_encoder_are_told_apart_from_those_of_a_changed_one(tmp_path):
    """The first are those that another method would need too; adapters that aper trains change every feature."""
    times = {}
    for method in ("simplecil", "aper"):
        with using_store(FeatureStore(tmp_path / method)):
            times[method] = run(method, DIGITS, backbone="tiny").seconds
    assert times["simplecil"]["encode"] == times["simplecil"]["encode_pretrained"] > 0
    assert times["aper"]["encode"] > times["aper"]["encode_pretrained"] > 0
    assert own_seconds({"seconds": times["simplecil"]}) == times["simplecil"]["total"] - times["simplecil"]["encode"]


def test_a_run_killed_twice_resumes_to_the_same_bits(monkeypatch, tmp_path, reference):
    folder = tmp_path / "run"
    run_killed(monkeypatch, "step", 6, method=ER, stream=DIGITS, backbone="tiny", out=folder, seed=1, save_steps=2)
    cls, calls = methods.get("er"), []
    original = cls.step

    def killed(self, *rest):
        calls.append(1)
        if len(calls) == 5:
            raise Killed
        return original(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "step", killed)
        with pytest.raises(Killed):
            resume(folder)
    assert facts(resume(folder).results) == reference[0] and lines(folder) == reference[1]


def test_every_step_and_every_task_is_in_metrics_jsonl_in_order(monkeypatch, tmp_path):
    cls, losses = methods.get("er"), []
    step = cls.step

    def noted(self, batch, optimizer_step):
        losses.append((self.task.index, step(self, batch, optimizer_step)))
        return losses[-1][1]

    monkeypatch.setattr(cls, "step", noted)
    run(ER, DIGITS, backbone="tiny", out=tmp_path / "run", seed=1)
    expected = []
    for task in range(3):
        own = [loss.item() for index, loss in losses if index == task]
        assert len(own) > 2
        expected += [{"task": task, "step": number, "loss": loss} for number, loss in enumerate(own, 1)]
        expected.append({"task": task, "step": None})
    found = lines(tmp_path / "run")
    assert [{key: value for key, value in line.items() if key != "score"} for line in found] == expected


def test_losses_written_after_the_checkpoint_are_written_once_again(monkeypatch, tmp_path):
    """Losses are written fifty at a time, so a killed run leaves some that its checkpoint knows nothing of,
    and has not written others that it saw."""
    arguments = {"method": {**ER, "batch_size": 8, "epochs": 12}, "stream": DIGITS, "backbone": "tiny", "seed": 1}
    run(**arguments, out=tmp_path / "whole")
    run_killed(monkeypatch, "step", 118, **arguments, out=tmp_path / "run", save_steps=60)
    left = [line["step"] for line in lines(tmp_path / "run")]
    assert left == list(range(1, 111))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["task-000-step-000060"]
    result = resume(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert facts(result.results) == facts(json.loads((tmp_path / "whole" / "results.json").read_text()))


def test_a_running_run_holds_two_checkpoints_and_a_finished_one_its_last(monkeypatch, tmp_path):
    folder, held = tmp_path / "run" / "checkpoints", []
    save = checkpoint.save

    def counted(*arguments):
        save(*arguments)
        held.append(sorted(path.name for path in folder.iterdir()))

    monkeypatch.setattr(checkpoint, "save", counted)
    run(ER, DIGITS, backbone="tiny", out=tmp_path / "run", save_steps=2)
    assert [len(names) for names in held] == [1, *[2] * (len(held) - 2), 1] and len(held) > 6
    assert held[-1] == ["task-003-step-000000"] == [path.name for path in folder.iterdir()]
    monkeypatch.setattr(checkpoint, "save", save)
    run("simplecil", DIGITS, backbone="tiny", out=tmp_path / "quick")
    assert [path.name for path in (tmp_path / "quick" / "checkpoints").iterdir()] == held[-1]


def test_a_run_killed_while_it_replaces_its_only_checkpoint_loses_nothing(monkeypatch, tmp_path):
    one, folder = {**DIGITS, "tasks": 1}, tmp_path / "run"
    whole = run(ER, one, backbone="tiny", seed=1)
    replace, moved = os.replace, []

    def killed(source, target):
        if str(target).endswith(".old"):  # what the end of the run writes anew: the held-out examples join it
            moved.append(target)
        elif moved and "task-" in str(target):
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("everlearn.files.os.replace", killed)
        with pytest.raises(Killed):
            run(ER, one, backbone="tiny", seed=1, out=folder, save_steps=1000)
    assert moved and checkpoint.newest(folder / "checkpoints") is None
    monkeypatch.setattr(methods.get("er"), "step", lambda *_: pytest.fail("the task was learned again"))
    assert facts(resume(folder).results) == facts(whole.results)


def test_the_data_are_not_read_again_for_every_checkpoint(monkeypatch, tmp_path):
    read, digest = [], Examples.digest
    monkeypatch.setattr(Examples, "digest", lambda self: read.append(len(self)) or digest(self))
    run(ER, DIGITS, backbone="tiny", out=tmp_path / "run", save_steps=1)
    assert sum(read) == 2 * (20 + 10) * 10  # every example once for the checkpoints, and once for the results


def test_a_run_killed_between_its_last_checkpoint_and_its_results_resumes(monkeypatch, tmp_path, reference):
    folder = tmp_path / "run"

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("everlearn.session.write_results", killed)
        with pytest.raises(Killed):
            run(ER, DIGITS, backbone="tiny", out=folder, seed=1, save_steps=2)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["task-003-step-000000"]
    assert facts(resume(folder).results) == reference[0] and lines(folder) == reference[1]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["task-003-step-000000"]


def write_state(place, state):
    """Write state.json as everlearn does, with a hash that is right."""
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (place / "state.json").write_text(json.dumps({"sha256": digest, **state}))


@pytest.mark.parametrize(("written", "told"), [(None, 1), (1, 1), (2, 2)])
def test_a_checkpoint_of_another_format_is_refused_by_load_and_resume(monkeypatch, tmp_path, reference, written, told):
    folder = tmp_path / "run"
    run_killed(monkeypatch, "begin_task", 2, method=ER, stream=DIGITS, backbone="tiny", out=folder, seed=1,
               save_steps=100)  # fmt: skip
    (place,) = (folder / "checkpoints").iterdir()
    state = json.loads((place / "state.json").read_text())
    del state["sha256"]
    other = {key: value for key, value in state.items() if key != "format"}
    write_state(place, other if written is None else {"format": written, **other})
    held = content(folder)
    for ask in (load, resume):
        with pytest.raises(EverlearnError, match=rf"written by another version of everlearn \(format {told}, this one "
                                                 r"reads 3 and 4\): learn the run again") as error:  # fmt: skip
            ask(folder)
        assert "\n" not in str(error.value) and str(place) in str(error.value)
        assert content(folder) == held
    write_state(place, state)
    assert len(load(folder).class_names) == 4
    assert facts(resume(folder).results) == reference[0]


def test_two_processes_do_not_learn_in_one_folder(monkeypatch, tmp_path, reference):
    folder = tmp_path / "run"
    run_killed(monkeypatch, "step", 6, method=ER, stream=DIGITS, backbone="tiny", out=folder, seed=1, save_steps=2)
    before = content(folder)
    with FileLock(folder / ".lock"), pytest.raises(EverlearnError, match="another process is learning in"):
        resume(folder)
    assert content(folder) == before
    assert facts(resume(folder).results) == reference[0]


def test_a_line_of_metrics_that_was_cut_off_does_not_stop_a_resume(monkeypatch, tmp_path, reference):
    folder = tmp_path / "run"
    run_killed(monkeypatch, "end_task", 2, method=ER, stream=DIGITS, backbone="tiny", out=folder, seed=1, save_steps=2)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"task": 1, "st')
    assert facts(resume(folder).results) == reference[0] and lines(folder) == reference[1]


def test_logs_of_any_length_are_read_when_a_run_is_resumed(monkeypatch, tmp_path, reference):
    folder = tmp_path / "run"
    run_killed(monkeypatch, "step", 10, method=ER, stream=DIGITS, backbone="tiny", out=folder, seed=1, save_steps=2)
    most = 2 * max(map(len, (folder / "presentations.jsonl").read_bytes().splitlines()))
    assert (folder / "presentations.jsonl").stat().st_size > most
    monkeypatch.setattr("everlearn.schemas.logs.MOST_JSON", most)  # more than a line, and less than all
    assert facts(resume(folder).results) == reference[0] and lines(folder) == reference[1]
    assert read_scores(folder / "metrics.jsonl") == reference[0]["curve"]


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_it_serves(monkeypatch, tmp_path, reference):
    folder = tmp_path / "run"
    run_killed(monkeypatch, "step", 10, method=ER, stream=DIGITS, backbone="tiny", out=folder, seed=1, save_steps=2)
    older, newer = sorted((folder / "checkpoints").iterdir())
    os.truncate(newer / "method.safetensors", 100)
    with pytest.raises(EverlearnError, match="truncated") as error:
        resume(folder)
    assert f"remove {newer}" in str(error.value)
    for file in newer.iterdir():
        file.unlink()
    newer.rmdir()
    assert older.exists() and facts(resume(folder).results) == reference[0]


def test_resuming_a_finished_run_changes_nothing_and_writes_a_missing_report(tmp_path):
    result = run("simplecil", DIGITS, backbone="tiny", out=tmp_path / "run")
    before = content(tmp_path / "run")
    assert resume(tmp_path / "run").results == result.results and content(tmp_path / "run") == before
    (tmp_path / "run" / "report.html").unlink()
    resume(tmp_path / "run")
    assert set(content(tmp_path / "run")) == set(before)


def test_ctrl_c_finishes_the_step_saves_and_names_the_command(tmp_path, monkeypatch):
    stream, method = DIGITS, {**ER, "epochs": 8}
    settings = [f"--{section}.{key}={value}" for section, values in (("stream", stream), ("method", method))
                for key, value in values.items() if key != "name"]  # fmt: skip
    command = [sys.executable, "-m", "everlearn", "run", "--stream", "digits", "--method", "er", "--backbone", "tiny",
               "--recipe", "none", "--save-steps", "5", "--out", "run", *settings]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    last = err.strip().splitlines()[-1]
    assert "stopped at step" in last and last.endswith("go on with: everlearn resume run") and "Traceback" not in err
    assert not (tmp_path / "run" / "results.json").exists() and out == ""
    whole = run(method, stream, backbone="tiny")
    assert facts(resume(tmp_path / "run").results) == facts(whole.results)


def test_ctrl_c_without_a_folder_says_that_nothing_was_kept():
    learner = methods.get("finetune")(backbones.load("tiny"), epochs=5)
    original, before = learner.step, signal.getsignal(signal.SIGINT)

    def step(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    object.__setattr__(learner, "step", step)
    with pytest.raises(Interrupted, match="stopped at step 1 of task 1; nothing was kept"):
        run(learner, toy_stream())
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_names_a_method_of_ones_own_because_the_folder_does_not(tmp_path):
    class Own(methods.get("finetune")):
        def step(self, *arguments):
            os.kill(os.getpid(), signal.SIGINT)
            return super().step(*arguments)

    with pytest.raises(Interrupted, match=r"go on with: everlearn resume .*run --method \S*test_run:\S*Own") as stopped:
        run(Own(backbones.load("tiny"), epochs=5), toy_stream(), out=tmp_path / "run")
    assert str(tmp_path / "run") in str(stopped.value)


def write_csv(path, words=("cat", "dog", "sun", "sea")):
    rows = [f"{word} number {i},{word}" for i in range(15) for word in words]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return str(path)


def test_data_that_has_changed_since_is_refused(monkeypatch, tmp_path):
    stream = {"name": write_csv(tmp_path / "pets.csv"), "tasks": 2}
    arguments = {"method": ER, "stream": stream, "backbone": "tiny", "save_steps": 1}
    run_killed(monkeypatch, "step", 3, out=tmp_path / "run", **arguments)
    held = content(tmp_path / "run")
    text = (tmp_path / "pets.csv").read_text()
    (tmp_path / "pets.csv").write_text(text.replace("cat number 3", "cat number 333"))
    with pytest.raises(EverlearnError, match=r"the data of stream .*pets.csv' has changed since"):
        resume(tmp_path / "run")
    assert content(tmp_path / "run") == held
    (tmp_path / "pets.csv").write_text(text)
    assert facts(resume(tmp_path / "run").results) == facts(run(**arguments).results)


def test_a_run_resumes_from_another_working_folder(monkeypatch, tmp_path):
    write_csv(tmp_path / "pets.csv")
    run_killed(monkeypatch, "end_task", 2, method=ER, stream={"name": "pets.csv", "tasks": 2}, backbone="tiny",
               out="run", save_steps=5)  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(tmp_path / "run").stream == str(tmp_path / "pets.csv")


def test_a_folder_called_like_a_packaged_stream_does_not_hide_it(tmp_path):
    (tmp_path / "digits").mkdir()
    assert run("simplecil", DIGITS, backbone="tiny").stream == "digits"


def test_how_often_to_save_is_kept_for_the_resumed_run(monkeypatch, tmp_path):
    run_killed(monkeypatch, "step", 4, method=ER, stream=DIGITS, backbone="tiny", out=tmp_path / "run",
               save_steps=3, save_minutes=7.0)  # fmt: skip
    saving = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["saving"]
    assert saving == {"save_minutes": 7.0, "save_steps": 3, "keep": 2000, "validate": False}


# -- nothing is lost or overwritten ------------------------------------------------------------
def test_a_folder_that_holds_a_run_is_refused_and_untouched(tmp_path):
    run("simplecil", DIGITS, backbone="tiny", out=tmp_path / "run")
    before = content(tmp_path / "run")
    with pytest.raises(EverlearnError, match="holds a run already: `everlearn resume"):
        run("simplecil", DIGITS, backbone="tiny", out=tmp_path / "run", seed=1)
    assert content(tmp_path / "run") == before


def test_of_two_runs_that_begin_at_once_only_one_writes_into_the_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(EverlearnError, match="another process is learning in"):
        run("simplecil", DIGITS, backbone="tiny", out=folder)  # the other one has the lock, and will write now
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EverlearnError, match=r"cannot be written .*give another --out") as error:
        run("simplecil", DIGITS, backbone="tiny", out=tmp_path / "file" / below)
    assert "\n" not in str(error.value) and (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(monkeypatch, tmp_path, reference):
    saves, save_file = [], sys.modules["everlearn.checkpoint"].save_file

    def full(*arguments):
        saves.append(1)
        if len(saves) > 6:
            raise OSError(28, "No space left on device")
        save_file(*arguments)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("everlearn.checkpoint.save_file", full)
        with pytest.raises(EverlearnError, match=r"No space left on device.*earlier checkpoints are untouched"):
            run(ER, DIGITS, backbone="tiny", out=folder, seed=1, save_steps=2)
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert facts(resume(folder).results) == reference[0] and lines(folder) == reference[1]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant, [1.0] * 20),
        (cosine, [(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]),
        (
            partial(quarter_cosine, epochs=5),
            [math.cos(0.495 * math.pi * part / 4) for part in (0, 0, 1, 2, 3) for _ in range(4)],
        ),
        (last_tenth, [1.0] * 18 + [0.1] * 2),
    ],
    ids=["constant", "cosine", "quarter_cosine", "last_tenth"],
)
def test_the_learning_rate_falls_within_a_task_as_the_method_says(schedule, expected, monkeypatch):
    stream = toy_stream()
    method = methods.get("finetune")(backbones.load("tiny"), lr=1e-3, epochs=5)
    monkeypatch.setattr(type(method), "schedule", staticmethod(schedule))
    monkeypatch.setattr(method, "batches", lambda task: [task.train[[0, 1]]] * 20)
    rates, step = [], method.step

    def noted(batch, optimizer_step):
        rates.append(optimizer_step.optimizer.param_groups[0]["lr"] / 1e-3)
        return step(batch, optimizer_step)

    monkeypatch.setattr(method, "step", noted)
    session(method, stream).learn()
    assert rates == pytest.approx(expected * len(stream))


@pytest.mark.parametrize("steps", [7, 23, 39])
def test_a_rate_that_falls_by_epochs_falls_within_an_online_pass_of_any_length(steps):
    method = methods.get("coda_prompt")(backbones.load("tiny"), epochs=20)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = method.schedule(optimizer, steps), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 1.0 and rates == sorted(rates, reverse=True) and 0.0 < rates[-1] < 0.4


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_records(tmp_path, monkeypatch):
    folder, losses = tmp_path / "run", methods.get("finetune").losses
    grown = iter(range(1, 100))  # each loss is 1e10 times the one before, so that float32 cannot hold the sixth
    monkeypatch.setattr(methods.get("finetune"), "losses", lambda *of: losses(*of) * 10.0 ** (10 * next(grown)))
    with pytest.raises(EverlearnError, match=r"the loss is (nan|inf) at a batch with the records digits:") as error:
        run({"name": "finetune", "epochs": 3}, DIGITS, backbone="tiny", out=folder, save_steps=1)
    assert "--method.lr" in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "results.json").exists()
    (first, *_) = sorted((folder / "checkpoints").iterdir())
    assert (first / "state.json").exists()


# -- a learned model ---------------------------------------------------------------------------
LEARNERS = {
    "er": ER, "ranpac": {"name": "ranpac", "width": 64, "epochs": 2}, "simplecil": {"name": "simplecil"},
    "l2p": {"name": "l2p", "epochs": 1}, "lora": {"name": "lora", "epochs": 2, "train": "lora(size=2)"},
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNERS)
def test_a_loaded_model_answers_as_the_one_that_learned(tmp_path, name):
    stream, settings = streams.load(**DIGITS), {k: v for k, v in LEARNERS[name].items() if k != "name"}
    learner = methods.get(name)(backbones.load("tiny"), **settings, seed=2)
    session(learner, stream).learn()
    result = run(LEARNERS[name], DIGITS, backbone="tiny", out=tmp_path / "run", seed=2)
    model = load(tmp_path / "run")
    with torch.no_grad():
        expected = learner.eval().predict(stream[1].test.inputs).cpu()
    inputs = stream[1].test.inputs
    assert model.class_names == list(stream.class_names)
    assert torch.equal(model._scores(inputs), expected.float())
    assert model.predict(inputs) == [stream.class_names[k] for k in expected.argmax(1).tolist()]
    probabilities = model.predict_proba(inputs)
    assert probabilities.shape == (len(inputs), 10) and probabilities.sum(1) == pytest.approx(1)
    assert model.embed(inputs).shape == (len(inputs), 32)
    right = [p == stream.class_names[k] for p, k in zip(model.predict(inputs), stream[1].test.labels, strict=True)]
    assert sum(right) / len(right) == pytest.approx(result.accuracy_matrix[2][1])
    assert model.predict([]) == []


@pytest.mark.parametrize("name", ["simplecil", "er"])
def test_a_loaded_model_learns_one_more_task(tmp_path, name):
    """Without its old data it learns a new class, as the method would have that learned the others."""
    stream = toy_stream(tasks=4)
    settings = {"epochs": 8, "batch_size": 8, "lr": 1e-3, "memory_size": 60} if name == "er" else {}
    learner = methods.get(name)(backbones.load("tiny"), **settings, seed=3)
    run(learner, replace(stream, tasks=stream.tasks[:3]), out=tmp_path / "run")
    model = load(tmp_path / "run")
    assert model.class_names == [f"class {k}" for k in range(6)]

    def right(model, tasks):
        asked = Examples.concatenate([task.test for task in tasks])
        answers = model.predict(asked.inputs)
        return sum(a == f"class {k}" for a, k in zip(answers, asked.labels.tolist(), strict=True)) / len(asked)

    before, new = right(model, stream.tasks[:3]), stream[3].train
    assert before > 0.6 and right(model, stream.tasks[3:]) == 0
    records = [streams.Record(text, f"class {k}") for text, k in zip(new.inputs, new.labels.tolist(), strict=True)]
    for index in range(3):
        with pytest.raises(EverlearnError, match=rf"has learned 3 tasks, and the new one has the index {index}: .*3$"):
            learn(model.method, streams.task_from(records, model.class_names, index=index))
    assert right(model, stream.tasks[:3]) == before
    task = streams.task_from(records, model.class_names, index=3)
    learn(model.method, task)
    assert model.class_names == [f"class {k}" for k in range(8)]
    assert right(model, stream.tasks[:3]) > 0.6 and right(model, stream.tasks[3:]) > 0.6
    learn(learner, task)
    with torch.no_grad():
        texts = [text for task in stream for text in task.test.inputs]
        assert torch.equal(model._scores(texts), learner.predict(texts).float())


def test_a_retrieval_model_embeds_and_has_no_classes(tmp_path):
    corpus = "id,text\n" + "\n".join(f"d{i},answer number {i} of the shop" for i in range(20))
    (tmp_path / "shop_corpus.csv").write_text(corpus)
    learner = methods.get("finetune")(backbones.load("tiny"), epochs=1)
    from everlearn.model import Model

    session(learner, toy_stream(goal="ranking", kind="domain-incremental")).learn()
    model = Model(learner)
    assert model.embed(["one", "two"]).shape == (2, 32)
    with pytest.raises(EverlearnError, match="use embed"):
        model.predict(["one"])


def test_a_run_that_is_not_finished_is_not_loaded_as_if_it_were(monkeypatch, tmp_path):
    arguments = {"method": ER, "stream": DIGITS, "backbone": "tiny", "save_steps": 2}
    run_killed(monkeypatch, "step", 1, out=tmp_path / "first", **arguments)
    with pytest.raises(EverlearnError, match="holds no checkpoint yet: run `everlearn resume"):
        load(tmp_path / "first")
    run_killed(monkeypatch, "step", 6, out=tmp_path / "inside", **arguments)
    with pytest.raises(EverlearnError, match="stopped inside task 1: run `everlearn resume"):
        load(tmp_path / "inside")
    run_killed(monkeypatch, "begin_task", 3, out=tmp_path / "between", **arguments)
    assert len(load(tmp_path / "between").class_names) == 7


def test_other_pretrained_weights_than_the_run_had_are_refused(tmp_path, monkeypatch):
    run("simplecil", DIGITS, backbone="tiny", out=tmp_path / "run")
    tiny = backbones.load("tiny").__class__
    monkeypatch.setattr(backbones, "load", lambda name: tiny(seed=1))
    with pytest.raises(EverlearnError, match="its pre-trained weights differ"):
        load(tmp_path / "run")


def test_a_method_instance_is_loaded_with_its_settings(tmp_path):

    stream = toy_stream()
    method = methods.get("lora")(backbones.load("tiny"), train="lora(size=2)", epochs=1, seed=3)
    run(method, stream, out=tmp_path / "out")
    texts = list(stream[0].test.inputs)
    again = load(tmp_path / "out")
    assert again.method.deltas[0].a.shape[0] == 2
    assert torch.equal(torch.tensor(again.embed(texts)), method.embed(texts).cpu())


def test_a_method_that_has_learned_starts_no_run(tmp_path):
    learned = run("simplecil", DIGITS, backbone="tiny", out=tmp_path / "run")
    model = load(tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in model.method.state_dict().items()}
    with pytest.raises(EverlearnError, match="has learned 3 tasks already, and a run starts from an untouched one"):
        run(model.method, DIGITS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.method.state_dict().items())
    assert learned.final_accuracy > 0


def test_a_method_that_is_built_has_its_seed_and_its_backbone():
    built = methods.get("finetune")(backbones.load("tiny"), seed=3)
    with pytest.raises(EverlearnError, match="seed=1: the method was built with seed 3"):
        run(built, DIGITS, seed=1)
    with pytest.raises(EverlearnError, match="backbone=minilm: the method was built with backbone tiny"):
        run(built, DIGITS, backbone="minilm")
    assert run(built, DIGITS, backbone="tiny", seed=3).seed == 3


def test_a_single_input_is_no_list(tmp_path):
    run("simplecil", DIGITS, backbone="tiny", out=tmp_path / "run")
    model, image = load(tmp_path / "run"), streams.load(**DIGITS)[0].test.inputs[0]
    for ask in (model.predict, model.predict_proba):
        with pytest.raises(EverlearnError, match=r"this is a single one: give \[input\]"):
            ask(image)
    assert len(model.predict([image])) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_the_peak_is_that_of_this_process_and_not_of_the_one_that_started_it(monkeypatch):
    from types import SimpleNamespace

    from everlearn import results

    monkeypatch.setattr(results.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=10**12))
    assert 10**7 < results.peak_memory() < 10**13
