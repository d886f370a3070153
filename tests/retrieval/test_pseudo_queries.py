"""Pseudo-queries come out of their documents, and most leave them."""

from __future__ import annotations

from everlearn.retrieval.pseudo_queries import pseudo_queries

LONG = "The roses are red. They want water at six. The lawn is dry. It is mown on friday morning."


def test_a_sentence_leaves_its_document_in_nine_of_ten_pairs() -> None:
    queries, texts = pseudo_queries([LONG] * 1000, seed=1)
    assert len(queries) == len(texts) == 1000
    assert all(query in LONG for query in queries)
    stays = sum(query in text for query, text in zip(queries, texts, strict=True))
    assert 70 < stays < 130
    assert set(queries) == {"The roses are red.", "They want water at six.", "The lawn is dry.",
                            "It is mown on friday morning."}  # fmt: skip
    gone = next(text for query, text in zip(queries, texts, strict=True) if query == "The lawn is dry." not in text)
    assert gone == "The roses are red. They want water at six. It is mown on friday morning."


def test_several_queries_of_a_document_are_different_sentences() -> None:
    queries, _ = pseudo_queries([LONG], per_document=3)
    assert len(set(queries)) == 3
    assert pseudo_queries([LONG], per_document=3) == pseudo_queries([LONG], per_document=3)
    assert len(pseudo_queries([LONG], per_document=9)[0]) == 4


def test_short_documents() -> None:
    one = "water the roses and the lawn at six in the morning"
    queries, texts = pseudo_queries([one, "tea", ""])
    assert texts == [one]
    assert queries[0] in one
    assert 3 <= len(queries[0].split()) <= 5
    assert pseudo_queries(["tea", ""]) == ([], [])
