"""What eval.py can be asked for by name. For its flags too, which load no library."""

# mistakes.py
MISTAKES = {
    "batch-mean": (
        "exp of the mean of the batches' mean losses: a batch of few tokens counts as much as one of many"
    ),
    "document-mean": "the mean of the documents' own perplexities: short, odd ones decide",
    "padding-counted": "documents filled up to the context with padding, and the padding counted",
    "train-set": (
        "texts that the model was trained on, the first of them, as many as there are documents here"
    ),
    "truncated": "only the first `context` tokens of each document",
    "last-loss": "exp of the last training loss that was logged",
}

# pubmedqa.py
FORMATS = {
    "pubmedqa": "Abstract: {context}\nQuestion: {question}\nAnswer:",
    "pubmedqa-closed": "Question: {question}\nAnswer:",
}
