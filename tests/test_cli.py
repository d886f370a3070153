"""The command line: instant where it can be, one line where it fails, clean where a program reads it."""

from __future__ import annotations

import contextlib
import csv
import errno
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from html import escape

import pytest
import yaml
from safetensors import SafetensorError

from everlearn import backbones
from everlearn.cli import main
from everlearn.command_line import parse, split_settings
from everlearn.config import find_recipe
from everlearn.errors import EverlearnError, remedy_for
from everlearn.interrupts import Interrupted

HEAVY = ("torch", "transformers", "sklearn", "timm", "numpy", "rich", "matplotlib")
SMALL = ("--stream", "digits", "--backbone", "tiny", "--stream.max_train_per_class", "20",
         "--stream.max_test_per_class", "10")  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working folder and a feature store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of texts, and what it printed with --json."""
    folder = tmp_path_factory.mktemp("finished")
    data = folder / "tickets.csv"
    words = {"card": "my card is lost", "cash": "no cash came out", "rate": "what is the rate", "home": "i moved home"}
    rows = [f"{text} {i},{label}" for i in range(12) for label, text in words.items()]
    data.write_text("text,label\n" + "\n".join(rows) + "\n")
    command = ["run", "--stream", str(data), "--tasks", "2", "--method", "simplecil", "--backbone", "tiny"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("EVERLEARN_CACHE", str(folder / "cache"))
        assert main([*command, "--out", str(folder / "run"), "--json"]) == 0
    return folder, printed.getvalue()


@pytest.mark.parametrize(
    "command", [["--help"], ["list", "methods"], ["list", "streams"], ["list", "backbones", "--json"]]
)
def test_help_and_lists_answer_within_a_second_and_import_nothing_heavy(command):
    script = (
        "import sys\nfrom everlearn.cli import main\n"
        f"try: main({command!r})\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - started)
        if times[-1] < 1:
            break
    assert done.stderr.strip() == "[]"
    assert done.stdout.strip()
    assert min(times) < 1


def test_list_as_json_names_everything(capsys):
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"methods", "streams", "backbones"}
    assert "ranpac" in found["methods"] and "clinc150" in found["streams"] and "minilm" in found["backbones"]
    assert main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 and any(line.startswith("ranpac ") for line in lines)


def test_help_of_a_method_lists_its_settings(capsys):
    assert main(["run", "--method", "l2p", "--stream", "digits", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--method.pool_size (a whole number from 1 to 10,000, default 10)\n      prompts in the pool" in shown
    assert "--stream.class_seed (a whole number from 0 to 4,294,967,295, default 1993)" in shown
    assert "--method.seed" not in shown
    assert main(["run", "--help"]) == 0
    assert "pool_size" not in capsys.readouterr().out
    assert main(["run", "--method", "l2q", "--help"]) == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("rnu", "unknown command 'rnu': did you mean 'run'?"),
        ("run --sed 3", "unknown option '--sed': did you mean '--seed'?"),
        ("run --text_column a", "unknown option '--text_column': did you mean '--stream.text_column'?"),
        ("update run --data a.csv --text_column a", "did you mean '--stream.text_column'?"),
        ("update run --data a.csv --tasks 2", "(known: --data, "),
        ("evaluate run --data a.csv --kind online", "unknown option '--kind' (known: "),
        ("run --method er --batch-size 3", "unknown option '--batch-size': did you mean '--method.batch_size'?"),
        ("run --method er --epochs 3", "unknown option '--epochs': did you mean '--method.epochs'?"),
        ("run --method lda --epochs 3", "unknown option '--epochs' (known: "),
        ("run --methd.width 3", "did you mean '--method"),
        ("run --seed three", "invalid int value: 'three'"),
        ("run --method ranpak", "did you mean 'ranpac'?"),
        ("run --stream clinc15", "did you mean 'clinc150'?"),
        ("run --backbone minlm", "did you mean 'minilm'?"),
        ("run --method ranpac --method.widht 3", "did you mean 'width'?"),
        ("run --method.width", "--method.width needs a value"),
        ("run --method.width --json", "--method.width needs a value"),
        ("predict none --input=--", "--input needs a value"),
        ("run --out=", "--out needs a value"),
        ("run --method ranpac --method.width many", "method.width: 'many' is not of type int"),
        ("run --save-minutes 0", "--save-minutes: 0.0 is out of range: give a number above 0"),
        ("run extra", "unexpected argument 'extra'"),
        ("run --config none.yaml", "none.yaml: no such file"),
        ("run --stream none.csv", "no such file or folder: none.csv"),
        ("compare --methods ranpak", "did you mean 'ranpac'?"),
        ("compare --method.width 3", "does not accept --method.width"),
        ("resume none", "none: no such run folder"),
        ("report none", "none has no results.json"),
        ("predict none --input x", "none: no such run folder"),
        ("predict none", "the following arguments are required: --input"),
        ("cache --clear nothing", "unknown identity 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_one_line_exit_code_2_and_leaves_no_folder(capsys, tmp_path, command, message):
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("everlearn: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["run", "--out", ""], ["update", "run", "--data", "", "--json"]])
def test_an_empty_value_is_not_the_default(words, capsys):
    """As `--out "$FOLDER"` gives it where the variable is not set."""
    assert main(words) == 2 and f"{words[words.index('') - 1]} needs a value" in capsys.readouterr().err
    assert parse(["run", "--method.prompt", ""]).settings["method"] == {"prompt": ""}


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("EVERLEARN_DEBUG", "1")
    with pytest.raises(EverlearnError):
        main(["run", "--method", "ranpak"])


def test_settings_may_be_negative_and_hold_an_equals_sign():
    rest, settings = split_settings(["run", "--method.pull", "-1", "--stream.text_column=a=b", "--seed", "3"])
    assert rest == ["run", "--seed", "3"]
    assert settings == {"method": {"pull": "-1"}, "stream": {"text_column": "a=b"}}
    assert parse(["run", "--tasks", "5"]).tasks == 5


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr("everlearn.backbones.names", lambda: {}["a bug"])
    with pytest.raises(KeyError):
        main(["list", "backbones"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_or_closed_disk_is_one_line(monkeypatch, capsys, code):
    def fail():
        raise OSError(code, os.strerror(code), "/somewhere/results.json")

    monkeypatch.setattr("everlearn.backbones.names", fail)
    assert main(["list", "backbones"]) == 2
    shown = capsys.readouterr().err
    assert "/somewhere/results.json" in shown and shown.count("\n") == 1


def test_a_full_disk_is_recognised_in_the_words_of_safetensors():
    told = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert remedy_for(told) == "free some space"


def test_an_interrupt_is_130_and_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    module = importlib.import_module("everlearn.protocol")

    def interrupted(*_, **keywords):
        raise Interrupted(f"go on with: everlearn resume {keywords['out']}")

    monkeypatch.setattr(module, "run", interrupted)
    assert main(["run", *SMALL, "--out", str(tmp_path / "run")]) == 130
    assert f"everlearn resume {tmp_path / 'run'}" in capsys.readouterr().err
    monkeypatch.setattr("everlearn.backbones.names", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["list", "backbones"]) == 130


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_scheduler_save_and_name_the_command_that_goes_on(stop, tmp_path, capsys):
    lines = tmp_path / "run" / "metrics.jsonl"

    def press():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (lines.exists() and lines.stat().st_size):
            time.sleep(0.02)
        os.kill(os.getpid(), stop)

    finger = threading.Thread(target=press)
    finger.start()
    try:
        long = ["--method", "finetune", "--method.epochs", "1000", "--save-steps", "5", "--out", "run"]
        assert main(["run", *SMALL, *long, "--json"]) == 130
    finally:
        finger.join()
    captured = capsys.readouterr()
    assert "everlearn resume run" in captured.err and captured.out == ""
    assert any((tmp_path / "run" / "checkpoints").iterdir())


def test_run_with_json_prints_json_and_nothing_else(finished):
    folder, printed = finished
    results = json.loads(printed)
    assert results["method"] == "simplecil" and len(results["accuracy_matrix"]) == 2
    assert results == json.loads((folder / "run" / "results.json").read_text())


def test_run_ends_with_a_table_and_config_yaml_repeats_it(capsys, tmp_path):
    assert main(["run", *SMALL, "--method", "ranpac", "--method.width", "64", "--seed", "1"]) == 0
    shown = capsys.readouterr().out
    first = tmp_path / "runs" / "digits-ranpac-seed1"
    assert all(len(line) <= 100 or line.lstrip().startswith("everlearn compare") for line in shown.splitlines())
    assert "retention" in shown and "report.html" in shown and "everlearn predict" in shown
    assert main(["run", "--config", str(first / "config.yaml"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    once = json.loads((first / "results.json").read_text())
    assert again["accuracy_matrix"] == once["accuracy_matrix"] and again["config"] == once["config"]
    assert again["examples_encoded"] == 0, "the features of the first run served the second"
    assert (tmp_path / "runs" / "digits-ranpac-seed1-2" / "results.json").is_file()


def test_an_explicit_folder_that_holds_a_run_is_refused_untouched(finished, capsys):
    run = finished[0] / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["run", *SMALL, "--out", str(run)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_recipe_is_announced(monkeypatch, tmp_path, capsys):
    recipe = tmp_path / "recipes" / "digits" / "ranpac.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("method: {name: ranpac, width: 32}")
    monkeypatch.setattr("everlearn.config.__file__", str(tmp_path / "everlearn" / "config.py"))
    assert main(["run", *SMALL, "--method", "ranpac", "--json"]) == 0
    captured = capsys.readouterr()
    assert "settings: recipe digits/ranpac (--recipe none for the method's own)" in captured.err
    assert json.loads(captured.out)["config"]["method"]["width"] == 32


FEW = ("--stream", "clinc150", "--tasks", "2", "--stream.max_train_per_class", "2", "--stream.max_test_per_class", "1",
       "--backbone", "tiny", "--json")  # fmt: skip


def test_what_to_train_is_a_setting_and_a_rate_for_something_else_is_dropped(capsys):
    """The recipe's rate was chosen for the whole encoder; an insertion has its own unless one is given."""
    found = {}
    for name, more in {"recipe": [], "lora": ["--method.train", "lora"],
                       "rated": ["--method.train", "lora(size=2)", "--method.lr", "0.002"]}.items():  # fmt: skip
        assert main(["run", *FEW, "--method", "er", *more]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    methods = {name: results["config"]["method"] for name, results in found.items()}
    recipe = yaml.safe_load(find_recipe("clinc150", "er").read_text())["method"]
    without = {key: value for key, value in recipe.items() if key != "lr"}
    assert methods["recipe"] == recipe != without
    assert methods["lora"] == {**without, "train": "lora"}
    assert methods["rated"] == {**without, "train": "lora(size=2)", "lr": 0.002}
    trained = {name: results["trainable_parameters"] for name, results in found.items()}
    head = 150 * 32 + 150
    assert trained["lora"] - head == 2 * 2 * 2 * 32 * 8 and trained["rated"] - head == 2 * 2 * 2 * 32 * 2
    assert trained["recipe"] > trained["lora"]
    assert main(["run", *FEW, "--method", "er", "--method.train", "lroa"]) == 2
    shown = capsys.readouterr().err
    assert "did you mean 'lora'?" in shown and "Traceback" not in shown


def test_predict_writes_csv(finished, capsys, tmp_path):
    run = str(finished[0] / "run")
    asked = tmp_path / "new.csv"
    asked.write_text('id,text\nq1,"no cash, came"\nq2,my card is lost\n')
    assert main(["predict", run, "--input", str(asked)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["id"] for row in rows] == ["q1", "q2"]
    assert list(rows[0]) == ["id", "prediction", "score"]
    assert all(row["prediction"] in {"card", "cash", "rate", "home"} and 0 < float(row["score"]) <= 1 for row in rows)

    assert main(["predict", run, "--input", str(asked), "--proba", "--out", "answers.csv"]) == 0
    assert capsys.readouterr().out == ""
    wide = list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))
    assert [row["prediction"] for row in wide] == [row["prediction"] for row in rows]
    classes = set(wide[0]) - {"id", "prediction", "score"}
    assert classes == {"card", "cash", "rate", "home"}
    assert sum(float(wide[0][name]) for name in classes) == pytest.approx(1, abs=1e-4)

    assert main(["predict", run, "--input", str(asked), "--out", "nodir/p.csv"]) == 2
    assert "--out nodir/p.csv: its folder does not exist: make it first" in capsys.readouterr().err

    assert main(["predict", run, "--input", str(asked), "--json", "--proba"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert answers[0]["id"] == "q1" and set(answers[0]["probabilities"]) == classes


def test_predict_refuses_to_write_over_its_input(finished, capsys, tmp_path):
    asked = tmp_path / "new.txt"
    asked.write_text("my card is lost\n")
    assert main(["predict", str(finished[0] / "run"), "--input", "new.txt", "--out", "new.txt"]) == 2
    assert asked.read_text() == "my card is lost\n"


def test_predict_takes_another_column(finished, capsys, tmp_path):
    (tmp_path / "new.csv").write_text("what\nmy card is lost\n")
    assert main(["predict", str(finished[0] / "run"), "--input", "new.csv"]) == 2
    assert "new.csv" in capsys.readouterr().err
    assert main(["predict", str(finished[0] / "run"), "--input", "new.csv", "--column", "what"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_resume_of_a_finished_run_shows_it_and_report_writes_it_again(finished, capsys, tmp_path):
    run = finished[0] / "run"
    assert main(["resume", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(finished[1])
    assert main(["report", str(run), "--out", str(tmp_path / "one.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "one.html")
    assert "simplecil" in (tmp_path / "one.html").read_text()
    assert main(["report", str(run), str(run)]) == 0
    assert (tmp_path / "report.html").is_file()


def test_compare_prints_a_table_and_a_pick(capsys, tmp_path):
    assert main(["compare", *SMALL, "--methods", "lda,simplecil", "--out", "both"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "simplecil" in shown and "joint was not run" in shown.replace("\n", " ")
    assert main(["compare", *SMALL, "--methods", "lda,simplecil", "--out", "both", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {r["method"] for r in again["results"]} == {"lda", "simplecil"} and again["recommendation"]
    assert main(["report", "both"]) == 0
    assert escape(again["recommendation"].split(".")[0]) in (tmp_path / "both" / "report.html").read_text()


def test_cache_shows_and_clears(capsys):
    assert main(["cache"]) == 0
    assert "empty" in capsys.readouterr().out
    assert main(["run", *SMALL, "--method", "simplecil", "--json"]) == 0
    capsys.readouterr()
    assert main(["cache", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["examples"] > 0 and entry["bytes"] > 0 and "tiny" in entry["description"]
    assert main(["cache"]) == 0
    shown = next(line.split()[0] for line in capsys.readouterr().out.splitlines() if "tiny" in line)
    assert shown.endswith("…")
    backbones.load("tiny").__class__(seed=1).encode(["another identity"])
    assert main(["cache", "--clear", "nothing"]) == 2 and "its beginning is enough" in capsys.readouterr().err
    assert main(["cache", "--clear", shown, "--json"]) == 0  # what the table shows can be given back
    assert json.loads(capsys.readouterr().out) == {"freed_bytes": entry["bytes"]}
    assert main(["cache", "--clear", "--json"]) == 0
    entry["bytes"] = 4 * 32
    assert json.loads(capsys.readouterr().out) == {"freed_bytes": entry["bytes"]}
    assert main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("column", ["message", "text", None])
def test_a_model_remembers_the_columns_that_it_was_trained_on(tmp_path, capsys, column):
    rows = [(f"{word} number {i}", word) for word in ("card", "loan") for i in range(6)]
    lines = ["message,kind,number", *(f"{text},{kind},{i}" for i, (text, kind) in enumerate(rows))]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    assert main(["run", "--stream", str(tmp_path / "train.csv"), "--tasks", "1", "--method", "simplecil", "--backbone",
                 "tiny", "--out", str(tmp_path / "run"), "--stream.text_column", "message", "--stream.label_column",
                 "kind", "--stream.id_column", "number"]) == 0  # fmt: skip
    capsys.readouterr()
    new = tmp_path / "new.csv"
    new.write_text(f"number,{column or 'words'}\n77,my card\n")
    code = main(["predict", str(tmp_path / "run"), "--input", str(new)])
    said = capsys.readouterr()
    if column is None:
        assert code == 2 and "name one with --column" in said.err
    else:
        assert code == 0 and said.out.splitlines()[1].startswith("77,card,")


def test_a_bad_row_gets_an_empty_answer_with_its_reason(tmp_path, capsys):
    rows = [f"{word} {i},{word}" for word in ("card", "loan") for i in range(5)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    assert main(["run", "--stream", str(tmp_path / "train.csv"), "--tasks", "1", "--method", "simplecil", "--backbone",
                 "tiny", "--out", str(tmp_path / "run")]) == 0  # fmt: skip
    new = tmp_path / "new.csv"
    new.write_text('id,text\n1,my card\n2,\n3,"a, loan"\n4,too,many\n')
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "--input", str(new), "--proba"]) == 0
    said = capsys.readouterr()
    rows = list(csv.reader(said.out.splitlines()))
    empty = [[f"{new}, line {line}", ""] for line in (5, 3)]
    assert [row[:2] for row in rows[1:]] == [["1", "card"], ["3", "loan"], *empty]
    assert {len(row) for row in rows} == {5}
    assert "line 3 has no answer: the text is empty" in said.err and "line 5 has no answer: 3 cells" in said.err
    assert main(["predict", str(tmp_path / "run"), "--input", str(new), "--json"]) == 0
    reasons = [row.get("reason") for row in json.loads(capsys.readouterr().out)]
    assert reasons == [None, None, "3 cells, but the header has 2", "the text is empty"]
    new.write_text("text\n \n")
    assert main(["predict", str(tmp_path / "run"), "--input", str(new)]) == 2
    assert "no row that can be answered" in capsys.readouterr().err


def test_a_run_that_is_repeated_keeps_no_more_examples_than_the_first(tmp_path, capsys):
    run = ["run", *SMALL, "--method", "simplecil", "--json"]
    assert main([*run, "--keep", "none", "--validate", "--out", "a"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["run", "--config", "a/config.yaml", "--out", "b", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert first["stored"] == again["stored"] and "held-out examples" not in again["stored"]
    assert first["validation"] == again["validation"]
    assert main(["run", "--config", "a/config.yaml", "--keep", "3", "--out", "c", "--json"]) == 0
    assert "held-out examples" in json.loads(capsys.readouterr().out)["stored"]
