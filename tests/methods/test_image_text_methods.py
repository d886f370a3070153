"""What the papers of methods with two towers claim and the contract cannot know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from everlearn import backbones, methods
from everlearn.engine import Learning, Listener, learn
from everlearn.errors import EverlearnError
from everlearn.method import Method, Tags
from everlearn.schedules import cosine
from everlearn.streams.stream import Examples
from everlearn.testing import tiny_pair, toy_stream

SMALL = {"epochs": 2, "batch_size": 8, "lr": 1e-3}


def weights_of(method: Method) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in method.backbone.parameters()])


class Plain(Method):
    """Fine-tuning of both encoders, and nothing else."""

    tags = Tags(family="baseline", trains="backbone", inputs=("image",), needs=("class names", "two towers"))
    schedule = staticmethod(cosine)

    def __init__(self, backbone, **settings) -> None:
        super().__init__(backbone, **settings)
        backbone.requires_grad_(True)

    def losses(self, batch: Examples) -> torch.Tensor:
        names = [self.task.class_names[k] for k in self.task.classes]
        texts = self.backbone.class_features(names, self.backbone)
        scores = self.backbone.scale * normalize(self.backbone(batch.inputs)) @ texts.T
        return cross_entropy(scores, batch.labels - self.task.classes[0], reduction="none", label_smoothing=0.2)


# -- zscl --------------------------------------------------------------------------------------------
def test_zscl_without_its_three_terms_is_plain_fine_tuning():
    stream = toy_stream("image")
    plain, none = Plain(tiny_pair(), **SMALL), methods.get("zscl")(tiny_pair(), strength=0, pull=0, every=0, **SMALL)
    for task in stream:
        learn(plain, task)
        learn(none, task)
    assert torch.equal(weights_of(plain), weights_of(none))
    assert not torch.equal(weights_of(none), weights_of(Plain(tiny_pair())))
    for name in ("strength", "pull"):
        other = methods.get("zscl")(tiny_pair(), **{"strength": 0, "pull": 0, "every": 0, name: 1.0}, **SMALL)
        for task in stream:
            learn(other, task)
        assert not torch.equal(weights_of(other), weights_of(none))


class Snapshots(Listener):
    def __init__(self, every: int) -> None:
        self.every, self.kept = every, []

    def begun(self, learning: Learning) -> None:
        self.kept = [weights_of(learning.method)]

    def stepped(self, learning: Learning) -> None:
        if learning.step % self.every == 0 or learning.step == learning.steps:
            self.kept.append(weights_of(learning.method))


@pytest.mark.parametrize("every", [3, 4, 100])
def test_zscl_leaves_the_running_mean_of_its_snapshots(every):
    method, seen = methods.get("zscl")(tiny_pair(), every=every, **SMALL), Snapshots(every)
    for task in toy_stream("image", tasks=2):
        learning = learn(method, task, seen)
        assert learning.steps == 8 and len(seen.kept) == {3: 4, 4: 3, 100: 2}[every]
        torch.testing.assert_close(weights_of(method), torch.stack(seen.kept).mean(0), rtol=1e-5, atol=1e-6)
        assert method.before.stored_bytes() == method.mean.stored_bytes() == 0  # nothing of the task is stored


def test_zscl_compares_with_the_pair_before_the_first_task():
    stream, untouched = toy_stream("image"), tiny_pair()
    method = methods.get("zscl")(tiny_pair(), **SMALL)
    learn(method, stream[0])
    method.begin_task(stream[1].sealed())
    moved = weights_of(method)
    method.batches(stream[1].for_learning())
    assert torch.equal(moved, weights_of(method)) and not torch.equal(moved, weights_of(Plain(untouched)))
    torch.testing.assert_close(method._reference.seen, normalize(untouched.encode(stream[1].train.inputs)))
    texts = untouched.class_features(stream[1].class_names)
    torch.testing.assert_close(method._reference.read, texts)
    assert method._drift(method._reference) > 1e-4
    with method._initially():
        assert method._drift(method._reference).item() == pytest.approx(0, abs=1e-4)


def test_zscl_takes_a_reference_by_name_and_refuses_one_without_images():
    stream = toy_stream("image")
    method = methods.get("zscl")(tiny_pair(), reference="digits", reference_size=30, **SMALL)
    learning = learn(method, stream[0])
    assert learning.steps == 8 and "a photo of a 7." in method._of_file()[1] and len(method._of_file()[0]) == 30
    with pytest.raises(EverlearnError, match=r"method\.reference: clinc150 holds no images"):
        learn(methods.get("zscl")(tiny_pair(), reference="clinc150", **SMALL), stream[0])


# -- proof -------------------------------------------------------------------------------------------
def test_proof_leaves_the_projections_and_prompts_of_old_tasks_as_they_are():
    for compat in (False, True):
        method, kept = methods.get("proof")(tiny_pair(), lr=0.02, epochs=2, batch_size=8, paper_compat=compat), {}
        for task in toy_stream("image"):
            learn(method, task)
            now = {name: tensor.clone() for name, tensor in method.fusion.state_dict().items()}
            moved = [name for name in kept if not torch.equal(kept[name], now[name])]
            own = ("attention.", "norm.") if not compat else ("attention.", "norm.", "texts.")
            assert all(name.startswith(own) for name in moved) and (bool(moved) or task.index == 0)
            assert any(name.startswith("texts.") for name in moved) == (compat and task.index > 0)
            kept = now
        assert [len(method.fusion.images), len(method.fusion.texts), len(method.fusion.context)] == [3, 3, 9]


def test_proof_answers_each_image_alone_and_the_released_code_does_not():
    stream = toy_stream("image")
    asked = [item for task in stream for item in task.test.inputs]
    for compat in (False, True):
        method = methods.get("proof")(tiny_pair(), lr=0.02, epochs=2, batch_size=8, paper_compat=compat)
        for task in stream:
            learn(method, task)
        alone = torch.cat([method.predict([item]) for item in asked])
        apart = (method.predict(asked) - alone).abs().max().item()  # of scores around 38
        assert apart > 3e-4 if compat else apart < 1e-4


def test_proof_adds_the_scores_of_text_fused_text_and_fused_prototype():
    stream, method = toy_stream("image"), methods.get("proof")(tiny_pair(), lr=0.02, epochs=2, batch_size=8)
    for task in stream:
        learn(method, task)
    train = Examples.concatenate([task.train for task in stream])
    features = normalize(method.backbone.encode(train.inputs))
    means = torch.stack([features[train.labels == k].mean(0) for k in range(6)])
    asked = normalize(method.backbone.encode(stream[1].test.inputs))
    fusion, texts = method.fusion, method.backbone.class_features(stream[2].class_names)

    def projected(x: torch.Tensor, projections) -> torch.Tensor:
        return normalize(sum(projection(x) for projection in projections), dim=-1)

    for row, image in enumerate(projected(asked, fusion.images)):
        told = projected(texts, fusion.texts)
        tokens = torch.cat([image[None], told, projected(means, fusion.images), fusion.context])
        with torch.no_grad():
            seen = fusion.norm(tokens + fusion.attention(tokens, tokens, tokens)[0])
        expected = told @ image + seen[1:7] @ seen[0] + seen[7:13] @ seen[0]
        torch.testing.assert_close(method.predict(stream[1].test.inputs)[row], expected, rtol=1e-4, atol=1e-4)


def test_proof_keeps_the_examples_whose_mean_is_nearest_to_the_mean_of_their_class():
    stream, apart = toy_stream("image"), {"herded": [], "drawn": []}
    method = methods.get("proof")(tiny_pair(), epochs=1, memory_size=12, lr=0.02)
    for task in stream:
        learn(method, task)
    held, pair = method.memory.examples(), tiny_pair()
    assert held.labels.bincount().tolist() == [2] * 6
    for task in stream:
        features = normalize(pair.encode(task.train.inputs))
        for label in task.classes:
            own = features[task.train.labels == label]
            kept = [row for row, name in enumerate(task.train.ids) if name in held.ids]
            mine = [row for row in kept if task.train.labels[row] == label]
            apart["herded"].append((own.mean(0) - features[mine].mean(0)).norm().item())
            pairs = [(own.mean(0) - own[[i, j]].mean(0)).norm().item() for i in range(len(own)) for j in range(i)]
            apart["drawn"].append(sum(pairs) / len(pairs))
    assert all(a < b for a, b in zip(apart["herded"], apart["drawn"], strict=True))


# -- prompt_fusion -----------------------------------------------------------------------------------
FUSION = {"epochs": 2, "batch_size": 8, "lr": 0.02, "context": 3, "length": 2, "memory_size": 12}


def test_prompt_fusion_at_shares_0_and_1_is_each_of_its_parts():
    stream, method = toy_stream("image"), methods.get("prompt_fusion")(tiny_pair(), **FUSION)
    for task in stream:
        learn(method, task)
    asked, pair = stream[1].test.inputs, tiny_pair()
    texts = method.texts.embeddings
    stable = 20.0 * normalize(pair.encode(asked)) @ texts.T
    boosted = method.head(method.backbone(asked))
    assert (boosted - stable).abs().max() > 1
    for share, part in ((-torch.inf, stable), (torch.inf, boosted), (0.0, (stable + boosted) / 2)):
        with torch.no_grad():
            method.mixture.fill_(share)
        torch.testing.assert_close(method.predict(asked), part.detach(), rtol=1e-4, atol=1e-4)
    with pair.pretrained(), torch.no_grad():  # without its prompts, the booster reads as the pair does
        assert not torch.allclose(method.backbone(asked), pair(asked), atol=1e-3)


def test_prompt_fusion_learns_the_vectors_of_a_class_in_its_own_task_alone():
    method, kept = methods.get("prompt_fusion")(tiny_pair(), **FUSION), {}
    for task in toy_stream("image"):
        learn(method, task)
        now = {label: vectors.detach().clone() for label, vectors in enumerate(method.vectors)}
        assert len(now) == len(task.class_names) == len(method.texts.embeddings)
        assert all(torch.equal(vectors, now[label]) for label, vectors in kept.items())
        with torch.no_grad():
            for label, text in enumerate(method.texts.embeddings):  # what is kept of old texts is what they say
                read = method._read([label])[0]
                torch.testing.assert_close(text, read, rtol=1e-4, atol=1e-5)
        kept = now
    other = method.reader(["x x x class 0."])
    assert not torch.allclose(normalize(other)[0], method.texts.embeddings[0], atol=1e-2)


def test_prompt_fusion_weighs_old_and_new_classes_by_learned_numbers():
    method, stream = methods.get("prompt_fusion")(tiny_pair(), **FUSION), toy_stream("image")
    for task in stream.tasks[:2]:
        learn(method, task)
    method.begin_task(stream[2].sealed())
    batch = Examples.concatenate([stream[0].train, stream[2].train])
    with torch.no_grad():
        method.weights.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, 0.0]))
        plain = cross_entropy(method.scores(batch.inputs), batch.labels, reduction="none")
        ratio = method.losses(batch) / plain
    sigma = torch.tensor([0.0, 1.0, 2.0]).sigmoid()
    expected = {0: 1 / sigma[0], 1: 1 / sigma[1], 4: sigma[2], 5: sigma[0]}  # t / 2 is 1 in the third task
    torch.testing.assert_close(ratio, torch.stack([expected[label] for label in batch.labels.tolist()]))
    method.loss(batch).backward()
    assert all(grad is not None and grad.abs().sum() > 0 for grad in (method.mixture.grad, method.weights.grad))


def test_prompt_fusion_lite_gives_each_image_the_answer_of_the_part_that_its_gate_chooses():
    stream, method = toy_stream("image"), methods.get("prompt_fusion")(tiny_pair(), boosted=0.4, **FUSION)
    gates = []
    for task in stream:
        learn(method, task)
        gates.append(torch.cat([weight.detach().flatten() for weight in method.gate.parameters()]))
    assert not torch.equal(gates[0], gates[1]) and not torch.equal(gates[1], gates[2])
    asked = [item for task in stream for item in task.test.inputs]
    with torch.no_grad():  # so that it chooses both, and the middle image is the limit
        scores = method.gate(normalize(tiny_pair().encode(asked)))
        method.gate.answer.bias[0] -= (scores[:, 0] - scores[:, 1]).median()
    chosen, stable = method.is_boosted(asked), method.stable(asked)
    assert 0.3 < chosen.float().mean() < 0.7
    both = stable + method.head(method.embed(asked))
    passed, answers = method.backbone.passed, method.predict(asked)
    assert method.backbone.passed - passed == int(chosen.sum()), "a spared image goes through no encoder"
    torch.testing.assert_close(answers, torch.where(chosen[:, None], both, stable), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both, stable, atol=0.1)
    spared = method.measures(asked, 0)["answered without booster"]
    assert spared == pytest.approx(1 - chosen.float().mean().item())
    with torch.no_grad():
        method.gate.answer.bias[0] -= 100
    assert torch.equal(method.predict(asked), method.stable(asked)), "all are spared"


@pytest.mark.parametrize("target", [0.1, 0.9])
def test_prompt_fusion_lite_moves_towards_the_share_that_is_asked_for(target):
    task = toy_stream("image", tasks=1)[0]
    method = methods.get("prompt_fusion")(tiny_pair(), boosted=target, **{**FUSION, "epochs": 12, "lr": 0.05})
    learn(method, task)
    with torch.no_grad():
        share = method.gate(normalize(method.backbone.encode(task.train.inputs))).softmax(1)[:, 0].mean()
    assert (share > 0.5) == (target > 0.5)


def test_of_a_pair_aper_trains_the_image_encoder_alone() -> None:
    method = methods.get("aper")(tiny_pair(), train="full", epochs=1)
    stream = toy_stream("image", tasks=1)
    method.begin_task(stream[0].sealed())
    trained = [p for p in method.adapted.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in method.adapted.first.parameters()}
    method.end_task(stream[0])
    assert not any(name.startswith("adapted") for name in method.trained())


# -- all ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["prompt_fusion", "proof", "zscl"])
def test_a_backbone_that_is_no_pair_is_refused(name):
    with pytest.raises(EverlearnError, match="is no pair of an image encoder and a text encoder"):
        methods.get(name)(backbones.load("tiny"))


@pytest.mark.parametrize("name", ["prompt_fusion", "proof", "zscl"])
def test_what_is_read_of_classes_is_their_names(name):
    """With the names of two classes exchanged, nothing else of the data tells that anything has changed."""
    stream = toy_stream("image", tasks=1)
    other = replace(stream[0], class_names=stream[0].class_names[::-1])
    learned = []
    for task in (stream[0], other):
        method = methods.get(name)(tiny_pair(), **SMALL)
        learn(method, task)
        learned.append(method.predict(task.test.inputs))
    assert not torch.allclose(*learned)
