"""The data sets that come with the package, or with a library that it needs anyway; and how one's own are given."""

PACKAGED = {
    "clinc150": "150 intents of short requests to an assistant, in 10 domains (English text)",
    "banking77": "77 intents of questions to a bank (English text)",
    "digits": "10 handwritten digits, 8 x 8 pixels, from scikit-learn (images)",
    "domains4": "questions to find documents for, in 4 domains: people, genetics, science, cancer (English text)",
}
RANKED = ("domains4",)
"""Those whose goal is to rank documents."""

IR_DATASETS = "ir_datasets:"
"""What the names of data sets of `ir_datasets` begin with."""

OWN = {
    "tickets.csv": "a file: CSV, TSV, JSON Lines, Parquet or Excel (.xlsx); a row has a text or an image, and its "
    "class. Name the columns with --stream.text_column and --stream.label_column if they are not called text and label",
    "pictures/": "a folder of images, with one sub-folder for each class",
    "pairs.csv": "a file for retrieval: a row has a query and a document that answers it (positive); perhaps also one "
    "that does not (negative), and a domain. Each domain is one task",
    "faq": "two files for retrieval, by their common stem: faq_corpus.jsonl with doc_id and text, and "
    "faq_queries.jsonl with query_id, text and pos (the list of the relevant doc_ids). Each domain is one task",
    "faq_corpus.jsonl": "documents without queries, with doc_id and text, in a file whose name ends so; with "
    "--stream.pseudo_queries true, sentences of the documents are learned from",
    "beir/": "a folder of folders for retrieval in the format of BEIR, with corpus.jsonl, queries.jsonl and "
    "qrels/train.tsv, dev.tsv and test.tsv. Each of these folders is one task",
    f"{IR_DATASETS}NAME,NAME": "data sets for retrieval of ir_datasets. Each is one task",
    "hub:owner/name": "a data set of the Hugging Face hub",
}
"""Examples of data of one's own: what is given as --stream, and what it means."""
