"""The data sets that come with the package, or with a library that it needs anyway; and how one's own are given."""

PACKAGED = {
    "clinc150": "150 intents of short requests to an assistant, in 10 domains (English text)",
    "banking77": "77 intents of questions to a bank (English text)",
    "digits": "10 handwritten digits, 8 x 8 pixels, from scikit-learn (images)",
}

OWN = {
    "tickets.csv": "a file: CSV, TSV, JSON Lines, Parquet or Excel (.xlsx); a row has a text or an image, and its "
    "class. Name the columns with --stream.text_column and --stream.label_column if they are not called text and label",
    "pictures/": "a folder of images, with one sub-folder for each class",
    "faq": "two files for retrieval, by their common stem: faq_corpus.jsonl with doc_id and text, and "
    "faq_queries.jsonl with query_id, text and pos (the list of the relevant doc_ids). Each domain is one task",
    "hub:owner/name": "a data set of the Hugging Face hub",
}
"""Examples of data of one's own: what is given as --stream, and what it means."""
