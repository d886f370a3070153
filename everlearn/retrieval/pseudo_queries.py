"""Pseudo-queries: what could be asked of documents that come without queries, made without a generator.

The inverse cloze task takes a sentence out of a document for the query, and the rest is its document (Lee, Chang &
Toutanova, ACL 2019, https://arxiv.org/abs/1906.00300). In one of ten pairs the sentence stays in the document, so that
the model also learns to match words. A document of one sentence gives a part of that sentence.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

STAYS = 0.1
SENTENCE = re.compile(r"(?<=[.!?])\s+")
SHORTEST = 3
"""Words of a sentence that can stand for a query."""


def pseudo_queries(documents: Sequence[str], *, per_document: int = 1, seed: int = 0) -> tuple[list[str], list[str]]:
    """Queries with their documents, n of each, as `everlearn.streams.from_pairs` takes them.

    Args:
        documents: texts; one of a single sentence with fewer than twice `SHORTEST` words gives nothing, and one whose
            sentences all have fewer than `SHORTEST` words gives nothing either.
        per_document: queries of a document, at most; each is another sentence.
        seed: which sentences are drawn.

    >>> queries, texts = pseudo_queries(["The roses are red. They want water at six. The lawn is dry."])
    >>> queries, texts
    (['They want water at six.'], ['The roses are red. The lawn is dry.'])
    """
    draw = random.Random(seed)
    queries, texts = [], []
    for document in documents:
        sentences = [part for part in SENTENCE.split(document.strip()) if part]
        long = [row for row, part in enumerate(sentences) if len(part.split()) >= SHORTEST]
        if len(sentences) == 1:
            words = document.split()
            if len(words) >= 2 * SHORTEST:
                length = draw.randint(SHORTEST, max(SHORTEST, len(words) // 2))
                start = draw.randint(0, len(words) - length)
                queries.append(" ".join(words[start : start + length]))
                texts.append(document)
            continue
        for row in sorted(draw.sample(long, min(per_document, len(long)))):
            rest = [part for other, part in enumerate(sentences) if other != row]
            queries.append(sentences[row])
            texts.append(document if draw.random() < STAYS else " ".join(rest))
    return queries, texts
