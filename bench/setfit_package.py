"""The setfit package on the examples of a file, for `bench/setfit.py`, in an environment that may lack everlearn.

    python -P bench/setfit_package.py TOLD.json

The file holds texts, labels, tests, test_labels, encoder (a folder), pairs, seed, strength and threads. One line of
JSON is printed: the accuracy with the package's own head (C = 1) and with C = `strength`, the steps, and the seconds,
which like those of everlearn begin when the encoder is loaded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("told", type=Path, help="the file")
    told = json.loads(parser.parse_args().told.read_text(encoding="utf-8"))
    import torch
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    torch.set_num_threads(told["threads"])
    model = SetFitModel.from_pretrained(told["encoder"], device="cpu")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, batch_size=16, num_epochs=1, num_iterations=told["pairs"], seed=told["seed"],
            report_to="none", save_strategy="no", logging_strategy="no", show_progress_bar=False,
        )  # fmt: skip
        data = Dataset.from_dict({"text": told["texts"], "label": told["labels"]})
        trainer = Trainer(model=model, args=settings, train_dataset=data)
        trainer.train()
    seconds = time.perf_counter() - started

    def encoded(texts: list[str]) -> Any:
        return model.model_body.encode(texts, convert_to_numpy=True, show_progress_bar=False)

    train, test = encoded(told["texts"]), encoded(told["tests"])
    again = LogisticRegression(C=told["strength"], max_iter=1000).fit(train, told["labels"])
    accuracies = {name: float((head.predict(test) == told["test_labels"]).mean())
                  for name, head in (("own head", model.model_head), ("same head", again))}  # fmt: skip
    print(json.dumps({**accuracies, "steps": trainer.st_trainer.state.global_step, "seconds": seconds}))


if __name__ == "__main__":
    main()
