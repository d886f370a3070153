"""A learned model, loaded from its run's folder: it can be asked, and can learn on, without its old data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everlearn import backbones, checkpoint, methods, setfit_folder, versions
from everlearn.calibration import probabilities, scores_of
from everlearn.config import check_arguments
from everlearn.errors import EverlearnError, as_word
from everlearn.method import Method, Role
from everlearn.protocol import read_run
from everlearn.session import restore_method
from everlearn.settings import Count, Natural, Share, checked
from everlearn.streams.inputs import Input, listed
from everlearn.streams.records import BadRows, Record
from everlearn.streams.stream import Stream
from everlearn.versions import Version

COLUMNS = ("text_column", "image_column", "label_column", "split_column", "id_column")
"""The settings of a stream that say where an update finds its data."""


class Model:
    """A trained method with the names of its classes. It can be asked, and `update` teaches it new data.

    Args:
        method: the method, restored.
        columns: the columns of its training data that the user named, by role (text, image, label, split, id).
        temperature: what scores are divided by to become probabilities (`everlearn.calibration`); None where it was
            not fitted.
        directory: the run's folder.
        version: which of the folder's versions it is.

    >>> from everlearn import backbones, engine, methods, streams
    >>> method = methods.get("simplecil")(backbones.load("tiny"))
    >>> task = streams.task_from([streams.Record("tea please", "drink"), streams.Record("a sofa", "furniture")])
    >>> _ = engine.learn(method, task)
    >>> model = Model(method)
    >>> model.predict(["a sofa"]), model.predict_proba(["a sofa"]).shape
    (['furniture'], (1, 2))
    """

    def __init__(
        self, method: Method, columns: Mapping[str, str | None] | None = None, *, temperature: float | None = None,
        directory: Path | None = None, version: int = 1,
    ) -> None:  # fmt: skip
        self.method, self.columns = method.eval(), dict(columns or {})
        self.temperature, self.directory, self.version = temperature, directory, version
        self._learned = method.task.index

    @property
    def class_names(self) -> list[str]:
        """The names of the classes in the order of the scores; empty where the goal is ranking."""
        return list(self.method.task.class_names)

    def predict(self, inputs: Sequence[Input]) -> list[str]:
        """The class name of each input.

        Args:
            inputs: n texts or images, as a list, an array or a column of a table.

        Raises:
            EverlearnError: the inputs are a single text or image and not a list, or one of them is neither.
        """
        return [self.class_names[k] for k in self._scores(inputs).argmax(1).tolist()]

    def predict_proba(self, inputs: Sequence[Input], *, progress: bool = False) -> np.ndarray:
        """The probabilities of the classes (n, classes), which sum to 1: softmax(scores / temperature).

        Of the answers given with a probability of 0.8, about 80 in 100 are right on data like that of the training,
        because the temperature was fitted on examples that were not learned. The report shows how closely.

        Args:
            progress: whether to show a progress bar.
        """
        return probabilities(self._scores(inputs, progress), self.temperature).numpy()

    def evaluate(
        self, data: str | Path | Stream | Sequence[Record], *, skip_bad_rows: bool = False, progress: bool = False,
        **columns: str | None,
    ) -> dict[str, Any]:  # fmt: skip
        """Scores on labelled examples that the model has not learned. Nothing is learned or written.

        Args:
            data: as for `update`. Where rows are of the split test, these alone are scored.
            skip_bad_rows, columns: as for `update`.
            progress: whether to show a progress bar.

        Returns:
            `version`, `data`, `examples`, `accuracy`, `expected_calibration_error` (by how much the probabilities of
            the answers differ from the shares of right ones), `per_class` (precision, recall and F1), `confusion` and
            `notes`. An example of a class that the model does not know counts as wrong.

        Raises:
            DataError: the data cannot be used; the message names the row.
            EverlearnError: the model ranks documents, or learned another kind of input.

        >>> from everlearn import backbones, engine, methods, streams
        >>> rows = [Record("tea please", "drink"), Record("a sofa", "furniture")]
        >>> method = methods.get("simplecil")(backbones.load("tiny"))
        >>> _ = engine.learn(method, streams.task_from(rows))
        >>> scores = Model(method).evaluate(rows)
        >>> scores["accuracy"], scores["per_class"][1]["name"]
        (1.0, 'furniture')
        """
        from everlearn.scores import scores_on

        needed, learned = _to_read(self.columns, _by_role(columns, "an evaluation"))
        answer = partial(self.predict_proba, progress=progress)
        scores = scores_on(self.method.task, answer, data, needed, learned, BadRows(skip_bad_rows))
        return {"version": self.version, **scores}

    def update(
        self, data: str | Path | Stream | Sequence[Record], *, test: str | Path | None = None, keep: int | None = None,
        progress: bool = False, skip_bad_rows: bool = False, **columns: str | None,
    ) -> Version:  # fmt: skip
        """Learn new data: new classes, new domains, or more of the old. The run's folder gets a new version, which
        this model is then; `everlearn.versions.rollback` goes back to the version before.

        Args:
            data: a file or folder as a run reads it, a Stream (`everlearn.streams.from_rows(texts, labels)` makes one),
                or records. Where documents are ranked: queries with their documents, as a run reads them, or a Stream.
            test: the file with test examples. Without it, a fifth of the new examples of each class is held out.
            keep: how many held-out examples the folder keeps, 0 for none; by default as the run does.
            progress: whether to show progress bars.
            skip_bad_rows: leave out rows that cannot be used, and count them in the notes.
            columns: text_column, image_column, label_column, split_column, id_column, where the data's differ from
                those of the run.

        Returns:
            What the version is: `old` and `new` hold the accuracy on held-out examples before and after. Where
            documents are ranked, it is nDCG@10, and `retrieval` holds the verdict on the old indexes.

        Raises:
            DataError: the data cannot be used; the message names the row.
            EverlearnError: the model is of no folder or not of the folder's current version, or cannot learn the data.

        >>> import everlearn, tempfile
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> small = {"name": "clinc150", "tasks": 2, "max_train_per_class": 2, "max_test_per_class": 1}
        >>> _ = everlearn.run("simplecil", small, backbone="tiny", out=folder)
        >>> model = load(folder)
        >>> texts = ["water the roses", "trim the hedge", "is the lawn dry"]
        >>> model.update([Record(text, "garden") for text in texts]).new_classes
        ['garden']
        >>> len(model.class_names)
        151
        """
        if isinstance(self.method, setfit_folder.Classifier):
            raise EverlearnError(setfit_folder.CANNOT_LEARN)
        if self.directory is None:
            raise EverlearnError("the model was not loaded from a folder: teach it with everlearn.engine.learn")
        if (now := versions.current(self.directory)) != self.version:
            raise EverlearnError(f"{self.directory} is at version {now} now, and this model is version {self.version}: "
                                 "load it again")  # fmt: skip
        if self.method.task.index != self._learned:
            raise EverlearnError("the model was taught by hand since it was loaded, and an update starts from its "
                                 "folder: load it again")  # fmt: skip
        new, version = update(self.directory, data, test=test, keep=keep, method=type(self.method), progress=progress,
                              skip_bad_rows=skip_bad_rows, **columns)  # fmt: skip
        self.__dict__ |= new.__dict__
        return version

    def export(self, to: str, out: str | Path) -> Path:
        """Write the model for another library, which gives equal answers there (`everlearn.export.export`).

        Args:
            to: "sentence-transformers" (the encoder as a folder), "setfit" (the same with its head of logistic
                regression) or "onnx" (the classifier as a file).
            out: a folder that does not exist yet, or is empty.

        Returns:
            The folder.

        Raises:
            EverlearnError: the other library could not give equal answers, or is not installed; the message says why.
        """
        from everlearn.export import export

        return export(self.method, to, out, temperature=self.temperature)

    def embed(self, inputs: Sequence[Input], role: Role | None = None) -> np.ndarray:
        """Features (n, width), float32; where the goal is ranking, of queries (unless said otherwise) or documents."""
        if role is None and self.method.task.goal == "ranking":
            role = "query"
        with torch.no_grad():
            return self.method.embed(listed(inputs), role).float().cpu().numpy()

    def encode_query(self, queries: Sequence[Input]) -> np.ndarray:
        """Embeddings (n, width) of queries, float32, to search the documents of `encode_document`."""
        return self.embed(queries, "query")

    def encode_document(self, documents: Sequence[Input]) -> np.ndarray:
        """Embeddings (n, width) of documents, float32, to be put into an index (`everlearn.Index`)."""
        return self.embed(documents, "document")

    def _scores(self, inputs: Sequence[Input], progress: bool = False) -> torch.Tensor:
        inputs = listed(inputs)
        if not self.class_names:
            raise EverlearnError("a retrieval model has no classes to predict: use embed, or on the command line "
                                 "everlearn index create and everlearn index search")  # fmt: skip
        scores = scores_of(self.method, inputs, progress)
        is_whole = not scores.isnan().any() and bool((scores.isfinite().any(1) & (scores < math.inf).all(1)).all())
        if scores.shape != (len(inputs), len(self.class_names)) or not is_whole:  # -inf is a class that is ruled out
            raise EverlearnError(f"the model gives scores {tuple(scores.shape)} for {len(inputs)} inputs and "
                                 f"{len(self.class_names)} classes, or scores that are not finite: its checkpoint is "
                                 "damaged; learn the run again")  # fmt: skip
        return scores


def load(directory: str | Path, *, method: str | type[Method] | None = None, version: Count | None = None) -> Model:
    """The model of a run, as it was after the last task that was saved, or of a folder in the format of setfit.

    Args:
        directory: a run's folder, or that of a SetFit model whose head is no pickle (`everlearn export --to setfit`
            writes such a one). It answers, and cannot be updated.
        version: which of the folder's versions; by default the current one.
        method: the method that the folder holds. It must be given where that is not a method of everlearn, because
            code is never imported at the word of a file.

    Raises:
        EverlearnError: not a run's folder, no such version, nothing saved yet, a damaged checkpoint, other weights,
            or a method that is not the expected one.

    >>> import everlearn, tempfile
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> small = {"name": "clinc150", "tasks": 2, "max_train_per_class": 2, "max_test_per_class": 1}
    >>> _ = everlearn.run("simplecil", small, backbone="tiny", out=folder)
    >>> model = load(folder)
    >>> len(model.class_names)
    150
    """
    checked("version", version, Count | None)
    if setfit_folder.is_one(Path(directory)):
        if method is not None or version is not None:
            raise EverlearnError(f"{directory} is the folder of a SetFit model, which has neither versions nor another "
                                 "method: leave method and version out")  # fmt: skip
        return Model(setfit_folder.read(Path(directory)))
    return _restored(Path(directory), method, version)[0]


def update(
    directory: str | Path, data: str | Path | Stream | Sequence[Record], *, test: str | Path | None = None,
    keep: int | None = None, method: str | type[Method] | None = None, progress: bool = False,
    skip_bad_rows: bool = False, **columns: str | None,
) -> tuple[Model, Version]:  # fmt: skip
    """Have a finished run learn new data, as `Model.update` does, without loading it first.

    The version before stays as it is, and answers until the new one is completely written.

    Args:
        directory: the run's folder.
        method: the method that the folder holds; needed where it is not a method of everlearn.
        data, test, keep, progress, skip_bad_rows, columns: as for `Model.update`.

    Returns:
        The new model, and the record of its version.

    Raises:
        DataError: the data cannot be used; the message names the row.
        EverlearnError: the folder holds no finished run of classes, the method cannot learn the data, or another
            process is learning there.
        Interrupted: Ctrl-C; the folder is as before.

    >>> import everlearn, tempfile
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> few = {"name": "clinc150", "tasks": 2, "max_train_per_class": 2, "max_test_per_class": 1}
    >>> _ = everlearn.run("simplecil", few, backbone="tiny", out=folder)
    >>> texts = ["water the roses", "trim the hedge", "is the lawn dry", "plant the beans", "feed the fish"]
    >>> model, version = update(folder, [Record(text, "garden") for text in texts])
    >>> model.version, version.new_classes, version.learned, version.new["examples"]
    (2, ['garden'], 4, 1)
    """
    from everlearn.update import learn_version

    folder = Path(directory)
    checked("keep", keep, Natural | None)
    given = _by_role(columns, "an update")
    if setfit_folder.is_one(folder):
        raise EverlearnError(setfit_folder.CANNOT_LEARN)
    config, saving = read_run(folder)
    if not (folder / "results.json").exists():
        raise EverlearnError(f"{folder} has not learned all its tasks yet: run `everlearn resume {as_word(folder)}` "
                             "first")  # fmt: skip
    needed, optional = _to_read(_columns_of(config), given)

    def restore() -> tuple[Method, checkpoint.Checkpoint]:
        model, saved = _restored(folder, method)
        return model.method, saved

    learned, version = learn_version(
        folder, restore, data, test=test, columns=needed, learned=optional, skip_bad_rows=skip_bad_rows,
        titles=bool(config["stream"].get("titles")),
        keep=saving["keep"] if keep is None else keep, progress=progress,
    )  # fmt: skip
    return _model(learned, config, folder, version.version, version.temperature), version


def merge(
    directories: Sequence[str | Path], out: str | Path, *, how: str | None = None,
    weights: Sequence[float] | None = None, density: Share = 0.2, drop: Share = 0.9, target: Share | None = None,
    data: str | Path | None = None, method: str | type[Method] | None = None,
) -> tuple[Model, Version]:  # fmt: skip
    """Make one model of several finished runs of one method that learned different data on the same backbone.

    Where the method keeps sums (`Tags.exact`), the model is as if one run had learned all. Else the trained weights are
    averaged; classes are matched by name, and a class that one run alone knows keeps its row of the head. Heads that
    were trained apart were never compared with each other, so such a model is a start, not the end.

    Args:
        directories: at least two run folders.
        out: a new or empty folder. It becomes a copy of the first run's, with one more version: the merged model.
        how: average (the default where the method trains), fisher (by how much each weight matters to each run, on the
            validation examples that it keeps), ties or dare (of what training has changed in the encoder; rows of the
            head are averaged), or interpolate (of two runs, as much of the second as the target allows).
        weights: a number for each run; equal by default.
        density: for ties, the share of the changes that is kept.
        drop: for dare, the share of the changes that is dropped.
        target: to interpolate, the share of the first run's accuracy on `data` that must stay.
        data: to interpolate, a file of labelled examples of what the first run learned, which are no test examples.
        method: the method that the folders hold; needed where it is not a method of everlearn.

    Returns:
        The model and the record of its version: `old` and `new` hold the accuracy on held-out examples of the first run
        and of the others, of the first model (before) and of the merged one (after).

    Raises:
        EverlearnError: the runs differ in more than their data, are not finished, cannot be merged, or the folder
            exists already.

    >>> import everlearn, tempfile
    >>> folder, words = tempfile.mkdtemp(), ["red", "green", "blue", "grey", "white", "black"]
    >>> for name, label in (("one", "drink"), ("two", "garden")):
    ...     rows = everlearn.streams.from_rows([f"{word} {label}" for word in words], [label, "sofa"] * 3)
    ...     _ = everlearn.run("simplecil", rows, backbone="tiny", out=f"{folder}/{name}")
    >>> model, version = merge([f"{folder}/one", f"{folder}/two"], f"{folder}/both")
    >>> sorted(model.class_names), version.merged["how"]
    (['drink', 'garden', 'sofa'], 'exact')
    """
    from everlearn.merge_runs import Part, merge_parts, validation_of

    for name, share in (("density", density), ("drop", drop), ("target", target)):
        checked(name, share, Share if name != "target" else Share | None)
    folders, place = [Path(directory) for directory in directories], Path(out)
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise EverlearnError("merge: give at least two folders of different runs")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise EverlearnError(f"{place} exists already: give a new folder with --out")
    parts = []
    for folder in folders:
        if not (folder / "results.json").exists():
            raise EverlearnError(f"{folder} holds no finished run: give the folder of one, or run `everlearn resume "
                                 f"{as_word(folder)}` first")  # fmt: skip
        model, saved = _restored(folder, method)
        parts.append(Part(folder, model.method, partial(_built, folder, type(model.method)), saved, model.version))
    if inside := [folder for folder in folders if folder.resolve() in place.resolve().parents]:
        raise EverlearnError(f"{place} is inside {inside[0]}, which it would be a copy of: give a folder elsewhere")
    config = read_run(folders[0])[0]
    columns = _to_read(_columns_of(config), {})[0]
    validation = None if data is None else validation_of(parts[0], Path(data), columns)
    merged, record = merge_parts(parts, place, how=how, weights=weights, density=density, drop=drop, target=target,
                                 validation=validation)  # fmt: skip
    version = Version(record, place)
    return _model(merged, config, place, version.version, version.temperature), version


def _restored(
    folder: Path, method: str | type[Method] | None = None, version: int | None = None
) -> tuple[Model, checkpoint.Checkpoint]:
    """The model of a version of the folder, by default the current one, and all that the version holds."""
    config, _ = read_run(folder)
    cls = methods.named_by(folder, config["method"]["name"], method)
    number, saved = versions.load(folder, version)
    learned = _built(folder, cls)
    restore_method(learned.to("cuda" if torch.cuda.is_available() else "cpu"), saved)
    return _model(learned, config, folder, number, saved.state.get("temperature")), saved


def _built(folder: Path, cls: type[Method]) -> Method:
    """The method of the folder as it was before it learned anything."""
    config, _ = read_run(folder)
    given = {key: value for key, value in config["method"].items() if key != "name"}
    settings = check_arguments("method", cls, given)
    if config["backbone"] is None:
        raise EverlearnError(f"{folder / 'config.yaml'} names no backbone: learn the run again")
    backbone = backbones.load_when_needed if methods.is_own(cls) else backbones.load
    return cls(backbone(config["backbone"]), **settings, seed=config["seed"])


def _by_role(columns: Mapping[str, str | None], doing: str) -> dict[str, str | None]:
    """The columns that were given by the settings of a stream, by role."""
    if unfit := sorted(columns.keys() - {*COLUMNS}):
        raise EverlearnError(f"{unfit[0]} is not a setting of {doing}: give one of {', '.join(COLUMNS)}")
    return {name.removesuffix("_column"): column for name, column in columns.items()}


def _to_read(
    of_run: Mapping[str, str | None], given: Mapping[str, str | None]
) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """The columns by role that new data must have, and those that they may lack, because the run named them and not
    whoever gives the data."""
    needed = {role: of_run.get(role) for role in ("text", "image", "label")} | dict(given)
    return needed, {role: of_run.get(role) for role in ("split", "id") if role not in given}


def _columns_of(config: dict[str, Any]) -> dict[str, str | None]:
    """The columns that the stream of a run names, by role."""
    return {name.removesuffix("_column"): config["stream"].get(name) for name in COLUMNS}


def _model(method: Method, config: dict[str, Any], folder: Path, version: int, temperature: float | None) -> Model:
    return Model(method, _columns_of(config), temperature=temperature, directory=folder, version=version)
