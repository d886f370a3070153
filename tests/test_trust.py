"""What is not ours is not trusted: run folders, checkpoints, files of results and names that come from elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from everlearn import load, run
from everlearn.cli import main
from everlearn.config import build_config
from everlearn.errors import EverlearnError, printable
from everlearn.interrupts import Interrupted
from everlearn.protocol import resume
from everlearn.run_table import final_table
from everlearn.session import Session
from everlearn.testing import toy_stream

DIGITS = {"name": "digits", "tasks": 2, "max_train_per_class": 8, "max_test_per_class": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished runs of a method with closed form and of one with a memory."""
    folder = tmp_path_factory.mktemp("runs")
    run("lda", DIGITS, backbone="tiny", out=folder / "lda")
    run({"name": "er", "memory_size": 20, "epochs": 1}, DIGITS, backbone="tiny", out=folder / "er")
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped inside its second task."""
    folder, stepped = tmp_path_factory.mktemp("stopped") / "run", Session.stepped

    def stopping(self, learning):
        self.stop.asked = learning.task.index == 1 and learning.step == 1
        stepped(self, learning)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Session, "stepped", stopping)
        with pytest.raises(Interrupted):
            run({"name": "er", "memory_size": 20, "epochs": 2}, DIGITS, backbone="tiny", out=folder)
    return folder


def copied(source, tmp_path):
    return shutil.copytree(source, tmp_path / "copy")


def refused(what, *arguments, **named):
    """The one line with which something is refused."""
    with pytest.raises(EverlearnError) as error:
        what(*arguments, **named)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1300
    return str(error.value)


# -- code ------------------------------------------------------------------------------------------
EVIL = """
import pathlib
pathlib.Path(__file__).with_name("marker").touch()
from everlearn.methods.lda import LDA
class Mine(LDA): pass
"""


@pytest.fixture
def evil(finished, tmp_path, monkeypatch):
    """A run's folder that names a class of a module that lies beside it and on the path."""
    folder = copied(finished / "lda", tmp_path)
    for place in (folder, tmp_path):
        (place / "evil_module.py").write_text(EVIL)
    text = (folder / "config.yaml").read_text().replace("name: lda", "name: evil_module:Mine")
    assert "evil_module" in text
    (folder / "config.yaml").write_text(text)
    (folder / "results.json").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    sys.modules.pop("evil_module", None)


def test_a_folder_never_has_its_code_imported(evil, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("one text\n")
    for ask in (load, resume):
        assert "--method evil_module:Mine" in refused(ask, evil)
    for command in (f"resume {evil}", f"predict {evil} --input texts.txt", f"run --config {evil / 'config.yaml'}",
                    f"run --recipe {evil / 'config.yaml'}", f"report {evil}"):  # fmt: skip
        assert main(command.split()) == 2, command
        assert capsys.readouterr().err.count("\n") == 1
    assert "evil_module" not in sys.modules and not list(tmp_path.rglob("marker"))


def test_code_is_imported_if_whoever_asks_names_it(evil, finished, tmp_path, capsys):
    assert load(evil, method="evil_module:Mine").class_names == load(finished / "lda").class_names
    mine = sys.modules["evil_module"].Mine
    assert type(load(evil, method=mine).method) is mine
    assert "holds the method evil_module:Mine, not lda" in refused(load, evil, method="lda")
    assert main(["resume", str(evil), "--method", "evil_module:Mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "evil_module:Mine"


def test_options_and_file_must_name_the_same_code(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("method: {name: 'no_such_module:Mine'}")
    assert "no_such_module:Mine, which is code outside" in refused(build_config, {}, file=file)
    config, _ = build_config({"method": "no_such_module:Mine"}, file=file)
    assert config["method"] == {"name": "no_such_module:Mine"}


def test_the_working_directory_joins_the_path_for_a_named_class_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    assert main(["list", "streams"]) == 0 and main(["compare", "--methods", "family:none"]) == 2
    assert str(tmp_path) not in sys.path
    assert main(["run", "--method", "no_such_module:Mine"]) == 2
    assert sys.path[-1] == str(tmp_path), "at the end, so that no file there hides a module of a library"


# -- checkpoints -----------------------------------------------------------------------------------
def newest(folder):
    return max((folder / "checkpoints").iterdir())


def rewritten(place, change, file="method.safetensors"):
    """Change the tensors of a checkpoint, and have all digests fit again."""
    tensors = load_file(place / file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / file)
    restated(place, lambda state: None)


def restated(place, change):
    state = json.loads((place / "state.json").read_text())
    del state["sha256"]
    for name in state["files"]:
        data = (place / name).read_bytes()
        state["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(state)
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (place / "state.json").write_text(json.dumps({"sha256": digest, **state}))


def put(name, make):
    return lambda tensors: tensors.__setitem__(name, make(tensors[name]))


CRAFTED = {
    "not finite": ("lda", put("head.weight", lambda t: t.fill_(torch.nan)), "head.*not finite|weight.*not finite"),
    "infinite": ("lda", put("head.sums", lambda t: t.fill_(torch.inf)), "not finite"),
    "fewer classes": ("lda", put("head.weight", lambda t: t[:, :-1]), "weight is .* expected"),
    "other width": ("lda", put("head.sums", lambda t: t[:, :-1]), "sums is .* expected"),
    "other dtype": ("lda", put("head.sums", lambda t: t.float()), "expected .* of torch.float64"),
    "missing": ("lda", lambda tensors: tensors.pop("head.counts"), "missing .*head.counts"),
    "unexpected": ("lda", lambda tensors: tensors.update(more=torch.zeros(1)), "unexpected more"),
    "another layer": ("lda", lambda tensors: tensors.update({"no.such.layer": torch.zeros(1)}), "unexpected no.such"),
    "a backbone": ("er", put("head.bias", lambda t: torch.zeros(99)), "head.bias is"),
    "column too short": ("er", put("memory.column draw", lambda t: t[:-1]), "column draw is"),
    "memory unreadable": ("er", put("memory.records", lambda t: t.flip(0)), "the memory in the checkpoint"),
    "memory cut off": ("er", put("memory.records", lambda t: t[: len(t) // 2]), "the memory in the checkpoint"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_checkpoint_is_refused_before_it_is_loaded(finished, tmp_path, case):
    name, change, said = CRAFTED[case]
    folder = copied(finished / name, tmp_path)
    rewritten(newest(folder), lambda tensors: None)
    load(folder)  # with digests that fit it is accepted as it was
    rewritten(newest(folder), change)
    with pytest.raises(EverlearnError, match=said) as error:
        load(folder)
    assert "\n" not in str(error.value)


STEPS = {
    "shorter slot": (put("optimizer.0.exp_avg", lambda t: t.flatten()[:1]), "0.exp_avg is"),
    "slot of another dtype": (put("optimizer.0.exp_avg", lambda t: t.long()), "0.exp_avg is"),
    "slot with NaN": (put("optimizer.0.exp_avg_sq", lambda t: t.fill_(torch.nan)), "not finite"),
    "missing slot": (lambda tensors: tensors.pop("optimizer.0.exp_avg"), "lacks a slot"),
    "another slot": (lambda tensors: tensors.update({"optimizer.0.more": torch.zeros(1)}), "unexpected 0.more"),
    "no such parameter": (lambda tensors: tensors.update({"optimizer.999.exp_avg": torch.zeros(1)}), "unexpected 999"),
    "random state": (put("random", lambda t: t[:10]), "the state of the training"),
    "random state of zeros": (put("random", torch.zeros_like), "the state of the training"),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_crafted_state_of_the_training_is_refused(stopped, tmp_path, case):
    change, said = STEPS[case]
    folder = copied(stopped, tmp_path)
    rewritten(newest(folder), change, "training.safetensors")
    with pytest.raises(EverlearnError, match=said) as error:
        resume(folder)
    assert "\n" not in str(error.value) and not (folder / "results.json").exists()


STATES = {
    "no rows": lambda state: state["measured"].update(rows=[]),
    "rows too short": lambda state: state["measured"]["rows"][0].update(scores=[]),
    "score of a text": lambda state: state["measured"]["rows"][0].update(scores=["1"]),
    "fewer tasks": lambda state: state.update(tasks=state["tasks"][:1]),
    "class out of range": lambda state: state["tasks"][0].update(classes=[10**9]),
    "names differ": lambda state: state["tasks"][0].update(class_names=["a", "b"]),
    "a name with an escape": lambda state: state["tasks"][-1]["class_names"].__setitem__(-1, "\x1b[2J"),
    "huge number": lambda state: state.update(step=10**30),
    "negative": lambda state: state.update(task=-1),
    "another key": lambda state: state.update(more=1),
    "schedule replaced": lambda state: state["training"]["schedule"].update(step="x"),
    "rate of a text": lambda state: state["training"]["optimizer"]["groups"][0].update(lr="fast"),
    "no groups": lambda state: state["training"]["optimizer"].update(groups=[]),
    "no training": lambda state: state.update(training={}),
}


@pytest.mark.parametrize("case", STATES)
def test_a_crafted_state_is_refused(stopped, tmp_path, case):
    folder = copied(stopped, tmp_path)
    restated(newest(folder), STATES[case])
    refused(resume, folder)
    assert not (folder / "results.json").exists()


def test_the_copies_above_are_accepted_where_nothing_was_changed(stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    rewritten(newest(folder), lambda tensors: None, "training.safetensors")
    assert len(resume(folder).accuracy_matrix) == 2


def test_weights_of_any_size_are_read_without_a_limit_and_without_a_second_copy(finished, monkeypatch):
    read = []

    def reads(file, most):
        read.append(file.name)
        return file.read_bytes()

    monkeypatch.setattr("everlearn.checkpoint.read_bytes", reads)
    assert load(finished / "lda").class_names and read == ["state.json"]


@pytest.mark.parametrize("name", ["a\nb", "a\u202eb", ""])
def test_a_name_that_could_not_be_read_again_starts_no_run(tmp_path, name):
    stream = toy_stream()
    tasks = [replace(task, class_names=(name, *task.class_names[1:])) for task in stream]
    said = refused(run, "simplecil", replace(stream, tasks=tuple(tasks)), backbone="tiny", out=tmp_path / "run")
    assert "rename it" in said and not (tmp_path / "run").exists()
    (tmp_path / "data.csv").write_text("text,label\n" + 4 * f'one text,"{name}"\n')
    assert "line 2" in refused(run, "simplecil", str(tmp_path / "data.csv"), backbone="tiny")


def test_a_model_whose_scores_are_not_finite_does_not_predict(finished, monkeypatch):
    model = load(finished / "lda")
    image = next(iter(model_inputs()))
    assert len(model.predict([image])) == 1
    monkeypatch.setattr(model.method.head, "weight", model.method.head.weight * torch.nan)
    assert "not finite" in refused(model.predict, [image])


def model_inputs():
    from everlearn import streams

    return streams.load(**DIGITS)[0].test.inputs


def test_a_resume_with_other_threads_says_that_digits_may_differ(stopped, tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        told = resume(copied(stopped, tmp_path)).warnings
    finally:
        torch.set_num_threads(threads)
    assert len(told) == 1 and "begun with torch" in told[0] and "the last digits may differ" in told[0]


# -- our own files ---------------------------------------------------------------------------------
ODD = [None, True, "text", -1, 2**70, [], {}, [[1]], "\ud800"]


@pytest.mark.parametrize("name", ["results.json", "config.yaml", "metrics.jsonl"])
def test_odd_values_in_our_files_are_one_line_or_harmless(finished, stopped, tmp_path, name):
    source = stopped if name == "metrics.jsonl" else finished / "lda"
    folder = copied(source, tmp_path)
    text = (folder / name).read_text()
    whole = yaml.safe_load(text) if name != "metrics.jsonl" else json.loads(text.splitlines()[0])
    ask = {"results.json": lambda: main(["report", str(folder), "--out", str(tmp_path / "report.html")]),
           "config.yaml": lambda: main(["predict", str(folder), "--input", str(tmp_path / "no.txt")]),
           "metrics.jsonl": lambda: main(["resume", str(folder)])}[name]  # fmt: skip
    for key in whole:
        for odd in ODD:
            changed = json.dumps({**whole, key: odd})
            (folder / name).write_text(changed + "\n")
            assert ask() in (0, 2), (key, odd)
    for broken in ("", "[", "{}", "[]", "1", "null", "[" * 9000, '{"a": 1, "a": 2}', "9" * 5000, "\x00", "a: *b", "é"):
        (folder / name).write_text(broken + "\n")
        assert ask() in (0, 2), broken


def test_folders_pipes_and_links_are_refused(finished, tmp_path):
    for name in ("config.yaml", "results.json"):
        for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
            folder = copied(finished / "lda", tmp_path)
            (folder / name).unlink()
            make(folder / name)
            refused(resume, folder)
            shutil.rmtree(folder)


def test_a_run_does_not_write_through_a_link(stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    shutil.move(folder / "checkpoints", tmp_path / "elsewhere")
    (folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refused(resume, folder)
    (folder / "checkpoints").unlink()
    (folder / ".lock").unlink(missing_ok=True)
    (folder / ".lock").symlink_to(tmp_path / "elsewhere" / "created")
    assert "is a link" in refused(resume, folder) and not (tmp_path / "elsewhere" / "created").exists()
    (folder / ".lock").unlink()
    shutil.move(tmp_path / "elsewhere", folder / "checkpoints")
    outside = tmp_path / "outside.txt"
    outside.write_text("keep me")
    for name in ("metrics.jsonl", "results.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside)
    (folder / "results.json").unlink()  # else the run would count as finished
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").write_text("")
    resume(folder)
    assert outside.read_text() == "keep me"
    assert not (folder / "results.json").is_symlink() and not (folder / "report.html").is_symlink()


# -- what is written and shown ---------------------------------------------------------------------
def test_predict_writes_no_formulas_and_overwrites_nothing_unasked(tmp_path, capsys):
    texts = tmp_path / "train.csv"
    rows = [f"{word} {i},{label}" for word, label in (("pay", "=cmd|'/c calc'!A1"), ("card", "-5"), ("tea", "+tea"))
            for i in range(6)]  # fmt: skip
    texts.write_text("\n".join(["text,label", *rows]) + "\n")
    run("simplecil", {"name": str(texts), "tasks": 1}, backbone="tiny", out=tmp_path / "run")
    ask = ["predict", str(tmp_path / "run"), "--input", str(texts), "--out", str(tmp_path / "out.csv")]
    assert main([*ask, "--proba"]) == 0
    written = (tmp_path / "out.csv").read_text()
    assert "'=cmd" in written and ",=cmd" not in written and "'+tea" in written and ",-5" in written
    assert main(ask) == 2 and "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text() == written
    assert main([*ask, "--overwrite"]) == 0 and (tmp_path / "out.csv").read_text() != written
    assert main([*ask[:-1], str(texts)]) == 2 and "is what is read" in capsys.readouterr().err
    assert main([*ask[:-1], str(tmp_path), "--overwrite"]) == 2
    assert main(["predict", str(tmp_path / "run"), "--input", str(texts), "--json"]) == 0
    assert "=cmd|'/c calc'!A1" in {row["prediction"] for row in json.loads(capsys.readouterr().out)}


def test_a_report_replaces_a_report_and_nothing_else(finished, tmp_path, capsys):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    assert main(["report", str(finished / "lda"), "--out", str(notes)]) == 2
    assert "is not a report" in capsys.readouterr().err and notes.read_text() == "mine"
    assert main(["report", str(finished / "lda"), "--out", "/dev/null"]) == 2
    for _ in range(2):
        assert main(["report", str(finished / "lda"), "--out", str(tmp_path / "report.html")]) == 0


def test_the_terminal_obeys_nobody(finished, capsys):
    results = json.loads((finished / "lda" / "results.json").read_text())
    results["stream"] = results["tasks"][0]["name"] = "a\x1b[2Jb"
    results["warnings"] = ["red\x1b[31m\x07"]
    final_table(results)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and "x1b[31m" in shown
    assert str(EverlearnError("a\x1b[2Jb\nc\u202e")) == "a\\x1b[2Jb c\\u202e"
    assert len(printable("x" * 10**6)) <= 200 and len(str(EverlearnError("y" * 10**6))) <= 1200


def test_permission_errors_name_the_path_and_no_option_that_is_not_there(finished, tmp_path, monkeypatch, capsys):
    folder = copied(finished / "lda", tmp_path)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(folder / "results.json"))

    monkeypatch.setattr("everlearn.protocol.read_results", denied)
    assert main(["resume", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "Permission denied at" in said and "results.json" in said and "--out" not in said


@pytest.mark.parametrize(("number", "remedy"), [(13, "check the path and its permissions"), (28, "free some space")])
def test_a_checkpoint_that_cannot_be_written_says_what_helps(stopped, tmp_path, monkeypatch, capsys, number, remedy):
    folder = copied(stopped, tmp_path)

    def refuses(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("everlearn.checkpoint.replace_folder", refuses)
    assert main(["resume", str(folder)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"earlier checkpoints are untouched; {remedy}") and "--out" not in said
    assert newest(folder).is_dir()


def test_a_log_that_is_cut_off_or_damaged(stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    with open(folder / "metrics.jsonl", "a") as log:
        log.write('{"task": 1, "step": 5, "lo')
    assert len(resume(folder).accuracy_matrix) == 2
    folder = shutil.copytree(stopped, tmp_path / "other")
    with open(folder / "metrics.jsonl", "a") as log:
        log.write('{"task": 1, "step": 5, "loss": NaN}\n')
    assert "metrics.jsonl, line" in refused(resume, folder)
