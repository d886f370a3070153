"""The folder of a transformers model, read as what a stranger may have written.

transformers itself gets no path of that folder. It can be led by the files to fetch and run code, to ask on the
terminal, to load another model, to unpickle weights or to build a model of any size. Here, everlearn reads the
configuration and the weights, checks them against each other, and hands over plain values; the tokenizer is loaded
from a temporary copy of its files.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from everlearn.backbones.tensors import FLOATING, damaged, in_float32, read_tensors
from everlearn.errors import DataError, EverlearnError, one_line, printable
from everlearn.files import read_bytes
from everlearn.strict import from_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODULES, MODEL_SETTINGS, ADAPTER = "modules.json", "config_sentence_transformers.json", "adapter_config.json"
TEXT_SETTINGS = tuple(f"sentence_{kind}_config.json" for kind in (
    "bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"))  # fmt: skip
SETTINGS = (MODULES, MODEL_SETTINGS, ADAPTER, *TEXT_SETTINGS, "[1-9]*/config.json", "[1-9]*/model.safetensors",
            "preprocessor_config.json")  # fmt: skip
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "tokenizer.model",
                "sentencepiece.bpe.model", "spiece.model", "spm.model")  # fmt: skip
FILES = (CONFIG, WEIGHTS, INDEX, "model-*.safetensors", *SETTINGS, *TOKENIZER_SETTINGS, *VOCABULARIES)
"""All that is read, and so all that is downloaded."""

MOST_JSON, MOST_VOCABULARY = 16 * 2**20, 256 * 2**20  # bytes of a file

RANGES = {
    "num_hidden_layers": (1, 1000), "num_attention_heads": (1, 1000), "hidden_size": (1, 100_000),
    "intermediate_size": (1, 1_000_000), "vocab_size": (1, 10_000_000), "max_position_embeddings": (1, 10_000_000),
    "type_vocab_size": (0, 1000), "image_size": (1, 4096), "patch_size": (1, 4096), "num_channels": (1, 16),
    "num_labels": (0, 100_000),
}  # fmt: skip
"""The smallest and the largest value of the numbers in config.json that decide how large a model becomes."""
OTHER = (-10_000_000, 10_000_000)
"""The same for all other whole numbers in it."""

PAIRS = ("clip", "siglip")
"""The types of models that are an image encoder and a text encoder, trained together."""

# Keys of config.json that say how transformers loads and runs a model, not what the model computes.
HOW = ("auto_map", "attn_implementation", "experts_implementation", "fusion_config", "transformers_weights", "dtype",
       "torch_dtype", "name_or_path", "distributed_config", "kernel_config", "use_kernels")  # fmt: skip
# Keys of tokenizer_config.json that are not settings of a tokenizer: code, templates, and arguments of the loader.
# Those that end in _file or _files name files, and are left out too.
NOT_SETTINGS = ("auto_map", "chat_template", "init_inputs", "tokenizer_object", "post_processor", "name_or_path",
                "cache_dir", "proxies", "token", "config")  # fmt: skip
NO_LIMIT = str(int(1e30)).encode()  # the length that transformers writes for "no limit"; it does not fit 64 bits


class ModelFolder:
    """A local folder or a model on the hub, in the format of transformers with safetensors weights.

    Args:
        source: a folder, or a hub name (``owner/model``), which is downloaded unless it has been before.
        remedy: what the reader of the message can do if it cannot be downloaded.

    Raises:
        EverlearnError: there is no such folder or model.
    """

    def __init__(self, source: str, remedy: str = "give a folder") -> None:
        self.source, self.path = source, Path(source)
        if self.path.is_dir():
            return
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", source):
            problem = "is not a folder" if self.path.exists() else "there is no such folder"
            raise EverlearnError(f"backbone '{source}': {problem}, and hub names have the form owner/model: {remedy} "
                                 f"with {CONFIG}, tokenizer and {WEIGHTS}")  # fmt: skip
        from huggingface_hub import snapshot_download

        try:
            self.path = Path(snapshot_download(source, allow_patterns=list(FILES)))
        except Exception as error:  # the hub's client and its HTTP library raise many kinds
            raise unreadable(source, error, f"{remedy} with {CONFIG}, tokenizer and {WEIGHTS}") from error

    def read_json(self, name: str, kind: type = dict) -> Any:
        """The content of a JSON file, which is of this kind (dict or list); empty if there is no such file.

        Raises:
            DataError: it is not a regular file, too large, not JSON, of another kind, or has a value that is refused.
        """
        file = self.path / name
        if not file.exists():
            return kind()
        data = read_bytes(file, MOST_JSON).replace(NO_LIMIT, b"9223372036854775807")
        content = from_json(data, file, "copy the folder again")
        if not isinstance(content, kind):
            expected = "mapping" if kind is dict else "list"
            raise DataError(f"{file} holds a {type(content).__name__}, not a {expected}: copy the folder again")
        return content

    @cached_property
    def config(self) -> Any:
        """The configuration as an object of transformers, made from plain values in their ranges.

        Raises:
            EverlearnError: it is missing, or not one of a single encoder.
        """
        from transformers import CONFIG_MAPPING

        file = self.path / CONFIG
        if not file.exists():
            raise EverlearnError(f"backbone '{self.source}': {file} does not exist: give a folder that transformers "
                                 "has saved")  # fmt: skip
        told = self.read_json(CONFIG)
        kind = told.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            raise DataError(f"{file}: model_type {printable(kind)} is none that transformers knows: give the folder of "
                            "a BERT-like text encoder or a plain ViT")  # fmt: skip
        if told.get("quantization_config"):
            raise DataError(f"{file}: quantised weights are not supported: take the model in float32 or bfloat16")
        config_class = CONFIG_MAPPING[kind]
        if kind in PAIRS:
            return self._pair_config(config_class, told)
        if config_class.sub_configs or kind.startswith("timm_"):  # these can load a part, or all of it, from the hub
            raise DataError(f"{file}: a model of the type {kind} is not a single encoder: give a BERT-like text "
                            "encoder or a plain ViT")  # fmt: skip
        in_range(told, getattr(config_class, "attribute_map", {}), file)
        settings = {key: value for key, value in told.items() if key not in HOW and not key.startswith("_")}
        with one_line(file, "copy the folder again"):
            config = config_class.from_dict(settings)
            width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
        if type(width) is not int or type(heads) is not int:
            raise DataError(f"{file}: a model of the type {kind} has no attention: give a BERT-like text encoder or a "
                            "plain ViT")  # fmt: skip
        if width % heads and not getattr(config, "head_dim", None):
            raise DataError(f"{file}: a width of {width} cannot be divided among {heads} attention heads: it is "
                            "damaged; copy the folder again")  # fmt: skip
        return config

    def _pair_config(self, config_class: Any, told: dict[str, Any]) -> Any:
        """The configuration of an image encoder and a text encoder that were trained together."""
        file = self.path / CONFIG
        settings: dict[str, Any] = {
            key: told[key] for key in ("projection_dim", "logit_scale_init_value") if key in told
        }
        in_range(settings, {}, file)
        for name in ("text_config", "vision_config"):
            part = told[name] if isinstance(told.get(name), dict) else {}
            in_range(part, getattr(config_class.sub_configs[name], "attribute_map", {}), file)
            settings[name] = {key: value for key, value in part.items() if key not in HOW and not key.startswith("_")}
        with one_line(file, "copy the folder again"):
            config = config_class.from_dict(settings)
        for one in (config.text_config, config.vision_config):
            width, heads = one.hidden_size, one.num_attention_heads
            if width % heads:
                raise DataError(f"{file}: a width of {width} cannot be divided among {heads} attention heads: it is "
                                "damaged; copy the folder again")  # fmt: skip
        return config

    @property
    def is_pair(self) -> bool:
        """Whether it is an image encoder and a text encoder that were trained together."""
        return self.config.model_type in PAIRS

    @property
    def reads_images(self) -> bool:
        """Whether it is an image encoder."""
        return hasattr(self.config, "patch_size") and hasattr(self.config, "image_size")

    def weights(self) -> tuple[Path, dict[str, torch.Tensor]]:
        """The file that holds the weights, or the index of several, and all their tensors, of any dtype.

        Raises:
            DataError: a file is missing or damaged, or the index names anything but safetensors files beside it.
        """
        file, index = self.path / WEIGHTS, self.path / INDEX
        shards: list[str] = []
        if index.exists():
            named = self.read_json(INDEX).get("weight_map")
            if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
                raise DataError(f"{index}: weight_map is not a mapping from tensors to files: copy the folder again")
            shards = sorted(set(named.values()))
            for name in shards:
                if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
                    raise DataError(f"{index} names '{printable(name)}', which is not a safetensors file beside it: "
                                    "only such files are read, since others can run code")  # fmt: skip
        if file.exists():
            return file, read_tensors(file)
        if not shards:
            raise EverlearnError(f"backbone '{self.source}': {file} does not exist, and other formats (.bin) are never "
                                 "read, since a pickle file can run code: save the model as safetensors")  # fmt: skip
        tensors: dict[str, torch.Tensor] = {}
        for name in shards:
            tensors |= read_tensors(self.path / name)
        return index, tensors

    def model(self) -> Any:
        """The model with all its weights in float32. No weight keeps a random value, except those of a pooler.

        Raises:
            EverlearnError: the weights are damaged or incomplete, or do not fit the configuration.
        """
        from transformers import MODEL_MAPPING

        if type(self.config) not in MODEL_MAPPING or isinstance(made := MODEL_MAPPING[type(self.config)], tuple):
            raise DataError(f"{self.path / CONFIG}: transformers has no encoder of the type {self.config.model_type}: "
                            "give a BERT-like text encoder or a plain ViT")  # fmt: skip
        file, tensors = self.weights()
        # Position numbers are whole numbers in the files of old models; the model makes its own.
        weights = in_float32({name: t for name, t in tensors.items() if t.dtype in FLOATING}, file)
        with one_line(self.path / CONFIG, "it is damaged; copy the folder again"), quiet():
            with torch.device("meta"):  # a model without memory
                sketch = made(self.config)
            claimed = sum(tensor.numel() for tensor in (*sketch.parameters(), *sketch.buffers()))
        held = sum(tensor.numel() for tensor in weights.values())
        if claimed > 2 * held + 100_000:  # what a file may lack is little: a pooler, position numbers
            raise DataError(f"{self.path / CONFIG} describes a model of {claimed:,} numbers, but {file.name} holds "
                            f"{held:,}: one of them is damaged or incomplete, as after an interrupted download; copy "
                            "the folder again")  # fmt: skip
        with one_line(file, "it is damaged or for another model; copy the folder again"), quiet():
            model, report = made.from_pretrained(
                None, config=self.config, state_dict=weights, dtype=torch.float32, output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported
            )  # fmt: skip
        for name, *shapes in sorted(report["mismatched_keys"]):
            found, wanted = map(list, shapes)
            raise damaged(file, f"the tensor '{name}' has the shape {found}, but in {CONFIG} it has {wanted}")
        model.name_or_path = model.config.name_or_path = self.source
        missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
        if missing:
            strange = [f"; {name} is {tensor.dtype}, not floating-point" for name, tensor in tensors.items()
                       if tensor.dtype not in FLOATING and not name.endswith("position_ids")]  # fmt: skip
            raise damaged(file, f"{len(missing)} tensors are missing, such as {missing[0]}{''.join(strange[:1])}")
        return model

    def tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            EverlearnError: there is none, it is damaged, it is of another model, or it cannot pad.
        """
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory(prefix="everlearn-") as copy:
            for name in TOKENIZER_SETTINGS:
                if (self.path / name).exists():
                    kept = {key: value for key, value in self.read_json(name).items()
                            if key not in NOT_SETTINGS and not key.endswith(("_file", "_files"))}  # fmt: skip
                    Path(copy, name).write_text(json.dumps(kept), encoding="utf-8")
            for name in VOCABULARIES:
                if (self.path / name).exists():
                    Path(copy, name).write_bytes(read_bytes(self.path / name, MOST_VOCABULARY))
            with one_line(f"the tokenizer in {self.path}", "copy the folder again"), no_panic(self.source), quiet():
                tokenizer = AutoTokenizer.from_pretrained(copy, config=self.config, trust_remote_code=False)
        highest, rows = (
            max(tokenizer.get_vocab().values(), default=0),
            getattr(self.config.get_text_config(), "vocab_size", 0),
        )
        if highest >= rows:
            raise DataError(f"the tokenizer in {self.path} gives tokens the numbers up to {highest}, but the model has "
                            f"{rows} embeddings: they are of different models; copy the folder again")  # fmt: skip
        if tokenizer.pad_token_id is None:
            raise DataError(f"the tokenizer in {self.path} has no padding token, so it cannot read several texts at "
                            "once: name its pad_token in tokenizer_config.json")  # fmt: skip
        return tokenizer


def in_range(settings: dict[str, Any], other_names: dict[str, str], file: Path) -> None:
    """Raise a DataError, which names the setting, if one of a model's settings is out of its range.

    Args:
        other_names: what an architecture calls a setting, by its usual name; {"hidden_size": "dim"} for example.
    """
    ranges = RANGES | {other_names[name]: both for name, both in RANGES.items() if name in other_names}
    for name, value in settings.items():
        least, most = ranges.get(name, OTHER)
        if name in ranges and type(value) is not int:
            raise DataError(f"{file}: {name} is {printable(value, 40)}, not a whole number: copy the folder again")
        for number in _whole_numbers(value):
            if not least <= number <= most:
                raise DataError(f"{file}: {printable(name)} is {number}, and from {least:,} to {most:,} is possible: "
                                "it is damaged; copy the folder again")  # fmt: skip


def _whole_numbers(value: Any) -> Iterator[int]:
    if type(value) is int:
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(item)


def unreadable(name: str, error: Exception, remedy: str) -> EverlearnError:
    """The error for a backbone that is neither on this computer nor, as it seems, to be had from the hub."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return EverlearnError(f"backbone '{printable(name)}' could not be read ({printable(reason)}); no network? {remedy}")


@contextmanager
def no_panic(name: str) -> Iterator[None]:
    """Inside the block a panic of the tokenizers library, which is no Exception, becomes an EverlearnError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise EverlearnError(f"the tokenizer of backbone '{name}' failed ({printable(error)}): copy its files again, "
                             "or take another backbone") from error  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block transformers logs nothing and shows no bar: what it finds is reported in one line, by us."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()  # loading is short, and its bar would hide ours
    try:
        yield
    finally:
        logging.set_verbosity(level)
