"""Zero-shot accuracy on classes that are not learned yet."""

import json
from dataclasses import replace

import everlearn
from everlearn import backbones, methods, streams
from everlearn.backbones.image_text import ImageText
from everlearn.backbones.tiny import TinyBackbone
from everlearn.engine import learn
from everlearn.report import render
from everlearn.run_table import _zero_shot_line
from everlearn.session import Session
from everlearn.unseen import Unseen, summary

SMALL = {"name": "digits", "tasks": 5, "max_train_per_class": 6, "max_test_per_class": 5}


def pair() -> ImageText:
    return ImageText(TinyBackbone(seed=1), TinyBackbone(seed=2), name="tiny pair", scale=20.0)


def run(method, tmp_path=None):
    stream = streams.load(**SMALL)
    config = {"method": {"name": "any"}, "stream": SMALL, "seed": 0}
    return Session(method, stream, config, tmp_path, 10, None, False).learn().results


def test_encoders_that_stay_as_they_were_keep_all():
    results = run(methods.get("simplecil")(pair()))
    found = results["zero_shot"]
    assert found["untouched"] == found["now"] and found["now"][-1] is None and None not in found["now"][:-1]
    assert found["retention"] in (None, 1.0)
    assert "zero-shot on classes not learned yet" in _zero_shot_line(results).plain
    assert "Classes not learned yet" in render([results])


def test_only_later_classes_are_asked_and_answered():
    stream, method = streams.load(**SMALL), methods.get("finetune")(pair(), epochs=3, lr=1e-2)
    unseen = Unseen(stream, method)
    before = unseen.untouched()
    learn(method, stream[0])
    asked = []

    class Listening:
        def __getattr__(self, name):
            return getattr(method, name)

        def zero_shot(self, inputs, names):
            asked.append((len(inputs), list(names)))
            return method.zero_shot(inputs, names)

    now = Unseen(stream, Listening()).after(stream[0])
    assert asked == [(40, list(stream.class_names[2:]))] and 0 <= now <= 1
    embeddings = method.embed(stream[1].test.inputs)
    with method.backbone.pretrained():
        assert not (embeddings - pair()(stream[1].test.inputs)).abs().max() < 1e-3  # the encoder has moved
    assert len(before) == 5 and before[-1] is None


def test_classes_without_test_examples_are_not_asked_about():
    stream = streams.load(**SMALL)
    last = replace(stream[4], examples={**stream[4].examples, "test": stream[0].test})  # brings two classes, tests none
    stream = replace(stream, tasks=(*stream.tasks[:4], last))
    found = Unseen(stream, methods.get("frozen")(pair())).untouched()
    assert [score is None for score in found] == [False, False, False, True, True]


def test_it_is_asked_of_image_text_backbones_alone(tmp_path):
    results = everlearn.run("simplecil", SMALL, backbone="tiny", out=tmp_path / "run").results
    assert results["zero_shot"] is None
    assert json.loads((tmp_path / "run" / "results.json").read_text())["zero_shot"] is None
    assert summary([], []) is None
    assert backbones.load("tiny").is_image_text is False
