"""Next month's data: a finished run learns it as a new version, says what changed, and can go back."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import everlearn
from everlearn import calibration, checkpoint, versions
from everlearn.cli import main
from everlearn.errors import DataError, EverlearnError
from everlearn.held_out import HeldOut
from everlearn.interrupts import Interrupted
from everlearn.listeners import Bar
from everlearn.locks import Busy, alone
from everlearn.model import update
from everlearn.protocol import run
from everlearn.streams import Record
from everlearn.testing.toy import toy_stream, toy_text

METHOD = {"name": "klda", "rff": 100}


def rows(label: int, count: int, seed: int = 7) -> list[tuple[str, str]]:
    import random

    draw = random.Random(seed)
    return [(f"{toy_text(label, draw)} {seed}{n}", f"class {label}") for n in range(count)]


def write(file: Path, lines: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> Path:
    with open(file, "w", newline="") as opened:
        csv.writer(opened).writerows([header, *lines])
    return file


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    data = write(folder.parent / "tickets.csv", [line for label in range(4) for line in rows(label, 20, label)],
                 ("message", "intent"))  # fmt: skip
    stream = {"name": str(data), "text_column": "message", "label_column": "intent", "tasks": 2}
    run(METHOD, stream, backbone="tiny", out=folder)
    return folder


@pytest.fixture
def folder(learned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learned, tmp_path / "run"))


def kept(folder: Path) -> HeldOut:
    return HeldOut.load(versions.load(folder)[1].held_out, classes=1000)


def test_an_update_learns_new_classes_and_says_what_old_and_new_score(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = write(tmp_path / "may.csv", rows(4, 20) + rows(1, 10), ("message", "intent"))  # the columns are remembered
    before = everlearn.load(folder)
    assert main(["update", str(folder), "--data", str(new), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["version"], record["previous"], record["new_classes"]) == (2, 1, ["class 4"])
    assert (record["learned"], record["held_out"], record["data"]) == (24, 6, str(new))  # a fifth is held out
    assert record["old"]["examples"] == 16 and record["new"]["examples"] == 6
    assert record["new"]["before"] <= 2 / 6 < record["new"]["after"] and record["old"]["after"] > 0.7
    model = everlearn.load(folder)
    assert (before.version, model.version) == (1, 2)
    assert model.class_names == [*before.class_names, "class 4"]
    texts = [text for text, _ in rows(4, 20, 9)]
    assert model.predict(texts).count("class 4") > 15
    assert model.temperature == record["temperature"] != before.temperature
    assert np.allclose(model.predict_proba(texts).sum(1), 1)
    # The scores are those of the held-out examples, which are kept and were not learned.
    test = kept(folder).test.examples()
    assert len(test) == 22
    right = (calibration.scores_of(model.method, test.inputs).argmax(1) == test.labels).sum()
    assert int(right) == round(16 * record["old"]["after"] + 6 * record["new"]["after"])
    assert main(["predict", str(folder), "--input", str(new)]) == 0
    assert "class 4" in capsys.readouterr().out


def test_what_is_learned_is_what_the_engine_learns(folder: Path) -> None:
    from everlearn.engine import learn
    from everlearn.streams import task_from

    model = everlearn.load(folder)
    records = [Record(text, label) for text, label in rows(4, 10)]
    _, version = update(folder, [*records, Record(rows(4, 1, 3)[0][0], "class 4", split="test")])
    assert version.learned == 10 and version.held_out == 1  # the data's own test examples
    learn(model.method, task_from(records, model.class_names, index=2))
    now = everlearn.load(folder)
    for mine, theirs in zip(model.method.state_dict().values(), now.method.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_loaded_model_updates_itself_and_its_folder(folder: Path) -> None:
    model = everlearn.load(folder)
    other = everlearn.load(folder)
    texts, labels = zip(*rows(5, 12), strict=True)
    version = model.update(
        everlearn.streams.from_rows(list(texts) * 1 + ["x y z", "x y w"], [*labels, "class 1", "class 1"])
    )
    assert model.version == version.version == 2 and model.class_names[-1] == "class 5"
    assert version.new_classes == ["class 5"] and version.new["before"] < version.new["after"]
    assert everlearn.load(folder).predict(texts) == model.predict(texts)
    assert model.update([Record(text, label) for text, label in rows(6, 8)]).version == 3
    with pytest.raises(EverlearnError, match="is at version 3 now, and this model is version 1: load it again"):
        other.update([Record("a", "b")])
    from everlearn.engine import learn
    from everlearn.streams import task_from

    learn(model.method, task_from([Record("a", "b")], model.class_names, index=model.method.task.index + 1))
    with pytest.raises(EverlearnError, match="was taught by hand since it was loaded"):
        model.update([Record("a", "b")])


def test_rolling_back_and_updating_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [text for text, _ in rows(0, 8, 3)]
    answers = [everlearn.load(folder).predict_proba(texts)]
    for label in (4, 5):
        update(folder, [Record(text, name) for text, name in rows(label, 6)])
        answers.append(everlearn.load(folder).predict_proba(texts))
    assert main(["rollback", str(folder)]) == 0
    assert "answers as version 2 again; version 3 stays in" in capsys.readouterr().out
    assert np.array_equal(everlearn.load(folder).predict_proba(texts), answers[1])
    _, version = update(folder, [Record(text, name) for text, name in rows(6, 6)])
    assert (version.version, version.previous) == (4, 2)  # numbers are not used twice
    assert main(["versions", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["current"] == 4 and [v["previous"] for v in told["versions"]] == [1, 2, 2]
    for expected in (2, 1):
        assert versions.rollback(folder)[1] == expected
        assert np.array_equal(everlearn.load(folder).predict_proba(texts), answers[expected - 1])
    assert main(["rollback", str(folder)]) == 2
    assert "is at version 1, the run itself" in capsys.readouterr().err
    assert main(["versions", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "version 3 of" in out and "current: version 1" in out and "new classes: class 5" in out


def test_held_out_examples_are_never_learned(folder: Path) -> None:
    test = kept(folder).test.examples()
    _, version = update(folder, [Record(test.inputs[0], "class 0"), *(Record(t, n) for t, n in rows(4, 5))])
    assert version.learned == 4 and "1 example was not learned, because it is held out" in version.notes[0]
    again = kept(folder).test.examples()
    assert set(test.inputs) < set(again.inputs) and len(again) == 17
    with pytest.raises(DataError, match="every example is a held-out one"):
        update(folder, [Record(item, "class 0") for item in again.inputs[:2]])


def test_what_a_trained_method_is_calibrated_on_is_not_learned_later(tmp_path: Path) -> None:
    lines = [(text, name, split) for label in range(2) for split, seed in (("train", 1), ("validation", 2), ("test", 3))
             for text, name in rows(label, 6, seed)]  # fmt: skip
    stream = everlearn.streams.from_rows(*zip(*((t, n) for t, n, _ in lines), strict=True),
                                         splits=[split for *_, split in lines])  # fmt: skip
    run({"name": "er", "epochs": 1}, stream, backbone="tiny", out=tmp_path / "run")
    examples = kept(tmp_path / "run").calibration.examples()
    assert len(examples) == 2
    new = [(text, "class 0") for text in examples.inputs] + rows(0, 5, 9)
    _, version = update(tmp_path / "run", [*(Record(text, name) for text, name in new),
                                           Record("word0x0 word0x1", "class 0", split="test")])  # fmt: skip
    assert version.learned == 5 and "2 examples were not learned" in version.notes[-1]


def test_the_same_test_file_with_every_update_counts_once(folder: Path, tmp_path: Path) -> None:
    tests = write(tmp_path / "tests.csv", rows(0, 6, 50), ("message", "intent"))
    counts = []
    for label in (4, 5):
        _, version = update(folder, [Record(text, name) for text, name in rows(label, 1)], test=tests)
        counts.append((version.old["examples"], version.new["examples"], len(kept(folder).test)))
    assert counts == [(16, 6, 22), (22, 6, 22)]


def test_an_update_that_stops_does_not_look_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(method: object, task: object, bar: Bar) -> None:
        bar.show(1, 9, "loss 0.1")
        raise KeyboardInterrupt

    monkeypatch.setattr("everlearn.update.learn", stop)
    with pytest.raises(Interrupted):
        update(folder, [Record(text, name) for text, name in rows(4, 5)], progress=True)
    assert "loss 0.1" not in capsys.readouterr().err  # which is the line of a bar that has come to its end


@pytest.mark.parametrize("name, label", [("", "garden"), ("may", "a\nb"), ("may", ""), ("may", "x" * 20_000)])
def test_names_that_could_not_be_read_again_are_refused(name: str, label: str, folder: Path) -> None:
    stream = everlearn.streams.from_rows(["tea", "milk", "juice"], ["drink"] * 3)
    stream = replace(stream, name=name, tasks=tuple(replace(task, class_names=(label,)) for task in stream))
    with pytest.raises(EverlearnError, match="what is saved under it could not be read again: rename it"):
        update(folder, stream)
    assert everlearn.load(folder).version == 1


@pytest.mark.parametrize("name", ["joint", "er", "ewc", "lwf", "l2p", "task_adapters", "lora", "slca"])
def test_methods_that_train_update_too(name: str, tmp_path: Path) -> None:
    settings = {"epochs": 1}
    stream = toy_stream(tasks=2)
    run({"name": name, **settings}, stream, backbone="tiny", out=tmp_path / "run")
    model, version = update(tmp_path / "run", [Record(text, "class 4") for text, _ in rows(4, 30)])
    assert model.class_names[-1] == "class 4" and (version.learned, version.calibration) == (24, 0)
    again = everlearn.load(tmp_path / "run")
    texts = [text for text, _ in rows(4, 5, 1)]
    assert np.array_equal(again.predict_proba(texts), model.predict_proba(texts))
    if name == "joint":  # its memory is in the version, so it learns on old data as well
        assert len(again.method.memory) == len(model.method.memory) > 23 + 40


def test_more_of_the_old_and_a_new_domain_bring_no_class(folder: Path) -> None:
    _, version = update(folder, [Record(f"{text} elsewhere", name) for text, name in rows(1, 10) + rows(2, 10)])
    assert version.new_classes == [] and version.learned == 16
    assert len(everlearn.load(folder).class_names) == 4
    _, version = update(folder, [Record("one corrected text", "class 3")])  # a single example is not held out
    assert (version.learned, version.held_out, version.new) == (1, 0, {"examples": 0, "before": None, "after": None})


def test_nothing_is_kept_where_nothing_should_be(tmp_path: Path) -> None:
    data = write(tmp_path / "a.csv", [line for label in range(4) for line in rows(label, 20, label)])
    out, new = tmp_path / "run", write(tmp_path / "b.csv", rows(4, 20))
    assert main(["run", "--stream", str(data), "--method", "simplecil", "--backbone", "tiny", "--out", str(out),
                 "--keep", "none"]) == 0  # fmt: skip
    assert "held-out examples" not in json.loads((out / "results.json").read_text())["stored"]
    before = everlearn.load(out).temperature
    _, version = update(out, new)
    assert version.old == {"examples": 0, "before": None, "after": None} and version.new["after"] > 0.5
    assert version.temperature == before  # it would be fitted on the new class alone
    for file in out.rglob("*"):
        assert not file.is_file() or rows(1, 1, 1)[0][0].encode() not in file.read_bytes(), file
        assert not file.is_file() or rows(4, 1)[0][0].encode() not in file.read_bytes(), file
    assert main(["update", str(out), "--data", str(new), "--keep", "20"]) == 0
    assert len(kept(out).test) == 4
    assert main(["update", str(out), "--data", str(new), "--keep", "none"]) == 0
    assert len(kept(out).test) == 0


def test_an_update_that_keeps_nothing_is_calibrated_by_what_was_kept_before(folder: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "b.csv", rows(4, 20))
    _, without = update(folder, new, keep=0, text_column="text", label_column="label")
    versions.rollback(folder)
    _, kept_too = update(folder, new, text_column="text", label_column="label")
    assert without.temperature == kept_too.temperature is not None


def test_kept_examples_are_bounded_and_counted(tmp_path: Path) -> None:
    result = run(METHOD, toy_stream(), backbone="tiny", out=tmp_path / "run", keep=10)
    held = kept(tmp_path / "run")
    assert (len(held.test), len(held.calibration)) == (10, 10)
    assert result.stored["held-out examples"] == held.stored_bytes()
    assert sorted(held.test.examples().labels.bincount().tolist()) == [1, 1, 2, 2, 2, 2]


WRONG = {
    "no such file": (["--data", "nothing.csv"], "nothing.csv: no such file"),
    "a folder without rows": (["--data", "empty.csv"], "empty.csv: the file is empty"),
    "no label": (["--data", "unlabelled.csv"], "no column 'intent'"),
    "an empty row": (["--data", "hole.csv"], "hole.csv, line 3"),
    "an unknown setting": (
        ["--data", "good.csv", "--stream.tasks", "2"],
        "unknown setting of an update '--stream.tasks'",
    ),
    "a column that is not there": (["--data", "good.csv", "--stream.text_column", "words"], "no column 'words'"),
    "no number": (["--data", "good.csv", "--keep", "some"], "--keep some is neither a number of examples nor none"),
    "images": (["--data", "pictures"], "holds images, but the model learned texts"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_that_cannot_be_learned_is_refused_in_one_line(case: str, folder: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    header = ("message", "intent")
    write(Path("good.csv"), rows(4, 4), header)
    write(Path("hole.csv"), [*rows(4, 1), ("", "class 4"), *rows(4, 3)], header)
    write(Path("unlabelled.csv"), rows(4, 4), ("message", "x"))
    Path("empty.csv").touch()
    for k in range(2):
        Path(f"pictures/{k}").mkdir(parents=True)
        Path(f"pictures/{k}/a.png").write_bytes(toy_stream("image").tasks[0].train.inputs[16 * k])
    options, message = WRONG[case]
    assert main(["update", str(folder), *options]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (folder / "versions").exists() and versions.current(folder) == 1
    if case == "an empty row":
        assert main(["update", str(folder), *options, "--stream.skip_bad_rows", "true"]) == 0
        assert "left out 1 bad row" in capsys.readouterr().out


def test_runs_that_cannot_be_updated_say_so(tmp_path: Path) -> None:
    run("simplecil", toy_stream(), backbone="tiny", out=tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(EverlearnError, match="has not learned all its tasks yet: run `everlearn resume"):
        update(tmp_path / "run", [Record("a", "b")])
    with pytest.raises(DataError, match="row 0 is a tuple, not a record"):
        update(shutil.copytree(_finished(tmp_path), tmp_path / "copy"), [("a", "b")])  # type: ignore[list-item]


def _finished(tmp_path: Path) -> Path:
    run("simplecil", toy_stream(), backbone="tiny", out=tmp_path / "finished")
    return tmp_path / "finished"


def test_two_updates_at_once_and_links_are_refused(folder: Path, tmp_path: Path) -> None:
    with alone(folder), pytest.raises(Busy, match="another process is learning or updating in"):
        update(folder, [Record("a", "b")])
    with alone(folder), pytest.raises(Busy):
        versions.rollback(folder)
    (tmp_path / "elsewhere").mkdir()
    (folder / "versions").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EverlearnError, match="is a link"):
        update(folder, [Record("a", "b")])
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("moment", ["learning", "writing", "writing the pointer"])
def test_an_update_that_fails_leaves_the_version_before(moment: str, folder: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    where = {"learning": "everlearn.update.learn", "writing": "everlearn.checkpoint.replace_folder",
             "writing the pointer": "everlearn.versions.write_whole"}[moment]  # fmt: skip
    texts = [text for text, _ in rows(1, 5)]
    expected = everlearn.load(folder).predict_proba(texts)
    model = everlearn.load(folder)
    with monkeypatch.context() as patched:
        patched.setattr(where, stop)
        with pytest.raises(Interrupted, match="is still at version 1"):
            model.update([Record(text, name) for text, name in rows(4, 5)])
    assert np.array_equal(everlearn.load(folder).predict_proba(texts), expected)
    assert np.array_equal(model.predict_proba(texts), expected)  # the model in memory too
    assert model.update([Record(text, name) for text, name in rows(4, 5)]).previous == 1


def test_a_killed_update_leaves_a_whole_version(folder: Path, tmp_path: Path) -> None:
    """SIGKILL at many moments: the folder always answers, as the old version or as the new one."""
    new = write(tmp_path / "may.csv", rows(4, 10), ("message", "intent"))
    program = (
        "import os, sys, threading, time\n"
        "from everlearn import checkpoint, versions\n"
        "from everlearn.model import update\n"
        "save, delay = checkpoint.save, float(sys.argv[3])\n"
        "def slow(*a, **k):\n"
        "    threading.Timer(delay, lambda: os.kill(os.getpid(), 9)).start()\n"
        "    save(*a, **k)\n"
        "checkpoint.save = slow\n"
        "update(sys.argv[1], sys.argv[2])\n"
        "time.sleep(5)\n"
    )
    texts = [text for text, _ in rows(1, 5)]
    for delay in (0.0, 0.004):
        ended = subprocess.run([sys.executable, "-c", program, str(folder), str(new), str(delay)], timeout=120,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        assert ended.returncode == -signal.SIGKILL
        model = everlearn.load(folder)
        assert len(model.class_names) == (4 if model.version == 1 else 5)
        assert len(model.predict(texts)) == 5
    started = time.monotonic()
    _, version = update(folder, new)
    assert version.version == versions.current(folder) and time.monotonic() - started < 60
    assert not [path for path in (folder / "versions").iterdir() if path.name.startswith(".version")]


DAMAGE = {
    "current.json is no JSON": ("current.json", b"{", "current.json"),
    "current.json names no version": ("current.json", b'{"version": 9}', "names version 9, which is not there"),
    "current.json holds more": (
        "current.json",
        b'{"version": 1, "x": 1}',
        "is not what this version of everlearn writes",
    ),
    "held-out examples are damaged": ("version-0002/held_out.safetensors", b"", "held_out.safetensors"),
    "the record is altered": ("version-0002/state.json", None, "SHA-256"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_versions_are_refused(case: str, folder: Path) -> None:
    update(folder, [Record(text, name) for text, name in rows(4, 5)])
    name, data, message = DAMAGE[case]
    file = folder / "versions" / name
    file.write_bytes(file.read_bytes().replace(b'"learned": 4', b'"learned": 5') if data is None else data)
    with pytest.raises(EverlearnError, match=message):
        everlearn.load(folder)


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_version_without_its_record_says_what_helps_and_that_helps(
    damage: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    update(folder, [Record(text, name) for text, name in rows(4, 5)])
    file = folder / "versions" / "version-0002" / "state.json"
    file.write_bytes(file.read_bytes()[:500]) if damage == "truncated" else file.unlink()
    assert main(["rollback", str(folder)]) == 2  # it cannot know the version before, so that it must not advise itself
    told = capsys.readouterr().err
    assert f"put the file back, or remove {file.parent}" in told and "everlearn rollback" not in told
    shutil.rmtree(file.parent)
    with pytest.raises(EverlearnError, match="names version 2, which is not there: remove it to go back to version 1"):
        everlearn.load(folder)
    (folder / "versions" / "current.json").unlink()
    assert everlearn.load(folder).version == 1


def test_the_remedy_for_a_pointer_can_be_followed_to_the_letter(folder: Path) -> None:
    update(folder, [Record(text, name) for text, name in rows(4, 5)])
    pointer = folder / "versions" / "current.json"
    pointer.write_text("2")
    with pytest.raises(EverlearnError) as refused:
        everlearn.load(folder)
    assert 'write {"version": 2} into it (versions: 1, 2)' in str(refused.value)
    pointer.write_text('{"version": 2}')
    assert everlearn.load(folder).version == 2


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_nothing_goes_back_to_a_run_that_cannot_answer(damage: str, folder: Path) -> None:
    update(folder, [Record(text, name) for text, name in rows(4, 5)])
    place = next((folder / "checkpoints").iterdir())
    file = place / "method.safetensors"
    file.write_bytes(file.read_bytes()[:500]) if damage == "truncated" else shutil.rmtree(place)
    # The run is finished, so that resume would change nothing and there is no checkpoint before this one.
    with pytest.raises(EverlearnError, match=r"put (the file|it) back, or learn the run again in a new folder"):
        versions.rollback(folder)
    assert everlearn.load(folder).version == 2


def test_going_back_over_a_version_that_is_gone(folder: Path) -> None:
    for label in (4, 5):
        update(folder, [Record(text, name) for text, name in rows(label, 5)])
    shutil.rmtree(folder / "versions" / "version-0002")
    with pytest.raises(EverlearnError, match=r'put its folder back, or write \{"version": 1\} into .*current.json'):
        versions.rollback(folder)
    (folder / "versions" / "current.json").write_text('{"version": 1}')
    assert everlearn.load(folder).version == 1


def test_commands_in_messages_can_be_pasted(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "our model"
    folder.rename(place)
    update(place, [Record(text, name) for text, name in rows(4, 5)])
    (place / "versions" / "version-0002" / "method.safetensors").write_bytes(b"")
    with pytest.raises(EverlearnError, match=f"`everlearn rollback '{place}'` returns"):
        everlearn.load(place)
    (place / "results.json").unlink()
    with pytest.raises(EverlearnError, match=f"run `everlearn resume '{place}'` first"):
        update(place, [Record("a", "b")])


def test_held_out_examples_with_wrong_labels_are_refused(folder: Path) -> None:
    number, saved = versions.load(folder)
    assert number == 1
    held = HeldOut.load(saved.held_out, classes=4)
    held.test._held.labels[:] = 40
    name = checkpoint.newest(folder / "checkpoints")
    assert name
    saved.state.pop("files")
    saved.state.pop("format")
    checkpoint.save(
        folder / "checkpoints", name, checkpoint.Checkpoint(saved.state, saved.method, {}, held.state_dict())
    )
    with pytest.raises(EverlearnError, match="held-out examples"):
        update(folder, [Record("a", "b")])


def test_a_run_of_an_earlier_everlearn_can_be_updated(folder: Path) -> None:
    """Its checkpoint, of format 3, holds no held-out examples and no temperature."""
    place = next((folder / "checkpoints").iterdir())
    state = checkpoint.load(folder / "checkpoints", place.name).state
    del state["files"]["held_out.safetensors"], state["temperature"]
    (place / "held_out.safetensors").unlink()
    state["format"] = 3
    (place / "state.json").write_text(json.dumps({"sha256": checkpoint._json_sha256(state), **state}))
    assert everlearn.load(folder).temperature is None
    _, version = update(folder, [Record(text, name) for text, name in rows(4, 6)])
    assert version.old["examples"] == 0 and version.temperature is None and version.new["after"] is not None


def test_images_are_updated_from_a_folder(tmp_path: Path) -> None:
    stream = toy_stream("image")
    run("simplecil", stream, backbone="tiny", out=tmp_path / "run")
    for n, image in enumerate(toy_stream("image", seed=3)[1].train.inputs[:10]):
        (tmp_path / "new" / "robot").mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / "robot" / f"{n}.png").write_bytes(image)
    _, version = update(tmp_path / "run", tmp_path / "new")
    assert version.new_classes == ["robot"] and version.learned == 8
    assert kept(tmp_path / "run").test.examples().inputs[-1].startswith(b"\x89PNG")  # the content, not a path
