"""The verdict on real encoders: a model that was made from the old one, and models that know nothing of each other.

    python bench/migrate.py [--epochs 5] [--domain people] [--seed 0]

The documents and test queries are those of the packaged stream domains4. The encoders:

* minilm, and its children: `finetune` learns one domain, gently and with a learning rate that is ten times as large;
* wordllama (`pip install wordllama`), static word embeddings with 256 numbers that come with their package and were
  made from another model: a stranger to minilm. Without the package these rows are left out.

Written to docs/results/migrate.md: for each migration the four pairings, the bridges, the verdict and the bill.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import common
import torch

from everlearn import backbones, model, run
from everlearn.results import environment
from everlearn.retrieval.given import held_out, read_texts
from everlearn.retrieval.index import Index
from everlearn.retrieval.stamp import stamp_of
from everlearn.retrieval.trial import judge
from everlearn.retrieval.verdict import Verdict

STREAM = "domains4"
RATES = {"gentle child": 5e-5, "far child": 5e-4}


class WordLlama:
    """The static embeddings of the package wordllama, with what an index asks of an encoder."""

    name, width, similarity, precision = "wordllama", 256, "cosine", "float32"
    settings: ClassVar = {"pooling": "mean"}

    def __init__(self) -> None:
        import wordllama

        here = Path(wordllama.__file__).parent
        self.words = wordllama.WordLlama.load(cache_dir=here, disable_download=True)

    def identity(self) -> str:
        return hashlib.sha256(self.words.embedding.tobytes()).hexdigest()[:32]

    def reading(self, role: str | None) -> Any:
        return nullcontext()

    def embed(self, texts: Sequence[str], role: str | None = None) -> torch.Tensor:
        return torch.from_numpy(self.words.embed(list(texts), norm=True))

    infer = embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--domain", default="people")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="everlearn-migrate-"))
    collection = read_texts(STREAM, None)
    texts = {id: document.text for id, document in collection.documents.items()}
    encoders: dict[str, Any] = {"minilm": backbones.load("minilm")}
    for name, rate in RATES.items():
        place = folder / name.replace(" ", "-")
        learned = run({"name": "finetune", "epochs": args.epochs, "batch_size": 16, "lr": rate},
                      {"name": STREAM, "domains": [args.domain]}, backbone="minilm", out=place, seed=args.seed,
                      progress=True)  # fmt: skip
        encoders[name] = model.load(learned.directory)
    try:
        encoders["wordllama"] = WordLlama()
    except ImportError:
        print("wordllama is not installed: the rows of a stranger are left out")
    pairs = [("minilm", "gentle child"), ("minilm", "far child"), ("wordllama", "minilm"), ("minilm", "wordllama")]
    verdicts = {}
    for old, new in pairs:
        if old in encoders and new in encoders:
            index = Index.create(folder / f"{old} to {new}".replace(" ", "-"), stamp_of(encoders[old]))
            index.add(list(texts), list(texts.values()), by=encoders[old])
            verdicts[old, new] = judge(index, encoders[old], encoders[new], texts, held_out(collection.queries),
                                       threshold=0.5, seed=args.seed, progress=True)  # fmt: skip
            print(f"\n{old} to {new}\n{verdicts[old, new].describe()}")
    first = next(iter(verdicts.values()))
    lines = [
        "# Migrating an index to another encoder", "",
        f"From `{common.command(parser, args)}`: {first.documents:,} documents of `{STREAM}` and its test queries; "
        f"{first.queries['reported']} of them are reported, {first.queries['chose']} chose the bridge and "
        f"{first.queries['fitted']} helped to fit it. A child is minilm after `finetune` on the domain {args.domain}: "
        f"{args.epochs} epochs in batches of 16, with a learning rate of "
        f"{' or '.join(f'{rate:g} ({name})' for name, rate in RATES.items())}.", "",
        f"Measured: one seed; {common.machine(environment(encoders['minilm']))}.", "",
        *(line for pair, verdict in verdicts.items() for line in section(*pair, verdict)),
    ]  # fmt: skip
    common.write_page("migrate", lines)


def section(old: str, new: str, verdict: Verdict) -> list[str]:
    """A migration as a part of the page."""
    bill, told = verdict.bill, verdict.threshold
    lines = [f"## {old} → {new}: {verdict.answer}", "",
             "| queries | index | bridge | recall@10 | nDCG@10 | kept in the domain that loses most | agreement |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in verdict.pairings:
        mark = " (best)" if row["bridge"] and row["bridge"] == verdict.bridge else ""
        scores = " | ".join(f"{100 * row[name]:.1f}" for name in ("recall", "ndcg", "kept", "agreement"))
        lines.append(f"| {row['queries']} | {row['index']} | {row['bridge'] or '-'}{mark} | {scores} |")
    lines += ["", f"{verdict.reason[0].upper()}{verdict.reason[1:]}.", ""]
    lines += [f"* {each['what']}: {100 * each['difference']:+.1f} (95 % interval {100 * each['low']:+.1f} to "
              f"{100 * each['high']:+.1f}, p = {each['p']:.2g})" for each in verdict.differences]  # fmt: skip
    lines += [f"* The bill of a re-index: {bill['documents']:,} documents, {bill['documents_per_second']:.0f} a "
              f"second, {bill['seconds']:.0f} s.",
              f"* A threshold of {told['old']:g} becomes {told['new']:.2f}; of pairs that were not used for this, "
              f"{100 * told['changed']:.1f} % are decided otherwise.", ""]  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
