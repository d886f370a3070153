"""A folder as the setfit package keeps it: a sentence-transformers encoder, the names of the classes, and the head.

The package keeps the head as a pickle, which can run code when it is read and is neither read nor written here. In its
place stand the numbers of scikit-learn's `LogisticRegression` as safetensors, under the names that it gives them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from everlearn import backbones
from everlearn.backbones.backbone import Backbone
from everlearn.backbones.folder import ModelFolder
from everlearn.backbones.tensors import in_float32, read_tensors, same_shapes
from everlearn.errors import DataError, EverlearnError, shown
from everlearn.heads.gaussian import LEAST
from everlearn.heads.logistic import Logistic
from everlearn.method import Method, Tags
from everlearn.settings import Seed
from everlearn.streams.stream import Task

CONFIG, HEAD, PICKLE = "config_setfit.json", "model_head.safetensors", "model_head.pkl"
CANNOT_LEARN = ("the folder of a SetFit model keeps no examples, and its head is fitted to those of all classes: learn "
                "old and new examples together, with --method setfit and the folder as --backbone")  # fmt: skip


class Classifier(Method):
    """What a folder of SetFit holds (Tunstall et al., 2022, https://arxiv.org/abs/2209.11055). It answers, and cannot
    learn more: the head is fitted to examples of all classes, and the folder keeps none."""

    tags = Tags(family="baseline", trains="nothing", inputs=("text",))

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.head = Logistic(backbone.width)

    def begin_task(self, task: Task) -> None:
        raise EverlearnError(CANNOT_LEARN)


def is_one(folder: Path) -> bool:
    """Whether it is the folder of a SetFit model, and not that of a run."""
    return not (folder / "config.yaml").exists() and any((folder / name).exists() for name in (CONFIG, HEAD, PICKLE))


def read(folder: Path) -> Classifier:
    """The classifier in a folder, whose head is in safetensors.

    Raises:
        DataError: the head is a pickle, or a file is missing, damaged, or says what is not computed here.
        EverlearnError: the encoder cannot be read.
    """
    file = folder / HEAD
    if not file.exists():
        cause = f"{folder} holds no {HEAD}"
        if (folder / PICKLE).exists():
            cause = f"{folder / PICKLE} is a pickle, which can run code when it is read, and so it never is"
        raise DataError(f"{cause}: fit the head again to your examples: everlearn run --stream EXAMPLES.csv --tasks 1 "
                        f"--backbone {folder} --method logistic --out RUN")  # fmt: skip
    told: dict[str, Any] = ModelFolder(str(folder)).read_json(CONFIG)
    names = told.get("labels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) != len(names):
        raise DataError(f"{folder / CONFIG}: labels is {shown(names)}, not different names of the classes: copy the "
                        "folder again")  # fmt: skip
    if len(names) < 2 or told.get("normalize_embeddings") is not True:
        raise DataError(f"{folder / CONFIG} describes fewer than two classes, or a head on features that are not "
                        f"normalised: export it again with everlearn export --to setfit")  # fmt: skip
    method = Classifier(backbones.load_when_needed(str(folder)))
    width, rows = method.backbone.width, len(names) if len(names) > 2 else 1
    tensors = in_float32(read_tensors(file), file)
    same_shapes(tensors, {"coef_": [rows, width], "intercept_": [rows]}, file, CONFIG)
    weight, offset = tensors["coef_"].T, tensors["intercept_"]
    if rows == 1:  # scikit-learn keeps the difference of the two scores
        weight, offset = torch.cat([-weight, weight], 1) / 2, torch.cat([-offset, offset]) / 2
    method.head.grow(names)
    method.head.weight, method.head.offset = weight.contiguous(), offset
    method.task = Task(0, folder.name, tuple(range(len(names))), tuple(names)).sealed()
    return method


def write_head(method: Method, temperature: float | None, folder: Path) -> None:
    """Write the head, and the names of the classes. Probabilities keep their temperature: it divides the weights.

    Raises:
        EverlearnError: the head is another than logistic regression, or knows a single class.
    """
    if not isinstance(method.head, Logistic) or type(method).predict is not Method.predict:
        raise EverlearnError(f"SetFit's head is logistic regression, and {type(method).__name__} answers by something "
                             "else: learn with --method setfit or logistic, or export the encoder alone with --to "
                             "sentence-transformers")  # fmt: skip
    names = method.task.class_names
    if len(names) < 2:
        raise EverlearnError(f"the model knows one class, '{names[0]}', and SetFit's head tells at least two apart: "
                             "learn another class first")  # fmt: skip
    from safetensors.torch import save_file

    weight = method.head.weight.T / (temperature or 1.0)
    offset = (method.head.offset / (temperature or 1.0)).clamp_min(LEAST)
    if len(names) == 2:
        weight, offset = weight[1:] - weight[:1], offset[1:] - offset[:1]
    save_file({"coef_": weight.contiguous(), "intercept_": offset.contiguous()}, folder / HEAD)
    told = {"normalize_embeddings": True, "labels": list(names)}
    (folder / CONFIG).write_text(json.dumps(told, indent=2, ensure_ascii=False), encoding="utf-8")
