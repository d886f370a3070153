"""Forgetting events: what a run keeps of its training, what the command says, and which examples a memory keeps."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import everlearn
from everlearn import backbones, methods
from everlearn.cli import main
from everlearn.engine import Learning, learn
from everlearn.errors import EverlearnError
from everlearn.events_command import _shown
from everlearn.interrupts import Interrupted
from everlearn.memory.event_counts import EventCounts
from everlearn.metrics.forgetting_events import events_of, order
from everlearn.presentations import FILE, Presentations, doubtful, histories
from everlearn.schemas.logs import read_presentations
from everlearn.session import Session
from everlearn.testing.toy import toy_stream, toy_text

FINETUNE = {"name": "finetune", "epochs": 4, "batch_size": 8, "lr": 1e-3}
SMALL = {"name": "digits", "tasks": 2, "max_train_per_class": 10, "max_test_per_class": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events") / "run"
    everlearn.run(FINETUNE, SMALL, backbone="tiny", out=folder)
    return folder


def test_a_history_by_hand() -> None:
    history = [False, True, True, False, False, True, False, True]
    events = events_of(history)
    assert (events.presented, events.learned, events.forgotten, events.right) == (8, 1, 2, True)
    assert events_of([True]).is_never_forgotten and not events_of([False]).is_never_forgotten
    histories = [[True] * 4, [False] * 4, [True, False, True, True], [False, True, False, True], [False, True] * 2]
    assert order(list(map(events_of, histories))) == [1, 3, 4, 2, 0]


def test_counts_agree_with_the_definition_and_survive_a_checkpoint() -> None:
    draw = np.random.default_rng(0)
    right = draw.random((20, 15)) < 0.5
    right[:, 3] = False
    ids = [f"example {n}\n" for n in range(15)]
    counts = EventCounts()
    for row in right[:11]:
        counts.record(ids, row.tolist())
    loaded = EventCounts()
    loaded.load_state_dict(counts.state_dict())
    for row in right[11:]:
        loaded.record(ids, row.tolist())
    expected = [events_of(column.tolist()) for column in right.T]
    wanted = [EventCounts.NEVER_LEARNED if one.learned is None else one.forgotten for one in expected]
    assert loaded.forgotten(ids).tolist() == wanted


@pytest.mark.parametrize("goal", ["classes", "ranking"])
def test_what_is_presented_is_what_was_answered(goal: str, tmp_path: Path) -> None:
    """The answers that are kept are those that the model gives when it is asked, just before the step."""
    stream = toy_stream(goal=goal)
    method = methods.get("finetune")(backbones.load("tiny"), epochs=2, batch_size=8, lr=1e-3)
    asked: list[tuple[list[str], list[int]]] = []
    step = method.step

    def watched(batch, optimizer_step):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            if goal == "classes":
                answers = method.scores(batch.inputs).argmax(1)
            else:
                queries, documents = (
                    torch.nn.functional.normalize(method.features(texts, role))
                    for texts, role in ((batch.inputs, "query"), (batch.positives, "document"))
                )
                answers = (queries @ documents.T).argmax(1)
                same = [batch.positives[answer] == own for answer, own in zip(answers, batch.positives, strict=True)]
                answers = torch.arange(len(batch)).where(torch.tensor(same), answers)  # a copy is as good
        asked.append((list(batch.ids), answers.tolist()))
        return step(batch, optimizer_step)

    method.step = watched
    learn(method, stream[0], Presentations(tmp_path, method))
    lines = read_presentations(tmp_path / FILE)
    assert [(line["ids"], line["answers"]) for line in lines] == asked
    assert method.presented is None


def test_every_example_is_presented_once_an_epoch_and_replays_too(tmp_path: Path) -> None:
    stream = toy_stream()
    settings = {"name": "er", "epochs": 3, "memory_size": 10, "batch_size": 8, "replay_batch_size": 4}
    everlearn.run(settings, stream, backbone="tiny", out=tmp_path / "run")
    found = {one.id: one.events.presented for one in histories(tmp_path / "run")}
    assert set(found) == {id for task in stream for id in task.train.ids}
    assert all(found[id] == 3 for id in stream.tasks[-1].train.ids)
    replays = sum(found.values()) - 3 * len(found)
    steps = [len(task.train) // 8 * 3 for task in stream]
    assert replays == 4 * sum(steps[1:])


def test_methods_whose_loss_is_their_own_tell_their_answers_too(tmp_path: Path) -> None:
    for name, settings in {"l2p": {}, "aper": {}, "task_adapters": {}, "lwf": {}, "ranpac": {"train": "ssf"}}.items():
        everlearn.run({"name": name, "epochs": 2, **settings}, toy_stream(), backbone="tiny", out=tmp_path / name)
        assert histories(tmp_path / name)[0].events.presented == 2


def test_a_resumed_run_keeps_the_same_presentations(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    everlearn.run(FINETUNE, SMALL, backbone="tiny", out=folder, save_steps=3)
    whole = (folder / FILE).read_text()
    assert whole == (run / FILE).read_text()
    for name in ("results.json", "report.html"):
        (folder / name).unlink()
    with open(folder / FILE, "a") as opened:
        opened.write('{"task": 7, "step": 1, "ids": ["x"], "labels": [0], "answers": [1]}\n{"task": 8, "st')
    everlearn.resume(folder)
    assert (folder / FILE).read_text() == whole


def test_a_run_that_was_stopped_inside_a_task_keeps_the_same_presentations(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = Session.stepped

    def stopping(self: Session, learning: Learning) -> None:
        self.stop.asked = (learning.task.index, learning.step) == (1, 3)
        stepped(self, learning)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(Session, "stepped", stopping)
        everlearn.run(FINETUNE, SMALL, backbone="tiny", out=tmp_path / "run")
    whole, until_then = ((folder / FILE).read_text() for folder in (run, tmp_path / "run"))
    assert whole.startswith(until_then) and 0 < len(until_then) < len(whole)
    everlearn.resume(tmp_path / "run")
    assert (tmp_path / "run" / FILE).read_text() == whole


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", str(run), "--never-forgotten", str(tmp_path / "kept.txt"), "--top", "3"]) == 0
    told = capsys.readouterr().out
    assert "100 examples were trained on, in 400 presentations" in told
    assert main(["events", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trained_on"] == len(found["examples"]) == 100
    assert found["never_learned"] + found["never_forgotten"] + sum(
        one["learned"] is not None and one["forgotten"] > 0 for one in found["examples"]) == 100  # fmt: skip
    ids = (tmp_path / "kept.txt").read_text().splitlines()
    assert len(ids) == found["never_forgotten"]
    kept = ["events", str(run), "--never-forgotten"]
    for file, message in ((run / "results.json", "exists already"), (tmp_path / "no" / "f.txt", "does not exist")):
        before = file.read_bytes() if file.exists() else None
        assert main([*kept, str(file)]) == 2 and message in capsys.readouterr().err
        assert (file.read_bytes() if file.exists() else None) == before
    assert main([*kept, str(tmp_path / "kept.txt"), "--overwrite"]) == 0
    assert set(ids) == {one["id"] for one in found["examples"] if one["learned"] is not None and not one["forgotten"]}


@pytest.mark.parametrize(("text", "label", "shown"), [
    ("a cup", "drink", "7: a cup, drink"), (None, "drink", "7, drink"), ("a cup", None, "a cup"), (None, None, "7"),
])  # fmt: skip
def test_an_example_is_listed_with_its_label(text: str | None, label: str | None, shown: str) -> None:
    """Images have no text, and pairs of a query and a document no label."""
    assert _shown({"id": "7", "text": text, "label": label}) == shown


def test_wrong_labels_come_first(tmp_path: Path) -> None:
    """Of 150 texts 10 have the label of another class."""
    draw = random.Random(0)
    texts = [(toy_text(label, draw) + f" {n}", label) for n in range(50) for label in range(3)]
    flipped = set(range(0, 150, 15))
    labels = [str((label + 1) % 3 if n in flipped else label) for n, (_, label) in enumerate(texts)]
    with open(tmp_path / "texts.csv", "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("id", "text", "label"))
        writer.writerows((n, text, labels[n]) for n, (text, _) in enumerate(texts))
    stream = {"name": str(tmp_path / "texts.csv"), "tasks": 1}
    everlearn.run({**FINETUNE, "epochs": 6, "head_lr": 0.01}, stream, backbone="tiny", out=tmp_path / "run")
    first = [int(one.id) for one in doubtful(histories(tmp_path / "run"))[:6]]
    assert len(flipped & set(first)) >= 4  # chance: 0.4


def test_rows_that_have_moved_are_not_shown_as_what_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(0)
    lines = [f"{toy_text(label, draw)} {n},{label}" for n in range(10) for label in range(2)]
    data = tmp_path / "texts.csv"
    data.write_text("\n".join(["text,label", *lines]))
    everlearn.run(FINETUNE, {"name": str(data), "tasks": 1}, backbone="tiny", out=tmp_path / "run")
    assert main(["events", str(tmp_path / "run"), "--json"]) == 0
    assert all(one["text"] for one in json.loads(capsys.readouterr().out)["examples"])
    data.write_text("\n".join(["text,label", "a row that came later,0", *lines]))  # line 3 is now what was line 2
    assert main(["events", str(tmp_path / "run"), "--json"]) == 0
    assert not any(one["text"] for one in json.loads(capsys.readouterr().out)["examples"])
    assert main(["events", str(tmp_path / "run")]) == 0
    assert "the data of the run have changed, or cannot be read any more" in capsys.readouterr().out


@pytest.mark.parametrize(("damage", "message"), [
    ("none", "presentations.jsonl is not there: the run trains nothing"),
    ('{"task": 0, "step": 1, "ids": ["a"], "labels": [], "answers": [1]}\n', "a label and an answer for every id"),
    ("nonsense\n", "broken JSON"), ("", "holds no step"), ('{"task": 0, "st', "holds no step"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_line(
    damage: str, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / FILE).unlink()
    if damage != "none":
        (folder / FILE).write_text(damage)
    assert main(["events", str(folder)]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert main(["events", str(tmp_path / "nowhere")]) == 2


def test_a_memory_keeps_the_most_forgotten_of_each_class() -> None:
    stream = toy_stream()
    er = methods.get("er")(
        backbones.load("tiny"),
        policy="most forgotten",
        memory_size=8,
        epochs=6,
        batch_size=2,
        train="head",
        head_lr=3.0,
    )
    forgotten = {}
    keep = er.keep

    def watched(task, **columns):  # type: ignore[no-untyped-def]
        assert er.events is not None
        forgotten.update(zip(task.train.ids, er.events.forgotten(task.train.ids).tolist(), strict=True))
        keep(task, **columns)

    er.keep = watched
    for task in stream.tasks[:2]:
        learn(er, task)
    kept = er.memory.examples()
    assert kept.labels.bincount().tolist() == [2, 2, 2, 2]
    for label in range(4):
        task = stream[label // 2]
        of_class = [forgotten[id] for id, own in zip(task.train.ids, task.train.labels.tolist(), strict=True)
                    if own == label]  # fmt: skip
        chosen = [forgotten[id] for id, own in zip(kept.ids, kept.labels.tolist(), strict=True) if own == label]
        assert sorted(chosen) == sorted(of_class)[-2:]
    assert len(set(forgotten.values())) > 1


def test_a_stream_without_some_examples() -> None:
    stream = toy_stream()
    out = stream[0].train.ids[:3]
    fewer = stream.without(out)
    assert len(fewer[0].train) == len(stream[0].train) - 3 and fewer[0].test.ids == stream[0].test.ids
    assert fewer.fingerprint() != stream.fingerprint()
    with pytest.raises(EverlearnError, match="stream"):
        everlearn.resume(_stopped(fewer))


def _stopped(stream: everlearn.Stream) -> Path:
    import tempfile

    folder = Path(tempfile.mkdtemp()) / "run"
    everlearn.run({"name": "finetune", "epochs": 1}, stream, backbone="tiny", out=folder)
    (folder / "results.json").unlink()
    return folder
