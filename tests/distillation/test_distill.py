"""The command, its file, and the file as a memory: what is refused, what is said, and that runs resume with it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn import backbones, methods, run, streams
from everlearn.cli import main
from everlearn.distillation import judge
from everlearn.distillation.data_set import KEY, read
from everlearn.distillation.distill import distill
from everlearn.engine import learn
from everlearn.errors import DataError, EverlearnError
from everlearn.heads.linear import Linear

WORDS = ["tea", "sofa", "rose", "gold"]
LENGTH = {"features": {}, "soft": {"length": 4}}
ROWS = [(f"{word} {word} number {i} {'please' if i % 2 else 'now'}", word) for word in WORDS for i in range(20)]


@pytest.fixture(scope="module", autouse=True)
def _few_repetitions():
    before, judge.SUBSETS, judge.STARTS = (judge.SUBSETS, judge.STARTS), 2, 2
    yield
    judge.SUBSETS, judge.STARTS = before


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "rows.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    return file


@pytest.fixture(scope="module")
def sets(data, tmp_path_factory):
    folder, stream = tmp_path_factory.mktemp("sets"), streams.load(str(data), tasks=2, validation=0.2)
    made = {}
    for kind in ("features", "texts", "soft"):
        few = {"steps": 3, "length": 4, "inner_steps": 3} if kind == "soft" else {"steps": 10}
        report = distill(stream, backbones.load("tiny"), folder / kind, kind=kind, per_class=2, **few)[1]
        made[kind] = (folder / kind, report)
    return made


@pytest.mark.parametrize("kind", ["features", "texts", "soft"])
def test_a_set_is_written_with_its_recipe_and_judged_beside_real_subsets(sets, kind):
    file, report = sets[kind]
    made = read(file)
    assert len(made) == report["examples"] == 8 and sorted(made.class_names) == sorted(WORDS)
    assert made.recipe["kind"] == kind and made.recipe["seed"] == 0 and made.recipe["stream"]["tasks"] == 2
    assert made.backbone == {"name": "tiny", "identity": backbones.load("tiny").identity()}
    assert set(report["accuracy"]) == {"distilled set", "all real examples", "best of 2 random subsets",
                                       "random subsets, mean", "herding", "medoids of k-means"}  # fmt: skip
    assert report["fresh starts"]["test"].keys() == {"mean", "deviation"}
    assert ("second encoder" in report) == (kind == "texts") and ("own steps, fresh starts" in report) == (
        kind == "soft"
    )
    if kind != "texts":
        assert len(report["nearest"]) == 8 and report["nearest"][0]["nearest"][0]["text"] in dict(ROWS)
    else:
        assert all(
            dict(ROWS)[text] == made.class_names[label] for text, label in zip(made.texts, made["labels"], strict=True)
        )


def test_the_same_seed_gives_the_same_set(data, sets):
    stream = streams.load(str(data), tasks=2, validation=0.2)
    again = distill(stream, backbones.load("tiny"), kind="features", per_class=2, steps=10)[0]
    assert torch.equal(again["features"], read(sets["features"][0])["features"])


@pytest.mark.parametrize("kind", ["features", "soft"])
def test_two_examples_are_enough(kind):
    splits = ["train", "train", "validation", "test"]
    stream = streams.from_rows(["one tea", "a tea", "tea", "two teas"], ["tea"] * 4, splits=splits, tasks=1)
    made, report = distill(stream, backbones.load("tiny"), kind=kind, per_class=3, steps=2, **LENGTH[kind])
    assert len(made) == 2 and [len(one["nearest"]) for one in report["nearest"]] == [2, 2]


def test_an_encoder_that_is_trained_is_the_same_afterwards(data):
    stream, tiny = streams.load(str(data), tasks=2, validation=0.2), backbones.load("tiny")
    identity = tiny.identity()
    _, report = distill(stream, tiny, kind="soft", train="lora(size=2)", per_class=1, steps=2, length=3,
                        labels="learned", batch_size=64)  # fmt: skip
    assert tiny.identity() == identity and tiny.is_frozen and not tiny.attached
    assert 0 <= report["own steps, fresh starts"]["validation"]["mean"] <= 1


@pytest.mark.parametrize("documents", ["soft", "real"])
def test_pairs_are_distilled_and_compared_with_the_untouched_encoder(documents, tmp_path):
    queries = [f"question {word} {i}" for word in WORDS for i in range(8)]
    stream = streams.from_pairs(queries, [f"answer {q}" for q in queries], test=0.2, validation=0.2)
    _, report = distill(stream, backbones.load("tiny"), tmp_path / "pairs", kind="soft", train="lora(size=2)",
                           documents=documents, per_class=2, steps=2, length=3, batch_size=64)  # fmt: skip
    back = read(tmp_path / "pairs")
    assert back.kind == "soft pairs" and len(back) == 2 and ("documents" in back.tensors) == (documents == "soft")
    assert len(back.documents) == (0 if documents == "soft" else 2)
    assert {"distilled set", "untouched encoder"} < set(report["nDCG@10"])


def test_the_command_prints_what_the_set_is_worth(data, tmp_path, capsys):
    words = ["distill", "--stream", str(data), "--stream.label_column", "label", "--tasks", "2", "--backbone", "tiny",
             "--per-class", "2", "--kind", "texts", "--out", str(tmp_path / "set")]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "herding" in out and "transfer to a second encoder" in out and "best of 2 random subsets" in out
    assert read(tmp_path / "set").recipe["command"].startswith("everlearn distill --stream")
    assert main(words) == 2 and "exists already" in capsys.readouterr().err
    few = ["--kind", "features", "--steps", "2", "--json"]
    assert main([*words[:-4], *few, "--out", str(tmp_path / "other")]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"until": 3}, "2 tasks"), ({"per_class": 0}, "out of range"), ({"kind": "sound"}, "distillation.kind"),
        ({"kind": "soft", "length": 60}, "smaller --length"), ({"kind": "soft", "train": "lorra"}, "lora"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_in_one_line(data, settings, said):
    with pytest.raises(EverlearnError, match=said) as found:
        distill(streams.load(str(data), tasks=2, validation=0.2), backbones.load("tiny"), **settings)
    assert "\n" not in str(found.value)


def test_a_foreign_encoder_is_refused(sets):
    made = read(sets["features"][0])
    with pytest.raises(EverlearnError, match=r"made with the backbone 'tiny' .* and this is 'other'"):
        made.check_encoder("f" * 32, "other")
    read(sets["texts"][0]).check_encoder("f" * 32, "other")  # real texts fit any encoder


def damaged(file, place, change):
    from safetensors import safe_open

    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()[KEY])
    change(tensors, header)
    save_file(tensors, place, {KEY: json.dumps(header)})
    return place


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, header: header.update(kind="sound"), "kind"),
        (lambda tensors, header: header.pop("recipe"), "recipe"),
        (lambda tensors, header: tensors.pop("labels"), "labels"),
        (lambda tensors, header: tensors.update(labels=tensors["labels"] + 9), "not one of its 4 classes"),
        (lambda tensors, header: tensors.update(labels=tensors["labels"][:3]), "3 rows for 8 examples"),
        (lambda tensors, header: tensors["features"].fill_(float("nan")), "not finite"),
        (lambda tensors, header: tensors.update(more=torch.zeros(8)), "no place"),
    ],
)
def test_a_damaged_set_is_refused_in_one_line(sets, tmp_path, change, said):
    place = damaged(sets["features"][0], tmp_path / "damaged", change)
    with pytest.raises(DataError, match=said) as found:
        read(place)
    assert str(place) in str(found.value) and "\n" not in str(found.value)


def test_what_is_no_set_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    save_file({"features": torch.zeros(1, 2)}, tmp_path / "plain")
    for name in ("missing", "text", "plain"):
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("kind", ["texts", "soft"])
def test_er_replays_the_set_and_knows_old_classes_better_for_it(sets, data, kind):
    stream = streams.load(str(data), tasks=2)
    old = {}
    for distilled in (None, str(sets[kind][0])):
        settings = {"memory_size": 0, "train": "head", "head_lr": 0.05, "epochs": 8, "distilled": distilled}
        result = run({"name": "er", **settings}, stream, backbone="tiny")
        old[distilled is None] = result.accuracy_matrix[-1][0]
    assert old[False] > old[True] + 0.3


def test_a_run_with_a_set_resumes_and_answers_without_the_file(sets, data, tmp_path):
    stream = streams.load(str(data), tasks=2)
    method = methods.get("er")(backbones.load("tiny"), train="head", memory_size=0, distilled=str(sets["texts"][0]))
    for task in stream:
        learn(method, task)
    assert len(method.distilled) == 8 and int(method.distilled.covered) == 4
    fresh = methods.get("er")(backbones.load("tiny"), train="head", memory_size=0, distilled=str(tmp_path / "gone"))
    for task in stream:
        fresh.begin_task(task.sealed())
    fresh.load_state_dict(method.state_dict())
    assert isinstance(fresh.head, Linear)
    assert torch.equal(fresh.predict(["tea now"]), method.predict(["tea now"]))


def test_logistic_takes_features_beside_new_examples(sets, data):
    stream = streams.load(str(data), tasks=2)
    plain, helped = (methods.get("logistic")(backbones.load("tiny"), **settings)
                     for settings in ({}, {"distilled": str(sets["features"][0])}))  # fmt: skip
    for task in stream:
        learn(plain, task)
        learn(helped, task)
    assert (helped.head.counts - plain.head.counts).tolist() == [2, 2, 2, 2]
    with pytest.raises(EverlearnError, match="the distilled set, which would count twice"):
        helped.merge(helped)


def test_er_refuses_features_and_other_encoders(sets, data):
    stream = streams.load(str(data), tasks=2)
    with pytest.raises(EverlearnError, match="holds features"):
        learn(methods.get("er")(backbones.load("tiny"), distilled=str(sets["features"][0])), stream[0])
    other = backbones.load("tiny")
    with torch.no_grad():
        other.cls.add_(1.0)
    with pytest.raises(EverlearnError, match="mean nothing"):
        learn(methods.get("er")(other, distilled=str(sets["soft"][0])), stream[0])
