"""Let methods compete on one stream, and take the one that is recommended.

python examples/compare_methods.py
"""

import everlearn
from everlearn.recommendation import recommendation

if __name__ == "__main__":
    stream = {"name": "banking77", "tasks": 7, "max_train_per_class": 2, "max_test_per_class": 1}
    results = everlearn.compare("simplecil,lda,klda", stream)
    for result in results:
        final, old, new = (result[score] for score in ("final_accuracy", "old", "new"))
        print(f"{result['method']:<10} final {final:.2f}  old {old:.2f}  new {new:.2f}")
    print(recommendation(results))
