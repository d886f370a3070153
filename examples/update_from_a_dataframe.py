"""Learn a DataFrame, then teach the model the rows of the next month.

python examples/update_from_a_dataframe.py
"""

import tempfile

import pandas as pd

import everlearn
from everlearn.streams import from_table

MAY = pd.DataFrame(
    {
        "message": ["my card is lost", "the card was stolen", "I cannot find my card", "block my card, it is gone",
                    "where is my transfer", "the transfer is late", "money has not arrived", "how long is a transfer"],
        "intent": ["card"] * 4 + ["transfer"] * 4,
    }
)  # fmt: skip
JUNE = pd.DataFrame(
    {
        "message": ["where is the nearest branch", "when does the branch open", "is there a branch near me",
                    "find a branch in my street", "is the branch open on saturday"],
        "intent": ["branch"] * 5,
    }
)  # fmt: skip
COLUMNS = {"text_column": "message", "label_column": "intent"}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        everlearn.run("lda", from_table(MAY, tasks=1, **COLUMNS), out=f"{folder}/model")
        model = everlearn.load(f"{folder}/model")
        version = model.update(from_table(JUNE, tasks=1, **COLUMNS))
        print("new classes:", version.new_classes)
        print(model.predict(["which branch is open", "my card was stolen"]))
