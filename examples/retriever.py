"""Search documents with a model, from a folder of a run.

python examples/retriever.py
"""

import json
import tempfile
from pathlib import Path

import everlearn

DOCUMENTS = {"roses": "Water roses early in the morning.", "hedge": "Cut the hedge in August.",
             "card": "A lost card is blocked by phone.", "transfer": "A transfer abroad takes two days."}  # fmt: skip
QUERIES = {"roses": ["when do roses need water", "how do I water roses"], "hedge": ["when to cut a hedge", "my hedge"],
           "card": ["I lost my card", "block a card"], "transfer": ["money abroad", "is a transfer quick"]}  # fmt: skip


def write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    write(folder / "shop_corpus.jsonl", [{"doc_id": id, "text": text} for id, text in DOCUMENTS.items()])
    write(folder / "shop_queries.jsonl", [
        {"query_id": f"{id}{number}", "text": query, "pos": [id], "split": ["train", "test"][number]}
        for id, queries in QUERIES.items() for number, query in enumerate(queries)
    ])  # fmt: skip
    everlearn.run("frozen", str(folder / "shop"), out=folder / "run")
    model = everlearn.load(folder / "run")
    texts = list(DOCUMENTS.values())
    for query, found in zip(["a stolen card"], model.method.search(["a stolen card"], texts, k=2), strict=True):
        print(query, "->", [texts[place] for place in found])
