"""A learned model, loaded from its run's folder: it can be asked, and can learn on, without its old data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from everlearn import backbones, checkpoint, methods
from everlearn.config import check_arguments
from everlearn.errors import EverlearnError
from everlearn.method import Method, Role
from everlearn.protocol import read_run
from everlearn.session import load_saved, restore_method
from everlearn.streams.inputs import Input


class Model:
    """A trained method with the names of its classes. `everlearn.engine.learn(model.method, task)` teaches it
    one more task.

    Args:
        method: the method, restored.
        columns: the columns of its training data that the user named, by role (text, image, id).
    """

    def __init__(self, method: Method, columns: Mapping[str, str | None] | None = None) -> None:
        self.method, self.columns = method.eval(), dict(columns or {})

    @property
    def class_names(self) -> list[str]:
        """The names of the classes in the order of the scores; empty where the goal is ranking."""
        return list(self.method.task.class_names)

    def predict(self, inputs: Sequence[Input]) -> list[str]:
        """The class name of each input.

        Raises:
            EverlearnError: the inputs are a single text or image and not a list.
        """
        return [self.class_names[k] for k in self._scores(inputs).argmax(1).tolist()]

    def predict_proba(self, inputs: Sequence[Input]) -> np.ndarray:
        """The softmax of the scores (n, classes). For heads that score by cosine or least squares it
        orders the classes, but is not calibrated."""
        return self._scores(inputs).double().softmax(1).numpy()

    def embed(self, inputs: Sequence[Input], role: Role = "query") -> np.ndarray:
        """Features (n, width), float32; where the goal is ranking, of queries or of documents."""
        with torch.no_grad():
            return self.method.embed(inputs, role).float().cpu().numpy()

    def _scores(self, inputs: Sequence[Input]) -> torch.Tensor:
        if isinstance(inputs, str | bytes | Path):
            raise EverlearnError("a list of inputs is needed, and this is a single one: give [input]")
        if not self.class_names:
            raise EverlearnError("a retrieval model has no classes to predict: use embed")
        with torch.no_grad():
            scores = self.method.predict(inputs).float().cpu()
        if scores.shape != (len(inputs), len(self.class_names)) or not scores.isfinite().all():
            raise EverlearnError(f"the model gives scores {tuple(scores.shape)} for {len(inputs)} inputs and "
                                 f"{len(self.class_names)} classes, or scores that are not finite: its checkpoint is "
                                 "damaged; learn the run again")  # fmt: skip
        return scores


def load(directory: str | Path, *, method: str | type[Method] | None = None) -> Model:
    """The model of a run, as it was after the last task that was saved.

    Args:
        directory: a run's folder.
        method: the method that the folder holds. It must be given where that is not a method of everlearn, because
            code is never imported at the word of a file.

    Raises:
        EverlearnError: not a run's folder, nothing saved yet, a damaged checkpoint, other weights, or a method that
            is not the expected one.
    """
    folder = Path(directory)
    config, _ = read_run(folder)
    name = checkpoint.newest(folder / "checkpoints")
    if name is None:
        raise EverlearnError(f"{folder} holds no checkpoint yet: run `everlearn resume {folder}`")
    cls = methods.named_by(folder, config["method"]["name"], method)
    saved = load_saved(folder / "checkpoints", name)
    if saved.state["step"]:
        raise EverlearnError(f"{folder} stopped inside task {saved.state['task'] + 1}: run `everlearn resume {folder}`")
    given = {key: value for key, value in config["method"].items() if key != "name"}
    settings = check_arguments("method", cls, given)
    if config["backbone"] is None:
        raise EverlearnError(f"{folder / 'config.yaml'} names no backbone: learn the run again")
    learned = cls(backbones.load(config["backbone"]), **settings, seed=config["seed"])
    restore_method(learned.to("cuda" if torch.cuda.is_available() else "cpu"), saved)
    columns = {role: config["stream"].get(f"{role}_column") for role in ("text", "image", "id")}
    return Model(learned, columns)
