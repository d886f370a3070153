"""`everlearn lit`: two frozen encoders become an image-text backbone."""

import json

import pytest
import torch

from everlearn import backbones, streams
from everlearn.backbones import lit
from everlearn.cli import main
from everlearn.lit_training import _closed_form, _Data, _projected, _Trainer, train

BASE = ["lit", "--stream", "digits", "--stream.tasks", "1", "--image", "tiny", "--text", "tiny"]


def test_the_file_is_a_backbone_for_the_next_command(tmp_path, capsys):
    out = tmp_path / "pair.safetensors"
    assert main([*BASE, "--stream.max_train_per_class", "8", "--epochs", "2", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 80 and told["held_out_classes"] == 2 and told["trained"] >= told["closed_form"]
    pair = backbones.load(str(out))
    assert pair.is_image_text and pair.encode(["a photo of a 7."]).shape == (1, pair.width)
    small = ["--stream.max_train_per_class", "2", "--stream.max_test_per_class", "2"]
    run = ["run", "--stream", "digits", "--method", "frozen", "--backbone", str(out), *small]
    assert main([*run, "--out", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["zero_shot"]["retention"] in (None, 1.0)


@pytest.mark.parametrize(
    ("option", "value", "cause"),
    [
        ("--epochs", "-1", "--epochs: -1 is out of range"),
        ("--batch-size", "1", "--batch-size: 1 is out of range"),
        ("--seed", str(2**64), "is out of range"),
        ("--template", "a {}}", "put {} where the name"),
        ("--lr", "2", "--lr 2.0"),
        ("--template", "a photo", "put {} where the name"),
        ("--out", "pair.bin", "ends in .safetensors"),
        ("--out", "nowhere/pair.safetensors", "its folder does not exist"),
        ("--text", "vit-tinny", "unknown backbone"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(tmp_path, capsys, monkeypatch, option, value, cause):
    monkeypatch.chdir(tmp_path)
    options = {"--stream": "digits", "--image": "tiny", "--text": "tiny", "--out": "pair.safetensors", option: value}
    assert main(["lit", *(word for pair in options.items() for word in pair)]) == 2
    told = capsys.readouterr().err.strip().split("\n")
    assert len(told) == 1 and cause in told[0] and not any(tmp_path.iterdir())


def test_several_templates_may_be_given(tmp_path, capsys):
    out = ["--epochs", "0", "--out", str(tmp_path / "pair.safetensors"), "--json"]
    small = ["--stream.max_train_per_class", "2", "--template", "a {}", "--template", "the number {}."]
    assert main([*BASE, *small, *out]) == 0


def test_too_few_classes_are_refused(tmp_path, capsys):
    folder = tmp_path / "data.csv"
    folder.write_text("text,label\n" + "".join(f"word {n},{n % 2}\n" for n in range(40)))
    assert main(["lit", "--stream", str(folder), "--out", str(tmp_path / "pair.safetensors")]) == 2
    assert "has no images of named classes" in capsys.readouterr().err


def test_the_closed_form_is_ridge_regression_on_the_mean_images():
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(60, 6, generator=generator), torch.randn(12, 4, generator=generator)
    data = _Data(images, torch.arange(60) % 12, texts)
    pair = _closed_form(data, 0.5)
    centred = torch.nn.functional.normalize(images - images.mean(0), dim=1)
    means = torch.stack([centred[torch.arange(60) % 12 == label].mean(0) for label in range(12)])
    theirs = Ridge(0.5).fit(texts.double().numpy(), means.double().numpy())
    assert torch.allclose(pair.text.weight.double(), torch.from_numpy(theirs.coef_), atol=1e-6)
    assert torch.allclose(pair.text.bias.double(), torch.from_numpy(theirs.intercept_), atol=1e-6)


def test_training_is_the_same_with_a_seed():
    task = streams.load("digits", tasks=1, max_train_per_class=10)[0]
    image, text = backbones.load("tiny"), backbones.load("tiny")
    found = [train(image, text, task.train, task.class_names, epochs=3, batch_size=16, seed=3) for _ in range(2)]
    assert found[0].held_out == found[1].held_out and len(found[0].held_out) == 4
    pairs = [one.pair.tensors() for one in found]
    assert all(torch.equal(pairs[0][name], pairs[1][name]) for name in pairs[0])


def test_training_pulls_images_to_their_texts():
    generator = torch.Generator().manual_seed(2)
    centres, texts = torch.randn(8, 16, generator=generator), torch.randn(8, 12, generator=generator)
    labels = torch.arange(80) % 8
    data = _Data(centres[labels] + 0.3 * torch.randn(80, 16, generator=generator), labels, texts)
    start = torch.randn(16, 12, generator=generator)
    trainer = _Trainer(lit.Pair(data.images.mean(0), None, start, torch.zeros(16), 20.0), lr=1e-2)

    def accuracy(pair):
        scores = _projected(pair, data.images) @ torch.nn.functional.normalize(pair.text(texts)).T
        return (scores.argmax(1) == labels).float().mean().item()

    before = accuracy(trainer.pair)
    for _ in range(40):
        trainer.epoch(data, 20)
    assert accuracy(trainer.pair) > 0.95 > before
