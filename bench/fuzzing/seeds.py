"""Valid files and folders of everything that everlearn reads; the fuzzer damages copies of them.

seeds/data       tables, retrieval files, images and image folders
seeds/configs    configurations
seeds/runs       run folders, finished and stopped inside a task, and a comparison
seeds/cache      the feature store of these runs
seeds/models     folders of transformers, text and image, and a weights file of timm
seeds/adapters   adapters in PEFT's format
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import random
import sys
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

sys.path.append(str(Path(__file__).parents[2] / "tests" / "backbones"))
from small_models import png, save_model

CLASSES, EXAMPLES = ("card", "loan", "cash", "pin"), 6
FORMATS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "gif": "GIF", "webp": "WEBP", "tiff": "TIFF", "ppm": "PPM"}
METHODS: dict[str, dict[str, Any]] = {
    "simplecil": {},
    "ranpac": {"width": 20, "first_session": False},
    "fecam": {},
    "er": {"train": "lora(size=2)"},
    "l2p": {},
    "coda_prompt": {},
    "slca": {},
    "ewc": {"train": "head"},
    "task_adapters": {},
}
IMAGE_METHOD = "lda"


def build(seeds: Path) -> None:
    """Make all of them. It takes some seconds."""
    data = seeds / "data"
    data.mkdir(parents=True)
    _tables(data)
    _retrieval(data)
    _images(data)
    _models(seeds / "models")
    _adapters(seeds / "adapters", seeds / "models" / "bert")
    os.environ["EVERLEARN_CACHE"] = str(seeds / "cache")
    with _same_every_time():
        _runs(seeds / "runs", data)
    _configs(seeds / "configs", seeds / "runs", data)


def _same_every_time() -> contextlib.ExitStack:
    """Inside the block seconds, memory and names of new segments are counted, not measured or drawn: the place of a
    damage depends on the length of each file."""
    stack, ticks, names = contextlib.ExitStack(), itertools.count(), itertools.count()
    stack.enter_context(mock.patch("time.perf_counter", lambda: next(ticks) / 64))
    stack.enter_context(mock.patch("uuid.uuid4", lambda: uuid.UUID(int=next(names))))
    stack.enter_context(mock.patch("everlearn.results.peak_memory", lambda: 10**9))
    return stack


def _rows() -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {
            "text": f"{label} " + " ".join(f"word{draw.randrange(50)}" for _ in range(4)),
            "label": label,
            "id": f"{label}-{number}",
            "domain": ("shop", "bank")[number % 2],
        }
        for number in range(EXAMPLES)
        for label in CLASSES
    ]


def _tables(data: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _rows()
    for ending, comma in (("csv", ","), ("tsv", "\t")):
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), delimiter=comma, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        (data / f"table.{ending}").write_text(out.getvalue())
    (data / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "texts.txt").write_text("".join(row["text"] + "\n" for row in rows))
    (data / "new.csv").write_text("text,label\n" + "".join(f"{row['text']} again,{row['label']}\n" for row in rows))
    numbered = [{**row, "label": CLASSES.index(row["label"])} for row in rows]
    declared = {"class_names": json.dumps(CLASSES)}
    features = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}}
    for name, metadata in (("table", declared), ("table-hf", {"huggingface": json.dumps(features)})):
        table = pa.Table.from_pylist(numbered).replace_schema_metadata(metadata)
        pq.write_table(table, data / f"{name}.parquet")
    _bomb(data / "bomb.parquet")


def _bomb(file: Path) -> None:
    """A Parquet file of a few KB with a hundred million equal rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int8)), ["x" * 100])
    group = pa.table({name: rows for name in ("text", "label", "doc_id", "query_id")})
    with pq.ParquetWriter(file, group.schema) as writer:
        for _ in range(100):
            writer.write_table(group)


def _retrieval(data: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _rows()
    documents = [
        {"doc_id": row["id"], "text": row["text"], "title": row["label"], "domain": row["domain"], "split": "all"}
        for row in rows
    ]
    queries = [
        {
            "query_id": f"q{number}",
            "text": row["text"][:20],
            "pos": [row["id"], rows[number - 2]["id"]],
            "grade": [2, 1],
            "domain": row["domain"],
            "split": ("train", "test")[number % 3 == 0],
        }
        for number, row in enumerate(rows)
    ]
    for role, found in (("corpus", documents), ("queries", queries)):
        (data / f"shop_{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        pq.write_table(pa.Table.from_pylist(found), data / f"mall_{role}.parquet")


def _images(data: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rows = []
    for label in CLASSES[:2]:
        (data / "pictures" / label).mkdir(parents=True)
        for number in range(4):
            content = png(hash_of(label) + number, 16, 16)
            (data / "pictures" / label / f"{number}.png").write_bytes(content)
            rows.append({"image": content, "label": label, "id": f"{label}-{number}"})
    pq.write_table(pa.Table.from_pylist(rows), data / "pictures.parquet")
    paths = [f"pictures/{row['label']}/{number % 4}.png,{row['label']}\n" for number, row in enumerate(rows)]
    (data / "pictures.csv").write_text("image,label\n" + "".join(paths))
    (data / "single").mkdir()
    image = Image.open(io.BytesIO(png(5, 24, 20)))
    for ending, name in FORMATS.items():
        image.save(data / "single" / f"one.{ending}", name)
    frames = [Image.open(io.BytesIO(png(seed, 8, 8))) for seed in range(3)]
    frames[0].save(data / "single" / "three.gif", save_all=True, append_images=frames[1:])


def hash_of(text: str) -> int:
    """A small number for a text, the same in every process."""
    return sum(text.encode())


def _models(models: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    for kind in ("bert", "vit"):
        save_model(kind, models / kind)
    bert = models / "bert"
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    )
    steps = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{type_}"}
        for number, (path, type_) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2", "Normalize")))
    ]
    (bert / "modules.json").write_text(json.dumps(steps))
    (bert / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    (models / "vit" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"height": 32, "width": 32},
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
            }
        )
    )
    _divide(bert, models / "divided")
    weights = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    half = {name: tensor.to(torch.float16) for name, tensor in weights.items()}
    save_file(half, models / "vit_tiny_patch16_224.safetensors")


def _divide(model: Path, place: Path) -> None:
    """The same model with its weights in two files and an index."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(model, place)
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, place / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))


def _adapters(place: Path, bert: Path) -> None:
    import warnings

    from everlearn import backbones
    from everlearn.peft.interop import save
    from everlearn.peft.unified import insert

    for insertion in ("lora", "prefix"):
        backbone = backbones.load(str(bert))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # prefixes shift positions in PEFT
            save(insert(backbone, insertion), backbone, place / insertion)


def _runs(runs: Path, data: Path) -> None:
    from everlearn.comparison import compare
    from everlearn.protocol import run
    from everlearn.session import Session

    table = {"name": str(data / "table.csv"), "tasks": 2, "max_train_per_class": 4, "max_test_per_class": 2}
    for name, settings in METHODS.items():
        run({"name": name, **settings}, table, backbone="tiny", out=runs / name)
    run(IMAGE_METHOD, {"name": str(data / "pictures"), "tasks": 2}, backbone="tiny", out=runs / "images")
    run("er", {"name": str(data / "shop")}, backbone="tiny", out=runs / "retrieval")
    compare(["simplecil", "lda"], table, backbone="tiny", out=runs / "comparison")

    stepped = Session.stepped

    def stop_early(session: Session, learning: Any) -> None:
        session.stop.asked = session.task_index == 1
        stepped(session, learning)

    from everlearn.interrupts import Interrupted

    Session.stepped = stop_early  # type: ignore[method-assign]
    for name in ("er", "finetune"):
        try:
            run({"name": name, "batch_size": 2, "train": "head"}, table, backbone="tiny", out=runs / f"stopped-{name}")
        except Interrupted:
            continue
        raise AssertionError("the run was not stopped")
    Session.stepped = stepped  # type: ignore[method-assign]


def _configs(configs: Path, runs: Path, data: Path) -> None:
    configs.mkdir()
    for name in ("simplecil", "fecam", "er", "images"):
        (configs / f"{name}.yaml").write_bytes((runs / name / "config.yaml").read_bytes())
    table = {"name": str(data / "table.csv"), "kind": "domain-incremental", "domains": ["shop", "bank"], "test": 0.3}
    (configs / "domains.yaml").write_text(yaml.safe_dump({"stream": table, "method": "simplecil", "backbone": "tiny"}))
    new = {"name": str(data / "table.csv"), "kind": "old-then-new", "new": str(data / "new.csv"), "text_column": "text"}
    (configs / "new.yaml").write_text(yaml.safe_dump({"stream": new, "method": {"name": "lda"}, "backbone": "tiny"}))
