"""everlearn tune: only validation examples decide, every method has the same trials and steps, and a search goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from everlearn import methods, run, streams, tune
from everlearn.cli import main
from everlearn.config import build_config
from everlearn.console import trials_table
from everlearn.engine import Learning
from everlearn.errors import DataError, EverlearnError
from everlearn.grids import GRIDS, TRIALS, Line, grid_of
from everlearn.interrupts import Interrupted
from everlearn.methods.finetune import Finetune
from everlearn.search import best_point, search
from everlearn.session import Session
from everlearn.settings import arguments, checked
from everlearn.streams.stream import Examples, Stream
from everlearn.streams.validation import NOTE, on_validation
from everlearn.testing import toy_stream
from everlearn.tuning import Tuning, planned

DIGITS = {"name": "digits", "tasks": 5, "max_train_per_class": 10, "max_test_per_class": 4}
ON_DIGITS = ["--stream", "digits", "--stream.tasks", "5", "--stream.max_train_per_class", "10",
             "--stream.max_test_per_class", "4", "--backbone", "tiny", "--jobs", "1"]  # fmt: skip
ONLY_HEAD_RATE = {"name": "finetune", "epochs": 1, "lr": 0.001}


# -- what decides ----------------------------------------------------------------------------------
class Unread(Examples):
    """Test examples that raise where any of their columns is read."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__"):
            raise AssertionError("test examples were read")
        return super().__getattribute__(name)


def with_unread_tests(stream: Stream) -> Stream:
    unread = Unread([], torch.empty(0, dtype=torch.long), [])
    return replace(stream, tasks=tuple(replace(task, examples={**task.examples, "test": unread}) for task in stream))


@pytest.mark.parametrize(
    ("goal", "method"),
    [("classes", ONLY_HEAD_RATE), ("ranking", {"name": "qdc", "epochs": 1, "distill": 1.0})],
)
def test_a_search_reads_no_test_example(goal: str, method: dict[str, Any]) -> None:
    stream = with_unread_tests(toy_stream(goal=goal, tasks=4, per_class=8))
    with pytest.raises(AssertionError, match="test examples were read"):
        stream.fingerprint()
    found = tune(method, stream, backbone="tiny", tasks=2)
    assert len(found.trials) > 2 and found.score >= (found.default_score or 0)
    assert found.record["tasks"] == 2 and found.record["command"] is None


def test_a_stream_for_tuning_has_validation_examples_in_place_of_test_examples() -> None:
    whole = streams.load("clinc150", tasks=50)
    judged = streams.load("clinc150", tasks=50, tuning=2)
    assert len(judged) == 2 and NOTE in judged.notes and judged.config["tuning"] == 2
    assert [task.test.ids for task in judged] == [task.validation.ids for task in whole][:2]
    assert [task.train.ids for task in judged] == [task.train.ids for task in whole][:2]


def test_a_fifth_is_held_out_where_there_are_no_validation_examples() -> None:
    for goal in ("classes", "ranking"):
        stream = toy_stream(goal=goal, per_class=10)
        for task, judged in zip(stream, on_validation(stream, tasks=9), strict=True):
            assert sorted([*judged.train.ids, *judged.test.ids]) == sorted(task.train.ids)
            assert len(judged.test) == 4
    assert judged.corpus is not None and judged.test.relevant is not None
    texts = dict(zip(judged.corpus.ids, judged.corpus.texts, strict=True))
    assert [texts[next(iter(ids))] for ids in judged.test.relevant] == judged.validation.positives


def test_a_validation_query_with_several_documents_is_one_test_query() -> None:
    queries = [f"question {i // 2}" for i in range(20)]
    stream = streams.from_pairs(queries, [f"answer {i}" for i in range(20)], test=0.2)
    for judged in (on_validation(stream)[0], streams.load("domains4", tuning=4)[3]):
        assert len(set(judged.test.inputs)) == len(judged.test.inputs) == len(judged.test.ids) == len(judged.test)
        texts = dict(zip(judged.corpus.ids, judged.corpus.texts, strict=True))
        asked = [(query, texts[id]) for query, found in zip(judged.test.inputs, judged.test.relevant, strict=True)
                 for id in found]  # fmt: skip
        assert sorted(asked) == sorted(zip(judged.validation.inputs, judged.validation.positives, strict=True))
        assert len(asked) > len(judged.test)


def test_equal_examples_are_held_out_together() -> None:
    stream = toy_stream(per_class=10)
    doubled = replace(stream, tasks=tuple(
        replace(task, examples={**task.examples, "train": Examples.concatenate([task.train, task.train])})
        for task in stream
    ))  # fmt: skip
    for task in on_validation(doubled, tasks=9):
        assert len(task.test) == 8 and not set(task.test.inputs) & set(task.train.inputs)


def test_where_nothing_can_be_held_out_or_tested_a_line_says_so() -> None:
    words = ["tea", "sofa", "rose", "gold"]
    few = streams.from_rows([f"{word} {row}" for row in range(3) for word in words], words * 3, tasks=2)
    assert [len(task.train) for task in few] == [4, 4]  # two of a class, and the third is for tests
    with pytest.raises(DataError, match="task 1 has no validation examples, and too few training examples"):
        tune("klda", few, backbone="tiny")
    untested = replace(few[1], examples={"train": few[1].train})
    with pytest.raises(EverlearnError, match="rows': task 2 has no test examples"):
        run("simplecil", replace(few, tasks=(few[0], untested)), backbone="tiny")


# -- the search ------------------------------------------------------------------------------------
LINES = [Line("lr", (0.1, 0.3, 0.9), 0.3), Line("strength", (1.0, 10.0, 100.0), 1.0)]


def test_a_search_goes_beyond_an_end_and_keeps_to_its_trials() -> None:
    asked: list[Any] = []

    def judge(points: list[Any]) -> list[float | None]:
        asked.extend(points)
        return [lr + strength for lr, strength in points]

    scores = search(LINES, judge)
    assert len(asked) == len(scores) == TRIALS and len(set(asked)) == TRIALS
    assert best_point(LINES, scores)[0] > 0.9 and (0.3, 1.0) in scores


def test_the_seed_decides_the_order_and_not_the_choice() -> None:
    def found(seed: int) -> tuple[list[Any], Any]:
        scores = search(LINES, lambda points: [-abs(a - 0.1) - abs(b - 10) for a, b in points], seed)
        return list(scores), best_point(LINES, scores)

    assert found(0) == found(0)
    assert {found(seed)[1] for seed in range(4)} == {(0.1, 10.0)}
    assert len({str(found(seed)[0]) for seed in range(4)}) > 1


def test_of_equal_scores_the_nearest_to_the_default_is_chosen() -> None:
    assert best_point(LINES, search(LINES, lambda points: [0.5 for _ in points])) == (0.3, 1.0)


def test_points_without_a_score_are_passed_over() -> None:
    scores = search(LINES, lambda points: [None if lr >= 0.3 else strength for lr, strength in points])
    assert best_point(LINES, scores)[0] == 0.1 and scores[0.3, 1.0] is None
    assert best_point(LINES, search(LINES, lambda points: [None for _ in points])) == (0.3, 1.0)


def test_names_are_searched_beside_numbers() -> None:
    lines = [Line("solution", ("lp-ft", "ft", "lda"), "lp-ft"), LINES[0]]
    scores = search(lines, lambda points: [(name == "ft") - abs(lr - 0.9) for name, lr in points])
    assert best_point(lines, scores) == ("ft", 0.9) and {point[0] for point in scores} == {"lp-ft", "ft", "lda"}
    even = search(lines, lambda points: [0.5 for _ in points])
    assert best_point(lines, even) == ("lp-ft", 0.3)  # of equal scores the method's own values


# -- the grid --------------------------------------------------------------------------------------
def test_the_grid_names_settings_of_every_method_that_trains() -> None:
    without = {name for name in methods.names() if name not in GRIDS}
    assert without == {"frozen", "simplecil", "lda", "knn"} and GRIDS.keys() <= {*methods.names()}
    assert all(methods.get(name).tags.trains == "nothing" for name in without)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_the_grid_has_the_papers_value_and_fits_into_the_trials(name: str) -> None:
    known = arguments(methods.get(name))
    papers = build_config({"method": {"name": name}}, recipe="papers" if _is_published(name) else "none")[0]["method"]
    for setting, values in grid_of(name).items():
        is_rate = setting in ("lr", "head_lr")
        assert (1.0 if is_rate else papers.get(setting, known[setting].default)) in values
        assert known[setting].default == papers.get(setting, known[setting].default)  # so rates are multiples of it
        for value in values:
            checked(setting, value, known[setting].type)
    assert 1 + sum(len(values) - 1 for values in GRIDS[name].values()) <= TRIALS


def _is_published(name: str) -> bool:
    return (Path(__file__).parents[1] / "recipes" / "papers" / f"{name}.yaml").exists()


NOT_PLANNED = {"prompt_fusion", "proof", "zscl", "l2r"}
"""They need a pair of encoders, or import libraries that take ten seconds."""


@pytest.mark.parametrize("name", sorted({*GRIDS} - NOT_PLANNED))
def test_every_method_has_lines_and_steps_by_its_budget(name: str) -> None:
    goal = "classes" if "classes" in methods.get(name).tags.goals else "ranking"
    section: dict[str, Any] = {"name": name, **({"pairs": 1} if name == "setfit" else {})}
    lines, steps = planned(section, grid_of(name), toy_stream(goal=goal, tasks=2), "tiny", 0, 40)
    told = [line.setting for line in lines]
    assert told == [setting for setting in GRIDS[name] if setting not in ("head_lr", "solution") or goal == "classes"]
    assert all(line.default in line.values for line in lines)
    assert steps == (40 if "epochs" in arguments(methods.get(name)) else None)


def test_how_joint_learns_is_searched_where_there_are_classes_only() -> None:
    section, grid = {"name": "joint"}, grid_of("joint")
    lines, _ = planned(section, grid, toy_stream(goal="ranking", tasks=2), "tiny", 0, 40)
    assert [line.setting for line in lines] == ["lr"]


def test_what_the_recipe_leaves_to_the_method_is_not_searched() -> None:
    stream = toy_stream(goal="ranking", tasks=2, per_class=6)
    found = tune("interpolate", stream, backbone="tiny", tasks=1, budget=1, recipe="domains4")
    assert found.chosen["weight"] == "auto" and list(found.record["grid"]) == ["lr"]


# -- trials ----------------------------------------------------------------------------------------
@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where a task has been trained, after how many steps."""
    found: list[int] = []
    fit = Learning.fit

    def counting(self: Learning, *arguments: Any) -> None:
        fit(self, *arguments)
        found.append(self.step)

    monkeypatch.setattr(Learning, "fit", counting)
    return found


@pytest.mark.parametrize("batch_size", [4, 10])
def test_a_budget_is_met_whatever_the_size_of_a_batch(steps: list[int], batch_size: int) -> None:
    method = {"name": "lora", "batch_size": batch_size, "lr": 0.01}
    found = tune(method, DIGITS, backbone="tiny", tasks=2, budget=20)
    assert {*steps} == {20} == {found.record["steps"]}
    assert found.chosen["epochs"] == 20 / (20 / batch_size) and found.chosen["batch_size"] == batch_size


def test_settings_that_are_given_stay_and_those_of_the_recipe_too() -> None:
    found = tune({"name": "klda", "rff": 32}, DIGITS, backbone="tiny", tasks=1, recipe="papers")
    assert found.chosen == {"name": "klda", "rff": 32, "members": 1, "gamma": found.chosen["gamma"]}


def test_a_trial_that_diverges_is_recorded_and_the_search_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Finetune.loss

    def diverging(self: Any, batch: Examples) -> torch.Tensor:
        return loss(self, batch) * (float("inf") if self.head_lr >= 0.1 else 1)

    monkeypatch.setattr(Finetune, "loss", diverging)
    found = tune(ONLY_HEAD_RATE, toy_stream(tasks=2, per_class=5), backbone="tiny", tasks=1)
    failed = {trial["settings"]["head_lr"] for trial in found.trials if trial["score"] is None}
    assert failed == {0.1, 0.3} and found.chosen["head_lr"] < 0.1 and found.default_score is None
    assert all("the loss is inf" in trial["error"] for trial in found.trials if trial["score"] is None)

    monkeypatch.setattr(Finetune, "loss", lambda self, batch: loss(self, batch) * float("nan"))
    with pytest.raises(EverlearnError, match="no trial finished, so that there is nothing to choose from: the loss is"):
        tune(ONLY_HEAD_RATE, toy_stream(tasks=2, per_class=5), backbone="tiny", tasks=1)


def test_a_search_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    stream = {**DIGITS, "max_train_per_class": 6}
    method = {"name": "finetune", "lr": 0.001}
    whole = tune(method, stream, backbone="tiny", tasks=2, budget=4, out=tmp_path / "whole")
    needed, stepped = len(steps), Session.stepped
    steps.clear()

    def stopping(self: Session, learning: Learning) -> None:
        self.stop.asked = len(steps) == 3 and learning.step == 2  # inside the second task of the second trial
        stepped(self, learning)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "stepped", stopping)
        with pytest.raises(Interrupted) as stopped:
            tune(method, stream, backbone="tiny", tasks=2, budget=4, out=tmp_path / "out")
    assert str(stopped.value) == (
        "stopped, 1 of at most 12 trials are finished; go on with: everlearn tune finetune --stream digits "
        "--stream.tasks 5 --stream.max_train_per_class 6 --stream.max_test_per_class 4 --method.lr 0.001 "
        f"--backbone tiny --tasks 2 --budget 4 --out {tmp_path / 'out'}"
    )
    assert len(json.loads((tmp_path / "out" / "tune.json").read_text())["trials"]) == 1
    again = tune(method, stream, backbone="tiny", tasks=2, budget=4, out=tmp_path / "out")
    assert len(steps) == needed  # nothing was learned twice
    told = [[{**trial, "seconds": 0} for trial in found.trials] for found in (whole, again)]
    assert told[0] == told[1] and whole.chosen == again.chosen

    with pytest.raises(EverlearnError, match="holds a search with another seed: give another folder"):
        tune(method, stream, backbone="tiny", tasks=2, budget=4, out=tmp_path / "out", seed=1)
    with pytest.raises(EverlearnError, match="holds a search on other data"):
        tune(method, stream, backbone="tiny", tasks=1, budget=4, out=tmp_path / "out")


# -- the command -----------------------------------------------------------------------------------
def test_the_command_prints_the_trials_and_writes_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["tune", "klda", *ON_DIGITS, "--method.rff", "64", "--tasks", "2", "--out", "trials"]
    assert main([*command, "--write", "klda.yaml"]) == 0
    told = capsys.readouterr()
    assert "klda on digits, the first 2 tasks" in told.out and "the method's own values have" in told.out
    assert "Trial " not in told.err  # no line of Optuna's log
    lines = Path("klda.yaml").read_text().splitlines()
    assert lines[0] == (
        "# everlearn run --stream digits --method klda --stream.tasks 5 --stream.max_train_per_class 10 "
        "--stream.max_test_per_class 4 --backbone tiny --recipe klda.yaml"
    )
    assert lines[1] == (
        "# Chosen by: everlearn tune klda --stream digits --stream.tasks 5 --stream.max_train_per_class 10 "
        "--stream.max_test_per_class 4 --method.rff 64 --backbone tiny --tasks 2"
    )
    assert lines[2].startswith("# Final accuracy on validation examples of the first 2 tasks: 0.")
    chosen = build_config({"method": {"name": "klda"}}, recipe="klda.yaml")[0]["method"]
    assert chosen["rff"] == 64 and chosen["gamma"] > 0
    kept = yaml.safe_load(Path("klda.yaml").read_text())["tuning"]
    assert kept["score"] == max(trial["score"] for trial in kept["trials"]) and len(kept["trials"]) > 4

    assert main([*command, "--json"]) == 0  # nothing is learned again
    record = json.loads(capsys.readouterr().out)
    assert record["chosen"] == chosen and record == json.loads(Path("trials/tune.json").read_text())


def test_the_commands_that_are_printed_can_be_repeated_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from everlearn.tune_command import first_line

    record = {"method": {"name": "klda"}, "stream": "my data.csv", "backbone": "tiny", "backbone_of_recipe": False,
              "stream_settings": {"tasks": "2"}}  # fmt: skip
    line = first_line(Tuning(record, None), Path("my recipes/k x.yaml"))
    assert line == ("# everlearn run --stream 'my data.csv' --method klda --stream.tasks 2 --backbone tiny "
                    "--recipe 'my recipes/k x.yaml'")  # fmt: skip
    named = {**record, "backbone_of_recipe": True}  # then the recipe names it
    assert "--backbone" not in first_line(Tuning(named, None), Path("klda.yaml"))

    def stop(*_: object, **__: object) -> None:
        raise Interrupted("stopped; go on with: everlearn tune klda --out 't 3'")

    monkeypatch.setattr("everlearn.tuning.tune", stop)
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "klda", *ON_DIGITS, "--out", "t 3", "--write", "k 8.yaml"]) == 130
    assert capsys.readouterr().err.endswith("everlearn tune klda --out 't 3' --write 'k 8.yaml'\n")


def test_a_recipe_in_a_collection_is_headed_as_its_tests_want(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everlearn import config, tune_command
    from everlearn.tuning import Tuning

    found = Tuning({"method": {"name": "ewc"}, "stream": "clinc150"}, None)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "everlearn" / "config.py"))
    for collection, first in (
        ("clinc150", "# everlearn run --stream clinc150 --method ewc"),
        ("images", "# everlearn run --stream STREAM --method ewc --recipe images"),
    ):
        (tmp_path / "recipes" / collection).mkdir(parents=True)
        assert tune_command.first_line(found, tmp_path / "recipes" / collection / "ewc.yaml") == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ewcc"], "did you mean 'ewc'?"),
        (["simplecil"], "method 'simplecil' has nothing to tune: with these settings it trains nothing"),
        (["ranpac", "--method.first_session", "false"], "method 'ranpac' has nothing to tune"),
        (
            ["finetune", "--method.lr", "1", "--method.head_lr", "1"],
            "searched settings are given (lr, head_lr)",
        ),
        (["klda", "--method.gamma", "1"], "all of its searched settings are given (gamma): leave one out"),
        (["finetune", "--budget", "0"], "budget: 0 is out of range"),
        (["finetune", "--budget", "9", "--method.epochs", "2"], "leave one of them out"),
        (["finetune", "--budget", "9", "--stream.kind", "online"], "an online stream shows each example once"),
        (["finetune", "--write", "recipe.txt"], "give a file that ends in .yaml"),
        (["finetune", "--write", "no/recipe.yaml"], "its folder does not exist"),
        (["finetune", "--write", "other.yaml"], "the file holds no recipe of finetune"),
        (["finetune", "--stream.tuning", "2"], "--tasks"),
        (["finetune", "--tasks", "2", "--tasks", "3"], "--tasks is given twice"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text("method: {name: er}\n")
    assert main(["tune", *words, *ON_DIGITS]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told and "\n" not in told
    assert not list(Path().glob("runs/*/*/results.json"))


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EverlearnError, match=r"pip install 'everlearn\[tune\]'"):
        tune("klda", DIGITS, backbone="tiny")


def test_a_failed_trial_takes_one_line_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    error = "the loss is nan at a batch with the records a1, a2…: lower the learning rate (--method.lr) or look"
    trials = [{"settings": {"lr": lr}, "score": score, "error": error if score is None else None, "seconds": None}
              for lr, score in ((0.1, None), (0.01, 0.5))]  # fmt: skip
    trials_table({"method": {"name": "esn"}, "stream": "digits", "tasks": 2, "steps": 21, "metric": "accuracy",
                  "grid": {"lr": [0.01, 0.1]}, "trials": trials, "chosen": {"name": "esn", "lr": 0.01}, "score": 0.5,
                  "default": {"lr": 0.1}, "default_score": None})  # fmt: skip
    told = capsys.readouterr().out
    assert [line.split()[:3] for line in told.splitlines()[3:5]] == [["0.01", "50.0", "-"], ["0.1", "-", "-"]]
    assert "the method's own, failed: the loss is nan" in told and "the method's own values failed" in told
