from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest


@pytest.fixture
def shared() -> Path:
    """Data beside the checkout, where the developer has it."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("EVERLEARN_SHARED", beside))
    if not folder.is_dir():
        pytest.skip("no shared data")
    return folder


@pytest.fixture
def write_csv(tmp_path):
    """Write rows (a list of dicts) as CSV and give the path as a string."""

    def write(rows: list[dict], name: str = "shop.csv") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return str(path)

    return write


@pytest.fixture
def rows():
    """classes x per_class rows with text, label, and a domain that changes every other row."""

    def make(classes: int = 4, per_class: int = 10, prefix: str = "class") -> list[dict]:
        return [
            {"text": f"{prefix} {c} text {i}", "label": f"{prefix} {c}", "domain": "shop" if i % 2 else "phone"}
            for i in range(per_class)
            for c in range(classes)
        ]

    return make


@pytest.fixture
def png():
    """A grey PNG of one shade, as bytes."""
    image = pytest.importorskip("PIL.Image")

    def make(shade: int = 0) -> bytes:
        buffer = io.BytesIO()
        image.new("L", (8, 8), shade).save(buffer, "PNG")
        return buffer.getvalue()

    return make
