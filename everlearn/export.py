"""Export: a learned model in the format of another library, which gives equal answers there, or a reason why it cannot.

What was written is loaded again and asked beside the model before it takes its place, so that an export that would
answer otherwise is refused and not written.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from everlearn.backbones.backbone import Backbone
from everlearn.backbones.folder import quiet
from everlearn.backbones.sentences import Dense, Normalize
from everlearn.backbones.side_by_side import SideBySide
from everlearn.backbones.tensors import read_tensors
from everlearn.backbones.text import TextBackbone
from everlearn.calibration import probabilities
from everlearn.errors import EverlearnError, remedy_for, unknown
from everlearn.files import new_folder
from everlearn.heads.knn import KNN
from everlearn.method import Method, Role
from everlearn.methods.finetune import Finetune
from everlearn.peft.lora import LoRA
from everlearn.seeds import seeded
from everlearn.setfit_folder import HEAD, write_head
from everlearn.streams.inputs import Input

LEAST_COSINE = 0.9999
MOST_DIFFERENCE = 1e-3
"""Of probabilities, between this library and another: the same sums in another order."""
MOST_AT_ONCE = 1024
"""Inputs of one call of an ONNX model."""
PROBES = (
    "a short text",
    "How do I move an appointment from Friday to next week?",
    "tea",
    "100 % of 7 things: one, two. " * 40,
)


def export(method: Method, to: str, out: str | Path, *, temperature: float | None = None) -> Path:
    """Write a learned model for another library.

    Args:
        method: that of a loaded model; it is not changed.
        to: "sentence-transformers" (the encoder, with trained weights and merged LoRA, as a folder for
            `SentenceTransformer`), "setfit" (the same folder with the names of the classes, and with a head of logistic
            regression that is no pickle), or "onnx" (the classifier as `model.onnx`, with its tokenizer and
            `everlearn.json`).
        out: a folder that does not exist yet, or is empty.
        temperature: of its probabilities.

    Returns:
        The folder.

    Raises:
        EverlearnError: the format is unknown, its library is not installed, the folder holds something, or the other
            library could not give equal answers; the message says why.

    >>> from everlearn import backbones, engine, methods, streams
    >>> method = methods.get("simplecil")(backbones.load("tiny"))
    >>> task = streams.task_from([streams.Record("tea please", "drink"), streams.Record("a sofa", "furniture")])
    >>> _ = engine.learn(method, task)
    >>> try:
    ...     export(method, "onxx", "for-onnx-runtime")
    ... except EverlearnError as error:
    ...     print(error)
    unknown format 'onxx': did you mean 'onnx'? (known: onnx, sentence-transformers, setfit)
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EverlearnError(f"{out} exists already: give a new folder with --out")
    # A copy in float32 on the CPU: merging changes weights, and other libraries compute in float32.
    method = copy.deepcopy(method).cpu().eval().requires_grad_(False)
    for encoder in method.backbone.encoders():
        encoder.precision = "float32"
    try:
        with new_folder(out) as made:
            FORMATS[to](method, temperature, made)
    except OSError as error:
        raise EverlearnError(
            f"{out} cannot be written ({error.strerror or error}): {remedy_for(error)}, or give another folder"
        ) from error
    return out


def _to_sentence_transformers(method: Method, temperature: float | None, out: Path) -> None:
    library = _library("sentence_transformers", "retrieval")
    encoder = _plain_encoder(method, "sentence-transformers computes one encoder for every text")
    if not isinstance(encoder, TextBackbone):
        raise EverlearnError("sentence-transformers reads text encoders of transformers, and this run's encoder "
                             f"'{encoder.name}' is none: export it --to onnx")  # fmt: skip
    for delta in encoder.active:
        if not isinstance(delta, LoRA):
            raise EverlearnError(f"the model has trained deltas of the kind {type(delta).__name__}, and only LoRA can "
                                 "be merged into an encoder's weights: learn with --method.train lora")  # fmt: skip
        assert delta.site is not None
        delta.merge(delta.site)
    if encoder.layers > 1:
        raise EverlearnError(f"'{encoder.name}' joins the features of {encoder.layers} layers, which "
                             "sentence-transformers cannot compute: learn with --backbone "
                             f"{encoder.name.partition('@layers')[0]}")  # fmt: skip
    modules = _modules_of(library, encoder)
    prompts = {name: text for name, text in (("default", encoder.prompts[None]), ("query", encoder.prompts["query"]),
                                             ("document", encoder.prompts["document"])) if text}  # fmt: skip
    made = library.SentenceTransformer(
        modules=modules, device="cpu", prompts=prompts, similarity_fn_name=encoder.similarity,
        default_prompt_name="default" if "default" in prompts else None,
        truncate_dim=encoder.width if encoder.width < _width_after(encoder) else None,
    )  # fmt: skip
    made.save_pretrained(str(out), create_model_card=False)
    theirs = library.SentenceTransformer(str(out), device="cpu", local_files_only=True)
    roles: list[Role | None] = ["query", "document"] if method.task.goal == "ranking" else [None]
    for role in roles:
        encode = {None: theirs.encode, "query": theirs.encode_query, "document": theirs.encode_document}[role]
        with encoder.reading(role) if role else contextlib.nullcontext():
            mine = encoder.infer(list(PROBES)).numpy()
        _check_cosines(mine, np.asarray(encode(list(PROBES), show_progress_bar=False)), "sentence-transformers")


def _to_setfit(method: Method, temperature: float | None, out: Path) -> None:
    write_head(method, temperature, out)
    _to_sentence_transformers(method, temperature, out)
    from sklearn.linear_model import LogisticRegression

    head, held = LogisticRegression(), read_tensors(out / HEAD)  # the package computes with the same numbers
    head.coef_, head.intercept_ = held["coef_"].numpy(), held["intercept_"].numpy()
    head.classes_ = np.arange(len(method.task.class_names))
    library = _library("sentence_transformers", "retrieval")
    theirs = library.SentenceTransformer(str(out), device="cpu", local_files_only=True)
    found = head.predict_proba(theirs.encode(list(PROBES), normalize_embeddings=True, show_progress_bar=False))
    expected = probabilities(method.head(method.backbone.infer(list(PROBES))).float(), temperature).numpy()
    _check_probabilities(expected, found)


def _modules_of(library: Any, encoder: TextBackbone) -> list[nn.Module]:
    """The encoder, its pooling and what follows, as modules of sentence-transformers."""
    try:
        kinds = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    except ImportError:  # before release 6
        kinds = importlib.import_module("sentence_transformers.models")
    told = encoder.settings
    # Our encoders have no pooler, and the library adds one, which takes no part: the same one each time.
    with tempfile.TemporaryDirectory() as folder, seeded(0), quiet():
        encoder.model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        modules = [kinds.Transformer(folder, max_seq_length=told["max_length"], do_lower_case=told["lower_case"])]
    modes = told["pooling"][0] if len(told["pooling"]) == 1 else tuple(told["pooling"])
    modules.append(kinds.Pooling(encoder.hidden_width, pooling_mode=modes, include_prompt=told["pools_prompt"]))
    for layer in encoder.after:
        if isinstance(layer, Normalize):
            modules.append(kinds.Normalize())
        elif isinstance(layer, nn.LayerNorm):
            norm = kinds.LayerNorm(layer.normalized_shape[0])
            norm.norm.load_state_dict(layer.state_dict())
            modules.append(norm)
        elif isinstance(layer, Dense) and not layer.residual:
            wide, narrow = layer.weight.shape[1], layer.weight.shape[0]
            modules.append(kinds.Dense(wide, narrow, layer.bias is not None, layer.activation, layer.weight.detach(),
                                       None if layer.bias is None else layer.bias.detach()))  # fmt: skip
        else:
            raise EverlearnError(f"the encoder has the layer {type(layer).__name__} with a residual after its pooling, "
                                 "which is not exported")  # fmt: skip
    return modules


def _width_after(encoder: TextBackbone) -> int:
    """The size of what the last layer gives, before features are cut to `width`."""
    widths = [layer.weight.shape[0] for layer in encoder.after if isinstance(layer, Dense)]
    return int(widths[-1]) if widths else encoder.hidden_width * len(encoder.settings["pooling"])


def _to_onnx(method: Method, temperature: float | None, out: Path) -> None:
    onnxruntime, _ = (_library(name, "onnx") for name in ("onnxruntime", "onnxscript"))
    if method.task.goal != "classes":
        raise EverlearnError("an ONNX file holds a classifier, and this run ranks documents: export its encoder with "
                             "--to sentence-transformers")  # fmt: skip
    if type(method).predict is not Method.predict or type(method).scores is not Method.scores:
        raise EverlearnError(f"{type(method).__name__} does more for a prediction than its head on a feature, and this "
                             "is not exported: take a method such as ranpac, klda, lda, er or lora")  # fmt: skip
    if isinstance(method.head, KNN):
        raise EverlearnError(f"{type(method).__name__} compares each input with the features of all examples, and this "
                             "is not exported: take a method such as logistic, ranpac, klda or lda")  # fmt: skip
    encoder = _plain_encoder(method, "the exported file computes one encoder for every input")
    if encoder.settings.get("prompt") and not encoder.settings.get("pools_prompt", True):
        raise EverlearnError("the encoder leaves its prompt out of the pooling, and this is not exported")
    inputs: list[Input] = list(PROBES) if method.task.input == "text" else _images()
    given = [_tensors(encoder, inputs[:n]) for n in (len(inputs), 1)]  # also of another size than it is made with
    expected = probabilities(method.head(encoder.infer(inputs)).float(), temperature).numpy()
    file, names = out / "model.onnx", list(given[0])
    batch, length = torch.export.Dim("batch", min=1, max=MOST_AT_ONCE), torch.export.Dim("length", min=2)
    shapes = tuple({0: batch, 1: length} if tensor.dim() == 2 else {0: batch} for tensor in given[0].values())
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own exporter
            torch.onnx.export(
                _Classifier(method, temperature, names), tuple(given[0].values()), str(file), input_names=names,
                output_names=["scores", "probabilities"], dynamic_shapes=(shapes,), external_data=False, verbose=False,
                dynamo=True,
            )  # fmt: skip
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        answers = [session.run(["probabilities"], {name: tensor.numpy() for name, tensor in tensors.items()})[0]
                   for tensors in given]  # fmt: skip
    except OSError:  # the disk is full, or the like: `export` says so
        raise
    except Exception as error:  # torch raises many kinds of error for what it cannot write
        raise EverlearnError(f"{type(method).__name__} on '{encoder.name}' computes something that torch cannot write "
                             f"to ONNX ({type(error).__name__}): take a method such as ranpac, klda, lda, er or "
                             "lora, or another encoder") from error  # fmt: skip
    for found in answers:
        _check_probabilities(expected[: len(found)], found)
    told: dict[str, Any] = {"classes": method.task.class_names, "temperature": temperature, "inputs": names}
    if isinstance(encoder, TextBackbone):
        encoder.tokenizer.save_pretrained(out)
        told |= {name: encoder.settings[name] for name in ("max_length", "lower_case", "prompt")}
    else:
        told |= {"preprocessing": encoder.settings}
    (out / "everlearn.json").write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")


class _Classifier(nn.Module):
    """Scores and probabilities from what the encoder is given, tensor by tensor."""

    def __init__(self, method: Method, temperature: float | None, names: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.head = method.backbone, method.head
        self.temperature, self.names = temperature or 1.0, names
        # The encoder is given prepared tensors, and does not count the examples, whose number is not known here.
        plain = getattr(type(self.encoder).hidden, "__wrapped__", type(self.encoder).hidden)
        self.encoder.__dict__ |= {"prepare": lambda prepared: prepared, "hidden": plain.__get__(self.encoder)}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(self.names, tensors, strict=True))
        scores = self.head(self.encoder(named.get("pixel_values", named))).float()
        return scores, (scores / self.temperature).softmax(1)


def _tensors(encoder: Backbone, inputs: Sequence[Input]) -> dict[str, Tensor]:
    """What the encoder is given for these inputs, by name.

    Raises:
        EverlearnError: something of it is no tensor.
    """
    prepared = encoder.prepare(inputs)
    named = prepared if isinstance(prepared, dict) else {"pixel_values": prepared}
    if wrong := [name for name, value in named.items() if not isinstance(value, Tensor)]:
        raise EverlearnError(f"encoder '{encoder.name}' takes a {wrong[0]} that is no tensor, and cannot be exported")
    return named


def _plain_encoder(method: Method, why: str) -> Backbone:
    """The encoder, if the features of the method are what it computes.

    Raises:
        EverlearnError: the method computes others, for example with prompts that it chooses for each input.
    """
    if type(method).features is not Method.features or type(method).embed not in (Method.embed, Finetune.embed):
        raise EverlearnError(f"{type(method).__name__} computes the features of each input in its own way (prompts or "
                             f"adapters that are chosen for it), and {why}: it cannot be exported there")  # fmt: skip
    if isinstance(method, Finetune) and method.side == "query":
        raise EverlearnError("the model reads queries by the trained encoder and documents by the one it began with "
                             f"(side=query), and {why}: learn with --method.side both")  # fmt: skip
    if isinstance(method.backbone, SideBySide):
        raise EverlearnError(f"'{method.backbone.name}' joins the features of several encoders, and {why}: learn with "
                             "one of them as --backbone")  # fmt: skip
    return method.backbone


def _images() -> list[Input]:
    from everlearn.streams.digits import as_png

    draw = np.random.default_rng(0)
    return [as_png(draw.integers(0, 255, (32, 32), dtype=np.uint8)) for _ in range(3)]


def _check_cosines(mine: np.ndarray, theirs: np.ndarray, library: str) -> None:
    same = mine.shape == theirs.shape
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    least = float(((mine * theirs).sum(1) / lengths).min()) if same else 0.0  # NaN is refused too
    if not least >= LEAST_COSINE:
        raise EverlearnError(f"the embeddings of the export differ in {library} (least cosine {least:.5f}), and "
                             "nothing was written: please report this")  # fmt: skip


def _check_probabilities(mine: np.ndarray, theirs: np.ndarray) -> None:
    difference = float(np.abs(theirs - mine).max())
    if not difference <= MOST_DIFFERENCE:
        raise EverlearnError(f"the probabilities of the export differ by {difference:.2g}, and nothing was written: "
                             "please report this")  # fmt: skip


def _library(name: str, extra: str) -> Any:
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    raise EverlearnError(f"this export needs the library {name}: pip install 'everlearn[{extra}]'")


FORMATS: dict[str, Callable[[Method, float | None, Path], None]] = {
    "sentence-transformers": _to_sentence_transformers, "setfit": _to_setfit, "onnx": _to_onnx,
}  # fmt: skip
