"""What a user can mend is one clear line, whichever door it comes through."""

from __future__ import annotations

import pytest
import torch

from everlearn import backbones, compare, labelling, load, methods, run, tune, versions
from everlearn.backbones.tiny import TinyBackbone
from everlearn.engine import replay
from everlearn.errors import ContractError, DataError, EverlearnError, unknown
from everlearn.method import Tags
from everlearn.protocol import resume
from everlearn.testing import tiny_pair, toy_stream

DIGITS = {"name": "digits", "tasks": 2, "max_train_per_class": 5, "max_test_per_class": 2}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_the_nearest_name_is_offered_and_all_are_listed():
    assert str(unknown("method", "ranpak", ["ranpac", "l2p"])) == (
        "unknown method 'ranpak': did you mean 'ranpac'? (known: l2p, ranpac)"
    )
    assert str(unknown("method", "zzz", ["ranpac"])) == "unknown method 'zzz' (known: ranpac)"
    assert issubclass(DataError, EverlearnError) and issubclass(ContractError, EverlearnError)


@pytest.mark.parametrize(
    ("method", "stream", "backbone", "message"),
    [
        ("ranpak", DIGITS, "tiny", "unknown method 'ranpak': did you mean 'ranpac'?"),
        ("nowhere.at.all:Method", DIGITS, "tiny", "method 'nowhere.at.all:Method' cannot be imported"),
        ("everlearn.errors:EverlearnError", DIGITS, "tiny", "is not a subclass of everlearn.Method"),
        (
            {"name": "ranpac", "widht": 5},
            DIGITS,
            "tiny",
            "unknown setting of the method 'widht': did you mean 'width'?",
        ),
        ({"name": "ranpac", "width": "many"}, DIGITS, "tiny", "method.width: 'many' is not of type int"),
        ({"name": "ranpac", "seed": 3}, DIGITS, "tiny", "method.seed is not a setting of the method"),
        ({"width": 5}, DIGITS, "tiny", "method: {'width': 5} is neither a name nor a mapping with a name"),
        (["ranpac"], DIGITS, "tiny", "method: ['ranpac'] is neither a name"),
        ("simplecil", "digit", "tiny", "did you mean 'digits'?"),
        ("simplecil", {**DIGITS, "taks": 2}, "tiny", "unknown setting of the stream 'taks': did you mean 'tasks'?"),
        ("simplecil", {**DIGITS, "tasks": 11}, "tiny", "10 classes cannot fill tasks=11"),
        ("simplecil", None, "tiny", "stream: None is neither a name"),
        ("simplecil", DIGITS, "tinny", "unknown backbone 'tinny'"),
        ("simplecil", "nothing.csv", "tiny", "nothing.csv"),
    ],
)
def test_a_wrong_name_or_setting_is_one_clear_line_and_leaves_no_folder(tmp_path, method, stream, backbone, message):
    with pytest.raises(EverlearnError) as error:
        run(method, stream, backbone=backbone, out=tmp_path / "run")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("as_instance", [False, True])
def test_a_method_that_cannot_learn_the_stream_says_why(monkeypatch, as_instance):
    cls = methods.get("simplecil")
    method = cls(backbones.load("tiny")) if as_instance else "simplecil"
    with pytest.raises(
        EverlearnError, match="method 'simplecil' learns classes, and the goal of stream 'toy' is ranking"
    ):
        run(method, toy_stream(goal="ranking", kind="domain-incremental"), backbone="tiny")
    monkeypatch.setattr(cls, "tags", Tags(family="prompt", trains="nothing", task_at_test="needed"))
    with pytest.raises(EverlearnError, match=r"needs the task's id at test, which stream 'toy' .class-incremental"):
        run(method, toy_stream(), backbone="tiny")
    monkeypatch.setattr(cls, "tags", Tags(family="prompt", trains="nothing", kinds=("online",)))
    with pytest.raises(EverlearnError, match="learns online streams, and stream 'toy' is class-incremental"):
        run(method, toy_stream(), backbone="tiny")


def test_a_backbone_that_cannot_read_the_stream_names_one_that_can(monkeypatch):
    tiny = backbones.load("tiny")
    tiny.reads = ("image",)
    with pytest.raises(EverlearnError, match=r"backbone 'tiny' reads image, but stream 'toy' has text: .*minilm"):
        run(methods.get("simplecil")(tiny), toy_stream())


@pytest.mark.parametrize("method", ["finetune", "lora", "l2p", "coda_prompt", "aper"])
def test_texts_do_not_teach_the_image_encoder_of_a_pair(method: str):
    learner = methods.get(method)(tiny_pair())
    with pytest.raises(EverlearnError, match=r"trains the image encoder .* which reads no text: name a text encoder"):
        run(learner, toy_stream())
    run(methods.get("finetune")(tiny_pair(), train="head", epochs=1), toy_stream())


@pytest.mark.parametrize("as_instance", [False, True])
def test_a_method_that_reads_class_names_needs_a_backbone_that_reads_text(tmp_path, monkeypatch, as_instance):
    monkeypatch.setattr(TinyBackbone, "reads", ("image",))
    method = methods.get("frozen")(TinyBackbone()) if as_instance else "frozen"
    with pytest.raises(EverlearnError) as error:
        run(method, DIGITS, backbone="tiny", out=tmp_path / "run")
    assert str(error.value) == "method 'frozen' reads the names of the classes, and backbone 'tiny' reads no text"
    assert not (tmp_path / "run").exists()


def test_scores_that_are_nan_name_the_record(monkeypatch):
    cls = methods.get("simplecil")
    predict = cls.predict

    def broken(self, inputs, task=None):
        scores = predict(self, inputs, task)
        scores[inputs.index(toy_stream()[0].test.inputs[3])] = float("nan")
        return scores

    monkeypatch.setattr(cls, "predict", broken)
    with pytest.raises(ContractError, match="predict gave NaN scores, first for record test-0-3"):
        run("simplecil", toy_stream(), backbone="tiny")


@pytest.mark.parametrize("ask", [load, resume, versions.versions, versions.rollback])
@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "is not a run's folder"), ("a: [1", "config.yaml, line 1"), ("- 1", "config.yaml is not what"),
     ("seed: 0", "the entry stream: Field required")],
)  # fmt: skip
def test_a_folder_that_holds_no_run_is_told(tmp_path, ask, text, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    if text is not None:
        (folder / "config.yaml").write_text(text)
    with pytest.raises(EverlearnError, match=message) as error:
        ask(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(EverlearnError, match="is not a run's folder"):
        ask(tmp_path / "nothing")
    assert {path.name for path in tmp_path.rglob("*")} <= {"folder", "config.yaml"}, "and nothing is left there"


WRONG_TYPES = [
    (lambda: run("simplecil", DIGITS, backbone=TinyBackbone()), "backbone: "),
    (lambda: run("simplecil", toy_stream(), backbone=5), "backbone: 5 is not a name: give one of minilm"),
    (lambda: compare("lda", DIGITS, gate=0.8), "gate=0.8: give two shares"),
    (lambda: compare("lda", DIGITS, gate=None), "gate=None: give two shares"),
    (lambda: compare("lda", DIGITS, gate=("a", "b")), "gate=('a', 'b'): give two shares"),
    (lambda: compare("lda", DIGITS, jobs="2"), "jobs: '2' is not of type int"),
    (lambda: compare(None, DIGITS), "methods: None is no list of methods"),
    (lambda: compare({"name": "lda"}, DIGITS), "methods: {'name': 'lda'} is no list of methods"),
    (lambda: compare(["lda", 5], DIGITS), "method: 5 is neither a name nor a mapping"),
    (lambda: compare("lda", DIGITS, recipe=None), "recipe None: no such collection"),
    (lambda: tune("klda", DIGITS, recipe=None), "recipe: None is no name: give auto, none"),
    (lambda: labelling.ask("lab", "new.csv", "out.csv", 5), "source: 'lab' is neither a model nor an encoder"),
    (lambda: methods.named_by("config.yaml", "lda", 5), "method: 5 is neither the name of a method nor its class"),
]


@pytest.mark.parametrize(("call", "message"), WRONG_TYPES, ids=[message for _, message in WRONG_TYPES])
def test_a_value_of_another_type_is_one_clear_line(call, message):
    with pytest.raises(EverlearnError) as error:
        call()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_no_weight(value):
    learner, twin = (methods.get("finetune")(backbones.load("tiny"), epochs=1) for _ in range(2))
    replay(twin, toy_stream().tasks[:1])  # has the head of the first task, and has learned nothing
    before = twin.state_dict()
    object.__setattr__(learner, "loss", lambda batch: sum(p.sum() for p in learner.parameters()) * value)
    with pytest.raises(EverlearnError, match=f"the loss is {value} at a batch with the records train-0-"):
        run(learner, toy_stream())
    after = learner.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
